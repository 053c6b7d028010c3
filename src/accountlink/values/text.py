"""Check identifiers, and refuse texts that cannot be stored or compared safely."""

from __future__ import annotations

import unicodedata
from typing import Final

from accountlink.errors import InvalidIdentity

MAX_LENGTH: Final = 255
"""OpenID Connect Core 1.0, section 2: ``sub`` is at most 255 ASCII characters."""

_MAX_BITS: Final = 850
"""More than any number of 255 digits has; beyond, Python itself refuses to write some."""
_ARTIFACTS: Final = frozenset({"None", "null", "undefined", "NaN", "[object Object]"})
"""Texts that a missing value becomes when some layer converts it to text."""

_REFUSED: Final = {
    "Cc": "contains a control character",
    "Cf": "contains an invisible format character",
    "Cs": "contains a lone surrogate",
    "Zl": "contains a line separator",
    "Zp": "contains a paragraph separator",
}


def storable(text: str) -> bool:
    """Say whether a text column can hold a text: no database holds a NUL or a lone surrogate."""
    return "\0" not in text and encodable(text)


def encodable(text: str) -> bool:
    """Say whether UTF-8 can encode a text: it has no form for a lone surrogate."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def unstorable(value: object) -> str | None:
    """Return what keeps a value from being a text that is not empty and that a text column can hold, if anything."""
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    if not value:
        return "is empty"
    return None if storable(value) else "contains a character that no text column can hold"


def flaw(text: str) -> str | None:
    """Return why a text cannot be stored and compared safely, or ``None`` if it can."""
    if text.isascii():
        return None if text.isprintable() else _REFUSED["Cc"]
    for character in text:
        if found := _REFUSED.get(unicodedata.category(character)):
            return found
    return None


def missing(text: str) -> str | None:
    """Return a message if a text is what some layer made of a missing value."""
    return f"is {text!r}, a missing value turned into text" if text in _ARTIFACTS else None


def check_identifier(value: object, *, field: str) -> str:
    """Return an identifier that is safe to compare byte by byte.

    Args:
        value: Text, or a whole number, which becomes its decimal text (GitHub's ids arrive as numbers).
        field: The name to report.

    Raises:
        InvalidIdentity: Empty, a stringified missing value, over 255 characters, control or format characters,
            lone surrogates, leading or trailing white space.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MAX_BITS:
            raise InvalidIdentity(field=field, problem=f"has more than {MAX_LENGTH} digits")
        value = str(int(value))
    if not isinstance(value, str):
        raise InvalidIdentity(field=field, problem=f"is {type(value).__name__}, not text")
    if not value:
        raise InvalidIdentity(field=field, problem="is empty")
    if problem := missing(value):
        raise InvalidIdentity(field=field, problem=problem)
    if len(value) > MAX_LENGTH:
        raise InvalidIdentity(field=field, problem=f"is {len(value)} characters long, more than {MAX_LENGTH}")
    if problem := flaw(value):
        raise InvalidIdentity(field=field, problem=problem)
    if value != value.strip():
        raise InvalidIdentity(field=field, problem="begins or ends with white space")
    return str.__str__(value)  # a plain text, also of an enumeration's member


def check_provider(value: object) -> str:
    """Return a provider slug: an identifier in lower case.

    Raises:
        InvalidIdentity: As for any identifier, or not in lower case.
    """
    if not isinstance(value, str):
        raise InvalidIdentity(field="provider", problem=f"is {type(value).__name__}, not text")
    provider = check_identifier(value, field="provider")
    if provider != provider.lower():
        raise InvalidIdentity(
            field="provider",
            problem="is not in lower case",
            remedy="Use one lower-case slug per provider everywhere.",
        )
    return provider
