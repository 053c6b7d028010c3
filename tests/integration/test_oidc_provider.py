"""The real OpenID provider of the tests, driven by Authlib's client: it refuses what a provider must refuse."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from authlib.integrations.base_client import (  # type: ignore[import-untyped]  # Authlib ships no types
    OAuthError,
)
from authlib.integrations.httpx_client import (  # type: ignore[import-untyped]  # as above
    AsyncOAuth2Client,
)
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet

from accountlink import OAuthRefresher, TokenSet
from accountlink.providers import OAuthClient
from accountlink.providers.authentication import signing_key
from accountlink.providers.conversation import Line
from tests.support.oidc import VARIABLE, Issuer, OidcProvider, required_node
from tests.support.pages import ROOT

CALLBACK = "https://app.example/callback"
SCOPE = "openid email profile offline_access"


@pytest.fixture
def issuer(oidc: OidcProvider) -> Iterator[Issuer]:
    with oidc.issuer(redirect_uris=[CALLBACK]) as opened:
        yield opened


@pytest.fixture
def another(oidc: OidcProvider) -> Iterator[Issuer]:
    with oidc.issuer(redirect_uris=[CALLBACK]) as opened:
        yield opened


@pytest.fixture
async def browser() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        yield client


class Backend:
    """A client of an issuer, and one authorization request of it."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.nonce = secrets.token_urlsafe()
        self.verifier = secrets.token_urlsafe(48)
        self.client = AsyncOAuth2Client(
            issuer.client_id,
            issuer.client_secret,
            scope=SCOPE,
            redirect_uri=CALLBACK,
            code_challenge_method="S256",
            trust_env=False,
        )
        self.url, self.state = self.client.create_authorization_url(
            f"{issuer.url}/auth", code_verifier=self.verifier, nonce=self.nonce, prompt="consent"
        )

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.__aexit__(*error)

    async def code(self, browser: httpx2.AsyncClient, *, account: str = "ada") -> str:
        """Have a user sign in, and return the code."""
        return parameters(await self.issuer.sign_in(browser, self.url, account=account))["code"]

    async def redeem(self, code: str, **others: str) -> dict[str, Any]:
        """Exchange the code for tokens."""
        request = {"code": code, "code_verifier": self.verifier} | others
        token: dict[str, Any] = await self.client.fetch_token(f"{self.issuer.url}/token", **request)
        return token

    async def userinfo(self) -> httpx2.Response:
        """Ask who the user is, with the access token at hand."""
        response: httpx2.Response = await self.client.get(f"{self.issuer.url}/me")
        return response

    async def claims(self, id_token: str) -> dict[str, Any]:
        """Check the signature of an ID token with the issuer's published keys, and return its claims."""
        response = await self.client.request("GET", f"{self.issuer.url}/jwks", withhold_token=True)
        return jwt.decode(id_token, KeySet.import_key_set(response.json())).claims


def parameters(url: str) -> dict[str, str]:
    assert url.startswith(f"{CALLBACK}?")
    return dict(parse_qsl(urlsplit(url).query))


