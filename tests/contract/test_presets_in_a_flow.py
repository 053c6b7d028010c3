"""Each preset in a whole flow, against a network that gives its provider's documented answers."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Linked
from accountlink.errors import IdentityNotProven, ProviderFailed, ProviderMismatch
from accountlink.providers import Provider
from tests.support.documented import APPLE_KEY, DOCUMENTED, ENTRA_CLAIMS, OTHER_TENANT, Documented
from tests.support.flows import CALLBACK, Stage, stage_on

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])
each_documented = pytest.mark.parametrize("name", list(DOCUMENTED))

KEY: Final = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
OF_ANOTHER_FLOW: Final = frozenset({"nonce", "exp", "iat", "nbf", "aud", "azp", "at_hash", "c_hash"})
"""Claims that belong to the flow of the documentation's example."""
DISCOVERED: Final[Mapping[str, tuple[str, str]]] = {
    "google": ("https://accounts.google.com/o/oauth2/v2/auth", "https://oauth2.googleapis.com/token"),
    "entra": ("https://login.microsoftonline.com/t/authorize", "https://login.microsoftonline.com/t/token"),
    "gitlab": ("https://gitlab.com/oauth/authorize", "https://gitlab.com/oauth/token"),
    "slack": ("https://slack.com/openid/connect/authorize", "https://slack.com/api/openid.connect.token"),
    "oidc": ("https://server.example.com/authorize", "https://server.example.com/token"),
}
"""The authorization and the token endpoint that a discovery document tells."""


