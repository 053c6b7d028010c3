"""The table of platform connections as the system has it, and its mapping for accountlink."""

from datetime import datetime
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import DateTime, Index, Text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal

SCHEMA: Final = "cmis"


class Base(DeclarativeBase):
    """The application's metadata."""

    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True)}  # noqa: RUF012  # SQLAlchemy's way


class PlatformConnection(Base):
    """A page or profile on a platform that an organisation publishes to."""

    __tablename__ = "platform_connections"
    __table_args__ = {"schema": SCHEMA}  # noqa: RUF012  # SQLAlchemy's way

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    org_id: Mapped[UUID]
    platform: Mapped[str]
    account_id: Mapped[str]
    account_name: Mapped[str | None]
    page_access_token: Mapped[str | None]
    refresh_token: Mapped[str | None]
    token_expires_at: Mapped[datetime | None]
    scopes: Mapped[str | None]
    connected_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


is_live = PlatformConnection.deleted_at.is_(None)
live_key = Index(
    "platform_connections_live_account",
    PlatformConnection.org_id,
    PlatformConnection.platform,
    PlatformConnection.account_id,
    unique=True,
    postgresql_where=is_live,
    sqlite_where=is_live,
)
Index(  # not unique, and without a condition: by it a link finds the organisation's own deleted row
    "platform_connections_of_an_organisation",
    PlatformConnection.org_id,
    PlatformConnection.platform,
    PlatformConnection.account_id,
)

connections = AccountMapping(
    PlatformConnection,
    policy=LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.PER_USER, removal=Removal.SOFT),
    user_id=PlatformConnection.org_id,  # an organisation is the user here
    provider=PlatformConnection.platform,
    access_token=PlatformConnection.page_access_token,
    expires_at=PlatformConnection.token_expires_at,
    created_at=PlatformConnection.connected_at,
)
linker = AccountLinker(connections)


def for_its_database(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine as this system uses it: SQLite has no schemas, so there the table stands without one."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(schema_translate_map={SCHEMA: None})
    return engine
