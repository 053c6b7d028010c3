"""Says what no migration can decide, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.repair.columns import compares_wrongly, new_type, way_around
from accountlink.doctor.repair.keys import Keys, dependants
from accountlink.doctor.repair.names import Names
from accountlink.doctor.repair.settle import can_lower, has_unsettled_addresses
from accountlink.doctor.schema import Relation

_BY_KEYS: Final = frozenset({"missing-key", "duplicates", "key-enforces-nothing"})
"""What is repaired, or explained, with the keys."""
_UNLESS_UNSURE: Final = frozenset({"stale-unique", "key-counts-deleted", "wrong-predicate"})


def left(case: Case, findings: Sequence[Finding], keys: Keys) -> Iterator[str]:
    """One text for each finding that the migration does not repair."""
    yield from keys.by_hand
    if case.catalogue.dialect == "sqlite":
        for column in keys.required:
            yield (
                f"key-enforces-nothing: {column.name} is part of the key and takes NULL, which no unique index "
                f"refuses. {new_type(case, column)} Write NOT NULL beside it there."
            )
    for finding in findings:
        if finding.rule in _BY_KEYS or (finding.rule in _UNLESS_UNSURE and finding.severity is Severity.ERROR):
            continue
        yield from _one(case, finding, keys)


def _one(case: Case, finding: Finding, keys: Keys) -> Iterator[str]:
    said = f"{finding.rule}: {finding.message} {finding.fix}"
    match finding.rule:
        case "invalid-index" | "deferrable-key":
            yield from _index(case, finding, keys, said)
        case "key-compares-differently":
            yield from _comparison(case, finding, keys, said)
        case "narrow-column":
            yield from _narrow(case, finding, said)
        case "hidden-owner":
            yield f"{said}\n{_policy(case)}"
        case _:
            yield said


def _index(case: Case, finding: Finding, keys: Keys, said: str) -> Iterator[str]:
    done = [*keys.invalid, *keys.old, *(key.instead_of for key in keys.new if key.instead_of is not None)]
    if finding.object in {index.constraint or index.name for index in done}:
        return
    index = next((each for each in case.table.indexes if (each.constraint or each.name) == finding.object), None)
    if finding.rule == "invalid-index" and case.table.relation is Relation.PARTITIONED:
        yield (
            f"{finding.rule}: {finding.object} is not valid yet, since some partition has no part of it: it was made "
            "ON ONLY the table. Build the same index in each partition concurrently, then ALTER INDEX … ATTACH "
            "PARTITION; with the last one it becomes valid. If nobody means to finish it, drop it."
        )
        return
    depending = None if index is None else dependants(case, index)
    yield f"{said} First move what depends on it: {depending}." if depending else said


def _comparison(case: Case, finding: Finding, keys: Keys, said: str) -> Iterator[str]:
    if finding.object == case.subject.normal and (case.rows.plain or case.rows.odd):
        unsettled = has_unsettled_addresses(case)
        if unsettled:
            yield (
                f"{finding.rule}: {case.rows.plain} addresses in {finding.object} stay as they are, since in normal "
                "form some of them would be duplicates, which come first."
            )
        count = case.rows.odd + (0 if unsettled or can_lower(case) else case.rows.plain)
        if count:
            yield (
                f"{finding.rule}: {count} addresses in {finding.object} need more than lower() to be in normal form, "
                "and no SQL expression makes it. Write them again in Python with accountlink.normalize_email, as "
                "docs/email-keys.md shows."
            )
        return
    column = case.table.column(finding.object or "")
    if column is None or finding.columns != (column.name,):
        return  # an index: it goes with the keys, or they say why it stays
    if not compares_wrongly(column) or way_around(case, column) is not None:
        yield f"{said} {way_around(case, column) or new_type(case, column)}"
    del keys


def _narrow(case: Case, finding: Finding, said: str) -> Iterator[str]:
    column = case.table.column(finding.object or "")
    if column is None or (way := way_around(case, column)) is not None:
        yield said if column is None else f"{said} {way}"


def _policy(case: Case) -> str:
    names, role = Names(case), case.catalogue.role or "the_role_that_links"
    return (
        "A decision about security, so it is only shown:\n"
        f"CREATE POLICY accountlink_sees_owners ON {names.table} FOR SELECT TO {names.quote(role)} USING (true);"
    )
