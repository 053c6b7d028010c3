"""Check ID tokens: joserfc their signatures, Authlib their claims, and here what Authlib leaves out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from accountlink.errors import IdentityNotProven
from accountlink.extras import explained
from accountlink.providers.provider import Provider

try:
    from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]  # Authlib ships no types
    from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped]  # likewise
    from joserfc import jwt
    from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
    from joserfc.jwk import KeySet
    from joserfc.jws import JWSRegistry
except ModuleNotFoundError as missing:
    raise explained("accountlink.web", missing) from None

LEEWAY: Final = 60
"""Seconds that the provider's clock may differ from ours."""
_TENANT: Final = "{tenantid}"
_INVALID: Final = (JoseError, AuthlibBaseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""The errors of a token, or of a set of keys, that is not what it should be."""


class UnknownKey(Exception):
    """Raised for a token that none of the keys has signed: the provider may have a new one."""


def key_set(document: Any) -> KeySet | None:  # what a provider published
    """Return the keys that can be used, or ``None`` if the document has none.

    Source: RFC 7517, section 5: a key of another type, or of a curve that is not known here, is left out.
    """
    found: list[Any] = []
    listed = document.get("keys") if isinstance(document, Mapping) else None
    for key in listed if isinstance(listed, list) else ():
        with suppress(*_INVALID):
            found += KeySet.import_key_set({"keys": [key]})
    return KeySet(found) if found else None


def checked_claims(
    raw: object,
    keys: KeySet,
    *,
    provider: Provider,
    algorithms: Collection[str],
    nonce: str,
    access_token: str,
    now: datetime,
) -> dict[str, Any]:
    """Return the claims of an ID token that proves who signed in.

    Args:
        raw: The token, as it came.
        keys: The provider's keys.
        provider: The provider, whose first client the token must be for.
        algorithms: The accepted signature algorithms.
        nonce: The flow's nonce.
        access_token: The access token that came with it.
        now: The present moment, aware.

    Raises:
        IdentityNotProven: One of the checks failed.
        UnknownKey: The keys lack the one that the token names, or that key did not sign it.

    Source: OpenID Connect Core 1.0, section 3.1.3.7; RFC 8725.
    """
    client_id = provider.client.client_id
    try:
        token = jwt.decode(
            _text(raw), keys, registry=JWSRegistry(algorithms=list(algorithms), strict_check_header=False)
        )
        expected: dict[str, Any] = {
            "iss": {"essential": True, "value": _issuer_for(provider, token.claims)},
            # Authlib alone lets another audience pass when the token's azp names this client.
            "aud": {"essential": True, "value": client_id},
            "nonce": {"essential": True, "value": nonce},
        }
        context = {"nonce": nonce, "client_id": client_id, "access_token": access_token}
        CodeIDToken(token.claims, token.header, expected, context).validate(now=int(now.timestamp()), leeway=LEEWAY)
        _text(token.claims["sub"])
    except (InvalidKeyIdError, BadSignatureError):  # a new key may have the id of the old one, or none
        raise UnknownKey from None
    except _INVALID:
        raise IdentityNotProven from None
    return dict(token.claims)


def issuers(provider: Provider) -> set[str | None]:
    """Return the issuers that a provider may name, one for each accepted tenant."""
    if provider.issuer is None or not provider.tenants:
        return {provider.issuer}
    return {provider.issuer.replace(_TENANT, tenant) for tenant in provider.tenants}


def _issuer_for(provider: Provider, claims: Mapping[str, Any]) -> str | None:
    """Return the issuer that a token must have; with tenants, that of its own accepted tenant.

    Source: Microsoft identity platform, "Validate the issuer": a tenant vouches for its own accounts only.
    """
    if provider.issuer is None or not provider.tenants:
        return provider.issuer
    tenant = _text(claims["tid"])
    if tenant not in provider.tenants:
        raise ValueError("another tenant")
    return provider.issuer.replace(_TENANT, tenant)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("no text")
    return value
