"""Find the Python type of an id column, and the range of its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from accountlink.tables.type_layers import is_padded, plain_type, plain_types, python_type, resolved, works_on_values
from accountlink.values.text import storable


def _bits(kind: sa.types.TypeEngine[Any]) -> int:
    return 63 if isinstance(kind, sa.BigInteger) else 15 if isinstance(kind, sa.SmallInteger) else 31


def smallest_bits(kind: sa.types.TypeEngine[Any]) -> int:
    """Return the least number of bits, without the sign, that a column of whole numbers has on any of the databases."""
    return min(_bits(plain) if isinstance(plain, sa.Integer) else 15 for plain in (*_itself(kind), *plain_types(kind)))


def _itself(kind: sa.types.TypeEngine[Any]) -> list[sa.types.TypeEngine[Any]]:
    """Return a type of whole numbers itself, without its variants for single databases, or nothing for another type."""
    return [kind] if isinstance(kind, sa.Integer) else []


@dataclass(frozen=True, kw_only=True, slots=True)
class IdType:
    """Hold the Python type that an id column takes, and the range of its values."""

    python: type[Any] | None
    processors: tuple[Callable[[Any], Any], ...] = field(default=(), repr=False)
    spelling: tuple[Callable[[Any], Any], ...] = field(default=(), repr=False)
    """The functions by which a type of the application's own writes an id and reads it again."""
    low: int | None = None
    high: int | None = None
    is_uuid_text: bool = False
    is_padded: bool = False

    @classmethod
    def of(cls, column: sa.Column[Any]) -> IdType:
        """Read the type of ids from a column."""
        kind = column.type
        works = works_on_values(kind)
        python = python_type(kind) or (None if works else python_type(plain_type(kind)))
        spelling = _spelling(kind) if works else ()
        if works and python not in (int, str, UUID):  # what its own processor refuses is not of its type
            made: list[Any] = [layers[0].bind_processor(dialect) for dialect, layers in resolved(kind)]
            processors = tuple(process for process in made if process is not None)
            return cls(python=None, processors=processors, spelling=spelling)
        if python is int:
            bits = max(_bits(plain) for plain in (*_itself(kind), *plain_types(kind)))
            return cls(python=int, low=-(2**bits), high=2**bits - 1, spelling=spelling)
        is_uuid_text = python is str and isinstance(plain_type(kind), sa.Uuid)
        known = python if python in (str, UUID) else None
        return cls(python=known, spelling=spelling, is_uuid_text=is_uuid_text, is_padded=is_padded(kind))

    def accepts(self, value: object) -> bool:
        """Say whether a value is of the column's own type."""
        if self.python is not None:
            return isinstance(value, self.python) and not isinstance(value, bool)
        try:
            return all(process(value) is not None for process in self.processors)
        except (TypeError, ValueError, AttributeError, LookupError):
            return False

    def given(self, value: Any) -> Any:  # whatever the column takes
        """Return an id as the database gets it: no member of an enumeration, and no padding of the column's.

        Padding may not go to the database: psycopg sends each text as one whose blanks at the end count.
        """
        if isinstance(value, Enum) and self.python in (int, str) and not self.spelling:
            value = int(value) if isinstance(value, int) else str.__str__(value)
        return value.rstrip(" ") if self.is_padded and isinstance(value, str) else value

    def stored(self, value: Any) -> Any:  # what the driver is given
        """Return a value as the column's own processor makes it, where the type is an application's."""
        return self.processors[0](value) if self.processors else value

    def one_form(self, value: Any) -> Any:  # a number, a text or a UUID
        """Return an id in one form, however the caller wrote it.

        It is the form in which a row has it: UUIDs in a text are UUIDs, texts have no padding of the column's, and a
        type of the application's own has written and read the id.
        """
        value = self._read_back(value)
        if isinstance(value, str):
            if self.is_uuid_text:
                return UUID(value)
            return value.rstrip(" ") if self.is_padded else value
        return value if isinstance(value, (int, UUID)) else self.stored(value)

    def _read_back(self, value: Any) -> Any:  # whatever the application's type makes of it
        """Return an id as the column's own type gives it back once it was written."""
        read = value
        try:
            for process in self.spelling:
                read = process(read)
        except (TypeError, ValueError, AttributeError, LookupError):
            return value  # it reads what a driver returns, and not what a driver is given
        return read

    def holds(self, value: object) -> bool:
        """Say whether a value of the column's type is in the range of the column."""
        if isinstance(value, str):
            if self.is_uuid_text and not _is_uuid(value):
                return False
            return storable(value)
        return self.low is None or self.high is None or (isinstance(value, int) and self.low <= value <= self.high)


def _spelling(kind: sa.types.TypeEngine[Any]) -> tuple[Callable[[Any], Any], ...]:
    """Return the functions by which a type writes a value and reads it again, in their order."""
    made: list[Any] = []
    for dialect, layers in resolved(kind)[:1]:
        made = [layers[0].bind_processor(dialect), layers[0].result_processor(dialect, None)]
    return tuple(process for process in made if process is not None)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
