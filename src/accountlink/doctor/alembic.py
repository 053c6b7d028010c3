"""Lets Alembic see what the doctor sees: ``alembic check`` fails by its findings, autogenerate writes its repair.

In ``env.py``, before ``context.configure(...)``:

.. code-block:: python

    from accountlink.doctor.alembic import watch

    watch(target_metadata, linker)

Needs the extra ``accountlink[alembic]``. Alembic compares neither the condition of an index nor what the policy needs;
see ``docs/doctor.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa

from accountlink.doctor.examine import examine
from accountlink.doctor.findings import Finding
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.repair.revision import downgrade_lines, upgrade_lines
from accountlink.doctor.repair.script import commented
from accountlink.doctor.report import Report
from accountlink.doctor.subjects import Target, targets_of
from accountlink.errors import AccountLinkError, ConfigurationError
from accountlink.extras import explained

try:
    from alembic import util
    from alembic.autogenerate import comparators, renderers
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import ops
except ModuleNotFoundError as error:
    raise explained("accountlink.doctor.alembic", error) from None

_WIDTH: Final = 88
_WATCHED: Final = "accountlink.doctor"
"""The key in ``MetaData.info`` under which the watched tables stand: there they cannot outlive their metadata."""
_KEYS: Final = (ops.CreateIndexOp, ops.DropIndexOp, ops.CreateUniqueConstraintOp, ops.DropConstraintOp)


def watch(target_metadata: sa.MetaData | Sequence[sa.MetaData], *targets: object, ignore: Collection[str] = ()) -> None:
    """Let autogenerate look at the tables of linkers, wherever it compares this metadata with a database.

    ``alembic check`` then fails by the doctor's findings, and ``alembic revision --autogenerate`` writes the migration
    that repairs them; the other commands do not look. Calling it again changes nothing.

    Args:
        target_metadata: What ``context.configure(target_metadata=...)`` gets.
        targets: ``AccountLinker``, ``AccountMapping`` or ``GrantMapping``, each with a table in the database that the
            metadata is compared with.
        ignore: Findings in these tables to leave out, and not to repair: ``rule``, or ``rule:name`` for those about one
            object or one table.

    Raises:
        ConfigurationError: A target has no mapping, or there is no rule of such a name.
    """
    several: object = [target_metadata] if isinstance(target_metadata, sa.MetaData) else target_metadata
    if not isinstance(several, Sequence) or not several or not isinstance(several[0], sa.MetaData):
        raise ConfigurationError("watch() takes the MetaData that env.py gives to Alembic, such as Base.metadata.")
    metadata = several[0]
    watched: dict[str, tuple[Target, frozenset[str]]] = metadata.info.setdefault(_WATCHED, {})
    ignored = Ignored.of(ignore)
    for table in (table for target in targets for table in targets_of(target)):
        watched[table.mapping.table.fullname] = (table, ignored.patterns)


class FindingOp(ops.MigrateOperation):
    """Hold one finding, as ``alembic check`` lists it."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the finding beside Alembic's own differences."""
        found = self.finding
        return ("accountlink", found.rule, found.table, found.object, found.columns, found.message, found.fix)


class RepairOp(ops.OpContainer):
    """Hold the doctor's findings about one table, and the migration that repairs it."""

    def __init__(self, report: Report) -> None:
        super().__init__([FindingOp(finding) for finding in report.findings])
        self.report = report

    def reverse(self) -> UndoOp:
        """Return what takes the repair back."""
        return UndoOp(self.report)


class UndoOp(ops.MigrateOperation):
    """Take a repair back, in the migration's ``downgrade``."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def reverse(self) -> RepairOp:
        """Return the repair."""
        return RepairOp(self.report)


def _compare(context: AutogenContext, upgrade_ops: ops.UpgradeOps, _: object) -> None:
    """Look at the watched tables of the metadata, after Alembic has compared the rest."""
    made = {(op.schema, op.table_name) for op in upgrade_ops.ops if isinstance(op, ops.CreateTableOp)}
    for target, ignored in _watched(context):
        table = target.mapping.table
        if context.connection is None or (table.schema, table.name) in made:
            continue  # a table that this very migration makes, with its keys
        try:
            report = examine(context.connection, target, ignore=ignored)
        except AccountLinkError as error:
            raise util.CommandError(f"accountlink doctor: {error}") from None
        if report.findings:
            _leave_out(upgrade_ops, _touched(report), table)
            upgrade_ops.ops.append(RepairOp(report))


_last: dict[str, Any] = {}
if (priorities := getattr(util, "DispatchPriority", None)) is not None:  # Alembic 1.18 and newer order comparators
    _last["priority"] = priorities.LAST
comparators.dispatch_for("schema", **_last)(_compare)


def _watched(context: AutogenContext) -> Iterator[tuple[Target, frozenset[str]]]:
    for metadata in util.to_list(context.metadata, []):
        yield from metadata.info.get(_WATCHED, {}).values()


def _touched(report: Report) -> set[str]:
    """Return the names of indexes and constraints that the repair makes, drops or renames."""
    steps = report.repair.steps
    found = {finding.object for finding in report.findings if steps and finding.object is not None}
    return found.union(*(step.names for step in steps))


def _leave_out(container: ops.OpContainer, names: set[str], table: sa.Table) -> None:
    """Take out Alembic's own operations on the same keys: run twice, the second would fail."""
    kept: list[ops.MigrateOperation] = []
    for op in container.ops:
        if isinstance(op, ops.ModifyTableOps):
            _leave_out(op, names, table)
            if op.is_empty():
                continue
        elif isinstance(op, _KEYS) and op.table_name == table.name and _name_of(op) in names:
            continue
        kept.append(op)
    container.ops[:] = kept


def _name_of(op: Any) -> str | None:
    name = op.index_name if isinstance(op, (ops.CreateIndexOp, ops.DropIndexOp)) else op.constraint_name
    return None if name is None else str(name)


@renderers.dispatch_for(RepairOp)
def _render_repair(context: AutogenContext, op: RepairOp) -> str:
    told = [f"accountlink doctor, {finding.rule}: {finding.message}" for finding in op.report.findings]
    told += [f"BY HAND, since no migration can decide it: {text}" for text in op.report.repair.by_hand]
    comments = [line for text in told for line in commented(text, "#", _WIDTH)]
    return _block(context, comments, upgrade_lines(op.report.repair))


@renderers.dispatch_for(UndoOp)
def _render_undo(context: AutogenContext, op: UndoOp) -> str:
    return _block(context, [], downgrade_lines(op.report.repair))


def _block(context: AutogenContext, comments: list[str], lines: list[str]) -> str:
    """Return one text: Alembic's printer would indent only the first of a statement's lines."""
    if any("sa.DDL(" in line for line in lines):
        context.imports.add("import sqlalchemy as sa")
    return "\n".join((*comments, *(lines or ["pass"])))
