"""Describe GitHub: OAuth apps, and GitHub Apps that act for a user.

The stable id is the number ``id`` of the user. A login can be renamed, and is then free for another person, so it
identifies nobody. GitHub has no ID token; the profile comes from its API.

The e-mail address is the primary one of ``/user/emails``, if GitHub has verified it by a message. An unverified primary
address counts as none: anybody can enter the address of another person. The address in the profile is not used, because
it comes without a flag. An address ``…@users.noreply.github.com`` counts as none too: it receives no mail, and older
ones hold only the login, which another person can have later. Without the scope ``user:email`` (for a GitHub App: the
permission "Email addresses") GitHub refuses the list, and the account is linked without an address.

GitHub names itself in each callback, ``iss=https://github.com/login/oauth``, and a callback that names another issuer
is refused. A callback without ``iss`` is accepted: GitHub calls the document that promises it a preview, and until
April 2026 no callback had it.

Refresh tokens exist for GitHub Apps whose user tokens expire: each works once, within six months. Tokens of OAuth apps
do not expire, but an eleventh token for one user and the same scopes ends an older one. Tokens are revoked at an
endpoint of GitHub's own. No parameter brings the consent screen back, and none is needed.

The endpoints of GitHub Enterprise Server are others: see ``docs/providers.md``.

Source:
    docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps (the flow, the number of tokens)
    docs.github.com/rest/users/users, docs.github.com/rest/users/emails (the profile, the addresses)
    docs.github.com/apps/github-authentication-discovery-endpoints (the issuer, no ID token)
    docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app/refreshing-user-access-tokens
    docs.github.com/rest/apps/oauth-applications (revoking a token)
    github.com/nextauthjs/next-auth/issues/13409 (the new ``iss``)
    github.com/pennersr/django-allauth/issues/3745 (a peer that took the first address, without its flag)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Final

from accountlink.providers.client import ClientSecret, OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    EvidenceMissing,
    Provider,
    Userinfo,
    document_of,
    text_or_none,
)

_API: Final = "https://api.github.com"
_BEHAVIOUR: Final = RefreshBehaviour(
    rotates=True, grace=timedelta(0), idle_limit=timedelta(seconds=15_811_200), per_user_limit=10
)
_HIDDEN: Final = "@users.noreply.github.com"


def github(
    *,
    client_id: str,
    client_secret: ClientSecret,
    slug: str = "github",
    scopes: Collection[str] = ("user:email",),
) -> Provider:
    """Make the provider for accounts at github.com.

    Args:
        client_id: The client id of your OAuth app or GitHub App.
        client_secret: Its secret.
        slug: Your lower-case name of the provider.
        scopes: The scopes that each flow asks for. GitHub Apps ignore them and have permissions.

    Returns:
        The provider. Its account id is GitHub's number of the user, as text.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    return Provider(
        slug=slug,
        name="GitHub",
        issuer="https://github.com/login/oauth",
        authorization_endpoint="https://github.com/login/oauth/authorize",
        token_endpoint="https://github.com/login/oauth/access_token",  # noqa: S106  # an address, not a secret
        id_token=False,
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method="client_secret_post",
                behaviour=_BEHAVIOUR,
                revocation=Revocation.OWN,
            )
        ],
        scopes=scopes,
        userinfo=Userinfo.NEVER,
        requests={"user": f"{_API}/user", "emails": f"{_API}/user/emails?per_page=100"},
        optional_requests=["emails"],
        request_headers={"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"},
        email_trust=EmailTrust.VERIFIED_FLAG,
        describe=_describe,
    )


def _describe(evidence: Evidence) -> Described:
    user = document_of(evidence, "user")
    number = user.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise EvidenceMissing
    email = _verified_primary(evidence.documents.get("emails"))
    return Described(
        account_id=number,
        email=email,
        email_verified=None if email is None else True,
        display_name=text_or_none(user.get("name")) or text_or_none(user.get("login")),
    )


def _verified_primary(emails: object) -> str | None:
    """Return the primary address, if GitHub has verified it and it is a real one."""
    for entry in emails if isinstance(emails, list) else ():
        if isinstance(entry, Mapping) and entry.get("primary") is True and entry.get("verified") is True:
            email = text_or_none(entry.get("email"))
            return None if email is None or email.lower().endswith(_HIDDEN) else email
    return None
