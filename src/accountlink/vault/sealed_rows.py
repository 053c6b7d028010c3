"""Read the rows of a table whose tokens are to be sealed anew, and write them if nothing has changed them since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final

import sqlalchemy as sa

from accountlink.tables.concealing import concealed
from accountlink.tables.exact import exactly
from accountlink.tables.fitting import limit_of
from accountlink.tables.fragments import ONE, select
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.rows import present, stored_name, text_of
from accountlink.tables.slugs import slug_in, slugs_of
from accountlink.tables.type_layers import works_on_values
from accountlink.values.secrecy import ConcealedText, Parameters
from accountlink.vault.envelope import BoundTo
from accountlink.vault.sealing import SEALED_ROLES, TableVault

Begins = Callable[[Callable[[str], sa.ColumnElement[bool]]], sa.ColumnElement[bool]]
"""Builds the condition that a text is to be sealed, from a function for "its first characters are these"."""
Key = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedRow:
    """Hold what one row had when it was read.

    Attributes:
        key: The values by which the row is found again.
        bound_to: What its envelopes are bound to; ``None`` if it lacks a user, a provider or an account.
        texts: The texts of its sealed columns, by role.
    """

    key: Key
    bound_to: BoundTo | None
    texts: Mapping[str, str | None] = field(repr=False)


class SealedRows:
    """Read and write the rows of one table, each found by its key.

    Args:
        table: The table.
        key: The columns of the key.
        bound: The three expressions for the user, the provider and the account key.
        bind: Makes of their values what a row's envelopes are bound to.
        sealed: The columns that contain envelopes, by role.
        begins: Builds the condition that a text is to be sealed.
        conditions: Further conditions. They may use the parameters ``al_links``, the name under which tables of the
            library's own store the table of links, and ``al_now``.
        links: The table of links.
    """

    def __init__(
        self,
        table: sa.Table,
        *,
        key: Sequence[sa.Column[Any]],
        bound: Sequence[sa.ColumnElement[Any]],
        bind: Callable[..., BoundTo],
        sealed: Mapping[str, sa.Column[Any]],
        begins: Begins,
        links: sa.Table,
        conditions: Iterable[sa.ColumnElement[bool]] = (),
    ) -> None:
        self.table: Final = table
        self.limits: Final = {role: limit_of(column) for role, column in sealed.items()}
        """The number of characters that each column takes, by role; ``None`` for any number."""
        self._key: Final = tuple(key)
        self._bound: Final = tuple(bound)
        self._bind: Final = bind
        self._sealed: Final = dict(sealed)
        self._links: Final = links
        self._conditions: Final = tuple(conditions)
        self._due: Final = sa.or_(*(_is_due(column, begins) for column in sealed.values()))
        self._after: Final = [sa.bindparam(f"al_after_{n}", type_=each.type) for n, each in enumerate(self._key)]
        self._updating: Final = self._update()
        self._until: Final = [sa.bindparam(f"al_until_{n}", type_=each.type) for n, each in enumerate(self._key)]

    # -- statements ---------------------------------------------------------------------------------------------------

    def _rows(self) -> sa.Select[Any]:
        texts = [concealed(column) for column in self._sealed.values()]
        return select(*self._key, *self._bound, *texts).where(self._due, *self._conditions).order_by(*self._key)

    def _ordered(self, columns: Sequence[Any], values: Sequence[Any]) -> tuple[Any, Any]:
        """Return both sides of a comparison of keys."""
        return (columns[0], values[0]) if len(columns) == 1 else (sa.tuple_(*columns), sa.tuple_(*values))

    def _update(self) -> sa.Update:
        """Build the UPDATE of the sealed columns alone.

        It names the table by a copy that has these columns alone, without the application's. SQLAlchemy would otherwise
        write each ``onupdate``.
        """
        columns = (sa.Column(column.name, column.type) for column in (*self._key, *self._sealed.values()))
        bare = sa.Table(self.table.name, sa.MetaData(), *columns, schema=self.table.schema)
        found = [bare.c[each.name] == sa.bindparam(f"al_key_{n}", type_=each.type) for n, each in enumerate(self._key)]
        values = {
            column.name: sa.bindparam(f"al_new_{role}", type_=column.type) for role, column in self._sealed.items()
        }
        return sa.update(bare).where(*found).values(values)

    # -- work, on a connection ----------------------------------------------------------------------------------------

    def count(self, connection: sa.Connection) -> tuple[int, int]:
        """Return the number of rows, and of those that are to be sealed."""
        counted = select(sa.func.count(), sa.func.count(sa.case((self._due, ONE)))).select_from(self.table)
        rows, due = connection.execute(counted.where(*self._conditions), self._parameters(connection)).one()
        return rows, due

    def read(self, connection: sa.Connection, *, after: Key | None, limit: int) -> list[SealedRow]:
        """Return the next rows that are to be sealed, in the order of their keys.

        Args:
            connection: The connection.
            after: The key after which to begin; ``None`` for the first rows.
            limit: The most rows to return.
        """
        query, parameters = self._rows().limit(limit), self._parameters(connection)
        return self._found(connection, *self._begun(query, parameters, after))

    def write(
        self,
        connection: sa.Connection,
        *,
        after: Key | None,
        until: Key,
        sealed: Sequence[tuple[SealedRow, Mapping[str, str]]],
    ) -> int:
        """Write the rows that still are as they were read, and return how many those are.

        The rows are locked and read again first (on SQLite the transaction has the database's write lock). A row that
        another transaction has locked is left alone, so that nothing here ever waits for a lock while it has one: no
        transaction of the application's can end in a deadlock because of it.

        Args:
            connection: A connection in a transaction whose statements see what was committed before them.
            after: The key after which the rows were read.
            until: The key of the last of them.
            sealed: The rows with their new texts, by role.
        """
        query, parameters = self._begun(self._rows(), self._parameters(connection), after)
        here, last = self._ordered(self._key, self._until)
        parameters.update({f"al_until_{n}": value for n, value in enumerate(until)})
        locking = query.where(here <= last).with_for_update(key_share=True, skip_locked=True)
        found = {row.key: row for row in self._found(connection, locking, parameters)}
        ready = [self._written(row, texts) for row, texts in sealed if found.get(row.key) == row]
        if ready:
            connection.execute(self._updating, ready)
        return len(ready)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _parameters(self, connection: sa.Connection) -> Parameters:
        if not self._conditions:
            return Parameters()
        return Parameters(al_links=stored_name(connection, self._links), al_now=present().astimezone(UTC))

    def _begun(
        self, query: sa.Select[Any], parameters: Parameters, after: Key | None
    ) -> tuple[sa.Select[Any], Parameters]:
        if after is None:
            return query, parameters
        here, last = self._ordered(self._key, self._after)
        return query.where(here > last), Parameters(parameters, **{f"al_after_{n}": v for n, v in enumerate(after)})

    def _found(self, connection: sa.Connection, query: sa.Select[Any], parameters: Parameters) -> list[SealedRow]:
        return [self._row(tuple(row)) for row in connection.execute(query, parameters)]

    def _row(self, values: tuple[Any, ...]) -> SealedRow:
        width = len(self._key)
        user, provider, account = values[width : width + 3]
        is_bound = user is not None and provider is not None and account
        return SealedRow(
            key=values[:width],
            # A CHAR(n) that is mapped as another text type pads the text; the padding is removed.
            bound_to=(
                self._bind(user_id=user, provider=text_of(provider).rstrip(" "), account_key=account)
                if is_bound
                else None
            ),
            texts=dict(zip(self._sealed, values[width + 3 :], strict=True)),
        )

    def _written(self, row: SealedRow, texts: Mapping[str, str]) -> Parameters:
        """Return the parameters that write a row; a column without a new text gets the one that it has."""
        bound = Parameters((f"al_key_{n}", value) for n, value in enumerate(row.key))
        for role, old in row.texts.items():
            new = texts.get(role, old)
            bound[f"al_new_{role}"] = None if new is None else ConcealedText(new)
        return bound


def rows_of_links(mapping: AccountMapping[Any, Any], vault: TableVault, begins: Begins) -> SealedRows:
    """Return the rows of a table of links, dead ones too.

    Args:
        mapping: The columns of the table.
        vault: The vault of the table.
        begins: Builds the condition that a text is to be sealed.
    """
    c = mapping.columns
    provider = slug_in(c["provider"]) if slugs_of(c["provider"].type) else c["provider"]
    return SealedRows(
        mapping.table,
        key=[c["id"]],
        bound=[c["user_id"], provider, c[vault.account_role]],
        bind=vault.bound_to,
        sealed={role: c[role] for role in SEALED_ROLES if role in c},
        begins=begins,
        links=mapping.table,
    )


def rows_of_pending(
    pending: sa.Table, mapping: AccountMapping[Any, Any], vault: TableVault, begins: Begins
) -> SealedRows:
    """Return the rows of a table of pending credentials that a transfer may still use.

    Args:
        pending: The table.
        mapping: The table of links whose claimants they are of.
        vault: The vault of that table.
        begins: Builds the condition that a text is to be sealed.
    """
    c = pending.c
    return SealedRows(
        pending,
        key=[c.table_name, c.user_id, c.provider, c.account_id],
        bound=[c.user_id, c.provider, c.account_id],
        bind=vault.bound_to,
        sealed={role: c[role] for role in SEALED_ROLES},
        begins=begins,
        links=mapping.table,
        conditions=[
            c.table_name == sa.bindparam("al_links", type_=sa.Text),
            c.kept_until >= sa.bindparam("al_now", type_=c.kept_until.type),
        ],
    )


def _is_due(column: sa.Column[Any], begins: Begins) -> sa.ColumnElement[bool]:
    """Build the condition that a column's text is to be sealed, byte by byte whatever its collation.

    Only SQL's first characters are compared: LIKE would take the ``_`` of a key's id for any character. The text of a
    type that converts values is known to Python alone, so that each such text is read.
    """
    if works_on_values(column.type):
        return column.is_not(None)
    return begins(lambda word: exactly(sa.func.substr(column, 1, len(word) or 1), sa.literal(word, sa.Text)))
