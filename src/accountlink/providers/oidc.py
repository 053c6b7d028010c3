"""Describe any OpenID Connect provider that publishes a discovery document."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from accountlink.errors import ConfigurationError
from accountlink.providers.client import ClientSecret, OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    EvidenceMissing,
    Provider,
    boolean_or_none,
    document_of,
    scopes_with,
    text_or_none,
)


def oidc(
    slug: str,
    *,
    issuer: str,
    client_id: str,
    client_secret: ClientSecret = None,
    name: str | None = None,
    auth_method: str | None = None,
    scopes: Collection[str] = ("openid", "email", "profile"),
    email_trust: EmailTrust = EmailTrust.UNTRUSTED,
    algorithms: Collection[str] = ("RS256", "ES256", "PS256", "EdDSA"),
    consent_parameters: Mapping[str, str] | None = None,
    authorize_parameters: Mapping[str, str] | None = None,
    behaviour: RefreshBehaviour | None = None,
) -> Provider:
    """Make a provider from its issuer. Its endpoints come from the discovery document.

    ``sub`` is the stable id: OpenID Connect Core 1.0, section 2, forbids to reassign it within an issuer.

    Args:
        slug: Your lower-case name of the provider.
        issuer: The issuer, exactly as the provider writes it.
        client_id: Your client id there.
        client_secret: Your client secret there; without it the client is a public one.
        name: The name to show; the slug without it.
        auth_method: The way to authenticate at the token endpoint; ``"client_secret_basic"`` with a secret.
        scopes: The scopes that each flow asks for; ``openid`` is added.
        email_trust: Whether the provider's ``email_verified`` can be believed. Say so only if you know that the
            provider itself sends a message to each address.
        algorithms: The accepted signature algorithms of the ID token.
        consent_parameters: Parameters that make the consent screen appear again; ``prompt=consent`` without them.
        authorize_parameters: Further parameters of each authorization request.
        behaviour: The provider's treatment of refresh tokens, if you know it.

    Raises:
        ConfigurationError: The slug, the issuer or the client is not one that can work.

    Source: OpenID Connect Discovery 1.0, section 4.
    """
    given: object = issuer
    if not isinstance(given, str):
        raise ConfigurationError("issuer=... is the text that the provider writes into its ID tokens.")
    method = auth_method or ("none" if client_secret is None else "client_secret_basic")

    return Provider(
        slug=slug,
        name=name or slug,
        issuer=issuer,
        metadata_url=f"{issuer.rstrip('/')}/.well-known/openid-configuration",
        clients=(
            OAuthClient(
                client_id=client_id,
                client_secret=client_secret,
                auth_method=method,
                behaviour=behaviour or RefreshBehaviour(),
                revocation=Revocation.RFC7009,
            ),
        ),
        scopes=scopes_with("openid", scopes=scopes),
        algorithms=algorithms,
        authorize_parameters=authorize_parameters or {},
        consent_parameters={"prompt": "consent"} if consent_parameters is None else consent_parameters,
        email_trust=email_trust,
        describe=described_by_claims,
    )


def described_by_claims(evidence: Evidence) -> Described:
    """Read the standard claims; what the ID token lacks is taken from userinfo, whose ``sub`` the flow has compared.

    The e-mail address and its flag come from one document, so that no flag vouches for another address.

    Raises:
        EvidenceMissing: There is no ``sub``.
    """
    claims, userinfo = evidence.claims, document_of(evidence, "userinfo")
    subject = claims.get("sub", userinfo.get("sub"))
    if not isinstance(subject, str):
        raise EvidenceMissing
    of_email = claims if "email" in claims else userinfo
    return Described(
        account_id=subject,
        email=text_or_none(of_email.get("email")),
        email_verified=boolean_or_none(of_email.get("email_verified")),
        display_name=text_or_none(claims.get("name")) or text_or_none(userinfo.get("name")),
    )
