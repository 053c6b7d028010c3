"""The fake provider, driven by the client that real backends use: Authlib."""

import asyncio
import hashlib
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit

import httpx2
import pytest
from authlib.integrations.httpx_client import (  # type: ignore[import-untyped]  # Authlib ships no types
    AsyncOAuth2Client,
)
from authlib.integrations.starlette_client import (  # type: ignore[import-untyped]  # as above
    OAuth,
    OAuthError,
)
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from accountlink.testing.fake_provider import FakeProvider, Lost

APP = "https://app.example"
CALLBACK = f"{APP}/callback"
SUBJECT = "248289761001"
SCOPE = "openid email profile offline_access"


class Clock:
    """The current time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Site:
    """A small backend that signs in through Authlib, and the browser that a person uses with it."""

    def __init__(self, provider: FakeProvider, **client_kwargs: Any) -> None:
        oauth = OAuth()
        self.client = oauth.register(
            "idp",
            client_id=provider.client_id,
            client_secret=provider.client_secret,
            server_metadata_url=provider.server_metadata_url,
            client_kwargs={
                "scope": SCOPE,
                "code_challenge_method": "S256",
                "transport": httpx2.ASGITransport(app=provider),
                "trust_env": False,
            }
            | client_kwargs,
        )
        app = Starlette(
            routes=[Route("/login", self._login), Route("/callback", self._callback)],
            middleware=[Middleware(SessionMiddleware, secret_key=secrets.token_hex(), https_only=True)],
        )
        self.browser = httpx2.AsyncClient(
            base_url=APP,
            transport=httpx2.ASGITransport(app=app),
            mounts={f"all://{urlsplit(provider.issuer).hostname}": httpx2.ASGITransport(app=provider)},
            trust_env=False,
        )

    async def _login(self, request: Request) -> Response:
        response: Response = await self.client.authorize_redirect(request, CALLBACK, **dict(request.query_params))
        return response

    async def _callback(self, request: Request) -> Response:
        try:
            token = await self.client.authorize_access_token(request)
        except OAuthError as refusal:
            return JSONResponse({"error": refusal.error, "description": refusal.description}, status_code=400)
        return JSONResponse(token | {"query": dict(request.query_params)})

    async def sign_in(self, **params: str) -> httpx2.Response:
        """Go through the whole flow, redirects and all."""
        return await self.browser.get("/login", params=params, follow_redirects=True)

    async def token(self, **params: str) -> dict[str, Any]:
        """Go through the whole flow and return what the backend holds afterwards."""
        response = await self.sign_in(**params)
        assert response.status_code == 200, response.text
        held: dict[str, Any] = response.json()
        return held

    async def code(self, **params: str) -> tuple[str, str]:
        """Go as far as the authorization response and return the code and its PKCE verifier."""
        verifier = secrets.token_urlsafe(48)
        started = await self.client.create_authorization_url(CALLBACK, code_verifier=verifier, **params)
        response = await self.browser.get(started["url"])
        return query_of(response)["code"], verifier

    async def redeem(self, code: str, **params: str) -> dict[str, Any]:
        """Ask the token endpoint, as a backend does."""
        token: dict[str, Any] = await self.client.fetch_access_token(
            redirect_uri=CALLBACK, code=code, grant_type="authorization_code", **params
        )
        return token

    async def refresh(self, refresh_token: str) -> dict[str, Any]:
        """Ask for new tokens, as a background worker does."""
        async with self.oauth_client() as client:
            url = f"{self.client.server_metadata['issuer']}/token"
            token: dict[str, Any] = await client.refresh_token(url, refresh_token=refresh_token)
            return token

    def oauth_client(self, **params: Any) -> AsyncOAuth2Client:
        """Return a client of its own, as each worker process has one."""
        return AsyncOAuth2Client(
            client_id=self.client.client_id,
            client_secret=self.client.client_secret,
            transport=self.client.client_kwargs["transport"],
            trust_env=False,
            **params,
        )

    async def userinfo(self, token: dict[str, Any]) -> httpx2.Response:
        """Ask whose the token is."""
        url = f"{self.client.server_metadata['issuer']}/userinfo"
        return await self.browser.get(url, headers={"Authorization": f"Bearer {token['access_token']}"})


def query_of(response: httpx2.Response) -> dict[str, str]:
    """Return the parameters of a redirect."""
    query = parse_qs(urlsplit(response.headers["Location"]).query)
    return {name: values[0] for name, values in query.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> FakeProvider:
    provider = FakeProvider(redirect_uris=[CALLBACK], clock=clock)
    provider.add_account(SUBJECT, email="ada@example.org", name="Ada Lovelace")
    provider.sign_in_as(SUBJECT)
    return provider


@pytest.fixture
async def site(provider: FakeProvider) -> AsyncIterator[Site]:
    site = Site(provider)
    async with site.browser:
        yield site


class TestCodeFlow:
    async def test_signs_in_through_authlib(self, provider: FakeProvider, site: Site) -> None:
        """A whole flow gives Authlib a valid ID token about the person who is signed in."""
        held = await site.token()

        assert held["userinfo"]["sub"] == SUBJECT
        assert held["userinfo"]["email"] == "ada@example.org"
        assert held["userinfo"]["email_verified"] is True
        assert held["userinfo"]["name"] == "Ada Lovelace"
        assert set(SCOPE.split()) == set(held["scope"].split())
        assert dict(provider.calls) == {
            "/.well-known/openid-configuration": 1,
            "/authorize": 1,
            "/token": 1,
            "/jwks": 1,
        }

    async def test_binds_state_nonce_challenge_and_issuer(self, provider: FakeProvider, site: Site) -> None:
        """The provider returns Authlib's values: state and issuer in the redirect, the nonce in the token."""
        started = await site.browser.get("/login")
        asked = query_of(started)
        answered = query_of(await site.browser.get(started.headers["Location"]))

        assert asked["code_challenge_method"] == "S256"
        assert asked["state"] == answered["state"]
        assert provider.issuer == answered["iss"]
        response = await site.browser.get("/callback", params=answered)
        assert asked["nonce"] == response.json()["userinfo"]["nonce"]

    async def test_advertises_the_issuer_in_responses(self, site: Site) -> None:
        """The discovery document says that RFC 9207's parameter is sent."""
        metadata = await site.client.load_server_metadata()

        assert metadata["authorization_response_iss_parameter_supported"] is True
        assert metadata["code_challenge_methods_supported"] == ["S256"]

    async def test_takes_the_secret_in_the_body(self, provider: FakeProvider) -> None:
        """client_secret_post works as client_secret_basic does."""
        site = Site(provider, token_endpoint_auth_method="client_secret_post")
        async with site.browser:
            assert (await site.token())["userinfo"]["sub"] == SUBJECT

    @pytest.mark.parametrize("secret", ["a+b%20c", "ünï", "a:b"])
    async def test_takes_any_secret_as_authlib_sends_it(self, secret: str) -> None:
        """A secret with characters that RFC 6749 wants encoded is understood unencoded too."""
        provider = FakeProvider(client_secret=secret, redirect_uris=[CALLBACK])
        provider.add_account(SUBJECT)
        site = Site(provider, token_endpoint_auth_method="client_secret_post")
        async with site.browser:
            assert (await site.token(login_hint=SUBJECT))["userinfo"]["sub"] == SUBJECT

    async def test_takes_a_secret_encoded_as_the_rfc_wants(self) -> None:
        """A secret that is form-encoded inside the Basic header is understood."""
        provider = FakeProvider(client_secret="a+b%20c", redirect_uris=[CALLBACK])
        provider.add_account(SUBJECT)
        site = Site(provider)
        site.client.client_secret = quote_plus("a+b%20c")
        async with site.browser:
            assert (await site.token(login_hint=SUBJECT))["userinfo"]["sub"] == SUBJECT

    async def test_unknown_scopes_are_not_granted(self, provider: FakeProvider) -> None:
        """The granted scopes may be fewer than the requested ones, and the answer names them."""
        site = Site(provider, scope="openid calendar.write")
        async with site.browser:
            assert (await site.token())["scope"] == "openid"

    async def test_oauth_without_openid(self, provider: FakeProvider) -> None:
        """Without the scope openid there is an access token, but no identity."""
        site = Site(provider, scope="email")
        async with site.browser:
            held = await site.token()

            assert "id_token" not in held
            assert (await site.userinfo(held)).status_code == 401

    async def test_wrong_client_secret_is_refused(self, provider: FakeProvider, site: Site) -> None:
        """A client that does not know its secret gets 401 invalid_client and no token."""
        code, verifier = await site.code()
        site.client.client_secret = "wrong"

        with pytest.raises(OAuthError) as refusal:
            await site.redeem(code, code_verifier=verifier)

        assert refusal.value.error == "invalid_client"

    async def test_offline_access_decides_on_a_refresh_token(self, provider: FakeProvider) -> None:
        """Without the scope there is no refresh token, as at providers that give one only when asked."""
        site = Site(provider, scope="openid email")
        async with site.browser:
            held = await site.token()

        assert "refresh_token" not in held
        assert held["scope"] == "email openid"
        assert "name" not in held["userinfo"]

    async def test_issuer_may_have_a_path(self) -> None:
        """A tenant's issuer works, and its paths are counted without the tenant."""
        provider = FakeProvider(issuer="https://idp.example/tenant-a", redirect_uris=[CALLBACK])
        provider.add_account(SUBJECT)
        site = Site(provider)
        async with site.browser:
            held = await site.token(login_hint=SUBJECT)

        assert held["userinfo"]["iss"] == "https://idp.example/tenant-a"
        assert provider.calls["/token"] == 1


