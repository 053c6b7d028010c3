"""Define the trial of an index: its conditions and key parts, the model rows, and the database's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, TypeAlias

from accountlink.doctor.catalogue.tokens import quoted
from accountlink.doctor.judge.pairs import Given, Pairs
from accountlink.doctor.judge.subject import Row, Subject
from accountlink.doctor.judge.wording import Wording, parts_of
from accountlink.doctor.schema import Column, Index, IndexPart, Table

_MOST_CONDITIONS: Final = 50
"""The most bits that a condition is taken apart into; a longer one is one bit."""


@dataclass(frozen=True, kw_only=True)
class Bit:
    """Describe a part of an index's key, or a condition that all its rows meet.

    Attributes:
        words: Its words.
        part: The part of the key that it is; ``None`` for a condition.
    """

    words: Wording
    part: IndexPart | None = None

    @property
    def column(self) -> Column | None:
        """The column that it consists of; ``None`` for an expression."""
        return None if self.part is None or self.part.column is None else self.words.table.column(self.part.column)

    @property
    def plain(self) -> bool:
        """The answer to whether model rows show all that this bit can do."""
        if self.part is not None and self.words.constant:
            return True
        column = self.column
        return self.words.plain if column is None else column.generated is None or self.words.plain


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Hold the database's answer for one row.

    Attributes:
        row: The row, its generated columns included.
        allowed: Whether the checks that were asked let it in.
        bits: For each bit whether it is met, or where its value stands among those of the other rows; ``None`` for
            ``NULL``.
    """

    row: Row
    allowed: bool
    bits: Sequence[bool | int | None]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Hold the database's answers for the rows of a trial.

    Attributes:
        seen: What it made of each row.
        known: The bits that it could be asked about, by number.
        lumped: Those of them whose values may be equal although they stand in different places.
    """

    seen: Mapping[Given, Seen]
    known: frozenset[int]
    lumped: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Hold the question about one index.

    Attributes:
        subject: What the table's rows must and may be.
        table: The table.
        index: The index.
        dialect: ``postgresql`` or ``sqlite``.
    """

    subject: Subject
    table: Table
    index: Index
    dialect: str

    @cached_property
    def bits(self) -> tuple[Bit, ...]:
        """The conditions of the index, then the parts of its key."""
        where = self.index.where
        conditions = [] if where is None else parts_of(where, self.dialect)
        if where is not None and len(conditions) > _MOST_CONDITIONS:
            conditions = [where]
        return (
            *(Bit(words=self._words(sql)) for sql in conditions),
            *(Bit(words=self._part_words(part), part=part) for part in self.index.parts),
        )

    @cached_property
    def checks(self) -> tuple[Wording, ...]:
        """The table's checks about columns that its expressions read, as far as rows exhaust them."""
        read = frozenset().union(*(expression.columns for expression in self._expressions))
        checks = (self._words(check) for check in self.table.checks)
        return tuple(check for check in checks if check.columns & read and check.plain)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of rows that it is tried with."""
        return Pairs(
            self.subject,
            self.table,
            read=self.reads,
            expressions=self._expressions,
            checks=self.checks,
            dialect=self.dialect,
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that its rows give values for."""
        return self.pairs.columns

    @cached_property
    def generated(self) -> tuple[Column, ...]:
        """The columns that the database computes from those."""
        given = {column.name for column in self.columns}
        return tuple(
            column
            for column in self.table.columns
            if column.generated is not None and self._words(column.generated).columns <= given
        )

    @cached_property
    def reads(self) -> frozenset[str]:
        """The columns that its key reads, those behind generated columns included."""
        return frozenset().union(*(bit.words.columns for bit in self.bits if bit.part is not None))

    @cached_property
    def alike(self) -> frozenset[str]:
        """The columns that stand in its key as they are."""
        return frozenset(part.column for part in self.index.parts if part.column is not None)

    @cached_property
    def rows(self) -> tuple[Given, ...]:
        """The rows that the index is tried with, each once."""
        pairs = (self.pairs.equal_in(need.columns) for need in self.subject.needs)
        each = chain(*pairs, self.pairs.as_written(alike=self.alike))
        return tuple(dict.fromkeys(row for pair in each for row in pair))

    @cached_property
    def _expressions(self) -> Sequence[Wording]:
        """The conditions of the index, and the expressions of its key and of the generated columns in its key."""
        columns = [bit.column for bit in self.bits]
        made = [self._words(column.generated) for column in columns if column is not None and column.generated]
        return [*(bit.words for bit in self.bits if bit.column is None), *made]

    def _words(self, sql: str) -> Wording:
        return Wording(sql, self.table, self.dialect)

    def _part_words(self, part: IndexPart) -> Wording:
        return self._words(part.sql if part.column is None else quoted(part.column))


Ask: TypeAlias = Callable[[Sequence[Trial]], Sequence[Answers | None]]
"""The type of a function that asks about some trials at once; ``None`` for one that the database could not answer."""


def read_row(
    trial: Trial, given: Given, told: Sequence[Any], *, bits: Sequence[int], allowed: bool = True
) -> Seen:  # values by the statement of each database
    """Return the database's answer for one row.

    Args:
        trial: The question.
        given: The row.
        told: The values of its generated columns, then those of the bits.
        bits: The bits that were asked about, by number.
        allowed: Whether the checks that were asked let it in.
    """
    names = (column.name for column in (*trial.columns, *trial.generated))
    generated, met = told[: len(trial.generated)], told[len(trial.generated) :]
    by_number = dict(zip(bits, met, strict=True))
    return Seen(
        row=dict(zip(names, (*given, *generated), strict=True)),
        allowed=allowed,
        bits=[by_number.get(number) for number in range(len(trial.bits))],
    )
