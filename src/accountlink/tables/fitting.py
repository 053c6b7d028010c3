"""Check, before any SQL, that a column can hold a value that a call brings.

Databases and drivers differ in the values that they refuse, and some store another value than the one that they were
given. These checks refuse the same values on every database and driver. A type that the application defined itself is
not checked.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from accountlink.errors import ConfigurationError
from accountlink.tables.idtype import IdType
from accountlink.tables.type_layers import Type, python_type, resolved, writes_values
from accountlink.values.text import storable

_DEEP: Final = 100
"""The greatest depth of nested lists and mappings, so that one that contains itself is found."""
_PLAIN: Final[dict[type, tuple[type, ...]]] = {
    date: (date,),
    time: (time,),
    timedelta: (timedelta,),
    UUID: (UUID,),
    bytes: (bytes, bytearray, memoryview),
}
"""Values that columns of these Python types accept, where only the type matters."""


def limit_of(column: sa.Column[Any]) -> int | None:
    """Return how many characters a text column takes; ``None`` for any number, or a type of the application's own."""
    kind = _own_types(column.type)[0]
    return kind.length if isinstance(kind, sa.String) and not isinstance(kind, sa.Enum) else None


def check_length(text: str, column: sa.Column[Any]) -> None:
    """Refuse a text that is longer than its column.

    Raises:
        ConfigurationError: The text is longer than its column.
    """
    limit = limit_of(column)
    if limit is not None and len(text) > limit:
        raise ConfigurationError(
            f"A value for {_named(column)} has {len(text)} characters, and the column takes {limit}. Widen the column, "
            "or shorten the value."
        )


def fitted(value: object, column: sa.Column[Any]) -> Any:  # what the driver is given
    """Return an application's value as its column takes it.

    Raises:
        ConfigurationError: An SQL expression, a value of another kind than the column's, or one that it cannot hold.
    """
    if isinstance(value, sa.sql.expression.ClauseElement) or hasattr(value, "__clause_element__"):
        raise ConfigurationError(
            f"An SQL expression cannot be the value of {_named(column)}: what a call brings are plain values. Compute "
            "it before the call, let a server_default or a trigger of the column do so, or update the row in the same "
            "transaction."
        )
    if value is None:
        return None
    refused: ConfigurationError | None = None
    for kind in _own_types(column.type):  # what the type of one database takes, may be the application's for that one
        try:
            return _fitted(value, column, kind)
        except ConfigurationError as error:
            refused = refused or error
    assert refused is not None  # noqa: S101  # there is a type for one database at least
    raise refused


def _fitted(value: object, column: sa.Column[Any], kind: Any) -> Any:  # as the type of one database takes it
    if isinstance(kind, sa.Enum):
        return _member(value, column, kind)
    python = None if kind is None else python_type(kind)
    fit = _FITS.get(python) if python is not None else None
    if fit is not None:
        return fit(value, column, kind)
    if python in _PLAIN and not isinstance(value, _PLAIN[python]):
        raise _another_kind(value, column, python.__name__)
    _check_inside(value, column, _DEEP)
    return value


def _text(value: Any, column: sa.Column[Any], _kind: Any) -> str:
    if not isinstance(value, str):
        raise _another_kind(value, column, "str")
    _check_inside(value, column, 0)
    check_length(value, column)
    return str.__str__(value)  # a plain text, also of an enumeration's member


def _member(value: Any, column: sa.Column[Any], kind: sa.Enum) -> Any:  # as the enumeration has it
    if kind.enum_class is not None and isinstance(value, kind.enum_class):
        return value
    if isinstance(value, str) and value in kind.enums:
        return str.__str__(value)
    raise ConfigurationError(
        f"A value for {_named(column)} is none of those that its enumeration has: {', '.join(kind.enums)}."
    )


def _whole_number(value: Any, column: sa.Column[Any], _kind: Any) -> int:
    if not hasattr(type(value), "__index__"):  # which numpy's have, too
        raise _another_kind(value, column, "int")
    number = operator.index(value)
    if not IdType.of(column).holds(number):
        raise _too_great(column)
    return int(number)


