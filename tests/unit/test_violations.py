"""Evidence: what a database error says, read from real and from constructed errors, and what is taken out of it."""

import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.pq import DiagnosticField
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from accountlink.database.violations import read, scrub
from accountlink.values.facts import Failure, Trouble

CANARY: Final = "canary-5f1e"
STATEMENT: Final = "INSERT INTO links (provider, account_id) VALUES (?, ?)"
PARAMETERS: Final = {"al_access_token": CANARY, "al_email": f"{CANARY}@example.com"}
DETAIL: Final = f"Key (provider, account_id)=(google, {CANARY}) already exists."
MESSAGE: Final = 'duplicate key value violates unique constraint "uq_links"'


# -- errors as the three drivers raise them -------------------------------------------------------------------------


def asyncpg_error(code: str = "23505", message: str = MESSAGE, **fields: str) -> asyncpg.PostgresError:
    """Return asyncpg's error for a message of the server."""
    letters = {"detail": "D", "where": "W", "internal_query": "q", "schema_name": "s", "table_name": "t"}
    letters |= {"constraint_name": "n", "column_name": "c", "hint": "H"}
    made = {"S": "ERROR", "V": "ERROR", "C": code, "M": message} | {
        letters[name]: text for name, text in fields.items()
    }
    error = asyncpg.PostgresError.new(made, f"SELECT '{CANARY}'")
    assert isinstance(error, asyncpg.PostgresError)
    return error


def wrapped(native: BaseException, kind: type[DBAPIError] = IntegrityError, *, invalidated: bool = False) -> DBAPIError:
    """Return SQLAlchemy's error for an error of asyncpg: its adapter's error, caused by asyncpg's."""
    adapter: Any = dialect.AsyncAdapt_asyncpg_dbapi.IntegrityError
    text = f"{type(native)}: {native}"
    if sa.__version__.startswith("2.0."):
        orig = adapter(text)
        orig.pgcode = orig.sqlstate = getattr(native, "sqlstate", None)
    else:
        orig = adapter(text, native)  # SQLAlchemy 2.1 copies fields of asyncpg's error
    orig.__cause__ = native
    error = kind(STATEMENT, PARAMETERS, orig, connection_invalidated=invalidated)
    error.__cause__ = orig
    error.__context__ = orig
    return error


def psycopg_error(sqlstate: str = "23505", text: str = MESSAGE, **fields: str) -> psycopg.Error:
    """Return psycopg's error for a result that is an error."""
    info: dict[int, bytes | None] = dict.fromkeys(int(field) for field in DiagnosticField)
    given = {"SQLSTATE": sqlstate, "MESSAGE_PRIMARY": text, "SEVERITY": "ERROR"} | fields
    filled = info | {int(DiagnosticField[name]): value.encode() for name, value in given.items()}
    kind = psycopg.errors.lookup(sqlstate)
    lines = {"DETAIL": fields.get("MESSAGE_DETAIL"), "CONTEXT": fields.get("CONTEXT")}
    return kind(text + "".join(f"\n{name}:  {value}" for name, value in lines.items() if value), info=filled)


def raised(error: BaseException) -> BaseException:
    """The error with a traceback whose frames hold the values of the statement."""

    def execute(secret: str) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        execute(CANARY)
    return caught.value


