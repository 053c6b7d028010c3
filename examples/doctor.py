"""Do from a program what `accountlink doctor` does: look at a table, write the migration, and run it.

In an application the migration goes through review and its own migrations; here it is run as it is written.
"""

import re
from collections.abc import Iterator

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.examine import examine
from accountlink.doctor.repair.script import sql_script
from accountlink.doctor.report import Report


async def look_at(engine: AsyncEngine, target: object) -> Report:
    """Examine the table of a linker or a mapping."""
    async with engine.connect() as connection:
        return await connection.run_sync(examine, target)


def statements(script: str) -> Iterator[str]:
    """Split an emitted script, in which each statement ends with its line; what is for `sqlite3` begins with a dot."""
    code = "\n".join(line for line in script.splitlines() if not line.startswith(("--", ".")))
    for statement in re.split(r";$", code, flags=re.MULTILINE):
        if statement.strip():
            yield statement.strip()


async def run(engine: AsyncEngine, report: Report) -> list[str]:
    """Run the migration that `--emit sql` prints, statement by statement, and return those that change the schema."""
    ran = list(statements(sql_script(report.repair)))
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in ran:
            await alone.exec_driver_sql(statement)
    return [statement for statement in ran if statement.startswith(("ALTER", "CREATE", "DROP"))]
