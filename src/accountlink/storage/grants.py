"""Where grants live: which column of the user's table plays which part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from accountlink.errors import ConfigurationError
from accountlink.storage.targets import Attribute, column_of, mapper_of, table_of

GRANT_ROLES: Final = (
    "id",
    "grantor_id",
    "grantee_id",
    "token_hash",
    "token",
    "expires_at",
    "active",
    "link_id",
    "created_at",
    "updated_at",
)


class GrantColumns(TypedDict, total=False):
    """The columns of a table of grants; see :class:`GrantMapping`."""

    id: Attribute | None
    grantor_id: Attribute | None
    grantee_id: Attribute | None
    token_hash: Attribute | None
    token: Attribute | None
    expires_at: Attribute | None
    active: Attribute | None
    link_id: Attribute | None
    created_at: Attribute | None
    updated_at: Attribute | None


class GrantMapping:
    """A table of grants of your own, one row per token, and the columns in it that accountlink reads and writes.

    Attributes that carry the default names need not be given; give ``None`` for one that must be left alone.

    Args:
        target: A declarative model, or a :class:`sqlalchemy.Table`.
        one_active_per_pair: Whether a pair of grantor and grantee has at most one active grant.
        id: The grant's own id.
        grantor_id: The user who gives access.
        grantee_id: The user who has redeemed the token; ``NULL`` until then.
        token_hash: The hash of the token. Give this, or
        token: the token itself, in a table that holds it in plain text.
        expires_at: When the token can be redeemed no more.
        active: A flag that is true until the grant has ended.
        link_id: The linked account that the grant is about.
        created_at: When the row was made.
        updated_at: When accountlink last wrote the row.

    Raises:
        ConfigurationError: A column that every grant needs is missing; the message says which.
    """

    def __init__(
        self, target: type[Any] | sa.Table, *, one_active_per_pair: bool = False, **given: Unpack[GrantColumns]
    ) -> None:
        columns: Mapping[str, Any] = given
        if unknown := sorted(set(columns) - set(GRANT_ROLES)):
            raise TypeError(f"GrantMapping() got an unexpected keyword argument {unknown[0]!r}")
        self.one_active_per_pair: Final = one_active_per_pair
        self.mapper: Final[Mapper[Any] | None] = mapper_of(target)
        self.table: Final[sa.Table] = table_of(target, self.mapper)
        self.columns: Final[dict[str, sa.Column[Any]]] = {
            role: column for role in GRANT_ROLES if (column := self._column(role, columns)) is not None
        }
        self._check()

    @property
    def name(self) -> str:
        """The table's name, for messages."""
        return self.table.fullname

    @property
    def token_role(self) -> str:
        """The role that tells one token from another."""
        return "token_hash" if "token_hash" in self.columns else "token"

    def _column(self, role: str, given: Mapping[str, Any]) -> sa.Column[Any] | None:
        if role in given:
            return None if given[role] is None else column_of(given[role], mapper=self.mapper, table=self.table)
        return (self.table if self.mapper is None else self.mapper).columns.get(role)

    def _check(self) -> None:
        for role in ("id", "grantor_id", "grantee_id", "expires_at", "active"):
            if role not in self.columns:
                raise ConfigurationError(
                    f"{self.name!r} has no {role!r} column mapped, and every table of grants needs it. "
                    f"Map {role}=... or add it."
                )
        if ("token_hash" in self.columns) == ("token" in self.columns):
            raise ConfigurationError(
                f"Map one of token_hash=... and token=... of {self.name!r}: the hash, or the token in plain text."
            )