def sqlite_error(schema: str, *statements: str) -> sqlite3.Error:
    """The error that the real sqlite3 module raises for the last of these statements."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(schema)
        for statement in statements[:-1]:
            connection.execute(statement)
        with pytest.raises(sqlite3.Error) as caught:
            connection.execute(statements[-1])
    return caught.value


def texts(error: BaseException) -> str:
    """Everything that can be read in an error, in its attributes and in what it came from."""
    seen: list[str] = []
    pending: list[Any] = [error]
    known: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in known:
            continue
        known.add(id(each))
        attributes = {name: getattr(each, name, None) for name in dir(each) if not name.startswith("__")}
        seen += [str(each), repr(each), repr(each.args), repr([v for v in attributes.values() if not callable(v)])]
        seen += [repr(getattr(each, "__notes__", ()))]
        seen += traceback.TracebackException.from_exception(each, capture_locals=True).format()
        pending += [each.__cause__, each.__context__, attributes.get("orig")]
        if (diag := attributes.get("diag")) is not None:
            seen += [repr(getattr(diag, field.name.lower(), None)) for field in DiagnosticField]
    return "\n".join(seen)


# -- read: PostgreSQL -----------------------------------------------------------------------------------------------

STATES: Final = {
    "23505": Trouble.UNIQUE,
    "40001": Trouble.SERIALIZATION,
    "40P01": Trouble.SERIALIZATION,
    "0A000": Trouble.STALE_PLAN,
    "55P03": Trouble.BUSY,
    "57014": Trouble.BUSY,
    "25006": Trouble.READ_ONLY,
    "57P01": Trouble.LOST,
    "57P02": Trouble.LOST,
    "57P03": Trouble.LOST,
    "57P05": Trouble.LOST,
    "25P03": Trouble.LOST,
    "08000": Trouble.LOST,
    "08003": Trouble.LOST,
    "08006": Trouble.LOST,
    "53300": Trouble.LOST,
    "23503": Trouble.OTHER,
    "23514": Trouble.OTHER,
    "23502": Trouble.OTHER,
    "23P01": Trouble.UNIQUE,
    "22P02": Trouble.OTHER,
    "42501": Trouble.OTHER,
    "42P01": Trouble.NO_TABLE,
    "25P02": Trouble.OTHER,
    "53100": Trouble.OTHER,
    "XX000": Trouble.OTHER,
}


@pytest.mark.parametrize(("state", "trouble"), STATES.items())
def test_a_state_of_postgresql_is_read(state: str, trouble: Trouble) -> None:
    """Both drivers' errors are read by their SQLSTATE, wherever each keeps it."""
    for error in (wrapped(asyncpg_error(state)), asyncpg_error(state), psycopg_wrapped(psycopg_error(state))):
        assert (trouble, state) == ((found := read(error)).trouble, found.sqlstate)


def psycopg_wrapped(orig: psycopg.Error) -> IntegrityError:
    error = IntegrityError(STATEMENT, PARAMETERS, orig)
    error.__cause__ = orig
    return error


NAMED: Final = {"schema_name": "public", "table_name": "links", "constraint_name": "uq_links"}


def test_a_unique_violation_is_named_by_both_drivers() -> None:
    """Schema, table and constraint come from the fields of the message, and never out of its text."""
    misleading = 'duplicate key value violates unique constraint "uq_another"'
    upper = {name.upper(): value for name, value in NAMED.items()}
    for error in (
        wrapped(asyncpg_error(message=misleading, detail=DETAIL, **NAMED)),
        psycopg_wrapped(psycopg_error(text=misleading, MESSAGE_DETAIL=DETAIL, **upper)),
    ):
        found = read(error)
        assert (Trouble.UNIQUE, "23505", "public", "links", "uq_links", ()) == (
            found.trouble,
            found.sqlstate,
            found.schema,
            found.table,
            found.constraint,
            found.columns,
        )
        assert found.error is error


def test_a_translated_message_says_the_same() -> None:
    """A server that speaks another language is understood."""
    found = read(wrapped(asyncpg_error(message="doppelter Schlüsselwert verletzt Unique-Constraint", **NAMED)))
    assert (Trouble.UNIQUE, "uq_links") == (found.trouble, found.constraint)


def test_a_state_that_names_a_constraint_is_a_deferrable_one() -> None:
    """55000 is raised for many reasons; only with a constraint's name is it a key that cannot be deferred."""
    named = read(wrapped(asyncpg_error("55000", "ON CONFLICT does not support deferrable unique constraints", **NAMED)))
    assert (Trouble.DEFERRABLE, "uq_links") == (named.trouble, named.constraint)
    assert Trouble.OTHER is read(wrapped(asyncpg_error("55000", "the database is being started"))).trouble


LOST: Final[dict[str, Callable[[], BaseException]]] = {
    "reset": lambda: ConnectionResetError(104, "Connection reset by peer"),
    "refused": lambda: ConnectionRefusedError(111, "Connection refused"),
    "no such host": lambda: OSError(-2, "Name or service not known"),
    "invalidated": lambda: wrapped(asyncpg_error("XX000", "unexpected"), OperationalError, invalidated=True),
    "closed": lambda: wrapped(asyncpg.InterfaceError("connection is closed"), InterfaceError),
    "closed, bare": lambda: asyncpg.InterfaceError("cannot call Connection.execute(): connection has been closed"),
    "psycopg's interface": lambda: InterfaceError(STATEMENT, PARAMETERS, psycopg.InterfaceError("the cursor is gone")),
}
SURELY_LOST: Final = [name for name in LOST if name != "invalidated"]


@pytest.mark.parametrize("name", SURELY_LOST)
def test_a_lost_connection_is_read(name: str) -> None:
    """A cut line arrives in as many forms as there are layers; each is read as lost."""
    assert Trouble.LOST is read(LOST[name]()).trouble


