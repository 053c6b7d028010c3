"""The doctor for a running application: at start-up, or behind a health endpoint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.transactions import Needs, place_on, run
from accountlink.doctor.examine import Look, examine
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.pooling import check_pooling
from accountlink.doctor.reading import begin_reading, transactional
from accountlink.doctor.report import Report
from accountlink.doctor.subjects import Target, targets_of
from accountlink.errors import ConfigurationError


async def diagnose(
    engine: AsyncEngine, linker: object, *, look: Look = Look.EVERYTHING, ignore: Collection[str] = ()
) -> list[Finding]:
    """Find the faults that block links or leave them unprotected, in the table's schema and on the way to it.

    Nothing is changed.

    Args:
        engine: The application's own engine, since its role and its settings are looked at too.
        linker: An ``AccountLinker``, an ``AccountMapping`` or a ``GrantMapping``. Of a linker, its vault and its table
            of pending credentials are looked at too; no key of the vault is used.
        look: ``Look.EVERYTHING`` asks the rows too where the catalogue leaves a question open, which reads the whole
            table, however long that takes; ``Look.CATALOGUE`` takes a few milliseconds, as a health endpoint wants it.
        ignore: Findings that were accepted: ``rule``, or ``rule:name`` for those about one object or one table. That
            the table itself, or a column of it, is missing is always told, and so is an engine whose answers may be
            those of another client.

    Returns:
        The findings; empty when nothing is wrong. An engine whose answers may be those of another
        client (``unsafe-pooling`` behind a pooler) gives that finding alone, since nothing else that it says can be
        relied on.

    Raises:
        ConfigurationError: Not an engine, nothing that has a mapping, no rule of such a name, or a role that may not
            read the table.
        StoreBusy: A lock, a statement or a connection was not to be had in time. Where PostgreSQL sets no bound of its
            own, a look waits five seconds for a lock, and ``Look.CATALOGUE`` ten for the answer to a question.
        StoreUnavailable: The database cannot be reached. psycopg does not tell this from a server that refuses the
            role or its password.
        sqlalchemy.exc.DBAPIError: Any other answer of the database, as SQLAlchemy raised it, without parameters.
        asyncpg.PostgresError: With SQLAlchemy 2.0, the server refuses the role, its password or the database.
    """
    given: object = engine
    if not isinstance(given, AsyncEngine):
        raise ConfigurationError(
            f"diagnose() takes an AsyncEngine, not {type(given).__name__}: it looks at how the engine connects."
        )
    if not isinstance(look, Look):
        raise ConfigurationError(f"diagnose(look=...) takes a member of Look, not {type(look).__name__}.")
    targets, ignored = targets_of(linker), Ignored.of(ignore)
    pooling = await check_pooling(engine)
    accepted = pooling is not None and ignored.holds(pooling)
    sure = pooling is not None and pooling.severity is Severity.ERROR
    if pooling is not None and engine.dialect.name != "sqlite" and (sure or not accepted):
        return [pooling]
    reports = await read_tables(engine, targets, look=look, ignored=ignored)
    found = [finding for report in reports for finding in report.findings]
    return [*([pooling] if pooling is not None and not accepted else []), *found]


async def read_tables(
    engine: AsyncEngine, targets: Sequence[Target], *, look: Look, ignored: Ignored
) -> tuple[Report, ...]:
    """Look at tables in one transaction, in which PostgreSQL refuses writes; how the engine connects is not looked at.

    Raises:
        Exception: As ``diagnose`` does.
    """
    place = place_on(transactional(engine), needs=Needs.TRANSACTION)
    reading = partial(_read, targets=targets, look=look, ignored=ignored)
    return await run(place, reading, Patience(writes=False, reads_catalogue=True))


def _read(connection: sa.Connection, *, targets: Sequence[Target], look: Look, ignored: Ignored) -> tuple[Report, ...]:
    begin_reading(connection, rows=look is Look.EVERYTHING)
    return tuple(examine(connection, target, look=look, ignore=ignored.patterns) for target in targets)