class TestWhoSignsIn:
    async def test_login_hint_chooses(self, provider: FakeProvider, site: Site) -> None:
        """A subject or an e-mail as the hint wins over who is signed in."""
        provider.add_account("other", email="grace@example.org")

        assert (await site.token(login_hint="other"))["userinfo"]["sub"] == "other"
        assert (await site.token(login_hint="grace@example.org"))["userinfo"]["sub"] == "other"
        assert (await site.token())["userinfo"]["sub"] == SUBJECT

    @pytest.mark.parametrize(
        "params", [{"prompt": "none"}, {}, {"login_hint": "nobody"}], ids=["silent", "plain", "unknown hint"]
    )
    async def test_nobody_signed_in(self, provider: FakeProvider, site: Site, params: dict[str, str]) -> None:
        """Nobody to answer is login_required, by redirect."""
        provider.sign_in_as(None)

        response = await site.sign_in(**params)

        assert response.json()["error"] == "login_required"

    async def test_silent_request_for_somebody_else(self, provider: FakeProvider, site: Site) -> None:
        """prompt=none answers for the person signed in only, whatever the hint."""
        provider.add_account("other")

        assert (await site.token(prompt="none"))["userinfo"]["sub"] == SUBJECT
        assert (await site.sign_in(prompt="none", login_hint="other")).json()["error"] == "login_required"

    async def test_changed_email_keeps_the_subject(self, provider: FakeProvider, site: Site) -> None:
        """An e-mail changed between two flows arrives with the same subject."""
        before = (await site.token())["userinfo"]
        provider.change_account(SUBJECT, email="ada@elsewhere.example", email_verified=False)
        after = (await site.token())["userinfo"]

        assert before["sub"] == after["sub"] == SUBJECT
        assert (after["email"], after["email_verified"]) == ("ada@elsewhere.example", False)

    @pytest.mark.parametrize("claimed", ["false", "true", False])
    async def test_email_verified_as_the_provider_has_it(
        self, provider: FakeProvider, site: Site, claimed: bool | str
    ) -> None:
        """Whatever a provider claims about an e-mail arrives unchanged, text included."""
        provider.change_account(SUBJECT, email_verified=claimed)

        assert claimed == (await site.token())["userinfo"]["email_verified"]

    async def test_claims_of_the_account(self, provider: FakeProvider, site: Site) -> None:
        """Claims of the account are released; a claim that is None in the account is left out."""
        provider.change_account(SUBJECT, email_verified=None, claims={"tid": "tenant-a", "padding": "x" * 9})

        held = await site.token()

        assert "email_verified" not in held["userinfo"]
        assert held["userinfo"]["tid"] == "tenant-a"
        assert (await site.userinfo(held)).json()["tid"] == "tenant-a"


