"""Asks the rows what the catalogue cannot tell: duplicates, addresses out of normal form, NULL, the form of tokens."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.doctor.case import Case, Duplicates, OtherTokens, Rows
from accountlink.doctor.judge.subject import Need, Subject, Tokens
from accountlink.doctor.schema import Column, Kind
from accountlink.errors import InvalidIdentity
from accountlink.values.email import normalize_email

_ODD_ADDRESSES: Final = 10_000
"""The number of addresses that are brought into normal form here; a table with more of them has its finding anyway."""
_CAPITALS: Final = {"postgresql": "[A-Z]", "sqlite": "*[A-Z]*"}
_NOT_PLAIN: Final = {"postgresql": "[^!-~]", "sqlite": "*[^!-~]*"}
_ENVELOPE: Final = r"^al[0-9]+\."
"""The beginning of an envelope of any format, as :mod:`accountlink.vault.envelope` tells it. That module needs the
library ``cryptography``, and this one does not."""


def ask_rows(connection: sa.Connection, case: Case) -> Rows:
    """Count what is wrong in the rows themselves: each question reads the table, and only what is open is asked.

    Where row-level security applies nothing is asked: what it shows would be no count, and asking may fail.
    """
    if case.table.row_security.active:
        return Rows()
    table = _Table(case.subject, connection.dialect.name)
    texts = [each.name for each in case.table.columns if each.name in case.subject.token_columns and _is_text(each)]
    plain, odd = table.out_of_form(connection)
    sealed = table.sealed(connection, texts) if plain and case.subject.sealed else 0
    if sealed:
        plain, odd = 0, plain + odd
    return Rows(
        plain=plain,
        odd=odd,
        duplicates={
            need: table.duplicates(connection, need, lowers=not sealed)
            for need in case.subject.needs
            if not case.protected(need) or (plain and case.subject.normal in need.columns)
        },
        nulls=table.nulls(connection, _nullable_keys(case)),
        tokens=table.other_tokens(connection, texts),
        sealed=sealed,
    )


def _nullable_keys(case: Case) -> list[str]:
    """Return the columns of unmet needs that take NULL."""
    names = {name for need in case.subject.needs if not case.protected(need) for name in need.columns}
    return sorted(column.name for column in case.table.columns if column.name in names and column.nullable)


def _is_text(column: Column) -> bool:
    """Say whether a column contains the very text that was written to it."""
    return column.kind in (Kind.TEXT, Kind.PADDED)


class _Table:
    """Ask about the rows of a table, by the database's own names."""

    def __init__(self, subject: Subject, dialect: str) -> None:
        self._subject = subject
        self._dialect = dialect
        names = {*subject.roles.values(), *(name for need in subject.needs for name in need.columns)}
        self._table = sa.table(subject.table, *(sa.column(name) for name in sorted(names)), schema=subject.schema)

    def _live(self) -> list[sa.ColumnElement[bool]]:
        marks: list[sa.ColumnElement[bool]] = []
        if (name := self._subject.roles.get("deleted_at")) is not None:
            marks.append(self._table.c[name].is_(None))
        if (name := self._subject.roles.get("active")) is not None:
            marks.append(self._table.c[name].is_(sa.true()))
        return marks

    def duplicates(self, connection: sa.Connection, need: Need, *, lowers: bool) -> Duplicates:
        """Count the keys that several rows share.

        Args:
            connection: The connection.
            need: The columns of the key.
            lowers: Whether the repair will bring addresses into normal form.
        """
        columns = [self._compared(name) if lowers else self._table.c[name] for name in need.columns]
        there = [self._table.c[name].is_not(None) for name in need.columns]
        count = sa.func.count().label("n")
        groups = (
            sa.select(count)
            .select_from(self._table)
            .where(*there, *(self._live() if need.live else ()))
            .group_by(*columns)
            .having(sa.func.count() > 1)
            .subquery()
        )
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(groups.c.n - 1), 0)).select_from(groups)
        found = connection.execute(query).one()
        return Duplicates(groups=int(found[0]), rows=int(found[1]))

    def _compared(self, name: str) -> sa.ColumnElement[Any]:
        """Return a column as the key compares it: an address in the form that the repair will give it."""
        column = self._table.c[name]
        if name != self._subject.normal:
            return column
        lowered = sa.func.lower(sa.collate(column, "C") if self._dialect == "postgresql" else column)
        return sa.case((self._plain(column), lowered), else_=column)

    def _plain(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Say whether an address needs ``lower()`` alone to be in normal form."""
        return sa.and_(self._like(column, _CAPITALS), sa.not_(self._like(column, _NOT_PLAIN)))

    def out_of_form(self, connection: sa.Connection) -> tuple[int, int]:
        """Count the addresses that ``lower()`` alone brings into normal form, and those that need more."""
        if self._subject.normal is None:
            return 0, 0
        column = self._table.c[self._subject.normal]
        count_plain = sa.select(sa.func.count()).select_from(self._table).where(self._plain(column))
        count = connection.execute(count_plain).scalar_one()
        odd = sa.select(column, sa.func.count()).where(self._like(column, _NOT_PLAIN)).group_by(column)
        values = connection.execute(odd.limit(_ODD_ADDRESSES)).all()
        return int(count), sum(number for value, number in values if not _is_normal(value))

    def _like(self, column: sa.ColumnElement[Any], pattern: dict[str, str]) -> sa.ColumnElement[bool]:
        """Match byte by byte, whatever the column's own type and collation are."""
        text = sa.cast(column, sa.Text)
        if self._dialect == "sqlite":
            return text.op("GLOB", is_comparison=True)(sa.literal(pattern["sqlite"]))
        return sa.collate(text, "C").op("~", is_comparison=True)(sa.literal(pattern["postgresql"]))

    def nulls(self, connection: sa.Connection, names: list[str]) -> dict[str, int]:
        """Count the rows that have NULL in a column."""
        if not names:
            return {}
        counts = [(sa.func.count() - sa.func.count(self._table.c[name])).label(f"n{i}") for i, name in enumerate(names)]
        select: Any = sa.select
        found = connection.execute(select(*counts).select_from(self._table)).one()
        return {name: int(count) for name, count in zip(names, found, strict=True) if count}

    def other_tokens(self, connection: sa.Connection, columns: list[str]) -> OtherTokens:
        """Count, in one query, the rows with a token in another form than the table's linker writes.

        Args:
            connection: The connection.
            columns: The columns of tokens.
        """
        if self._subject.tokens is None or not columns:
            return OtherTokens()
        test = self._is_envelope if self._subject.tokens is Tokens.PLAIN else self._is_plain_text
        each = [test(self._table.c[name]) for name in columns]
        counts = [sa.func.count(sa.case((found, 1))) for found in each]
        select: Any = sa.select
        query = select(sa.func.count(), *counts).select_from(self._table).where(sa.or_(*each))
        rows, *numbers = connection.execute(query).one()
        found_in = (name for name, number in zip(columns, numbers, strict=True) if number)
        return OtherTokens(rows=int(rows), columns=tuple(found_in))

    def sealed(self, connection: sa.Connection, columns: list[str]) -> int:
        """Count the rows with a sealed token beside an address that ``lower()`` would change."""
        if not columns:
            return 0
        address = self._table.c[self._subject.normal or ""]
        sealed = sa.or_(*(self._is_envelope(self._table.c[name]) for name in columns))
        query = sa.select(sa.func.count()).select_from(self._table).where(self._plain(address), sealed)
        return int(connection.execute(query).scalar_one())

    def _is_plain_text(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Say whether a column contains a token that is no envelope; ``NULL`` and empty text are no token."""
        return sa.and_(sa.cast(column, sa.Text) != "", sa.not_(self._is_envelope(column)))

    def _is_envelope(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Say whether a column's text begins like an envelope."""
        if self._dialect == "postgresql":
            return self._like(column, {"postgresql": _ENVELOPE})
        text = sa.cast(column, sa.Text)  # GLOB has no sign for "one or more digits"
        after = sa.func.ltrim(sa.func.substr(text, 3), "0123456789")
        return sa.and_(self._like(column, {"sqlite": "al[0-9]*"}), sa.func.substr(after, 1, 1) == ".")


def _is_normal(address: str) -> bool:
    try:
        return normalize_email(address) == address
    except InvalidIdentity:
        return False
