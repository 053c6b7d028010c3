"""The commands. Each command's own imports wait until it is called, since some need further extras."""

import asyncio
import logging
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from accountlink.extras import how_to_install

TRACEBACK = "ACCOUNTLINK_TRACEBACK"
"""The environment variable that lets an unexpected error be shown."""
DEMO_NEEDS = ("aiosqlite", "cryptography", "httpx2", "joserfc", "rich", "starlette", "uvicorn")


@click.group()
@click.version_option(package_name="accountlink")
def accountlink() -> None:
    """Link users to their OAuth provider accounts."""


@accountlink.command()
@click.option("--once", is_flag=True, help="Tell the story once, in the terminal, and end.")
@click.option(
    "--database-url",
    metavar="URL",
    help="Any async SQLAlchemy URL instead of an SQLite file. The tables accountlink_demo_* in it stay afterwards; "
    "--once and --fresh drop them first.",
)
@click.option("--fresh", is_flag=True, help="Drop the demo's tables first, and with them what was connected.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The port; 0 for a free one.  [default: 8750, or a free one]"
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the SQLite file and the demo's secret are kept.  [default: the system's folder for such data]",
)
@click.option("--browser/--no-browser", default=True, help="Whether to open a browser, where there is one.")
def demo(
    *, once: bool, database_url: str | None, fresh: bool, port: int | None, folder: Path | None, browser: bool
) -> None:
    """Two people and their provider accounts, on a page in the browser.

    Runs a small backend and OpenID Connect providers in this one process: no account anywhere, no credentials, and
    nothing outside this machine is asked.

    With --once it tells the story of one account in the terminal (link, relink, conflict, transfer, unlink, restore).
    It looks up in the database what it tells, and exits with 0, or with 1 if anything does not come out as it should.
    """
    if once and (fresh or folder or port is not None):
        raise click.UsageError("--once uses new tables and serves nothing: leave out --fresh, --port and --folder.")
    if missing := [name for name in DEMO_NEEDS if find_spec(name) is None]:
        click.echo(f'accountlink: the demo needs {", ".join(missing)}: pip install "accountlink[demo]"', err=True)
        raise click.exceptions.Exit(2)

    from accountlink.cli.demo.stage import CannotStart  # noqa: PLC0415  # the demo's extra
    from accountlink.cli.demo.story import UnexpectedOutcome, tell  # noqa: PLC0415  # as above
    from accountlink.cli.output import output_for_terminal  # noqa: PLC0415  # rich, which no other command may need

    try:
        if once:
            logging.getLogger("accountlink").addHandler(logging.NullHandler())  # the story says what went wrong
            asyncio.run(tell(output_for_terminal(), database_url=database_url))
            return
        from accountlink.cli.demo.place import default_folder  # noqa: PLC0415  # as above
        from accountlink.cli.demo.site import Order, serve  # noqa: PLC0415  # as above

        order = Order(
            folder=folder or default_folder(), database_url=database_url, port=port, fresh=fresh, browser=browser
        )
        with suppress(KeyboardInterrupt):  # the way to end it
            asyncio.run(serve(output_for_terminal(), order))
    except (CannotStart, UnexpectedOutcome) as problem:
        click.echo(f"accountlink: {problem}", err=True)
        raise click.exceptions.Exit(1) from None


