"""Make the table in which renewals of tokens are coordinated, and in which their results are kept."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from accountlink.tables.own_tables import own_table, with_columns

REFRESHES_NAME: Final = "accountlink_refresh_states"
STATE_KEY: Final = ("table_name", "link_id")
_COLUMNS: Final = (
    *STATE_KEY, "grant_id", "lease_by", "lease_until", "retry_at", "failures", "opaque", "uncertain", "state",
    "provider_code", "since", "refused", "refreshed_at",
)  # fmt: skip


def refresh_states(metadata: sa.MetaData, *, name: str = REFRESHES_NAME, schema: str | None = None) -> sa.Table:
    """Make the table of renewals on your metadata, so that ``create_all`` and Alembic's autogenerate see it.

    One table serves any number of linkers. It gets a row for each link whose tokens are, or were, renewed: the lease,
    the next attempt, and the health of the grant. It has no token and no user.

    Args:
        metadata: The metadata of your tables.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``AccountLinker(refreshes=...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, or the name is longer than the 63 bytes that
            PostgreSQL keeps.
    """
    moment = sa.DateTime(timezone=True)
    return own_table(
        "refresh_states",
        metadata,
        *(sa.Column(key, sa.Text, primary_key=True) for key in STATE_KEY),
        sa.Column("grant_id", sa.Text, nullable=False),
        sa.Column("lease_by", sa.Text),
        sa.Column("lease_until", moment),
        sa.Column("retry_at", moment),
        sa.Column("failures", sa.Integer, server_default="0", nullable=False),
        sa.Column("opaque", sa.Integer, server_default="0", nullable=False),
        sa.Column("uncertain", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("state", sa.Text, server_default="ok", nullable=False),
        sa.Column("provider_code", sa.Text),
        sa.Column("since", moment),
        sa.Column("refused", sa.Text),
        sa.Column("refreshed_at", moment),
        sa.Index(None, "table_name", "state"),
        name=name,
        schema=schema,
        check=checked_refreshes,
    )


def checked_refreshes(table: object) -> sa.Table:
    """Return a table of renewals, or refuse another one.

    Raises:
        ConfigurationError: It is another table.
    """
    return with_columns(table, _COLUMNS, "refreshes=... takes the table that refresh_states(Base.metadata) makes")
