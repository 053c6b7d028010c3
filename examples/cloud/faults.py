"""Two very rare faults, which this program causes on purpose. PostgreSQL only, and only for trying out.

A unique index refuses a link, and by the time that accountlink looks for the owner's row it is gone; or that look-up
itself fails. Neither is a conflict, and neither may be called a success.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


@asynccontextmanager
async def owner_vanishes(engine: AsyncEngine, *, times: int) -> AsyncIterator[None]:
    """Let the database refuse the next links because of an owner whose row cannot be found.

    Args:
        engine: On PostgreSQL.
        times: How many writes are refused, before they pass again.
    """
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE SEQUENCE cloud_refusals")  # a rollback does not set it back
        await connection.exec_driver_sql(f"""
            CREATE FUNCTION cloud_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('cloud_refusals') <= {int(times)} THEN
                    RAISE unique_violation
                    USING CONSTRAINT = 'cloud_one_owner', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
                END IF;
                RETURN NEW;
            END $$
        """)
        await connection.exec_driver_sql(
            "CREATE TRIGGER cloud_refuse BEFORE INSERT ON cloud_provider_accounts "
            "FOR EACH ROW EXECUTE FUNCTION cloud_refuse()"
        )
    try:
        yield
    finally:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP TRIGGER cloud_refuse ON cloud_provider_accounts")
            await connection.exec_driver_sql("DROP FUNCTION cloud_refuse")
            await connection.exec_driver_sql("DROP SEQUENCE cloud_refusals")


@contextmanager
def lookup_fails(engine: AsyncEngine) -> Iterator[None]:
    """Let the look-up after a unique violation fail: its query is replaced by a division by 0."""

    def replace(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return ("SELECT 1 / 0", ()) if "pg_index" in statement else (statement, parameters)

    event.listen(engine.sync_engine, "before_cursor_execute", replace, retval=True)
    try:
        yield
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", replace)