def test_an_invalidated_connection_without_a_state_is_lost() -> None:
    """SQLAlchemy's own verdict counts where the server said nothing."""
    error = OperationalError(
        STATEMENT, PARAMETERS, psycopg.OperationalError("server closed"), connection_invalidated=True
    )
    assert Trouble.LOST is read(error).trouble


@pytest.mark.parametrize(
    ("make", "trouble"),
    [
        (lambda: PoolTimeout("QueuePool limit of size 5 overflow 10 reached"), Trouble.BUSY),
        (lambda: asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), Trouble.OTHER),
        (lambda: wrapped(asyncpg.InterfaceError("another operation is in progress"), InterfaceError), Trouble.OTHER),
        (lambda: StatementError("bad", STATEMENT, PARAMETERS, ValueError("bad")), Trouble.VALUE),
        (lambda: sa.exc.ResourceClosedError("This result object does not return rows"), Trouble.OTHER),
    ],
    ids=["pool", "misuse", "misuse, wrapped", "before sending", "SQLAlchemy's own"],
)
def test_what_is_no_message_of_a_server_is_read(make: Callable[[], BaseException], trouble: Trouble) -> None:
    """Errors of pools, of drivers and of SQLAlchemy itself are distinguished without a SQLSTATE."""
    found = read(make())
    assert (trouble, None) == (found.trouble, found.sqlstate)


# -- read: SQLite ---------------------------------------------------------------------------------------------------

LINKS: Final = (
    "CREATE TABLE links (id INTEGER PRIMARY KEY, provider TEXT, account_id TEXT NOT NULL CHECK (account_id <> 'x'));"
)
INSERT: Final = f"INSERT INTO links VALUES (1, 'google', '{CANARY}')"
SAME: Final = f"INSERT INTO links VALUES (2, 'google', '{CANARY}')"
KEY: Final = "CREATE UNIQUE INDEX uq ON links (provider, account_id);"
PARTIAL: Final = "CREATE UNIQUE INDEX uq ON links (provider, account_id) WHERE id > 0;"
EXPRESSION: Final = "CREATE UNIQUE INDEX uq_lower ON links (lower(account_id));"
QUOTED: Final = 'CREATE TABLE "my links" ("the id" TEXT UNIQUE);'
TWICE: Final = ("INSERT INTO \"my links\" VALUES ('a')",) * 2
SQLITE: Final[dict[str, tuple[str, tuple[str, ...], tuple[object, ...]]]] = {
    "unique index": (LINKS + KEY, (INSERT, SAME), (Trouble.UNIQUE, "links", None, ("provider", "account_id"))),
    "partial index": (LINKS + PARTIAL, (INSERT, SAME), (Trouble.UNIQUE, "links", None, ("provider", "account_id"))),
    "expression": (LINKS + EXPRESSION, (INSERT, SAME), (Trouble.UNIQUE, None, "uq_lower", ())),
    "primary key": (LINKS, (INSERT, INSERT), (Trouble.UNIQUE, "links", None, ("id",))),
    "row id": (
        "CREATE TABLE t (a TEXT);",
        ("INSERT INTO t (rowid, a) VALUES (1, 'x')",) * 2,
        (Trouble.UNIQUE, "t", None, ("rowid",)),
    ),
    "without rowid": (
        "CREATE TABLE t (a TEXT, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;",
        ("INSERT INTO t VALUES ('x', 'y')",) * 2,
        (Trouble.UNIQUE, "t", None, ("a", "b")),
    ),
    "quoted names": (QUOTED, TWICE, (Trouble.UNIQUE, "my links", None, ("the id",))),
    "not null": (LINKS, ("INSERT INTO links VALUES (1, 'google', NULL)",), (Trouble.OTHER, None, None, ())),
    "check": (LINKS, ("INSERT INTO links VALUES (1, 'google', 'x')",), (Trouble.OTHER, None, None, ())),
    "foreign key": (
        "PRAGMA foreign_keys = ON; CREATE TABLE u (id INTEGER PRIMARY KEY); CREATE TABLE t (u REFERENCES u);",
        ("INSERT INTO t VALUES (7)",),
        (Trouble.OTHER, None, None, ()),
    ),
    "trigger": (
        LINKS
        + "CREATE TRIGGER no BEFORE INSERT ON links BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: a.b'); END;",
        (INSERT,),
        (Trouble.OTHER, None, None, ()),
    ),
    "no table": ("", ("SELECT * FROM nowhere",), (Trouble.NO_TABLE, None, None, ())),
}


