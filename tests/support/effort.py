"""How much the default run does: each factor of a product by itself; products, and races of many rounds, are stress.

A test over tables, binds and drivers is a product, and its factors break one at a time: an error of one driver shows on
any table, an error of one table by any driver. So the default run varies one factor at a time and holds the others at
their first value. Where a test runs on both databases they take turns: each further value of a factor runs on one of
them, and which one it is differs from value to value and from test to test. ``pytest -m stress`` runs the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final
from zlib import crc32

import pytest

_WHAT_ON: Final = frozenset({"case", "links", "name", "policy", "table", "visitor"})
_HOW: Final = frozenset(
    {"accept", "acknowledged", "cancel", "closing", "guarded", "how", "level", "moment", "unanswered", "way"}
)
_BOTH: Final = ("sqlite", "asyncpg")
FACTORS: Final = _WHAT_ON | _HOW
"""The parameters that say on what a test runs, and how. The others say what it tests: each of their values counts."""


@dataclass(frozen=True)
class Effort:
    """How many rounds a race takes.

    Attributes:
        full: Whether this is the stress run.
    """

    full: bool

    def rounds(self, quick: int, *, full: int) -> range:
        """Number the rounds.

        Args:
            quick: As many as find each planted fault of the class in at least 99 of 100 runs; see tests/planted.py.
            full: As many as an hour allows.
        """
        return range(full if self.full else quick)


def mark_stress(items: Iterable[pytest.Item]) -> None:
    """Mark each test that is one more combination of factors, which other tests vary one at a time.

    So is marked what runs on the database whose turn it is not. Two markers change that: ``each_driver`` where the two
    PostgreSQL drivers can differ (elsewhere psycopg is for the stress run), and ``whole_product`` where factors can
    break only together.
    """
    for name, combinations in groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        values: dict[str, list[object]] = {}
        turns: dict[tuple[int, ...], dict[str, pytest.Item]] = {}
        for item in combinations:
            call = getattr(item, "callspec", None)
            if call is None:
                continue
            varied = _varied(item, call.params, values)
            if varied > 1:
                item.add_marker(pytest.mark.stress)
            elif varied == 1 and call.params.get("kind") in _BOTH and not item.get_closest_marker("stress"):
                others = tuple(_number(value, values[each]) for each, value in call.params.items() if each != "kind")
                turns.setdefault(others, {})[call.params["kind"]] = item
        for others, by_kind in turns.items():
            if len(by_kind) == len(_BOTH):  # otherwise there is one database that the test names for these values
                waits = _BOTH[(crc32(name.encode()) + sum(others)) % len(_BOTH)]
                by_kind[waits].add_marker(pytest.mark.stress)


def _varied(item: pytest.Item, params: Mapping[str, object], values: dict[str, list[object]]) -> int:
    """Count the factors that are not at their first value.

    Args:
        item: A test.
        params: Its parameters.
        values: Those of its function so far, in their order; the test's own are added. Pytest's numbers of them cannot
            serve: since 9.2 they count combinations where two ``parametrize`` meet.
    """
    numbers = {name: _number(value, values.setdefault(name, [])) for name, value in params.items()}
    if item.get_closest_marker("whole_product"):
        return 0
    varied = sum(number > 0 for name, number in numbers.items() if name in FACTORS)
    if params.get("kind") == "psycopg" and numbers["kind"] > 0:
        varied += 1 if item.get_closest_marker("each_driver") or numbers["kind"] == 1 else 2
    return varied


def _number(value: object, known: list[object]) -> int:
    """Return the place of a value among those that are known, and add it if it is new."""
    for number, each in enumerate(known):
        if each is value:
            return number
    known.append(value)
    return len(known) - 1
