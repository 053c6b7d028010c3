"""How much the default run does: each factor of a product by itself; products, and races of many rounds, are stress.

A test over tables, binds and drivers is a product, and its factors break one at a time: an error of one driver shows on
any table, an error of one table by any driver. So the default run varies one factor at a time and holds the others at
their first value. ``pytest -m stress`` runs the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

_WHAT_ON: Final = frozenset({"case", "links", "name", "policy", "table"})
_HOW: Final = frozenset({"acknowledged", "cancel", "closing", "guarded", "how", "level", "moment"})
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


def is_for_stress(item: pytest.Item) -> bool:
    """Whether a test is one more combination of factors that other tests vary one at a time.

    Two markers change that: ``each_driver`` where the two PostgreSQL drivers can differ (elsewhere psycopg is for the
    stress run), and ``whole_product`` where factors can break only together.
    """
    call = getattr(item, "callspec", None)
    if call is None or item.get_closest_marker("whole_product"):
        return False
    varied: int = sum(number > 0 for name, number in call.indices.items() if name in FACTORS)
    if call.params.get("kind") == "psycopg" and call.indices["kind"] > 0:
        varied += 1 if item.get_closest_marker("each_driver") or call.indices["kind"] == 1 else 2
    return varied > 1