class TestRefusals:
    @pytest.mark.parametrize("params", [{"code_verifier": "w" * 43}, {}], ids=["wrong", "missing"])
    async def test_pkce_verifier(self, site: Site, params: dict[str, str]) -> None:
        """A code is not redeemed without the verifier that its challenge was made from."""
        code, verifier = await site.code()

        with pytest.raises(OAuthError) as refusal:
            await site.redeem(code, **params)
        assert refusal.value.error == "invalid_grant"

        with pytest.raises(OAuthError):  # nor afterwards with the right one: the attempt spent it
            await site.redeem(code, code_verifier=verifier)

    async def test_no_pkce_at_all(self, provider: FakeProvider) -> None:
        """A client that leaves PKCE out gets no code."""
        site = Site(provider, code_challenge_method=None)
        async with site.browser:
            response = await site.sign_in()

        assert response.json()["error"] == "invalid_request"
        assert provider.calls["/token"] == 0

    async def test_code_reuse_ends_the_grant(self, site: Site) -> None:
        """A code works once; its replay also revokes what it gave the first time."""
        code, verifier = await site.code()
        token = await site.redeem(code, code_verifier=verifier)
        assert (await site.userinfo(token)).status_code == 200

        with pytest.raises(OAuthError) as refusal:
            await site.redeem(code, code_verifier=verifier)

        assert refusal.value.error == "invalid_grant"
        assert (await site.userinfo(token)).status_code == 401

    @pytest.mark.parametrize(("secret", "status"), [("same", 200), ("another", 400), (None, 400)])
    async def test_code_of_a_provider_that_has_ended(self, secret: str | None, status: int) -> None:
        """A provider that is made anew redeems what the one before issued, once, if both have one secret."""
        verifier = secrets.token_urlsafe(32)
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        params = {
            "client_id": "demo-client",
            "redirect_uri": CALLBACK,
            "response_type": "code",
            "scope": "openid email",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "nonce": "n",
            "login_hint": SUBJECT,
        }
        made = [FakeProvider(redirect_uris=[CALLBACK], client_secret="s", secret=each) for each in ("same", secret)]
        for provider in made:
            provider.add_account(SUBJECT, email="ada@example.org")
        ended, anew = (
            httpx2.AsyncClient(base_url=each.issuer, transport=httpx2.ASGITransport(app=each)) for each in made
        )
        async with ended, anew:
            answer = await ended.get("/authorize", params=params)
            [code] = parse_qs(urlsplit(answer.headers["location"]).query)["code"]
            form = {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": CALLBACK,
                "code_verifier": verifier,
                "client_id": "demo-client",
                "client_secret": "s",
            }
            redeemed = await anew.post("/token", data=form)
            assert redeemed.status_code == status
            assert (await anew.post("/token", data=form)).json()["error"] == "invalid_grant"
            assert (await anew.post("/token", data=form | {"code": f"{code[:-1]}~"})).json()["error"] == "invalid_grant"

    async def test_code_expires(self, site: Site, clock: Clock) -> None:
        """A code is good for a minute."""
        code, verifier = await site.code()
        clock.ahead = timedelta(seconds=61)

        with pytest.raises(OAuthError) as refusal:
            await site.redeem(code, code_verifier=verifier)

        assert refusal.value.error == "invalid_grant"

    @pytest.mark.parametrize(
        "redirect_uri",
        [
            f"{CALLBACK}/",
            f"{CALLBACK}?next=1",
            f"{APP}/Callback",
            f"{APP}:443/callback",
            "http://app.example/callback",
            "https://app.example.evil.example/callback",
            "",
        ],
    )
    async def test_redirect_uri_must_match_exactly(self, site: Site, redirect_uri: str) -> None:
        """A near-miss is answered on the spot and never redirected to."""
        started = await site.client.create_authorization_url(redirect_uri)

        response = await site.browser.get(started["url"])

        assert response.status_code == 400
        assert "Location" not in response.headers

    async def test_token_request_names_the_same_redirect_uri(self, provider: FakeProvider, site: Site) -> None:
        """A code is bound to the redirect URI that it was sent to, even among registered ones."""
        other = f"{APP}/other"
        provider.add_client(provider.client_id, client_secret=provider.client_secret, redirect_uris=[CALLBACK, other])
        code, verifier = await site.code()

        with pytest.raises(OAuthError) as refusal:
            await site.client.fetch_access_token(redirect_uri=other, code=code, code_verifier=verifier)

        assert refusal.value.error == "invalid_grant"

    async def test_code_of_another_client(self, provider: FakeProvider, site: Site) -> None:
        """A code is redeemed by the client that it was issued to."""
        provider.add_client("second", client_secret="s" * 20, redirect_uris=[CALLBACK])
        code, verifier = await site.code()
        site.client.client_id, site.client.client_secret = "second", "s" * 20

        with pytest.raises(OAuthError) as refusal:
            await site.redeem(code, code_verifier=verifier)

        assert refusal.value.error == "invalid_grant"

    async def test_access_token_expires(self, site: Site, clock: Clock) -> None:
        """An access token lives for an hour."""
        held = await site.token()
        clock.ahead = timedelta(hours=1)

        assert (await site.userinfo(held)).status_code == 401


