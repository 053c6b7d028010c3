"""Tables for tests, made anew for each policy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    Key,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    ProviderIdentity,
    Removal,
    TokenSet,
)

SECRETS = ["test-secret-of-at-least-32-bytes-0001"]

EXCLUSIVE = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.DELETE)
EXCLUSIVE_SOFT = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
PER_USER = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.PER_USER, removal=Removal.DELETE)
PER_USER_SOFT = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.PER_USER, removal=Removal.SOFT)
EMAIL = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.DELETE)
EMAIL_SOFT = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT)
POLICIES = {
    "exclusive": EXCLUSIVE,
    "exclusive-soft": EXCLUSIVE_SOFT,
    "per-user": PER_USER,
    "per-user-soft": PER_USER_SOFT,
    "email": EMAIL,
    "email-soft": EMAIL_SOFT,
}
USER_COLUMNS: dict[type, Any] = {
    int: sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    str: sa.Text(),
    UUID: sa.Uuid(),
}
USER_TYPES: dict[type, tuple[Any, Any]] = {int: (1, 2), str: ("ann", "bob"), UUID: (uuid4(), uuid4())}


class Clock:
    """A clock that moves by a second at each look, and as far as a test tells it to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@dataclass(frozen=True)
class Tables:
    """A model of links, a table of the application's users, and their metadata."""

    metadata: sa.MetaData
    Connection: type[Any]
    Note: type[Any]

    def linker(self, **options: Any) -> AccountLinker[Any, Any]:
        return AccountLinker(self.Connection, **({"secrets": SECRETS} | options)) if options else self._plain_linker

    @cached_property
    def _plain_linker(self) -> AccountLinker[Any, Any]:
        return AccountLinker(self.Connection, secrets=SECRETS)


@cache
def shared_tables(policy: LinkPolicy) -> Tables:
    """Return the tables of a policy that all tests share which change nothing of them: they are compiled once."""
    return make_tables(policy)


def make_tables(policy: LinkPolicy, *, user_type: type = int) -> Tables:
    """Declare the tables of a policy anew."""

    class Base(DeclarativeBase):
        type_annotation_map = {int: sa.BigInteger().with_variant(sa.Integer, "sqlite")}  # noqa: RUF012  # SQLAlchemy's name

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = policy
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id = mapped_column(
            USER_COLUMNS[user_type],
            nullable=False,
        )
        label: Mapped[str | None]
        score: Mapped[int] = mapped_column(default=7)

    class Note(Base):
        """Something of the application's own, pending in the caller's transaction."""

        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(unique=True)

    return Tables(metadata=Base.metadata, Connection=Connection, Note=Note)


def identity(account_id: str = "sub-1", **fields: Any) -> ProviderIdentity:
    given = {"provider": "acme", "email": f"{account_id}@example.com"} | fields
    return ProviderIdentity(account_id=account_id, **given)


def tokens(access: str = "access-1", refresh: str | None = "refresh-1", **fields: Any) -> TokenSet:
    given: dict[str, Any] = {"expires_at": datetime(2026, 2, 1, tzinfo=UTC), "scopes": {"read", "write"}} | fields
    return TokenSet(access_token=access, refresh_token=refresh, **given)
