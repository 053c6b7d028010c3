"""Bound the doctor's own transaction: it cannot write, and its statements have a time limit."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

LOCK_TIMEOUT: Final = "5s"
"""The server reads an index's definition, and a row, only under a lock, which waits behind a migration's."""
STATEMENT_TIMEOUT: Final = "10s"
"""The time that each question about the catalogue may take; one about the rows reads the whole table."""

_BOUND: Final = sa.text("""
    SELECT pg_catalog.set_config(CAST(:name AS pg_catalog.text), CAST(:value AS pg_catalog.text), true)
     WHERE pg_catalog.current_setting(CAST(:name AS pg_catalog.text)) IN ('0', '0ms')
""").bindparams(sa.bindparam("name", type_=sa.String()), sa.bindparam("value", type_=sa.String()))


def transactional(engine: AsyncEngine) -> AsyncEngine:
    """Return the same engine, with its pool, so that it begins a transaction even if it commits each statement itself.

    In AUTOCOMMIT PostgreSQL makes nothing of ``SET TRANSACTION`` and ``SET LOCAL`` but a warning.
    """
    if engine.dialect.name != "postgresql":
        return engine
    return engine.execution_options(isolation_level="READ COMMITTED")


def begin_reading(connection: sa.Connection, *, rows: bool) -> None:
    """Let a transaction refuse writes, and end what waits too long; nothing of that outlives it.

    A bound that the server, the role, the database or the connection sets itself stays.

    Args:
        connection: A connection that does not commit by itself. One of SQLite is left as it is.
        rows: Whether the rows will be asked, which may take as long as the table is large.
    """
    if connection.dialect.name != "postgresql":
        return
    connection.execute(sa.text("SET TRANSACTION READ ONLY"))
    connection.execute(_BOUND, {"name": "lock_timeout", "value": LOCK_TIMEOUT})
    if not rows:
        connection.execute(_BOUND, {"name": "statement_timeout", "value": STATEMENT_TIMEOUT})
