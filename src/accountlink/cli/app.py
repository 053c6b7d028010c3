"""The entry point of the command line, which tells people plainly when its extra is not installed."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line; exit 2 with one line when click or rich is missing."""
    if find_spec("click") is None or find_spec("rich") is None:
        sys.stderr.write('accountlink: the command line needs: pip install "accountlink[cli]"\n')
        sys.exit(2)

    from accountlink.cli.commands import accountlink  # noqa: PLC0415  # it imports what may be missing

    accountlink(prog_name="accountlink")
