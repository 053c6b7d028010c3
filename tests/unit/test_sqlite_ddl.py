"""SQLite's statements, read and rewritten without being misled by quotes, comments and parentheses."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from accountlink.doctor.catalogue import tokens
from accountlink.doctor.catalogue.sqlite_ddl import read_index, read_table, renamed, without_unique

HEAD = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, "


def unique_columns(statement: str, name: str = "t") -> list[tuple[str, ...]]:
    """What SQLite itself makes of a statement: the columns of each UNIQUE constraint."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(statement)
        indexes = connection.execute("SELECT name FROM pragma_index_list(?) WHERE origin = 'u'", (name,)).fetchall()
        query = "SELECT name FROM pragma_index_info(?) ORDER BY seqno"
        return sorted(tuple(column for (column,) in connection.execute(query, index)) for index in indexes)


def columns(statement: str, name: str = "t") -> list[tuple[object, ...]]:
    """The columns that SQLite makes of a statement."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(statement)
        return connection.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)).fetchall()


CUT = {
    "table, alone": (HEAD + "UNIQUE (a, b))", "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT)"),
    "table, named": (
        HEAD + '\n  CONSTRAINT "uq, (odd" UNIQUE (a, b),\n  CHECK (a <> b)\n)',
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT,\n  CHECK (a <> b)\n)",
    ),
    "table, on conflict": (
        HEAD + "unique ( [a] , `b` ) on conflict replace, UNIQUE (b, a)) STRICT",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, UNIQUE (b, a)) STRICT",
    ),
    "table, without commas": (
        HEAD + "CHECK (a <> '')UNIQUE(a, b)CHECK (b <> ''))",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, CHECK (a <> '') CHECK (b <> ''))",
    ),
    "table, first of two without a comma": (
        HEAD + "CONSTRAINT x UNIQUE (a, b) CONSTRAINT y UNIQUE (b))",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, CONSTRAINT y UNIQUE (b))",
    ),
    "table, twice without a comma": (
        HEAD + "UNIQUE (a, b) UNIQUE (a, b), CHECK (a <> b))",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, CHECK (a <> b))",
    ),
    "table, collated and directed": (
        HEAD + "UNIQUE (A COLLATE NOCASE, 'b' DESC))",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT)",
    ),
    "table, among comments": (
        HEAD + "-- UNIQUE (a, b),\n UNIQUE (a, /* not c */ b) -- the key\n)",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT -- the key\n)",
    ),
    "table, after a reference": (
        HEAD + "FOREIGN KEY (b) REFERENCES t UNIQUE (a, b)CHECK (b <> ''))",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, FOREIGN KEY (b) REFERENCES t CHECK (b <> ''))",
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_a_unique_constraint_is_cut_out_and_all_else_stays(case: str) -> None:
    """The statement loses the constraint and nothing else, in the eyes of SQLite too."""
    statement, expected = CUT[case]
    assert expected == without_unique(statement, ["a", "b"])
    before = unique_columns(statement)
    before.remove(("a", "b"))
    assert before == unique_columns(expected)
    assert columns(statement) == columns(expected)


COLUMN_CUT = {
    "bare": ("CREATE TABLE t (a UNIQUE)", "CREATE TABLE t (a)"),
    "in the middle": ("CREATE TABLE t (a TEXT UNIQUE NOT NULL)", "CREATE TABLE t (a TEXT NOT NULL)"),
    "named, on conflict": (
        "CREATE TABLE t (a TEXT NOT NULL CONSTRAINT u UNIQUE ON CONFLICT IGNORE CHECK (a <> 'UNIQUE'), b UNIQUE)",
        "CREATE TABLE t (a TEXT NOT NULL CHECK (a <> 'UNIQUE'), b UNIQUE)",
    ),
    "both of them": ("CREATE TABLE t (a TEXT UNIQUE, b, UNIQUE (a))", "CREATE TABLE t (a TEXT, b)"),
    "not what only looks like it": (
        'CREATE TABLE t (b TEXT DEFAULT \' UNIQUE \' REFERENCES "UNIQUE" (x), "A" UNIQUE, "UNIQUE" UNIQUE)',
        'CREATE TABLE t (b TEXT DEFAULT \' UNIQUE \' REFERENCES "UNIQUE" (x), "A", "UNIQUE" UNIQUE)',
    ),
}


@pytest.mark.parametrize("case", COLUMN_CUT)
def test_a_columns_own_unique_is_cut_out(case: str) -> None:
    """A column keeps its type and its other constraints."""
    statement, expected = COLUMN_CUT[case]
    assert expected == without_unique(statement, ["a"])
    assert columns(statement) == columns(expected)


@pytest.mark.parametrize(
    "statement",
    [
        HEAD + "UNIQUE (a), UNIQUE (a, b, id), UNIQUE (b, a))",
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b))",
        "CREATE TABLE t (a, b /*, UNIQUE (a, b) */, CHECK ('UNIQUE (a, b)' <> ''))",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW t AS SELECT 1",
        "",
    ],
)
def test_nothing_is_cut_where_there_is_no_such_constraint(statement: str) -> None:
    """Other keys, comments and strings are no UNIQUE constraint on these columns."""
    with pytest.raises(ValueError, match=r"UNIQUE constraint|CREATE TABLE"):
        without_unique(statement, ["a", "b"])


def test_names_differ_by_case_only_beyond_ascii() -> None:
    """As in SQLite, ``É`` and ``é`` are two columns, ``A`` and ``a`` are one."""
    statement = "CREATE TABLE t (É, é, A, UNIQUE (É, a), UNIQUE (é, a))"
    assert "CREATE TABLE t (É, é, A, UNIQUE (é, a))" == without_unique(statement, ["É", "A"])


RENAMED = {
    "CREATE TABLE t (a)": 'CREATE TABLE "new ""t""" (a)',
    'CREATE TABLE "t (" (a)': 'CREATE TABLE "new ""t""" (a)',
    "CREATE TEMP TABLE IF NOT EXISTS aux.[t](a)": 'CREATE TEMP TABLE IF NOT EXISTS aux."new ""t"""(a)',
    "create /* t */ table if (a, t)": 'create /* t */ table "new ""t""" (a, t)',
}


