"""What a unique index makes of what a table's rows must and may be.

An index is judged by what it does, never by its name or its text: pairs of model rows are put through its condition and
its key. Two rows that the policy forbids together must collide in some index; two rows that it allows together must
collide in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

from accountlink.doctor.judge.expressions import UNKNOWN, Expression, Opaque, Unknown, Value, equal, parse
from accountlink.doctor.judge.pairs import Pairs, folded, same
from accountlink.doctor.judge.subject import Need, Row, Subject
from accountlink.doctor.schema import Index, Kind, Table


class Verdict(Enum):
    """Whether an index does something."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


class Cause(Enum):
    """Why an index that reads a need's columns does not enforce it."""

    NULL = "its columns take NULL, which it never refuses"
    CONDITION = "its condition leaves live rows out"
    MARK = "the mark of dead rows stands in its key"


class Allowed(Enum):
    """What kind of pair that the policy allows an index refuses; the worst first."""

    LIVE = "two live rows"
    SPELLING = "two live rows that differ in spelling alone"
    DEAD = "a dead row and another"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a unique index does to the policy.

    Attributes:
        index: The index.
        enforces: For each need, whether the index refuses every pair that the need forbids.
        causes: For a need that it reads the columns of and does not enforce, the one thing that keeps it from that, if
            it is one thing.
        refuses: The worst kind of pair that the policy allows and the index refuses.
        undecided: Whether it could not be told of some allowed pair if the index refuses it.
        conditional: Whether its condition leaves out any row at all.
        counts_dead: Whether its condition may hold for a dead row.
        reads: The columns that its key reads.
    """

    index: Index
    enforces: Mapping[Need, Verdict]
    causes: Mapping[Need, Cause]
    refuses: Allowed | None
    undecided: bool
    conditional: bool
    counts_dead: bool
    reads: frozenset[str]

    @property
    def rule(self) -> str | None:
        """The doctor's rule by which this index blocks what the policy allows; ``None``: it blocks nothing."""
        about_key = any(need.key and set(need.columns) <= self.reads for need in self.enforces)
        match self.refuses:
            case None:
                return None
            case Allowed.LIVE:
                return "stale-unique"
            case Allowed.SPELLING:
                return "key-compares-differently"
            case Allowed.DEAD if not about_key:
                return "stale-unique"
            case Allowed.DEAD:
                return "wrong-predicate" if self.conditional else "key-counts-deleted"

    def protects(self, need: Need) -> bool:
        """Whether the need is met by this index as it is."""
        return self.enforces[need] is Verdict.YES and self.index.valid and not self.index.deferrable


