"""LinkFlow with arguments of every wrong kind: a typed error, before the user leaves, and no value in its text."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinkError
from accountlink.web import Unbound
from tests.support.flows import Stage, stage_on

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])

CANARY: Final = "canary-in-an-argument"


class Slug(enum.StrEnum):
    ACME = "acme"


class Hostile:
    """An object whose own methods fail."""

    def __repr__(self) -> str:
        return CANARY

    def __str__(self) -> str:
        raise RuntimeError(CANARY)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(CANARY)

    __hash__ = object.__hash__


ODD: Final[list[Any]] = [
    None, True, 0, -1, 2**70, 1.5, float("nan"), "", " ", CANARY, CANARY * 10_000, "\0", "\ud800", "é", "acme\n",
    b"acme", bytearray(b"x"), [], [CANARY], [[]], [None], {}, {"state": [CANARY]}, {1: 2}, set(), object(), Hostile(),
    Slug.ACME, Unbound.BEARER, Unbound, UUID(int=7), datetime(2026, 1, 1, tzinfo=UTC), sa.text("1"), sa.null(),
    lambda: CANARY, Exception(CANARY), (x for x in [CANARY]),
]  # fmt: skip
CALLS: Final[dict[str, dict[str, Any]]] = {
    "start": {"user_id": 1, "provider": "acme", "browser": None, "return_to": None, "expect": None, "scopes": ()},
    "finish": {"user_id": 1, "provider": "acme", "browser": None, "parameters": {}},
    "ticket": {"user_id": 1, "provider": "acme", "expect": None, "scopes": ()},
    "offer": {"ticket": "x" * 43, "user_id": 1},
    "start_with": {"ticket": "x" * 43, "user_id": 1, "browser": None},
}


def called(stage: Stage, name: str, arguments: dict[str, Any]) -> Awaitable[object]:
    function: Callable[..., Awaitable[object]] = getattr(stage.flow, name)
    given = dict(arguments)
    return function(given.pop("ticket"), **given) if name in ("offer", "start_with") else function(**given)


@pytest.mark.parametrize("name", CALLS)
async def test_odd_arguments_are_a_typed_error(engine: AsyncEngine, name: str) -> None:
    """Each argument in turn is something else: the call works, or raises an error of accountlink without the value."""
    stage = await stage_on(engine)
    wrong = []
    for argument in CALLS[name]:
        for value in ODD:
            try:
                await called(stage, name, CALLS[name] | {argument: value})
            except AccountLinkError as error:
                if CANARY in f"{error}{error!r}{error.__dict__}{error.__cause__}":
                    wrong.append((argument, type(value).__name__, "tells the value"))
            except Exception as error:  # noqa: BLE001  # that is what the test looks for
                wrong.append((argument, type(value).__name__, type(error).__name__))
    assert [] == wrong


async def test_odd_parameters_are_a_typed_error(engine: AsyncEngine) -> None:
    """Each parameter of a provider's answer in turn is something else."""
    stage = await stage_on(engine)
    wrong = []
    for name in ("state", "code", "iss", "error"):
        for value in ODD:
            started = await stage.start(1)
            parameters: Any = await stage.consent(started.url) | {name: value}
            try:
                await stage.finish(started, parameters)
            except AccountLinkError as error:
                if CANARY in f"{error}{error!r}{error.__dict__}{error.__cause__}":
                    wrong.append((name, type(value).__name__, "tells the value"))
            except Exception as error:  # noqa: BLE001  # as above
                wrong.append((name, type(value).__name__, type(error).__name__))
    assert [] == wrong
