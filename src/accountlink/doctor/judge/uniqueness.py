"""Decide which pairs of rows a unique index refuses, and compare that with the policy.

An index is judged by what it does, never by its name or its text: the database puts pairs of model rows through its
condition and its key. Two rows that the policy forbids together must collide in some index; two rows that it allows
together must collide in none.

A pair that shows something is certain. That none shows it is proof only where model rows exhaust the index's
expressions; elsewhere it stays undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from accountlink.doctor.judge.pairs import Given, folded, same
from accountlink.doctor.judge.subject import Need, Row, Subject
from accountlink.doctor.judge.trial import Answers, Bit, Seen, Trial
from accountlink.doctor.schema import Index


class Verdict(Enum):
    """Answer whether an index enforces a need."""

    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"


class Cause(Enum):
    """Name the reasons why an index that reads a need's columns does not enforce the need."""

    NULL = "its columns take NULL, which it never refuses"
    CONDITION = "its condition leaves live rows out"
    MARK = "the mark of dead rows stands in its key"


class Allowed(Enum):
    """Name a kind of pair that the policy allows and an index refuses; the worst first."""

    LIVE = "two live rows"
    SPELLING = "two live rows that differ in spelling alone"
    DEAD = "a dead row and another"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Hold the effect of a unique index on the policy.

    Attributes:
        index: The index.
        enforces: For each need, whether the index refuses every pair that the need forbids.
        causes: For a need that it reads the columns of and does not enforce, the one thing that keeps it from that, if
            it is one thing.
        refuses: The worst kind of pair that the policy allows and the index refuses.
        undecided: Whether it is unknown for some allowed pair if the index refuses it.
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
        """Say whether this index meets the need as it is."""
        return self.enforces[need] is Verdict.YES and self.index.valid and not self.index.deferrable


