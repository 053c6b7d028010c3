"""Read and write the rows of a mapped table, and run the statements on it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

import sqlalchemy as sa

from accountlink.errors import AccountLinkError, ConfigurationError
from accountlink.tables.idtype import IdType
from accountlink.tables.targets import TableMapping
from accountlink.tables.type_layers import is_padded
from accountlink.values.credentials import split_scopes
from accountlink.values.secrecy import Parameters

Form = Callable[[Any], Any]
"""A function that writes a value in one form of a column."""
_TEXTS: Final = ("provider", "account_id", "email")
"""Roles whose columns may fill up a text with blanks."""
_REMEMBERED: Final = 256
"""The most statements that are cached; the calls of an application have few shapes."""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_FIRST_YEAR: Final = 1900
_LAST_YEAR: Final = 9000
"""The years of a clock that are accepted, so that a lifetime can be added to the moment."""


class MappedTable:
    """Convert values and run statements for one table of the application: of links or of grants.

    Args:
        mapping: The columns of the table, by role.
        row: The roles that statements read back of a row, in their order.
        moments: How each column that holds a moment takes one, by role.
        ids: The roles whose columns hold ids.
        named: The tables whose names statements need as values, each with the name of the parameter that brings it.
        defaults: The application's columns whose ``default`` is a function.
        onupdate: The application's columns whose ``onupdate`` is a function.
        clock: Returns the present moment, aware.
    """

    def __init__(
        self,
        mapping: TableMapping,
        *,
        row: Sequence[str],
        moments: Mapping[str, Form],
        ids: Collection[str],
        named: Mapping[str, sa.Table],
        defaults: Sequence[sa.Column[Any]],
        onupdate: Sequence[sa.Column[Any]],
        clock: Callable[[], datetime],
    ) -> None:
        columns = mapping.columns
        self.row_roles: Final = tuple(row)
        self._moments: Final = dict(moments)
        self._ids: Final = {role: IdType.of(columns[role]) for role in ids if role in columns}
        self._columns: Final = columns
        self._table: Final = mapping.table
        self._named: Final = dict(named)
        padded = [role for role in row if role in _TEXTS and is_padded(columns[role].type)]
        forms: dict[str, Form] = {role: read_moment for role in row if role in self._moments}
        forms |= dict.fromkeys(padded, _unpadded) | ({"scopes": read_scopes} if "scopes" in row else {})
        self._read: Final = tuple(forms.items())
        self._defaults: Final = {f"al_default_{c.key}": _caller(mapping, c, c.default) for c in defaults}
        self._onupdate: Final = {f"al_onupdate_{c.key}": _caller(mapping, c, c.onupdate) for c in onupdate}
        self._clock: Final = clock
        self._built: dict[Hashable, Any] = {}

    # -- what goes in -------------------------------------------------------------------------------------------------

    def checked_id(
        self, role: str, value: object, *, what: str, outside: Callable[[], AccountLinkError] | None = None
    ) -> Any:  # of the column's type
        """Return an id as the database gets it, or refuse what is no id of a role's column, before any SQL.

        Args:
            role: The role.
            value: The value that was passed.
            what: The argument, for messages.
            outside: Makes the error for an id that the column cannot hold, where that is no mistake in the call.

        Raises:
            ConfigurationError: The id is of another type, or outside what the column can hold.
        """
        kind = self._ids[role]
        if _is_plain_number(value, kind):
            return value
        if value is None or not kind.accepts(value):
            raise ConfigurationError(
                f"{what} is {type(value).__name__}, and the column {self._columns[role].name!r} takes "
                f"{kind.python.__name__ if kind.python else 'a value'}. Convert it before the call."
            )
        if not kind.holds(value):
            if outside is not None:
                raise outside()
            raise ConfigurationError(
                f"{what} is outside what the column {self._columns[role].name!r} can hold. Check where it comes from, "
                "or widen the column."
            )
        return kind.given(value)

    def may_be_id(self, role: str, value: object) -> bool:
        """Say whether a row of this table can have the id."""
        kind = self._ids[role]
        return _is_plain_number(value, kind) or (kind.accepts(value) and kind.holds(value))

    def id_type(self, role: str) -> IdType:
        """Return the type of a role's ids."""
        return self._ids[role]

    def now(self) -> datetime:
        """Return the clock's present moment, or refuse one without a time zone.

        Raises:
            ConfigurationError: The clock returned no datetime, one without a time zone, or one out of range.
        """
        now: object = self._clock()
        if not isinstance(now, datetime):
            raise ConfigurationError(f"clock= returned {type(now).__name__}. Return datetime.now(UTC).")
        if now.utcoffset() is None:
            raise ConfigurationError("clock= returned a naive datetime. Return datetime.now(UTC).")
        if not _FIRST_YEAR <= now.year < _LAST_YEAR:
            raise ConfigurationError(f"clock= returned a moment in the year {now.year}. Return datetime.now(UTC).")
        return now

    def stamped(self, roles: Sequence[str], now: datetime) -> dict[str, Any]:
        """Return a moment as each role's column takes it, by role, without the roles that have no column."""
        moments = self._moments
        return {role: moments[role](now) for role in roles if role in moments}

    def defaults(self) -> dict[str, Any]:
        """Call the application's ``default`` functions, and return their values as parameters."""
        return {name: call() for name, call in self._defaults.items()}

    def onupdate(self) -> dict[str, Any]:
        """Call the application's ``onupdate`` functions, and return their values as parameters."""
        return {name: call() for name, call in self._onupdate.items()}

    # -- statements ---------------------------------------------------------------------------------------------------

    def run(
        self,
        connection: sa.Connection,
        parameters: Parameters | Sequence[Parameters],
        key: Hashable,
        build: Callable[[], sa.Executable],
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run a statement, which is built when it is first needed.

        Args:
            connection: The connection that runs it.
            parameters: The statement's parameters.
            key: Names the statement among those of this table, in the cache.
            build: Builds the statement.

        Raises:
            sqlalchemy.exc.StatementError: The driver, or the serializer of JSON, cannot send one of the values.
        """
        statement = self.built(key, build)
        if self._named:
            parameters = self._with_names(connection, parameters)
        try:
            return connection.execute(statement, parameters)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise sa.exc.StatementError("", None, None, error, hide_parameters=True) from None

    def built(self, key: Hashable, build: Callable[[], sa.Executable]) -> sa.Executable:
        """Return a statement from the cache, after building it if the cache has none.

        Args:
            key: Names the statement among those of this table.
            build: Builds the statement.
        """
        statement: sa.Executable | None = self._built.get(key)
        if statement is None:
            if len(self._built) >= _REMEMBERED:
                self._built.clear()
            statement = self._built[key] = build()
        return statement

    def _with_names(
        self, connection: sa.Connection, parameters: Parameters | Sequence[Parameters]
    ) -> Parameters | Sequence[Parameters]:
        names = {parameter: stored_name(connection, table) for parameter, table in self._named.items()}
        if isinstance(parameters, dict):
            return Parameters(parameters, **names)
        return [Parameters(each, **names) for each in parameters]

    def name_on(self, connection: sa.Connection) -> str:
        """Return the table's name, with the schema in which a connection finds it."""
        return stored_name(connection, self._table)

    def is_this_table(self, connection: sa.Connection, table: str | None, schema: str | None) -> bool:
        """Say whether a name from the catalogue is that of this table, in the schema where the connection finds it."""
        mine = connection.schema_for_object(self._table)
        return table == self._table.name and (mine is None or schema is None or schema == mine)

    # -- what comes out -----------------------------------------------------------------------------------------------

    def values(self, row: Sequence[Any], offset: int = 0) -> dict[str, Any]:
        """Return the values of a row that a statement has read back, by role.

        Args:
            row: The row that a statement returned.
            offset: The index of the first column in it.
        """
        read = dict(zip(self.row_roles, row[offset:], strict=False))
        for role, reading in self._read:
            read[role] = reading(read[role])
        return read


def stored_name(connection: sa.Connection, table: sa.Table) -> str:
    """Return the name under which the ledger and the outbox store a table.

    It has the schema in which this connection has the table, which a ``schema_translate_map`` may say.
    """
    schema = connection.schema_for_object(table)
    return table.name if schema is None else f"{schema}.{table.name}"


def present() -> datetime:
    """Return the present moment by this machine's clock."""
    return datetime.now(UTC)


# -- forms ------------------------------------------------------------------------------------------------------------


def as_it_is(value: Any) -> Any:  # whatever the library holds
    """Return a value unchanged."""
    return value


def aware(moment: datetime) -> datetime:
    """Return a moment in UTC with its time zone, because SQLite's own type drops any other zone."""
    return moment.astimezone(UTC)


def naive(moment: datetime) -> datetime:
    """Return a moment in UTC without its time zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def seconds(moment: datetime) -> int:
    """Return a moment as whole seconds since 1970, rounded down: a float would round the last one of all up."""
    return (moment - _EPOCH) // _SECOND


def listed(scopes: Collection[str]) -> list[str]:
    """Return scopes as a sorted list."""
    return sorted(scopes)


def read_moment(value: Any) -> datetime | None:  # whatever the column's type returns
    """Return a moment from a column as an aware one: a naive one is UTC, and a number counts seconds since 1970."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return datetime.fromtimestamp(value, UTC)


def read_scopes(value: Any) -> frozenset[str]:
    """Return scopes from a column that holds them as one text or as a list, whose texts may hold several too."""
    texts = [value] if isinstance(value, str) else [text for text in value or () if isinstance(text, str)]
    return frozenset(scope for text in texts for scope in split_scopes(text))


def text_of(value: object) -> str:
    """Return an identifier as text, whatever Python type its column gives it."""
    return str(value.value) if isinstance(value, Enum) else str(value)


def holds_texts(account: object, asked: Mapping[str, Any], *, roles: Sequence[str], slugs: Mapping[Any, str]) -> bool:
    """Say whether a row holds the texts that a call names, byte by byte.

    No identifier ends in a blank, so blanks at the end are the padding of a ``CHAR(n)`` that is mapped as text.

    Args:
        account: The row, as a snapshot with an attribute for each role.
        asked: The values that the call names, by role, as their columns take them.
        roles: The roles to compare.
        slugs: The slug of each member, where the provider's column is an enumeration.
    """
    for role in roles:
        wanted, read = asked.get(role), getattr(account, role)
        if wanted is None or wanted == read:
            continue
        if text_of(read).rstrip(" ") != text_of(slugs.get(wanted, wanted)):
            return False
    return True


def _unpadded(value: Any) -> Any:  # a text, or NULL
    """Return a text without the blanks that ``CHAR(n)`` adds at its end."""
    return value and value.rstrip(" ")


def _is_plain_number(value: object, kind: IdType) -> bool:
    """Say whether an id is a whole number that its column can hold, as most ids are."""
    return type(value) is int and kind.python is int and (kind.low or 0) <= value <= (kind.high or 0)


class _NoContext:
    """Take the place of the statement's context in a function that expects one."""

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(self._complaint)


def _caller(mapping: TableMapping, column: sa.Column[Any], function: Any) -> Callable[[], Any]:
    """Return a function that calls a column's ``default`` or ``onupdate`` function, once per call.

    SQLAlchemy calls such a function for the outermost statement only. Inside a statement with several parts it would
    write NULL.
    """
    context = _NoContext(
        f"The default or onupdate function of {mapping.name}.{column.name} reads the statement's context, and a link "
        f"has none to give. Use a function without arguments, or pass values={{{column.name}: ...}} or update_values=."
    )
    return lambda: function.arg(context)
