"""``accountlink doctor``: reads the database through a connection that cannot write, and says what it found.

``loading.py`` finds what the options name in the application, ``engines.py`` makes engines, ``reaching.py`` reads
through them, ``reports.py`` prints.
"""

import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from accountlink.cli.engines import is_plain
from accountlink.cli.loading import CannotRun, load_engine, load_target
from accountlink.cli.reaching import way_by_engine, way_by_url
from accountlink.cli.reports import Examined
from accountlink.doctor.ignoring import Ignored
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.revision import alembic_revision
from accountlink.doctor.repair.script import sql_script


@dataclass(frozen=True, kw_only=True)
class Order:
    """Hold the command's arguments.

    Attributes:
        apps: What to look at: ``module:attribute`` of linkers or mappings.
        database_url: The database, unless ``engine`` names it.
        engine: ``module:attribute`` of the application's engine.
        ignored: Findings that were accepted.
        url_from_environment: Whether ``database_url`` came from there, and so is there the next time.
    """

    apps: tuple[str, ...]
    database_url: str | None = None
    engine: str | None = None
    ignored: Ignored = field(default_factory=Ignored)
    url_from_environment: bool = False

    def emitting(self) -> str:
        """Return the command that writes the migration, with these options.

        A URL that may hold a secret is written as ``URL``, for people to fill in.
        """
        words = ["accountlink", "doctor"]
        for app in self.apps:
            words += ["--app", app]
        if self.engine is not None:
            words += ["--engine", self.engine]
        elif self.database_url is not None and not self.url_from_environment:
            words += ["--database-url", self.database_url if is_plain(self.database_url) else "URL"]
        for pattern in sorted(self.ignored.patterns):
            words += ["--ignore", pattern]
        return shlex.join([*words, "--emit", "sql"])


async def run(order: Order) -> tuple[Examined, tuple[Repair, ...]]:
    """Look at every table that was asked for.

    Returns:
        What was found, and the migrations that repair it, in the order of the tables.

    Raises:
        CannotRun: Something that an option names cannot be used.
    """
    named = [target for name in dict.fromkeys(order.apps) for target in load_target(name)]
    targets = list(dict.fromkeys(named))  # several linkers may share a table of pending credentials
    if order.engine is not None:
        way = way_by_engine(load_engine(order.engine))
    elif order.database_url is not None:
        way = way_by_url(order.database_url)
    else:
        raise CannotRun("no database was named. Give --database-url or --engine, or set ACCOUNTLINK_DATABASE_URL.")
    try:
        found = await way.pooling()
        reports = await way.reports(targets, order.ignored)
    finally:
        await way.close()
    pooling, accepted = order.ignored.split(() if found is None else (found,))
    return (
        Examined(
            tables=tuple(report.repair.table for report in reports),
            dialect=way.dialect,
            findings=(*pooling, *(finding for report in reports for finding in report.findings)),
            ignored=len(accepted) + sum(len(report.ignored) for report in reports),
            emitting=order.emitting() if any(report.repair.steps for report in reports) else None,
        ),
        tuple(report.repair for report in reports),
    )


def _sql(repairs: Sequence[Repair], _: str | None) -> str:
    """Return the migrations as SQL, one after the other."""
    return "\n".join(sql_script(repair) for repair in repairs)


def _alembic(repairs: Sequence[Repair], down_revision: str | None) -> str:
    """Return all migrations as one Alembic revision: two that follow the same one would be two heads."""
    together = Repair(
        dialect=repairs[0].dialect,
        table=", ".join(repair.table for repair in repairs),
        steps=tuple(step for repair in repairs for step in repair.steps),
        by_hand=tuple(remark for repair in repairs for remark in repair.by_hand),
    )
    return alembic_revision(
        together, revision=secrets.token_hex(6), down_revision=down_revision, created=datetime.now(UTC)
    )


_EMITTED: Final[Mapping[str, Callable[[Sequence[Repair], str | None], str]]] = {"sql": _sql, "alembic": _alembic}


def migration(repairs: Sequence[Repair], *, kind: str, down_revision: str | None = None) -> str:
    """Return the text of a migration; empty when there is nothing to repair.

    Args:
        repairs: The migrations, all for one database.
        kind: ``sql`` or ``alembic``.
        down_revision: The revision that an Alembic revision follows.
    """
    due = [repair for repair in repairs if repair.steps or repair.by_hand]
    return _EMITTED[kind](due, down_revision) if due else ""
