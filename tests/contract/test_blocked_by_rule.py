"""An obstacle to a link has the doctor's rule and object for it."""

from __future__ import annotations

from typing import Any, Final

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, BlockedByConstraint, Linked
from accountlink.doctor.examine import examine
from tests.support.databases import Database, create, run_sql
from tests.support.models import EXCLUSIVE, identity, shared_tables
from tests.support.schemas import Variation

RIGHT_KEY: Final = "CREATE UNIQUE INDEX k ON links {key}"
EMAIL: Final = "one@example.com"
Call = tuple[int, str]
"""A user who links an account; an account with ``-`` before it is unlinked instead."""


def case(rule: str, shape: str, calls: list[Call], *keys: str, **fields: Any) -> Any:
    variation = Variation(name=rule, shape=shape, keys=keys, rules=frozenset({rule}), **fields)
    kinds = ["asyncpg", "psycopg"] if variation.only else ["sqlite", "asyncpg", "psycopg"]
    return [pytest.param(kind, variation, calls, id=f"{kind}-{variation}-{keys[-1] if keys else ''}") for kind in kinds]


CASES: Final = [
    *case("stale-unique", "per-user", [(1, "a"), (1, "b")], RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, provider)"),
    *case("stale-unique", "per-user-soft", [(1, "a"), (2, "a")], RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (provider, account_id) WHERE deleted_at IS NULL"),
    *case("stale-unique", "exclusive", [(1, "a"), (2, "b")], RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (lower(email))"),
    *case("key-counts-deleted", "exclusive-soft", [(1, "a"), (1, "-a"), (2, "a")],
          "CREATE UNIQUE INDEX k ON links (provider, account_id)"),
    *case("key-counts-deleted", "exclusive-flag", [(1, "a"), (1, "-a"), (2, "a")], RIGHT_KEY,
          "CREATE UNIQUE INDEX f ON links (provider, account_id)"),
    *case("wrong-predicate", "exclusive-flag", [(1, "a"), (1, "-a"), (2, "a")],
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE is_active OR version > 1"),
    *case("key-compares-differently", "exclusive", [(1, "a"), (2, "A")],
          "CREATE UNIQUE INDEX k ON links (provider, lower(account_id))"),
    *case("stale-unique", "per-user", [(1, "a"), (1, "b")], RIGHT_KEY,
          constraints=("CONSTRAINT s EXCLUDE USING btree (user_id WITH =, provider WITH =)",), only="postgresql"),
    *case("deferrable-key", "exclusive", [(1, "a")],
          constraints=("CONSTRAINT k UNIQUE (provider, account_id) DEFERRABLE",), only="postgresql"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "variation", "calls"), CASES, indirect=["kind"])
async def test_a_blocked_link_names_the_rule_that_finds_its_cause(
    engine: AsyncEngine, variation: Variation, calls: list[Call]
) -> None:
    """``BlockedByConstraint`` carries the doctor's rule and, where the database tells it, the same true name."""
    await run_sql(engine, *variation.statements(engine.dialect.name))
    linker: AccountLinker[Any, Any] = AccountLinker(variation.mapping())  # type: ignore[arg-type]  # links only here
    links: dict[str, Any] = {}
    for user_id, account in calls[:-1]:
        if account.startswith("-"):
            await linker.unlink(engine, user_id=user_id, link_id=links[account[1:]])
        else:
            linked = await linker.link(engine, user_id=user_id, identity=identity(account, email=EMAIL))
            assert isinstance(linked, Linked)
            links[account] = linked.account.id
    user_id, account = calls[-1]
    with pytest.raises(BlockedByConstraint) as raised:
        await linker.link(engine, user_id=user_id, identity=identity(account, email=EMAIL))
    async with engine.connect() as connection:
        report = await connection.run_sync(lambda sync: examine(sync, linker))
    found = {finding.object for finding in report.findings if finding.rule == raised.value.rule}
    assert variation.rules == {raised.value.rule}
    assert found
    assert raised.value.constraint in {None, *found}


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_a_column_that_changes_before_the_look_up(database: Database) -> None:
    """F08: another session alters a column between the refusal and the look-up: that is asked again, and answers."""
    engine = database.engine(pool_size=1, max_overflow=0)
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    await run_sql(engine, "CREATE UNIQUE INDEX stale ON connections (user_id, provider)")
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity("sub-1"))
    assert database.server is not None
    address = database.server.url(driver="psycopg").replace("+psycopg", "")
    altered: list[str] = []

    def alter(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "pg_index" in statement and altered:
            with psycopg.connect(address, autocommit=True) as other:
                other.execute(altered.pop())

    sa.event.listen(engine.sync_engine, "before_cursor_execute", alter)
    for change in (None, "ALTER TABLE connections ALTER COLUMN email TYPE varchar(300)"):
        altered += [] if change is None else [change]
        with pytest.raises(BlockedByConstraint) as caught:
            await linker.link(engine, user_id=1, identity=identity("sub-2"))
        assert "stale-unique" == caught.value.rule
    assert [] == altered