@dataclass(frozen=True)
class Judge:
    """Judge one index by the database's answers for its rows."""

    trial: Trial
    answers: Answers

    @property
    def _subject(self) -> Subject:
        return self.trial.subject

    @property
    def _bits(self) -> Sequence[Bit]:
        return self.trial.bits

    @cached_property
    def _conditions(self) -> frozenset[int]:
        """The bits that are conditions, not parts of the key."""
        return frozenset(number for number, bit in enumerate(self._bits) if bit.part is None)

    @cached_property
    def _open(self) -> frozenset[int]:
        """The bits that may do with other rows what they do with none of these."""
        plain = {number for number, bit in enumerate(self._bits) if bit.plain}
        return frozenset(range(len(self._bits))) - (plain & self.answers.known)

    @cached_property
    def _shifting(self) -> frozenset[int]:
        """The bits that read what a trigger may make of a row as it is written."""
        written = frozenset(self._subject.roles.values())
        return frozenset(
            number
            for number, bit in enumerate(self._bits)
            if self.trial.table.rewritten and bit.column is None and not bit.words.columns <= written
        )

    # -- pairs --------------------------------------------------------------------------------------------------------

    def _seen(self, pairs: Iterable[tuple[Given, Given]]) -> Sequence[tuple[Seen, Seen]]:
        """Return the database's answers for pairs of rows, without the rows that the table's checks refuse."""
        seen = self.answers.seen
        each = ((seen.get(first), seen.get(second)) for first, second in pairs)
        both = [(first, second) for first, second in each if first is not None and second is not None]
        allowed = [pair for pair in both if pair[0].allowed and pair[1].allowed]
        return allowed or both  # checks that no model row meets are not understood

    @cached_property
    def _rows(self) -> Sequence[Seen]:
        """The answers for all model rows that the table's checks allow."""
        rows = self.answers.seen.values()
        return [row for row in rows if row.allowed] or [*rows]

    def _agree(self, number: int, first: Seen, second: Seen) -> bool | None:
        """Say whether a bit fails to keep two rows apart; ``None``: undecided."""
        if number not in self.answers.known:
            return None
        one, other = first.bits[number], second.bits[number]
        if self._bits[number].part is None:
            return one is not None and other is not None and bool(one and other)
        if one is None or other is None:
            return one is other and not self.trial.index.nulls_distinct
        return True if one == other else None if number in self.answers.lumped else False

    def _collide(
        self,
        first: Seen,
        second: Seen,
        *,
        left_out: frozenset[int] = frozenset(),
        doubted: frozenset[int] = frozenset(),
    ) -> bool | None:
        """Say whether the index refuses two rows together; ``None``: undecided.

        Args:
            first: A row.
            second: Another.
            left_out: Bits that do not count.
            doubted: Bits of which it is only certain that they do not keep rows apart.
        """
        unsure = False
        for number in range(len(self._bits)):
            if number in left_out:
                continue
            agreed = self._agree(number, first, second)
            if agreed is False and number not in doubted:
                return False
            unsure = unsure or agreed is not True
        return None if unsure else True

    # -- verdicts -----------------------------------------------------------------------------------------------------

    def _forbidden(self, need: Need, first: Row, second: Row) -> bool:
        """Say whether the need forbids the two rows together."""
        if any(first[name] is None or second[name] is None for name in need.absent):
            return False
        if not all(same(first[name], second[name]) for name in need.columns):
            return False
        return not need.live or (self._subject.is_live(first) and self._subject.is_live(second))

    def enforces(self, need: Need, left_out: frozenset[int] = frozenset()) -> tuple[Verdict, bool]:
        """Say whether the index enforces a need, and whether it would if no column of the need were ``NULL``."""
        only_null = False
        unproven = {n for n in self._open if (part := self._bits[n].part) is None or part.column not in need.columns}
        pairs = self._seen(self.trial.pairs.equal_in(need.columns))
        undecided = bool(unproven - left_out) or not pairs
        for first, second in pairs:
            if not self._forbidden(need, first.row, second.row):
                continue
            refused = self._collide(first, second, left_out=left_out, doubted=self._shifting)
            if refused is True:
                continue
            if refused is None:
                undecided = True
            elif all(first.row[name] is not None for name in need.columns):
                return Verdict.NO, False
            else:
                only_null = True
        undecided = undecided or self.trial.pairs.cut_short
        if only_null:
            return Verdict.NO, not undecided
        return Verdict.UNDECIDED if undecided else Verdict.YES, False

    @cached_property
    def _enforced(self) -> Mapping[Need, tuple[Verdict, bool]]:
        """The answers of ``enforces`` about all needs."""
        return {need: self.enforces(need) for need in self._subject.needs}

    def cause(self, need: Need) -> Cause | None:
        """Return the one reason why the index does not enforce a need, if there is exactly one."""
        if self._enforced[need][1]:
            return Cause.NULL
        marks = self._subject.marks
        of_marks = frozenset(number for number, bit in enumerate(self._bits) if bit.words.columns <= marks)
        for cause, left_out in ((Cause.CONDITION, self._conditions), (Cause.MARK, of_marks - self._conditions)):
            if not left_out:
                continue
            verdict, only_null = self.enforces(need, left_out)
            if verdict is Verdict.YES or only_null:
                return cause
        return None

    def refuses(self) -> tuple[Allowed | None, bool]:
        """Return the worst kind of allowed pair that the index refuses, and whether a pair was undecided."""
        refused_kinds: set[Allowed] = set()
        undecided = False
        for first, second in self._seen(self.trial.pairs.as_written(alike=self.trial.alike)):
            if any(self._forbidden(need, first.row, second.row) for need in self._subject.needs):
                continue
            refused = self._collide(first, second)
            if refused is True:
                refused_kinds.add(self._sort(first.row, second.row))
                if Allowed.LIVE in refused_kinds:
                    break
            elif self._collide(first, second, left_out=self._open) is not False:
                undecided = True
        worst = next((kind for kind in Allowed if kind in refused_kinds), None)
        exact = {part.column for part in self.trial.index.parts if part.exact}
        has_key = any(need.key and set(need.columns) <= exact for need in self._subject.needs)
        # With the whole key in it, what is left out of the pairs could only be another spelling of the same.
        return worst, undecided or (self.trial.pairs.cut_short and not has_key)

    def _sort(self, first: Row, second: Row) -> Allowed:
        if not (self._subject.is_live(first) and self._subject.is_live(second)):
            return Allowed.DEAD
        without_case = [{name: folded(value) for name, value in row.items()} for row in (first, second)]
        spelt_apart = any(self._forbidden(need, *without_case) for need in self._subject.needs)
        return Allowed.SPELLING if spelt_apart else Allowed.LIVE

    def is_conditional(self) -> bool:
        """Say whether the index leaves out any row, or may do so."""
        doubted = self._conditions & (self._open | self._shifting)
        return bool(doubted) or any(row.bits[number] != 1 for row in self._rows for number in self._conditions)

    def counts_dead(self) -> bool:
        """Say whether the index may hold a dead row."""
        sure = self._conditions - self._open - self._shifting
        dead = (row for row in self._rows if not self._subject.is_live(row.row))
        return not self._conditions or any(all(row.bits[number] == 1 for number in sure) for row in dead)

    def judgement(self) -> Judgement:
        """Judge the index."""
        reads = self.trial.reads
        enforces = {need: verdict for need, (verdict, _) in self._enforced.items()}
        refuses, undecided = self.refuses()
        return Judgement(
            index=self.trial.index,
            enforces=enforces,
            causes={
                need: cause
                for need, verdict in enforces.items()
                if verdict is Verdict.NO and set(need.columns) <= reads and (cause := self.cause(need)) is not None
            },
            refuses=refuses,
            undecided=undecided,
            conditional=self.is_conditional(),
            counts_dead=self.counts_dead(),
            reads=reads,
        )
