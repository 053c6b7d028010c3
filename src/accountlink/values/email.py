"""Bring e-mail addresses into the one normal form that a key on the e-mail address compares."""

from __future__ import annotations

import unicodedata
from typing import Final

from accountlink.errors import InvalidIdentity
from accountlink.values.text import flaw, missing

_OTHER_DOTS: Final = "\u3002\uff61"
"""Signs that some readers of domain names take for a dot (RFC 3490, section 3.1)."""
MAX_EMAIL_LENGTH: Final = 320
"""RFC 3696 erratum 1690 speaks of 254 for a path; providers return up to local 64 + @ + domain 255."""


def check_email(value: object) -> str | None:
    """Return the e-mail address as the provider wrote it, or ``None`` for none (an empty text counts as none).

    Raises:
        InvalidIdentity: Not text, too long, or with characters that no address can carry.
    """
    if value is None or (isinstance(value, str) and not value.strip(" ")):
        return None
    if not isinstance(value, str):
        raise InvalidIdentity(field="email", problem=f"is {type(value).__name__}, not text")
    if len(value) > MAX_EMAIL_LENGTH:
        raise InvalidIdentity(field="email", problem=f"is longer than {MAX_EMAIL_LENGTH} characters")
    if problem := (flaw(value) or missing(value)):
        raise InvalidIdentity(field="email", problem=problem)
    return str.__str__(value)


def normalize_email(email: str) -> str:
    """Return an e-mail address in the normal form that keys compare and store.

    Compatibility forms, case and composition meet (``Straße`` and ``STRASSE``, NFC and NFD, full-width letters,
    final sigma); letters that only look alike stay apart (dotless i is not i). The form is computed on the whole
    address *before* it is split, and an address whose structure changes under it (another sign that becomes ``@``, a
    dot, or white space) is refused, since two readers would split it differently.

    Args:
        email: The address, as the provider wrote it.

    Returns:
        The normal form. Applying the function again changes nothing.

    Raises:
        InvalidIdentity: Not an address of the form ``local@domain``, or one that changes its structure.

    Source: Unicode Standard Annex 15 (NFKC); Unicode 3.13, definition D145 (caseless match); GHSA-7rqj-j65f-68wh.
    """
    checked = check_email(email)
    if checked is None:
        raise InvalidIdentity(field="email", problem="is missing", remedy="Ask the provider for the e-mail scope.")
    normal = unicodedata.normalize("NFKC", checked)
    if _structure(normal) != _structure(checked) or any(dot in normal for dot in _OTHER_DOTS):
        raise InvalidIdentity(field="email", problem="changes its structure under Unicode normalisation")
    normal = unicodedata.normalize("NFKC", normal.casefold())
    normal = unicodedata.normalize("NFKC", normal.casefold())
    local, at, domain = normal.partition("@")
    if not (local and at and domain) or "@" in domain or any(c.isspace() for c in normal) or flaw(normal):
        raise InvalidIdentity(field="email", problem="is not of the form local@domain")
    if len(normal) > MAX_EMAIL_LENGTH:
        raise InvalidIdentity(field="email", problem=f"has a normal form of more than {MAX_EMAIL_LENGTH} characters")
    return normal


def _structure(address: str) -> list[str]:
    """Return the characters that separate the parts of an address, in order, without its letters."""
    return [c for c in address if c in "@.\"'()<>[]\\,;:%/" or c.isspace()]
