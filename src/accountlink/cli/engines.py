"""Makes the engine that a URL names: one that writes, and one that only reads an SQLite file."""

import sqlite3
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink.cli.loading import CannotRun
from accountlink.database.pooler import pooler_options
from accountlink.extras import how_to_install

ASYNC: Final = {
    "postgres": "postgresql+asyncpg://",
    "postgresql": "postgresql+asyncpg://",
    "sqlite": "sqlite+aiosqlite://",
}
"""The prefix to write for each database; many hosts spell PostgreSQL ``postgres``."""
_TRUE: Final = ("true", "t", "yes", "y", "on", "1")
"""The words that SQLAlchemy takes for yes in a URL."""
_IN_MEMORY: Final = "file::memory:"


def read_url(text: str) -> URL:
    """Read a URL; one without a driver means psycopg, as SQLAlchemy 2.1 has it, and asyncpg where that is missing."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise CannotRun(
            "the database URL is not one. Write it as postgresql+asyncpg://user@host/name, with a password "
            "percent-encoded."
        ) from None
    scheme = ASYNC.get(url.get_backend_name())
    if scheme is None:
        raise CannotRun(
            f"the database URL begins with {url.drivername}://, and accountlink knows PostgreSQL and SQLite. Begin it "
            f"with {ASYNC['postgresql']} or {ASYNC['sqlite']}."
        )
    if url.drivername == "postgresql":
        return url.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'asyncpg'}")
    if "+" not in url.drivername or url.get_backend_name() == "postgres":
        raise _needs_async(url)
    return url


def is_plain(text: str) -> bool:
    """Say whether a URL may be repeated: it has neither a password nor options, which may hold one."""
    url = make_url(text)
    return url.password is None and not url.query


def _needs_async(url: URL) -> CannotRun:
    return CannotRun(
        f"the database URL begins with {url.drivername}://, which names no asynchronous driver. Begin it with "
        f"{ASYNC[url.get_backend_name()]} instead."
    )


def make_engine(url: URL, **options: Any) -> AsyncEngine:
    """Make the engine that ``create_async_engine`` makes; where a driver is missing, say how it is installed."""
    try:
        return create_async_engine(url, **options)
    except (InvalidRequestError, NoSuchModuleError):
        raise _needs_async(url) from None
    except ImportError as error:
        driver = url.get_driver_name()
        command = how_to_install(error.name if isinstance(error, ModuleNotFoundError) else driver)
        if command is None:
            raise _needs_async(url) from None
        raise CannotRun(
            f"the database URL needs the driver {driver}, which is not installed, or not whole: {command}"
        ) from None


def sqlite_reader(url: URL) -> AsyncEngine:
    """Make an engine that only reads, from a file as it is."""
    return _only_reading(sqlite_as_it_is(url))


def writer(url: URL) -> AsyncEngine:
    """Make an engine that writes: right behind a pooler, too, and on SQLite to a file that exists."""
    if url.get_backend_name() == "sqlite":
        return sqlite_as_it_is(url)
    return make_engine(url, **pooler_options(url))


def sqlite_as_it_is(url: URL) -> AsyncEngine:
    """Make an engine that opens the file as it is: it makes none, and changes no setting that the file keeps."""
    if not has_file(url):
        return make_engine(url)
    given = str(url.database)
    as_uri = url if _is_uri(url) else url.set(database=f"file:{quote(given)}")
    mode = str(url.query.get("mode", "rw")) if _is_uri(url) else "rw"
    engine = make_engine(as_uri.update_query_dict({"mode": "rw" if mode == "rwc" else mode, "uri": "true"}))
    _probe(engine, given)
    return engine


def _only_reading(engine: AsyncEngine) -> AsyncEngine:
    """Let each transaction of an SQLite engine refuse writes, take no write lock, and see one state of the database."""

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")

    sa.event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def _is_uri(url: URL) -> bool:
    return str(url.database).startswith("file:") and str(url.query.get("uri", "")).lower() in _TRUE


def has_file(url: URL) -> bool:
    """Say whether a URL names an SQLite database with a file, and not one in memory, however that is written."""
    if url.get_backend_name() != "sqlite" or url.database in {None, "", ":memory:"}:
        return False
    if not _is_uri(url):
        return True
    return "vfs" not in url.query and url.query.get("mode") != "memory" and url.database not in {"file:", _IN_MEMORY}


def _probe(engine: AsyncEngine, name: str) -> None:
    """Open the file once before aiosqlite does.

    After a failed open aiosqlite's thread still reports to the event loop, which may be closed by then: the
    answer to a mistyped path would be a traceback from a thread.
    """
    (uri,), _ = engine.dialect.create_connect_args(engine.url)
    try:
        sqlite3.connect(str(uri), uri=True).close()
    except sqlite3.Error as error:
        raise CannotRun(f"the database file {name} cannot be opened: {error}. Check the path.") from None
