"""The doctor for a running application: at start-up, or behind a health endpoint."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import attempts
from accountlink.doctor.examine import Look, examine
from accountlink.doctor.findings import Finding
from accountlink.doctor.pooling import check_pooling
from accountlink.doctor.report import Report
from accountlink.errors import ConfigurationError
from accountlink.storage.subject import Mapping, mapping_of
from accountlink.storage.transactions import place_of


async def diagnose(engine: AsyncEngine, linker: object, *, look: Look = Look.EVERYTHING) -> list[Finding]:
    """Find what blocks or fails to protect links: in the table's schema, and on the way to it. Changes nothing.

    Args:
        engine: The application's own engine, since its role and its settings are looked at too.
        linker: An ``AccountLinker``, an ``AccountMapping`` or a ``GrantMapping``.
        look: ``Look.EVERYTHING`` asks the rows too where the catalogue leaves a question open, which reads the whole
            table; ``Look.CATALOGUE`` takes a few milliseconds, as a health endpoint wants it.

    Returns:
        The findings; empty when nothing is wrong. An engine whose answers may be somebody else's
        (``unsafe-pooling`` behind a pooler) gives that finding alone, since nothing else that it says can be relied on.

    Raises:
        ConfigurationError: Not an engine, nothing that has a mapping, or a role that may not read the table.
        StoreBusy: A lock, a statement or a connection was not to be had in time.
        StoreUnavailable: The database cannot be reached.
        sqlalchemy.exc.DBAPIError: Any other answer of the database, as SQLAlchemy raised it, without parameters.
    """
    given: object = engine
    if not isinstance(given, AsyncEngine):
        raise ConfigurationError(
            f"diagnose() takes an AsyncEngine, not {type(given).__name__}: it looks at how the engine connects."
        )
    mapping = mapping_of(linker)
    pooling = await check_pooling(engine)
    if pooling is not None and engine.dialect.name != "sqlite":
        return [pooling]
    place = attempts.reached(await place_of(engine, mapping, several_statements=True))
    report = await attempts.read_catalogue(place, partial(_read, mapping=mapping, look=look))
    return [*([pooling] if pooling is not None else []), *report.findings]


def _read(connection: sa.Connection, *, mapping: Mapping, look: Look) -> Report:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
    return examine(connection, mapping, look=look)
