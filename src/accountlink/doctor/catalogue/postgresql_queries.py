"""The two queries that read PostgreSQL's catalogue, the same for 15 and later.

All that they name is in ``pg_catalog``, and says so: an application's search path may put its own schema first.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

FIND: Final = sa.text("""
    WITH asked (oid) AS (
        SELECT CASE WHEN CAST(:schema AS pg_catalog.text) IS NULL
                    THEN CAST(pg_catalog.to_regclass(pg_catalog.quote_ident(:table)) AS pg_catalog.oid)
                    ELSE (SELECT c.oid  -- to_regclass would fail where the role may not use the schema
                            FROM pg_catalog.pg_class c
                            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                           WHERE n.nspname = CAST(:schema AS pg_catalog.name)
                             AND c.relname = CAST(:table AS pg_catalog.name)) END
    )
    SELECT CAST(pg_catalog.current_setting('server_version_num') AS integer) AS version,
           CAST(CURRENT_USER AS pg_catalog.text) AS role,
           CAST(c.oid AS bigint) AS oid,
           CAST(n.nspname AS pg_catalog.text) AS schema,
           CAST(c.relname AS pg_catalog.text) AS name,
           CAST(c.relkind AS pg_catalog.text) AS kind,
           c.relispartition AS partition,
           c.relrowsecurity AS row_security,
           pg_catalog.row_security_active(c.oid) AS row_security_active,
           c.relkind IN ('r', 'f')
               AND EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid) AS inherited,
           EXISTS (SELECT FROM pg_catalog.pg_trigger g
                    WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D'
                      AND g.tgtype & 3 = 3) AS rewritten,  -- BEFORE, for each row
           (SELECT CAST(pg_catalog.json_agg(a.attname ORDER BY k.place) AS pg_catalog.text)
              FROM pg_catalog.pg_partitioned_table p
             CROSS JOIN pg_catalog.unnest(CAST(p.partattrs AS smallint[])) WITH ORDINALITY AS k (attnum, place)
              LEFT JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = p.partrelid AND a.attnum = k.attnum AND k.attnum > 0
             WHERE p.partrelid = c.oid) AS partition_key,
           (SELECT CAST(pg_catalog.json_agg(p.name) AS pg_catalog.text)
              FROM (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p (name)
             WHERE pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')
               AND (pg_catalog.has_table_privilege(c.oid, p.name)
                    OR p.name <> 'DELETE'  -- which is not granted by columns
                       AND (SELECT pg_catalog.bool_and(pg_catalog.has_column_privilege(c.oid, a.attnum, p.name))
                              FROM pg_catalog.pg_attribute a
                             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped))) AS may,
           (SELECT CAST(pg_catalog.json_agg(t.name) AS pg_catalog.text)
              FROM pg_catalog.json_array_elements_text(CAST(:names AS pg_catalog.json)) AS t (name)
             WHERE EXISTS (SELECT FROM pg_catalog.pg_class o
                            WHERE o.relname = CAST(t.name AS pg_catalog.name)
                              AND o.relnamespace = COALESCE(c.relnamespace, (
                                      SELECT s.oid FROM pg_catalog.pg_namespace s
                                       WHERE s.nspname = COALESCE(CAST(:schema AS pg_catalog.name),
                                                                  pg_catalog.current_schema()))))
                OR EXISTS (SELECT FROM pg_catalog.pg_constraint o
                            WHERE o.conrelid = c.oid AND o.conname = CAST(t.name AS pg_catalog.name))) AS taken
      FROM asked
      LEFT JOIN pg_catalog.pg_class c ON c.oid = asked.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
""").bindparams(  # String: its cast, VARCHAR, is a keyword, which no schema can take
    sa.bindparam("table", type_=sa.String()),
    sa.bindparam("schema", type_=sa.String()),
    sa.bindparam("names", type_=sa.String()),
)
"""The question about the table that a name leads to, the role that asks, and the names that are taken.

Its ``oid`` is null where no table has the name.
"""


_COLUMNS: Final = """
    SELECT a.attname AS name,
           pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
           b.typname AS base, b.typtype = 'e' AS enum, b.typname = 'citext' AS citext,
           b.typnamespace = CAST('pg_catalog' AS pg_catalog.regnamespace) AS builtin,
           layer.modifier,
           -- since 18 NOT NULL can be NOT VALID: old rows may hold a null
           a.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                                         WHERE k.conrelid = a.attrelid AND k.contype = 'n' AND NOT k.convalidated
                                           AND k.conkey = ARRAY[a.attnum])
               OR EXISTS (SELECT FROM layer l JOIN pg_catalog.pg_type d ON d.oid = l.type
                           WHERE l.attnum = a.attnum AND d.typnotnull) AS not_null,
           (SELECT pg_catalog.json_agg(pg_catalog.pg_get_expr(k.conbin, 0))
              FROM layer l
              JOIN pg_catalog.pg_constraint k ON k.contypid = l.type AND k.contype = 'c' AND k.convalidated
             WHERE l.attnum = a.attnum) AS domain_checks,
           pg_catalog.concat(pg_catalog.format_type(b.oid, -1),  -- -1: of any length
                             CASE WHEN a.attcollation <> b.typcollation
                                  THEN ' COLLATE ' || CAST(CAST(c.oid AS pg_catalog.regcollation)
                                                           AS pg_catalog.text) END) AS any_length,
           CASE WHEN a.attcollation <> b.typcollation THEN c.collname END AS collation,
           COALESCE(c.collisdeterministic, true) AND b.typname <> 'citext' AS exact,
           (SELECT pg_catalog.json_agg(e.enumlabel ORDER BY e.enumsortorder)
              FROM pg_catalog.pg_enum e WHERE e.enumtypid = b.oid) AS labels,
           a.attgenerated <> '' AS generated,
           a.attidentity <> '' AS identity,
           COALESCE(pg_catalog.pg_get_expr(f.adbin, f.adrelid), pg_catalog.pg_get_expr(t.typdefaultbin, 0)) AS filled
      FROM asked
      JOIN pg_catalog.pg_attribute a ON a.attrelid = asked.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
      JOIN layer ON layer.attnum = a.attnum
      JOIN pg_catalog.pg_type b ON b.oid = layer.type AND b.typtype <> 'd'
      LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
      LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
     ORDER BY a.attnum
