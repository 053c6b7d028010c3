"""Transfer tokens: signed, readable, bound to one claimant and to one state of one row."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from itsdangerous import Signer
from itsdangerous.encoding import base64_encode

from accountlink.errors import ConfigurationError

MIN_SECRET: Final = 32
"""Bytes: the digest's own length, below which an HMAC key weakens it (RFC 2104, section 3)."""
PURPOSE: Final = "transfer"
_SALT: Final = b"accountlink.transfer.v1"
_STATE_SALT: Final = b"accountlink.transfer.v1.state"

Secrets = Sequence[str | bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowState:
    """What a transfer token vouches for; only its keyed digest travels.

    Attributes:
        owner: The owner's user id.
        provider: The provider of the account.
        account_id: The provider's id of the account.
        version: The row's version.
    """

    owner: object
    provider: str
    account_id: str
    version: int


class TransferSigner:
    """Signs transfer tokens with the newest of several secrets.

    Args:
        secrets: At least 32 bytes each, newest first. A removed secret's tokens die at once.

    Raises:
        ConfigurationError: One text instead of a list, none, or one that is too short.

    Source: RFC 2104; itsdangerous 2.2, "Concepts" (salt per purpose, key rotation).
    """

    def __init__(self, secrets: Secrets) -> None:
        if isinstance(secrets, (str, bytes)):
            raise ConfigurationError("secrets=... takes a list, newest first, so that keys can be rotated.")
        if not isinstance(secrets, Iterable):
            raise ConfigurationError("secrets=... takes a list of texts or bytes, newest first.")
        given: list[Any] = list(secrets)
        keys = [secret.encode() if isinstance(secret, str) else secret for secret in given]
        if not keys or any(not isinstance(key, bytes) or len(key) < MIN_SECRET for key in keys):
            raise ConfigurationError(
                f"Each secret needs at least {MIN_SECRET} bytes of randomness: `python -c 'import secrets; "
                "print(secrets.token_urlsafe(48))'` makes one."
            )
        self._newest = _derive(keys[0])
        self._signer = Signer(
            list(reversed(keys)),  # itsdangerous signs with the last
            salt=_SALT,
            key_derivation="hmac",
            digest_method=sha256,
        )

    def sign(self, *, link_id: object, claimant: object, state: RowState, jti: bytes, expires_at: datetime) -> str:
        """Return a token with which the claimant can have the link, as long as the row stays as it is.

        Args:
            link_id: The owner's link.
            claimant: The user who has just proved control of the provider account.
            state: What the row holds now.
            jti: At least 16 random bytes, for single use.
            expires_at: When the token ends, aware; whole seconds.
        """
        payload = {
            "p": PURPOSE,
            "j": _text(jti),
            "e": int(expires_at.astimezone(UTC).timestamp()),
            "l": tagged(link_id),
            "c": tagged(claimant),
            "d": _text(_digest(self._newest, state)),
        }
        # What URLSafeSerializer writes and reads, without its attempt to compress, which costs more than the signature.
        return self._signer.sign(base64_encode(json.dumps(payload, separators=(",", ":")))).decode()


def tagged(value: object) -> str:
    """Write an id with its type, so that ``7`` and ``"7"`` stay two users."""
    match value:
        case bool():
            raise ConfigurationError("A boolean is no id.")
        case int():
            return f"i{value}"
        case UUID():
            return f"u{value.hex}"
        case str():
            return f"s{value}"
        case _:
            return f"{type(value).__name__}:{value}"


def _derive(secret: bytes) -> bytes:
    return hmac.digest(secret, _STATE_SALT, sha256)


def _digest(key: bytes, state: RowState) -> bytes:
    fields = (tagged(state.owner), state.provider, state.account_id, str(state.version))
    encoded = [field.encode("utf-8", "surrogatepass") for field in fields]
    return hmac.digest(key, b"".join(len(part).to_bytes(4) + part for part in encoded), sha256)[:16]


def _text(raw: bytes) -> str:
    return base64_encode(raw).decode()
