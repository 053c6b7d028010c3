"""Read from the database's catalogue which columns a unique index or constraint is on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from accountlink.values.facts import EXPRESSION, Failure, UniqueIndex

_POSTGRESQL: Final = sa.text("""
    SELECT ns.nspname AS schema, root.relname AS table, root.relrowsecurity AS row_security,
           ARRAY(SELECT COALESCE(a.attname::text, '(expression)')
                   FROM unnest(index.indkey) WITH ORDINALITY AS k (attnum, place)
                   LEFT JOIN pg_attribute a ON a.attrelid = index.indrelid AND a.attnum = k.attnum AND k.attnum > 0
                  WHERE k.place <= index.indnkeyatts
                  ORDER BY k.place) AS columns,
           ARRAY(SELECT a.attname::text
                   FROM unnest(index.indkey, index.indcollation, index.indclass) AS k (attnum, compared_by, class)
                   JOIN pg_attribute a ON a.attrelid = index.indrelid AND a.attnum = k.attnum
                   JOIN pg_opclass class ON class.oid = k.class
                   JOIN pg_type compared ON compared.oid = class.opcintype
                   LEFT JOIN pg_collation c ON c.oid = k.compared_by
                  WHERE NOT COALESCE(c.collisdeterministic, true) OR compared.typname = 'citext') AS loose,
           ARRAY(SELECT a.attname::text
                   FROM pg_depend d
                   JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = index.indexrelid
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = index.indrelid) AS reads,
           pg_get_expr(index.indpred, index.indrelid) AS condition
      FROM pg_class named
      JOIN pg_namespace named_ns ON named_ns.oid = named.relnamespace AND named_ns.nspname = :schema
      JOIN pg_index index ON index.indexrelid = named.oid
      JOIN pg_class root ON root.oid = COALESCE(pg_partition_root(index.indrelid), index.indrelid)
      JOIN pg_namespace ns ON ns.oid = root.relnamespace
     WHERE named.relname = :name
""")  # the catalogue's names are compared, never the constraint's meaning

_SQLITE_INDEXES: Final = sa.text("""
    SELECT listed.name, made.sql
      FROM pragma_index_list(:t) listed
      LEFT JOIN sqlite_master made ON made.type = 'index' AND made.name = listed.name
     WHERE listed."unique" ORDER BY listed.partial
""")
_SQLITE_PARTS: Final = sa.text("SELECT name, coll FROM pragma_index_xinfo(:i) WHERE key ORDER BY seqno")
_SQLITE_COLUMNS: Final = sa.text("SELECT name FROM pragma_table_info(:t)")
_ISOLATION: Final = sa.text("SELECT current_setting('transaction_isolation')")


def absent_tables(connection: sa.Connection, tables: Sequence[sa.Table]) -> list[str]:
    """Return the names of the tables that the connection does not find in the database."""
    inspector = sa.inspect(connection)
    wanted = ((connection.schema_for_object(table), table.name) for table in tables)
    missing = [(schema, name) for schema, name in wanted if not inspector.has_table(name, schema=schema)]
    return [name if schema is None else f"{schema}.{name}" for schema, name in missing]


def unique_index(connection: sa.Connection, failure: Failure) -> UniqueIndex | None:
    """Return the index that a unique violation names, or ``None`` if it is no longer in the catalogue."""
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
        loose=frozenset(found.loose),
        reads=frozenset(found.reads),
        where=found.condition,
    )


def _sqlite_index(connection: sa.Connection, failure: Failure) -> UniqueIndex | None:
    """Find an index by the columns that SQLite's error names, or by the name of an index on expressions."""
    table = failure.table
    if table is None:
        query = "SELECT tbl_name FROM sqlite_master WHERE type = 'index' AND name = :name"
        table = connection.execute(sa.text(query), {"name": failure.constraint}).scalar()
        if table is None:
            return None
    # A full index refuses every row that a partial one on the same columns refuses, so it comes first.
    listed: Any = connection.execute(_SQLITE_INDEXES, {"t": table})
    for name, sql in listed.all():
        parts = connection.execute(_SQLITE_PARTS, {"i": name}).all()
        columns = tuple(column or EXPRESSION for column, _ in parts)
        if columns == failure.columns or name == failure.constraint:
            return UniqueIndex(
                name=name,
                schema=None,
                table=table,
                columns=columns,
                loose=frozenset(column for column, collation in parts if column and collation.upper() != "BINARY"),
                reads=_sqlite_reads(connection, table, sql),
                where=_sqlite_condition(sql),
            )
    return UniqueIndex(name=None, schema=None, table=table, columns=failure.columns)


def _sqlite_reads(connection: sa.Connection, table: str, sql: str | None) -> frozenset[str]:
    """Return the columns that an index's SQL names, because SQLite's catalogue lists none for an expression."""
    words = {word.lower() for word in re.findall(r"\w+", sql or "")}
    return frozenset(name for (name,) in connection.execute(_SQLITE_COLUMNS, {"t": table}) if name.lower() in words)


def _sqlite_condition(sql: str | None) -> str | None:
    found = re.search(r"\)\s*WHERE\b(.*)", sql or "", re.DOTALL | re.IGNORECASE)
    return None if found is None else found[1]


def keeps_snapshot(connection: sa.Connection) -> bool:
    """Say whether the transaction reads one snapshot throughout, and so may not see the row that refused a write."""
    if connection.dialect.name == "sqlite":
        return False  # its one writer sees everything
    level = connection.execute(_ISOLATION).scalar_one()
    return level in ("repeatable read", "serializable")
