"""Tables of grants: the library's own and the application's, each with its own names and types, behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, cached_property
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, GrantMapping, ShareGrants, grants_table
from examples.sharing.models import Base
from tests.support.claims import SlowClock
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Shared:
    """A table of grants, however it was declared."""

    metadata: sa.MetaData
    grants: sa.Table | GrantMapping
    linker: AccountLinker[Any, Any] | None = None

    def shares(self, **options: Any) -> ShareGrants:
        return ShareGrants(self.grants, **({"accounts": self.linker} | options))

    @cached_property
    def mapping(self) -> GrantMapping:
        return self.shares().mapping

    def user(self, number: int) -> Any:
        """A user id of the column's own type."""
        python = self.mapping.columns["grantor_id"].type.python_type
        return {int: number, str: f"user-{number}", UUID: UUID(int=number)}[python]


def own(**options: Any) -> Callable[[], Shared]:
    """The library's own table, about linked accounts."""

    def make() -> Shared:
        tables = make_tables(EXCLUSIVE_SOFT)
        grants = grants_table(tables.metadata, link_id=tables.Connection.id, **options)
        return Shared(metadata=tables.metadata, grants=grants, linker=tables.linker())

    return make


def own_of_users() -> Shared:
    """Grants without linked accounts, with UUIDs and a unique index on the pair."""
    metadata = sa.MetaData()
    return Shared(metadata=metadata, grants=grants_table(metadata, user_id=sa.Uuid(), one_active_per_pair=True))


def patients(*, index: bool = False, pairs: bool = False) -> Callable[[], Shared]:
    """The table of examples/sharing: tokens in plain text, one row each; with its optional index or without."""

    def make() -> Shared:
        metadata = sa.MetaData()
        table = Base.metadata.tables["patient_doctor_connections"].to_metadata(metadata)
        if not index:
            table.indexes.clear()
        c = table.c
        mapping = GrantMapping(
            table,
            one_active_per_pair=pairs,
            grantor_id=c.patient_id,
            grantee_id=c.doctor_id,
            token=c.access_token,
            expires_at=c.token_expires_at,
            active=c.is_active,
        )
        return Shared(metadata=metadata, grants=mapping)

    return make


def counted() -> Shared:
    """Hashes, whole seconds, text users, a flag that may be null, ids that the database counts, columns besides."""
    metadata = sa.MetaData()
    table = sa.Table(
        "shares",
        metadata,
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("giver", sa.Text, nullable=False),
        sa.Column("taker", sa.Text),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("on", sa.Boolean),
        sa.Column("created_at", sa.DateTime()),
        sa.Column("updated_at", sa.DateTime()),
        sa.Column("uses", sa.Text, nullable=False, default=lambda: "the application's"),
        sa.Column("touched", sa.Integer, nullable=False, server_default="0", onupdate=lambda: 7),
        sa.Column("fixed", sa.Integer, nullable=False, default=1, onupdate=2),
    )
    c = table.c
    mapping = GrantMapping(table, id=c.number, grantor_id=c.giver, grantee_id=c.taker, expires_at=c.until, active=c.on)
    return Shared(metadata=metadata, grants=mapping)


SHARED: dict[str, Callable[[], Shared]] = {
    "own": cache(own()),
    "own-pairs": cache(own_of_users),
    "patients": cache(patients()),
    "patients-pairs": cache(patients(pairs=True)),
    "patients-index": cache(patients(index=True, pairs=True)),
    "counted": cache(counted),
}
"""Each declares its table once for all tests, so that it is compiled once."""
OWN = ("own", "own-pairs")
PAIRED = ("own-pairs", "patients-pairs", "patients-index")


@dataclass
class Sharing:
    """A table of grants in a database, and users by number."""

    shared: Shared
    engine: AsyncEngine
    clock: SlowClock | None = field(default_factory=SlowClock)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shares = self.shared.shares(clock=self.clock, **self.options)

    @classmethod
    async def made(cls, shared: Shared, engine: AsyncEngine, **options: Any) -> Sharing:
        await create(engine, shared.metadata)
        return cls(shared, engine, **options)

    def user(self, number: int) -> Any:
        return self.shared.user(number)

    async def issue(self, number: int = 1, bind: Any = None, **more: Any) -> Any:
        given = {"expires_in": HOUR} | more
        return await self.shares.issue(bind or self.engine, grantor_id=self.user(number), **given)

    async def redeem(self, token: Any, number: int = 2, bind: Any = None) -> Any:
        return await self.shares.redeem(bind or self.engine, token, grantee_id=self.user(number))

    async def revoke(self, number: int = 1, bind: Any = None, **named: Any) -> Any:
        return await self.shares.revoke(bind or self.engine, grantor_id=self.user(number), **named)

    async def ended(self, call: Any) -> str:
        """How a call ends, in the word that clients read."""
        try:
            outcome = await call
        except Exception as error:
            if not hasattr(error, "code"):
                raise
            outcome = error
        return str(outcome.code)

    async def active(self, **given: int) -> list[Any]:
        """Who has access by whom, as numbers are given."""
        named = {role: self.user(number) for role, number in given.items()}
        return [grant.id for grant in await self.shares.active(self.engine, **named)]

    async def link(self, number: int = 1, account: str = "sub-1") -> Any:
        """Link an account, whose id is returned."""
        assert self.shared.linker is not None
        outcome: Any = await self.shared.linker.link(self.engine, user_id=self.user(number), identity=identity(account))
        return outcome.account.id

    async def stored(self) -> list[tuple[Any, ...]]:
        """Every column of every row, read past the library."""
        table, c = self.shared.mapping.table, self.shared.mapping.columns
        async with self.engine.connect() as connection:
            found = await connection.execute(sa.select(table).order_by(c["created_at"], c["id"]))
            return [tuple(row) for row in found]

    async def flags(self) -> dict[Any, bool]:
        """Which rows are active, by the flag that the table itself has."""
        c = self.shared.mapping.columns
        async with self.engine.connect() as connection:
            return {key: bool(on) for key, on in await connection.execute(sa.select(c["id"], c["active"]))}
