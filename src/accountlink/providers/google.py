"""Describe Google.

The stable id is ``sub``. Google promises that it is unique among all Google accounts and never given to another one. An
e-mail address can change, and can be given to another person.

The flag ``email_verified`` is believed where Google says that it is authoritative for the address: the address ends in
``@gmail.com``, or ``hd`` names the Workspace domain of the account. For any other address the flag only says that
Google verified it when the account was made; since then it may belong to another person. There the preset reports
``None``.

Google gives a refresh token with ``access_type=offline``, and only with the user's first consent. A later flow gets one
only if the consent screen appears again, so ``prompt=consent`` belongs to ``consent_parameters``, and not to every
flow. ``include_granted_scopes`` is not sent: the token would also hold the scopes that the user granted to other
clients of the same Google project, and a link has the scopes that were asked for it.

Revoking one token ends every grant that the user gave to the Google project, so also those of other links.

Source:
    developers.google.com/identity/openid-connect/openid-connect (claims, ``access_type``, ``prompt``)
    developers.google.com/identity/gsi/web/guides/verify-google-id-token (where Google is authoritative)
    developers.google.com/identity/protocols/oauth2 (how refresh tokens end)
    developers.google.com/identity/protocols/oauth2/web-server (revoking a token)
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from accountlink.providers.client import ClientSecret, OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.oidc import described_by_claims
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    Provider,
    Userinfo,
    scopes_with,
    text_or_none,
)

_ISSUER: Final = "https://accounts.google.com"
_BEHAVIOUR: Final = RefreshBehaviour(rotates=False, idle_limit=timedelta(days=180), per_user_limit=100)
"""Six months without use; seven days for an application whose consent screen is in testing."""


def google(
    *,
    client_id: str,
    client_secret: ClientSecret,
    slug: str = "google",
    scopes: Collection[str] = ("openid", "email", "profile"),
) -> Provider:
    """Make the provider for Google accounts.

    Args:
        client_id: The client id of your "Web application" client.
        client_secret: Its secret.
        slug: Your lower-case name of the provider.
        scopes: The scopes that each flow asks for; ``openid`` is added.

    Returns:
        The provider. Its account id is Google's ``sub``.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    return Provider(
        slug=slug,
        name="Google",
        issuer=_ISSUER,
        metadata_url=f"{_ISSUER}/.well-known/openid-configuration",
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method="client_secret_post",
                behaviour=_BEHAVIOUR,
                revocation=Revocation.RFC7009,
            )
        ],
        scopes=scopes_with("openid", scopes=scopes),
        authorize_parameters={"access_type": "offline"},
        consent_parameters={"prompt": "consent"},
        userinfo=Userinfo.NEVER,
        email_trust=EmailTrust.VERIFIED_FLAG,
        describe=_describe,
    )


def _describe(evidence: Evidence) -> Described:
    read = described_by_claims(evidence)
    authoritative = (read.email or "").endswith("@gmail.com") or text_or_none(evidence.claims.get("hd")) is not None
    return Described(
        account_id=read.account_id,
        email=read.email,
        email_verified=None if read.email_verified and not authoritative else read.email_verified,
        display_name=read.display_name,
    )
