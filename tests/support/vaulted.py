"""A table of links whose tokens are sealed, with everything that belongs to it."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    CredentialVault,
    Linked,
    LinkPolicy,
    OwnershipConflict,
    link_outbox,
    pending_credentials,
    refresh_states,
    transfer_ledger,
)
from tests.support.databases import create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, Clock, Tables, identity, make_tables

KEY: Final = bytes(range(32))
OLD_KEY: Final = bytes(range(1, 33))


@cache
def tables_of(policy: LinkPolicy, user_type: type, beside: frozenset[str]) -> tuple[Tables, dict[str, sa.Table]]:
    """The tables of a policy, and those beside them; all tests share them, so that they are compiled once."""
    tables = make_tables(policy, user_type=user_type)
    return tables, made_on(tables, beside)


def made_on(tables: Tables, beside: frozenset[str]) -> dict[str, sa.Table]:
    """The library's own tables, on the metadata of others, by name."""
    make = {
        "pending": pending_credentials,
        "outbox": link_outbox,
        "ledger": transfer_ledger,
        "refreshes": refresh_states,
    }
    return {name: make[name](tables.metadata) for name in make if name in beside}


@cache
def table_without_nulls() -> tuple[sa.MetaData, AccountMapping[Any, Any], dict[str, sa.Table]]:
    """A table of an application's own, by other names, whose tokens and scopes take no NULL."""
    metadata = sa.MetaData()
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    moment = sa.DateTime(timezone=True)
    table = sa.Table(
        "cloud_links",
        metadata,
        sa.Column("id", number, primary_key=True),
        sa.Column("owner", number, nullable=False),
        sa.Column("vendor", sa.String(50), nullable=False),
        sa.Column("vendor_uid", sa.String(255), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("access", "refresh", "granted")),
        sa.Column("ends", moment),
        sa.Column("ended_at", moment),
        sa.Column("row_version", sa.Integer, nullable=False),
    )
    live = table.c.ended_at.is_(None)
    key = (table.c.vendor, table.c.vendor_uid)
    sa.Index("one_owner", *key, unique=True, postgresql_where=live, sqlite_where=live)
    mapping: AccountMapping[Any, Any] = AccountMapping(
        table,
        policy=EXCLUSIVE_SOFT,
        id=table.c.id,
        user_id=table.c.owner,
        provider=table.c.vendor,
        account_id=table.c.vendor_uid,
        access_token=table.c.access,
        refresh_token=table.c.refresh,
        scopes=table.c.granted,
        expires_at=table.c.ends,
        deleted_at=table.c.ended_at,
        version=table.c.row_version,
    )
    return metadata, mapping, {"pending": pending_credentials(metadata)}


class Vaulted:
    """A table of links, and a linker with a vault: a model with the mixin, if nothing else is wanted.

    Args:
        policy: The policy of the model.
        vault: The vault; one with the key ``KEY`` without it.
        outbox: Whether there is an outbox.
        ledger: Whether the links have no version, and a ledger beside them.
        pending: Whether claimants' tokens are kept.
        nulls: Whether tokens and scopes may be NULL; otherwise the table is an application's own.
        renews: Whether there is a table of renewals, for further linkers of the test's own.
        user_type: The type of the users' ids.
        options: Further options of the linker.
    """

    def __init__(
        self,
        policy: LinkPolicy = EXCLUSIVE_SOFT,
        *,
        vault: CredentialVault | None = None,
        outbox: bool = False,
        ledger: bool = False,
        pending: bool = True,
        nulls: bool = True,
        renews: bool = False,
        user_type: type = int,
        tables: Tables | None = None,
        **options: Any,
    ) -> None:
        beside = {"pending": pending, "outbox": outbox, "ledger": ledger, "refreshes": renews}
        names = frozenset(name for name, has in beside.items() if has)
        accounts: Any
        if nulls:
            self.tables, made = (
                tables_of(policy, user_type, names) if tables is None else (tables, made_on(tables, names))
            )
            self.metadata, model = self.tables.metadata, self.tables.Connection
            accounts = AccountMapping(model, policy=policy, version=None) if ledger else model
        else:
            self.metadata, accounts, made = table_without_nulls()
        self.clock = Clock()
        self.states: Any = made.get("refreshes")
        made = {name: table for name, table in made.items() if name != "refreshes"}
        self.pending = made.get("pending")
        given: dict[str, Any] = {"secrets": SECRETS, "clock": self.clock, "vault": vault or CredentialVault(keys=[KEY])}
        self.accounts: Final = accounts
        self.options: Final = given | made | options
        self.linker: AccountLinker[Any, Any] = AccountLinker(accounts, **self.options)

    @property
    def table(self) -> sa.Table:
        return self.linker.mapping.table

    def other_linker(self, **options: Any) -> AccountLinker[Any, Any]:
        """Another linker of the table, with some options changed."""
        return AccountLinker(self.accounts, **(self.options | options))

    async def create(self, engine: AsyncEngine) -> Self:
        await create(engine, self.metadata)
        return self

    async def kept(self, engine: AsyncEngine) -> list[Any]:
        """The rows of pending credentials."""
        assert self.pending is not None
        async with engine.connect() as connection:
            return list(await connection.execute(sa.select(self.pending)))

    async def column(self, engine: AsyncEngine, *roles: str) -> list[Any]:
        """The columns of some roles of all links, in the order of their ids."""
        columns = self.linker.mapping.columns
        query = sa.select(*(columns[role] for role in roles)).order_by(columns["id"])
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(query)]

    async def linked(
        self, bind: Any, user_id: Any = 1, account: str = "sub-1", *, provider: str = "acme", **options: Any
    ) -> Any:
        """Link an account, and return its id."""
        who = identity(account, provider=provider)
        outcome = await self.linker.link(bind, user_id=user_id, identity=who, **options)
        assert isinstance(outcome, Linked), outcome
        return outcome.account.id

    async def conflict(self, bind: Any, user_id: Any = 2, account: str = "sub-1", **options: Any) -> str:
        """Meet a conflict, and return its token."""
        outcome = await self.linker.link(bind, user_id=user_id, identity=identity(account), **options)
        assert isinstance(outcome, OwnershipConflict), outcome
        assert outcome.transfer_token is not None
        return outcome.transfer_token

    async def whole(self, bind: Any, user_id: Any = 2) -> tuple[str, str | None]:
        """The access token and the refresh token of a user's only link."""
        stored = await self.linker.stored_credentials(bind, user_id=user_id, provider="acme")
        return stored.access_token.reveal(), None if stored.refresh_token is None else stored.refresh_token.reveal()