class Network:
    """Answer as the documentation of one provider shows it."""

    def __init__(self, name: str, provider: Provider | None = None) -> None:
        self.documented: Final[Documented] = DOCUMENTED[name]
        self.provider: Final = provider or self.documented.provider
        self.claims: dict[str, Any] = dict(self.documented.claims)
        self.token: dict[str, Any] = dict(self.documented.token)
        self.token_status = 200
        self.refused: set[str] = set()
        self.asked: list[httpx2.Request] = []
        self.nonce = ""
        found = DISCOVERED.get(name)
        self.authorization = self.provider.authorization_endpoint or (found or ("", ""))[0]
        self.token_endpoint = self.provider.token_endpoint or (found or ("", ""))[1]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        url = str(request.url)
        if url in self.refused:
            return httpx2.Response(404, json={"message": "Not Found"})
        if url == self.provider.metadata_url:
            return httpx2.Response(200, json=self.discovery())
        if url == self.token_endpoint and request.method == "POST":
            return httpx2.Response(self.token_status, json=self.token_response())
        if url in (self.provider.jwks_uri, "https://keys.example/keys"):
            return httpx2.Response(200, json=KeySet([KEY]).as_dict(private=False))
        if url == "https://userinfo.example/userinfo":
            return httpx2.Response(200, json=self.documented.documents["userinfo"])
        for name, address in self.provider.requests.items():
            if url == address:
                return httpx2.Response(200, json=self.documented.documents[name])
        raise AssertionError(f"nobody documents a request to {request.url.host}{request.url.path}")

    def discovery(self) -> dict[str, object]:
        return {
            "issuer": self.provider.issuer,
            "authorization_endpoint": self.authorization,
            "token_endpoint": self.token_endpoint,
            "jwks_uri": "https://keys.example/keys",
            "userinfo_endpoint": "https://userinfo.example/userinfo",
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def token_response(self) -> dict[str, Any]:
        if not self.provider.id_token or "error" in self.token:
            return self.token
        kept = {name: claim for name, claim in self.claims.items() if name not in OF_ANOTHER_FLOW}
        now = int(time.time())
        own = {"aud": self.provider.client.client_id, "nonce": self.nonce, "iat": now, "exp": now + 300}
        return {**self.token, "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, {**kept, **own}, KEY)}

    def to(self, address: str) -> list[httpx2.Request]:
        """The requests that went to an address."""
        return [request for request in self.asked if str(request.url) == address]

    async def stage(self, engine: AsyncEngine) -> Stage:
        """A flow with this provider alone."""
        return await stage_on(engine, slugs=(), providers=[self.provider], transport=httpx2.MockTransport(self))


async def through(stage: Stage, network: Network, change: Callable[[dict[str, str]], Any] = lambda _: None) -> Any:
    """Begin a flow, let the provider send the browser back with a code, and end the flow."""
    slug = network.provider.slug
    started = await stage.start(1, slug)
    asked = dict(parse_qsl(urlsplit(started.url).query))
    network.nonce = asked.get("nonce", "")
    back = {"code": "the-code", "state": asked["state"]}
    change(back)
    finished = await stage.finish(started, back, 1, slug)
    return finished.outcome


@each_documented
async def test_the_documented_answers_link_the_account(engine: AsyncEngine, name: str) -> None:
    """A flow with a provider's documented answers stores the stable id, and asks nobody else for anything."""
    network = Network(name)
    stage = await network.stage(engine)
    outcome = await through(stage, network)
    assert isinstance(outcome, Linked)
    assert network.documented.account_id == outcome.account.account_id
    (row,) = await stage.rows()
    assert (network.provider.slug, network.documented.account_id) == (row["provider"], row["account_id"])


@each_documented
async def test_what_the_browser_is_sent_with(engine: AsyncEngine, name: str) -> None:
    """The provider is asked with PKCE, with its own redirect URI and with the scopes of the preset."""
    network = Network(name)
    stage = await network.stage(engine)
    url = urlsplit((await stage.start(1, network.provider.slug)).url)
    asked = dict(parse_qsl(url.query))
    assert network.authorization == f"{url.scheme}://{url.netloc}{url.path}"
    assert f"{CALLBACK}/{network.provider.slug}" == asked["redirect_uri"]
    assert ("code", "S256") == (asked["response_type"], asked["code_challenge_method"])
    assert set(network.provider.scopes) == set(asked["scope"].split())
    assert network.provider.id_token == ("nonce" in asked)
    assert ("form_post" if name == "apple" else None) == asked.get("response_mode")
    assert ("offline" if name == "google" else None) == asked.get("access_type")
    assert "prompt" not in asked


@each_documented
async def test_how_the_client_authenticates(engine: AsyncEngine, name: str) -> None:
    """The secret goes where the provider documents it, in the body, or in the header for OpenID Connect's default."""
    network = Network(name)
    await through(await network.stage(engine), network)
    (request,) = network.to(network.token_endpoint)
    form = parse_qs(request.content.decode())
    assert [["authorization_code"], ["the-code"]] == [form["grant_type"], form["code"]]
    assert "code_verifier" in form
    if name == "oidc":
        expected = base64.b64encode(b"the-client:the-client-secret").decode()
        assert f"Basic {expected}" == request.headers["authorization"]
        assert "client_secret" not in form
        return
    assert [network.provider.client.client_id] == form["client_id"]
    assert "authorization" not in request.headers
    (secret,) = form["client_secret"]
    if name == "apple":
        assert (
            "com.example.services"
            == jwt.decode(secret, ECKey.import_key(APPLE_KEY), algorithms=["ES256"]).claims["sub"]
        )
    else:
        assert "the-client-secret" == secret


async def test_github_is_asked_as_its_documentation_says(engine: AsyncEngine) -> None:
    """Both requests carry the token in a header, and name the version of the API."""
    network = Network("github")
    await through(await network.stage(engine), network)
    for address in network.provider.requests.values():
        (request,) = network.to(address)
        assert f"Bearer {network.token['access_token']}" == request.headers["authorization"]
        assert ("application/vnd.github+json", "2022-11-28") == (
            request.headers["accept"],
            request.headers["x-github-api-version"],
        )


async def test_github_refuses_the_addresses(engine: AsyncEngine) -> None:
    """Without the right to read addresses the account is linked without one."""
    network = Network("github")
    network.refused.add(network.provider.requests["emails"])
    stage = await network.stage(engine)
    assert "1" == (await through(stage, network)).account.account_id
    (row,) = await stage.rows()
    assert row["email"] is None


@pytest.mark.parametrize(("scope", "stored"), [("", []), ("repo,gist", ["gist", "repo"]), (None, ["user:email"])])
async def test_the_scopes_that_github_granted(engine: AsyncEngine, scope: str | None, stored: list[str]) -> None:
    """A GitHub App lists no scope, an OAuth app separates them by commas; only an answer without a list means all."""
    network = Network("github")
    network.token = {key: value for key, value in network.token.items() if key != "scope"}
    network.token |= {} if scope is None else {"scope": scope}
    stage = await network.stage(engine)
    await through(stage, network)
    (row,) = await stage.rows()
    assert stored == sorted((row["scopes"] or "").split())


@pytest.mark.parametrize(
    ("name", "status", "answer"),
    [
        # docs.github.com, "Troubleshooting OAuth app access token request errors"
        ("github", 200, {"error": "bad_verification_code", "error_description": "The code passed is incorrect."}),
        ("github", 200, {"error": "unverified_user_email", "error_description": "The user must have a primary email."}),
        # docs.slack.dev/reference/methods/openid.connect.token
        ("slack", 200, {"ok": False, "error": "invalid_code"}),
        # developers.facebook.com/docs/graph-api/guides/error-handling: the error is an object
        ("meta", 400, {"error": {"message": "This code has expired.", "type": "OAuthException", "code": 100}}),
        # learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow, "Error response"
        ("entra", 400, {"error": "invalid_grant", "error_description": "AADSTS70000", "error_codes": [70000]}),
        ("apple", 400, {"error": "invalid_client"}),
    ],
)
async def test_a_token_endpoint_that_refuses(
    engine: AsyncEngine, name: str, status: int, answer: dict[str, Any]
) -> None:
    """An error is an error, also with status 200 or as an object, and nothing is linked."""
    network = Network(name)
    network.token, network.token_status = answer, status
    stage = await network.stage(engine)
    with pytest.raises(ProviderFailed):
        await through(stage, network)
    assert [] == await stage.rows()


@pytest.mark.parametrize("iss", ["https://github.com", "https://github.com/login/oauth/", "https://attacker.example"])
async def test_another_issuer_than_github_s_is_refused(engine: AsyncEngine, iss: str) -> None:
    """A callback that names another issuer is refused before the code goes to GitHub."""
    network = Network("github")
    stage = await network.stage(engine)
    with pytest.raises(ProviderMismatch):
        await through(stage, network, lambda back: back.update(iss=iss))
    assert [] == network.asked


async def test_github_names_itself(engine: AsyncEngine) -> None:
    """The issuer that GitHub sends since April 2026 is accepted."""
    network = Network("github")
    outcome = await through(
        await network.stage(engine), network, lambda back: back.update(iss="https://github.com/login/oauth")
    )
    assert isinstance(outcome, Linked)


@pytest.mark.parametrize(
    "claims",
    [
        {"tid": OTHER_TENANT, "iss": f"https://login.microsoftonline.com/{OTHER_TENANT}/v2.0"},
        {"tid": OTHER_TENANT},
        {"iss": f"https://login.microsoftonline.com/{OTHER_TENANT}/v2.0"},
        {"tid": None},
    ],
    ids=repr,
)
async def test_another_tenant_than_the_accepted_one(engine: AsyncEngine, claims: dict[str, object]) -> None:
    """A06, A38: all tenants share Microsoft's keys, so a token of another tenant has a good signature and no effect."""
    network = Network("entra")
    network.claims = {**ENTRA_CLAIMS, **claims}
    stage = await network.stage(engine)
    with pytest.raises(IdentityNotProven):
        await through(stage, network)
    assert [] == await stage.rows()


@pytest.mark.parametrize("name", ["google", "entra", "slack", "gitlab"])
async def test_what_the_id_token_tells_is_not_asked_again(engine: AsyncEngine, name: str) -> None:
    """Where the ID token has all that a preset reads, userinfo is not asked."""
    network = Network(name)
    await through(await network.stage(engine), network)
    assert [] == network.to("https://userinfo.example/userinfo")
