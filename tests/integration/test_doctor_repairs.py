"""Emitted migrations at work: stopped anywhere, and while links go on."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, AccountMapping, BlockedByConstraint, Linked, OwnershipConflict
from tests.support.databases import Database, rows, run_sql
from tests.support.emitted import found, look, run_statements, script_of
from tests.support.models import identity
from tests.support.schemas import Variation

RIGHT_KEY: Final = "CREATE UNIQUE INDEX k ON links {key}"
SEED: Final = (
    "INSERT INTO links (user_id, provider, account_id, email, refresh_token) VALUES"
    " (1, 'acme', 'a', 'a@example.com', 'refresh-a'), (2, 'acme', 'b', 'b@example.com', 'refresh-b')"
)
BROKEN: Final = [
    Variation(name="a stale constraint", shape="per-user", keys=(RIGHT_KEY, SEED),
              constraints=("CONSTRAINT stale UNIQUE (user_id, provider)",)),
    Variation(name="a stale index", shape="per-user-soft", keys=(
        RIGHT_KEY, "CREATE UNIQUE INDEX stale ON links (user_id, provider) WHERE deleted_at IS NULL", SEED)),
    Variation(name="a stale key instead of the right one", shape="email", keys=(
        "CREATE UNIQUE INDEX stale ON links (user_id, provider)", SEED)),
    Variation(name="a full key", shape="per-user-soft", keys=(
        "CREATE UNIQUE INDEX f ON links (user_id, provider, account_id)", SEED)),
    Variation(name="two full keys", shape="exclusive-flag", keys=(
        "CREATE UNIQUE INDEX f ON links (provider, account_id)", SEED),
        constraints=("CONSTRAINT g UNIQUE (user_id, provider, account_id)",)),
    Variation(name="deleted_at in the key", shape="exclusive-soft", keys=(
        "CREATE UNIQUE INDEX k ON links (provider, account_id, deleted_at)", SEED)),
    Variation(name="the opposite condition", shape="exclusive-flag", keys=(
        "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE NOT is_active", SEED)),
    Variation(name="no key, and duplicates", shape="exclusive", keys=(SEED, SEED)),
    Variation(name="a key that ignores case", shape="per-user", keys=(
        "CREATE UNIQUE INDEX k ON links (user_id, provider, lower(account_id))", SEED)),
    Variation(name="a nullable column", shape="exclusive", keys=(RIGHT_KEY, SEED), columns={"account_id": "text"},
              only="postgresql"),
    Variation(name="a nullable column and a stale key", shape="exclusive-soft", keys=(
        "CREATE UNIQUE INDEX stale ON links (user_id, provider)", SEED), columns={"account_id": "varchar(9)"},
              only="postgresql"),
    Variation(name="a deferrable key", shape="exclusive", keys=(SEED,),
              constraints=("CONSTRAINT d UNIQUE (provider, account_id) DEFERRABLE INITIALLY DEFERRED",),
              only="postgresql"),
    Variation(name="a short column and a stale key", shape="per-user", keys=(
        RIGHT_KEY, "CREATE UNIQUE INDEX stale ON links (account_id)", SEED),
        columns={"account_id": "varchar(9) NOT NULL"}, only="postgresql"),
]  # fmt: skip
BOTH: Final = [
    pytest.param(
        kind, variation, id=f"{kind}-{variation}", marks=[pytest.mark.stress] if kind == "sqlite" and n > 3 else []
    )
    for n, variation in enumerate(BROKEN)
    for kind in ("sqlite", "asyncpg")
    if variation.only is None or kind != "sqlite"
]
LIVE_ROWS: Final = "SELECT user_id, provider, account_id, refresh_token FROM links ORDER BY 1, 3"


async def broken_again(engine: AsyncEngine, variation: Variation) -> None:
    await run_sql(engine, "DROP TABLE IF EXISTS links", *variation.statements(engine.dialect.name))


@pytest.mark.parametrize(("kind", "variation"), BOTH, indirect=["kind"])
async def test_a_migration_that_stops_anywhere_is_finished_by_the_next(
    engine: AsyncEngine, variation: Variation
) -> None:
    """Stopped after each of its statements in turn, the doctor finds what is left, and its next migration ends it."""
    target = variation.mapping()
    await broken_again(engine, variation)
    kept = sorted(set(await rows(engine, LIVE_ROWS)))
    script = script_of(await look(engine, target))
    assert script
    for stop in range(len(script) + 1):
        await broken_again(engine, variation)
        await run_statements(engine, script[:stop])
        await run_statements(engine, script_of(await look(engine, target)))
        assert [] == found(await look(engine, target)), (stop, script[:stop])
        assert kept == await rows(engine, LIVE_ROWS)


@pytest.mark.parametrize(("kind", "variation"), BOTH, indirect=["kind"])
async def test_the_downgrade_brings_the_old_schema_back(engine: AsyncEngine, variation: Variation) -> None:
    """The downgrade undoes the steps: the doctor finds the schema wrong again, apart from duplicates and values."""
    target = variation.mapping()
    await broken_again(engine, variation)
    before = await look(engine, target)
    await run_statements(engine, script_of(before))
    undo = [(sql, step) for step in reversed(before.repair.steps) for sql in step.undo]
    together = [sql for sql, _ in undo]
    if engine.dialect.name == "sqlite":
        pragmas = [sql for sql in together if sql.startswith("PRAGMA foreign_keys")]
        inner = [sql for sql in together if sql not in pragmas]
        together = ["PRAGMA foreign_keys = OFF", "BEGIN IMMEDIATE", *inner, "COMMIT", "PRAGMA foreign_keys = ON"]
    await run_statements(engine, together)
    expected = {rule for rule, _ in found(before)} - {"duplicates"}
    assert expected == {rule for rule, _ in found(await look(engine, target))}


class Traffic:
    """Users who link accounts for as long as the traffic lasts; each outcome is counted, and none may be lost."""

    def __init__(self, engine: AsyncEngine, linker: AccountLinker[Any, Any]) -> None:
        self._engine = engine
        self._linker = linker
        self.said: Counter[str] = Counter()
        self.linked: set[tuple[int, str]] = set()
        self.over = False

    async def run(self, user_id: int) -> None:
        for number in itertools.count():
            if self.over:
                return
            account = f"{'shared' if number % 3 == 0 else user_id}-{number % 40}"
            try:
                outcome = await self._linker.link(self._engine, user_id=user_id, identity=identity(account))
            except BlockedByConstraint as error:
                self.said[f"blocked {error.rule}"] += 1
                continue
            self.said[type(outcome).__name__] += 1
            if isinstance(outcome, Linked):
                self.linked.add((user_id, account))
            else:
                assert isinstance(outcome, OwnershipConflict)


async def repaired_under_traffic(database: Database, variation: Variation) -> Traffic:
    engine = database.engine()
    await broken_again(engine, variation)
    mapping = variation.mapping()
    assert isinstance(mapping, AccountMapping)
    linker: AccountLinker[Any, Any] = AccountLinker(mapping)
    traffic = Traffic(engine, linker)
    other = database.engine(pool_size=2)
    async with asyncio.TaskGroup() as group:
        for user_id in range(10, 18):
            group.create_task(traffic.run(user_id))
        try:
            await asyncio.sleep(0.1)
            for _ in range(20):  # rows that break the key may come between settling them and building the index
                report = await look(other, linker)
                if not report.findings:
                    break
                try:
                    await run_statements(other, script_of(report))
                except Exception as error:  # each driver has its own class for it
                    if getattr(error, "sqlstate", None) != "23505":
                        raise
            await asyncio.sleep(0.1)
        finally:
            traffic.over = True
    assert [] == found(await look(other, linker))
    return traffic


RUNNING: Final = [variation for variation in BROKEN if variation.shape != "email"]


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=True)
@pytest.mark.parametrize(
    "variation",
    [pytest.param(v, marks=[pytest.mark.stress] if n > 3 else []) for n, v in enumerate(RUNNING)],
    ids=str,
)
async def test_a_migration_runs_while_links_go_on(database: Database, variation: Variation) -> None:
    """Every outcome is one that the schema of the moment allows, the index is built, and no link is lost (F08)."""
    traffic = await repaired_under_traffic(database, variation)
    engine = database.engine()
    live = await rows(engine, "SELECT user_id, account_id FROM links")
    exclusive = variation.shape.startswith("exclusive")
    accounts = {account for _, account in live}
    assert {account for _, account in traffic.linked} <= accounts
    if not exclusive:
        assert traffic.linked <= set(live)
    assert traffic.said["Linked"] > 0
    assert set(traffic.said) <= {"Linked", "OwnershipConflict", "blocked stale-unique", "blocked deferrable-key"}
