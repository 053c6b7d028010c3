"""Reaches the database that the doctor is to read, by a connection that cannot write to it."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from accountlink.cli.loading import CannotRun, where_of
from accountlink.database.pooler import pooler_options
from accountlink.database.sqlite import in_transaction
from accountlink.database.violations import FAILURES, read
from accountlink.doctor.findings import Finding
from accountlink.doctor.pooling import check_pooling
from accountlink.doctor.reading import begin_reading, transactional
from accountlink.errors import AccountLinkError, StoreUnavailable
from accountlink.extras import how_to_install
from accountlink.values.facts import Failure, Trouble

_ASYNC: Final = {
    "postgres": "postgresql+asyncpg://",
    "postgresql": "postgresql+asyncpg://",
    "sqlite": "sqlite+aiosqlite://",
}
"""What to write for each database; ``postgres`` is how many hosts spell it."""
_ADAPTED: Final = re.compile(r"^(?:\([\w.]+\) )?<class '[\w.]+'>: ")
"""How SQLAlchemy's asyncpg adapter begins a message: with the class of the error below."""
_TRUE: Final = ("true", "t", "yes", "y", "on", "1")
"""What SQLAlchemy takes for yes in a URL."""
_IN_MEMORY: Final = "file::memory:"
_CHECK: Final = "Check the URL, that the server answers, and what the role may do."
_REMEDIES: Final = {
    Trouble.BUSY: "Run the doctor again when nothing holds the table, such as a migration that is under way, or with "
    "more time.",
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """An open way to the database.

    Attributes:
        connection: A connection whose answers are its own, and which only reads.
        pooling: What is wrong with the engine that was asked about, between it and its server.
    """

    connection: AsyncConnection
    pooling: Finding | None


@asynccontextmanager
async def reach_url(text: str) -> AsyncIterator[Way]:
    """Yield a way to the database at a URL; an engine as ``create_async_engine(url)`` makes it is judged.

    SQLite is spared the judgement: that an engine was tuned does not show in a URL.

    Args:
        text: An SQLAlchemy URL with an asynchronous driver.

    Raises:
        CannotRun: The URL or the database cannot be used, or the database fails while it is read.
    """
    url = _url(text)
    if url.get_backend_name() == "sqlite":
        async with _reading(_sqlite_reader(url), url) as connection:
            yield Way(connection=connection, pooling=None)
    else:
        async with reach_engine(_engine(url)) as way:
            yield way


@asynccontextmanager
async def reach_engine(engine: AsyncEngine) -> AsyncIterator[Way]:
    """Yield a way to the database of an engine, whose settings are judged as they are; it is disposed of.

    Raises:
        CannotRun: The database cannot be used, or fails while it is read.
    """
    if engine.dialect.name not in _ASYNC:
        raise CannotRun(f"--engine is one of {engine.dialect.name}. accountlink knows PostgreSQL and SQLite.")
    try:
        reader = _sqlite_reader(engine.url) if _has_file(engine.url) else engine  # before the engine makes a file
        pooling = await _judged(engine)
        if pooling is not None and engine.dialect.name != "sqlite":
            reader = await _with_answers_of_its_own(engine)
        async with _reading(reader, engine.url) as connection:
            yield Way(connection=connection, pooling=pooling)
    finally:
        await engine.dispose()


def _url(text: str) -> URL:
    """Read a URL; one without a driver means psycopg, as SQLAlchemy 2.1 has it, and asyncpg where that is missing."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise CannotRun(
            "the database URL is not one. Write it as postgresql+asyncpg://user@host/name, with a password "
            "percent-encoded."
        ) from None
    scheme = _ASYNC.get(url.get_backend_name())
    if scheme is None:
        raise CannotRun(
            f"the database URL begins with {url.drivername}://, and accountlink knows PostgreSQL and SQLite. Begin it "
            f"with {_ASYNC['postgresql']} or {_ASYNC['sqlite']}."
        )
    if url.drivername == "postgresql":
        return url.set(drivername=f"postgresql+{'psycopg' if find_spec('psycopg') else 'asyncpg'}")
    if "+" not in url.drivername or url.get_backend_name() == "postgres":
        raise _needs_async(url)
    return url


def is_plain(text: str) -> bool:
    """Whether a URL may be repeated: it has neither a password nor options, which may hold one."""
    url = make_url(text)
    return url.password is None and not url.query


def _needs_async(url: URL) -> CannotRun:
    return CannotRun(
        f"the database URL begins with {url.drivername}://, which names no asynchronous driver. Begin it with "
        f"{_ASYNC[url.get_backend_name()]} instead."
    )


def _engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(url)
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


def _sqlite_reader(url: URL) -> AsyncEngine:
    """Make an engine that opens the file as it is: it makes none, and changes no setting that the file keeps."""
    if not _has_file(url):
        return _engine(url)
    given = str(url.database)
    as_uri = url if _is_uri(url) else url.set(database=f"file:{quote(given)}")
    mode = str(url.query.get("mode", "rw")) if _is_uri(url) else "rw"
    engine = _engine(as_uri.update_query_dict({"mode": "rw" if mode == "rwc" else mode, "uri": "true"}))
    _probe(engine, given)
    return engine


def _is_uri(url: URL) -> bool:
    return str(url.database).startswith("file:") and str(url.query.get("uri", "")).lower() in _TRUE


def _has_file(url: URL) -> bool:
    """Whether it is an SQLite database with a file, and not one in memory, however that is written."""
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


async def _judged(engine: AsyncEngine) -> Finding | None:
    with _told(engine.url), _connecting(engine):
        try:
            return await check_pooling(engine)
        except StoreUnavailable:
            async with engine.connect():  # says why
                raise


async def _with_answers_of_its_own(engine: AsyncEngine) -> AsyncEngine:
    """Let an engine that was judged unsafe behind a pooler give no statement a name, from its next connection on.

    Everything else that its connections are made with stays: certificates, ``search_path``, listeners.
    """
    needed: Mapping[str, Any] = pooler_options(engine.url)["connect_args"]
    made = False

    def on_do_connect(_dialect: object, _record: object, _cargs: object, cparams: dict[str, Any]) -> None:
        nonlocal made
        made = True
        cparams.update(needed)

    sa.event.listen(engine.sync_engine, "do_connect", on_do_connect)
    await engine.dispose()
    with _told(engine.url), _connecting(engine):
        async with engine.connect():
            pass
    if not made:
        raise CannotRun(
            "the engine is behind a pooler that mixes statements up, and makes its connections by a function of its "
            "own, so that the doctor cannot read through it. Give --database-url instead of --engine."
        )
    return engine


@asynccontextmanager
async def _reading(engine: AsyncEngine, url: URL) -> AsyncIterator[AsyncConnection]:
    """Yield a connection on which the database itself refuses writes; dispose of its engine.

    Args:
        engine: Where from.
        url: What to name the database by, if it fails.
    """
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(engine.dispose)
        cleanup.enter_context(_told(url))
        with _connecting(engine):
            connection = await cleanup.enter_async_context(transactional(engine).connect())
        await connection.run_sync(_begin)
        yield connection


def _begin(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
        if not in_transaction(connection):  # a tuned engine has begun one
            connection.exec_driver_sql("BEGIN")  # one state of the database for the whole look
    begin_reading(connection, rows=True)


@contextmanager
def _connecting(engine: AsyncEngine) -> Iterator[None]:
    """Tell of a URL's options that the driver does not take: it raises what Python does for a wrong argument."""
    try:
        yield
    except (TypeError, ValueError) as error:
        hint = " With asyncpg, sslmode=require is ssl=require." if "sslmode" in engine.url.query else ""
        raise CannotRun(
            f"the driver {engine.dialect.driver} does not take one of the options in the URL "
            f"({type(error).__name__}).{hint} Write them as that driver names them."
        ) from None


@contextmanager
def _told(url: URL) -> Iterator[None]:
    """Turn the database's errors into one line, without the URL's password and without a statement's parameters."""
    try:
        yield
    except AccountLinkError as error:
        raise CannotRun(str(error)) from None
    except FAILURES as error:
        where, failure = where_of(error), read(error)
        remedy = _REMEDIES.get(failure.trouble, _CHECK)
        raise CannotRun(
            f"the database at {_shown(url)} cannot be read: {_cause(failure, url, where)} {remedy}"
        ) from None


def _shown(url: URL) -> str:
    place = url.set(query={}, password=None)
    return place.render_as_string()


def _cause(failure: Failure, url: URL, where: str) -> str:
    """Say what the database or its driver said; of what the application's own code raised, only the class and place."""
    error = failure.error
    below = getattr(error, "orig", None) or error
    kind = type(below).__name__ if failure.sqlstate is None else f"SQLSTATE {failure.sqlstate}"
    if where and failure.sqlstate is None and not isinstance(error, DBAPIError):
        return f"{kind}{where}."
    text = _ADAPTED.sub("", (str(below).splitlines() or [""])[0]).rstrip(".")
    secrets = [url.password, *(value for name, value in url.query.items() if "pass" in name)]
    if any(secret and str(secret) in text for secret in secrets):
        text = ""
    return f"{kind}: {text}." if text else f"{kind}."