async def test_it_is_discovered(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """The discovery document names the issuer, and promises PKCE by S256 and the issuer in each response."""
    metadata = (await browser.get(issuer.metadata_url)).json()
    assert issuer.url == metadata["issuer"]
    assert ["S256"] == metadata["code_challenge_methods_supported"]
    assert metadata["authorization_response_iss_parameter_supported"] is True
    assert f"{issuer.url}/token/revocation" == metadata["revocation_endpoint"]


async def test_a_code_yields_tokens(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """A user who signs in and consents comes back with a code, which is worth tokens that name the user."""
    async with Backend(issuer) as backend:
        returned = parameters(await issuer.sign_in(browser, backend.url, account="ada"))
        assert (issuer.url, backend.state) == (returned["iss"], returned["state"])
        token = await backend.redeem(returned["code"])
        claims = await backend.claims(token["id_token"])
        assert ("ada", issuer.url, issuer.client_id) == (claims["sub"], claims["iss"], claims["aud"])
        assert backend.nonce == claims["nonce"]
        expected = {"sub": "ada", "email": "ada@example.org", "email_verified": True, "name": "Ada"}
        assert expected == (await backend.userinfo()).json()
        assert set(SCOPE.split()) == set(token["scope"].split())


async def test_an_account_changes(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """An account can be given another e-mail address while its id stays."""
    async with Backend(issuer) as backend:
        await backend.redeem(await backend.code(browser))
        issuer.set_account("ada", {"email": "lovelace@example.org", "email_verified": False})
        expected = {"sub": "ada", "email": "lovelace@example.org", "email_verified": False}
        assert expected == (await backend.userinfo()).json()


async def test_a_refresh_token_is_replaced(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """A refresh brings another refresh token, and the used one is refused."""
    async with Backend(issuer) as backend:
        first = await backend.redeem(await backend.code(browser))
        second = await backend.client.refresh_token(f"{issuer.url}/token", first["refresh_token"])
        assert first["refresh_token"] != second["refresh_token"]
        with pytest.raises(OAuthError) as refusal:
            await backend.client.refresh_token(f"{issuer.url}/token", first["refresh_token"])
        assert "invalid_grant" == refusal.value.error


AUTHENTICATED: dict[str, Any] = {
    "plain": "plain",
    "a+b": "a+b",
    "p%40ss+word/x=": "p%40ss+word/x=",
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
"""Secrets for Basic authentication, and keys that sign by an algorithm."""


@pytest.mark.parametrize("name", AUTHENTICATED)
async def test_a_client_authenticates(oidc: OidcProvider, browser: httpx2.AsyncClient, name: str) -> None:
    """The provider knows the client at the exchange of a code and at a refresh, whatever its secret has in it."""
    secret, registered = AUTHENTICATED[name], {"client_secret": AUTHENTICATED[name]}
    if callable(secret):
        key = secret()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        keys = {"keys": [signing_key(secret)[0].as_dict(private=False)]}
        registered = {
            "token_endpoint_auth_method": "private_key_jwt", "token_endpoint_auth_signing_alg": name, "jwks": keys,
        }  # fmt: skip
    with oidc.issuer(redirect_uris=[CALLBACK], **registered) as issuer:
        client = OAuthClient(
            client_id=issuer.client_id,
            client_secret=secret,
            auth_method=registered.get("token_endpoint_auth_method", "client_secret_basic"),
            metadata_url=issuer.metadata_url,
        )
        async with Backend(issuer) as backend, Line(None).open(client) as talk:
            received = await talk.redeem(
                f"{issuer.url}/token",
                code=await backend.code(browser),
                redirect_uri=CALLBACK,
                verifier=backend.verifier,
            )
        first = TokenSet.from_response(received, received_at=datetime.now(UTC))
        second = await OAuthRefresher({"acme": [client]}).renew("acme", first, deadline=timedelta(seconds=20))
    assert second.access_token != first.access_token


async def test_a_token_is_revoked(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """A revoked access token opens nothing."""
    async with Backend(issuer) as backend:
        token = await backend.redeem(await backend.code(browser))
        assert 200 == (await backend.userinfo()).status_code
        await backend.client.revoke_token(f"{issuer.url}/token/revocation", token["access_token"])
        assert 401 == (await backend.userinfo()).status_code
        assert 1 == issuer.requests("revocation")


async def test_another_verifier_is_refused(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """Whoever has a code, and not its PKCE verifier, gets no tokens."""
    async with Backend(issuer) as backend:
        code = await backend.code(browser)
        with pytest.raises(OAuthError) as refusal:
            await backend.redeem(code, code_verifier=secrets.token_urlsafe(48))
        assert "invalid_grant" == refusal.value.error


async def test_a_request_without_a_challenge_is_refused(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """An authorization request without PKCE ends before anybody signs in."""
    async with Backend(issuer) as backend:
        url, _ = backend.client.create_authorization_url(f"{issuer.url}/auth")
        returned = parameters(await issuer.sign_in(browser, url, account="ada"))
        assert "invalid_request" == returned["error"]
        assert 0 == issuer.requests("interaction")


async def test_a_replayed_code_is_refused(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """A second exchange of a code is refused, and ends the tokens of the first."""
    async with Backend(issuer) as backend:
        code = await backend.code(browser)
        await backend.redeem(code)
        with pytest.raises(OAuthError) as refusal:
            await backend.redeem(code)
        assert "invalid_grant" == refusal.value.error
        assert 401 == (await backend.userinfo()).status_code


async def test_a_user_cancels(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """A user who cancels comes back with an error, the state and the issuer, and without a code."""
    async with Backend(issuer) as backend:
        returned = parameters(await issuer.cancel(browser, backend.url))
        assert ("access_denied", backend.state, issuer.url) == (returned["error"], returned["state"], returned["iss"])
        assert "code" not in returned
        assert 0 == issuer.requests("token")


async def test_a_page_serves_the_browser_that_began(issuer: Issuer, browser: httpx2.AsyncClient) -> None:
    """Another browser can do nothing with the address of the page."""
    async with Backend(issuer) as backend, httpx2.AsyncClient(trust_env=False) as other:
        page = (await browser.get(backend.url)).next_request
        assert page is not None
        assert 200 == (await browser.get(page.url)).status_code
        assert 400 == (await other.get(page.url)).status_code
        assert 400 == (await other.post(page.url, data={"account": "ada"})).status_code


async def test_issuers_share_nothing(issuer: Issuer, another: Issuer, browser: httpx2.AsyncClient) -> None:
    """A user has other sessions, codes and keys at another issuer, and each issuer counts its own requests."""
    async with Backend(issuer) as here, Backend(another) as there:
        code = await here.code(browser, account="ada")
        assert 0 == another.requests("authorization")
        with pytest.raises(OAuthError) as refusal:
            await there.redeem(code, code_verifier=here.verifier)
        assert "invalid_grant" == refusal.value.error
        assert (0, 1) == (issuer.requests("token"), another.requests("token"))

        token = await here.redeem(code)
        with pytest.raises(BadSignatureError):
            await there.claims(token["id_token"])
        token = await there.redeem(await there.code(browser, account="ben"))
        assert "ben" == (await there.claims(token["id_token"]))["sub"]


async def test_a_user_stays_signed_in(issuer: Issuer, another: Issuer, browser: httpx2.AsyncClient) -> None:
    """A user who has signed in and consented is sent back at once next time, at each issuer."""
    async with Backend(issuer) as here, Backend(another) as there:
        for backend in (here, there):
            await backend.code(browser)
        asked = issuer.requests("interaction"), another.requests("interaction")
        for backend in (here, there):
            url, _ = backend.client.create_authorization_url(
                f"{backend.issuer.url}/auth", code_verifier=backend.verifier
            )
            assert "code" in parameters(await backend.issuer.sign_in(browser, url, account="ada"))
        assert asked == (issuer.requests("interaction"), another.requests("interaction"))


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node a test is skipped with the remedy; where Node was promised it fails."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no node on PATH.* npm ci "):
        required_node()
    monkeypatch.setenv(VARIABLE, "required")
    with pytest.raises(pytest.fail.Exception, match=r"no node on PATH.* npm ci "):
        required_node()


_KILLED = """
import os, signal, time
from tests.support.oidc import run_oidc_provider

with run_oidc_provider() as provider, provider.issuer(redirect_uris=["https://app.example/callback"]) as issuer:
    test_run = os.getpid()
    sibling = os.fork()
    if not sibling:
        time.sleep(60)
        os._exit(0)
    print(sibling, issuer.url.rpartition(":")[2], flush=True)
    os.kill(test_run, signal.SIGKILL)
"""
"""A test run that is killed while a fork of it holds the provider's stdin open."""


@pytest.mark.usefixtures("oidc")
def test_it_ends_with_a_killed_test_run() -> None:
    """The provider's process ends when the test run is killed, even if a fork of the test run lives on."""
    with subprocess.Popen([sys.executable, "-c", _KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        sibling, port = map(int, killed.stdout.readline().split())
        try:
            deadline = time.monotonic() + 20
            while _listens(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            os.kill(sibling, signal.SIGKILL)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
