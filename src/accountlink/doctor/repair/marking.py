"""Give the values that settling writes into rows, and the unique indexes that these can meet in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.judge.uniqueness import Judgement
from accountlink.doctor.repair.idioms import IDIOMS
from accountlink.doctor.repair.names import Names
from accountlink.doctor.schema import Column, Kind

_REASON: Final = "duplicate"
_PLAIN_TEXT: Final = re.compile(r"text|character varying|varchar|clob", re.IGNORECASE)
_CHECK: Final = re.compile(r"\bCHECK\b", re.IGNORECASE)


def marks(case: Case, names: Names, alias: str) -> Iterator[tuple[str, str]]:
    """Mark a row dead as ``unlink`` does it: return the columns, and what each is set to.

    Args:
        case: The table.
        names: How names are written in it.
        alias: The row, in the statement.
    """
    idiom = IDIOMS[case.catalogue.dialect]
    for role in ("deleted_at", "updated_at"):
        if (column := written(case, role)) is not None:
            yield column.name, idiom.now(column)
    if (column := written(case, "active")) is not None:
        yield column.name, idiom.false
    reason = written(case, "reason")
    if reason is not None and _takes_reason(case, reason):
        yield reason.name, f"'{_REASON}'"
    if (column := written(case, "version")) is not None:
        yield column.name, f"coalesce({alias}.{names.quote(column.name)}, 0) + 1"
    for role, empty in case.subject.empty.items():
        column = written(case, role)
        if column is not None and (nothing := "NULL" if column.nullable else names.value(empty, column)) is not None:
            yield column.name, nothing


def written(case: Case, role: str) -> Column | None:
    """Return the column of a role, if there is one and the database does not compute it."""
    name = case.subject.roles.get(role)
    column = None if name is None else case.table.column(name)
    return None if column is None or column.generated is not None else column


def can_collide(case: Case, judgement: Judgement, *, lowered: bool) -> bool:
    """Return whether rows that are marked dead, or get another address, may meet in an index.

    Three rows that are marked at one moment are equal in that moment, and those that are marked by a flag in that flag.

    Args:
        case: The table.
        judgement: The index.
        lowered: Whether addresses are brought into normal form.
    """
    changed = (
        {name for name, _ in marks(case, Names(case), "")} if case.subject.soft and judgement.counts_dead else set()
    )
    if changed:
        changed |= {column.name for column in case.table.columns if column.generated is not None}
    if lowered and case.subject.normal is not None:
        changed.add(case.subject.normal)
    condition = judgement.index.where or ""
    return any(name in judgement.reads or name in condition for name in changed)


def _takes_reason(case: Case, column: Column) -> bool:
    """Return whether the word can stand in a column, as far as the catalogue tells: a domain's check it does not."""
    plain = column.nullable and column.kind is Kind.TEXT and _PLAIN_TEXT.match(column.type) is not None
    fits = column.length is None or column.length >= len(_REASON)
    checked = any(column.name.lower() in check.lower() for check in case.table.checks)
    checked = checked or _CHECK.search(case.table.sql or "") is not None
    return plain and fits and not checked and _REASON not in case.subject.blocked_reasons
