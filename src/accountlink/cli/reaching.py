"""Reaches the database that the doctor is to read, by a connection that cannot write to it."""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from accountlink.cli.loading import CannotRun
from accountlink.doctor.findings import Finding
from accountlink.doctor.pooling import check_pooling
from accountlink.errors import AccountLinkError, StoreUnavailable
from accountlink.storage.pooler import pooler_options
from accountlink.storage.violations import FAILURES, read

_ASYNC: Final = {
    "postgres": "postgresql+asyncpg://",
    "postgresql": "postgresql+asyncpg://",
    "sqlite": "sqlite+aiosqlite://",
}
"""What to write for each database; ``postgres`` is how many hosts spell it."""
_EXTRAS: Final = {"aiosqlite": "accountlink[sqlite]", "psycopg": "accountlink[psycopg]"}
_ADAPTED: Final = re.compile(r"^(?:\([\w.]+\) )?<class '[\w.]+'>: ")
"""How SQLAlchemy's asyncpg adapter begins a message: with the class of the error below."""


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
        if file := _file(engine.url):
            _probe(file)
        pooling = await _judged(engine)
        if engine.dialect.name == "sqlite" and file:
            reader = _sqlite_reader(engine.url)
        else:
            reader = engine if pooling is None else await _with_answers_of_its_own(engine)
        async with _reading(reader, engine.url) as connection:
            yield Way(connection=connection, pooling=pooling)
    finally:
        await engine.dispose()


def _url(text: str) -> URL:
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
    if "+" not in url.drivername or url.get_backend_name() == "postgres":
        raise _needs_async(url)
    return url


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
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise _needs_async(url) from None
        raise CannotRun(
            f'the database URL needs a driver that is not installed: pip install "{_EXTRAS[error.name]}"'
        ) from None


def _sqlite_reader(url: URL) -> AsyncEngine:
    """Make an engine that opens the file as it is: it makes none, and changes no setting that the file keeps."""
    if file := _file(url):
        _probe(file)
        url = url.set(database=f"file:{quote(file)}").update_query_dict({"mode": "rw", "uri": "true"})
    return _engine(url)


def _file(url: URL) -> str | None:
    """The file of an SQLite database; ``None`` for one in memory, one with a name of its own, and other databases."""
    if url.get_backend_name() != "sqlite" or url.database in {None, "", ":memory:"}:
        return None
    return None if str(url.database).startswith("file:") else url.database


def _probe(file: str) -> None:
    """Open the file once before aiosqlite does.

    After a failed open aiosqlite's thread still reports to the event loop, which may be closed by then: the
    answer to a mistyped path would be a traceback from a thread.
    """
    try:
        sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True).close()
    except sqlite3.Error as error:
        raise CannotRun(f"the database file {file} cannot be opened: {error}. Check the path.") from None


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
            connection = await cleanup.enter_async_context(engine.connect())
        if engine.dialect.name == "sqlite":
            await connection.exec_driver_sql("PRAGMA query_only = ON")
            await connection.exec_driver_sql("BEGIN")  # one state of the database for the whole look
        else:
            connection = await connection.execution_options(postgresql_readonly=True)
        yield connection


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
        raise CannotRun(
            f"the database at {_shown(url)} cannot be read: {_cause(error, url)} Check the URL, that the server "
            "answers, and what the role may do."
        ) from None


def _shown(url: URL) -> str:
    place = url.set(query={}, password=None)
    return place.render_as_string()


def _cause(error: BaseException, url: URL) -> str:
    state = read(error).sqlstate
    below = getattr(error, "orig", None) or error
    kind = type(below).__name__ if state is None else f"SQLSTATE {state}"
    text = _ADAPTED.sub("", (str(below).splitlines() or [""])[0]).rstrip(".")
    secrets = [url.password, *(value for name, value in url.query.items() if "pass" in name)]
    if any(secret and str(secret) in text for secret in secrets):
        text = ""
    return f"{kind}: {text}." if text else f"{kind}."
