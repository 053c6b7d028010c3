"""Collect the facts that the rules judge: the subject, the catalogue, and counts of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from accountlink.doctor.findings import About, Finding, Remedy, Severity
from accountlink.doctor.judge.subject import Need, Subject
from accountlink.doctor.judge.uniqueness import Judgement, Verdict
from accountlink.doctor.schema import Catalogue, Column, Index, Owner, RowPolicy, Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Count the rows that already break a need.

    Attributes:
        groups: How many keys several rows share.
        rows: How many rows would have to go.
    """

    groups: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherTokens:
    """Count the rows whose tokens are not in the form in which their linker stores tokens, dead rows too.

    Attributes:
        rows: How many rows there are.
        columns: The columns that such tokens are in.
    """

    rows: int = 0
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Hold the counts of rows; empty where no rows were read.

    Attributes:
        duplicates: Rows that already break a need that nothing enforces.
        plain: How many e-mail keys are out of normal form, and need no more than ``lower()``.
        odd: How many e-mail keys are out of normal form otherwise.
        nulls: How many rows have ``NULL`` in a column that the key compares.
        tokens: Rows with plain text where the linker has a vault, or with envelopes where it has none.
        sealed: How many rows have a sealed token beside an address that needs no more than ``lower()``. With another
            address nothing opens the token, so none of these addresses is counted in ``plain``, but all in ``odd``.
    """

    duplicates: Mapping[Need, Duplicates] = field(default_factory=dict)
    plain: int = 0
    odd: int = 0
    nulls: Mapping[str, int] = field(default_factory=dict)
    tokens: OtherTokens = OtherTokens()
    sealed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Hold the facts about one table that the rules judge.

    Attributes:
        subject: What was asked.
        catalogue: What the database says; it has the table.
        table: The table.
        judgements: What each of its unique indexes does.
        always: Conditions of its row policies that every row meets.
        rows: What its rows say.
    """

    subject: Subject
    catalogue: Catalogue
    table: Table
    judgements: tuple[Judgement, ...]
    always: frozenset[str] = frozenset()
    rows: Rows = Rows()

    @property
    def name(self) -> str:
        """The table's name for people."""
        return self.subject.name

    def finding(
        self,
        rule: str,
        *,
        about: About,
        message: str,
        fix: str,
        severity: Severity = Severity.ERROR,
        columns: tuple[str, ...] | None = None,
        remedy: Remedy | None = None,
    ) -> Finding:
        """Return a finding in this table; its object and its columns are those of what it is about, unless given."""
        name, own = _named(about)
        return Finding(
            rule=rule,
            severity=severity,
            table=self.name,
            object=name,
            columns=own if columns is None else columns,
            message=message,
            fix=fix,
            about=about,
            remedy=remedy,
        )

    def protected(self, need: Need) -> bool:
        """Return whether some index meets a need as it is."""
        return any(judgement.protects(need) for judgement in self.judgements)

    def split(self, need: Need) -> bool:
        """Return whether partitions keep any index from meeting a need."""
        partitioning = self.table.partitioning
        if partitioning is None or partitioning.inherited or self.protected(need):
            return False
        return not partitioning.spans(need.columns)

    def explained(self, need: Need) -> bool:
        """Return whether another rule says what keeps an index from meeting a need that none meets."""
        return any(
            need in judgement.causes
            or (set(need.columns) <= judgement.reads and judgement.enforces[need] is not Verdict.NO)
            for judgement in self.judgements
        )

    def meant_for_open_need(self, judgement: Judgement) -> bool:
        """Return whether an index has the columns of a need that nothing meets."""
        return any(set(need.columns) <= judgement.reads and not self.protected(need) for need in self.subject.needs)


def _named(about: About) -> tuple[str | None, tuple[str, ...]]:
    match about:
        case Index():
            return about.true_name, about.columns
        case Column():
            return about.name, (about.name,)
        case Need():
            return None, about.columns
        case RowPolicy():
            return about.name, ()
        case None:
            return None, ()
        case _:
            assert_never(about)


def title(index: Index, *, lower: bool = False) -> str:
    """Name an index for people, by what it is and its true name."""
    kind = "unique index" if index.owner is Owner.NOTHING else index.owner.value
    return f"{'the' if lower else 'The'} {kind} {index.true_name}"


def how_to_drop(case: Case, index: Index) -> str:
    """Say how an index goes, after what stands before."""
    if case.catalogue.dialect == "sqlite" and index.definition is None:
        return "build the table anew without that key, which is part of its own definition"
    return f"drop {index.true_name} by this name, and without IF EXISTS"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
