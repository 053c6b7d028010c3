"""Write bytes as base64url without padding (RFC 4648, section 5), and read the one text that stands for them."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encoded(raw: bytes) -> str:
    """Return bytes as base64url without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def decoded(text: str) -> bytes | None:
    """Return the bytes that a text stands for, or ``None`` if :func:`encoded` never writes this text.

    Python's own decoder passes over foreign characters, padding and unused bits, so several texts would be equal.
    """
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return raw if encoded(raw) == text else None
