"""Bring the columns and keys of a table of links, for an application that has no such table yet."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapper, declared_attr, mapped_column

from accountlink.errors import ConfigurationError
from accountlink.values.policy import Key, LinkPolicy, Ownership, Removal
from accountlink.values.text import MAX_LENGTH

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped

_NAME_LENGTH: Final = 63
"""PostgreSQL cuts longer names (NAMEDATALEN - 1), and two cut names can meet."""


def _bytewise() -> sa.types.TypeEngine[str]:
    """Return a text type that the database compares byte by byte, whatever its own collation."""
    return sa.String(MAX_LENGTH).with_variant(sa.String(MAX_LENGTH, collation="C"), "postgresql")


class LinkedAccountMixin:
    """Bring the columns and the unique keys of a table of links; ``id`` and ``user_id`` are the application's own.

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

    if TYPE_CHECKING:
        provider: Mapped[str]
        account_id: Mapped[str]
        email: Mapped[str | None]
        email_key: Mapped[str]
        access_token: Mapped[str | None]
        refresh_token: Mapped[str | None]
        expires_at: Mapped[datetime | None]
        scopes: Mapped[str | None]
        created_at: Mapped[datetime]
        updated_at: Mapped[datetime]
        deleted_at: Mapped[datetime | None]
        reason: Mapped[str | None]
        version: Mapped[int]
    else:
        # Without annotations at run time: a base that makes dataclasses of its models refuses a mixin that has any.
        provider = mapped_column(_bytewise(), nullable=False)
        account_id = mapped_column(_bytewise(), nullable=False)
        email = mapped_column(sa.Text, nullable=True)
        access_token = mapped_column(sa.Text, nullable=True)
        refresh_token = mapped_column(sa.Text, nullable=True)
        expires_at = mapped_column(sa.DateTime(timezone=True), nullable=True)
        scopes = mapped_column(sa.Text, nullable=True)
        created_at = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
        updated_at = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
        version = mapped_column(sa.BigInteger, default=1, server_default="1", nullable=False)

        @declared_attr
        def email_key(cls):
            """The e-mail address in its normal form; only under ``Key.EMAIL``."""
            wanted = policy_of(cls).key is Key.EMAIL
            return mapped_column(sa.Text, nullable=False) if wanted else _absent()

        @declared_attr
        def deleted_at(cls):
            """The moment when the link was removed; only under ``Removal.SOFT``."""
            wanted = policy_of(cls).removal is Removal.SOFT
            return mapped_column(sa.DateTime(timezone=True), nullable=True) if wanted else _absent()

        @declared_attr
        def reason(cls):
            """The reason why the link was removed; only under ``Removal.SOFT``."""
            wanted = policy_of(cls).removal is Removal.SOFT
            return mapped_column(sa.Text, nullable=True) if wanted else _absent()


def _absent() -> Any:  # stands where declarative expects a column and leaves none
    return None


def policy_of(cls: Any) -> LinkPolicy:
    """Return the policy that a class declares.

    Raises:
        ConfigurationError: It declares none.
    """
    policy = getattr(cls, "__link_policy__", None)
    if not isinstance(policy, LinkPolicy):
        raise ConfigurationError(
            f"{cls.__name__} needs `__link_policy__ = LinkPolicy(key=..., ownership=..., removal=...)`."
        )
    return policy


@event.listens_for(LinkedAccountMixin, "after_mapper_constructed", propagate=True)
def _attach_keys(mapper: Mapper[Any], cls: type[Any]) -> None:
    table = mapper.local_table
    parent = mapper.inherits
    if not isinstance(table, sa.Table) or (parent is not None and issubclass(parent.class_, LinkedAccountMixin)):
        return  # a class that inherits its links, in its parent's table or beside it, has the keys there
    policy, columns = policy_of(cls), mapper.columns
    if "user_id" not in columns:
        raise ConfigurationError(f"{cls.__name__} needs a `user_id` column: the local owner of a link.")
    named = (columns["provider"], columns["account_id" if policy.key is Key.ACCOUNT_ID else "email_key"])
    key = named if policy.ownership is Ownership.EXCLUSIVE else (columns["user_id"], *named)
    for column in (columns["user_id"], *named):
        if column.nullable:
            raise ConfigurationError(
                f"{cls.__name__} needs a `{column.key}` that is not nullable: NULL takes part in no unique key."
            )
    live = columns["deleted_at"].is_(None) if policy.removal is Removal.SOFT else None
    sa.Index(_name("uq", table.name, "link"), *key, unique=True, postgresql_where=live, sqlite_where=live)
    if policy.ownership is Ownership.EXCLUSIVE or policy.removal is Removal.SOFT:
        sa.Index(_name("ix", table.name, "user"), columns["user_id"], *named)


def _name(prefix: str, table: str, suffix: str) -> str:
    """Return a name of an index that fits PostgreSQL's limit, which counts bytes."""
    name = f"{prefix}_{table}_{suffix}"
    if len(name.encode()) <= _NAME_LENGTH:
        return name
    digest = sha256(table.encode()).hexdigest()[:8]
    room = _NAME_LENGTH - len(f"{prefix}__{digest}_{suffix}")
    return f"{prefix}_{table.encode()[:room].decode(errors='ignore')}_{digest}_{suffix}"
