"""Check the secrets from which keys are derived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from accountlink.errors import ConfigurationError

MIN_SECRET: Final = 32
"""The fewest bytes of a secret: the length of the digest. A shorter HMAC key is weaker (RFC 2104, section 3)."""
KEEP: Final = "surrogatepass"
"""The error handler that encodes every text, also one with lone surrogates."""

Secrets = Sequence[str | bytes]


def checked_keys(secrets: Secrets) -> list[bytes]:
    """Return secrets as bytes.

    Args:
        secrets: At least 32 bytes each, newest first.

    Raises:
        ConfigurationError: One text instead of a list, no secret, or one that is too short.
    """
    if isinstance(secrets, (str, bytes)):
        raise ConfigurationError("secrets=... takes a list, newest first, so that keys can be rotated.")
    if not isinstance(secrets, Iterable):
        raise ConfigurationError("secrets=... takes a list of texts or bytes, newest first.")
    given: list[Any] = list(secrets)
    keys = [secret.encode("utf-8", KEEP) if isinstance(secret, str) else secret for secret in given]
    if not keys or any(not isinstance(key, bytes) or len(key) < MIN_SECRET for key in keys):
        raise ConfigurationError(
            f"Each secret needs at least {MIN_SECRET} bytes of randomness: `python -c 'import secrets; "
            "print(secrets.token_urlsafe(48))'` makes one."
        )
    return keys