@accountlink.command()
@click.option(
    "--app",
    "apps",
    metavar="MODULE:ATTRIBUTE",
    required=True,
    multiple=True,
    help="A linker, a mapping, a model, or a function that returns one, such as myapp.accounts:linker. Can be given "
    "several times.",
)
@click.option(
    "--database-url",
    metavar="URL",
    envvar="ACCOUNTLINK_DATABASE_URL",
    show_envvar=True,
    help="The database, as an async SQLAlchemy URL. Use the role that the application links with.",
)
@click.option(
    "--engine",
    metavar="MODULE:ATTRIBUTE",
    help="The application's own engine instead, or a function that returns it: how it connects is looked at, too.",
)
@click.option("--format", "form", type=click.Choice(["table", "json", "github"]), default="table", show_default=True)
@click.option(
    "--emit",
    type=click.Choice(["sql", "alembic"]),
    help="Print the migration that repairs what was found, and nothing else, to stdout; the findings go to stderr.",
)
@click.option("--down-revision", metavar="ID", help="The revision that the one of --emit alembic follows.")
@click.option(
    "--ignore",
    "ignored",
    metavar="RULE[:NAME]",
    multiple=True,
    help="Accept what a rule finds, or what it finds about one object or table: it is neither reported nor repaired. "
    "Can be given several times.",
)
@click.pass_context
def doctor(
    context: click.Context,
    *,
    apps: tuple[str, ...],
    database_url: str | None,
    engine: str | None,
    form: str,
    emit: str | None,
    down_revision: str | None,
    ignored: tuple[str, ...],
) -> None:
    """Find what blocks or fails to protect links in the database's schema.

    Reads the catalogue, and writes nothing. Exits 0 when nothing is wrong, 1 when something was found, and 2 when it
    could not look.
    """
    _check_one_database(context, engine)
    if down_revision is not None and emit != "alembic":
        raise click.UsageError("--down-revision goes with --emit alembic.")

    from accountlink.cli.doctor import Order, migration, run  # noqa: PLC0415  # rich, which no other command may need
    from accountlink.cli.output import Stream, writing  # noqa: PLC0415  # as above
    from accountlink.cli.reports import FORMATS  # noqa: PLC0415  # as above
    from accountlink.doctor.ignoring import Ignored  # noqa: PLC0415  # as above
    from accountlink.errors import ConfigurationError  # noqa: PLC0415  # as above

    try:
        accepted = Ignored.of(ignored)
    except ConfigurationError as problem:
        raise click.UsageError(f"--ignore: {problem}") from None
    with _ending("the doctor could not look"):
        examined, repairs = asyncio.run(
            run(
                Order(
                    apps=apps,
                    database_url=database_url,
                    engine=engine,
                    ignored=accepted,
                    url_from_environment=context.get_parameter_source("database_url") is ParameterSource.ENVIRONMENT,
                )
            )
        )
        with writing():
            if emit is not None:
                click.echo(migration(repairs, kind=emit, down_revision=down_revision), nl=False)
                examined = replace(examined, emitting=None)
            FORMATS[form](examined, Stream.OUT if emit is None else Stream.ERROR)
    raise click.exceptions.Exit(1 if examined.findings else 0)


def _check_one_database(context: click.Context, engine: str | None) -> None:
    if engine is not None and context.get_parameter_source("database_url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--engine and --database-url name two databases. Give one of them.")


@contextmanager
def _ending(what: str) -> Iterator[None]:
    """End a command with one line and 2 for what it cannot do, and for what it did not expect.

    Args:
        what: What the command could not do, for an error that it did not expect.
    """
    from accountlink.cli.loading import CannotRun, where_of  # noqa: PLC0415  # a module that demo and --help need not
    from accountlink.cli.output import CannotWrite  # noqa: PLC0415  # as above

    try:
        yield
    except KeyboardInterrupt:  # click would exit with 1, which says something else
        click.echo(f"accountlink: {what}: it was interrupted.", err=True)
        raise click.exceptions.Exit(2) from None
    except BrokenPipeError:
        raise  # nobody reads on, which click knows how to end
    except CannotWrite as failed:
        if isinstance(failed.error, BrokenPipeError):
            raise failed.error from None  # as above
        _give_up_stdout()
        click.echo(f"accountlink: what was found cannot be written: {failed.error.strerror}.", err=True)
        raise click.exceptions.Exit(2) from None
    except CannotRun as problem:
        click.echo(f"accountlink: {problem}", err=True)
        raise click.exceptions.Exit(2) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is no result, and may quote a secret
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        click.echo(f"accountlink: {_unexpected(what, error, where_of(error))}", err=True)
        raise click.exceptions.Exit(2) from None


def _give_up_stdout() -> None:
    """Let Python's exit not try once more to write what the stream has not taken, which would change the exit code."""
    with suppress(OSError, ValueError):  # stdout is no file of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(what: str, error: BaseException, where: str) -> str:
    return (
        f"{what}: {type(error).__name__}{where}, which it did not expect. Its text is not shown, "
        f"since it may quote a secret. Set {TRACEBACK}=1 to see it with its traceback, and do not let a log keep that."
    )


# -- the vault --------------------------------------------------------------------------------------------------------


@accountlink.command()
def secret() -> None:
    """Print a new key for a vault: 32 random bytes, as 43 characters."""
    click.echo(secrets.token_urlsafe(32))


