"""Platform connections: pages that organisations connect, disconnect and connect again.

    python examples/platforms/main.py [--database-url URL]

Exits with 0 when everything came out as the story says, else with 1 and an explanation.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema

from accountlink import AccountLinkError, tune_sqlite

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.platforms import broken, models, story  # a script's path begins at its own folder


@asynccontextmanager
async def opened(database_url: str | None) -> AsyncIterator[AsyncEngine]:
    """Yield an engine on the database, or on an SQLite file that is deleted afterwards."""
    with TemporaryDirectory(prefix="accountlink-platforms-") as folder:
        engine = create_async_engine(database_url or f"sqlite+aiosqlite:///{folder}/platforms.sqlite3")
        if engine.dialect.name == "sqlite":
            tune_sqlite(engine)
        try:
            yield models.for_its_database(engine)
        finally:
            await engine.dispose()


@asynccontextmanager
async def tables(engine: AsyncEngine, metadata: sa.MetaData) -> AsyncIterator[None]:
    """Make the tables of one story and drop them after it; what was there before is not touched."""
    has_schemas = engine.dialect.name == "postgresql"
    async with engine.begin() as connection:
        if has_schemas:
            if models.SCHEMA in await connection.run_sync(lambda sync: sa.inspect(sync).get_schema_names()):
                raise story.UnexpectedOutcome(f"the database has a schema {models.SCHEMA} already; give an empty one")
            await connection.execute(CreateSchema(models.SCHEMA))
        elif "platform_connections" in await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()):
            raise story.UnexpectedOutcome("the database has platform_connections already; give an empty one")
        await connection.run_sync(metadata.create_all)
    try:
        yield
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
            if has_schemas:
                await connection.execute(DropSchema(models.SCHEMA))


async def tell(database_url: str | None) -> None:
    """Tell both stories, each on fresh tables."""
    async with opened(database_url) as engine:
        async with tables(engine, models.Base.metadata):
            await story.pages_of_organisations(engine)
        async with tables(engine, broken.first_release):
            await story.key_that_counts_deleted_rows(engine)


def main() -> int:
    """Read the options, tell the stories, and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Platform connections: pages that organisations connect, disconnect and connect again."
    )
    parser.add_argument(
        "--database-url", metavar="URL", help="of an empty database, such as postgresql+asyncpg://me@host/empty"
    )
    options = parser.parse_args()
    try:
        asyncio.run(tell(options.database_url))
    except (story.UnexpectedOutcome, AccountLinkError) as problem:
        print(f"This is not how the story goes. {type(problem).__name__}: {problem}", file=sys.stderr)
        return 1
    except (SQLAlchemyError, OSError) as problem:  # whose text may carry parameters
        print(f"The database could not be used: {type(problem).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
