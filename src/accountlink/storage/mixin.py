"""A table of links for applications that have none yet: columns and keys that are right for its policy."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, Mapper, declared_attr, mapped_column

from accountlink.core.policy import Key, LinkPolicy, Ownership, Removal
from accountlink.core.text import MAX_LENGTH
from accountlink.errors import ConfigurationError

_NAME_LENGTH: Final = 63
"""PostgreSQL cuts longer names (NAMEDATALEN - 1), and two cut names can meet."""


def _bytewise() -> sa.types.TypeEngine[str]:
    """Text that the database compares byte by byte, whatever its own collation is (SQLite does so anyway)."""
    return sa.String(MAX_LENGTH).with_variant(sa.String(MAX_LENGTH, collation="C"), "postgresql")


class LinkedAccountMixin:
    """Brings the columns and the unique keys of a table of links; ``id`` and ``user_id`` are the application's own.

    ``__link_policy__`` is required. The keys are attached after mapping, and so survive ``__table_args__``:

    - ``EXCLUSIVE``: unique on (provider, account_id);
    - ``PER_USER``: unique on (user_id, provider, account_id), or on (user_id, provider, email_key) under ``Key.EMAIL``;
    - partial, ``WHERE deleted_at IS NULL``, under ``Removal.SOFT``;
    - and an index on (user_id, provider, account_id) or its e-mail key, where the unique key does not serve as one: a
      user's own rows are looked up by it, dead ones included.

    Raises:
        ConfigurationError: When the class is mapped: no ``__link_policy__``, no ``user_id``, or a nullable one, which
            would take part in no unique key.
    """

    __link_policy__: ClassVar[LinkPolicy]

    provider: Mapped[str] = mapped_column(_bytewise())
    account_id: Mapped[str] = mapped_column(_bytewise())
    email: Mapped[str | None] = mapped_column(sa.Text)
    access_token: Mapped[str | None] = mapped_column(sa.Text)
    refresh_token: Mapped[str | None] = mapped_column(sa.Text)
    expires_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    scopes: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    updated_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    version: Mapped[int] = mapped_column(sa.BigInteger, default=1, server_default="1")

    @declared_attr
    def email_key(cls) -> Mapped[str]:
        """The e-mail address in its normal form; only under ``Key.EMAIL``."""
        wanted = _policy(cls).key is Key.EMAIL
        return mapped_column(sa.Text, nullable=False) if wanted else _absent()

    @declared_attr
    def deleted_at(cls) -> Mapped[datetime | None]:
        """When the link was removed; only under ``Removal.SOFT``."""
        wanted = _policy(cls).removal is Removal.SOFT
        return mapped_column(sa.DateTime(timezone=True)) if wanted else _absent()

    @declared_attr
    def reason(cls) -> Mapped[str | None]:
        """Why the link was removed; only under ``Removal.SOFT``."""
        wanted = _policy(cls).removal is Removal.SOFT
        return mapped_column(sa.Text) if wanted else _absent()


def _absent() -> Any:  # stands where declarative expects a column and leaves none
    return None


def _policy(cls: Any) -> LinkPolicy:  # the class under construction
    policy = getattr(cls, "__link_policy__", None)
    if not isinstance(policy, LinkPolicy):
        raise ConfigurationError(
            f"{cls.__name__} needs `__link_policy__ = LinkPolicy(key=..., ownership=..., removal=...)`."
        )
    return policy


@event.listens_for(LinkedAccountMixin, "after_mapper_constructed", propagate=True)
def _attach_keys(mapper: Mapper[Any], cls: type[Any]) -> None:
    table = mapper.local_table
    if not isinstance(table, sa.Table) or (mapper.inherits is not None and mapper.inherits.local_table is table):
        return
    policy, columns = _policy(cls), mapper.columns
    user_id = columns.get("user_id")
    if user_id is None or user_id.nullable:
        raise ConfigurationError(
            f"{cls.__name__} needs a `user_id` that is not nullable: NULL takes part in no unique key."
        )
    named = (columns["provider"], columns["account_id" if policy.key is Key.ACCOUNT_ID else "email_key"])
    key = named if policy.ownership is Ownership.EXCLUSIVE else (user_id, *named)
    live = columns["deleted_at"].is_(None) if policy.removal is Removal.SOFT else None
    sa.Index(_name("uq", table.name, "link"), *key, unique=True, postgresql_where=live, sqlite_where=live)
    if policy.ownership is Ownership.EXCLUSIVE or policy.removal is Removal.SOFT:
        sa.Index(_name("ix", table.name, "user"), user_id, *named)


def _name(prefix: str, table: str, suffix: str) -> str:
    name = f"{prefix}_{table}_{suffix}"
    if len(name) <= _NAME_LENGTH:
        return name
    digest = sha256(table.encode()).hexdigest()[:8]
    return f"{prefix}_{table[: _NAME_LENGTH - len(prefix) - len(suffix) - 11]}_{digest}_{suffix}"