@pytest.mark.parametrize(("schema", "statements", "expected"), SQLITE.values(), ids=SQLITE)
def test_an_error_of_sqlite_is_read(schema: str, statements: tuple[str, ...], expected: tuple[object, ...]) -> None:
    """The real module's errors are read by their result code: table and columns, or an index on expressions."""
    native = sqlite_error(schema, *statements)
    for error in (native, IntegrityError(STATEMENT, PARAMETERS, native)):
        found = read(error)
        assert expected == (found.trouble, found.table, found.constraint, found.columns)
        assert (None, None) == (found.sqlstate, found.schema)
        assert found.error is error


def test_a_busy_sqlite_is_read() -> None:
    """A writer that waited too long gets an error by the result code, not by the text."""
    uri = "file:busy?mode=memory&cache=shared"
    with closing(sqlite3.connect(uri, uri=True)) as one, closing(sqlite3.connect(uri, uri=True, timeout=0)) as other:
        one.execute("CREATE TABLE t (a)")
        one.execute("BEGIN IMMEDIATE")
        one.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            other.execute("INSERT INTO t VALUES (2)")
        one.rollback()
    assert Trouble.BUSY is read(OperationalError(STATEMENT, PARAMETERS, caught.value)).trouble


CODES: Final = {
    "SQLITE_BUSY": Trouble.BUSY,
    "SQLITE_BUSY_TIMEOUT": Trouble.BUSY,
    "SQLITE_BUSY_RECOVERY": Trouble.BUSY,
    "SQLITE_LOCKED": Trouble.BUSY,
    "SQLITE_LOCKED_SHAREDCACHE": Trouble.BUSY,
    "SQLITE_READONLY": Trouble.READ_ONLY,
    "SQLITE_READONLY_DBMOVED": Trouble.READ_ONLY,
    "SQLITE_BUSY_SNAPSHOT": Trouble.SERIALIZATION,
    "SQLITE_CONSTRAINT_UNIQUE": Trouble.UNIQUE,
    "SQLITE_CONSTRAINT_CHECK": Trouble.OTHER,
    "SQLITE_IOERR": Trouble.OTHER,
}


@pytest.mark.parametrize(("code", "trouble"), CODES.items())
def test_a_result_code_of_sqlite_is_read(code: str, trouble: Trouble) -> None:
    """The codes that cannot be provoked in a test are read like those that can."""
    native = sqlite3.OperationalError("database is locked")
    native.sqlite_errorname = code
    assert trouble is read(OperationalError(STATEMENT, PARAMETERS, native)).trouble


def test_a_value_that_sqlite_does_not_take_is_no_lost_connection() -> None:
    """A parameter of a wrong type is the caller's mistake, and not an unavailable database."""
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(sqlite3.Error) as caught:
        connection.execute("SELECT ?", ([CANARY],))
    assert Trouble.OTHER is read(DBAPIError(STATEMENT, PARAMETERS, caught.value)).trouble


# -- scrub ----------------------------------------------------------------------------------------------------------

FIELDS: Final = {"detail": DETAIL, "where": f"SQL function {CANARY}", "internal_query": f"SELECT '{CANARY}'"}


def chained() -> BaseException:
    """An error that was raised while another was handled, both with parameters."""
    try:
        try:
            raise wrapped(asyncpg_error(**FIELDS))
        except IntegrityError:
            raise OperationalError(STATEMENT, PARAMETERS, sqlite3.OperationalError("x"))  # noqa: B904  # the point
    except OperationalError as error:
        return error


LEAKING: Final[dict[str, Callable[[], BaseException]]] = {
    "asyncpg": lambda: wrapped(asyncpg_error(**FIELDS, **NAMED)),
    "asyncpg, bare": lambda: asyncpg_error(**FIELDS, **NAMED),
    "asyncpg, not null": lambda: wrapped(
        asyncpg_error("23502", "null value", detail=f"Failing row contains ({CANARY}).")
    ),
    "asyncpg, check": lambda: wrapped(
        asyncpg_error("23514", "violates check", detail=f"Failing row contains ({CANARY}).")
    ),
    "psycopg": lambda: psycopg_wrapped(
        psycopg_error(MESSAGE_DETAIL=DETAIL, CONTEXT=f"SQL function {CANARY}", INTERNAL_QUERY=f"SELECT '{CANARY}'")
    ),
    "psycopg, context alone": lambda: psycopg_wrapped(psycopg_error(CONTEXT=f'PL/pgSQL function f("{CANARY}")')),
    "sqlite": lambda: IntegrityError(STATEMENT, PARAMETERS, sqlite_error(LINKS + KEY, INSERT, SAME)),
    "many parameters": lambda: IntegrityError(STATEMENT, [PARAMETERS] * 3, sqlite3.IntegrityError("x"), ismulti=True),
    "positional parameters": lambda: IntegrityError(STATEMENT, (CANARY, CANARY), sqlite3.IntegrityError("x")),
    "before sending": lambda: StatementError("(builtins.TypeError) bad", STATEMENT, PARAMETERS, TypeError("bad")),
    "a chain": chained,
}


