"""Opens the database that the options of a command name, for commands that change it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.engines import has_file, read_url, sqlite_as_it_is, writer
from accountlink.cli.loading import CannotRun, load_engine
from accountlink.cli.reaching import connecting, told

_AGAIN: Final = "Start the command again: it goes on where it stopped."


@asynccontextmanager
async def opened(database_url: str | None, engine_name: str | None) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of the database, and say in one line why it cannot be used.

    Args:
        database_url: The URL, unless the engine is named.
        engine_name: ``module:attribute`` of the application's engine.

    Raises:
        CannotRun: Something that an option names cannot be used, or the database failed.
    """
    if engine_name is not None:
        engine = load_engine(engine_name)
        if has_file(engine.url):
            await sqlite_as_it_is(engine.url).dispose()  # the engine would make a file that is not there
    elif database_url is not None:
        engine = writer(read_url(database_url))
    else:
        raise CannotRun("no database was named. Give --database-url or --engine, or set ACCOUNTLINK_DATABASE_URL.")
    try:
        async with told(engine.url, engine, cannot="be used", again=_AGAIN):
            with connecting(engine):
                async with engine.connect():
                    pass
            yield engine
    finally:
        await engine.dispose()
