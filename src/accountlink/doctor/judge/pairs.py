"""Make pairs of model rows: as few as show everything that an index can do.

Each column has the values at which something can turn: the same and another, another spelling, ``NULL`` where it takes
it, live and dead marks, and what the index's own expressions mention.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice, product
from math import prod
from typing import Final, TypeAlias

from accountlink.doctor.judge.subject import Subject, Value
from accountlink.doctor.judge.wording import Wording
from accountlink.doctor.schema import Column, Kind, Table

Given: TypeAlias = tuple[Value, ...]
"""The type of a model row, as values of :attr:`Pairs.columns`, in their order."""
Options = list[tuple[Value, Value]]
"""The values that a column may hold in the two rows of a pair."""

_MOST: Final = 20_000
"""The largest number of pairs; an index that needs more stays undecided."""
_TURNS: Final = 7
"""The largest number of mentioned values that are tried for one column."""
_TEXTS: Final = (Kind.TEXT, Kind.PADDED, Kind.ENUM)
_SECRETS: Final = ("access_token", "refresh_token", "token_hash")
"""The columns whose values differ between any two rows, unless there is none."""
_FORMS: Final = {
    Kind.MOMENT: re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*|-?infinity|epoch"),
    Kind.UUID: re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE),
}
"""The form of a text that stands for a value of the kind."""
_MOMENTS: Final = ("2001-02-03 04:05:06", "2002-03-04 05:06:07")
_UUIDS: Final = ("6f9619ff-8b86-4011-b42d-00c04fc964ff", "7d444840-9dc0-41d1-b245-5ffdce74fad2")


class Pairs:
    """Make the pairs that one index is judged by. A generated column has no value here: the database computes it.

    Args:
        subject: What the rows must and may be.
        table: The table.
        read: The columns that the index's key reads.
        expressions: The expressions of its key and its condition.
        checks: Checks of the table that bear on what the expressions read.
        dialect: ``postgresql`` or ``sqlite``.
    """

    def __init__(
        self,
        subject: Subject,
        table: Table,
        *,
        read: frozenset[str],
        expressions: Sequence[Wording],
        checks: Sequence[Wording],
        dialect: str,
    ) -> None:
        self._subject = subject
        self._table = table
        self._read = read
        self._expressions = [*expressions, *checks]
        self._dialect = dialect
        self._roles = {name: role for role, name in subject.roles.items()}
        self._mentions_more = False
        self.cut_short = False
        """The answer to whether some pairs were left out, because there are too many."""

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns that a pair gives values for."""
        subject = self._subject
        wanted = self._read | self._computed | {name for need in subject.needs for name in need.columns}
        wanted |= subject.marks
        made = (column.generated for column in self._table.columns if column.name in wanted)
        behind = (Wording(sql, self._table, self._dialect).columns for sql in made if sql is not None)
        wanted = wanted.union(*behind)
        return tuple(column for column in self._table.columns if column.name in wanted and column.generated is None)

    def equal_in(self, names: Collection[str]) -> Iterator[tuple[Given, Given]]:
        """Return pairs that are equal in some columns; columns of the application may hold any value."""
        choices = {}
        for column in self.columns:
            options = self._written(column) or self._of_application(column)
            if column.name in names:
                options = [(a, b) for a, b in options if same(a, b)] or [(options[0][0], options[0][0])]
            choices[column.name] = options
        return self._all(choices)

    def as_written(self, *, alike: Collection[str]) -> Iterator[tuple[Given, Given]]:
        """Return pairs of rows as accountlink writes them: other columns have the values that a new row gets.

        Args:
            alike: Columns in which only pairs that differ at most in case are wanted.
        """
        choices = {}
        for column in self.columns:
            options = self._written(column) or self._by_default(column)
            if column.name in alike:
                options = [(a, b) for a, b in options if same(folded(a), folded(b))]
            choices[column.name] = options
        return self._all(choices)

    def _all(self, choices: dict[str, Options]) -> Iterator[tuple[Given, Given]]:
        self.cut_short = self._mentions_more or prod(len(options) for options in choices.values()) > _MOST
        for chosen in islice(product(*choices.values()), _MOST):
            yield tuple(a for a, _ in chosen), tuple(b for _, b in chosen)

    @cached_property
    def _computed(self) -> frozenset[str]:
        """The columns that the expressions read."""
        return frozenset().union(*(expression.columns for expression in self._expressions))

    # -- values -------------------------------------------------------------------------------------------------------

    def _written(self, column: Column) -> Options:
        """Return the values of a column that accountlink writes; an empty list for any other column."""
        role, further = self._roles.get(column.name), self._turning(column)
        one, other = two_of(column)
        if role is None:
            return []
        if role == "id":
            return [(one, other), *((a, b) for a, b in product(further, further) if a != b)]
        if role == "deleted_at":
            return list(product((None, one), (None, other)))
        if role == "active":
            return list(product(_states(column), _states(column)))
        null: Options = [(None, None), (None, one)] if column.nullable else []
        if role in _SECRETS:
            return [("token-1", "token-2"), *(null[:1] or [("", "")])]
        text = column.kind in (Kind.TEXT, Kind.PADDED)
        spelt: Options = [("x", "X")] if text and column.name in self._subject.identifiers else []
        turning = [one, *further] if further else []
        turned: Options = list(product(turning, turning))
        run_together: Options = [("x", "xy"), ("yz", "z")] if text and column.name in self._joined else []
        return list(dict.fromkeys([(one, one), (one, other), *spelt, *null, *turned, *run_together]))

    def _of_application(self, column: Column) -> Options:
        """Return the values that a column of the application may hold."""
        if column.kind is Kind.BOOLEAN:
            return list(product(_states(column), _states(column)))
        values: list[Value] = [*two_of(column), *self._turning(column), *([None] if column.nullable else [])]
        if (default := self._default(column)) is not None:
            values.append(default)
        each = list(dict.fromkeys(values))
        return list(product(each, each))

    def _by_default(self, column: Column) -> Options:
        """Return the values that new rows get in a column of the application; without a default, two that differ."""
        if column.nullable and (column.default is None or column.default.upper().startswith("NULL")):
            return [(None, None)]
        default = self._default(column)
        return [two_of(column) if default is None else (default, default)]

    def _default(self, column: Column) -> Value:
        """Return the value of a column's default, if the default is one literal."""
        if column.identity or column.default is None:
            return None
        text = Wording(column.default, self._table, self._dialect).literal
        if text is not None and column.kind is Kind.BOOLEAN:
            return text.lower() in ("true", "1", "t")
        if text is not None and column.kind is Kind.INTEGER:
            return int(text) if text.removeprefix("-").isdigit() else None
        return text

    def _turning(self, column: Column) -> list[Value]:
        """Return the values that the expressions mention and the column can hold."""
        if column.name not in self._computed:
            return []
        mentioned = [value for expression in self._expressions for value in expression.mentions]
        values: list[Value] = []
        if column.kind is Kind.INTEGER:
            near = [n for value in mentioned if isinstance(value, int) for n in (value - 1, value, value + 1)]
            values = [
                n for n in (0, *near) if column.bits is None or -(2 ** (column.bits - 1)) <= n < 2 ** (column.bits - 1)
            ]
        elif column.labels:
            values = list(column.labels)
        elif column.kind in _TEXTS:
            truth = ["1"] if self._dialect == "sqlite" else []  # a text there may be a number, and so be true
            values = [*truth, *(value for value in mentioned if isinstance(value, str))]
            values += ["unmentioned"] if {*two_of(column)} & {*values} else []
        elif column.kind in _FORMS:
            values = [v for v in mentioned if isinstance(v, str) and _FORMS[column.kind].fullmatch(v)]
        values = list(dict.fromkeys(values))
        self._mentions_more = self._mentions_more or len(values) > _TURNS
        return values[:_TURNS]

    @cached_property
    def _joined(self) -> frozenset[str]:
        """The columns that an expression runs together with others, where no border may be left between them."""
        joining = [each for each in self._expressions if "||" in each.sql or "concat" in each.sql.lower()]
        return frozenset().union(*(expression.columns for expression in joining))


def same(a: Value, b: Value) -> bool:
    """Say whether two values of a column are equal; ``NULL`` equals ``NULL``."""
    return type(a) is type(b) and a == b


def folded(value: Value) -> Value:
    """Return a text without differences of case; any other value as it is."""
    return value.casefold() if isinstance(value, str) else value


def two_of(column: Column) -> tuple[Value, Value]:
    """Return two different values of a column's kind, or its only value twice."""
    match column.kind:
        case Kind.ENUM if column.labels:
            return column.labels[0], column.labels[-1]
        case Kind.TEXT | Kind.PADDED | Kind.ENUM:
            return "x", "y"
        case Kind.INTEGER:
            return 1, 2
        case Kind.BOOLEAN:
            return True, False
        case Kind.MOMENT:
            return _MOMENTS
        case Kind.UUID:
            return _UUIDS
        case Kind.OTHER:
            return "1", "2"


def _states(column: Column) -> tuple[Value, ...]:
    return (True, False, None) if column.nullable else (True, False)
