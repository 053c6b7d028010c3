"""``accountlink backfill`` and ``accountlink rotate-keys``: seal the tokens of whole tables, and say what is left."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.loading import load_linker
from accountlink.cli.output import say
from accountlink.cli.reports import visible
from accountlink.cli.using import opened
from accountlink.linker import AccountLinker
from accountlink.vault.rotation import Mode, Progress, Unreadable, backfill, rotate_keys

_NAMED: Final = 20
"""The most links that are named for one reason."""
_REASONS: Final = {
    "unknown_key": "sealed with a key that the vault does not have",
    "not_authentic": "sealed for another link, with another key of the same id, or changed",
    "malformed": "damaged",
    "unknown_format": "sealed by a newer version",
    "contents": "sealed with contents that this version does not know",
    "plain_text": "plain text with a character that no envelope takes",
    "no_account": "without a user, a provider or an account, to which a token is sealed",
    "too_long": "in a column that is too narrow for the envelope",
}


class Task(Enum):
    """Name what is to be done with a table."""

    BACKFILL = "backfill"
    """Plain text is sealed."""
    ROTATE = "rotate"
    """Envelopes of older keys are sealed with the newest one."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Hold the arguments of a command.

    Attributes:
        task: What is to be done.
        apps: The linkers: ``module:attribute`` of each.
        database_url: The database, unless ``engine`` names it.
        engine: ``module:attribute`` of the application's engine.
        dry_run: Whether rows are only counted.
        batch_size: The most rows of a transaction.
    """

    task: Task
    apps: tuple[str, ...]
    database_url: str | None
    engine: str | None
    dry_run: bool
    batch_size: int


async def run(order: Order) -> int:
    """Seal the tables of each linker, print a summary of each, and return the number of rows that are left.

    Raises:
        CannotRun: Something that an option names cannot be used, or the database failed.
    """
    linkers = [load_linker(name) for name in dict.fromkeys(order.apps)]
    async with opened(order.database_url, order.engine) as engine:
        return sum([await _sealed(engine, linker, order) for linker in linkers])


async def _sealed(engine: AsyncEngine, linker: AccountLinker[Any, Any], order: Order) -> int:
    """Seal the tables of one linker, and print a summary."""
    steps = backfill if order.task is Task.BACKFILL else rotate_keys
    name, mode, end = linker.mapping.name, Mode.COUNT if order.dry_run else Mode.SEAL, Progress(scanned=0, due=0)
    with _bar(name) as show:
        async for progress in steps(engine, linker, mode=mode, batch_size=order.batch_size):
            end = progress
            show(progress)
    say(visible(f"{name}: {_summary(end, order)}"))
    for line in _left(end, order):
        say(visible(f"   {line}"))
    return end.left


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(name, total=None)
        yield lambda progress: bar.update(
            shown, total=progress.due, completed=min(progress.due, progress.sealed + progress.left)
        )


def _summary(end: Progress, order: Order) -> str:
    if order.dry_run:
        return f"{end.scanned:,} rows scanned, {end.waiting:,} to seal, {len(end.unreadable):,} that cannot be sealed."
    return f"{end.scanned:,} rows scanned, {end.sealed:,} sealed, {end.left:,} left."


def _left(end: Progress, order: Order) -> Iterator[str]:
    """Say what is left, and why: a line for each reason in each table."""
    groups: dict[tuple[str, str], list[Unreadable]] = {}
    for each in end.unreadable:
        groups.setdefault((each.table, each.reason), []).append(each)
    for (table, reason), rows in groups.items():
        yield f"{len(rows):,} in {table} {_REASONS[reason]} ({reason}){_named(rows)}"
    if end.waiting and not order.dry_run:
        written = "in plain text" if order.task is Task.BACKFILL else "with an older key"
        yield f"{end.waiting:,} locked by other transactions, or written {written} meanwhile: start the command again"


def _named(rows: Sequence[Unreadable]) -> str:
    ids = [str(each.link_id) for each in rows if each.link_id is not None]
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f": {', '.join(ids[:_NAMED])}{more}" if ids else ""
