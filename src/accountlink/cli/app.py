"""The entry point of the command line, which tells people plainly when its extra is not installed."""

import sys
from importlib.util import find_spec

from accountlink.extras import how_to_install


def main() -> None:
    """Run the command line; exit 2 with one line when click or rich is missing."""
    for library in ("click", "rich"):
        if find_spec(library) is None:
            sys.stderr.write(f"accountlink: the command line needs {library}: {how_to_install(library)}\n")
            sys.exit(2)

    from accountlink.cli.commands import accountlink  # noqa: PLC0415  # it imports what may be missing

    accountlink(prog_name="accountlink")
