"""Gives each new unique key its columns, its form and its name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.judge.subject import Declared, Need
from accountlink.doctor.repair.keys import NewKey
from accountlink.doctor.repair.names import FreeNames, Names, derived
from accountlink.doctor.schema import Index, Owner

_COLUMNS: Final = r'\((?:[^"()]|"(?:[^"]|"")*")*\)'
_INCLUDED: Final = re.compile(
    rf"(?:^(?:UNIQUE|PRIMARY KEY)(?: NULLS NOT DISTINCT)?|^CREATE UNIQUE INDEX .*? USING btree) {_COLUMNS}"
    rf"( INCLUDE {_COLUMNS})"
)
"""The columns that an index of plain columns only includes, in the words of PostgreSQL."""


def declared(case: Case, need: Need) -> Declared | None:
    """Return the key by which the application's model declares a need."""
    conditional = need.live and bool(case.subject.live_sql)
    return next(
        (each for each in case.subject.declared if set(each.columns) == set(need.columns) and each.live == conditional),
        None,
    )


@dataclass(frozen=True)
class NewKeys:
    """Describe the new keys of one table.

    Attributes:
        case: The table.
        free: Names that can be given.
        leaving: The indexes that go, whose names become free in the end.
    """

    case: Case
    free: FreeNames
    leaving: Collection[Index]

    def for_need(self, need: Need, *, first: bool) -> NewKey:
        """Describe the key of a need: as the model declares it, and under that name, as soon as it is free."""
        model = declared(self.case, need)
        columns = need.columns if model is None else model.columns
        if model is not None and self.free.is_free(model.name):
            name = wanted = self.free.take(model.name)
        else:
            name = wanted = self.free.derive("uq", self.case.table.name, columns)
            if model is not None and model.name.lower() in {index.true_name.lower() for index in self.leaving}:
                wanted = model.name
        return NewKey(
            columns=columns,
            where=Names(self.case).live() if need.live else None,
            reason=need.reason,
            name=name,
            wanted=wanted,
            constraint=model is not None and model.constraint and model.name == wanted,
            first=first,
        )

    def at_once(self, index: Index, going: Collection[Index]) -> NewKey:
        """Describe what takes the place of a deferrable constraint: the same, checked at once.

        Args:
            index: The constraint's index.
            going: Indexes of which none can be the new one already.
        """
        begun = self._begun(index, going)
        return NewKey(
            columns=index.columns,
            where=None,
            reason="the constraint stays as it is, and is checked at once",
            name=self.free.derive("uq", self.case.table.name, index.columns) if begun is None else begun.name,
            wanted=index.true_name,
            constraint=True,
            instead_of=index,
            included=_included(index),
            stands=begun is not None,
        )

    def _begun(self, index: Index, going: Collection[Index]) -> Index | None:
        """Find what a migration that stopped half-way has made already to take the place of a constraint."""
        names = derived("uq", self.case.table.name, index.columns)
        wanted = (index.parts, index.nulls_distinct, _included(index))
        for each in self.case.table.indexes:
            bare = each.unique and each.valid and each.where is None and each.owner is Owner.NOTHING
            same = (each.parts, each.nulls_distinct, _included(each)) == wanted
            if each.name in names and bare and same and each not in going:
                return each
        return None


def _included(index: Index) -> str:
    """Return what follows the columns of an index that includes others, as it is written in ``CREATE INDEX``."""
    found = _INCLUDED.match(index.definition or "")
    return "" if found is None else str(found[1])
