"""Measure the cost of every verb, beside the same by hand.

    python -m benchmarks.verbs

One interleaved run: in every round both contestants do a small batch of each verb, one right after the other, and a
ratio is taken within its round. The README beside this folder says what the columns mean.
"""

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import sqlalchemy as sa

from benchmarks.ground import database, tables
from benchmarks.measured import Spread, compared, typical
from benchmarks.verbs.running import Counts, Rounds, counted, timed
from benchmarks.verbs.tasks import Verb


@dataclass(frozen=True, kw_only=True)
class Line:
    """Describe one line of the result."""

    verb: str
    wall_us: float
    hand_us: float
    wall_ratio: Spread
    cpu_us: float
    cpu_ratio: Spread
    library: Counts
    hand: Counts


def lines(sittings: Sequence[Mapping[Verb, Rounds]], counts: Mapping[Verb, tuple[Counts, Counts]]) -> list[Line]:
    """Turn batches into medians."""
    wall, cpu = attrgetter("wall"), attrgetter("cpu")
    made = []
    for verb in Verb:
        batches = [sitting[verb] for sitting in sittings]
        library, hand = ([rounds[of] for rounds in batches] for of in (0, 1))
        made.append(
            Line(
                verb=verb.value,
                wall_us=typical(library, wall),
                hand_us=typical(hand, wall),
                wall_ratio=compared(batches, wall),
                cpu_us=typical(library, cpu),
                cpu_ratio=compared(batches, cpu),
                library=counts[verb][0],
                hand=counts[verb][1],
            )
        )
    return made


def show(result: Sequence[Line]) -> None:
    """Print the table."""
    print(f"{'':<16}{'by hand':>10}{'library':>11}  {'x hand, wall':<19}{'CPU':>8}  {'x hand, CPU':<20}", end="")
    print("statements  trips  compiled")
    for line in result:
        statements = f"{line.library.statements:g} ({line.hand.statements:g})"
        trips = f"{line.library.trips:g} ({line.hand.trips:g})"
        print(
            f"{line.verb:<16}{line.hand_us:7.0f} µs{line.wall_us:8.0f} µs  {line.wall_ratio!s:<19}"
            f"{line.cpu_us:5.0f} µs  {line.cpu_ratio!s:<20}{statements:<10}{trips:>7}{line.library.compilations:10g}"
        )
    print("\nin brackets: by hand")


async def measure(url: sa.URL, options: argparse.Namespace) -> None:
    """Count, time, and print."""
    async with tables(url) as environment:
        counts = await counted(url)
        result = lines(await timed(url, options.sittings, options.rounds, options.batch), counts)
    if options.json:
        made = {"environment": environment} | {name: getattr(options, name) for name in ("sittings", "rounds", "batch")}
        print(json.dumps(made | {"lines": [dataclasses.asdict(line) for line in result]}, indent=2))
        return
    print(environment)
    print(f"{options.sittings} sittings of {options.rounds} rounds of {options.batch} calls\n")
    show(result)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="What every verb costs, beside the same by hand.")
    parser.add_argument("--sittings", type=int, default=8, help="sets of new connections (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="rounds in a sitting (%(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="calls per contestant, verb and round (%(default)s)")
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
