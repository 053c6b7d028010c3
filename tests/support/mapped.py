"""Tables of the application's own, each with its own names, types and keys; and the mixin's, behind one face."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal
from tests.support.databases import create, run_sql
from tests.support.models import EMAIL, EXCLUSIVE, EXCLUSIVE_SOFT, PER_USER_SOFT, POLICIES, SECRETS, make_tables

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


@dataclass(frozen=True)
class Links:
    """A table of links, however it was declared."""

    metadata: sa.MetaData
    mapping: AccountMapping[Any, Any]
    schema: str | None = None

    @property
    def policy(self) -> LinkPolicy:
        return self.mapping.policy

    def linker(self, **options: Any) -> AccountLinker[Any, Any]:
        return AccountLinker(self.mapping, **({"secrets": SECRETS} | options)) if options else self._plain_linker

    @cached_property
    def _plain_linker(self) -> AccountLinker[Any, Any]:
        return AccountLinker(self.mapping, secrets=SECRETS)

    def user(self, number: int) -> Any:
        """A user id of the column's own type."""
        python = self.mapping.columns["user_id"].type.python_type
        return {int: number, str: f"user-{number}", UUID: UUID(int=number)}[python]

    async def create(self, engine: AsyncEngine) -> None:
        if self.schema is not None:
            await run_sql(engine, f"DROP SCHEMA IF EXISTS {self.schema} CASCADE", f"CREATE SCHEMA {self.schema}")
        await create(engine, self.metadata)

    async def stored(self, engine: AsyncEngine, *roles: str) -> list[tuple[Any, ...]]:
        """Return the rows' values in these roles, read without the library, in the order of their ids."""
        c = self.mapping.columns
        live = self.linker()._store.statements.live()
        chosen = [live.label("live") if role == "live" else c[role] for role in roles]
        newest_last = [c[role] for role in ("created_at",) if role in c]
        async with engine.connect() as connection:
            rows = await connection.execute(sa.select(*chosen).order_by(*newest_last, c["id"]))
            return [tuple(bool(v) if r == "live" else v for r, v in zip(roles, row, strict=True)) for row in rows]


def mixin(policy: LinkPolicy) -> Callable[[str], Links]:
    def make(_kind: str) -> Links:
        tables = make_tables(policy)
        return Links(metadata=tables.metadata, mapping=AccountMapping(tables.Connection, policy=policy))

    return make


def calendar(_kind: str) -> Links:
    """E-mail key without an account id or a normal form of its own; text user ids, deleted rows."""

    class Base(DeclarativeBase):
        pass

    class CalendarConnection(Base):
        __tablename__ = "calendar_connections"
        __table_args__ = (sa.UniqueConstraint("owner", "vendor", "vendor_mail", name="one_mailbox"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        owner: Mapped[str]
        vendor: Mapped[str]
        vendor_mail: Mapped[str]
        access_token: Mapped[str] = mapped_column(default="")
        refresh_token: Mapped[str | None]
        token_expires: Mapped[datetime | None] = mapped_column(sa.DateTime())
        granted: Mapped[str | None]

    c = CalendarConnection
    mapping: AccountMapping[Any, Any] = AccountMapping(
        c,
        policy=EMAIL,
        user_id=c.owner,
        provider=c.vendor,
        email=c.vendor_mail,
        expires_at=c.token_expires,
        scopes=c.granted,
    )
    return Links(metadata=Base.metadata, mapping=mapping)


def platforms(kind: str) -> Links:
    """UUID ids, a schema of its own, soft deletion by timestamp, a partial key, and the ORM's own version counter."""
    schema = None if kind == "sqlite" else "cmis"

    class Base(DeclarativeBase):
        pass

    class PlatformConnection(Base):
        __tablename__ = "platform_connections"
        __table_args__ = ({"schema": schema},)
        id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
        org_id: Mapped[UUID]
        platform: Mapped[str]
        account_id: Mapped[str]
        account_mail: Mapped[str | None]
        page_token: Mapped[str | None]
        refresh_token: Mapped[str | None]
        expires_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
        scopes: Mapped[list[str] | None] = mapped_column(sa.JSON)
        created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), default=datetime.now)
        updated_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True), onupdate=sa.func.now())
        deleted_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
        revision: Mapped[int] = mapped_column(nullable=False)
        __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012  # SQLAlchemy's way

    c = PlatformConnection
    live = c.deleted_at.is_(None)
    key = (c.org_id, c.platform, c.account_id)
    sa.Index("one_platform_account", *key, unique=True, postgresql_where=live, sqlite_where=live)
    mapping: AccountMapping[Any, Any] = AccountMapping(
        c, policy=PER_USER_SOFT, user_id=c.org_id, provider=c.platform, email=c.account_mail, access_token=c.page_token
    )
    return Links(metadata=Base.metadata, mapping=mapping, schema=schema)


