"""Map a table of grants: say which column of the application's table plays which role."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, TypedDict, Unpack

import sqlalchemy as sa
from sqlalchemy.orm import Mapper

from accountlink.errors import ConfigurationError
from accountlink.grants.table import is_own, wants_one_per_pair
from accountlink.tables.checks import check_parts, check_types, is_unique
from accountlink.tables.column_types import GRANT_PARTS
from accountlink.tables.targets import Attribute, column_of, mapper_of, table_of

GRANT_ROLES: Final = (
    "id",
    "grantor_id",
    "grantee_id",
    "token_hash",
    "token",
    "expires_at",
    "active",
    "link_id",
    "link_version",
    "created_at",
    "updated_at",
    "redeemed_at",
    "ended_at",
)
OWN_ROLES: Final = ("issued_id", "max_uses", "uses")
"""The columns of the library's own table alone; in another table a column of such a name is the application's."""


class GrantColumns(TypedDict, total=False):
    """Hold the columns of a table of grants; see :class:`GrantMapping`."""

    id: Attribute | None
    grantor_id: Attribute | None
    grantee_id: Attribute | None
    token_hash: Attribute | None
    token: Attribute | None
    expires_at: Attribute | None
    active: Attribute | None
    link_id: Attribute | None
    link_version: Attribute | None
    created_at: Attribute | None
    updated_at: Attribute | None
    redeemed_at: Attribute | None
    ended_at: Attribute | None


class GrantMapping:
    """Map a table of your own with one row per token, and the columns in it that accountlink reads and writes.

    Attributes that carry the default names need not be given; give ``None`` for one that must be left alone.

    Args:
        target: A declarative model, or a :class:`sqlalchemy.Table`.
        one_active_per_pair: Whether a pair of grantor and grantee has at most one active grant.
        id: The grant's own id.
        grantor_id: The user who gives access.
        grantee_id: The user who has redeemed the token; ``NULL`` until then.
        token_hash: The hash of the token. Give this or ``token``.
        token: The token itself, in a table that holds it in plain text.
        expires_at: When the grant ends at the latest, token and access alike: an aware or naive (UTC) timestamp, or
            whole seconds since 1970.
        active: A flag that is true until the grant has ended.
        link_id: The linked account that the grant is about.
        link_version: The state of that account when the grant was issued: a big whole number.
        created_at: When the row was made.
        updated_at: When accountlink last wrote the row.
        redeemed_at: When the token was redeemed.
        ended_at: When the grant was ended, or found to have expired.

    Raises:
        ConfigurationError: A column that every grant needs is missing, or cannot play its part; the message says which.
    """

    def __init__(
        self, target: type[Any] | sa.Table, *, one_active_per_pair: bool = False, **given: Unpack[GrantColumns]
    ) -> None:
        columns: Mapping[str, Any] = given
        if unknown := sorted(set(columns) - set(GRANT_ROLES)):
            raise TypeError(f"GrantMapping() got an unexpected keyword argument {unknown[0]!r}")
        if not isinstance(one_active_per_pair, bool):
            raise ConfigurationError("GrantMapping(one_active_per_pair=...) takes True or False.")
        self.one_active_per_pair: bool = one_active_per_pair
        """Says whether a pair of grantor and grantee has at most one active grant."""
        self.mapper: Final[Mapper[Any] | None] = mapper_of(target)
        self.table: Final[sa.Table] = table_of(target, self.mapper)
        self.is_own: Final = is_own(self.table)
        """Says whether it is the table that :func:`grants_table` makes."""
        self.one_active_per_pair |= wants_one_per_pair(self.table)
        roles = (*GRANT_ROLES, *OWN_ROLES) if self.is_own else GRANT_ROLES
        self.columns: Final[dict[str, sa.Column[Any]]] = {
            role: column for role in roles if (column := self._column(role, columns)) is not None
        }
        self._check()

    @property
    def name(self) -> str:
        """The table's name, for messages."""
        return self.table.fullname

    def with_one_active_per_pair(self) -> GrantMapping:
        """Return this mapping for a table where a pair has at most one active grant."""
        mapping = copy.copy(self)
        mapping.one_active_per_pair = True
        return mapping

    @property
    def declares_pair_key(self) -> bool:
        """Say whether the model declares a unique index by which a pair has one active grant at most."""
        pair = {self.columns["grantor_id"], self.columns["grantee_id"]}
        return any(index.unique and set(index.expressions) == pair for index in self.table.indexes)

    @property
    def token_role(self) -> str:
        """The role of the column that holds the token or its hash."""
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
        check_parts(self)
        check_types(self, GRANT_PARTS)
        self._check_columns()
        if ("token_hash" in self.columns) == ("token" in self.columns):
            raise ConfigurationError(
                f"Map one of token_hash=... and token=... of {self.name!r}: the hash, or the token in plain text."
            )

    def _check_columns(self) -> None:
        name, c = self.name, self.columns
        empty = {
            "grantee_id": "the token is redeemed",
            "redeemed_at": "the token is redeemed",
            "ended_at": "it has ended",
        }
        for role, until in empty.items():
            if role in c and not c[role].nullable:
                raise ConfigurationError(
                    f"{c[role].name!r} of {name!r} takes no NULL, which it holds until {until}. Make it nullable."
                )
        if not is_unique(self.table, c["id"]):
            raise ConfigurationError(
                f"{c['id'].name!r} alone does not identify a row of {name!r}. Map one unique column as the grant's id."
            )
        for role, column in c.items():
            if column.computed is not None and role not in ("id", "created_at", "updated_at"):
                raise ConfigurationError(
                    f"{column.name!r} of {name!r} is a generated column, and accountlink has to write {role!r}. "
                    f"Map {role}=... to an ordinary column, or {role}=None where it may be left out."
                )
