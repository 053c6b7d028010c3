"""Describe Sign in with Slack.

The stable id is ``sub.team_id``: the id of the user and the id of the workspace. Slack says that a user id is unique in
its workspace only, and to be kept together with the id of the workspace. Another workspace could have the same user id,
and with ``sub`` alone its user would take the account over. One person in two workspaces is two accounts.

The flag ``email_verified`` is dropped. Anybody can make a workspace, and its administrators write addresses for their
members. Slack does not say that its flag excludes those.

Without token rotation, tokens do not expire and there are no refresh tokens. With it, access tokens live for twelve
hours, and a refresh token ends once it has been used. Nothing forces the consent screen. Tokens are revoked by Slack's
own method ``auth.revoke``. Slack answers an error with status 200 and a member ``error``.

This preset proves who a user is, and asks for nothing else. A Slack app with bot scopes is installed by another flow
(``oauth.v2.access``).

Source:
    docs.slack.dev/authentication/sign-in-with-slack (the claims, the discovery document)
    docs.slack.dev/reference/objects/user-object (the user id is unique together with ``team_id``)
    docs.slack.dev/authentication/using-token-rotation (twelve hours, rotation)
    docs.slack.dev/reference/methods/auth.revoke
    github.com/aspnet-contrib/AspNet.Security.OAuth.Providers/issues/184 (a peer that took the user id alone)
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from accountlink.providers.client import ClientSecret, OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.provider import (
    Described,
    Evidence,
    Provider,
    Userinfo,
    joined_id,
    scopes_with,
    text_or_none,
)

_ISSUER: Final = "https://slack.com"
_BEHAVIOUR: Final = RefreshBehaviour(rotates=True, grace=timedelta(0))


def slack(
    *,
    client_id: str,
    client_secret: ClientSecret,
    slug: str = "slack",
    scopes: Collection[str] = ("openid", "email", "profile"),
) -> Provider:
    """Make the provider for Slack accounts.

    Args:
        client_id: The client id of your Slack app.
        client_secret: Its secret.
        slug: Your lower-case name of the provider.
        scopes: The scopes that each flow asks for; ``openid`` is added.

    Returns:
        The provider. Its account id is ``sub.team_id``.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    return Provider(
        slug=slug,
        name="Slack",
        issuer=_ISSUER,
        metadata_url=f"{_ISSUER}/.well-known/openid-configuration",
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method="client_secret_post",
                behaviour=_BEHAVIOUR,
                revocation=Revocation.OWN,
            )
        ],
        scopes=scopes_with("openid", scopes=scopes),
        userinfo=Userinfo.NEVER,
        describe=_describe,
    )


def _describe(evidence: Evidence) -> Described:
    claims = evidence.claims
    return Described(
        account_id=joined_id(claims.get("sub"), claims.get("https://slack.com/team_id")),
        email=text_or_none(claims.get("email")),
        display_name=text_or_none(claims.get("name")),
    )
