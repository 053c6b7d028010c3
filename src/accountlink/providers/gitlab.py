"""Describe GitLab: gitlab.com, or an instance of your own.

The stable id is ``sub``, the number of the user in the instance's database. It is unique in that instance only, so give
each instance a slug of its own.

On gitlab.com the flag ``email_verified`` is believed: GitLab sends a message to each address, and flags the address
that is in the same token. On another instance an administrator can mark any address as confirmed, so there the flag is
dropped, unless ``email_trust`` says that you know the instance.

Access tokens live for two hours. Each refresh gives a new refresh token and ends the former one at once. Each flow
brings a refresh token, so nothing forces the consent screen. Tokens are revoked by RFC 7009.

Source:
    docs.gitlab.com/integration/openid_connect_provider (the claims, the discovery document)
    docs.gitlab.com/api/oauth2 (refreshing, revoking)
    gitlab.com/gitlab-org/gitlab, config/initializers/doorkeeper_openid_connect.rb (``sub``; which address is flagged)
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from accountlink.providers.client import ClientSecret, RefreshBehaviour
from accountlink.providers.oidc import oidc
from accountlink.providers.provider import EmailTrust, Provider

_GITLAB_COM: Final = "https://gitlab.com"
_BEHAVIOUR: Final = RefreshBehaviour(rotates=True, grace=timedelta(0))


def gitlab(
    *,
    client_id: str,
    client_secret: ClientSecret,
    slug: str = "gitlab",
    issuer: str = _GITLAB_COM,
    name: str = "GitLab",
    scopes: Collection[str] = ("openid", "email", "profile"),
    email_trust: EmailTrust | None = None,
) -> Provider:
    """Make the provider for the accounts of one GitLab instance.

    Args:
        client_id: The application id.
        client_secret: Its secret.
        slug: Your lower-case name of the provider.
        issuer: The address of the instance, as it names itself in its discovery document.
        name: The name to show.
        scopes: The scopes that each flow asks for; ``openid`` is added.
        email_trust: Whether the instance's ``email_verified`` can be believed; without it, gitlab.com's is.

    Returns:
        The provider. Its account id is GitLab's ``sub``.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    known = EmailTrust.VERIFIED_FLAG if issuer == _GITLAB_COM else EmailTrust.UNTRUSTED
    return oidc(
        slug,
        issuer=issuer,
        client_id=client_id,
        client_secret=client_secret,
        name=name,
        auth_method="client_secret_post",
        scopes=scopes,
        email_trust=known if email_trust is None else email_trust,
        algorithms=["RS256"],
        consent_parameters={},
        behaviour=_BEHAVIOUR,
    )
