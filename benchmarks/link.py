"""Measure the cost of linking, against a hand-written upsert on the same server.

    python -m benchmarks.link

Ratios come from one interleaved run: in every round each contestant does one small batch of each case, and a ratio
is taken within its round, so that a slow second of the machine falls on all alike. What interleaving cannot even out
is where the system puts each connection's server process, which stays there. So a run has several sittings, each on
new connections, and the result is the median of the sittings with their range. Round trips are counted on the wire in
a pass of its own. The README beside this file says what the columns mean.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from operator import attrgetter

import sqlalchemy as sa

from benchmarks.binds import TITLES, Case, Contestant, opened
from benchmarks.ground import database, tables
from benchmarks.measured import Batch, Spread, compared, typical
from benchmarks.verbs.tasks import RIVALS
from tests.support.wire import WireProxy

ACCOUNTS = 32  # as many of each contestant are linked again in turn


@dataclass(frozen=True, kw_only=True)
class Line:
    """Describe one line of the result."""

    contestant: str
    case: str
    wall_us: float
    wall_ratio: Spread
    cpu_us: float
    cpu_ratio: Spread
    trips: int


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Describe a bound that the library sets itself, and the worst case that was measured."""

    title: str
    limit: float
    measured: Spread

    @property
    def verdict(self) -> str:
        """The answer to whether the limit is met; a limit inside the spread is decided by no single run."""
        if self.measured.high <= self.limit:
            return "met"
        return "NOT met" if self.measured.low > self.limit else "undecided"


# Measuring