class TestRefresh:
    async def test_rotates(self, site: Site) -> None:
        """Each refresh gives another refresh token, and the newest one goes on working."""
        first = (await site.token())["refresh_token"]
        second = (await site.refresh(first))["refresh_token"]
        third = (await site.refresh(second))["refresh_token"]

        assert len({first, second, third}) == 3

    async def test_reuse_ends_the_grant(self, site: Site) -> None:
        """An old refresh token is invalid_grant, and takes the newest tokens with it."""
        first = (await site.token())["refresh_token"]
        renewed = await site.refresh(first)

        with pytest.raises(OAuthError) as reuse:
            await site.refresh(first)
        with pytest.raises(OAuthError) as afterwards:
            await site.refresh(renewed["refresh_token"])

        assert "invalid_grant" == reuse.value.error == afterwards.value.error
        assert (await site.userinfo(renewed)).status_code == 401

    async def test_ten_workers_at_once(self, site: Site) -> None:
        """Ten workers that refresh with one token: one succeeds, and the grant is dead afterwards."""
        token = (await site.token())["refresh_token"]

        answers = await asyncio.gather(*(site.refresh(token) for _ in range(10)), return_exceptions=True)

        (winner,) = (answer for answer in answers if isinstance(answer, dict))
        with pytest.raises(OAuthError, match="invalid_grant"):
            await site.refresh(winner["refresh_token"])

    async def test_revoked_token_is_dead_everywhere(self, provider: FakeProvider, site: Site) -> None:
        """Revocation ends the grant: introspection, userinfo and refresh all say so."""
        held = await site.token()
        async with site.oauth_client() as client:
            before = await client.introspect_token(f"{provider.issuer}/introspect", held["access_token"])
            revoked = await client.revoke_token(f"{provider.issuer}/revoke", held["refresh_token"])
            after = await client.introspect_token(f"{provider.issuer}/introspect", held["access_token"])

        assert (before.json()["active"], before.json()["sub"]) == (True, SUBJECT)
        assert revoked.status_code == 200
        assert after.json() == {"active": False}
        assert (await site.userinfo(held)).status_code == 401
        with pytest.raises(OAuthError, match="invalid_grant"):
            await site.refresh(held["refresh_token"])

    async def test_another_client_neither_sees_nor_revokes(self, provider: FakeProvider, site: Site) -> None:
        """A token is introspected and revoked by its own client; to others it is unknown."""
        provider.add_client("second", client_secret="s" * 20, redirect_uris=[])
        held = await site.token()
        site.client.client_id, site.client.client_secret = "second", "s" * 20
        async with site.oauth_client() as client:
            seen = await client.introspect_token(f"{provider.issuer}/introspect", held["refresh_token"])
            revoked = await client.revoke_token(f"{provider.issuer}/revoke", held["access_token"])

        assert seen.json() == {"active": False}
        assert revoked.status_code == 200
        assert (await site.userinfo(held)).status_code == 200

    async def test_consent_withdrawn_at_the_provider(self, provider: FakeProvider, site: Site) -> None:
        """A person who withdraws consent ends tokens and codes alike."""
        held = await site.token()
        code, verifier = await site.code()
        provider.revoke_consent(SUBJECT)

        with pytest.raises(OAuthError, match="invalid_grant"):
            await site.refresh(held["refresh_token"])
        with pytest.raises(OAuthError, match="invalid_grant"):
            await site.redeem(code, code_verifier=verifier)