@pytest.mark.parametrize("make", LEAKING.values(), ids=LEAKING)
def test_an_error_that_was_read_carries_no_value(make: Callable[[], BaseException]) -> None:
    """A28: neither parameters nor DETAIL nor the locals of any frame are left in an error, its cause or its context."""
    error = raised(make())
    assert CANARY in texts(error)
    found = read(error)
    assert found.error is error
    assert CANARY not in texts(found.error)
    assert CANARY not in repr(found)


@pytest.mark.parametrize("make", LEAKING.values(), ids=LEAKING)
def test_scrubbing_again_changes_nothing(make: Callable[[], BaseException]) -> None:
    """An error that is cleaned twice is as clean, and says the same."""
    once = str(scrub(make()))
    error = make()
    assert once == str(scrub(scrub(error)))


VALUES_IN_MESSAGES: Final[dict[str, Callable[[], BaseException]]] = {
    "asyncpg, before sending": lambda: wrapped(
        asyncpg.DataError(f"invalid input for query argument $4: ['{CANARY}'] (expected str, got list)"), DBAPIError
    ),
    "asyncpg, from the server": lambda: wrapped(
        asyncpg_error("22P02", f'invalid input syntax for type uuid: "{CANARY}"'), DBAPIError
    ),
    "psycopg, from the server": lambda: DBAPIError(
        STATEMENT, PARAMETERS, psycopg_error("22P02", f'invalid input syntax for type uuid: "{CANARY}"')
    ),
    "SQLAlchemy, before sending": lambda: StatementError(
        f"(builtins.LookupError) '{CANARY}' is not among the defined enum values",
        STATEMENT,
        PARAMETERS,
        LookupError(f"'{CANARY}' is not among the defined enum values"),
    ),
}


@pytest.mark.parametrize("make", VALUES_IN_MESSAGES.values(), ids=VALUES_IN_MESSAGES)
def test_a_message_that_quotes_a_value_is_cut(make: Callable[[], BaseException]) -> None:
    """A28: errors of class 22, and drivers' refusals to encode, quote the value in their first line; that goes too."""
    error = read(raised(make())).error
    assert CANARY not in texts(error)


def test_what_helps_is_kept() -> None:
    """The statement, the constraint and the server's own sentence stay, so that the error can be understood."""
    error = read(wrapped(asyncpg_error(detail=DETAIL, **NAMED))).error
    assert isinstance(error, IntegrityError)
    assert (STATEMENT, None, True) == (error.statement, error.params, error.hide_parameters)
    assert MESSAGE in str(error)
    assert STATEMENT in str(error)


def test_a_psycopg_error_keeps_its_evidence() -> None:
    """The error that is made anew has its class, its SQLSTATE and its names, for the application to handle."""
    upper = {name.upper(): value for name, value in NAMED.items()}
    error = read(psycopg_wrapped(psycopg_error(MESSAGE_DETAIL=DETAIL, **upper))).error
    assert isinstance(error, IntegrityError)
    orig = error.orig
    assert isinstance(orig, psycopg.errors.UniqueViolation)
    assert ("23505", "links", "uq_links", None) == (
        orig.sqlstate,
        orig.diag.table_name,
        orig.diag.constraint_name,
        orig.diag.message_detail,
    )
    assert error.__cause__ is orig


def test_an_error_in_a_circle_is_scrubbed_once() -> None:
    """Errors that are each other's context do not keep the scrubbing going."""
    one, other = (
        IntegrityError(STATEMENT, PARAMETERS, ValueError()),
        IntegrityError(STATEMENT, PARAMETERS, ValueError()),
    )
    one.__context__, other.__context__ = other, one
    assert CANARY not in texts(scrub(one))
    assert CANARY not in texts(other)


def test_a_failure_does_not_show_its_error() -> None:
    """A28: a failure in a log is its evidence; the error is not repeated."""
    assert "INSERT" not in repr(
        Failure(trouble=Trouble.OTHER, error=IntegrityError(STATEMENT, PARAMETERS, ValueError()))
    )
