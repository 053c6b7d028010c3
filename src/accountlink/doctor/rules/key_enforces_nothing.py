"""``key-enforces-nothing``: a unique index that NULL switches off.

In SQL two NULL are not equal, so a unique index never refuses a row that has one in its key. With a nullable
``deleted_at`` as the last column of the key, every live row has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted, title
from accountlink.doctor.findings import Finding, Remedy, Severity
from accountlink.doctor.judge.subject import Need
from accountlink.doctor.judge.uniqueness import Cause, Judgement

RULE: Final = "key-enforces-nothing"


def find(case: Case) -> Iterator[Finding]:
    """Find each index that would be the key if it had no NULL in it, unless every row is dead from its beginning."""
    if (never := _never_live(case)) is not None:
        yield never
        return
    for need in case.subject.needs:
        if case.protected(need):
            continue
        for judgement in case.judgements:
            cause = judgement.causes.get(need)
            if cause is Cause.NULL:
                yield _nullable(case, need, judgement)
            elif cause is Cause.MARK:
                yield _mark(case, need, judgement)


def _never_live(case: Case) -> Finding | None:
    """Find a mark of dead rows that every new row has: a key for live rows then keeps nothing apart."""
    name = case.subject.roles.get("deleted_at")
    column = None if name is None else case.table.column(name)
    if column is None or column.generated is not None:
        return None
    if (column.nullable and column.default in (None, "NULL", "null")) or (column.default or "").startswith("NULL::"):
        return None
    why = "has a default" if column.nullable else "takes no NULL"
    return case.finding(
        RULE,
        about=column,
        remedy=Remedy.BLOCKED,
        message=f"{column.name} {why}, so that every new row is dead from its beginning: no key for live rows keeps "
        "anything apart. Nothing else was looked at.",
        fix=f"Make {column.name} nullable and without a default, with NULL in every live row; or map another mark.",
    )


def _nullable(case: Case, need: Need, judgement: Judgement) -> Finding:
    index = judgement.index
    nullable = tuple(
        name for name in need.columns if (column := case.table.column(name)) is not None and column.nullable
    )
    count = sum(case.rows.nulls.get(name, 0) for name in nullable)
    stored = f" There are {counted(count, 'row')} of that kind." if count else ""
    return case.finding(
        RULE,
        severity=Severity.WARNING,
        about=index,
        columns=nullable,
        remedy=Remedy.REQUIRE,
        message=f"{title(index)} refuses no row with NULL in {', '.join(nullable)}, and such rows may exist.{stored}",
        fix=f"Make {', '.join(nullable)} NOT NULL.",
    )


def _mark(case: Case, need: Need, judgement: Judgement) -> Finding:
    index = judgement.index
    return case.finding(
        RULE,
        about=index,
        remedy=Remedy.DROP,
        message=f"{title(index)} has the mark of dead rows in its key, which is NULL in every live row: it refuses no "
        "live row at all.",
        fix=f"Create a unique index on ({', '.join(need.columns)}) WHERE {case.subject.live_sql}, then drop "
        f"{index.true_name}.",
    )