class TestRestart:
    """A provider that is made anew with the secret of the one before knows its refresh tokens."""

    @staticmethod
    @asynccontextmanager
    async def made(secret: str) -> AsyncIterator[tuple[FakeProvider, Site]]:
        provider = FakeProvider(redirect_uris=[CALLBACK], client_secret="s", secret=secret)
        provider.add_account(SUBJECT, email="ada@example.org")
        provider.sign_in_as(SUBJECT)
        site = Site(provider)
        async with site.browser:
            yield provider, site

    async def test_refresh_token_outlives_it(self) -> None:
        """It works once in the new provider, and a second use ends the grant there, too."""
        async with self.made("same") as (_, before):
            held = await before.token()
        async with self.made("same") as (_, anew):
            await anew.token()
            renewed = await anew.refresh(held["refresh_token"])
            for token in (held["refresh_token"], renewed["refresh_token"]):
                with pytest.raises(OAuthError, match="invalid_grant"):
                    await anew.refresh(token)

    async def test_withdrawn_consent_counts_for_it(self) -> None:
        """A person ends a grant that the new provider has not met yet, and no later one."""
        async with self.made("same") as (_, before):
            held = await before.token()
        async with self.made("same") as (provider, anew):
            provider.revoke_consent(SUBJECT)
            later = await anew.token()
            with pytest.raises(OAuthError, match="invalid_grant"):
                await anew.refresh(held["refresh_token"])
            assert "access_token" in await anew.refresh(later["refresh_token"])

    async def test_forgery(self) -> None:
        """A token of another provider, one that was changed, and one under another name are unknown."""
        async with self.made("another") as (_, before):
            foreign = (await before.token())["refresh_token"]
        async with self.made("same") as (_, anew):
            name, _, signed = (await anew.token())["refresh_token"].partition(".")
            for token in (foreign, f"{name}.{signed[:-1]}~", f"{name}~.{signed}", name, signed):
                with pytest.raises(OAuthError, match="invalid_grant"):
                    await anew.refresh(token)


