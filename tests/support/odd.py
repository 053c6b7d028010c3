"""Odd values for every argument: those that programs pass by mistake, and those that attackers pass."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NoReturn
from uuid import UUID

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

CANARY: Final = "c4n4ry"
"""In every odd text and name, so that a message that shows one is found."""


class Text(str):
    """A text of a class of its own, as template engines make."""

    __slots__ = ()


class Word(enum.StrEnum):
    """A text that is a member of an enumeration."""

    ONE = f"{CANARY}-word"


class Number(int):
    """A whole number of a class of its own."""

    __slots__ = ()


class Index:
    """A whole number as numpy has it: no ``int``, but it can be one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number

    __int__ = __index__


class Ambiguous:
    """Behave as numpy's arrays do: no truth value, no length, and a comparison without a single answer."""

    __hash__ = None  # type: ignore[assignment]  # such a value has none

    def __bool__(self) -> NoReturn:
        raise ValueError(f"the truth value is ambiguous {CANARY}")

    def __eq__(self, other: object) -> Any:
        return self

    def __len__(self) -> NoReturn:
        raise ValueError(f"unsized {CANARY}")

    def __repr__(self) -> str:
        return CANARY


class NoOffset(datetime):
    """A moment with a zone and without an offset."""

    def utcoffset(self) -> None:
        return None


def numbers() -> Iterator[int]:
    yield 1


FAR: Final = timezone(timedelta(hours=14))
NEAR: Final = timezone(timedelta(hours=-12))

TEXTS: Final[tuple[Callable[[], Any], ...]] = (
    lambda: "",
    lambda: " ",
    lambda: CANARY,
    lambda: f"{CANARY}\0",
    lambda: f"{CANARY}\ud800",
    lambda: f"\udfff{CANARY}",
    lambda: f"{CANARY}\n{CANARY}",
    lambda: f"{CANARY}\u200b",
    lambda: f"{CANARY}@example.com",
    lambda: CANARY * 50_000,
    lambda: CANARY * 60,
    lambda: "é" * 60,
    lambda: "\U0001d518" * 200,
    lambda: Text(f"{CANARY}-of-a-class"),
    lambda: Word.ONE,
    lambda: f"%({CANARY})s ? :{CANARY} $1 {{}}",
    lambda: f"'; DROP TABLE connections; -- {CANARY}",
    lambda: "None",
)
OTHERS: Final[tuple[Callable[[], Any], ...]] = (
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: -1,
    lambda: 2**31,
    lambda: 2**63,
    lambda: 10**30,
    lambda: -(10**400),
    lambda: Number(7),
    lambda: Index(7),
    lambda: Index(10**30),
    lambda: 1.5,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: Decimal("NaN"),
    lambda: Decimal("1e999"),
    lambda: Fraction(1, 3),
    lambda: 1j,
    CANARY.encode,
    lambda: bytearray(CANARY.encode()),
    lambda: memoryview(CANARY.encode()),
    lambda: UUID(int=7),
    lambda: datetime(2026, 1, 1),  # noqa: DTZ001  # naive on purpose
    lambda: datetime(2026, 1, 1, tzinfo=UTC),
    lambda: datetime.max.replace(tzinfo=NEAR),
    lambda: datetime.min.replace(tzinfo=FAR),
    lambda: NoOffset(2026, 1, 1, tzinfo=UTC),
    lambda: date(2026, 1, 1),
    lambda: time(1, 2),
    lambda: timedelta(0),
    lambda: timedelta(seconds=1),
    lambda: timedelta(seconds=-1),
    lambda: timedelta.max,
    lambda: timedelta.min,
    lambda: timedelta(days=25),
    object,
    Ambiguous,
    lambda: object,
    lambda: NotImplemented,
    lambda: ...,
    lambda: ValueError(CANARY),
    list,
    lambda: [CANARY, 7],
    lambda: [f"{CANARY}\ud800"],
    lambda: (),
    lambda: {CANARY: 7},
    lambda: {f"{CANARY}\0": f"{CANARY}\ud800"},
    lambda: {7: Ambiguous()},
    lambda: {CANARY},
    lambda: frozenset({7}),
    numbers,
    lambda: numbers,
    lambda: range(3),
    sa.func.now,
    lambda: sa.literal(CANARY),
    lambda: sa.text(f"'{CANARY}'"),
    sa.null,
    lambda: sa.select(sa.literal(1)),
    lambda: sa.bindparam("al_user_id"),
    lambda: sa.Column("odd", sa.Integer),
    lambda: sa.Table("odd", sa.MetaData()),
    sa.MetaData,
    sa.Integer,
    lambda: sa.Integer,
    async_sessionmaker,
    sessionmaker,
    Session,
    AsyncSession,
    lambda: sa.create_engine("sqlite://"),
    lambda: create_async_engine("sqlite+aiosqlite://").connect(),
)
ODD: Final = st.one_of(
    st.sampled_from(OTHERS).map(lambda make: make()),
    st.sampled_from(TEXTS).map(lambda make: make()),
    st.text(st.characters(), max_size=6).map(lambda text: text + CANARY),
    st.integers(),
    st.floats(),
    st.datetimes(timezones=st.sampled_from([None, UTC, FAR, NEAR])),
    st.timedeltas(),
    st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
)
"""Anything at all."""


def shown(error: BaseException) -> str:
    """Whatever a log would show of an error and of what is behind it, the source lines aside."""
    seen: list[str] = []
    chain: list[BaseException | None] = [error]
    while chain and len(seen) < 20:
        link = chain.pop()
        if link is None:
            continue
        told = {name: value for name, value in vars(link).items() if name not in ("statement", "orig")}
        seen.append(f"{type(link).__name__}: {link} {link.args!r} {told!r}")
        chain += [link.__cause__, link.__context__, getattr(link, "orig", None)]
    return "\n".join(seen)
