"""SQL's three-valued logic with a fourth value, "cannot be decided here": what operators make of values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias


class Unknown(Enum):
    """What stands where a value cannot be told."""

    UNKNOWN = "cannot be decided here"
    """It could be any value, ``NULL`` included."""


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that is not ``NULL`` and of which nothing is known but its name, such as a moment.

    Two of a row are equal if their names are. One that a literal in SQL stands for (``'epoch'::timestamptz``) is equal
    to itself, and different from every one of a row: who makes up a row chooses values that no index mentions. Two
    literals with different names may still mean the same.

    Attributes:
        name: What tells it from others.
        literal: Whether it stands for a literal in SQL.
    """

    name: str
    literal: bool = False


Value: TypeAlias = bool | int | str | Opaque | Unknown | None
"""A value of SQL; ``None`` is ``NULL``."""
Truth: TypeAlias = bool | Unknown | None


def truth(value: Value) -> Truth:
    """Read a value as a condition: numbers are true unless 0, texts cannot be told."""
    if value is None or isinstance(value, Unknown):
        return value
    return bool(value) if isinstance(value, int) else UNKNOWN


def negate(value: Value) -> Truth:
    """``NOT value``."""
    known = truth(value)
    return not known if isinstance(known, bool) else known


def all_of(*values: Value) -> Truth:
    """``AND``: one that is false decides, whatever the others are."""
    found = {truth(value) for value in values}
    if False in found:
        return False
    if UNKNOWN in found:
        return UNKNOWN
    return None if None in found else True


def any_of(*values: Value) -> Truth:
    """``OR``: one that is true decides, whatever the others are."""
    return negate(all_of(*(negate(value) for value in values)))


def is_null(value: Value) -> Truth:
    """``value IS NULL``."""
    return value if isinstance(value, Unknown) else value is None


def is_truth(value: Value, *, wanted: bool | None) -> Truth:
    """``value IS TRUE``, ``IS FALSE``, or ``IS UNKNOWN`` for ``None``."""
    known = truth(value)
    return known if isinstance(known, Unknown) else known is wanted


def equal(one: Value, other: Value, *, exact: bool = True) -> Truth:
    """``one = other``.

    Args:
        one: A value.
        other: Another. A text and a number may or may not be equal: that depends on the types of their columns.
        exact: Whether two different texts always compare as different.
    """
    if one is None or other is None:
        return None
    match one, other:
        case Opaque(), Opaque():
            return one == other or (UNKNOWN if one.literal and other.literal else False)
        case str(), str():
            return one == other or (False if exact else UNKNOWN)
        case int(), int():  # and the booleans, which SQLite keeps as 0 and 1
            return one == other
        case _:
            return UNKNOWN


def distinct(one: Value, other: Value, *, exact: bool = True) -> Truth:
    """``one IS DISTINCT FROM other``: ``NULL`` is not distinct from ``NULL``."""
    if one is None:
        return negate(is_null(other))
    if other is None:
        return negate(is_null(one))
    return negate(equal(one, other, exact=exact))


def compare(one: Value, other: Value, *, operator: str, exact: bool, bytewise: bool) -> Truth:
    """``one operator other``.

    Args:
        one: The left side.
        other: The right side.
        operator: ``=``, ``<>``, ``<``, ``<=``, ``>`` or ``>=``.
        exact: Whether two different texts always compare as different.
        bytewise: Whether texts are ordered by their bytes, and not by a language's rules.
    """
    same = equal(one, other, exact=exact)
    if operator == "=":
        return same
    if operator == "<>":
        return negate(same)
    if same is None or same is True:
        return None if same is None else "=" in operator
    below = _below(one, other, bytewise=bytewise and exact)
    return below if isinstance(below, Unknown) else below is ("<" in operator)


def between(value: Value, low: Value, high: Value, *, exact: bool, bytewise: bool) -> Truth:
    """``value BETWEEN low AND high``."""
    return all_of(
        compare(value, low, operator=">=", exact=exact, bytewise=bytewise),
        compare(value, high, operator="<=", exact=exact, bytewise=bytewise),
    )