class Course:
    """Give out calls, each account with a user of its own, and check that every call meets the expected state."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._users = count(1)
        self._standing: dict[str, list[tuple[int, str]]] = {}
        self._turn = count()

    def _fresh(self) -> tuple[int, str]:
        user_id = next(self._users)
        return user_id, f"{self._run}-{user_id}"

    async def prepare(self, contestant: Contestant) -> None:
        """Link the accounts that are linked again, and let statements, plans and caches settle."""
        if contestant.name not in self._standing:
            self._standing[contestant.name] = [self._fresh() for _ in range(ACCOUNTS)]
        for user_id, account_id in self._standing[contestant.name]:
            await contestant.link(user_id, account_id)
        for case in Case:
            await self.batch(contestant, case, 16)

    def _calls(self, contestant: Contestant, case: Case, number: int) -> list[tuple[int, str]]:
        if case is Case.FIRST:
            return [self._fresh() for _ in range(number)]
        standing = self._standing[contestant.name]
        turns = [standing[next(self._turn) % ACCOUNTS] for _ in range(number)]
        return turns if case is Case.RELINK else [(user_id + RIVALS, account_id) for user_id, account_id in turns]

    async def batch(self, contestant: Contestant, case: Case, number: int) -> Batch:
        """Do so many calls of one case, one after another."""
        calls = self._calls(contestant, case, number)
        link = contestant.link
        cpu, wall = time.process_time(), time.perf_counter()
        answers = [await link(user_id, account_id) for user_id, account_id in calls]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert answers == [case] * number, f"{contestant.name} answered {set(answers)}, not {case}"
        return Batch(wall=wall / number, cpu=cpu / number)


Measured = tuple[str, Case]


async def timed(url: sa.URL, sittings: int, rounds: int, size: int) -> list[dict[Measured, list[Batch]]]:
    """Run every contestant and case once per round, beginning each round with another contestant."""
    course = Course("timed")
    return [await _sitting(url, course, rounds, size) for _ in range(sittings)]


async def _sitting(url: sa.URL, course: Course, rounds: int, size: int) -> dict[Measured, list[Batch]]:
    batches: dict[Measured, list[Batch]] = {}
    async with opened(url) as contestants:
        for contestant in contestants:
            await course.prepare(contestant)
        gc.collect()
        for turn in range(rounds):
            start = turn % len(contestants)
            for case in Case:
                for contestant in contestants[start:] + contestants[:start]:
                    batch = await course.batch(contestant, case, size)
                    batches.setdefault((contestant.name, case), []).append(batch)
    return batches


async def counted(url: sa.URL) -> dict[Measured, int]:
    """Count the round trips of each contestant and case on the wire, on warm connections."""
    assert url.host is not None
    trips: dict[Measured, int] = {}
    course = Course("counted")
    async with (
        WireProxy(url.host, url.port or 5432) as proxy,
        opened(url.set(host="127.0.0.1", port=proxy.port)) as contestants,
    ):
        for contestant in contestants:
            await course.prepare(contestant)
            for case in Case:
                proxy.reset()
                await course.batch(contestant, case, 8)
                trips[contestant.name, case], rest = divmod(proxy.trips, 8)
                assert not rest, f"{contestant.name}, {case.value}: not every call took as many trips"
    return trips


# Reporting


def compare(sittings: Sequence[dict[Measured, list[Batch]]], trips: dict[Measured, int]) -> list[Line]:
    """Turn batches into medians, each ratio taken within its round."""
    wall, cpu = attrgetter("wall"), attrgetter("cpu")

    def beside(own: Measured, other: Measured) -> list[tuple[list[Batch], list[Batch]]]:
        return [(sitting[own], sitting[other]) for sitting in sittings]

    return [
        Line(
            contestant=name,
            case=case.value,
            wall_us=typical([sitting[name, case] for sitting in sittings], wall),
            wall_ratio=compared(beside((name, case), ("floor", case)), wall),
            cpu_us=typical([sitting[name, case] for sitting in sittings], cpu),
            cpu_ratio=compared(beside((name, case), ("core", case)), cpu),
            trips=number,
        )
        for (name, case), number in trips.items()
    ]


def judge(lines: Sequence[Line]) -> list[Aim]:
    """Hold the worst case of `linker.link(engine)` against each aim."""
    own = [line for line in lines if line.contestant == "engine"]
    trips = float(max(line.trips for line in own))
    by_median = attrgetter("median")
    return [
        Aim(title="client CPU, x Core", limit=1.3, measured=max((line.cpu_ratio for line in own), key=by_median)),
        Aim(title="wall clock, x floor", limit=1.8, measured=max((line.wall_ratio for line in own), key=by_median)),
        Aim(title="round trips", limit=1, measured=Spread(median=trips, low=trips, high=trips)),
    ]


def show(lines: Sequence[Line], aims: Sequence[Aim]) -> None:
    """Print a table for each case, then one line for each aim."""
    for case in Case:
        print(f"\n{case.value:<30} wall/call  x floor            CPU/call  x Core            trips")
        for line in lines:
            if line.case == case.value:
                print(
                    f"  {TITLES[line.contestant]:<28} {line.wall_us:6.0f} µs {line.wall_ratio!s:<18}"
                    f"{line.cpu_us:6.0f} µs {line.cpu_ratio!s:<18}{line.trips:4d}"
                )
    print("\n* in a transaction of the caller, whose BEGIN and COMMIT are two of the trips")
    print("\nlinker.link(engine), its worst case against each aim:")
    for aim in aims:
        print(f"{aim.verdict:>11}: {aim.title} {aim.measured!s}, aim at most {aim.limit:g}")


async def measure(url: sa.URL, options: argparse.Namespace) -> None:
    """Count, time, and print."""
    async with tables(url) as environment:
        trips = await counted(url)
        sittings = await timed(url, options.sittings, options.rounds, options.batch)
    lines = compare(sittings, trips)
    aims = judge(lines)
    if options.json:
        result = {
            "environment": environment,
            "sittings": options.sittings,
            "rounds": options.rounds,
            "batch": options.batch,
            "lines": [dataclasses.asdict(line) for line in lines],
            "aims": [dataclasses.asdict(aim) | {"verdict": aim.verdict} for aim in aims],
        }
        print(json.dumps(result, indent=2))
        return
    print(environment)
    print(f"{options.sittings} sittings of {options.rounds} rounds of {options.batch} calls")
    show(lines, aims)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="What linking costs, against a hand-written upsert.")
    parser.add_argument("--sittings", type=int, default=16, help="sets of new connections (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds in a sitting (%(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="calls per contestant, case and round (%(default)s)")
    parser.add_argument("--database-url", help="an existing PostgreSQL database, instead of a server of its own")
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="of its own server (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if min(options.sittings, options.rounds, options.batch) < 1:
        parser.error("--sittings, --rounds and --batch must be at least 1")
    with database(options.database_url, options.fsync) as url:
        asyncio.run(measure(url, options))


if __name__ == "__main__":
    main()
