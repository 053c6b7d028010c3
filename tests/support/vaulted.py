"""A table of links whose tokens are sealed, with everything that belongs to it."""

from __future__ import annotations

from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, CredentialVault, LinkPolicy, link_outbox, pending_credentials, transfer_ledger
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, Clock, Tables, make_tables

KEY: Final = bytes(range(32))
OLD_KEY: Final = bytes(range(1, 33))


class Vaulted:
    """A model with the mixin, and a linker with a vault."""

    def __init__(
        self,
        policy: LinkPolicy = EXCLUSIVE_SOFT,
        *,
        vault: CredentialVault | None = None,
        outbox: bool = False,
        ledger: bool = False,
        pending: bool = True,
        user_type: type = int,
        tables: Tables | None = None,
        **options: Any,
    ) -> None:
        self.tables: Tables = tables or make_tables(policy, user_type=user_type)
        metadata = self.tables.metadata
        self.clock = Clock()
        self.pending = pending_credentials(metadata) if pending else None
        given: dict[str, Any] = {"secrets": SECRETS, "clock": self.clock, "vault": vault or CredentialVault(keys=[KEY])}
        if pending:
            given["pending"] = self.pending
        if outbox:
            given["outbox"] = link_outbox(metadata)
        if ledger:
            given["ledger"] = transfer_ledger(metadata)
        self.options: Final = given | options
        self.linker: AccountLinker[Any, Any] = AccountLinker(self.tables.Connection, **self.options)

    @property
    def table(self) -> sa.Table:
        table: sa.Table = self.tables.Connection.__table__
        return table

    def other_linker(self, **options: Any) -> AccountLinker[Any, Any]:
        """Another linker of the table, with some options changed."""
        return AccountLinker(self.tables.Connection, **(self.options | options))

    async def create(self, engine: AsyncEngine) -> Self:
        await create(engine, self.tables.metadata)
        return self

    async def kept(self, engine: AsyncEngine) -> list[Any]:
        """The rows of pending credentials."""
        assert self.pending is not None
        async with engine.connect() as connection:
            return list(await connection.execute(sa.select(self.pending)))

    async def column(self, engine: AsyncEngine, *names: str) -> list[Any]:
        """Some columns of all links, in the order of their ids."""
        columns = [self.table.c[name] for name in names]
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(sa.select(*columns).order_by(self.table.c.id))]
