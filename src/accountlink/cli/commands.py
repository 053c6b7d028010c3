"""The commands. Each command's own imports wait until it is called, since some need further extras."""

import asyncio
from importlib.util import find_spec

import click

DEMO_NEEDS = ("aiosqlite", "httpx2", "joserfc", "rich", "starlette")


@click.group()
@click.version_option(package_name="accountlink")
def accountlink() -> None:
    """Link users to their OAuth provider accounts."""


@accountlink.command()
@click.option("--once", is_flag=True, help="Tell the story once, in the terminal, and end.")
@click.option(
    "--database-url",
    metavar="URL",
    help="Any async SQLAlchemy URL instead of a temporary SQLite file. "
    "The tables accountlink_demo_* in it are dropped and made anew, and stay afterwards.",
)
def demo(*, once: bool, database_url: str | None) -> None:
    """Two people, one provider account: link, relink, conflict, unlink, restore.

    Runs a small backend, Authlib and an OpenID Connect provider in this one process: no network, no account
    anywhere, no credentials. Exits 1 if anything does not come out as it should.
    """
    if not once:
        raise click.UsageError("only the terminal story exists in this version: accountlink demo --once")
    if any(find_spec(name) is None for name in DEMO_NEEDS):
        click.echo('accountlink: the demo needs: pip install "accountlink[demo]"', err=True)
        raise click.exceptions.Exit(2)

    from accountlink.cli.demo.output import output_for_terminal  # noqa: PLC0415  # the demo's extra
    from accountlink.cli.demo.stage import CannotStart  # noqa: PLC0415  # as above
    from accountlink.cli.demo.story import UnexpectedOutcome, tell  # noqa: PLC0415  # as above

    try:
        asyncio.run(tell(output_for_terminal(), database_url=database_url))
    except (CannotStart, UnexpectedOutcome) as problem:
        click.echo(f"accountlink: {problem}", err=True)
        raise click.exceptions.Exit(1) from None
