"""Breaks a table as four real systems had it, lets the doctor look at it, and repairs it with the doctor's migration.

``examine`` is the whole way; ``broken_systems.py`` has the systems with their tables.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import BlockedByConstraint
from accountlink.cli.demo.broken_systems import SYSTEMS, TABLES, System
from accountlink.cli.doctor import migration
from accountlink.database.cancellation import seen_through
from accountlink.doctor.diagnose import read_tables
from accountlink.doctor.examine import Look
from accountlink.doctor.findings import Finding
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.report import Report
from accountlink.doctor.subjects import Target

__all__ = ["SYSTEMS", "Examination", "Found", "System", "examine"]

_turns: Final[WeakKeyDictionary[AsyncEngine, asyncio.Lock]] = WeakKeyDictionary()
"""One lock for each engine: two examinations at once would use one table."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Hold a finding, in the doctor's words.

    Attributes:
        rule: The rule, such as ``stale-unique``; its page is ``docs/doctor/<rule>.md``.
        name: The name of the constraint or index; ``None`` where one is missing.
        message: What is wrong, and what comes of it.
        remedy: What to do.
    """

    rule: str
    name: str | None
    message: str
    remedy: str

    @classmethod
    def of(cls, finding: Finding) -> "Found":
        """Take from a finding what people read."""
        return cls(rule=finding.rule, name=finding.object, message=finding.message, remedy=finding.fix)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Hold what an examination of one system came to.

    Attributes:
        schema: The statements that made the broken table.
        attempt: What the user tried, and the code of what stopped them, in one line.
        findings: What the doctor found.
        migration: The doctor's migration, as ``accountlink doctor --emit sql`` prints it.
        findings_after: What the doctor finds after the migration: nothing.
        attempt_after: What the user tries again, and the outcome's code, in one line.
    """

    schema: str
    attempt: str
    findings: tuple[Found, ...]
    migration: str
    findings_after: tuple[Found, ...]
    attempt_after: str


async def examine(engine: AsyncEngine, slug: str) -> Examination:
    """Break a system's table, diagnose it, repair it, and diagnose it again. The table is gone afterwards.

    Args:
        engine: A database that may hold other tables; of SQLite, tuned by ``tune_sqlite``. Several calls on one engine
            take turns. A call that is cancelled first brings the examination to its end, or breaks it off
            after two seconds.
        slug: The system, one of ``SYSTEMS``.

    Raises:
        KeyError: No system has this slug.
        AccountLinkError: accountlink cannot do its work, for example because the database is busy.
        sqlalchemy.exc.SQLAlchemyError: Any other error of the database, as SQLAlchemy raised it.
    """
    system = {system.slug: system for system in SYSTEMS}[slug]
    async with _turns.setdefault(engine, asyncio.Lock()):
        # A statement that is cancelled half-way can keep a lock of SQLite for a while. An examination takes a moment
        # only, so a caller who is cancelled waits for its end instead.
        return await seen_through(_examine(engine, system))


async def _examine(engine: AsyncEngine, system: System) -> Examination:
    async with _broken_table(engine, system) as schema:
        # 1. The user tries something that the policy allows, and is stopped.
        await system.before(engine)
        attempt = await _try(engine, system)

        # 2. The doctor says why, and writes the migration.
        report = await _diagnose(engine, system)
        script = migration([report.repair], kind="sql")

        # 3. After the migration the doctor finds nothing, and the user is not stopped.
        await _run(engine, script)
        after = await _diagnose(engine, system)
        return Examination(
            schema=schema,
            attempt=attempt,
            findings=tuple(Found.of(finding) for finding in report.findings),
            migration=script,
            findings_after=tuple(Found.of(finding) for finding in after.findings),
            attempt_after=await _try(engine, system),
        )


@asynccontextmanager
async def _broken_table(engine: AsyncEngine, system: System) -> AsyncIterator[str]:
    """Make the broken table and yield the statements that did; drop it in the end."""
    statements = list(_making(system.table, engine.dialect))
    await _drop(engine, system.table)  # a process that was killed has left it
    try:
        async with engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
        yield "".join(f"{statement};\n" for statement in statements)
    finally:
        await seen_through(_drop(engine, system.table))


def _making(table: sa.Table, dialect: sa.Dialect) -> Iterator[str]:
    """Yield the statements that make a table and its indexes."""
    made: list[sa.schema.ExecutableDDLElement] = [sa.schema.CreateTable(table)]
    made += [sa.schema.CreateIndex(index) for index in sorted(table.indexes, key=lambda index: str(index.name))]
    for each in made:
        lines = str(each.compile(dialect=dialect)).strip().splitlines()
        yield "\n".join(line.rstrip().expandtabs(4) for line in lines)


async def _drop(engine: AsyncEngine, table: sa.Table) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(TABLES.drop_all, tables=[table])


async def _try(engine: AsyncEngine, system: System) -> str:
    """Let the user try, and say in one line what came of it."""
    try:
        outcome = await system.attempt(engine)
    except BlockedByConstraint as error:
        outcome = f"{error.code} on ({', '.join(error.columns)}), rule {error.rule}"
    except IntegrityError:
        outcome = "IntegrityError"
    return f"{system.tried}: {outcome}"


async def _diagnose(engine: AsyncEngine, system: System) -> Report:
    """Do what ``accountlink doctor`` does: look at the table, and plan its repair."""
    (report,) = await read_tables(engine, [Target(mapping=system.mapping)], look=Look.EVERYTHING, ignored=Ignored())
    return report


async def _run(engine: AsyncEngine, script: str) -> None:
    """Run a migration as ``psql`` and ``sqlite3`` do: each statement by itself, in the script's own transactions."""
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            for statement in _statements(script):
                await alone.exec_driver_sql(statement)
        except BaseException:
            await alone.invalidate()  # it may be inside one of those transactions
            raise


def _statements(script: str) -> Iterator[str]:
    """Split a migration, whose statements end with a line; lines that begin with a dot are for ``sqlite3`` itself."""
    code = "\n".join(line for line in script.splitlines() if not line.startswith(("--", ".")))
    for statement in re.split(r";$", code, flags=re.MULTILINE):
        if statement.strip():
            yield statement.strip()
