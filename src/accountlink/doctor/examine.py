"""One look at one table: read the catalogue, ask the rows, apply the rules, plan the repair."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from enum import Enum
from typing import Final

import sqlalchemy as sa

from accountlink.doctor.case import Case
from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.ignoring import Ignored, rest_of
from accountlink.doctor.judge.asking import always_met, judge
from accountlink.doctor.judge.subject import Subject
from accountlink.doctor.repair.made import made
from accountlink.doctor.repair.names import candidates
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.plan import plan
from accountlink.doctor.report import Report
from accountlink.doctor.rows import ask_rows
from accountlink.doctor.rules import judge_by_all, missing_key
from accountlink.doctor.schema import Catalogue, Relation, Table
from accountlink.doctor.subjects import PendingTable, Target, subject_of, targets_of
from accountlink.errors import ConfigurationError

_ELSEWHERE: Final = (Relation.VIEW, Relation.FOREIGN)
"""The relations that have no keys of their own."""


class Look(Enum):
    """Name the extent of a look."""

    EVERYTHING = "everything"
    """The catalogue, and where that leaves a question open, the rows: such a question reads the whole table."""
    CATALOGUE = "catalogue"
    """The catalogue alone: a few milliseconds, whatever the table's size. No row is counted."""


def examine(
    connection: sa.Connection, target: object, *, look: Look = Look.EVERYTHING, ignore: Collection[str] = ()
) -> Report:
    """Look at the table of a linker or a mapping, and plan its repair. Reads only.

    Args:
        connection: An open connection of the role that links.
        target: A table of :func:`targets_of`, or an ``AccountLinker``, an ``AccountMapping`` or a ``GrantMapping``. Of
            a linker the table of links is looked at.
        look: How far to look.
        ignore: Findings to leave out, and not to repair: ``rule``, or ``rule:name`` for those about one object or one
            table. That the table itself, or a column of it, is missing is always told.

    Returns:
        The findings and the migration that repairs them.

    Raises:
        ConfigurationError: The target has no mapping, there is no rule of such a name, or the role may not read the
            table.
        sqlalchemy.exc.DBAPIError: The database could not be asked.
    """
    accepted = Ignored.of(ignore)
    looked_at = target if isinstance(target, Target) else targets_of(target)[0]
    schema = connection.schema_for_object(looked_at.mapping.table)
    subject = subject_of(looked_at, schema=schema)
    catalogue = read_catalogue(connection, subject.table, schema=schema, names=sorted(candidates(subject)))
    missing = _missing(subject, catalogue, own=isinstance(looked_at.mapping, PendingTable))
    if missing is not None or catalogue.table is None:
        elsewhere = catalogue.table is not None and catalogue.table.relation in _ELSEWHERE
        found, ignored = (accepted if elsewhere else Ignored()).split(() if missing is None else (missing,))
        repair = Repair(dialect=catalogue.dialect, table=subject.name)
        if catalogue.table is None and isinstance(looked_at.mapping, PendingTable):
            repair = made(looked_at.mapping.table, schema=schema, dialect=catalogue.dialect)
        return Report(findings=found, repair=repair, ignored=ignored)
    table = catalogue.table
    judgements = judge(connection, subject, table)
    always = always_met(connection, subject, table, _conditions(table))
    case = Case(subject=subject, catalogue=catalogue, table=table, judgements=judgements, always=always)
    if look is Look.EVERYTHING:
        if "SELECT" not in catalogue.may:
            raise ConfigurationError(
                f"The role {catalogue.role} may not read {subject.name}. Connect as the role that links, or grant it "
                "SELECT."
            )
        case = replace(case, rows=ask_rows(connection, case))
    findings, ignored = accepted.split(judge_by_all(case))
    rest = rest_of(case, findings, ignored)
    return Report(findings=findings, repair=rest.completed(plan(rest.case, rest.findings)), ignored=ignored)


def _conditions(table: Table) -> set[str]:
    """Return the conditions on the rows that row-level security shows to the role that looks."""
    security = table.row_security
    return {policy.using for policy in security.policies if policy.using is not None} if security.active else set()


def _missing(subject: Subject, catalogue: Catalogue, *, own: bool) -> Finding | None:
    """Find a table that is missing, or a column of it, without which there is nothing to judge.

    Args:
        subject: The table.
        catalogue: What the database says.
        own: Whether it is a table of the library, beside one that is mapped.
    """
    fix = "Run the application's own migrations first, or look at the database that has it."
    if catalogue.table is None:
        seen = "" if catalogue.role is None else f", as far as the role {catalogue.role} can see"
        what, columns = f"The table is not in this database{seen}", subject.needs[0].columns
        if own:
            what += ", and links with credentials fail without it"
            fix = "Make it: by the migration that the doctor writes, by Alembic's autogenerate, or by create_all()."
    elif catalogue.table.relation in _ELSEWHERE:
        what, columns = f"It is a {catalogue.table.relation.value}, whose keys are elsewhere", subject.needs[0].columns
        fix = "Map the table behind it, and look at that."
    else:
        columns = tuple(name for name in sorted(set(subject.roles.values())) if catalogue.table.column(name) is None)
        named = "links with credentials need" if own else "the mapping names"
        what = f"The table has no column {', '.join(columns)}, which {named}"
    if not columns:
        return None
    return Finding(
        rule=missing_key.RULE,
        severity=Severity.ERROR,
        table=subject.name,
        object=None,
        columns=columns,
        message=f"{what}; nothing else was looked at.",
        fix=fix,
    )
