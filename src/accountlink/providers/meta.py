"""Describe Meta: Facebook Login.

The stable id is ``id`` of ``/me``, a text of digits. It belongs to your app alone ("app-scoped"): another app sees
another id of the same person, so a new app at Meta loses every link.

Meta sends no flag of a verified e-mail address, so ``email_verified`` is always ``None``. It sends no address for a
person who signed up with a telephone number, or who removed the address in the login dialog.

There are no refresh tokens. The token of a web login lives for some hours, and can be exchanged for one of about 60
days (``grant_type=fb_exchange_token``); after that the user must come again. The token response lists no scopes, and a
person can decline some of them: ask ``/me/permissions`` where that matters. A person who declined a scope is asked
again only with ``auth_type=rerequest``, which is therefore sent to renew a link. Access is revoked at an endpoint of
Meta's own.

``appsecret_proof`` is not sent. It protects against tokens from elsewhere, and the only token used here comes straight
from Meta's token endpoint. In the app's settings, leave "Require App Secret" switched off.

Source:
    developers.facebook.com/docs/graph-api/reference/user (``id``, ``email``)
    developers.facebook.com/docs/facebook-login/guides/advanced/manual-flow (the flow)
    developers.facebook.com/docs/facebook-login/guides/access-tokens/get-long-lived (60 days)
    developers.facebook.com/docs/facebook-login/guides/permissions/request-revoke (``rerequest``)
    developers.facebook.com/docs/graph-api/reference/user/permissions (revoking, the list of permissions)
    developers.facebook.com/docs/graph-api/guides/secure-requests (``appsecret_proof``)
"""

from __future__ import annotations

import re
from collections.abc import Collection

from accountlink.errors import ConfigurationError
from accountlink.providers.client import ClientSecret, OAuthClient, Revocation
from accountlink.providers.provider import (
    Described,
    Evidence,
    EvidenceMissing,
    Provider,
    Userinfo,
    document_of,
    text_or_none,
)


def meta(
    *,
    client_id: str,
    client_secret: ClientSecret,
    slug: str = "meta",
    scopes: Collection[str] = ("public_profile", "email"),
    version: str = "v25.0",
) -> Provider:
    """Make the provider for Facebook accounts.

    Args:
        client_id: The id of your app.
        client_secret: The app secret.
        slug: Your lower-case name of the provider.
        scopes: The permissions that each flow asks for.
        version: The version of the Graph API.

    Returns:
        The provider. Its account id is the person's id for your app.

    Raises:
        ConfigurationError: An argument is not one that can work.
    """
    given: object = version
    if not isinstance(given, str) or not re.fullmatch(r"v[0-9]+\.[0-9]+", given):
        raise ConfigurationError("version=... is a version of the Graph API, such as 'v25.0'.")
    graph = f"https://graph.facebook.com/{version}"
    return Provider(
        slug=slug,
        name="Facebook",
        authorization_endpoint=f"https://www.facebook.com/{version}/dialog/oauth",
        token_endpoint=f"{graph}/oauth/access_token",
        id_token=False,
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method="client_secret_post",
                revocation=Revocation.OWN,
            )
        ],
        scopes=scopes,
        consent_parameters={"auth_type": "rerequest"},
        userinfo=Userinfo.NEVER,
        requests={"me": f"{graph}/me?fields=id,name,email"},
        describe=_describe,
    )


def _describe(evidence: Evidence) -> Described:
    me = document_of(evidence, "me")
    account_id = me.get("id")
    if not isinstance(account_id, str) or not re.fullmatch(r"[0-9]+", account_id):
        raise EvidenceMissing
    return Described(
        account_id=account_id,
        email=text_or_none(me.get("email")),
        display_name=text_or_none(me.get("name")),
    )
