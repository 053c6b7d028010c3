"""Derive PKCE verifiers and nonces from states, so that the database never holds them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from accountlink.values.base64url import encoded
from accountlink.values.keys import Secrets, checked_keys

_KEY_SALT: Final = b"accountlink.flow.v1"
_NAME_SALT: Final = b"accountlink.flow.key.v1"
STATE_LENGTH: Final = 43
"""Characters of a state, and of a ticket: 256 bits."""


def new_state() -> str:
    """Return a random state."""
    return secrets.token_urlsafe(32)


def digest(value: str) -> str:
    """Return the form in which a state, a ticket or a browser's value is stored: from it nobody can tell the value."""
    return hashlib.sha256(value.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowKey:
    """Derive a flow's secrets under one of the application's secrets.

    Attributes:
        name: Tells which secret it is, and nothing about it.
    """

    name: str
    _key: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> FlowKey:
        """Make the key of a secret."""
        key = hmac.digest(secret, _KEY_SALT, "sha256")
        return cls(name=hmac.digest(secret, _NAME_SALT, "sha256").hex()[:12], _key=key)

    def verifier(self, state: str) -> str:
        """Return the PKCE verifier of a state (RFC 7636, section 4.1)."""
        return self._derive(b"verifier", state)

    def nonce(self, state: str) -> str:
        """Return the nonce of a state (OpenID Connect Core 1.0, section 3.1.2.1)."""
        return self._derive(b"nonce", state)

    def _derive(self, purpose: bytes, state: str) -> str:
        derived = hmac.digest(self._key, purpose + b"\0" + state.encode(), "sha256")
        return encoded(derived)


def flow_keys(secrets: Secrets) -> dict[str, FlowKey]:
    """Return the keys of all secrets by name, that of the newest first.

    Raises:
        ConfigurationError: The secrets are unusable.
    """
    keys = [FlowKey.of(secret) for secret in checked_keys(secrets)]
    return {key.name: key for key in keys}