class TestPlannedFailures:
    async def test_authorization_refused(self, provider: FakeProvider, site: Site) -> None:
        """access_denied comes by redirect, with state and issuer, and once only."""
        provider.fail_next("authorize", error="access_denied", description="<b>no</b>")
        started = await site.browser.get("/login")
        answer = query_of(await site.browser.get(started.headers["Location"]))

        assert (answer["error"], answer["error_description"]) == ("access_denied", "<b>no</b>")
        assert query_of(started)["state"] == answer["state"]
        assert provider.issuer == answer["iss"]
        assert (await site.token())["userinfo"]["sub"] == SUBJECT

    async def test_token_endpoint_down(self, provider: FakeProvider, site: Site) -> None:
        """A 503 does nothing: the same refresh token works afterwards; failed calls are counted."""
        token = (await site.token())["refresh_token"]
        provider.fail_next("token", status=503, times=2)

        for _ in range(2):
            with pytest.raises(httpx2.HTTPStatusError) as failure:
                await site.refresh(token)
            assert failure.value.response.status_code == 503

        assert (await site.refresh(token))["access_token"]
        assert provider.calls["/token"] == 4

    async def test_token_endpoint_refuses(self, provider: FakeProvider, site: Site) -> None:
        """An OAuth error can be planned for any endpoint, with a status of its own."""
        provider.fail_next("token", error="temporarily_unavailable", status=429)

        assert (await site.sign_in()).json()["error"] == "temporarily_unavailable"

    async def test_lost_request(self, provider: FakeProvider, site: Site) -> None:
        """A request lost on its way has done nothing: the same refresh token works afterwards."""
        token = (await site.token())["refresh_token"]
        provider.fail_next("token", lost=Lost.REQUEST)

        with pytest.raises(httpx2.ReadError):
            await site.refresh(token)

        assert (await site.refresh(token))["access_token"]

    async def test_lost_reply(self, provider: FakeProvider, site: Site) -> None:
        """A lost answer has rotated the token: trying again is taken for theft."""
        token = (await site.token())["refresh_token"]
        provider.fail_next("token", lost=Lost.REPLY)

        with pytest.raises(httpx2.ReadError):
            await site.refresh(token)
        with pytest.raises(OAuthError, match="invalid_grant"):
            await site.refresh(token)

    async def test_lost_reply_of_a_refusal(self, provider: FakeProvider, site: Site) -> None:
        """A lost answer is lost also where it would have been an error."""
        await site.token()
        provider.fail_next("token", lost=Lost.REPLY)

        with pytest.raises(httpx2.ReadError):
            await site.refresh("unknown")

    async def test_held_request(self, provider: FakeProvider, site: Site) -> None:
        """A request waits at the provider until the test lets it go."""
        token = (await site.token())["refresh_token"]
        arrived, release = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            arrived.set()
            await release.wait()

        provider.hold_next("token", until=hold)
        refreshing = asyncio.create_task(site.refresh(token))
        async with asyncio.timeout(5):
            await arrived.wait()

        assert not refreshing.done()
        release.set()
        assert (await refreshing)["access_token"]

    def test_plans_are_checked(self, provider: FakeProvider) -> None:
        """A plan that could never happen is refused when it is made."""
        with pytest.raises(ValueError, match="unknown endpoint 'tokn'; one of configuration, jwks"):
            provider.fail_next("tokn", status=503)  # type: ignore[arg-type]  # the mistake under test
        with pytest.raises(ValueError, match="plan either lost="):
            provider.fail_next("token")
        with pytest.raises(ValueError, match="plan either lost="):
            provider.fail_next("token", status=503, lost=Lost.REPLY)
        with pytest.raises(ValueError, match="no account 'nobody'"):
            provider.sign_in_as("nobody")
        with pytest.raises(ValueError, match="already; use change_account"):
            provider.add_account(SUBJECT)


