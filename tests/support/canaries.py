"""Places where a value may show that was to stay hidden, as texts to search."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import pickle
import pprint
import reprlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Final

import rich.pretty
from fastapi.encoders import jsonable_encoder
from pydantic import TypeAdapter


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


@cache
def writings(secret: str) -> tuple[str, ...]:
    """The ways in which a secret stands in a text that is not encrypted: as it is, in hexadecimal, and in base64.

    A text around it moves the letters of base64 by one or two places, so that there are three of them. The letters at
    its ends depend on that text, and are left out.
    """
    raw = secret.encode()
    found = [secret, raw.hex(), raw.hex().upper()]
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(raw)) // 6
        moved = base64.b64encode(bytes(before) + raw).decode()[first:end]
        found += [moved, moved.replace("+", "-").replace("/", "_")]
    return tuple(dict.fromkeys(found))


def in_clear(text: str, secrets: Iterable[str]) -> list[str]:
    """The secrets that a text shows, in any writing."""
    return [secret for secret in secrets if any(each in text for each in writings(secret))]


def faces_of(thing: object, encoders: Mapping[str, Callable[[Any], object]]) -> Iterator[tuple[str, str]]:
    """A value through encoders; one that refuses it shows what it says then."""
    for name, encode in encoders.items():
        try:
            shown = encode(thing)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is searched
            yield f"{name} refused", f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"
        else:
            yield name, shown.decode("latin-1") if isinstance(shown, bytes) else f"{shown} {shown!r}"


def _dumped(value: object, *, protocol: int) -> bytes:
    return pickle.dumps(value, protocol)


FACES: Final[dict[str, Callable[[Any], object]]] = {
    "repr": repr,
    "str": str,
    "format": lambda value: f"{value} {value!r} {value!s:>99}",
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031  # as an old logging call does it
    "in a list": lambda value: f"{[value]}",
    "pprint": pprint.pformat,
    "reprlib": reprlib.repr,
    "vars": vars,
    "dir": lambda value: [repr(getattr(value, name)) for name in dir(value) if not name.startswith("__")],
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "state": lambda value: value.__reduce_ex__(4),
    "json of str": lambda value: json.dumps(value, default=str),
    "json of vars": lambda value: json.dumps(value, default=vars),
    "json of asdict": lambda value: json.dumps(dataclasses.asdict(value), default=str),
    **{f"pickle {protocol}": partial(_dumped, protocol=protocol) for protocol in (0, pickle.HIGHEST_PROTOCOL)},
}
"""What Python has to show a value with, or to send it somewhere."""
SLOW_FACES: Final[dict[str, Callable[[Any], object]]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "json": json.dumps,
    "json of repr": lambda value: json.dumps(value, default=repr),
    "FastAPI": jsonable_encoder,
    "pydantic": lambda value: TypeAdapter(type(value)).dump_python(value),
    "pydantic, to JSON": lambda value: TypeAdapter(type(value)).dump_json(value),
    "pydantic, of anything": lambda value: TypeAdapter(Any).dump_json(value),
    "rich": rich.pretty.pretty_repr,
}
"""What others have, and copies."""
