"""Patients who share with doctors: the table, what the application writes, and the constraint that broke it.

    python examples/sharing/main.py [--database-url URL]

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

from accountlink import tune_sqlite

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.sharing import broken, models, shares, story  # a script's path begins at its own folder


@asynccontextmanager
async def opened(database_url: str | None) -> AsyncIterator[AsyncEngine]:
    """Yield an engine on the database, or on an SQLite file that is deleted afterwards."""
    with TemporaryDirectory(prefix="accountlink-sharing-") as folder:
        engine = create_async_engine(database_url or f"sqlite+aiosqlite:///{folder}/sharing.sqlite3")
        if engine.dialect.name == "sqlite":
            tune_sqlite(engine)
        try:
            yield engine
        finally:
            await engine.dispose()


@asynccontextmanager
async def tables(engine: AsyncEngine, metadata: sa.MetaData) -> AsyncIterator[None]:
    """Make the tables of one story and drop them after it; a table that was there before is not touched."""
    async with engine.begin() as connection:
        there = set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))
        if taken := sorted(there & set(metadata.tables)):
            raise story.UnexpectedOutcome(f"the database has {', '.join(taken)} already; give an empty one")
        await connection.run_sync(metadata.create_all)
    try:
        yield
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)


async def tell(database_url: str | None) -> None:
    """Tell the three stories, each on fresh tables."""
    async with opened(database_url) as engine:
        async with tables(engine, models.Base.metadata):
            await story.right_constraints(engine)
        async with tables(engine, models.Base.metadata):
            await shares.tokens_that_work_once(engine)
        async with tables(engine, broken.first_release):
            await story.key_on_the_pair(engine)


def main() -> int:
    """Read the options, tell the stories, and return the exit code."""
    parser = argparse.ArgumentParser(
        description="Patients who share with doctors: the table, and the constraint that broke it."
    )
    parser.add_argument(
        "--database-url", metavar="URL", help="of an empty database, such as postgresql+asyncpg://me@host/empty"
    )
    options = parser.parse_args()
    try:
        asyncio.run(tell(options.database_url))
    except story.UnexpectedOutcome as problem:
        print(f"This is not how the story goes. {problem}", file=sys.stderr)
        return 1
    except (SQLAlchemyError, OSError) as problem:  # whose text may carry parameters
        print(f"The database could not be used: {type(problem).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
