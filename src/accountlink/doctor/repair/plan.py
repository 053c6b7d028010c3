"""From what was found to the migration that repairs it: read this first.

First :mod:`.decision` says which keys come and which go. Then the functions below put operations in their order: what
each operation is, and why, stands in :mod:`.postgresql`, :mod:`.sqlite`, :mod:`.columns` and :mod:`.settle`. Last,
:mod:`.script` or :mod:`.revision` writes them down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy, with_remedy
from accountlink.doctor.repair import by_hand, postgresql, sqlite
from accountlink.doctor.repair.columns import ColumnWriter
from accountlink.doctor.repair.decision import decide
from accountlink.doctor.repair.keys import Keys
from accountlink.doctor.repair.names import Names, is_ordinary, is_writable
from accountlink.doctor.repair.operations import Repair, Step
from accountlink.doctor.repair.settle import Settling


def plan(case: Case, findings: Sequence[Finding]) -> Repair:
    """Plan the migration that repairs what was found.

    The steps are in an order in which no protection is lost, after whichever of them it is stopped: the right key
    stands before a wrong one goes.

    Args:
        case: The table, judged.
        findings: What the rules found in it.

    Returns:
        The migration; without steps where there is nothing to repair, or nothing that a migration could decide.
    """
    nothing = Repair(dialect=case.catalogue.dialect, table=case.name)
    told = tuple(finding.text for finding in findings)
    if not findings:
        return nothing
    if not is_ordinary(case) or not is_writable(case):
        why = "It is no ordinary table" if not is_ordinary(case) else "A name in it has characters that cannot be shown"
        return replace(nothing, by_hand=(f"{why}, so no migration is written.", *told))
    if with_remedy(findings, Remedy.BLOCKED):
        return replace(nothing, by_hand=told)
    keys = decide(case, findings)
    left = tuple(by_hand.left(case, findings, keys))
    if nothing.dialect == "sqlite":
        writer = sqlite.KeyWriter(case, Names(case), keys)
        return replace(nothing, steps=tuple(_sqlite(case, keys, writer)), by_hand=(*left, *writer.by_hand))
    return replace(nothing, steps=tuple(_postgresql(case, findings, keys)), by_hand=left)


def _postgresql(case: Case, findings: Sequence[Finding], keys: Keys) -> Iterator[Step]:
    """Put the operations of PostgreSQL in order: each key stands before what it replaces goes."""
    names = Names(case)
    write, settling = postgresql.KeyWriter(case, names, keys), Settling(case, names)
    columns = ColumnWriter(case, names, findings, keys)

    yield from write.cleared()
    yield from columns.needed_by_new_keys()
    yield from write.exchanged([key for key in keys.new if key.first], keys.in_the_way)
    yield from settling.steps(keys.settled)
    yield from write.exchanged([key for key in keys.new if not key.first], keys.afterwards)
    yield from write.finished()
    yield from columns.required()
    yield from (replace(step, alone=True) for step in settling.dead_addresses())
    yield from columns.others()


def _sqlite(case: Case, keys: Keys, write: sqlite.KeyWriter) -> Iterator[Step]:
    """Put the operations of SQLite in order: one transaction, and a second one where the table is built anew."""
    settling = Settling(case, Names(case))
    first = [key for key in keys.new if key.first]
    later = [key for key in keys.new if not key.first]
    following = write.following() if settling.due(keys.settled) else ()

    if not write.anew:  # one transaction for all, in which no order leaves anything unprotected
        yield from following
        yield from write.dropped()
        yield from settling.steps(keys.settled)
        yield from write.created(keys.new)
        yield from settling.dead_addresses()
    elif keys.in_the_way:
        yield from write.rebuilt(write.created(first))
        yield from following
        yield from settling.steps(keys.settled)
        yield from write.created(later)
        yield from settling.dead_addresses()
    else:
        yield from following
        yield from settling.steps(keys.settled)
        yield from write.rebuilt((*write.created(keys.new), *settling.dead_addresses()))
