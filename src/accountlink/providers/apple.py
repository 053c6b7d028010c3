"""Describe Sign in with Apple.

The stable id is ``sub``. It is the same for all apps of one development team, and stays the same if the user stops and
begins again. Another team sees another ``sub``: if an app moves to another team, Apple tells the new one for a while in
``transfer_sub``, and the links must be moved.

Apple sends only addresses that it has verified, or that it made itself (``…@privaterelay.appleid.com``, which forwards
to the user). Its flag is believed. Apple documents ``email_verified`` as a boolean or as the text ``"true"``, so for
Apple, and for no other provider, exactly these texts are read: ``"true"`` and ``"false"``. Anything else counts as no
flag.

The name comes only with the first consent, in the form field ``user`` that the browser posts. Apple does not sign it,
so anybody could write it, and it is ignored. That is why the scope ``name`` is not asked for.

The client secret is a JWT that the private key of the registration signs. Apple accepts one for up to six months; here
each request gets its own, valid for five minutes, so that no day comes on which it has run out.

With the scope ``email`` or ``name`` Apple answers by a cross-site POST and in no other way. Refresh tokens are not
rotated. Nothing forces the consent screen, and each flow brings a refresh token.

Source:
    developer.apple.com/documentation/signinwithapple/authenticating-users-with-sign-in-with-apple (the claims)
    developer.apple.com/documentation/signinwithapplerestapi/request-an-authorization-to-the-sign-in-with-apple-server.
    developer.apple.com/documentation/signinwithapplerestapi/generate-and-validate-tokens (tokens, refreshing)
    developer.apple.com/documentation/accountorganizationaldatasharing/creating-a-client-secret (the JWT)
    developer.apple.com/documentation/signinwithapplerestapi/revoke-tokens (revoking a token)
    developer.apple.com/documentation/technotes/tn3159-migrating-sign-in-with-apple-users-for-an-app-transfer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

from accountlink.errors import ConfigurationError
from accountlink.extras import explained
from accountlink.providers.client import OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    EvidenceMissing,
    Provider,
    Userinfo,
    boolean_or_none,
    scopes_with,
    text_or_none,
)
from accountlink.values.secrecy import Secret

_APPLE: Final = "https://appleid.apple.com"
_LIFETIME: Final = 300
"""Seconds for which a client secret is valid: long enough for clocks that differ."""
_BEHAVIOUR: Final = RefreshBehaviour(rotates=False)
_WRITTEN: Final = {"true": True, "false": False}


def apple(
    *,
    client_id: str,
    team_id: str,
    key_id: str,
    private_key: str,
    slug: str = "apple",
    scopes: Collection[str] = ("email",),
) -> Provider:
    """Make the provider for Apple accounts.

    Args:
        client_id: Your Services ID.
        team_id: The id of your development team, ten characters.
        key_id: The id of your private key, ten characters.
        private_key: The text of the key file (``.p8``), with its lines.
        slug: Your lower-case name of the provider.
        scopes: The scopes that each flow asks for.

    Returns:
        The provider. Its account id is Apple's ``sub``.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    asked = scopes_with(scopes=scopes)
    return Provider(
        slug=slug,
        name="Apple",
        issuer=_APPLE,
        authorization_endpoint=f"{_APPLE}/auth/authorize",
        token_endpoint=f"{_APPLE}/auth/token",
        jwks_uri=f"{_APPLE}/auth/keys",
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=_client_secrets(
                    client_id=client_id, team_id=team_id, key_id=key_id, private_key=private_key
                ),
                auth_method="client_secret_post",
                behaviour=_BEHAVIOUR,
                revocation=Revocation.RFC7009,
            )
        ],
        scopes=asked,
        userinfo=Userinfo.NEVER,
        form_post=not {"email", "name"}.isdisjoint(asked),
        email_trust=EmailTrust.VERIFIED_FLAG,
        describe=_describe,
    )


def _client_secrets(*, client_id: str, team_id: str, key_id: str, private_key: str) -> Callable[[], str]:
    """Return a function that signs a new client secret.

    Raises:
        ConfigurationError: A part is missing, or the key is not the text of a key file.
    """
    parts: dict[str, object] = {"team_id": team_id, "key_id": key_id, "private_key": private_key}
    for name, part in parts.items():
        if not isinstance(part, str) or not part.strip():
            raise ConfigurationError(f"{name}=... is the text that Apple gave your team.")
    if not private_key.strip().startswith("-----BEGIN PRIVATE KEY-----\n"):
        raise ConfigurationError("private_key=... is the text of the key file from Apple (.p8), with its line ends.")
    key = Secret(private_key)

    def sign() -> str:
        try:
            from joserfc import jwt  # noqa: PLC0415  # an extra: only this function needs it
            from joserfc.errors import JoseError  # noqa: PLC0415  # likewise
            from joserfc.jwk import ECKey  # noqa: PLC0415  # likewise
        except ModuleNotFoundError as missing:
            raise explained("providers.apple", missing) from None
        now = int(time.time())
        claims = {"iss": team_id, "iat": now, "exp": now + _LIFETIME, "aud": _APPLE, "sub": client_id}
        try:
            return jwt.encode({"alg": "ES256", "kid": key_id}, claims, ECKey.import_key(key.reveal()))
        except (JoseError, ValueError, TypeError):
            raise ConfigurationError("private_key=... is not a key of Apple's kind (P-256, for ES256).") from None

    return sign


def _describe(evidence: Evidence) -> Described:
    claims = evidence.claims
    if not isinstance(claims.get("sub"), str):
        raise EvidenceMissing
    flag = claims.get("email_verified")
    return Described(
        account_id=claims["sub"],
        email=text_or_none(claims.get("email")),
        email_verified=_WRITTEN.get(flag) if isinstance(flag, str) else boolean_or_none(flag),
    )