def unsigned(claims: dict[str, Any]) -> str:
    """Return a token that says of itself that it needs no signature."""
    token = jwt.encode({"alg": "HS256"}, claims, OctKey.generate_key(256))
    return "eyJhbGciOiJub25lIn0." + token.split(".")[1] + "."


class TestForgeries:
    @pytest.mark.parametrize(
        "forge",
        [
            lambda claims: claims | {"aud": "another-client"},
            lambda claims: claims | {"nonce": "another-flow"},
            lambda claims: claims | {"iss": "https://evil.example"},
            lambda claims: claims | {"exp": claims["exp"] - 7200},
            lambda claims: {name: value for name, value in claims.items() if name != "nonce"},
            lambda claims: claims | {"padding": "x" * 1_000_000},
            unsigned,
        ],
        ids=["aud", "nonce", "iss", "expired", "no nonce", "oversize", "alg none"],
    )
    async def test_id_token(
        self, provider: FakeProvider, site: Site, forge: Callable[[dict[str, Any]], dict[str, Any] | str]
    ) -> None:
        """A forged ID token reaches the client as it was forged, and Authlib refuses it; the next is good."""
        provider.forge_next_id_token(forge)

        with pytest.raises(JoseError):
            await site.sign_in()

        assert (await site.token())["userinfo"]["sub"] == SUBJECT

    async def test_header_signed_with_the_real_key(self, provider: FakeProvider, site: Site) -> None:
        """The signer takes any header, for tokens that point at a key of the attacker's."""
        evil = ECKey.generate_key("P-256").as_dict(private=False)
        header = {"jku": "https://evil.example/jwks", "jwk": dict(evil), "crit": ["x"], "x": 1}
        provider.forge_next_id_token(lambda claims: provider.signer.sign(claims, header))
        code, verifier = await site.code()

        token = await site.redeem(code, code_verifier=verifier)

        assert jwt_header(token["id_token"])["jku"] == "https://evil.example/jwks"

    async def test_answers_of_endpoints(self, provider: FakeProvider, site: Site) -> None:
        """Any answer can be rewritten once: another issuer, another person's userinfo, no ID token."""
        provider.forge_next("authorize", lambda answer: answer | {"iss": "https://evil.example"})
        provider.forge_next("token", lambda answer: answer | {"token_type": "mac"})
        provider.forge_next("userinfo", lambda answer: answer | {"sub": "other"})

        held = await site.token()

        assert held["query"]["iss"] == "https://evil.example"
        assert held["token_type"] == "mac"
        assert (await site.userinfo(held)).json()["sub"] == "other"
        assert (await site.userinfo(held)).json()["sub"] == SUBJECT

    async def test_metadata_that_lies(self) -> None:
        """A provider may claim another issuer, or send people to another provider's endpoint."""
        liar = FakeProvider(issuer="https://liar.example", metadata={"issuer": "https://idp.example"})

        metadata = await Site(liar).client.load_server_metadata()

        assert metadata["issuer"] == "https://idp.example"
        assert metadata["token_endpoint"] == "https://liar.example/token"

    async def test_rotated_key(self, provider: FakeProvider, site: Site) -> None:
        """After a key rotation Authlib fetches the keys again and goes on."""
        await site.token()
        provider.signer.rotate()

        assert (await site.token())["userinfo"]["sub"] == SUBJECT
        assert provider.calls["/jwks"] == 2