def _number(value: Any, column: sa.Column[Any], kind: Any) -> Any:  # of the class that it is
    if not isinstance(value, (Real, Decimal)):
        raise _another_kind(value, column, "float" if isinstance(kind, sa.Float) else "Decimal")
    near = _near(value)
    if near is None:
        raise _too_great(column)
    if isinstance(kind, sa.Float):
        return near
    digits = None if kind.precision is None else kind.precision - (kind.scale or 0)
    if digits is not None and abs(near) >= 10.0**digits:
        raise _too_great(column)
    if isinstance(value, Decimal):
        return value
    whole: Any = value
    return operator.index(whole) if hasattr(type(value), "__index__") else near  # a flag is a number, too


def _flag(value: Any, column: sa.Column[Any], _kind: Any) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise _another_kind(value, column, "bool")


def _moment(value: Any, column: sa.Column[Any], kind: Any) -> datetime:
    if not isinstance(value, datetime):
        raise _another_kind(value, column, "datetime")
    aware = value.tzinfo is not None
    if aware is not bool(kind.timezone) or (aware and value.utcoffset() is None):
        has, takes = ("a time zone", "none") if aware else ("no time zone", "one")
        raise ConfigurationError(
            f"The moment for {_named(column)} has {has}, and the column takes {takes}: databases would store another "
            "moment. Convert it before the call."
        )
    if aware and not _is_in_utc(value):
        raise _too_great(column)
    return value


def _near(value: Any) -> float | None:
    """Return a number as a float, or ``None`` for one that is out of range or a signalling NaN."""
    try:
        return float(value)
    except (OverflowError, ValueError):
        return None


def _is_in_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


_FITS: Final[dict[type, Callable[[Any, sa.Column[Any], Any], Any]]] = {
    str: _text,
    int: _whole_number,
    float: _number,
    Decimal: _number,
    bool: _flag,
    datetime: _moment,
}


def _check_inside(value: object, column: sa.Column[Any], depth: int) -> None:
    """Refuse texts that no database can hold, and numbers that JSON cannot write, at any depth."""
    if isinstance(value, str):
        if not storable(value):
            raise ConfigurationError(
                f"A text for {_named(column)} has a NUL or a lone surrogate in it, which no column can hold. Take it "
                "out, or refuse the text."
            )
    elif isinstance(value, float):
        if isinstance(column.type, sa.JSON) and not math.isfinite(value):
            raise ConfigurationError(f"A number for {_named(column)} is not finite, which JSON cannot say.")
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        if not depth:
            raise ConfigurationError(f"A value for {_named(column)} is nested more than {_DEEP} deep, or holds itself.")
        for item in (*value, *value.values()) if isinstance(value, Mapping) else value:
            _check_inside(item, column, depth - 1)


@lru_cache(maxsize=256)
def _own_types(kind: Type) -> tuple[Any, ...]:  # of types, and None
    """Return SQLAlchemy's own types, PostgreSQL's first, or ``None`` where the application's code makes the value."""
    found = [None if any(_makes(layer) for layer in layers) else _plain(layers) for _, layers in resolved(kind)]
    return tuple({repr(each): each for each in found}.values()) or (None,)


def _makes(layer: Type) -> bool:
    return writes_values(layer) and not isinstance(layer, sa.Interval)  # SQLAlchemy's own, and no date


def _plain(layers: list[Type]) -> Type:
    return next((layer for layer in layers if isinstance(layer, sa.Interval)), layers[-1])


def _named(column: sa.Column[Any]) -> str:
    return f"the column {column.name!r} of {column.table.name!r}"


def _another_kind(value: object, column: sa.Column[Any], wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"A value for {_named(column)} is {type(value).__name__}, and the column takes {wanted}. Convert it before the "
        "call."
    )


def _too_great(column: sa.Column[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"A value for {_named(column)} is outside what the column can hold. Check where it comes from, or widen the "
        "column."
    )
