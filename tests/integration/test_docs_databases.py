"""The documentation's recipes for PostgreSQL, on a real server and behind a real pooler."""

from __future__ import annotations

import ast
import asyncio
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from accountlink import (
    AccountLinker,
    Change,
    Linked,
    OwnershipConflict,
    ProviderIdentity,
    grants_table,
    link_outbox,
    pending_credentials,
    transfer_ledger,
)
from accountlink.doctor.pooling import check_pooling
from tests.support.application import Base, Connection
from tests.support.databases import Database, create
from tests.support.pages import EVERY_PAGE, Block, blocks_in, name_of, prose_of
from tests.support.pgbouncer import Pooler, run_pgbouncer
from tests.support.postgres import PostgresServer

_POOLER: Final = re.compile(r"postgresql\+asyncpg://app@pooler\.example:6432/app")
_RECIPES: Final = [block for block in blocks_in("python") if "pooler.example" in block.source]
_SETTINGS: Final = ("prepared_statement_name_func", "statement_cache_size", "prepare_threshold")


@pytest.fixture(params=["asyncpg"])
def kind(request: pytest.FixtureRequest) -> str:
    """PostgreSQL by one driver: what stands in a page does not depend on it."""
    return str(request.param)


# -- SQL --------------------------------------------------------------------------------------------------------------


def statements(source: str) -> Iterator[str]:
    """Give each statement of a block, without its comments."""
    for statement in re.sub(r"--.*", "", source).split(";"):
        if statement.strip():
            yield statement


async def run(engine: AsyncEngine, block: Block) -> None:
    """Run a block and its set-up, each statement by itself, as ``psql`` does."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        for statement in (*statements(block.what), *statements(block.source)):
            await connection.exec_driver_sql(statement)


@pytest.mark.parametrize("block", blocks_in("sql"), ids=str)
async def test_sql_runs(engine: AsyncEngine, block: Block) -> None:
    """PostgreSQL takes each statement of a page."""
    await run(engine, block)


def library_tables() -> dict[str, sa.Table]:
    """Make the library's own tables, as the pages show them."""
    metadata = sa.MetaData()
    users = sa.Table("users", metadata, sa.Column("id", sa.BigInteger, primary_key=True))
    links = sa.Table("connections", metadata, sa.Column("id", sa.BigInteger, primary_key=True))
    made = (
        transfer_ledger(metadata),
        pending_credentials(metadata),
        link_outbox(metadata),
        grants_table(metadata, user_id=users.c.id, link_id=links.c.id),
    )
    return {table.name: table for table in made}


def described(connection: sa.Connection, name: str) -> dict[str, object]:
    """Return the catalogue's description of a table."""
    catalogue = sa.inspect(connection)
    columns = [
        (column["name"], str(column["type"]), column["nullable"], column["default"], "identity" in column)
        for column in catalogue.get_columns(name)
    ]
    return {
        "columns": columns,
        "primary key": catalogue.get_pk_constraint(name)["constrained_columns"],
        "indexes": sorted(
            (str(one["name"]), one["column_names"], one["unique"]) for one in catalogue.get_indexes(name)
        ),
        "unique": sorted(one["column_names"] for one in catalogue.get_unique_constraints(name)),
        "foreign keys": sorted(
            (one["constrained_columns"], one["referred_table"], one["options"])
            for one in catalogue.get_foreign_keys(name)
        ),
    }


@pytest.mark.parametrize("name", sorted(library_tables()))
async def test_a_page_makes_the_library_s_table(engine: AsyncEngine, name: str) -> None:
    """The migration that a page shows makes the very table that ``create_all`` makes."""
    (block,) = [block for block in blocks_in("sql") if f"CREATE TABLE {name} " in block.source]
    table = library_tables()[name]
    await run(engine, block)
    async with engine.begin() as connection:
        shown = await connection.run_sync(described, name)
        await connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        await connection.exec_driver_sql("CREATE SCHEMA public")
        await connection.run_sync(table.metadata.create_all)
        made = await connection.run_sync(described, name)
    assert made == shown


# -- the pooler -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pooler(postgres: PostgresServer) -> Iterator[Pooler]:
    with run_pgbouncer(postgres) as running:
        yield running


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("block", _RECIPES, ids=str)
async def test_a_recipe_for_a_pooler_is_clean_behind_one(pooler: Pooler, block: Block, driver: str) -> None:
    """F09: each engine that a page makes for a pooler is one that the doctor finds nothing about, behind PgBouncer."""
    module = ModuleType("recipe")
    source, replaced = _POOLER.subn(pooler.url(driver=driver), block.source)
    assert replaced == 1, "a recipe names the pooler that the test puts its own in the place of"
    exec(source, vars(module))  # noqa: S102  # our own page
    engine: AsyncEngine = vars(module)["engine"]
    try:
        assert await check_pooling(engine) is None
    finally:
        await engine.dispose()


def test_there_are_recipes_for_a_pooler() -> None:
    """The page about linking and the doctor's page each have one."""
    assert {"docs/linking.md", "docs/doctor/unsafe-pooling.md"} == {name_of(block.page) for block in _RECIPES}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_no_page_sets_what_the_recipe_sets(page: Path) -> None:
    """No page shows the single settings of ``pooler_options``: each alone was measured to be insufficient."""
    text = prose_of(page) + "".join(block.source for block in blocks_in("python") if block.page == page)
    assert [] == [setting for setting in _SETTINGS if setting in text]


# -- other recipes ----------------------------------------------------------------------------------------------------


def block_with(text: str) -> Block:
    (found,) = [block for block in blocks_in("python") if text in block.source]
    return found


async def test_the_loop_for_lost_races_wins_one(database: Database) -> None:
    """The page's loop answers ``RetryTransaction`` by all of the transaction, from its first read."""
    engine = database.engine(isolation_level="REPEATABLE READ")
    await create(engine, Base.metadata)
    linker: AccountLinker[int, int] = AccountLinker(Connection)
    identity = ProviderIdentity(provider="google", account_id="248289761001")
    tree = block_with("async def in_transaction").tree()
    given: list[ast.stmt] = [node for node in tree.body if isinstance(node, (ast.ImportFrom, ast.AsyncFunctionDef))]
    namespace: dict[str, Any] = {"sessions": async_sessionmaker(engine, expire_on_commit=False)}
    exec(compile(ast.Module(given, []), "linking", "exec"), namespace)  # noqa: S102  # our own page
    attempts = itertools.count(1)

    async def work(session: AsyncSession) -> Linked[int, int] | OwnershipConflict:
        await session.execute(sa.text("SELECT 1 FROM connections"))  # the snapshot begins
        if next(attempts) == 1:
            await linker.link(engine, user_id=1, identity=identity)  # a concurrent transaction wins
        return await linker.link(session, user_id=1, identity=identity)

    outcome = await namespace["in_transaction"](work)
    assert (Change.UPDATED, 3) == (outcome.change, next(attempts))


async def test_the_worker_survives_event_loops(database: Database) -> None:
    """The page's task runs in one event loop after another, on one engine."""
    await create(database.engine(), Base.metadata)
    block = block_with("def reconnect(")
    namespace: dict[str, Any] = {"linker": AccountLinker(Connection), "ProviderIdentity": ProviderIdentity}
    exec(block.what, namespace)  # noqa: S102  # our own page
    namespace["settings"] = SimpleNamespace(database_url=database.url)
    exec(block.source, namespace)  # noqa: S102  # as above
    for _ in range(3):
        await asyncio.to_thread(namespace["reconnect"], 1, "248289761001")