def cloud(_kind: str) -> Links:
    """Bigint ids, a flag that may be null, both unique indexes (full), an epoch in seconds, a version."""

    class Base(DeclarativeBase):
        pass

    class CloudProviderAccount(Base):
        __tablename__ = "cloud_provider_accounts"
        __table_args__ = (
            sa.UniqueConstraint("user_id", "provider", "provider_account_id", name="per_user"),
            sa.UniqueConstraint("provider", "provider_account_id", name="global"),
        )
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        user_id: Mapped[int] = mapped_column(BIG)
        provider: Mapped[str]
        provider_account_id: Mapped[str]
        account_email: Mapped[str | None]
        access_token: Mapped[str | None]
        refresh_token: Mapped[str | None]
        expires_in_epoch: Mapped[int | None] = mapped_column(sa.BigInteger)
        scopes: Mapped[str | None]
        is_active: Mapped[bool | None]
        version: Mapped[int]

    c = CloudProviderAccount
    mapping: AccountMapping[Any, Any] = AccountMapping(
        c,
        policy=EXCLUSIVE_SOFT,
        account_id=c.provider_account_id,
        email=c.account_email,
        expires_at=c.expires_in_epoch,
        active=c.is_active,
    )
    return Links(metadata=Base.metadata, mapping=mapping)


class Vendor(enum.Enum):
    """Providers as a Python enumeration, whose names the database stores."""

    ACME = "acme"
    OTHER = "other"


def core_table(_kind: str) -> Links:
    """A Core table: enumerated providers, text link ids, deletion, an application column with defaults."""
    metadata = sa.MetaData()
    table = sa.Table(
        "links",
        metadata,
        sa.Column("key", sa.Text, primary_key=True, default=lambda: uuid4().hex),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("vendor", sa.Enum(Vendor, name="vendor"), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("mail", sa.Text),
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("scopes", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("seen", sa.Integer, default=1, onupdate=lambda: 2),
        sa.UniqueConstraint("vendor", "subject", name="one_owner"),
    )
    c = table.c
    mapping: AccountMapping[Any, Any] = AccountMapping(
        table, policy=EXCLUSIVE, id=c.key, provider=c.vendor, account_id=c.subject, email=c.mail
    )
    return Links(metadata=metadata, mapping=mapping)


def email_with_key(_kind: str) -> Links:
    """E-mail key with a normal form of its own and an account id beside it; soft; hybrids and generated columns."""

    class Base(DeclarativeBase):
        pass

    class Mailbox(Base):
        __tablename__ = "mailboxes"
        pk: Mapped[int] = mapped_column(BIG, primary_key=True)
        user_id: Mapped[UUID]
        provider: Mapped[str] = mapped_column(sa.Enum("acme", "other", name="mail_provider", native_enum=False))
        account_id: Mapped[str | None]
        email: Mapped[str | None]
        email_key: Mapped[str]
        access_token: Mapped[str | None]
        refresh_token: Mapped[str | None]
        expires_at: Mapped[datetime | None] = mapped_column(sa.DateTime())
        scopes: Mapped[str | None]
        created_at: Mapped[datetime] = mapped_column(sa.DateTime(), server_default=sa.func.now())
        updated_at: Mapped[datetime | None] = mapped_column(sa.DateTime())
        deleted_at: Mapped[datetime | None] = mapped_column(sa.DateTime())
        reason: Mapped[str | None]
        mail_length: Mapped[int] = mapped_column(sa.Computed("length(email)", persisted=True))
        note: Mapped[str] = mapped_column(server_default="none")

        @hybrid_property
        def is_live(self) -> bool:
            return self.deleted_at is None

    c = Mailbox
    live = c.deleted_at.is_(None)
    key = (c.user_id, c.provider, c.email_key)
    sa.Index("one_mailbox_each", *key, unique=True, postgresql_where=live, sqlite_where=live)
    policy = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT)
    mapping: AccountMapping[Any, Any] = AccountMapping(c, policy=policy, id=c.pk)
    return Links(metadata=Base.metadata, mapping=mapping)


def flagged_table(_kind: str) -> Links:
    """A Core table with UUID users, a flag that takes no null, a key that is partial by it, and a list of scopes."""
    metadata = sa.MetaData()
    table = sa.Table(
        "accounts",
        metadata,
        sa.Column("id", BIG, primary_key=True),
        sa.Column("member", sa.Uuid, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("granted", postgresql.ARRAY(sa.Text).with_variant(sa.JSON(), "sqlite")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("linked", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    c = table.c
    live = c.linked.is_(sa.true())
    sa.Index("one_live_owner", c.provider, c.account_id, unique=True, postgresql_where=live, sqlite_where=live)
    mapping: AccountMapping[Any, Any] = AccountMapping(
        table, policy=EXCLUSIVE_SOFT, user_id=c.member, scopes=c.granted, active=c.linked, version=c.revision
    )
    return Links(metadata=metadata, mapping=mapping)


MADE: dict[str, Callable[[str], Links]] = {f"mixin-{name}": mixin(policy) for name, policy in POLICIES.items()} | {
    "calendar": calendar,
    "platforms": platforms,
    "cloud": cloud,
    "core-table": core_table,
    "email-with-key": email_with_key,
    "flagged-table": flagged_table,
}
"""Each declares its table anew, for whoever adds to the metadata."""
TABLES: dict[str, Callable[[str], Links]] = {name: cache(make) for name, make in MADE.items()}
"""Each declares its table once for all tests, so that it is compiled once."""