@dataclass(frozen=True)
class _Judge:
    """Puts pairs of rows through one index."""

    subject: Subject
    table: Table
    index: Index
    dialect: str

    def _parse(self, sql: str) -> Expression:
        columns = self.table.columns
        return parse(
            sql,
            columns=[column.name for column in columns],
            dialect=self.dialect,
            inexact=[column.name for column in columns if not column.exact],
            enums=[column.type for column in columns if column.kind is Kind.ENUM],
        )

    @cached_property
    def where(self) -> Expression | None:
        """The condition of the index."""
        return None if self.index.where is None else self._parse(self.index.where)

    @cached_property
    def parts(self) -> tuple[Expression | str, ...]:
        """The key: a column's name, or an expression."""
        return tuple(part.column or self._parse(part.sql) for part in self.index.parts)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The columns that the key reads, those behind generated columns included."""
        read = frozenset().union(*({part} if isinstance(part, str) else part.columns for part in self.parts))
        made = [
            column.generated for column in self.table.columns if column.name in read and column.generated is not None
        ]
        return read.union(*(self._parse(sql).columns for sql in made))

    @cached_property
    def _pairs(self) -> Pairs:
        expressions = [part for part in self.parts if isinstance(part, Expression)]
        expressions += [self.where] if self.where is not None else []
        return Pairs(self.subject, self.table, read=self.reads, expressions=expressions, dialect=self.dialect)

    # -- the index ----------------------------------------------------------------------------------------------------

    def collide(self, first: Row, second: Row) -> bool | Unknown:
        """Whether the index refuses the two rows together."""
        held = [True] if self.where is None else [self.where.holds(row) for row in (first, second)]
        if False in held:
            return False
        met: list[bool | Unknown] = list(held)
        for part, expression in zip(self.index.parts, self.parts, strict=True):
            values = [
                row[expression] if isinstance(expression, str) else expression.evaluate(row) for row in (first, second)
            ]
            exact = part.exact and (isinstance(expression, str) or expression.exact)
            if (equals := self._equals(*values, exact=exact)) is False:
                return False
            met.append(equals)
        return UNKNOWN if UNKNOWN in met else True

    def _equals(self, a: Value, b: Value, *, exact: bool) -> bool | Unknown:
        if a is None or b is None:
            if self.index.nulls_distinct:
                return False
            return UNKNOWN if isinstance(a, Unknown) or isinstance(b, Unknown) else a is b
        if isinstance(a, str) and isinstance(b, str) and not exact:
            return a.casefold() == b.casefold()
        if {type(a), type(b)} == {str, Opaque}:
            return False  # a row's moment is chosen so that no text in an index means it
        return equal(a, b, exact=exact) or False  # neither is NULL

    # -- verdicts -----------------------------------------------------------------------------------------------------

    def _forbidden(self, need: Need, first: Row, second: Row) -> bool | Unknown:
        """Whether the need forbids the two rows together."""
        if any(first[name] is None or second[name] is None for name in need.absent):
            return False
        if not all(same(first[name], second[name]) for name in need.columns):
            return False
        live = [self.subject.is_live(row) for row in (first, second)] if need.live else [True]
        return False if False in live else UNKNOWN if UNKNOWN in live else True

    def enforces(self, need: Need) -> tuple[Verdict, bool]:
        """Whether the index enforces a need, and whether it would if no column of the need were ``NULL``."""
        undecided = only_null = False
        for first, second in self._pairs.equal_in(need.columns):
            forbidden = self._forbidden(need, first, second)
            refused = self.collide(first, second) if forbidden is not False else True
            if refused is True:
                continue
            if isinstance(refused, Unknown) or isinstance(forbidden, Unknown):
                undecided = True
            elif all(first[name] is not None for name in need.columns):
                return Verdict.NO, False
            else:
                only_null = True
        undecided = undecided or self._pairs.cut_short
        if only_null:
            return Verdict.NO, not undecided
        return Verdict.UNDECIDED if undecided else Verdict.YES, False

    def cause(self, need: Need) -> Cause | None:
        """The one thing that keeps the index from enforcing a need."""
        if self.enforces(need)[1]:
            return Cause.NULL
        marks = {self.subject.roles[role] for role in ("deleted_at", "active") if role in self.subject.roles}
        unmarked = tuple(
            part
            for part, expression in zip(self.index.parts, self.parts, strict=True)
            if not ({expression} if isinstance(expression, str) else expression.columns) <= marks
        )
        for cause, changed in (
            (Cause.CONDITION, replace(self.index, where=None)),
            (Cause.MARK, replace(self.index, parts=unmarked)),
        ):
            verdict, only_null = replace(self, index=changed).enforces(need)
            if changed != self.index and (verdict is Verdict.YES or only_null):
                return cause
        return None

    def refuses(self) -> tuple[Allowed | None, bool]:
        """The worst kind of allowed pair that the index refuses, and whether one was undecided."""
        refused_kinds: set[Allowed] = set()
        undecided = False
        alike = {part.column for part in self.index.parts if part.column is not None}
        for first, second in self._pairs.as_written(alike=alike):
            if any(self._forbidden(need, first, second) is not False for need in self.subject.needs):
                continue
            refused = self.collide(first, second)
            if isinstance(refused, Unknown):
                undecided = True
            elif refused:
                refused_kinds.add(self._sort(first, second))
                if Allowed.LIVE in refused_kinds:
                    break
        worst = next((kind for kind in Allowed if kind in refused_kinds), None)
        exact = {part.column for part in self.index.parts if part.exact}
        has_key = any(need.key and set(need.columns) <= exact for need in self.subject.needs)
        # With the whole key in it, what is left out of the pairs could only be another spelling of the same.
        return worst, undecided or (self._pairs.cut_short and not has_key)

    def _sort(self, first: Row, second: Row) -> Allowed:
        if not (self.subject.is_live(first) is True and self.subject.is_live(second) is True):
            return Allowed.DEAD
        without_case = [{name: folded(value) for name, value in row.items()} for row in (first, second)]
        spelt_apart = any(self._forbidden(need, *without_case) is True for need in self.subject.needs)
        return Allowed.SPELLING if spelt_apart else Allowed.LIVE

    def is_conditional(self) -> bool:
        """Whether the index leaves out any row, as far as can be told."""
        where = self.where
        return where is not None and any(where.holds(row) is not True for pair in self._pairs.any() for row in pair)

    def counts_dead(self) -> bool:
        """Whether the index may hold a dead row."""
        rows = (row for pair in self._pairs.any() for row in pair if self.subject.is_live(row) is not True)
        return self.where is None or any(self.where.holds(row) is not False for row in rows)


def judge(subject: Subject, table: Table, index: Index, *, dialect: str) -> Judgement:
    """Judge one unique index of a table that has all of the subject's columns."""
    by = _Judge(subject=subject, table=table, index=index, dialect=dialect)
    enforces = {need: by.enforces(need)[0] for need in subject.needs}
    refuses, undecided = by.refuses()
    return Judgement(
        index=index,
        enforces=enforces,
        causes={
            need: cause
            for need, verdict in enforces.items()
            if verdict is Verdict.NO and set(need.columns) <= by.reads and (cause := by.cause(need)) is not None
        },
        refuses=refuses,
        undecided=undecided,
        conditional=by.is_conditional(),
        counts_dead=by.counts_dead(),
        reads=by.reads,
    )
