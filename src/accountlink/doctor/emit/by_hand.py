"""Says what no migration can decide, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from accountlink.core.schema import Column
from accountlink.doctor.case import Case
from accountlink.doctor.emit.columns import compares_wrongly, is_text
from accountlink.doctor.emit.keys import Keys, dependants
from accountlink.doctor.emit.names import Names
from accountlink.doctor.emit.settle import can_lower
from accountlink.doctor.findings import Finding, Severity

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
                f"refuses. {_expand_and_contract(case, column)} Write NOT NULL beside it there."
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
    depending = None if index is None else dependants(case, index)
    yield f"{said} First move what depends on it: {depending}." if depending else said


def _comparison(case: Case, finding: Finding, keys: Keys, said: str) -> Iterator[str]:
    if finding.object == case.subject.normal and (case.rows.plain or case.rows.odd):
        if case.rows.odd or not can_lower(case):
            count = case.rows.odd + (0 if can_lower(case) else case.rows.plain)
            yield (
                f"{finding.rule}: {count} addresses in {finding.object} need more than lower() to be in normal form, "
                "and no SQL expression makes it. Write them again in Python with accountlink.normalize_email, as "
                "docs/email-keys.md shows."
            )
        return
    column = case.table.column(finding.object or "")
    if column is None or finding.columns != (column.name,):
        return  # an index: it goes with the keys, or they say why it stays
    if case.catalogue.dialect == "sqlite" or not is_text(column) or not compares_wrongly(column):
        yield f"{said} {_expand_and_contract(case, column)}"
    del keys


def _narrow(case: Case, finding: Finding, said: str) -> Iterator[str]:
    column = case.table.column(finding.object or "")
    if column is not None and case.catalogue.dialect == "postgresql" and is_text(column):
        return
    yield said if column is None else f"{said} {_expand_and_contract(case, column)}"


def _expand_and_contract(case: Case, column: Column) -> str:
    if case.catalogue.dialect == "sqlite":
        return "SQLite changes no column in place: build the table anew, as its documentation describes it."
    return (
        f"Changing the type in place would write the whole table again while all access to it waits. Without that: "
        f"add a second column of the right type, let a trigger keep it equal to {column.name}, fill it in batches, "
        "build its indexes concurrently, then let the two change names in one short transaction."
    )


def _policy(case: Case) -> str:
    names, role = Names(case), case.catalogue.role or "the_role_that_links"
    return (
        "A decision about security, so it is only shown:\n"
        f"CREATE POLICY accountlink_sees_owners ON {names.table} FOR SELECT TO {names.quote(role)} USING (true);"
    )
