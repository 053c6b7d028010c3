"""Says what no migration can decide, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy
from accountlink.doctor.repair.columns import new_type, way_around
from accountlink.doctor.repair.keys import Keys, dependants
from accountlink.doctor.repair.names import Names
from accountlink.doctor.repair.settle import can_lower, has_unsettled_addresses
from accountlink.doctor.schema import Column, Index, Relation


def left(case: Case, findings: Sequence[Finding], keys: Keys) -> Iterator[str]:
    """Write one text for each finding that the migration does not repair."""
    yield from keys.by_hand
    if case.catalogue.dialect == "sqlite":
        for column in keys.required:
            yield (
                f"key-enforces-nothing: {column.name} is part of the key and takes NULL, which no unique index "
                f"refuses. {new_type(case, column)} Write NOT NULL beside it there."
            )
    for finding in findings:
        yield from _about(case, finding, keys)


def _about(case: Case, finding: Finding, keys: Keys) -> Iterator[str]:
    match finding.remedy, finding.about:
        case ((Remedy.KEY | Remedy.SETTLE | Remedy.DROP | Remedy.REQUIRE), _):
            return  # the keys themselves say what they leave
        case ((Remedy.CLEAR | Remedy.AT_ONCE), Index() as index):
            if not keys.change(index):
                yield _index(case, finding, index)
        case ((Remedy.BYTEWISE | Remedy.LONGER), Column() as column):
            if way := way_around(case, column):
                yield f"{finding.text} {way}"
        case Remedy.ADDRESSES, Column() as column:
            yield from _addresses(case, finding, column)
        case Remedy.POLICY, _:
            yield f"{finding.text}\n{_policy(case)}"
        case _:
            yield finding.text


def _index(case: Case, finding: Finding, index: Index) -> str:
    if finding.remedy is Remedy.CLEAR and case.table.relation is Relation.PARTITIONED:
        return (
            f"{finding.rule}: {index.true_name} is not valid yet, since some partition has no part of it: it was made "
            "ON ONLY the table. Build the same index in each partition concurrently, then ALTER INDEX … ATTACH "
            "PARTITION; with the last one it becomes valid. If nobody means to finish it, drop it."
        )
    depending = dependants(case, index)
    return f"{finding.text} First move what depends on it: {depending}." if depending else finding.text


def _addresses(case: Case, finding: Finding, column: Column) -> Iterator[str]:
    unsettled = has_unsettled_addresses(case)
    if unsettled:
        yield (
            f"{finding.rule}: {case.rows.plain} addresses in {column.name} stay as they are, since in normal form some "
            "of them would be duplicates, which come first."
        )
    count = case.rows.odd + (0 if unsettled or can_lower(case) else case.rows.plain)
    if case.rows.sealed:
        yield (
            f"{finding.rule}: {count} addresses in {column.name} are not in normal form, and {case.rows.sealed} of "
            "their rows have sealed tokens. A token opens only beside the address that it was sealed for, so no SQL "
            "changes any. For each row read the tokens with stored_credentials(), write the address as "
            "accountlink.normalize_email makes it, and store the tokens again with link()."
        )
    elif count:
        sealed = " Do it before a backfill seals their tokens for these addresses." if case.subject.sealed else ""
        yield (
            f"{finding.rule}: {count} addresses in {column.name} need more than lower() to be in normal form, and no "
            "SQL expression makes it. Write them again in Python with accountlink.normalize_email, as "
            f"docs/email-keys.md shows.{sealed}"
        )


def _policy(case: Case) -> str:
    names, role = Names(case), case.catalogue.role or "the_role_that_links"
    return (
        "A decision about security, so it is only shown:\n"
        f"CREATE POLICY accountlink_sees_owners ON {names.table} FOR SELECT TO {names.quote(role)} USING (true);"
    )
