"""Pairs of model rows, as few as show whatever an index can do.

Each column has the values at which something can turn: the same and another, another spelling, ``NULL`` where it takes
it, live and dead marks, and what the index's own expressions mention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice, product
from math import prod
from typing import Final

from accountlink.doctor.judge.expressions import UNKNOWN, Expression, Opaque, Unknown, Value, literals, parse
from accountlink.doctor.judge.subject import Row, Subject
from accountlink.doctor.schema import Column, Kind, Table

Options = list[tuple[Value, Value]]
"""What a column may hold in the two rows of a pair."""

_MOST: Final = 20_000
"""How many pairs are looked at; an index that would take more is not decided."""
_TURNS: Final = 6
"""How many values of one column are tried because an expression mentions them."""
_TEXTS: Final = (Kind.TEXT, Kind.PADDED, Kind.ENUM)
_SECRETS: Final = ("access_token", "refresh_token", "token_hash")
"""Columns whose values differ between any two rows, unless there is none."""
_MOMENTS: Final = (Opaque("moment-1"), Opaque("moment-2"))


class Pairs:
    """Makes the pairs that one index is judged by.

    Args:
        subject: What the rows must and may be.
        table: The table.
        read: The columns that the index's key reads.
        expressions: The expressions of its key and its condition.
        dialect: ``postgresql`` or ``sqlite``.
    """

    def __init__(
        self,
        subject: Subject,
        table: Table,
        *,
        read: frozenset[str],
        expressions: Sequence[Expression],
        dialect: str,
    ) -> None:
        self._subject = subject
        self._table = table
        self._read = read
        self._expressions = expressions
        self._dialect = dialect
        self._roles = {name: role for role, name in subject.roles.items()}
        self._mentions_more = False
        self.cut_short = False
        """Whether some pairs were left out, because there are too many."""

    def equal_in(self, columns: Collection[str]) -> Iterator[tuple[Row, Row]]:
        """Pairs that are equal in some columns; those that accountlink does not write may hold anything."""
        choices = {}
        for column in self._relevant:
            options = self._written(column) or self._of_application(column)
            if column.name in columns:
                options = [(a, b) for a, b in options if same(a, b)] or [(options[0][0], options[0][0])]
            choices[column.name] = options
        return self._all(choices)

    def any(self) -> Iterator[tuple[Row, Row]]:
        """All pairs that there may be."""
        return self.equal_in(())

    def as_written(self, *, alike: Collection[str]) -> Iterator[tuple[Row, Row]]:
        """Pairs of rows as accountlink writes them: its own columns in any way, the others as a new row gets them.

        Args:
            alike: Columns in which only pairs that differ at most in case are wanted.
        """
        choices = {}
        for column in self._relevant:
            options = self._written(column) or self._by_default(column)
            if column.name in alike:
                options = [(a, b) for a, b in options if same(folded(a), folded(b))]
            choices[column.name] = options
        return self._all(choices)

    def _all(self, choices: dict[str, Options]) -> Iterator[tuple[Row, Row]]:
        self.cut_short = self._mentions_more or prod(len(options) for options in choices.values()) > _MOST
        possible = False
        for refused in (self._refused, lambda _: False):  # checks that no model row meets are not understood
            for chosen in islice(product(*choices.values()), _MOST):
                first = self._with_generated(dict(zip(choices, (a for a, _ in chosen), strict=True)))
                second = self._with_generated(dict(zip(choices, (b for _, b in chosen), strict=True)))
                if not (refused(first) or refused(second)):
                    possible = True
                    yield first, second
            if possible:
                return

    def _refused(self, row: Row) -> bool:
        """Whether a check of the table refuses the row."""
        return any(check.evaluate(row) is False for check in self._checks)

    @cached_property
    def _checks(self) -> list[Expression]:
        """The checks about columns that the index's expressions read."""
        names = [column.name for column in self._table.columns]
        parsed = [parse(check, columns=names, dialect=self._dialect) for check in self._table.checks]
        return [check for check in parsed if check.columns & self._computed]

    # -- columns ------------------------------------------------------------------------------------------------------

    @cached_property
    def _generated(self) -> dict[str, Expression]:
        names = [column.name for column in self._table.columns]
        return {
            column.name: parse(column.generated, columns=names, dialect=self._dialect)
            for column in self._table.columns
            if column.generated is not None
        }

    def _with_generated(self, row: dict[str, Value]) -> Row:
        for name, expression in self._generated.items():
            row[name] = expression.evaluate(row)
        return row

    @cached_property
    def _computed(self) -> frozenset[str]:
        """The columns that the index's expressions read."""
        return frozenset().union(*(expression.columns for expression in self._expressions))

    @cached_property
    def _relevant(self) -> list[Column]:
        """The columns that a pair has to give values for; generated ones follow from the others."""
        subject = self._subject
        wanted = self._read | self._computed | {name for need in subject.needs for name in need.columns}
        wanted |= {subject.roles[role] for role in ("deleted_at", "active") if role in subject.roles}
        for name in wanted & self._generated.keys():
            wanted |= self._generated[name].columns
        return [column for column in self._table.columns if column.name in wanted and column.generated is None]

    # -- values -------------------------------------------------------------------------------------------------------

    def _written(self, column: Column) -> Options:
        """What a column that accountlink writes may hold; nothing for any other column."""
        role, further = self._roles.get(column.name), self._turning(column)
        one, other = _two(column)
        if role is None:
            return []
        if role == "id":
            return [(one, other), *((a, b) for a, b in product(further, further) if a != b)]
        if role == "deleted_at":
            return list(product((None, _MOMENTS[0]), (None, _MOMENTS[1])))
        if role == "active":
            return list(product(_states(column), _states(column)))
        null: Options = [(None, None), (None, one)] if column.nullable else []
        if role in _SECRETS:
            return [("token-1", "token-2"), *(null[:1] or [("", "")])]
        spelt: Options = [("x", "X")] if column.name in self._subject.identifiers and isinstance(one, str) else []
        turned: Options = list(product([one, *further], [one, *further])) if further else []
        run_together: Options = [("x", "xy"), ("yz", "z")] if column.name in self._joined else []
        return list(dict.fromkeys([(one, one), (one, other), *spelt, *null, *turned, *run_together]))

    def _of_application(self, column: Column) -> Options:
        """Whatever a column of the application may hold; what a trigger makes of it cannot be told."""
        if self._table.rewritten and column.name in self._computed:
            return [(UNKNOWN, UNKNOWN)]
        if column.kind is Kind.BOOLEAN:
            return list(product(_states(column), _states(column)))
        values: list[Value] = [*_two(column), *self._turning(column), *([None] if column.nullable else [])]
        default = self._default(column)
        if not isinstance(default, Unknown) and default is not None:
            values.append(default)
        each = list(dict.fromkeys(values))
        return list(product(each, each))

    def _by_default(self, column: Column) -> Options:
        """What a new row gets in a column of the application; what only the application can give differs."""
        default = self._default(column)
        if isinstance(default, Unknown) or (default is None and not column.nullable):
            return [_two(column)]
        return [(default, default)]

    def _default(self, column: Column) -> Value:
        if column.identity:
            return UNKNOWN
        return None if column.default is None else parse(column.default, columns=(), dialect=self._dialect).evaluate({})

    def _turning(self, column: Column) -> list[Value]:
        """Values of a column's kind at which an expression of the index may turn: those that it mentions."""
        if column.name not in self._computed:
            return []
        texts = [expression.sql for expression in (*self._expressions, *self._checks)]
        mentioned = [value for text in texts for value in literals(text, dialect=self._dialect)]
        values: list[Value] = []
        if column.kind is Kind.INTEGER:
            values = [near for v in mentioned if isinstance(v, int) for near in (v - 1, v, v + 1)]
        elif column.labels:
            values = list(column.labels)
        elif column.kind in _TEXTS:
            values = [v for v in mentioned if isinstance(v, str)]
        values = list(dict.fromkeys(values))
        self._mentions_more = self._mentions_more or len(values) > _TURNS
        return values[:_TURNS]

    @cached_property
    def _joined(self) -> frozenset[str]:
        """Columns that an expression runs together with others, where no border may be left between them."""
        joining = [
            expression for expression in self._expressions if "||" in expression.sql or "concat" in expression.sql
        ]
        return frozenset().union(*(expression.columns for expression in joining))


def same(a: Value, b: Value) -> bool:
    """Whether two values of a column are equal, ``NULL`` included."""
    return a is b or (type(a) is type(b) and a == b)


def folded(value: Value) -> Value:
    """A text without its case."""
    return value.casefold() if isinstance(value, str) else value


def _states(column: Column) -> tuple[Value, ...]:
    return (True, False, None) if column.nullable else (True, False)


def _two(column: Column) -> tuple[Value, Value]:
    """Two values of a column's kind that differ, unless it has but one."""
    if column.labels:
        return column.labels[0], column.labels[-1]
    if column.kind in _TEXTS:
        return "x", "y"
    if column.kind is Kind.INTEGER:
        return 1, 2
    if column.kind is Kind.BOOLEAN:
        return True, False
    return Opaque(f"{column.name}-1"), Opaque(f"{column.name}-2")
