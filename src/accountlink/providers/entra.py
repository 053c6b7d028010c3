"""Describe Microsoft Entra ID, and personal Microsoft accounts.

The stable id is ``oid.tid``: the object id of the user and the id of the tenant, which Microsoft names as the key for
applications of several tenants. Neither is given to another user. ``sub`` is stable too, but it differs for each
registration of an application: a new registration would lose every link. One person in two tenants is two accounts,
also as a guest.

No e-mail address of Entra is believed. The administrator of any tenant can write any address into ``email``, and who
trusts it lets them take over the accounts of others ("nOAuth"). ``xms_edov`` does not change this. It says that the
tenant owns the domain of the address, and not that the user owns the mailbox. So ``email_verified`` is always ``None``.

``tenants`` lists whose accounts are accepted. A token of another tenant proves nothing here, whatever its administrator
wrote into it: the flow puts the token's ``tid`` into the issuer, and it must be one of ``tenants``. The authority,
Microsoft's address for signing in, follows from the list. One tenant has its own authority, which also lets its guests
in. Several tenants share "organizations", or "common" if personal accounts are among them. Personal accounts are a
tenant of their own, ``MICROSOFT_PERSONAL_ACCOUNTS``.

Entra gives a refresh token for the scope ``offline_access``, in each flow. ``prompt=consent`` is not sent, not even to
renew a link: in a tenant where only administrators may consent, it asks the user for an approval that was given long
ago. There is no endpoint to revoke one token.

The clouds of governments have other addresses. Use :func:`accountlink.providers.oidc` there, or a ``Provider`` of your
own that takes ``oid`` and ``tid`` as this file does.

Source:
    learn.microsoft.com/entra/identity-platform/id-token-claims-reference (``oid``, ``tid``, ``sub``, ``email``)
    learn.microsoft.com/entra/identity-platform/claims-validation (the tenant; no decision by e-mail)
    learn.microsoft.com/entra/identity-platform/optional-claims-reference (``xms_edov``)
    learn.microsoft.com/entra/identity-platform/v2-protocols-oidc (the authorities)
    learn.microsoft.com/entra/identity-platform/refresh-tokens (90 days; the old token goes on working)
    github.com/MicrosoftDocs/entra-docs/issues/652 (``prompt=consent`` asks again for approval)
    www.descope.com/blog/post/noauth (nOAuth)
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

from accountlink.errors import ConfigurationError
from accountlink.providers.client import ClientSecret, OAuthClient, RefreshBehaviour
from accountlink.providers.provider import (
    Described,
    Evidence,
    EvidenceMissing,
    Provider,
    Userinfo,
    joined_id,
    scopes_with,
    text_or_none,
)

MICROSOFT_PERSONAL_ACCOUNTS: Final = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The tenant of all personal Microsoft accounts."""
_HOST: Final = "https://login.microsoftonline.com"
_LIFETIME: Final = timedelta(days=90)
_BEHAVIOUR: Final = RefreshBehaviour(rotates=True, grace=_LIFETIME, idle_limit=_LIFETIME)


def entra(
    slug: str,
    *,
    tenants: Collection[str],
    client_id: str,
    client_secret: ClientSecret,
    name: str = "Microsoft",
    scopes: Collection[str] = ("openid", "profile", "email", "offline_access"),
) -> Provider:
    """Make the provider for the accounts of these tenants.

    Args:
        slug: Your lower-case name of the provider, for example ``"entra-acme"``.
        tenants: The ids (GUIDs) of the tenants whose accounts are accepted;
            ``MICROSOFT_PERSONAL_ACCOUNTS`` for personal ones.
        client_id: The application id of your registration.
        client_secret: Its secret.
        name: The name to show.
        scopes: The scopes that each flow asks for; ``openid`` and ``profile`` are added, because ``oid`` needs them.

    Returns:
        The provider. Its account id is ``oid.tid``.

    Raises:
        ConfigurationError: A tenant is not a GUID, or another argument is not one that can work.
    """
    accepted = _tenant_ids(tenants)
    authority = _authority(accepted)
    return Provider(
        slug=slug,
        name=name,
        issuer=f"{_HOST}/{authority if len(accepted) == 1 else '{tenantid}'}/v2.0",
        metadata_url=f"{_HOST}/{authority}/v2.0/.well-known/openid-configuration",
        tenants=accepted,
        clients=[
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method="client_secret_post",
                behaviour=_BEHAVIOUR,
            )
        ],
        scopes=scopes_with("openid", "profile", scopes=scopes),
        userinfo=Userinfo.NEVER,  # it lacks oid and tid, and needs an access token for Microsoft Graph
        describe=partial(_describe, tenants=accepted),
    )


def _tenant_ids(tenants: Collection[str]) -> tuple[str, ...]:
    """Return the ids of the tenants as Microsoft writes them."""
    given: object = tenants
    try:
        accepted = () if isinstance(given, str) else tuple(dict.fromkeys(str(UUID(tenant)) for tenant in tenants))
    except (ValueError, TypeError, AttributeError):
        accepted = ()
    if not accepted:
        raise ConfigurationError(
            "tenants=... is a list of tenant ids, such as ['8eaef023-2b34-4da1-9baa-8bc8c9d6a490']. A domain or a word "
            "such as 'common' is not one: the ID token names its tenant by the id."
        )
    return accepted


def _authority(tenants: Collection[str]) -> str:
    """Return the last part of the authority at which these tenants sign in."""
    if len(tenants) == 1:
        return next(iter(tenants))
    return "common" if MICROSOFT_PERSONAL_ACCOUNTS in tenants else "organizations"


def _describe(evidence: Evidence, *, tenants: Collection[str]) -> Described:
    claims = evidence.claims
    if claims.get("tid") not in tenants:
        raise EvidenceMissing
    return Described(
        account_id=joined_id(claims.get("oid"), claims.get("tid")),
        email=text_or_none(claims.get("email")),
        display_name=text_or_none(claims.get("name")),
    )