"""

# A failed concurrent build leaves indisvalid false, and indisready as far as it came; a partitioned table's index is
# not valid until every partition has its part of it; indislive goes first when an index is dropped concurrently.
_INDEXES: Final = """
    SELECT x.relname AS name, pg_catalog.quote_ident(x.relname) AS quoted, x.relkind = 'I' AS spans,
           (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                       'column', a.attname,
                       'sql', CASE WHEN a.attname IS NULL THEN pg_catalog.pg_get_indexdef(x.oid, part.place, true) END,
                       -- citext by what compares: its column can be indexed as text too
                       'exact', COALESCE(c.collisdeterministic, true) AND t.typname <> 'citext',
                       'type', CASE WHEN below.typtype <> 'p' THEN pg_catalog.format_type(below.type, -1) END,
                       'order', pg_catalog.concat(
                           ' COLLATE ' || CAST(CAST(c.oid AS pg_catalog.regcollation) AS pg_catalog.text),
                           ' USING OPERATOR(' || pg_catalog.quote_ident(below.nspname) || '.' || below.oprname || ')'))
                     ORDER BY part.place)
              FROM pg_catalog.generate_series(1, i.indnkeyatts) AS part (place)
              LEFT JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = i.indrelid AND a.attnum = i.indkey[part.place - 1] AND a.attnum > 0
              LEFT JOIN pg_catalog.pg_collation c ON c.oid = i.indcollation[part.place - 1]
              JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[part.place - 1]
              JOIN pg_catalog.pg_type t ON t.oid = o.opcintype
              LEFT JOIN LATERAL (  -- what puts values in the index's order; an exclusion constraint tells what is equal
                       SELECT b.oprname, n.nspname, m.amoplefttype AS type, l.typtype
                         FROM pg_catalog.pg_amop m
                         JOIN pg_catalog.pg_operator b ON b.oid = m.amopopr
                         JOIN pg_catalog.pg_namespace n ON n.oid = b.oprnamespace
                         JOIN pg_catalog.pg_type l ON l.oid = m.amoplefttype
                         LEFT JOIN pg_catalog.pg_amop e
                                ON e.amopfamily = m.amopfamily AND e.amopstrategy = 3
                               AND e.amoplefttype = m.amoplefttype AND e.amoprighttype = m.amoprighttype
                        WHERE m.amopmethod = 403 AND m.amopstrategy = 1 AND m.amoplefttype = m.amoprighttype
                          AND CASE WHEN k.contype = 'x' THEN e.amopopr = k.conexclop[part.place]
                                   ELSE m.amopfamily = o.opcfamily AND m.amoplefttype = o.opcintype END
                        LIMIT 1) AS below ON true) AS parts,
           CASE WHEN k.contype = 'x'
                THEN NOT EXISTS (SELECT FROM pg_catalog.unnest(k.conexclop) AS by (operator)
                                   JOIN pg_catalog.pg_operator o ON o.oid = by.operator
                                  WHERE o.oprname <> '=')
                ELSE i.indisunique END AS unique,
           pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS where,
           i.indisvalid AND i.indisready AND i.indislive AS valid,
           NOT i.indimmediate AS deferrable,
           NOT i.indnullsnotdistinct AS nulls_distinct,
           k.contype AS owner,
           k.conname AS constraint,
           CASE WHEN k.oid IS NULL THEN pg_catalog.pg_get_indexdef(x.oid)
                ELSE pg_catalog.pg_get_constraintdef(k.oid) END AS definition,
           i.indisreplident AS replica_identity
      FROM asked
      JOIN pg_catalog.pg_index i ON i.indrelid = asked.oid
      JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
      LEFT JOIN pg_catalog.pg_constraint k
             ON k.conrelid = i.indrelid AND k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
     ORDER BY x.relname
