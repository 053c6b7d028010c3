"""Places where a value may show that was to stay hidden, as texts to search."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


def shown_by(error: BaseException) -> Iterator[tuple[str, str]]:
    """Every text that an error and whatever it drags along can show, by where it shows it."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        kind = type(current).__name__
        yield f"{kind} str", str(current)
        yield f"{kind} repr", repr(current)
        yield f"{kind} args", repr(current.args)
        yield f"{kind} notes", repr(getattr(current, "__notes__", []))
        yield from attributes(current, kind, depth=2)
        orig = getattr(current, "orig", None)
        linked = (current.__cause__, current.__context__, orig)
        pending += [other for other in linked if isinstance(other, BaseException)]


def attributes(thing: object, path: str, *, depth: int) -> Iterator[tuple[str, str]]:
    for name in dir(thing):
        if name.startswith("__"):
            continue
        try:
            value = getattr(thing, name)
        except Exception:  # noqa: BLE001, S112  # an attribute that cannot be read shows nothing
            continue
        if isinstance(value, (bytes, bytearray)):
            yield f"{path}.{name}", bytes(value).decode("utf-8", "replace")
        elif not callable(value) and not isinstance(value, BaseException):
            yield f"{path}.{name}", repr(value)
            if depth and type(value).__module__.partition(".")[0] in ("psycopg", "psycopg_binary", "asyncpg"):
                yield from attributes(value, f"{path}.{name}", depth=depth - 1)


def locals_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """The traceback with locals, of the whole chain, without the frames of this directory."""
    pending: list[traceback.TracebackException | None] = [
        traceback.TracebackException(type(error), error, error.__traceback__, capture_locals=True)
    ]
    while pending:
        summary = pending.pop()
        if summary is None:
            continue
        for frame in summary.stack:
            if "/tests/" not in frame.filename:
                for name, value in (frame.locals or {}).items():
                    yield f"{frame.filename.rpartition('/')[2]}:{frame.name} {name}", value
        yield "exception only", "".join(summary.format_exception_only())
        pending += [summary.__cause__, summary.__context__]


class Ear(logging.Handler):
    """Hears every logger, at every level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {record.args!r}"
        if record.exc_info:
            text += "".join(traceback.TracebackException(*record.exc_info, capture_locals=True).format())
        self.heard.append(f"{record.name}: {text}")


@contextmanager
def listening() -> Iterator[Ear]:
    ear, root = Ear(), logging.getLogger()
    level = root.level
    root.addHandler(ear)
    root.setLevel(logging.DEBUG)
    try:
        yield ear
    finally:
        root.removeHandler(ear)
        root.setLevel(level)
