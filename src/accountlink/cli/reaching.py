"""Reads the tables that were asked for, through an engine, and says in one line why that cannot be done."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.engines import ASYNC, has_file, make_engine, read_url, sqlite_reader
from accountlink.cli.loading import CannotRun, where_of
from accountlink.database.pooler import pooler_options
from accountlink.database.violations import FAILURES, read
from accountlink.doctor.diagnose import read_tables
from accountlink.doctor.examine import Look
from accountlink.doctor.findings import Finding
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.pooling import check_pooling
from accountlink.doctor.report import Report
from accountlink.doctor.subjects import Target
from accountlink.errors import AccountLinkError, StoreBusy, StoreUnavailable
from accountlink.values.facts import Failure, Trouble

_ADAPTED: Final = re.compile(r"^(?:\([\w.]+\) )?<class '[\w.]+'>: ")
"""The beginning of a message of SQLAlchemy's asyncpg adapter: the class of the error below."""
_CHECK: Final = "Check the URL, that the server answers, and what the role may do."
_AGAIN: Final = (
    "Run the doctor again when nothing holds the table, such as a migration that is under way, or with more time."
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """Describe a way to a database.

    Attributes:
        url: The URL that names the database in messages.
        reader: The engine that the tables are read through.
        judged: The engine whose own way to the database is looked at; ``None`` for a URL of SQLite, in which nothing
            shows whether the application tunes its engine.
    """

    url: URL
    reader: AsyncEngine
    judged: AsyncEngine | None

    @property
    def dialect(self) -> str:
        """The database's name: ``postgresql`` or ``sqlite``."""
        return self.reader.dialect.name

    async def pooling(self) -> Finding | None:
        """Look at how the judged engine connects; where that is unsafe, let the reader give no statement a name.

        Raises:
            CannotRun: The database cannot be reached.
        """
        if self.judged is None:
            return None
        async with told(self.url, self.judged):
            with connecting(self.judged):
                found = await check_pooling(self.judged)
                if found is not None and self.dialect == "postgresql":
                    await _without_names(self.reader)
        return found

    async def reports(self, targets: Sequence[Target], ignored: Ignored) -> tuple[Report, ...]:
        """Read the tables in one transaction that cannot write.

        Raises:
            CannotRun: The database cannot be read.
        """
        async with told(self.url, self.reader):
            with connecting(self.reader):
                async with self.reader.connect():
                    pass
            return await read_tables(self.reader, targets, look=Look.EVERYTHING, ignored=ignored)

    async def close(self) -> None:
        """Dispose of the engines."""
        for engine in filter(None, (self.judged, self.reader)):
            await engine.dispose()


def way_by_url(text: str) -> Way:
    """Return the way to the database at a URL, through an engine as ``create_async_engine(url)`` makes it.

    Args:
        text: An SQLAlchemy URL with an asynchronous driver.

    Raises:
        CannotRun: The URL cannot be used, or there is no such SQLite file.
    """
    url = read_url(text)
    if url.get_backend_name() == "sqlite":
        return Way(url=url, reader=sqlite_reader(url), judged=None)
    engine = make_engine(url)
    return Way(url=url, reader=engine, judged=engine)


def way_by_engine(engine: AsyncEngine) -> Way:
    """Return the way to the database of the application's engine, which is judged as it is.

    Raises:
        CannotRun: The engine is for another kind of database, or there is no such SQLite file.
    """
    if engine.dialect.name not in ASYNC:
        raise CannotRun(f"--engine is one of {engine.dialect.name}. accountlink knows PostgreSQL and SQLite.")
    reader = sqlite_reader(engine.url) if has_file(engine.url) else engine  # looked for before the engine makes it
    return Way(url=engine.url, reader=reader, judged=engine)


async def _without_names(engine: AsyncEngine) -> None:
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
    async with engine.connect():
        pass
    if not made:
        raise CannotRun(
            "the engine is behind a pooler that mixes statements up, and makes its connections by a function of its "
            "own, so that the doctor cannot read through it. Give --database-url instead of --engine."
        )


@contextmanager
def connecting(engine: AsyncEngine) -> Iterator[None]:
    """Tell of a URL's options that the driver does not take: it raises what Python does for a wrong argument."""
    try:
        yield
    except (TypeError, ValueError) as error:
        hint = " With asyncpg, sslmode=require is ssl=require." if "sslmode" in engine.url.query else ""
        raise CannotRun(
            f"the driver {engine.dialect.driver} does not take one of the options in the URL "
            f"({type(error).__name__}).{hint} Write them as that driver names them."
        ) from None


@asynccontextmanager
async def told(url: URL, engine: AsyncEngine, *, cannot: str = "be read", again: str = _AGAIN) -> AsyncIterator[None]:
    """Turn the database's errors into one line, without the URL's password and without a statement's parameters.

    Args:
        url: Names the database.
        engine: The engine through which it is used.
        cannot: What the database cannot, if there is an error.
        again: What to do if it was too busy.
    """
    where = f"the database at {url.set(query={}, password=None).render_as_string()} cannot {cannot}"
    try:
        try:
            yield
        except StoreUnavailable:
            async with engine.connect():  # the driver says why
                raise
    except StoreBusy as error:
        state = f"SQLSTATE {error.sqlstate}: " if error.sqlstate else ""
        raise CannotRun(f"{where}: {state}it was too busy to answer in time. {again}") from None
    except AccountLinkError as error:
        raise CannotRun(str(error)) from None
    except FAILURES as error:
        place, failure = where_of(error), read(error)
        remedy = again if failure.trouble is Trouble.BUSY else _CHECK
        raise CannotRun(f"{where}: {_cause(failure, url, place)} {remedy}") from None


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
