"""Which columns a constraint is unique on: names mean nothing, columns do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from accountlink.core.facts import Failure, UniqueIndex

_EXPRESSION: Final = "(expression)"


_POSTGRESQL: Final = sa.text("""
    SELECT ns.nspname AS schema, root.relname AS table, root.relrowsecurity AS row_security,
           ARRAY(SELECT COALESCE(a.attname::text, '(expression)')
                   FROM unnest(index.indkey) WITH ORDINALITY AS k (attnum, place)
                   LEFT JOIN pg_attribute a ON a.attrelid = index.indrelid AND a.attnum = k.attnum AND k.attnum > 0
                  WHERE k.place <= index.indnkeyatts
                  ORDER BY k.place) AS columns
      FROM pg_class named
      JOIN pg_namespace named_ns ON named_ns.oid = named.relnamespace AND named_ns.nspname = :schema
      JOIN pg_index index ON index.indexrelid = named.oid
      JOIN pg_class root ON root.oid = COALESCE(pg_partition_root(index.indrelid), index.indrelid)
      JOIN pg_namespace ns ON ns.oid = root.relnamespace
     WHERE named.relname = :name
""")  # the catalogue's names are compared, never the constraint's meaning

_ISOLATION: Final = sa.text("SELECT current_setting('transaction_isolation')")


def absent_tables(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[str]:
    """Return the names of those tables that the database does not have, where the connection would look for them."""
    inspector = sa.inspect(connection)
    wanted = ((connection.schema_for_object(table), table.name) for table in tables)
    missing = [(schema, name) for schema, name in wanted if not inspector.has_table(name, schema=schema)]
    return [name if schema is None else f"{schema}.{name}" for schema, name in missing]


def unique_index(connection: sa.Connection, failure: Failure) -> UniqueIndex | None:
    """Return the index that a unique violation names, or ``None`` when the catalogue has it no more."""
    if connection.dialect.name == "sqlite":
        return _sqlite_index(connection, failure)
    found = connection.execute(_POSTGRESQL, {"schema": failure.schema, "name": failure.constraint}).first()
    if found is None:
        return None
    return UniqueIndex(
        name=failure.constraint,
        schema=found.schema,
        table=found.table,
        columns=tuple(found.columns),
        row_security=found.row_security,
    )


def _sqlite_index(connection: sa.Connection, failure: Failure) -> UniqueIndex | None:
    """SQLite names the columns, or an index on expressions; the rest is looked up by the one or the other."""
    table = failure.table
    if table is None:
        query = "SELECT tbl_name FROM sqlite_master WHERE type = 'index' AND name = :name"
        table = connection.execute(sa.text(query), {"name": failure.constraint}).scalar()
        if table is None:
            return None
    # A full index refuses whatever a partial one on the same columns does, so it comes first.
    listed: Any = connection.execute(
        sa.text('SELECT * FROM pragma_index_list(:t) WHERE "unique" ORDER BY partial'), {"t": table}
    )
    for index in listed.mappings().all():
        info = connection.execute(
            sa.text("SELECT name FROM pragma_index_info(:i) ORDER BY seqno"), {"i": index["name"]}
        )
        columns = tuple(name or _EXPRESSION for (name,) in info)
        if columns == failure.columns or index["name"] == failure.constraint:
            return UniqueIndex(name=index["name"], schema=None, table=table, columns=columns)
    return UniqueIndex(name=None, schema=None, table=table, columns=failure.columns)


def keeps_snapshot(connection: sa.Connection) -> bool:
    """Whether the transaction reads one snapshot from its start to its end, and so may not see what refused a write."""
    if connection.dialect.name == "sqlite":
        return False  # its one writer sees everything
    level = connection.execute(_ISOLATION).scalar_one()
    return level in ("repeatable read", "serializable")
