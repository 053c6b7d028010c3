"""Define the changes to the unique keys of a table, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.judge.subject import Need
from accountlink.doctor.schema import Column, Index, Owner

IN_THE_WAY: Final = (
    " It goes before duplicates are settled, since rows may meet in it then. What it alone protects has its right key "
    "already; no key can be made yet of what rows break today."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """Describe a unique index to make.

    Attributes:
        columns: Its columns, in order.
        where: Its condition, if it leaves dead rows out.
        reason: What it protects, for people.
        name: The name under which it is made.
        wanted: The name that it gets in the end: the one that the model declares.
        constraint: Whether it becomes a constraint in the end, as the model declares it.
        instead_of: A deferrable constraint whose name and place it takes.
        included: What follows its columns: those that it only includes.
        stands: Whether a migration that stopped half-way has made it already, under ``name``.
        first: Whether it is made before duplicates are settled, since what protects its rows today goes before that.
    """

    columns: tuple[str, ...]
    where: str | None
    reason: str
    name: str
    wanted: str
    constraint: bool = False
    instead_of: Index | None = None
    included: str = ""
    stands: bool = False
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Hold the changes to the unique keys of a table.

    Attributes:
        new: What is made, in order.
        old: What goes after that.
        in_the_way: Those of them that go before duplicates are settled, since settling would fail on them.
        invalid: What was left behind by failed builds, and goes before.
        settled: Needs whose duplicates are settled before.
        required: Columns that must not take ``NULL`` any more.
        by_hand: What cannot be decided here.
    """

    new: tuple[NewKey, ...]
    old: tuple[Index, ...]
    in_the_way: tuple[Index, ...]
    invalid: tuple[Index, ...]
    settled: tuple[Need, ...]
    required: tuple[Column, ...]
    by_hand: tuple[str, ...]

    @property
    def afterwards(self) -> tuple[Index, ...]:
        """The indexes to drop after duplicates are settled."""
        return tuple(index for index in self.old if index not in self.in_the_way)

    def change(self, index: Index) -> bool:
        """Return whether an index goes, or gives its place to another."""
        return index in (*self.invalid, *self.old, *(key.instead_of for key in self.new))


def dependants(case: Case, index: Index) -> str | None:
    """Say what depends on an index, so that dropping it would fail or break something else."""
    pointing = [
        f"{key.name or 'a foreign key'} of {key.table}"
        for key in case.table.referenced_by
        if (key.index == index.name if key.index is not None else set(key.targets) == set(index.columns))
    ]
    if pointing:
        return f"{', '.join(pointing)} stands on it"
    if index.replica_identity:
        return "logical replication identifies rows by it"
    if case.catalogue.dialect == "sqlite" and index.owner is Owner.PRIMARY:
        return "a primary key of SQLite is part of its table: build the table anew and copy the rows"
    return None
