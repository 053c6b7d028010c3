"""Keep one number per link that rises at each transfer, for tables of links without a version column.

A link without a row in the ledger has the epoch 0. A transfer, a removal and a restore raise the epoch of their link,
in the same statement or transaction. After that a transfer token for the earlier epoch is refused.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.tables.id_text import id_text
from accountlink.tables.naming import Names
from accountlink.tables.own_tables import own_table, with_columns
from accountlink.tables.upserts import insert_or_update

LEDGER_NAME: Final = "accountlink_transfer_ledger"
_COLUMNS: Final = ("table_name", "link_id", "epoch", "changed_at")
_ONE: Final = sa.literal_column("1", sa.BigInteger)
_ZERO: Final = sa.literal_column("0", sa.BigInteger)


def transfer_ledger(metadata: sa.MetaData, *, name: str = LEDGER_NAME, schema: str | None = None) -> sa.Table:
    """Make the ledger's table on your metadata, so that ``create_all`` and Alembic's autogenerate see it.

    One ledger serves any number of linkers. It holds the names of tables, link ids and counters, no user and no e-mail.
    A row that has not changed for longer than a transfer token lives can be deleted.

    Args:
        metadata: The metadata of your tables.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``AccountLinker(ledger=...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, or the name is longer than the 63 bytes that
            PostgreSQL keeps.
    """
    return own_table(
        "transfer_ledger",
        metadata,
        sa.Column("table_name", sa.Text, primary_key=True),
        sa.Column("link_id", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        name=name,
        schema=schema,
        check=checked_ledger,
    )


def checked_ledger(table: object) -> sa.Table:
    """Return a table that is a ledger, or refuse it.

    Raises:
        ConfigurationError: The table is not a ledger.
    """
    return with_columns(table, _COLUMNS, "ledger=... takes the table that transfer_ledger(Base.metadata) makes")


class Ledger:
    """Build the parts of statements that read and raise the epochs of one table's links.

    The parameter ``al_links`` brings the name under which the ledger stores that table, because the table may be in
    another schema on another connection.
    """

    def __init__(self, table: sa.Table, names: Names) -> None:
        self._table = table
        self._names = names
        self._name = sa.bindparam("al_links", type_=sa.Text)

    def epoch(self, link_id: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
        """Build the expression that reads the epoch of a link in the statement's snapshot."""
        c = self._table.c
        found = sa.select(c.epoch).where(c.table_name == self._name, c.link_id == id_text(link_id))
        return sa.func.coalesce(found.correlate_except(self._table).scalar_subquery(), _ZERO)

    def raised_by(
        self, source: sa.CTE, *conditions: sa.ColumnElement[bool], read: sa.ColumnElement[int] | None = None
    ) -> sa.CTE:
        """Raise the epochs of the links that another part of the statement returns (PostgreSQL).

        Args:
            source: That part, with a column ``id``.
            conditions: Which of its rows count.
            read: Raise only where the epoch is still this one, also by what another transaction has committed since.

        Returns:
            A part that has a row for each epoch that was raised.
        """
        rows = sa.select(self._name, id_text(source.c.id), _ONE).where(*conditions)
        still = None if read is None else self._table.c.epoch == read
        made = insert_or_update(self._table, key=_COLUMNS[:2], values=self._risen(), where=still)
        raised = made.from_select(list(_COLUMNS[:3]), rows, include_defaults=False)
        return raised.returning(self._table.c.epoch).cte(self._names("raised"))

    def raise_one(self, link_id: sa.ColumnElement[Any]) -> sa.Insert:
        """Raise the epoch of one link (SQLite, in a transaction that holds the write lock)."""
        values = dict(zip(_COLUMNS, (self._name, id_text(link_id), _ONE), strict=False))
        return insert_or_update(self._table, key=_COLUMNS[:2], values=self._risen()).values(values)

    def _risen(self) -> dict[str, sa.ColumnElement[Any]]:
        return {"epoch": self._table.c.epoch + _ONE, "changed_at": sa.func.now()}
