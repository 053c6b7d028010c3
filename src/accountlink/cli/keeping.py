"""``accountlink connections`` and ``accountlink keep-alive``: look after the grants of all users."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.loading import CannotRun, load_renewing_linker
from accountlink.cli.output import aligned, say
from accountlink.cli.reports import visible
from accountlink.cli.using import opened
from accountlink.linker import AccountLinker
from accountlink.values.health import Health, HealthState
from accountlink.vault.upkeep import KeptAlive

_HEADINGS: Final = ("link", "state", "code", "since", "retry at")
_AT_ONCE: Final = 500
"""The number of links that are aligned and printed together."""
_PATIENCE: Final = (
    "accountlink: keep-alive is ending. It still stores the tokens that it has asked for, which takes about 20 seconds "
    "at most, and up to a minute more while the database cannot be reached. Killed now, it would lose them."
)
"""The answer to a second signal."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Hold the arguments that both commands take.

    Attributes:
        apps: The linkers: ``module:attribute`` of each.
        database_url: The database, unless ``engine`` names it.
        engine: ``module:attribute`` of the application's engine.
    """

    apps: tuple[str, ...]
    database_url: str | None
    engine: str | None


# -- connections ------------------------------------------------------------------------------------------------------


async def connections(order: Order, *, state: str | None, form: str) -> int:
    """List the links whose grants do not work, and return their number.

    Raises:
        CannotRun: Something that an option names cannot be used, or the database failed.
    """
    wanted = None if state is None else HealthState(state)
    linkers = [load_renewing_linker(name) for name in dict.fromkeys(order.apps)]
    show = {"table": _table, "json": _json}[form]
    async with opened(order.database_url, order.engine) as engine:
        return await show({linker.mapping.name: linker.unhealthy(engine, state=wanted) for linker in linkers})


async def _table(found: dict[str, AsyncIterator[tuple[Any, Health]]]) -> int:
    """Print a table for each linker, and a line with its count."""
    total = 0
    for name, links in found.items():
        count = 0
        rows: list[tuple[str, ...]] = [_HEADINGS]
        async for link_id, health in links:
            count += 1
            rows.append(_cells(link_id, health))
            if len(rows) > _AT_ONCE:
                _print_aligned(rows)
                rows = []
        if count and rows:
            _print_aligned(rows)
        noun = "connection does" if count == 1 else "connections do"
        say(visible(f"{name}: {count:,} {noun} not work."))
        total += count
    return total


def _print_aligned(rows: list[tuple[str, ...]]) -> None:
    for line in aligned(rows):
        say(visible(line))


def _cells(link_id: Any, health: Health) -> tuple[str, ...]:
    moments = (_moment(health.since), _moment(health.retry_at))
    return (str(link_id), health.state.value, health.provider_code or "-", *(each or "-" for each in moments))


async def _json(found: dict[str, AsyncIterator[tuple[Any, Health]]]) -> int:
    """Write one JSON object for each link, on a line of its own, so that no number of links is too large."""
    total = 0
    for name, links in found.items():
        async for link_id, health in links:
            total += 1
            line = {
                "table": name,
                "link_id": str(link_id),
                "state": health.state.value,
                "provider_code": health.provider_code,
                "since": _moment(health.since),
                "retry_at": _moment(health.retry_at),
            }
            say(json.dumps(line))
    return total


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


# -- keep-alive -------------------------------------------------------------------------------------------------------


async def keep_all_alive(order: Order, *, idle: timedelta, limit: int | None) -> int:
    """Renew idle grants, print the counts, and return how many of them need somebody.

    Raises:
        CannotRun: Something that an option names cannot be used, the database failed, or it was told to end.
    """
    linkers = [load_renewing_linker(name) for name in dict.fromkeys(order.apps)]
    with _ended_by_signals():
        try:
            return await _all_kept_alive(order, linkers, idle=idle, limit=limit)
        except asyncio.CancelledError:
            raise CannotRun(
                "keep-alive was told to end, and has stored what it had renewed. Start the command again: it goes on "
                "with the grants that are still idle."
            ) from None


async def _all_kept_alive(
    order: Order, linkers: list[AccountLinker[Any, Any]], *, idle: timedelta, limit: int | None
) -> int:
    need = 0
    async with opened(order.database_url, order.engine) as engine:
        for linker in linkers:
            kept = await _kept_alive(engine, linker, idle=idle, limit=limit)
            counts = ", ".join(f"{count:,} {became}" for became, count in asdict(kept).items())
            say(visible(f"{linker.mapping.name}: {counts}."))
            need += kept.ended + kept.unreadable
    return need


async def _kept_alive(
    engine: AsyncEngine, linker: AccountLinker[Any, Any], *, idle: timedelta, limit: int | None
) -> KeptAlive:
    """Renew the idle grants of one linker. If it is told to end, it first stores what is under way."""
    with _progress(linker.mapping.name):
        try:
            return await linker.keep_alive(engine, idle=idle, limit=limit)
        finally:
            await linker.aclose()


class _Ending:
    """Cancel a task at the first signal, and never again: a second one would throw away the tokens under way.

    Args:
        cancel: Cancels the task.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self._signals = 0

    def told(self) -> None:
        """Count a signal; say once that it does not help to send more."""
        self._signals += 1
        if self._signals == 1:
            self._cancel()
        elif self._signals == 2:  # the second
            with suppress(OSError):  # nobody reads on
                click.echo(_PATIENCE, err=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end this task by one cancellation: systemd sends one, and Ctrl-C the other.

    The handlers are Python's own and not the event loop's, which Windows does not have.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in one
    ending = _Ending(task.cancel)
    before: dict[signal.Signals, Any] = {}
    with suppress(ValueError):  # in a thread that is not the main one, nothing can be set
        for each in (signal.SIGTERM, signal.SIGINT):
            before[each] = signal.signal(each, lambda *_: loop.call_soon_threadsafe(ending.told))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """Show on a terminal that something is under way, and for how long, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(visible(name), total=None)
        yield
