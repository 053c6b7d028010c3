"""Tables whose links can change hands, by version and by ledger; and conflicts on them, with their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, AccountMapping, Linked, LinkPolicy, OwnershipConflict, Removal, transfer_ledger
from tests.support.mapped import MADE, TABLES, Links
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, Clock, identity, make_tables, tokens


@dataclass(frozen=True)
class Ledgered(Links):
    """A table with a ledger beside it."""

    ledger: sa.Table = field(kw_only=True)

    def linker(self, **options: Any) -> AccountLinker[Any, Any]:
        return super().linker(**({"ledger": self.ledger} | options))


def ledgered(make: Callable[[str], Links]) -> Callable[[str], Links]:
    @cache
    def made(kind: str) -> Links:
        links = make(kind)
        assert "version" not in links.mapping.columns
        ledger = transfer_ledger(links.metadata)
        return Ledgered(metadata=links.metadata, mapping=links.mapping, schema=links.schema, ledger=ledger)

    return made


def without_version(policy: LinkPolicy) -> Callable[[str], Links]:
    def made(_kind: str) -> Links:
        tables = make_tables(policy)
        mapping: AccountMapping[Any, Any] = AccountMapping(tables.Connection, policy=policy, version=None)
        return Links(metadata=tables.metadata, mapping=mapping)

    return made


CLAIMED: dict[str, Callable[[str], Links]] = {
    "mixin-exclusive": TABLES["mixin-exclusive"],
    "mixin-exclusive-soft": TABLES["mixin-exclusive-soft"],
    "cloud": TABLES["cloud"],
    "flagged-table": TABLES["flagged-table"],
    "core-table-ledger": ledgered(MADE["core-table"]),
    "exclusive-ledger": ledgered(without_version(EXCLUSIVE)),
    "exclusive-soft-ledger": ledgered(without_version(EXCLUSIVE_SOFT)),
}
"""Every way to tell the states of a row apart, over tables that are the application's own and the mixin's."""


class SlowClock(Clock):
    """A clock that stands still until a test moves it."""

    def __call__(self) -> Any:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass
class Case:
    """A table of links, a linker, and users by number."""

    links: Links
    engine: AsyncEngine
    clock: SlowClock = field(default_factory=SlowClock)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.linker = self.links.linker(clock=self.clock, **self.options)

    @property
    def soft(self) -> bool:
        return self.links.policy.removal is Removal.SOFT

    def user(self, number: int) -> Any:
        return self.links.user(number)

    async def link(self, number: int, account: str = "sub-1", access: str = "former-access", **more: Any) -> Any:
        """Link an account, whose id is returned."""
        given = {"credentials": tokens(access, "former-refresh")} | more
        outcome = await self.linker.link(self.engine, user_id=self.user(number), identity=identity(account), **given)
        assert isinstance(outcome, Linked), outcome
        return outcome.account.id

    async def claim(self, number: int, account: str = "sub-1") -> str:
        """Meet a conflict, whose token is returned."""
        outcome = await self.linker.link(
            self.engine, user_id=self.user(number), identity=identity(account), credentials=tokens("claimants")
        )
        assert isinstance(outcome, OwnershipConflict), outcome
        assert outcome.transfer_token is not None
        return outcome.transfer_token

    async def transfer(self, token: str, number: int, bind: Any = None, **more: Any) -> Any:
        """Redeem a token."""
        return await self.linker.transfer(bind or self.engine, token, user_id=self.user(number), **more)

    async def ended(self, token: str, number: int, bind: Any = None, **more: Any) -> str:
        """Redeem a token, and return how it ends, in the word that clients read."""
        try:
            outcome = await self.transfer(token, number, bind, **more)
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            outcome = error
        return str(outcome.code)

    async def stored(self) -> list[tuple[Any, ...]]:
        """Every column of every row."""
        return await self.links.stored(self.engine, *self.links.mapping.columns)


class Statements:
    """Counts the statements that an engine is sent, those of transactions aside."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.seen: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if statement.split(maxsplit=1)[0].upper() not in ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"):
            self.seen.append(statement)
