"""The parts that an SQL expression is built of: each computes its value from those of its own parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from accountlink.doctor.judge.sql import values
from accountlink.doctor.judge.sql.tokens import Unreadable
from accountlink.doctor.judge.sql.values import UNKNOWN, Opaque, Value

Row: TypeAlias = Mapping[str, Value]

DEPTH: Final = 100
"""How deep parts may be nested; well below Python's own bound."""
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
_LIST: Final = re.compile(r"\{\w+(?:,\w+)*\}", re.ASCII)
_BOOLEANS: Final = dict.fromkeys(("t", "true", "1"), True) | dict.fromkeys(("f", "false", "0"), False)
_TEXTS: Final = frozenset({"text", "character varying", "varchar", "citext"})
_BLANKS: Final = frozenset({"bpchar"})
_NUMBERS: Final = frozenset({"integer", "bigint", "smallint", "int", "int2", "int4", "int8", "numeric", "decimal"})
_EXACT: Final = {
    "postgresql": frozenset({"C", "POSIX", "default", "ucs_basic"}),
    "sqlite": frozenset({"binary"}),
}
"""Collations under which two different texts are certainly not equal."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression.

    Attributes:
        value: Computes its value for a row.
        exact: Whether two different texts of it always compare as different.
        depth: How many parts are nested in it, itself included.
        literal: The literal text that it is, if it is one.
        flag: The ``TRUE`` or ``FALSE`` that it is, if it is one.
    """

    value: Callable[[Row], Value]
    exact: bool = True
    depth: int = 1
    literal: str | None = None
    flag: bool | None = None


def combine(function: Callable[..., Value], *parts: Node, exact: bool | None = None) -> Node:
    """A part whose value is a function of its own parts' values.

    Args:
        function: Takes their values in order.
        parts: The parts.
        exact: Whether two different texts of it always compare as different; unless told, if those of all parts do.

    Raises:
        Unreadable: They are nested too deep.
    """
    depth = 1 + max((part.depth for part in parts), default=0)
    if depth > DEPTH:
        raise Unreadable

    def value(row: Row) -> Value:
        return function(*(part.value(row) for part in parts))

    return Node(value, exact=all(part.exact for part in parts) if exact is None else exact, depth=depth)


def constant(value: Value, *, literal: str | None = None) -> Node:
    """A part that has one value for all rows."""
    return Node(lambda _row: value, literal=literal, flag=value if isinstance(value, bool) else None)


def text(literal: str) -> Node:
    """A literal text."""
    return constant(literal, literal=literal)


def unknown(*parts: Node) -> Node:
    """A part that cannot be told."""
    return combine(values.nothing_known, *parts, exact=False)


def column(name: str, *, exact: bool) -> Node:
    """A column's value; one that the row does not mention could be anything."""
    return Node(lambda row: row.get(name, UNKNOWN), exact=exact)


def number(digits: str) -> Node:
    """A literal number: one that is whole and of at most 18 digits as such, another as some constant."""
    return constant(int(digits) if _WHOLE.fullmatch(digits) else Opaque(digits, literal=True))


def comparison(operator: str, *parts: Node, dialect: str) -> Node:
    """``parts[0] operator parts[1]``."""
    return combine(_comparing(values.compare, *parts, operator=operator, dialect=dialect), *parts, exact=True)


def membership(operator: str, *parts: Node, every: bool, dialect: str) -> Node:
    """``parts[0] operator ANY`` (``ALL`` for ``every``) of the others."""
    function = values.compare_all if every else values.compare_any
    return combine(_comparing(function, *parts, operator=operator, dialect=dialect), *parts, exact=True)


def interval(*parts: Node, dialect: str) -> Node:
    """``parts[0] BETWEEN parts[1] AND parts[2]``."""
    exact = all(part.exact for part in parts)
    return combine(partial(values.between, exact=exact, bytewise=dialect == "sqlite"), *parts, exact=True)


def distinction(one: Node, other: Node) -> Node:
    """``one IS DISTINCT FROM other``."""
    return combine(partial(values.distinct, exact=one.exact and other.exact), one, other, exact=True)


def collated(node: Node, collation: str, *, dialect: str) -> Node:
    """``node COLLATE collation``: the same value, which may compare otherwise."""
    if dialect == "sqlite":
        exact = collation.lower() in _EXACT[dialect]
    else:
        exact = node.exact and collation.removeprefix("pg_catalog.") in _EXACT[dialect]
    return Node(node.value, exact=exact, depth=node.depth, flag=node.flag)


def cast(node: Node, kind: str, *, enums: frozenset[str], dialect: str) -> Node:
    """``CAST(node AS kind)``.

    Args:
        node: What is cast.
        kind: The type, as PostgreSQL writes it; for SQLite, its words.
        enums: Types whose literals are texts that only compare as equal if they are the same.
        dialect: ``postgresql`` or ``sqlite``.
    """
    if dialect == "sqlite":
        convert = _affinity(kind)
    else:
        kind = "citext" if kind.endswith(".citext") else kind.removeprefix("pg_catalog.")
        convert = values.as_text if kind in enums else _CONVERSIONS.get(kind, values.strict)
    exact = node.exact and kind != "citext"
    if node.literal is None:
        return combine(convert, node, exact=exact)
    value = _literal(node.literal, convert, dialect)
    return Node(lambda _row: Opaque(f"'{node.literal}'::{kind}", literal=True) if value is None else value, exact=exact)


def members(literal: str) -> list[str] | None:
    """The members of an array's literal (``{a,b}``), or ``None`` if it takes more to read it."""
    found = literal[1:-1].split(",") if _LIST.fullmatch(literal) else None
    return None if found is None or "null" in map(str.lower, found) else found


def _comparing(function: Callable[..., Value], *parts: Node, operator: str, dialect: str) -> Callable[..., Value]:
    exact = all(part.exact for part in parts)
    return partial(function, operator=operator, exact=exact, bytewise=dialect == "sqlite")


def _literal(literal: str, convert: Callable[[Value], Value], dialect: str) -> Value:
    """The value of a literal of a type, or ``None`` for one that is only known to be constant."""
    if convert is values.as_number:
        return int(literal) if _WHOLE.fullmatch(literal) else None
    if convert is values.as_boolean and dialect == "postgresql":
        return _BOOLEANS.get(literal.lower())
    known = convert(literal)
    return known if isinstance(known, str) else None


def _unpadded(value: Value) -> Value:
    """``bpchar``: blanks at the end mean nothing, and go when it becomes another text."""
    return value.rstrip(" ") if isinstance(value, str) else values.as_text(value)


_CONVERSIONS: Final[Mapping[str, Callable[[Value], Value]]] = (
    dict.fromkeys(_TEXTS, values.as_text)
    | dict.fromkeys(_BLANKS, _unpadded)
    | dict.fromkeys(_NUMBERS, values.as_number)
    | dict.fromkeys(("boolean", "bool"), values.as_boolean)
)


def _affinity(kind: str) -> Callable[[Value], Value]:
    """What a cast does in SQLite. Source: sqlite.org/datatype3.html, section 3.1."""
    kind = kind.upper()
    if "INT" in kind:
        return values.as_number
    if any(word in kind for word in ("CHAR", "CLOB", "TEXT")):
        return values.as_text
    if not kind or any(word in kind for word in ("BLOB", "REAL", "FLOA", "DOUB")):
        return values.strict
    return values.as_number
