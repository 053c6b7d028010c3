"""Read the meaning of a database error from SQLSTATE and result codes, not from its text.

No other module knows where each driver keeps these codes: asyncpg on the cause of ``orig``, psycopg in ``orig.diag``,
SQLite in ``orig.sqlite_errorname``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import asyncpg
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InterfaceError,
    InvalidRequestError,
    OperationalError,
    PendingRollbackError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from accountlink.values.facts import Failure, Trouble

FAILURES: Final = (SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""Errors of a database call. A lost connection may raise a bare ``ConnectionError``, a refusal asyncpg's own error."""


_STATES: Final = {
    "23505": Trouble.UNIQUE,
    "23P01": Trouble.UNIQUE,  # an exclusion constraint: what it is on is found like an index
    "42P01": Trouble.NO_TABLE,
    "55000": Trouble.DEFERRABLE,
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
    "25P04": Trouble.LOST,
    "53300": Trouble.LOST,
}
_SQLITE: Final = {
    "SQLITE_CONSTRAINT_UNIQUE": Trouble.UNIQUE,
    "SQLITE_CONSTRAINT_PRIMARYKEY": Trouble.UNIQUE,
    "SQLITE_CONSTRAINT_ROWID": Trouble.UNIQUE,
    "SQLITE_BUSY_SNAPSHOT": Trouble.SERIALIZATION,
    "SQLITE_ERROR": Trouble.NO_TABLE,  # or whatever else SQLite has no code for
}
_SQLITE_BUSY: Final = ("SQLITE_BUSY", "SQLITE_LOCKED")
"""The result codes of a wait that timed out; their extended codes begin with the same words."""
_SQLITE_READ_ONLY: Final = "SQLITE_READONLY"
"""The result code of a database that takes no writes; its extended codes begin with it."""
_QUOTING: Final = ("detail", "where", "context", "internal_query", "query")
"""Fields of a server's message that quote rows, statements or what a function was called with."""


def read(error: BaseException) -> Failure:
    """Read the facts of an error, and remove every value of the statement from it."""
    native = _native(error)
    state = _text(getattr(native, "sqlstate", None))
    evidence = getattr(native, "diag", native)
    schema, table = (
        _text(getattr(evidence, "schema_name", None)),
        _text(getattr(evidence, "table_name", None)),
    )
    constraint = _text(getattr(evidence, "constraint_name", None))
    columns: tuple[str, ...] = ()
    trouble = _trouble(error, native, state)
    if trouble is Trouble.DEFERRABLE and constraint is None:
        trouble = Trouble.OTHER
    if trouble is Trouble.UNIQUE and state is None:
        table, constraint, columns = _sqlite_evidence(str(native))
    return Failure(
        trouble=trouble,
        sqlstate=state,
        schema=schema,
        table=table,
        constraint=constraint,
        columns=columns,
        error=scrub(error),
    )


def is_unusable(error: BaseException) -> bool:
    """Say whether a session or connection can run nothing at all, except one that only has to be rolled back."""
    return isinstance(error, InvalidRequestError) and not isinstance(error, PendingRollbackError)


def is_stale_plan(error: BaseException) -> bool:
    """Say whether the schema changed under a prepared statement."""
    native = _native(error)
    return _trouble(error, native, _text(getattr(native, "sqlstate", None))) is Trouble.STALE_PLAN


def _native(error: BaseException) -> BaseException:
    """Return the driver's own error, below SQLAlchemy's and below the asyncpg adapter's."""
    below = getattr(error, "orig", None) if isinstance(error, DBAPIError) else None
    if below is None:
        return error
    cause = below.__cause__
    return cause if isinstance(cause, (asyncpg.PostgresError, asyncpg.InterfaceError)) else below


