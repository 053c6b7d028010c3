"""One decision: what a link comes to is what the table says, by PostgreSQL's one statement and by SQLite's steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, product
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AccountMismatch,
    AccountNotFound,
    Key,
    LinkBlocked,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    ProviderIdentity,
    Removal,
)
from accountlink.linking.decide import DECISIONS, Arm, Others, Own, Wanted
from tests.support.databases import create
from tests.support.models import make_tables

BEGINNING: Final = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES: Final = {
    "exclusive": LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"}),
    "per user": LinkPolicy(ownership=Ownership.PER_USER, removal=Removal.SOFT, blocked_reasons={"fraud"}),
    "by e-mail": LinkPolicy(
        key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT, blocked_reasons={"fraud"}
    ),
}
OWN_ROWS: Final = (
    (), ("live",), ("dead",), ("blocked",), ("live", "dead"), ("live", "blocked"), ("dead", "dead"),
    ("dead", "blocked"), ("blocked", "dead"), ("elsewhere",), ("elsewhere", "dead"), ("elsewhere dead",),
    ("elsewhere dead", "dead"),
)  # fmt: skip
"""The user's rows, the newest first: of the account; or with the same e-mail address, of another account."""
OTHERS_ROWS: Final = ((), ("live",), ("dead",))
EXPECT: Final = ("nothing", "the first", "the second", "a stranger's", "none at all")
ENDINGS: Final[dict[type[AccountLinkError], Arm]] = {
    AccountMismatch: Arm.MISMATCH,
    AccountNotFound: Arm.MISSING,
    LinkBlocked: Arm.BLOCKED,
}


@dataclass(frozen=True)
class Facts:
    """What a link finds."""

    own: tuple[str, ...]
    others: tuple[str, ...]
    expect: str

    @staticmethod
    def generated() -> Iterator[Facts]:
        """Every combination that can be."""
        for own, others, expect in product(OWN_ROWS, OTHERS_ROWS, EXPECT):
            if len(own) > {"the first": 0, "the second": 1}.get(expect, -1):
                yield Facts(own, others, expect)

    def is_possible(self, policy: LinkPolicy) -> bool:
        """Whether the unique indexes of a policy let a table hold these rows."""
        if policy.key is Key.ACCOUNT_ID and any(row.startswith("elsewhere") for row in self.own):
            return False  # that is another key, and no link finds it
        if policy.ownership is Ownership.PER_USER:
            return self.others == ("live",)  # nothing of others matters: once is enough
        live = [row for row in (*self.own, *self.others) if row in ("live", "elsewhere")]
        return len(live) < 2

    def arm(self, policy: LinkPolicy) -> Arm:
        """What the table says that a link comes to."""
        exclusive = policy.ownership is Ownership.EXCLUSIVE
        others = Others.OWNER if exclusive and "live" in self.others else Others.NONE
        return DECISIONS[self._found(), others, Wanted.ANY if self.expect == "nothing" else Wanted.ONE]

    def _found(self) -> Own:
        if self.expect in ("a stranger's", "none at all"):
            return Own.NONE
        if self.expect == "nothing":
            # A live row comes first; of the dead ones the newest that is of this account.
            rows = [row for row in self.own if row != "elsewhere dead"]
            if not rows:
                return Own.NONE
            return _own(next((row for row in rows if row in ("live", "elsewhere")), rows[0]))
        named = self.own[0 if self.expect == "the first" else 1]
        has_live_twin = any(row in ("live", "elsewhere") for row in self.own if row is not named)
        is_dead = named in ("dead", "blocked", "elsewhere dead")
        return Own.OTHER if is_dead and has_live_twin else _own(named)


def _own(row: str) -> Own:
    if row.startswith("elsewhere"):
        return Own.OTHER
    return {"live": Own.LIVE, "dead": Own.DEAD, "blocked": Own.BLOCKED}[row]


class Case:
    """A table of links, and users of it that nobody else has."""

    def __init__(self, engine: AsyncEngine, policy: LinkPolicy) -> None:
        self.engine = engine
        self.tables = make_tables(policy)
        self.linker: AccountLinker[Any, Any] = self.tables.linker()
        self.numbers = count(1)

    async def came_to(self, facts: Facts) -> Arm:
        """Fill the table, link, and say what it came to."""
        me, other, account = next(self.numbers), next(self.numbers), f"account-{next(self.numbers)}"
        async with self.engine.begin() as connection:
            mine = [await self._row(connection, me, account, row, age) for age, row in enumerate(facts.own)]
            for age, row in enumerate(facts.others):
                await self._row(connection, other, account, row, age)
            strangers = await self._row(connection, next(self.numbers), account + "-else", "live", 0)
        expect = {
            "nothing": None,
            "the first": mine[0] if mine else None,
            "the second": mine[1] if len(mine) > 1 else None,
            "a stranger's": strangers,
            "none at all": 2**30,
        }[facts.expect]
        identity = ProviderIdentity(provider="acme", account_id=account, email=f"{me}@example.com")
        try:
            outcome = await self.linker.link(self.engine, user_id=me, identity=identity, expect=expect)
        except AccountLinkError as error:
            return ENDINGS[type(error)]
        if isinstance(outcome, OwnershipConflict):
            return Arm.CONFLICT
        assert isinstance(outcome, Linked)
        return Arm(outcome.change.value)

    async def _row(self, connection: Any, user: int, account: str, row: str, age: int) -> Any:
        table: sa.Table = self.tables.Connection.__table__
        values: dict[Any, Any] = {
            "user_id": user,
            "provider": "acme",
            "account_id": f"{account}-other" if row.startswith("elsewhere") else account,
            "email": f"{user}@example.com",
            "email_key": f"{user}@example.com",
        }
        if row not in ("live", "elsewhere"):
            values["deleted_at"] = BEGINNING - timedelta(days=age)
        if row == "blocked":
            values["reason"] = "fraud"
        known = {name: value for name, value in values.items() if name in table.c}
        made = await connection.execute(sa.insert(table).values(known).returning(table.c.id))
        return made.scalar_one()


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_a_link_comes_to_what_the_table_says(engine: AsyncEngine, policy: LinkPolicy) -> None:
    """Whatever rows there are, and whichever link is expected, both databases decide as the table does."""
    case = Case(engine, policy)
    await create(engine, case.tables.metadata)
    facts = [each for each in Facts.generated() if each.is_possible(policy)]
    came_to = [(each, await case.came_to(each)) for each in facts]
    assert [(each, each.arm(policy)) for each in facts] == came_to
    assert {arm for _, arm in came_to} >= {Arm.CREATED, Arm.UPDATED, Arm.RESTORED, Arm.BLOCKED, Arm.MISSING}


def test_the_table_has_a_row_for_all_that_can_be_found() -> None:
    """Nothing that a link can find is left out of the decision."""
    assert {*product(Own, Others, Wanted)} == {*DECISIONS}
