"""Which combinations of factors the default run takes: each value somewhere, and no more of them than that needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.effort import mark_stress

BINDS = ("engine", "connection", "session", "autocommit")
KINDS = ("sqlite", "asyncpg", "psycopg")


@dataclass
class Collected:
    """A test as it was collected.

    Attributes:
        callspec: Its parameters.
        marks: The names of its marks.
        stress: Whether it was left to the stress run.
    """

    nodeid: str
    callspec: Any
    marks: tuple[str, ...] = ()
    stress: bool = field(default=False, init=False)

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks

    def add_marker(self, marker: pytest.MarkDecorator) -> None:
        assert "stress" == marker.name
        self.stress = True


def taken(*marks: str, name: str = "test_a", **factors: tuple[object, ...]) -> set[tuple[object, ...]]:
    """Return the combinations of a product that the default run takes."""
    return taken_of(tuple(factors), list(product(*factors.values())), *marks, name=name)


def taken_of(
    names: tuple[str, ...], combinations: list[tuple[object, ...]], *marks: str, name: str = "test_a"
) -> set[tuple[object, ...]]:
    """Return which of some combinations the default run takes."""
    items = [
        Collected(f"{name}[{number}]", SimpleNamespace(params=dict(zip(names, values, strict=True))), marks)
        for number, values in enumerate(combinations)
    ]
    mark_stress(cast("list[pytest.Item]", items))
    return {tuple(item.callspec.params.values()) for item in items if not item.stress}


def test_each_value_of_a_factor_runs_on_one_database() -> None:
    """The first value runs on both databases, and each further one on one of them; both databases have some."""
    found = taken(kind=KINDS, how=BINDS)
    assert {("sqlite", "engine"), ("asyncpg", "engine")} <= found
    for how in BINDS[1:]:
        assert 1 == len([kind for kind in KINDS if (kind, how) in found])
    assert {"sqlite", "asyncpg"} == {kind for kind, how in found if how in BINDS[1:]}


def test_which_database_it_is_differs_from_test_to_test() -> None:
    """No value of a factor runs on one database in all tests."""
    tests = [taken(kind=KINDS, how=BINDS, name=f"test_{letter}") for letter in "abcdefgh"]
    for how in BINDS[1:]:
        assert {"sqlite", "asyncpg"} == {kind for found in tests for kind, each in found if each == how}


def test_what_is_tested_is_no_factor() -> None:
    """Each value of a parameter that says what is tested runs on both databases."""
    assert set(product(("sqlite", "asyncpg"), range(3))) == taken(kind=KINDS, wrong=tuple(range(3)))


def test_two_factors_do_not_vary_together() -> None:
    """A further value of one factor runs with the first value of the other."""
    found = taken(kind=("asyncpg",), how=BINDS, table=("a", "b"))
    assert {*product(("asyncpg",), BINDS, ("a",)), ("asyncpg", "engine", "b")} == found


def test_a_test_of_one_database_takes_each_value() -> None:
    """Where there is no other database, nobody takes turns."""
    assert set(product(("asyncpg",), BINDS)) == taken(kind=("asyncpg", "psycopg"), how=BINDS) - {("psycopg", "engine")}


def test_a_value_of_one_database_alone_is_taken() -> None:
    """Where a test names one database for a value, there is nobody to take turns with."""
    combinations: list[tuple[object, ...]] = [("sqlite", "engine"), *product(("asyncpg",), BINDS)]
    for letter in "abcdefgh":
        assert set(combinations) == taken_of(("kind", "how"), combinations, name=f"test_{letter}")


def test_what_was_left_to_the_stress_run_takes_no_turn() -> None:
    """Nothing that the test itself leaves to the stress run stands in for another database."""
    for letter in "abcdefgh":
        marked = taken("stress", kind=("sqlite", "asyncpg"), how=BINDS, name=f"test_{letter}")
        assert set(product(("sqlite", "asyncpg"), BINDS)) == marked


def test_the_second_driver_runs_where_it_can_differ() -> None:
    """With ``each_driver`` psycopg runs too, with the first value of each factor."""
    assert {"engine"} == {how for kind, how in taken("each_driver", kind=KINDS, how=BINDS) if kind == "psycopg"}
    assert set() == {how for kind, how in taken(kind=KINDS, how=BINDS) if kind == "psycopg"}


def test_a_whole_product_is_taken() -> None:
    """With ``whole_product`` every combination runs."""
    assert set(product(KINDS, BINDS)) == taken("whole_product", kind=KINDS, how=BINDS)