@pytest.mark.parametrize("statement", RENAMED)
def test_a_table_is_renamed_in_its_statement(statement: str) -> None:
    """The new name stands where the old one stood, quoted."""
    assert RENAMED[statement] == renamed(statement, 'new "t"')


def test_only_a_table_with_a_list_of_columns_is_renamed() -> None:
    """Other statements are refused."""
    with pytest.raises(ValueError, match="CREATE TABLE"):
        renamed("CREATE VIRTUAL TABLE t USING fts5 (a)", "u")


TABLE = """CREATE TABLE "t" ( -- the ( of links
    "check" TEXT COLLATE "nocase" CHECK ("check" NOT NULL),
    b TEXT COLLATE NOCASE DEFAULT (lower('x) COLLATE RTRIM')) COLLATE BINARY,
    [c d] TEXT GENERATED ALWAYS AS ( b || ') STORED' /* all */ ) STORED CONSTRAINT n UNIQUE,
    e AS (coalesce(b, 'AS (x)')),
    f TEXT, g TEXT, h TEXT, current_date TEXT,
    CONSTRAINT "p k" PRIMARY KEY (b, f COLLATE RTRIM) ON CONFLICT FAIL
    CHECK ((f IS NOT NULL) AND (length(f) > 1 AND "G" NOTNULL))
    CHECK (h IS NOT NULL OR b = 'h IS NOT NULL')
    CHECK (current_date IS NOT NULL)
) WITHOUT /* any */ ROWID, STRICT"""


def test_a_table_tells_what_the_pragmas_do_not() -> None:
    """Collations, generated expressions, checks, names of constraints and options."""
    told = read_table(TABLE)
    assert {"check": "nocase", "b": "BINARY"} == told.collations
    assert {"c d": "b || ') STORED'", "e": "coalesce(b, 'AS (x)')"} == told.generated
    assert {"check", "f", "g"} == told.required
    assert [("n", False, ("c d",)), ("p k", True, ("b", "f"))] == [(k.name, k.primary, k.columns) for k in told.keys]
    assert ("WITHOUT ROWID", "STRICT") == told.options
    assert told.without_rowid


def test_an_index_tells_its_expressions_and_its_condition() -> None:
    """Each part without its collation and direction, the condition without what follows it."""
    told = read_index(
        'CREATE UNIQUE INDEX IF NOT EXISTS "on"."i (" ON \'t\' (lower(a, \')\') COLLATE NOCASE DESC NULLS LAST, "b", '
        "coalesce(c, 'x,y') asc, d COLLATE RTRIM) WHERE -- live\n deleted_at IS NULL AND x IN ('WHERE', 1) -- all"
    )
    assert ("lower(a, ')')", '"b"', "coalesce(c, 'x,y')", "d") == told.parts
    assert "deleted_at IS NULL AND x IN ('WHERE', 1)" == told.where
    assert read_index("CREATE INDEX i ON t(a)").where is None


@pytest.mark.parametrize("statement", ["CREATE TABLE t (a)", "CREATE INDEX i ON t (a", ""])
def test_what_is_no_index_is_refused(statement: str) -> None:
    """Nothing is guessed from half a statement."""
    with pytest.raises(ValueError, match=r"CREATE INDEX|parenthesis"):
        read_index(statement)


SURE = {
    "a IS NOT NULL": {"a"},
    "((a IS NOT NULL))": {"a"},
    '("A b" IS NOT NULL) AND ((c > 0) AND (d IS NOT NULL))': {"A b", "d"},
    "a IS NOT NULL AND (b IS NOT NULL OR c IS NOT NULL)": {"a"},
    "a IS NOT NULL OR b IS NOT NULL": set(),
    "NOT a IS NOT NULL": set(),
    "NOT (a IS NOT NULL)": set(),
    "(NOT (a IS NOT NULL)) AND (b IS NOT NULL)": {"b"},
    "(a) IS NOT NULL": set(),
    "((a) IS NULL) AND ((b) IS NOT NULL)": set(),
    "c BETWEEN 1 AND a IS NOT NULL": set(),
    "CASE WHEN b AND a IS NOT NULL AND c THEN 1 ELSE 2 END": set(),
    "lower(a) IS NOT NULL": set(),
    "(c).a IS NOT NULL": set(),
    "t.a IS NOT NULL": set(),
    "'a' IS NOT NULL": set(),
    "1 IS NOT NULL": set(),
    "NOT NOT NULL": set(),
    "true IS NOT NULL": set(),
    "a IS NOT NULL = b": set(),
    "b = ') AND a IS NOT NULL AND ('": set(),
    "b = ANY (ARRAY['x]'::text, ') AND a IS NOT NULL AND ('::text])": set(),
    r"(b = E'\\'' AND a IS NOT NULL AND (''')": set(),
    "": set(),
}


@pytest.mark.parametrize("condition", SURE)
def test_only_what_is_sure_is_never_null(condition: str) -> None:
    """A column is never null where the condition is false of a null, whatever else it says; nothing is guessed."""
    assert SURE[condition] == tokens.never_null(tokens.scan(tokens.POSTGRESQL, condition))
