"""Apple: a client secret that is signed anew, and a flag that may be text."""

from __future__ import annotations

import time
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import ECKey

from accountlink import ConfigurationError
from accountlink.providers import Evidence, apple
from tests.support.documented import APPLE_CLAIMS, APPLE_KEY, APPLE_REGISTRATION
from tests.support.forked import Forks

APPLE: Final = apple(**APPLE_REGISTRATION)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_the_client_secret_is_the_jwt_that_apple_documents() -> None:
    """The secret is signed with ES256, names key, team and client, and is valid for minutes."""
    before = int(time.time())
    token = jwt.decode(str(APPLE.client.secret()), ECKey.import_key(pem(APPLE_KEY)), algorithms=["ES256"])
    assert {"alg": "ES256", "kid": "ABC123DEFG"}.items() <= token.header.items()
    issued = token.claims.pop("iat")
    assert before <= issued <= int(time.time())
    assert {
        "iss": "DEF123GHIJ",
        "aud": "https://appleid.apple.com",
        "sub": "com.example.services",
        "exp": issued + 300,
    } == token.claims


def test_the_client_secret_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request gets a secret of its own, so that none runs out while the application runs."""
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    late = jwt.decode(str(APPLE.client.secret()), ECKey.import_key(pem(APPLE_KEY)), algorithms=["ES256"])
    assert 2_000_000_000 == late.claims["iat"]
    assert APPLE.client.secret() != APPLE.client.secret()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"team_id": ""}, "team_id"),
        ({"key_id": None}, "key_id"),
        ({"private_key": " "}, "private_key"),
        ({"private_key": "AuthKey_ABC123DEFG.p8"}, "line ends"),
        ({"private_key": pem(APPLE_KEY).replace("\n", "\\n")}, "line ends"),
        ({"client_id": ""}, "client_id"),
        ({"scopes": "email"}, "one text"),
    ],
)
def test_a_registration_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    """What is missing shows when the provider is made, not when the first user comes back."""
    with pytest.raises(ConfigurationError, match=words):
        apple(**{**APPLE_REGISTRATION, **changes})


@pytest.mark.parametrize(
    "key",
    [
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
    ids=["RSA", "P-384", "broken"],
)
def test_a_key_of_another_kind_is_refused_without_being_shown(key: str) -> None:
    """A key that cannot sign ES256 is the application's mistake, and no message holds a part of it."""
    provider = apple(**{**APPLE_REGISTRATION, "private_key": key})
    with pytest.raises(ConfigurationError, match="P-256") as caught:
        provider.client.secret()
    assert key.splitlines()[1] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_extra_is_named(forks: Forks) -> None:
    """Without joserfc the provider can be made, and its first request says what to install."""
    registration = {**APPLE_REGISTRATION}
    code = (
        "from accountlink import providers\n"
        f"provider = providers.apple(**{registration!r})\n"
        "try:\n    provider.client.secret()\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = forks.run(code, missing=["joserfc"])
    assert "providers.apple needs joserfc, which is not installed: pip install" in done.stdout


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("true", True),
        ("false", False),
        (True, True),
        (False, False),
        ("True", None),
        ("1", None),
        (1, None),
        (None, None),
    ],
)
def test_the_flag_in_both_forms_that_apple_documents(flag: object, expected: bool | None) -> None:
    """A05: the text "true" is Apple's own form, and the text "false" never counts as true."""
    identity = APPLE.identity(Evidence(claims={**APPLE_CLAIMS, "email_verified": flag}))
    assert identity.email_verified is expected


def test_what_the_browser_adds_is_not_read() -> None:
    """A37: a name or an address beside the ID token, such as the form field ``user``, tells nothing."""
    forged = {"user": {"name": {"firstName": "Eve"}, "email": "victim@example.com"}, "email": "victim@example.com"}
    claims = {name: claim for name, claim in APPLE_CLAIMS.items() if name != "email"}
    identity = APPLE.identity(Evidence(claims={**claims, "user": forged["user"]}, documents=forged))
    assert (None, None, None) == (identity.email, identity.email_verified, identity.display_name)


@pytest.mark.parametrize(
    ("scopes", "posts"),
    [(["email"], True), (["name"], True), ([], False), (["openid"], False), (iter(["email"]), True)],
)
def test_apple_posts_when_scopes_are_asked_for(scopes: Any, posts: bool) -> None:
    """Apple answers by a POST if an address or a name was asked for."""
    provider = apple(**APPLE_REGISTRATION, scopes=scopes)
    assert posts is provider.form_post
    assert posts is not {"email", "name"}.isdisjoint(provider.scopes)