def jwt_header(token: str) -> dict[str, Any]:
    """Return the header of a token, unverified."""
    import json
    from base64 import urlsafe_b64decode

    head = token.split(".", maxsplit=1)[0]
    header: dict[str, Any] = json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    return header


class TestIsolation:
    async def test_two_providers_share_nothing(self, provider: FakeProvider, site: Site) -> None:
        """A token and a code of one provider mean nothing to another."""
        other = FakeProvider(
            issuer="https://other.example", client_secret=provider.client_secret, redirect_uris=[CALLBACK]
        )
        elsewhere = Site(other)
        code, verifier = await site.code()

        with pytest.raises(OAuthError, match="invalid_grant"):
            await elsewhere.redeem(code, code_verifier=verifier)

        assert (provider.calls["/token"], other.calls["/token"]) == (0, 1)
        assert provider.signer.public_jwks() != other.signer.public_jwks()

    def test_shows_no_secret(self, provider: FakeProvider) -> None:
        """Neither the provider's repr nor its parts' show the client's secret or a private key."""
        shown = repr(provider) + repr(vars(provider))

        assert repr(provider) == "FakeProvider(issuer='https://idp.example')"
        assert provider.client_secret not in repr(provider)
        assert provider.client_secret not in repr(provider._directory.clients)
        assert '"d"' not in shown
        assert all("d" not in key for key in provider.signer.public_jwks()["keys"])