def _on_linkers(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options which name linkers and their database.

    Args:
        what: The kind of linker that the command takes.
    """
    options = (
        click.option("--engine", metavar="MODULE:ATTRIBUTE",
                     help="The application's own engine instead, or a function that returns it."),
        click.option("--database-url", metavar="URL", envvar="ACCOUNTLINK_DATABASE_URL", show_envvar=True,
                     help="The database, as an async SQLAlchemy URL. Use the role that the application links with."),
        click.option("--app", "apps", metavar="MODULE:ATTRIBUTE", required=True, multiple=True,
                     help=f"A linker {what}, or a function that returns one, such as myapp.accounts:linker. Can "
                     "be given several times."),
    )  # fmt: skip

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in options:
            command = option(command)
        return click.pass_context(command)

    return add


def _on_tables(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that seal the tokens of tables."""
    for option in (
        click.option("--batch-size", type=click.IntRange(1, 10_000), default=500, show_default=True,
                     help="The most rows of one transaction."),
        click.option("--dry-run", is_flag=True, help="Only count what would be sealed. Nothing is written."),
    ):  # fmt: skip
        command = option(command)
    return _on_linkers("with a vault")(command)


@accountlink.command()
@_on_tables
def backfill(context: click.Context, **given: Any) -> None:
    """Seal the tokens that a table contains in plain text.

    It can run while the application does, and can be stopped and started again at any time. Exits 0 when no plain text
    is left, 1 when some is, and 2 when it could not run.
    """
    _seal(context, "BACKFILL", **given)


@accountlink.command()
@_on_tables
def rotate_keys(context: click.Context, **given: Any) -> None:
    """Seal the tokens of a table with the newest key.

    It can run while the application does, and can be stopped and started again at any time. Exits 0 when every token is
    sealed with the newest key, 1 when some are not, and 2 when it could not run.
    """
    _seal(context, "ROTATE", **given)


def _seal(
    context: click.Context,
    task: str,
    *,
    apps: tuple[str, ...],
    database_url: str | None,
    engine: str | None,
    dry_run: bool,
    batch_size: int,
) -> None:
    _check_one_database(context, engine)
    _check_vault()

    from accountlink.cli.sealing import Order, Task, run  # noqa: PLC0415  # extras, which no other command may need

    with _ending("the tables could not be sealed"):
        order = Order(
            task=Task[task],
            apps=apps,
            database_url=database_url,
            engine=engine,
            dry_run=dry_run,
            batch_size=batch_size,
        )
        left = asyncio.run(run(order))
    raise click.exceptions.Exit(1 if left else 0)


def _check_vault() -> None:
    """End a command with 2 if the extra of the vault is not installed."""
    if find_spec("cryptography") is None:
        click.echo(f"accountlink: a vault needs cryptography: {how_to_install('cryptography')}", err=True)
        raise click.exceptions.Exit(2)


# -- grants -----------------------------------------------------------------------------------------------------------


_UNITS: Final = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}


def _span(_context: click.Context, _option: click.Parameter, text: str) -> timedelta:
    """Read a length of time such as ``30d``, ``12h`` or ``90m``."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,3})([dhm])", text, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time. Write 30d, 12h or 90m.")
    return int(found[1]) * _UNITS[found[2]]


@accountlink.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--state",
    type=click.Choice(["needs_consent", "failing"]),
    help="Only connections in this state: the user must connect again, or the last renewal failed.",
)
@_on_linkers("that renews tokens")
def connections(context: click.Context, *, state: str | None, form: str, **given: Any) -> None:
    """List the connections whose tokens do not work.

    Shows the id of each link, and never a user or a token. With --format json each link is one JSON object on a line.
    Exits 0 when there are none, 1 when some are listed, and 2 when it could not look.
    """
    _check_one_database(context, given["engine"])
    _check_vault()

    from accountlink.cli.keeping import Order  # noqa: PLC0415  # extras, which no other command may need
    from accountlink.cli.keeping import connections as listed  # noqa: PLC0415  # as above

    with _ending("the connections could not be listed"):
        found = asyncio.run(listed(Order(**given), state=state, form=form))
    raise click.exceptions.Exit(1 if found else 0)


@accountlink.command()
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The most grants of each linker; all without it.")
@click.option(
    "--idle",
    callback=_span,
    metavar="SPAN",
    required=True,
    help="How long a grant may be unused, such as 30d, 12h or 90m. Shorter than the time after which the provider ends "
    "it.",
)
@_on_linkers("that renews tokens")
def keep_alive(context: click.Context, *, idle: timedelta, limit: int | None, **given: Any) -> None:
    """Renew the grants that nobody uses, before their providers end them.

    It can run while the application does, in several processes, and can be stopped and started again at any time. Exits
    0 when all went well, 1 when grants had ended or could not be opened, and 2 when it could not run.
    """
    _check_one_database(context, given["engine"])
    _check_vault()

    from accountlink.cli.keeping import Order, keep_all_alive  # noqa: PLC0415  # extras, as above

    with _ending("the grants could not be kept alive"):
        need = asyncio.run(keep_all_alive(Order(**given), idle=idle, limit=limit))
    raise click.exceptions.Exit(1 if need else 0)
