"""The look-up after a unique violation reads each fact about the index from the database that refused the row."""

from __future__ import annotations

from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, BlockedByConstraint, Linked
from accountlink.database.catalogue import unique_index
from accountlink.linking.call import Call
from accountlink.values.facts import Failure, Trouble, UniqueIndex
from tests.support.claims import Statements
from tests.support.databases import collation_without_case, create, run_sql
from tests.support.models import EXCLUSIVE_SOFT, PER_USER, identity, shared_tables
from tests.support.schemas import Variation

KINDS: Final = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
E: Final = "(expression)"
INDEXES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "plain": ("(user_id, provider)", {"columns": ("user_id", "provider"), "reads": {"user_id", "provider"}}),
    "expression": (
        "(provider, lower(account_id))",
        {"columns": ("provider", E), "reads": {"provider", "account_id"}},
    ),
    "condition": (
        "(user_id) WHERE deleted_at IS NULL AND label LIKE 'a:b%'",
        {"columns": ("user_id",), "reads": {"user_id", "deleted_at", "label"}, "where": True},
    ),
}


def failure(name: str = "i", table: str = "connections", columns: tuple[str, ...] = ()) -> Failure:
    return Failure(
        trouble=Trouble.UNIQUE, schema="public", table=table, constraint=name, columns=columns, error=ValueError()
    )


async def found(engine: AsyncEngine, **named: Any) -> UniqueIndex:
    async with engine.connect() as connection:
        index = await connection.run_sync(unique_index, failure(**named))
    assert index is not None
    return index


@KINDS
@pytest.mark.parametrize("name", INDEXES)
async def test_the_catalogue_tells_what_an_index_is_made_of(engine: AsyncEngine, name: str) -> None:
    """Its columns, whatever else it is computed from, and its condition."""
    sql, facts = INDEXES[name]
    await create(engine, shared_tables(EXCLUSIVE_SOFT).metadata)
    await run_sql(engine, f"CREATE UNIQUE INDEX i ON connections {sql}")
    index = await found(engine, columns=facts["columns"])
    assert (facts["columns"], frozenset(facts["reads"]), frozenset()) == (index.columns, index.reads, index.loose)
    assert facts.get("where", False) is (index.where is not None)


@KINDS
async def test_a_part_that_compares_loosely_is_told(engine: AsyncEngine) -> None:
    """A collation that takes two texts for one is seen, on the index as on its column."""
    await create(engine, shared_tables(EXCLUSIVE_SOFT).metadata)
    if engine.dialect.name == "postgresql":
        await collation_without_case(engine)
    await run_sql(engine, "CREATE UNIQUE INDEX i ON connections (provider, account_id COLLATE nocase)")
    index = await found(engine, columns=("provider", "account_id"))
    assert (("provider", "account_id"), frozenset({"account_id"})) == (index.columns, index.loose)


@pytest.mark.parametrize(
    ("where", "counted"), [("deleted_at IS NULL", False), ("email LIKE '%@%' OR access_token = 'a:b'", True)]
)
async def test_a_dead_row_is_in_the_way_only_where_the_index_counts_it(
    engine: AsyncEngine, where: str, counted: bool
) -> None:
    """Under a right partial key a dead row explains nothing: the live one that was is gone, and the link is run again.

    So the database itself puts the condition to the row.
    """
    key = f"CREATE UNIQUE INDEX i ON links (provider, account_id) WHERE {where}"
    variation = Variation(name="a condition", shape="exclusive-soft", keys=(key,))
    doubled = "%%" if engine.dialect.driver == "psycopg" else "%"
    await run_sql(engine, *(sql.replace("%", doubled) for sql in variation.statements(engine.dialect.name)))
    linker: AccountLinker[Any, Any] = AccountLinker(variation.mapping())  # type: ignore[arg-type]  # links only here
    linked: Any = await linker.link(engine, user_id=1, identity=identity())
    await linker.unlink(engine, user_id=1, link_id=linked.account.id)
    call = Call(user_id=2, identity={"provider": identity().provider, "account_id": identity().account_id})
    refused = failure(table="links", columns=("provider", "account_id"))
    async with engine.connect() as connection:
        obstacle = await connection.run_sync(lambda sync: linker._store.obstacle(sync, call, refused))
    assert counted is obstacle.dead
    assert ("wrong-predicate" if counted else None) == obstacle.rule


@KINDS
async def test_naming_the_rule_costs_no_statement_of_its_own(engine: AsyncEngine) -> None:
    """A blocked link tries as often as it may; then one is about the index (SQLite: three), one about rows."""
    tables = shared_tables(PER_USER)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX old ON connections (user_id, provider)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("sub-1"))
    statements = Statements(engine)
    with pytest.raises(BlockedByConstraint) as raised:
        await linker.link(engine, user_id=1, identity=identity("sub-2"))
    assert "stale-unique" == raised.value.rule
    tries, looks = (4, 3) if engine.dialect.name == "postgresql" else (2, 4)
    assert tries + looks == len(statements.seen)


@KINDS
async def test_a_condition_that_ends_in_a_comment(engine: AsyncEngine) -> None:
    """SQLite keeps the comment with the index, and the look-up reads past it."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    comment = "CREATE UNIQUE INDEX i ON connections (provider, account_id) WHERE account_id <> '' -- dead ones, too"
    await run_sql(engine, comment)
    linker = tables.linker()
    made = await linker.link(engine, user_id=1, identity=identity())
    assert isinstance(made, Linked)
    await linker.unlink(engine, user_id=1, link_id=made.account.id)
    with pytest.raises(BlockedByConstraint) as raised:
        await linker.link(engine, user_id=2, identity=identity())
    assert "wrong-predicate" == raised.value.rule
