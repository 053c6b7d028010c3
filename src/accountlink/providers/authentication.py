"""Authenticate the application's client at a token endpoint. What can fail of it fails before a request is sent."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_plus

from accountlink.errors import ConfigurationError
from accountlink.extras import explained

try:
    from authlib.oauth2.rfc7523 import PrivateKeyJWT  # type: ignore[import-untyped]  # Authlib ships no types
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, OKPKey, RSAKey
except ModuleNotFoundError as missing:
    raise explained("auth_method='private_key_jwt'", missing) from None

if TYPE_CHECKING:
    from accountlink.providers.client import OAuthClient

_KINDS: Final[tuple[tuple[type[RSAKey | ECKey | OKPKey], str | None, str], ...]] = (
    (RSAKey, None, "RS256"),
    (ECKey, "P-256", "ES256"),
    (OKPKey, "Ed25519", "EdDSA"),
)
"""The kinds of keys, the curve of each, and the algorithm by which it signs (RFC 7518, section 3.1; RFC 8037)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Authentication:
    """Hold how a client authenticates, in the terms of Authlib's client.

    Attributes:
        secret: The secret, or the private key; ``None`` for a public client.
        method: The name of a method that Authlib knows, or a function that adds to a request what authenticates it.
    """

    secret: Any = field(default=None, repr=False)
    method: str | Callable[..., Any] = "none"


def authentication_of(registered: OAuthClient) -> Authentication:
    """Return how a client authenticates, with its secret made anew where a function makes it.

    Raises:
        ConfigurationError: The function returns no text, or the private key is none that can sign.
        Exception: Whatever the function raises.
    """
    secret = registered.secret()
    if secret is not None and registered.auth_method == "client_secret_basic":
        return Authentication(secret=secret, method=_basic(registered.client_id, secret))
    if secret is not None and registered.auth_method == "private_key_jwt":
        key, algorithm = signing_key(secret)
        return Authentication(secret=key, method=_signed(algorithm))
    return Authentication(secret=secret, method=registered.auth_method)


def signing_key(pem: str) -> tuple[RSAKey | ECKey | OKPKey, str]:
    """Return a private key, and the algorithm by which it signs.

    Args:
        pem: The key in PEM.

    Raises:
        ConfigurationError: It is no private key of RSA, P-256 or Ed25519.
    """
    for kind, curve, algorithm in _KINDS:
        try:
            key = kind.import_key(pem)
            if curve in (None, getattr(key, "curve_name", None)):
                with _quiet():
                    jwt.encode({"alg": algorithm}, {}, key, algorithms=[algorithm])  # a public key cannot
                return key, algorithm
        except (JoseError, ValueError, TypeError):
            continue
    del pem  # leave no key in this frame, which a traceback with locals would show
    raise ConfigurationError(
        "With auth_method='private_key_jwt' client_secret=... is a private key in PEM, without a passphrase: of RSA, "
        "P-256 or Ed25519."
    )


def _basic(client_id: str, secret: str) -> Callable[..., Any]:
    """Return Basic authentication, with both parts form-encoded (RFC 6749, section 2.3.1); Authlib does not do so."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    header = f"Basic {b64encode(pair.encode('ascii')).decode('ascii')}"

    def authenticate(_auth: object, _method: str, uri: str, headers: Any, body: Any) -> tuple[str, Any, Any]:
        headers["Authorization"] = header
        return uri, headers, body

    return authenticate


def _signed(algorithm: str) -> Callable[..., Any]:
    """Return the method of RFC 7523 with an algorithm."""
    sign = PrivateKeyJWT(alg=algorithm)

    def authenticate(*request: Any) -> Any:
        with _quiet():
            return sign(*request)

    return authenticate


def _quiet() -> warnings.catch_warnings:
    """Silence joserfc, which warns that RFC 9864 renames EdDSA; providers know it by that name."""
    return warnings.catch_warnings(action="ignore")