def _trouble(error: BaseException, native: BaseException, state: str | None) -> Trouble:
    if _is_refused_value(error, native, state):
        return Trouble.VALUE
    if state is not None:
        if state.startswith("08"):
            return Trouble.LOST
        return _STATES.get(state, Trouble.OTHER)
    if name := getattr(native, "sqlite_errorname", None):
        return _SQLITE.get(name) or _of_sqlite_family(name)
    if isinstance(error, PoolTimeout):
        return Trouble.BUSY
    if isinstance(error, TimeoutError) and error.errno is None:
        return Trouble.TIMEOUT  # asyncpg's command_timeout, or its connection's
    if isinstance(error, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return Trouble.LOST
    if isinstance(native, asyncpg.InterfaceError) and _says_closed(native):
        return Trouble.LOST
    if isinstance(error, (InterfaceError, OperationalError)) and not isinstance(native, asyncpg.InterfaceError):
        return Trouble.LOST  # psycopg has no code for a refused, cut or dead connection
    return Trouble.OTHER


def _of_sqlite_family(name: str) -> Trouble:
    """Return the meaning of an SQLite result code whose extended codes all mean the same."""
    if name.startswith(_SQLITE_READ_ONLY):
        return Trouble.READ_ONLY
    return Trouble.BUSY if name.startswith(_SQLITE_BUSY) else Trouble.OTHER


def _is_refused_value(error: BaseException, native: BaseException, state: str | None) -> bool:
    """Say whether SQLAlchemy or the driver refused a value, so that the database did not see it."""
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return not isinstance(error.orig, SQLAlchemyError)
    if isinstance(native, asyncpg.DataError):
        return getattr(native, "severity", None) is None  # asyncpg's own: a server's message has one
    if state is not None or hasattr(native, "sqlite_errorname"):
        return False
    in_a_statement = isinstance(error, ProgrammingError) and error.statement is not None  # and not in connecting
    return isinstance(error, DataError) or (in_a_statement and not _says_closed(native))


def _says_closed(native: BaseException) -> bool:
    # A driver has one class for every misuse of its interface and no code; the text is all there is. A wrong guess
    # costs a typed error instead of the driver's own, never a wrong outcome.
    return "closed" in str(native)


def _sqlite_evidence(message: str) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Read table, index and columns from SQLite's message, because SQLite gives them nowhere else.

    Source: sqlite3UniqueConstraint() writes ``UNIQUE constraint failed: t.a, t.b``, or ``index 'name'`` for an index
    on expressions.
    """
    named = message.partition("constraint failed: ")[2]
    if named.startswith("index '"):
        return None, named.removeprefix("index '").rstrip("'"), ()
    pairs = [part.partition(".") for part in named.split(", ")] if named else []
    return (pairs[0][0] if pairs else None), None, tuple(column for _, _, column in pairs)


_Clean = Callable[[str], str]
_QUOTED: Final = re.compile(r"\n(?:DETAIL|CONTEXT|QUERY|LINE \d+):")
_KIND: Final = re.compile(r"\([A-Za-z_.]+\) (?:<class '[A-Za-z_.]+'>: )?|<class '[A-Za-z_.]+'>: ")
"""The beginning of a message of SQLAlchemy or its asyncpg adapter: the class of the error below it."""


def scrub(error: BaseException) -> BaseException:
    """Remove every value of the statement from an error, in place: parameters, DETAIL, and frames with their locals.

    The error keeps its class and its evidence: SQLSTATE, the names of table, column and constraint, the statement, and
    the server's own sentence where that quotes no value.
    """
    clean = _refused_value if _quotes_values(error) else _first_line
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = None
        _strip(current, clean)
        orig = getattr(current, "orig", None)
        if isinstance(orig, BaseException):
            _replace_orig(current, orig, _without_quotes(orig, clean))
        pending += [current.__cause__, current.__context__, getattr(current, "orig", None)]
    return error


def _quotes_values(error: BaseException) -> bool:
    """Say whether the message quotes a value: of a data exception (class 22) or of a refused parameter."""
    native = _native(error)
    state = _text(getattr(native, "sqlstate", None))
    if state is not None:
        return state.startswith("22")
    refused = isinstance(native, (asyncpg.DataError, asyncpg.InterfaceError)) and not _says_closed(native)
    return refused or (isinstance(error, StatementError) and not isinstance(error, DBAPIError))


def _strip(error: Any, clean: _Clean) -> None:  # one of three libraries' errors, told apart by their attributes
    if hasattr(error, "hide_parameters"):
        error.hide_parameters = True
        error.params = None
    attributes = vars(error) if hasattr(error, "__dict__") else {}
    for name in _QUOTING:
        if isinstance(attributes.get(name), str):
            setattr(error, name, None)
    if isinstance(attributes.get("message"), str):
        error.message = clean(error.message)
    quoting = clean is _refused_value  # then what is no text may be the value itself
    error.args = tuple(
        clean(argument if isinstance(argument, str) else "") if quoting or isinstance(argument, str) else argument
        for argument in error.args
    )


def _first_line(text: str) -> str:
    """Return the message without the parts that quote the row, or a statement inside a function."""
    return _QUOTED.split(text, maxsplit=1)[0]


def _refused_value(text: str) -> str:
    """Return a message with the class of the error, and without the value that the error quotes."""
    kind = _KIND.match(text)
    return f"{kind[0] if kind else ''}a value was refused, or could not be made; it is not shown here"


def _replace_orig(error: Any, orig: BaseException, clean: BaseException) -> None:  # SQLAlchemy's errors
    if clean is orig:
        return
    error.orig = clean
    if error.__cause__ is orig:
        error.__cause__ = clean
    if error.__context__ is orig:
        error.__context__ = clean


def _without_quotes(orig: BaseException, clean: _Clean) -> BaseException:
    """Build a psycopg error without the fields that quote values, because its result object cannot be changed."""
    diag = getattr(orig, "diag", None)
    if diag is None or getattr(diag, "sqlstate", None) is None:
        return orig
    from psycopg.pq import DiagnosticField  # noqa: PLC0415  # an extra, imported only where its errors already are

    info: dict[int, bytes | None] = {}
    for known in DiagnosticField:
        value = getattr(diag, known.name.lower(), None)
        if known.name.lower().removeprefix("message_") in _QUOTING:
            value = None
        elif known is DiagnosticField.MESSAGE_PRIMARY and value is not None:
            value = clean(value)
        info[known.value] = value.encode() if isinstance(value, str) else None
    make: Any = type(orig)
    made: BaseException = make(*(clean(str(argument)) for argument in orig.args), info=info)
    return made


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
