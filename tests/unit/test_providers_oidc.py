"""OpenID Connect by discovery, and GitLab, which stands on it."""

from typing import Any, Final

import pytest

from accountlink import ConfigurationError
from accountlink.providers import EmailTrust, Evidence, EvidenceMissing, Userinfo, gitlab, oidc
from tests.support.documented import CLIENT, GITLAB_CLAIMS, OIDC_CLAIMS, OIDC_USERINFO

ISSUER: Final = "https://server.example.com"
TRUSTED: Final = oidc("acme", issuer=ISSUER, email_trust=EmailTrust.VERIFIED_FLAG, **CLIENT)


def test_the_flag_belongs_to_the_address_of_its_own_document() -> None:
    """A05: the flag of an address in one document never vouches for the address in another."""
    claims, userinfo = {**OIDC_CLAIMS, "email_verified": True}, {**OIDC_USERINFO, "email_verified": False}
    mixed = TRUSTED.identity(Evidence(claims=claims, documents={"userinfo": userinfo}))
    assert ("janedoe@example.com", False) == (mixed.email, mixed.email_verified)
    claims, userinfo = {**OIDC_CLAIMS, "email": "in@token.example"}, {**OIDC_USERINFO, "email_verified": True}
    mixed = TRUSTED.identity(Evidence(claims=claims, documents={"userinfo": userinfo}))
    assert ("in@token.example", None) == (mixed.email, mixed.email_verified)


def test_the_id_token_goes_before_userinfo() -> None:
    """What the signed ID token says is not replaced by userinfo."""
    claims = {**OIDC_CLAIMS, "name": "Signed", "email": "signed@example.com"}
    identity = TRUSTED.identity(Evidence(claims=claims, documents={"userinfo": OIDC_USERINFO}))
    assert ("Signed", "signed@example.com") == (identity.display_name, identity.email)


@pytest.mark.parametrize("subject", [24400320, None, ["a"], True])
def test_a_subject_is_text(subject: object) -> None:
    """A08: a number is not turned into the text of another account, and userinfo does not replace a wrong ``sub``."""
    with pytest.raises(EvidenceMissing):
        TRUSTED.identity(Evidence(claims={**OIDC_CLAIMS, "sub": subject}, documents={"userinfo": OIDC_USERINFO}))


@pytest.mark.parametrize(("issuer", "expected"), [(ISSUER, ISSUER), (f"{ISSUER}/realms/a/", f"{ISSUER}/realms/a")])
def test_where_the_document_is(issuer: str, expected: str) -> None:
    """The document stands below the issuer, and the issuer itself is kept to the letter."""
    provider = oidc("acme", issuer=issuer, **CLIENT)
    assert (issuer, f"{expected}/.well-known/openid-configuration") == (provider.issuer, provider.metadata_url)


@pytest.mark.parametrize("issuer", ["server.example.com", "http://server.example.com", "", None, 7], ids=repr)
def test_an_issuer_that_cannot_be_one_is_refused(issuer: Any) -> None:
    """An issuer is an https address."""
    with pytest.raises(ConfigurationError):
        oidc("acme", issuer=issuer, **CLIENT)


def test_a_public_client_and_one_with_a_secret() -> None:
    """Without a secret the client authenticates by PKCE alone."""
    assert "none" == oidc("acme", issuer=ISSUER, client_id="a").client.auth_method
    assert "client_secret_basic" == TRUSTED.client.auth_method
    assert (
        "client_secret_post"
        == oidc("acme", issuer=ISSUER, auth_method="client_secret_post", **CLIENT).client.auth_method
    )


def test_what_is_asked_for() -> None:
    """``openid`` is added, userinfo is asked for what the ID token lacks, and consent is forced to renew a link."""
    provider = oidc("acme", issuer=ISSUER, scopes=["email"], **CLIENT)
    assert ("openid", "email") == provider.scopes
    assert Userinfo.WHEN_MISSING is provider.userinfo
    assert {"prompt": "consent"} == provider.consent_parameters


# -- GitLab -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, True),
        ({"issuer": "https://gitlab.example"}, None),
        ({"issuer": "https://gitlab.com.example"}, None),
        ({"issuer": "https://gitlab.example", "email_trust": EmailTrust.VERIFIED_FLAG}, True),
        ({"email_trust": EmailTrust.UNTRUSTED}, None),
    ],
    ids=repr,
)
def test_whose_flag_is_believed(arguments: dict[str, Any], expected: bool | None) -> None:
    """A38: an administrator of another instance does not speak for addresses, unless the application says so."""
    identity = gitlab(**CLIENT, **arguments).identity(Evidence(claims=GITLAB_CLAIMS))
    assert ("ada@example.com", expected) == (identity.email, identity.email_verified)


def test_a_gitlab_of_your_own() -> None:
    """Another instance is another issuer, with a slug and a name of its own."""
    provider = gitlab(**CLIENT, slug="gitlab-acme", issuer="https://gitlab.example/git", name="Acme's GitLab")
    assert ("gitlab-acme", "https://gitlab.example/git", "Acme's GitLab") == (
        provider.slug,
        provider.issuer,
        provider.name,
    )
    assert "https://gitlab.example/git/.well-known/openid-configuration" == provider.metadata_url
    assert {} == provider.consent_parameters
