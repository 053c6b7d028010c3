"""Build the statements that read a link's tokens, and that replace them."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa

from accountlink.linking.statements import Condition, Shape, Statements
from accountlink.tables.concealing import concealed
from accountlink.tables.type_layers import works_on_values
from accountlink.vault.sealing import SEALED_ROLES

TOKEN_ROLES: Final = (*SEALED_ROLES, "expires_at")
"""The roles that are read beside a link's own columns."""
_SQLITE_NOW: Final = sa.literal_column("'%Y-%m-%d %H:%M:%f+00:00'", sa.Text)


class VaultStatements(Statements):
    """Build the statements of the vault for one table of links."""

    # For a link that is named by its id, on PostgreSQL; the short form is that of the link's statement.
    # SQL: SELECT links.*, links.account_id AS account_key, links.access_token AS access_token,
    #             links.refresh_token AS refresh_token, links.expires_at AS expires_at, clock_timestamp() AS now
    #      FROM links WHERE links.user_id = :user_id AND links.deleted_at IS NULL AND links.id = :id
    #      ORDER BY links.created_at, links.id
    def tokens(self, roles: tuple[str, ...], account_role: str, *, on_sqlite: bool) -> sa.Select[Any]:
        """Build the query for the user's live rows with their tokens, and the database's present moment at the end.

        Args:
            roles: The roles that narrow the rows down: the id, the provider, or both.
            account_role: The role to whose text the tokens are bound.
            on_sqlite: Whether the database is SQLite.
        """
        return self._with_tokens(self.listing(roles), account_role, on_sqlite=on_sqlite)

    def _with_tokens(self, rows: sa.Select[Any], account_role: str, *, on_sqlite: bool) -> sa.Select[Any]:
        """Add to a query what the vault reads of each row: what its tokens are bound to, and the tokens."""
        now: sa.ColumnElement[Any] = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        if on_sqlite:
            now = sa.func.strftime(_SQLITE_NOW, sa.literal_column("'now'"), type_=sa.Text)
        found = [self._c[account_role].label("account_key"), *(self._read(role) for role in TOKEN_ROLES)]
        stored = [column.label(f"seen_{role}") for role, column in self.compared.items() if column is not self._c[role]]
        return rows.add_columns(*found, *stored, now.label("now"))

    @cached_property
    def compared(self) -> dict[str, sa.ColumnElement[Any]]:
        """The columns of tokens by role, in the form in which a later statement can compare them.

        A type of the application's own may write one text in two ways, as one that encrypts does. So what the database
        has is compared, without the type.
        """
        columns = {role: self._c[role] for role in SEALED_ROLES if role in self._c}
        return {
            role: sa.type_coerce(column, sa.types.NullType()) if works_on_values(column.type) else column
            for role, column in columns.items()
        }

    def _read(self, role: str) -> sa.ColumnElement[Any]:
        """Return the column of a role: null if there is none, and masked if it is for tokens."""
        if role not in self._c:
            return sa.null().label(role)
        return (concealed(self._c[role]) if role in SEALED_ROLES else self._c[role]).label(role)

    def replace(self, shape: Shape) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that stores other tokens of the same grant, if the row has those that were read.

        Args:
            shape: The shape of the call, with the roles that it writes.
        """
        c = self._c
        values: dict[sa.Column[Any], Any] = {c[role]: self.bind(role) for role in shape.credentials}
        if self._mapping.written("updated_at"):
            values[c["updated_at"]] = self.bind("updated_at")
        if self._mapping.counts_writes:
            values[c["version"]] = self._risen()
        return (
            sa.update(self._t)
            .where(self._is_named(), self.live(), *self._still_sealed())
            .values(self._with_onupdate(values))
            .returning(c["id"])
        )

    def _still_sealed(self) -> list[Condition]:
        return [
            column.is_not_distinct_from(sa.bindparam(f"al_seen_{role}", type_=column.type))
            for role, column in self.compared.items()
        ]
