"""Decides which unique keys come and which go, the same for both databases.

A need that only an index enforces which has to go gets its right key first. An index stays where the key that would
take its place cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from accountlink.doctor.case import Case, title
from accountlink.doctor.findings import Finding, Remedy, with_remedy
from accountlink.doctor.judge.subject import Need
from accountlink.doctor.judge.uniqueness import Cause, Judgement, Verdict
from accountlink.doctor.repair.keys import Keys, dependants
from accountlink.doctor.repair.marking import can_collide
from accountlink.doctor.repair.names import FreeNames
from accountlink.doctor.repair.new_keys import NewKeys, declared
from accountlink.doctor.repair.settle import can_lower, can_settle, why_not_settled
from accountlink.doctor.schema import Column, Index, Owner, Relation


def decide(case: Case, findings: Sequence[Finding]) -> Keys:
    """Say which keys come, which go, and what is left to people."""
    return _Decision(case, findings).keys()


@dataclass(frozen=True)
class _Decision:
    """Decide about the keys of one case."""

    case: Case
    findings: Sequence[Finding]

    # -- which indexes go ---------------------------------------------------------------------------------------------

    @cached_property
    def invalid(self) -> tuple[Index, ...]:
        """The indexes that failed builds left behind."""
        found = with_remedy(self.findings, Remedy.CLEAR)
        return tuple(index for index in self.case.table.indexes if index in found)

    @cached_property
    def condemned(self) -> tuple[Judgement, ...]:
        """The indexes that have to go."""
        found = with_remedy(self.findings, Remedy.DROP)
        return tuple(each for each in self.case.judgements if each.index in found and each.index not in self.invalid)

    @cached_property
    def deferrable(self) -> tuple[Judgement, ...]:
        """The constraints that stay as they are, but for being deferrable."""
        found = with_remedy(self.findings, Remedy.AT_ONCE)
        return tuple(
            judgement
            for judgement in self.case.judgements
            if judgement.index in found
            and judgement not in self.condemned
            and judgement.index.owner in (Owner.UNIQUE, Owner.PRIMARY)
            and not self._spans  # which takes no constraint USING INDEX
        )

    @cached_property
    def _staying(self) -> tuple[Judgement, ...]:
        gone = (*self.condemned, *(j for j in self.case.judgements if not j.index.valid))
        return tuple(judgement for judgement in self.case.judgements if judgement not in gone)

    # -- which needs are met ------------------------------------------------------------------------------------------

    def _is_met(self, need: Need) -> bool:
        """Return whether an index that stays, or is made again, meets a need as it is."""
        return any(
            judgement.protects(need) or (judgement in self.deferrable and judgement.enforces[need] is Verdict.YES)
            for judgement in self._staying
        )

    def _is_met_without_null(self, need: Need) -> bool:
        return any(judgement.causes.get(need) is Cause.NULL for judgement in self._staying)

    def _is_open(self, need: Need) -> bool:
        """Return whether an index that stays may meet a need, which could not be decided."""
        return any(
            judgement.enforces[need] is Verdict.UNDECIDED and set(need.columns) <= judgement.reads
            for judgement in self._staying
        )

    def _can_span(self, need: Need) -> bool:
        split = self.case.table.partitioning
        return split is None or split.spans(need.columns)

    def _waits_for_partitions(self, need: Need) -> bool:
        """Return whether a partitioned table has the key already, and not yet in all of its partitions."""
        return self._spans and any(j.enforces[need] is Verdict.YES for j in self.case.judgements if not j.index.valid)

    @property
    def _spans(self) -> bool:
        return self.case.table.relation is Relation.PARTITIONED

    def _has_duplicates(self, need: Need) -> bool:
        found = self.case.rows.duplicates.get(need)
        return found is not None and found.groups > 0

    @cached_property
    def _unmet(self) -> tuple[Need, ...]:
        return tuple(need for need in self.case.subject.needs if not self._is_met(need))

    @cached_property
    def _buildable(self) -> tuple[Need, ...]:
        """The needs that nothing meets or may meet, and for which a key can be made."""
        return tuple(
            need
            for need in self._unmet
            if not self._is_met_without_null(need)
            and not self._is_open(need)
            and self._can_span(need)
            and not self._waits_for_partitions(need)
            and (can_settle(self.case, need) or not self._has_duplicates(need))
        )

    @cached_property
    def wanted(self) -> tuple[Need, ...]:
        """The needs that get a key of their own."""
        early = [need for need in self._buildable if self._is_early(need)]
        return tuple(
            need for need in self._buildable if not self._is_covered(need, early if need in early else self._buildable)
        )

    # -- what settling would fail on ----------------------------------------------------------------------------------

    @cached_property
    def settled(self) -> tuple[Need, ...]:
        """The needs whose duplicates are settled."""
        return tuple(need for need in self.case.subject.needs if self._is_settled(need))

    @cached_property
    def in_the_way(self) -> tuple[Judgement, ...]:
        """The indexes that have to go, and on which settling may fail before that."""
        lowered = can_lower(self.case)
        if not self.settled and not lowered:
            return ()
        return tuple(each for each in self.condemned if can_collide(self.case, each, lowered=lowered))

    def _is_early(self, need: Need) -> bool:
        """Return whether what goes before settling may protect a need: its key is then made before that."""
        verdicts = {each.enforces.get(need) for each in self.in_the_way if each.index.valid}
        return Verdict.YES in verdicts or (Verdict.UNDECIDED in verdicts and need not in self.settled)

    def _is_covered(self, need: Need, by: Iterable[Need]) -> bool:
        """Return whether the key of another need serves this one too, and the model does not declare it."""
        return declared(self.case, need) is None and any(
            other is not need
            and set(other.columns) < set(need.columns)
            and (need.live or not other.live)
            and other.absent <= need.absent
            for other in by
        )

    def _twins(self) -> Iterator[Need]:
        """Return full keys that go and that the model declares for live rows, beside the needs themselves."""
        others = [set(need.columns) for need in self.wanted]
        others += [set(judgement.index.columns) for judgement in self._staying]
        for judgement in self.condemned:
            columns = judgement.index.columns
            if judgement.rule == "key-counts-deleted" and set(columns) not in others:
                twin = Need(columns=columns, live=True, reason="the same among live rows alone, as the model says")
                if declared(self.case, twin) is not None:
                    yield twin

    # -- together -----------------------------------------------------------------------------------------------------

    def keys(self) -> Keys:
        """Say what comes, what goes, and what is left to people."""
        kept = {judgement.index: self._reason_to_stay(judgement) for judgement in self.condemned}
        old = [index for index, reason in kept.items() if reason is None]
        invalid = [index for index in self.invalid if not self._spans and not dependants(self.case, index)]
        required, nulls = self._required()
        free = FreeNames(self.case, gone=(index.name for index in invalid))
        new, going = NewKeys(self.case, free, old), [each.index for each in (*self.condemned, *self.deferrable)]
        return Keys(
            new=(
                *(new.for_need(need, first=self._is_early(need)) for need in (*self.wanted, *self._twins())),
                *(new.at_once(judgement.index, going) for judgement in self.deferrable),
            ),
            old=tuple(old),
            in_the_way=tuple(judgement.index for judgement in self.in_the_way if judgement.index in old),
            invalid=tuple(invalid),
            settled=self.settled,
            required=required,
            by_hand=(*self._reasons_against_new(), *filter(None, kept.values()), *nulls),
        )

    def _is_settled(self, need: Need) -> bool:
        lowered = bool(self.case.rows.plain) and self.case.subject.normal in need.columns
        uncounted = self.case.table.row_security.active and need in self._buildable
        uncounted = uncounted and not self._is_covered(need, self._buildable)
        return can_settle(self.case, need) and (lowered or uncounted or self._has_duplicates(need))

    def _required(self) -> tuple[tuple[Column, ...], tuple[str, ...]]:
        """Return columns that must not take NULL any more, and what to do about those of which rows have NULL today."""
        marks = self.case.subject.marks
        names = {name for need in self._unmet for name in set(need.columns) - need.absent - marks}
        columns = [column for column in self.case.table.columns if column.name in names and column.nullable]
        texts = [
            f"{self.case.rows.nulls[column.name]} rows have NULL in {column.name}, which is part of the key: NULL is "
            "equal to nothing, so no unique index refuses such a row. Complete or delete them, then run the doctor "
            f"again: it makes {column.name} NOT NULL."
            for column in columns
            if self.case.rows.nulls.get(column.name)
        ]
        return tuple(column for column in columns if not self.case.rows.nulls.get(column.name)), tuple(texts)

    def _reasons_against_new(self) -> Iterable[str]:
        for need in self.case.subject.needs:
            why = why_not_settled(self.case, need)
            if why is not None and self._has_duplicates(need):
                found = self.case.rows.duplicates[need]
                yield (
                    f"{found.groups} values of ({', '.join(need.columns)}) are in several rows, {found.rows} rows too "
                    f"many. {why}"
                )

    # -- what keeps an index ------------------------------------------------------------------------------------------

    def _reason_to_stay(self, judgement: Judgement) -> str | None:
        index, name = judgement.index, title(judgement.index)
        if depending := dependants(self.case, index):
            return (
                f"{name} has to go, and {depending}.\nMove what depends on it first; the statement is then "
                f"{_how_to_drop(index)}, once the right key stands."
            )
        met = (*self.wanted, *(need for need in self.case.subject.needs if self._is_met(need)))
        for need in self.case.subject.needs:
            serves = judgement.enforces[need] is Verdict.YES or set(need.columns) <= judgement.reads
            served = self._is_met_without_null(need) or any(
                set(each.columns) <= set(need.columns) and (need.live or not each.live) for each in met
            )
            if serves and not served and judgement.index.valid:
                return (
                    f"{name} has to go, but it is all that protects ({', '.join(need.columns)}) today, and the key "
                    "that takes its place cannot be made yet. It stays; run the doctor again when the rest is done."
                )
        return None


def _how_to_drop(index: Index) -> str:
    if index.owner is Owner.NOTHING:
        return f"DROP INDEX {index.name}"
    return f"ALTER TABLE … DROP CONSTRAINT {index.true_name}"
