"""Looks at a table, and runs what the doctor emits, as ``psql`` and ``sqlite3`` would."""

from __future__ import annotations

from datetime import UTC, datetime
from sqlite3 import complete_statement
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink.doctor.examine import examine
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.revision import alembic_revision
from accountlink.doctor.repair.script import sql_script
from accountlink.doctor.report import Report


async def look(engine: AsyncEngine, mapping: Any) -> Report:
    """Examine a table on a fresh connection: what changes a column's type ends cached statements."""
    await engine.dispose()
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: examine(sync, mapping))


def found(report: Report) -> list[tuple[str, Any]]:
    """The rules of a report, each with its object."""
    return [(finding.rule, finding.object) for finding in report.findings]


def script_of(report: Report) -> list[str]:
    """The statements of the script that a report comes with."""
    return statements(sql_script(report.repair))


def statements(script: str) -> list[str]:
    """The statements of a script; comments between them, and what is meant for ``sqlite3`` itself, are left out."""
    found: list[str] = []
    lines: list[str] = []
    for line in script.splitlines():
        if lines or not line.startswith(("--", ".")):
            lines.append(line)
        text = "\n".join(lines).strip()
        if not text:
            lines.clear()
        elif complete_statement(text):  # knows strings and triggers
            found.append(text.removesuffix(";"))
            lines.clear()
    assert not "".join(lines).strip()
    return found


def downgrade(script: str) -> str:
    """The downgrade that stands at the end of a script as comments, as a script of its own."""
    _, _, section = script.partition("-- What can be taken back, in this order:\n--\n")
    lines = [line.removeprefix("-- ") for line in section.splitlines()]
    return "\n".join("" if line == "--" else line for line in lines)


async def run_script(engine: AsyncEngine, script: str) -> None:
    """Run a script statement by statement, on one connection that begins nothing by itself."""
    await run_statements(engine, statements(script))


async def run_statements(engine: AsyncEngine, wanted: list[str]) -> None:
    """Run statements one by one, on one connection that begins nothing by itself, and close it."""
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if engine.dialect.name == "sqlite":
            driver.isolation_level = None
        elif engine.dialect.driver == "psycopg":
            await driver.set_autocommit(True)
        for statement in wanted:
            await driver.execute(statement)
        if engine.dialect.name == "sqlite" and driver.in_transaction:
            await driver.execute("ROLLBACK")
        await connection.invalidate()


async def run_revision(url: str, repair: Repair) -> None:
    """Run the Alembic revision of a migration on a connection of its own, in one transaction where it has no other."""
    text = alembic_revision(repair, revision="a1b2", down_revision=None, created=datetime(2026, 11, 20, tzinfo=UTC))
    module: dict[str, Any] = {}
    exec(compile(text, "revision", "exec"), module)  # noqa: S102  # what the doctor wrote is what is to be run

    def upgrade(connection: sa.Connection) -> None:
        context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
        with Operations.context(context), context.begin_transaction(_per_migration=True):
            module["upgrade"]()

    engine = create_async_engine(url, poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