"""

_POLICIES: Final = """
    SELECT p.polname AS name, p.polpermissive AS permissive, p.polcmd AS command,
           pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS using
      FROM asked
      JOIN pg_catalog.pg_policy p ON p.polrelid = asked.oid
     WHERE NOT pg_catalog.row_security_active(asked.oid)
        OR EXISTS (SELECT FROM pg_catalog.unnest(p.polroles) AS r (oid)
                    WHERE CASE WHEN r.oid = 0 THEN true ELSE pg_catalog.pg_has_role(r.oid, 'USAGE') END)
     ORDER BY p.polname
"""

# Of a partitioned table, each partition has a copy of the foreign key, with a parent.
_REFERENCED_BY: Final = """
    SELECT k.conname AS name, n.nspname AS schema, c.relname AS table, x.relname AS index, k.confdeltype AS on_delete,
           (SELECT pg_catalog.json_agg(a.attname ORDER BY u.place)
              FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum) AS columns,
           (SELECT pg_catalog.json_agg(a.attname ORDER BY u.place)
              FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum) AS targets
      FROM asked
      JOIN pg_catalog.pg_constraint k ON k.confrelid = asked.oid AND k.contype = 'f' AND k.conparentid = 0
      JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_class x ON x.oid = k.conindid
     ORDER BY n.nspname, c.relname, k.conname
"""

_CHECKS: Final = """
    SELECT pg_catalog.pg_get_expr(k.conbin, k.conrelid) AS condition
      FROM asked
      JOIN pg_catalog.pg_constraint k ON k.conrelid = asked.oid AND k.contype = 'c' AND k.convalidated
"""


def _listed(query: str, value: str = "found") -> str:
    return f"(SELECT CAST(pg_catalog.json_agg({value}) AS pg_catalog.text) FROM ({query}) found)"  # noqa: S608  (above)


READ: Final = sa.text(f"""
    WITH RECURSIVE asked (oid) AS (
        SELECT CAST(:oid AS pg_catalog.oid)
    ), layer (attnum, type, modifier) AS (  -- a column's type, and below a domain the type that it stands on
        SELECT a.attnum, a.atttypid, a.atttypmod
          FROM asked
          JOIN pg_catalog.pg_attribute a ON a.attrelid = asked.oid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT layer.attnum, d.typbasetype, d.typtypmod
          FROM layer
          JOIN pg_catalog.pg_type d ON d.oid = layer.type AND d.typtype = 'd'
    )
    SELECT {_listed(_COLUMNS)} AS columns,
           {_listed(_INDEXES)} AS indexes,
           {_listed(_POLICIES)} AS policies,
           {_listed(_REFERENCED_BY)} AS referenced_by,
           {_listed(_CHECKS, "found.condition")} AS checks
""").bindparams(sa.bindparam("oid", type_=sa.BigInteger()))  # noqa: S608  (the queries above, and nothing else)
"""The queries, each part as JSON: a row has the columns that its query names."""