def compare_any(value: Value, *items: Value, operator: str, exact: bool, bytewise: bool) -> Truth:
    """``value operator ANY (ARRAY[items])``, which ``IN`` is too."""
    return any_of(*(compare(value, item, operator=operator, exact=exact, bytewise=bytewise) for item in items))


def compare_all(value: Value, *items: Value, operator: str, exact: bool, bytewise: bool) -> Truth:
    """``value operator ALL (ARRAY[items])``, which ``NOT IN`` is too."""
    return all_of(*(compare(value, item, operator=operator, exact=exact, bytewise=bytewise) for item in items))


def case(*values: Value) -> Value:
    """``CASE``: a condition and its result in turn, and what holds otherwise at the end."""
    outcomes: list[Value] = []
    for condition, result in zip(values[:-1:2], values[1:-1:2], strict=True):
        met = truth(condition)
        if met is None or met is False:
            continue
        outcomes.append(result)
        if met is True:
            break
    else:
        outcomes.append(values[-1])
    first = outcomes[0]
    agreed = all(type(outcome) is type(first) and outcome == first for outcome in outcomes)
    return first if agreed else UNKNOWN


def coalesce(*values: Value) -> Value:
    """``COALESCE``: the first that is not ``NULL``."""
    return next((value for value in values if value is not None), None)


def nullif(one: Value, other: Value, *, exact: bool) -> Value:
    """``NULLIF``: ``NULL`` for two that are equal."""
    return case(equal(one, other, exact=exact), None, one)


def strict(*values: Value) -> Value:
    """What is ``NULL`` if any part is, and otherwise cannot be told."""
    return None if None in values else UNKNOWN


def nothing_known(*_values: Value) -> Value:
    """What cannot be told from its parts."""
    return UNKNOWN


def opposite(value: Value) -> Value:
    """``-value``."""
    return -value if isinstance(value, int) else strict(value)


def concatenate(one: Value, other: Value, *, arrays: bool) -> Value:
    """``one || other``.

    Args:
        one: The left side.
        other: The right side.
        arrays: Whether what cannot be told may be an array, of which ``NULL`` only becomes another member.
    """
    if arrays and any(isinstance(value, (Opaque, Unknown)) for value in (one, other)):
        return UNKNOWN
    texts = [as_text(value) for value in (one, other)]
    match texts:
        case [str(head), str(tail)]:
            return head + tail
        case _:
            return strict(*texts)


def as_text(value: Value) -> Value:
    """A text, or a whole number, as text. A boolean's text differs between databases."""
    match value:
        case None | str():
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case _:
            return UNKNOWN


def as_number(value: Value) -> Value:
    """A number or boolean as a number."""
    return int(value) if isinstance(value, int) else strict(value)


def as_boolean(value: Value) -> Value:
    """A number or boolean as a boolean."""
    return bool(value) if isinstance(value, int) else strict(value)


def lower(value: Value, *, turkish: bool) -> Value:
    """``lower(value)``.

    Args:
        value: A text; other letters than ASCII's cannot be told.
        turkish: Whether the language may be one where the small form of I is not i.
    """
    return _folded(value, str.lower, "I" if turkish else "")


def upper(value: Value, *, turkish: bool) -> Value:
    """``upper(value)``; arguments as for :func:`lower`."""
    return _folded(value, str.upper, "i" if turkish else "")


def stripped(value: Value, *, strip: Callable[[str, str], str]) -> Value:
    """``trim(value)`` and its like, which take away blanks alone."""
    return strip(value, " ") if isinstance(value, str) else strict(value)


def _folded(value: Value, fold: Callable[[str], str], doubtful: str) -> Value:
    if isinstance(value, str) and value.isascii() and not (doubtful and doubtful in value):
        return fold(value)
    return strict(value)


def _below(one: Value, other: Value, *, bytewise: bool) -> bool | Unknown:
    match one, other:
        case int(), int():
            return one < other
        case str(), str() if bytewise and one.isascii() and other.isascii():
            return one < other
        case _:
            return UNKNOWN
