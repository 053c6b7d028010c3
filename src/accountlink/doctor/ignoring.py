"""Leave out the findings that a team has accepted: they are not reported, and no migration repairs them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from accountlink.doctor import pooling
from accountlink.doctor.case import Case, Rows
from accountlink.doctor.findings import Finding, Remedy, with_remedy
from accountlink.doctor.judge.subject import Need
from accountlink.doctor.judge.uniqueness import Judgement, Verdict
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.rules import RULES
from accountlink.doctor.schema import Column, Index, RowPolicy
from accountlink.errors import ConfigurationError

NAMES: Final = (*RULES, pooling.RULE)
"""The rules by name."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Hold the findings that are not to be reported.

    Attributes:
        patterns: ``rule``, or ``rule:name`` for those about one object or one table.
    """

    patterns: frozenset[str] = frozenset()

    @classmethod
    def of(cls, patterns: Collection[str]) -> Ignored:
        """Check what an application gives.

        Raises:
            ConfigurationError: Not strings, or no rules.
        """
        if isinstance(patterns, str):
            raise ConfigurationError(f"ignore= takes several rules, such as [{patterns!r}], not one string.")
        given: object = patterns
        if not isinstance(given, Iterable):
            raise ConfigurationError(f"ignore= takes a list of rules, not {type(given).__name__}.")
        patterns = list(patterns)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigurationError("Each rule in ignore= is a text.")
        for pattern in patterns:
            rule, colon, name = str(pattern).partition(":")
            if rule not in NAMES:
                raise ConfigurationError(f"There is no rule {rule!r} to ignore. The rules are {', '.join(NAMES)}.")
            if colon and not name:
                raise ConfigurationError(f"{pattern!r} names no object. Write {rule!r}, or '{rule}:object'.")
        return cls(frozenset(patterns))

    def holds(self, finding: Finding) -> bool:
        """Say whether a finding is accepted."""
        about = [finding.rule, *(f"{finding.rule}:{name}" for name in (finding.object, finding.table) if name)]
        return not self.patterns.isdisjoint(about)

    def split(self, findings: Iterable[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
        """Return the findings that are left, and those that are accepted."""
        both = tuple(findings)
        return tuple(f for f in both if not self.holds(f)), tuple(f for f in both if self.holds(f))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
    """Hold the part of a table's case that a migration may still touch.

    Attributes:
        case: The table, without the needs and the rows that accepted findings are about.
        findings: What the migration is to repair.
        by_hand: What it leaves as it is.
    """

    case: Case
    findings: tuple[Finding, ...]
    by_hand: tuple[str, ...]

    def completed(self, repair: Repair) -> Repair:
        """Add what is left as it is to a migration."""
        return replace(repair, by_hand=(*repair.by_hand, *self.by_hand))


def rest_of(case: Case, findings: Sequence[Finding], ignored: Sequence[Finding]) -> Rest:
    """Leave out of a case what was accepted, so that no migration for the other findings repairs that, too.

    No index goes that may be what protects a key whose repair is left out.
    """
    if not findings or not ignored:
        return Rest(case=case, findings=tuple(findings), by_hand=())
    open_needs = [need for need in case.subject.needs if not case.protected(need)]
    accepted = [need for need in open_needs if any(_is_about(case, finding, need) for finding in ignored)]
    kept = [judgement.index for need in accepted for judgement in case.judgements if _serves(judgement, need)]
    held = [finding for finding in findings if finding.about in kept]
    return Rest(
        case=replace(
            case,
            subject=replace(case.subject, needs=tuple(need for need in case.subject.needs if need not in accepted)),
            rows=_rows_left(case, ignored, accepted),
        ),
        findings=tuple(finding for finding in findings if finding not in held),
        by_hand=tuple(_told(ignored, held)),
    )


def _is_about(case: Case, finding: Finding, need: Need) -> bool:
    match finding.about:
        case Need():
            return finding.about == need
        case Column():
            return finding.about.name in need.columns
        case Index():
            return any(each.index == finding.about and _serves(each, need) for each in case.judgements)
        case RowPolicy() | None:
            return False
        case _:
            assert_never(finding.about)


def _serves(judgement: Judgement, need: Need) -> bool:
    """Say whether an index meets a need, or would if something about it were different."""
    wide = set(need.columns) <= judgement.reads and judgement.enforces[need] is not Verdict.NO
    return need in judgement.causes or judgement.enforces[need] is Verdict.YES or wide


def _rows_left(case: Case, ignored: Sequence[Finding], accepted: Sequence[Need]) -> Rows:
    doubled = with_remedy(ignored, Remedy.SETTLE)
    rows = replace(
        case.rows,
        duplicates={
            need: found for need, found in case.rows.duplicates.items() if need not in accepted and need not in doubled
        },
    )
    normal = case.subject.normal
    spelled = bool(with_remedy(ignored, Remedy.ADDRESSES))
    kept_apart = any(normal in need.columns and need in doubled for need in case.rows.duplicates)
    # Addresses that meet in normal form stay as they are where their rows do.
    return replace(rows, plain=0, odd=0) if spelled or kept_apart else rows


def _told(ignored: Sequence[Finding], held: Sequence[Finding]) -> Iterator[str]:
    for finding in ignored:
        yield f"{finding.rule}: {_about(finding)} is ignored, so it stays as it is."
    for finding in held:
        yield (
            f"{finding.rule}: {finding.message} It may be all that protects a key that is not repaired, since a "
            f"finding about it is ignored. So it stays. {finding.fix}"
        )


def _about(finding: Finding) -> str:
    return finding.object or f"({', '.join(finding.columns)})"
