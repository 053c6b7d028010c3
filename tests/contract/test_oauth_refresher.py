"""OAuth's refresh tokens, redeemed at the built-in provider and at answers of every shape."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import warnings
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]  # Authlib ships no types
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwt
from joserfc.jwk import import_key

from accountlink import ConfigurationError, TokenSet
from accountlink.providers import OAuthClient, RefreshBehaviour, oidc
from accountlink.providers.conversation import Line
from accountlink.testing.fake_provider import FakeProvider, Lost
from accountlink.vault.answers import TokenAnswer, failure_of, retry_moment
from accountlink.vault.oauth import OAuthRefresher
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, RenewalFailed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = timedelta(seconds=5)
OLD = TokenSet(access_token="access-0", refresh_token="refresh-0", client="web")


def client(**fields: Any) -> OAuthClient:
    given: dict[str, Any] = {
        "name": "web",
        "client_id": "id",
        "client_secret": "client-canary",
        "token_endpoint": "https://provider.example/token",
    }
    return OAuthClient(**(given | fields))


def refresher(
    answer: Callable[[httpx2.Request], httpx2.Response], *clients: OAuthClient, **options: Any
) -> OAuthRefresher:
    return OAuthRefresher({"acme": clients or [client()]}, transport=httpx2.MockTransport(answer), **options)


ANSWERS: dict[str, tuple[int, dict[str, str], dict[str, Any] | str, type[RenewalFailed] | None]] = {
    "success": (200, {}, {"access_token": "a", "expires_in": 60}, None),
    "invalid_grant as 400": (400, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_grant as 403": (403, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_grant as 200": (200, {}, {"error": "bad_refresh_token"}, GrantEnded),
    "invalid_grant as 500": (500, {}, {"error": "invalid_grant"}, GrantEnded),
    "invalid_client": (401, {}, {"error": "invalid_client"}, ClientRefused),
    "unauthorized_client": (400, {}, {"error": "unauthorized_client"}, ClientRefused),
    "invalid_scope": (400, {}, {"error": "invalid_scope"}, ClientRefused),
    "an opaque 400": (400, {}, "no", ProviderUnavailable),
    "an unknown code": (400, {}, {"error": "E1234"}, ProviderUnavailable),
    "without access_token": (200, {}, {"token_type": "Bearer"}, ProviderUnavailable),
    "503": (503, {}, "", ProviderUnavailable),
    "429": (429, {"Retry-After": "120"}, "", ProviderUnavailable),
    "an opaque 401": (401, {}, {}, ProviderUnavailable),
    "an opaque 403": (403, {}, {"error": 5}, ProviderUnavailable),
    "a 400 with Retry-After": (400, {"Retry-After": "5"}, "no", ProviderUnavailable),
    "a redirect": (302, {"Location": "https://other.example/"}, "", ProviderUnavailable),
    "404": (404, {}, "<html>no</html>", ProviderUnavailable),
    "407": (407, {}, {"error": "proxy"}, ProviderUnavailable),
    "408": (408, {}, "", ProviderUnavailable),
    "a page with 200": (200, {"Content-Type": "text/html"}, "<html>maintenance</html>", ProviderUnavailable),
    "nothing with 200": (200, {}, "", ProviderUnavailable),
    "a 500 with a token": (500, {}, {"access_token": "a"}, ProviderUnavailable),
    "a token in a redirect": (307, {}, {"access_token": "a"}, ProviderUnavailable),
    "slow_down beside a token": (200, {}, {"access_token": "a", "error": "slow_down"}, ProviderUnavailable),
}
OPAQUE = {"an opaque 400", "an opaque 401", "an opaque 403", "an unknown code", "without access_token"}
"""The answers after which, five in a row, a grant counts as ended."""


@pytest.mark.parametrize("name", ANSWERS)
async def test_each_answer_is_read_by_its_code(name: str) -> None:
    status, headers, body, expected = ANSWERS[name]

    def answer(_request: httpx2.Request) -> httpx2.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return httpx2.Response(status, headers={"Content-Type": "application/json"} | headers, text=text)

    renewing = refresher(answer).renew("acme", OLD, deadline=DEADLINE)
    if expected is None:
        assert "a" == (await renewing).access_token.reveal()
        return
    with pytest.raises(expected) as raised:
        await renewing
    if isinstance(raised.value, ProviderUnavailable):
        assert (name in OPAQUE) is raised.value.opaque
        assert not raised.value.uncertain


FULL: dict[str, Any] = {"access_token": "a", "refresh_token": "r", "expires_in": 60, "scope": "mail files", "url": "u"}
"""The members of a whole answer."""
NAN, INF = float("nan"), float("inf")


def beside(member: str, *values: object, **differs: object) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Cases in which a member has one of these values, and the tokens differ from those of a whole answer so."""
    return {f"{member} {value!r:.20}": ({member: value}, differs) for value in values}


STRANGE = {
    **beside("expires_in", "", "never", "3600s", "nan", 2**63 - 1, 1e300, [60], expires_at=None),
    **beside("expires_in", {}, NAN, INF, True, None, expires_at=None),
    **beside("expires_in", "10**4999", expires_at=None),
    **beside("expires_at", "2026-01-01T01:00:00Z", 1_767_225_600_000, "", None, [1], NAN, 1_767_229_200),
    "expires_at alone": ({"expires_in": "", "expires_at": "1767225600"}, {"expires_at": NOW}),
    **beside("token_type", 3, "", None, ["Bearer"], "Bea\0rer"),
    **beside("id_token", 3, "", None, {}, "\0"),
    **beside("refresh_token", 3, "", None, ["r"], "\0", refresh_token=None),
    **beside("scope", 3, "", None, {}, ["mail", 3], "a\0b", [None], scopes=set()),
    **beside("scope", ["mail", "files"], "mail,files"),
    **beside("url", [1], None, {}, 1.5, False, "\ud800", extra={}),
    **beside("url", 7, extra={"url": "7"}),
    **beside("error", None, "", False, 0, "none", {}),
}
"""What stands beside an access token, and how the tokens then differ from those of a whole answer."""


@pytest.mark.parametrize("name", STRANGE)
async def test_a_token_is_kept_whatever_stands_beside_it(name: str) -> None:
    """The former refresh token may be spent: no strange member costs the answer, and none replaces what is stored."""
    strange, differs = STRANGE[name]
    text = json.dumps(FULL | strange).replace('"10**4999"', "9" * 5_000)
    renewer = refresher(lambda _: httpx2.Response(200, text=text), extra={"acme": ["url"]}, clock=lambda: NOW)
    new = await renewer.renew("acme", OLD, deadline=DEADLINE)
    assert {
        "access_token": "a",
        "refresh_token": "r",
        "expires_at": NOW + timedelta(minutes=1),
        "scopes": {"mail", "files"},
        "token_type": "Bearer",
        "id_token": None,
        "extra": {"url": "u"},
    } | differs == {
        "access_token": new.access_token.reveal(),
        "refresh_token": new.refresh_token and new.refresh_token.reveal(),
        "expires_at": new.expires_at,
        "scopes": new.scopes,
        "token_type": new.token_type,
        "id_token": new.id_token,
        "extra": {name: each.reveal() for name, each in new.extra.items()},
    }


@pytest.mark.parametrize("retry_after", ["5", "soon", "", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"])
async def test_a_token_is_kept_beside_retry_after(retry_after: str) -> None:
    answer = httpx2.Response(201, json={"access_token": "a"}, headers={"Retry-After": retry_after})
    assert "a" == (await refresher(lambda _: answer).renew("acme", OLD, deadline=DEADLINE)).access_token.reveal()


@pytest.mark.parametrize("token", [5, None, "", ["a"], "a\0", "\ud800"])
async def test_an_answer_without_a_usable_token_is_no_success(token: object) -> None:
    answer = httpx2.Response(200, text=json.dumps(FULL | {"access_token": token}))
    with pytest.raises(ProviderUnavailable) as raised:
        await refresher(lambda _: answer).renew("acme", OLD, deadline=DEADLINE)
    assert (True, token is not None) == (raised.value.opaque, raised.value.uncertain)


async def test_a_token_is_kept_beside_text_in_another_code() -> None:
    body = '{"access_token": "a", "name": "Zoë"}'.encode("latin-1")
    tokens = await refresher(lambda _: httpx2.Response(200, content=body)).renew("acme", OLD, deadline=DEADLINE)
    assert "a" == tokens.access_token.reveal()


@pytest.mark.parametrize("name", ["application/x-www-form-urlencoded", "Application/X-WWW-Form-URLEncoded;charset=x"])
@pytest.mark.parametrize("body", ["access_token=a&expires_in=60", '{"access_token": "a"}'])
async def test_a_form_is_read_too(name: str, body: str) -> None:
    """GitHub answers with a form unless it is asked for JSON; a body in JSON is read whatever its type says."""
    form = httpx2.Response(200, headers={"Content-Type": name}, text=body)
    tokens = await refresher(lambda _: form).renew("acme", OLD, deadline=DEADLINE)
    assert "a" == tokens.access_token.reveal()


async def test_what_is_sent() -> None:
    """The refresh token goes in the body, once, to the address of its own client."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"access_token": "a", "instance_url": "https://eu1", "other": "x"})

    other = client(name="app", token_endpoint="https://provider.example/other", auth_method="client_secret_post")
    renewer = refresher(answer, client(), other, extra={"acme": ["instance_url"]})
    new = await renewer.renew("acme", OLD, deadline=DEADLINE)
    assert (["instance_url"], "web", None) == (list(new.extra), new.client, new.expires_at)
    await renewer.renew("acme", TokenSet(access_token="a", refresh_token="refresh-1", client="app"), deadline=DEADLINE)
    first, second = seen
    assert ("/token", "/other") == (first.url.path, second.url.path)
    assert b"grant_type=refresh_token&refresh_token=refresh-0" == first.content
    assert first.headers["Authorization"].startswith("Basic ")
    assert b"client_secret=client-canary" in second.content
    assert "Authorization" not in second.headers


@pytest.mark.parametrize(
    "coding",
    ["identity", "Identity", "none", "UTF-8", "", "gzip", "GZIP", "x-gzip", "identity, gzip", "bomb", "br", "zip"],
)
async def test_a_body_is_read_by_its_coding(coding: str) -> None:
    """A body that is compressed unasked is read up to the same size; a strange name stands for no coding."""
    text = b'{"access_token": "a"}'
    body = gzip.compress(text + b" " * (10**6 if coding == "bomb" else 0)) if "z" in coding.lower() else text
    name = {"bomb": "gzip", "zip": "br"}.get(coding, coding)

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    answer = httpx2.Response(200, content=parts(), headers={"Content-Encoding": name})
    renewing = refresher(lambda _: answer).renew("acme", OLD, deadline=DEADLINE)
    if name == "br" or coding == "bomb":
        with pytest.raises(ProviderUnavailable) as raised:
            await renewing
        assert raised.value.uncertain
    else:
        assert "a" == (await renewing).access_token.reveal()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_that_is_not_as_compressed_as_it_says(coding: str) -> None:
    answer = httpx2.Response(200, stream=httpx2.ByteStream(b"{}"), headers={"Content-Encoding": coding})
    with pytest.raises(ProviderUnavailable) as raised:
        await refresher(lambda _: answer).renew("acme", OLD, deadline=DEADLINE)
    assert raised.value.uncertain


ISSUER = "https://provider.example"
DOCUMENTS: dict[str, tuple[int, Any, bool]] = {
    "right": (200, {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}, True),
    "of another issuer": (200, {"issuer": "https://other.example", "token_endpoint": f"{ISSUER}/token"}, False),
    "of no issuer": (200, {"token_endpoint": f"{ISSUER}/token"}, False),
    "with a failure": (500, {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}, False),
    "in a redirect": (302, {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}, False),
    "without an address": (200, {"issuer": ISSUER}, False),
    "with null": (200, {"issuer": ISSUER, "token_endpoint": None}, False),
    "no document": (200, ["token_endpoint"], False),
}


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_a_discovery_document_is_the_providers_own(name: str) -> None:
    """Another one cannot lead the refresh token elsewhere; nothing has happened to the grant then."""
    status, document, is_right = DOCUMENTS[name]

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            return httpx2.Response(status, json=document)
        assert is_right
        return httpx2.Response(200, json={"access_token": "a"})

    provider = oidc("acme", issuer=ISSUER, client_id="id", client_secret="s")
    renewer = OAuthRefresher.of([provider], transport=httpx2.MockTransport(answer))
    renewing = renewer.renew("acme", TokenSet(access_token="a", refresh_token="r"), deadline=DEADLINE)
    if is_right:
        assert "a" == (await renewing).access_token.reveal()
        return
    with pytest.raises(ProviderUnavailable) as raised:
        await renewing
    assert (False, False) == (raised.value.uncertain, raised.value.opaque)


@pytest.mark.parametrize("late", ["discovery", "token"])
async def test_only_a_slow_answer_of_the_token_endpoint_is_uncertain(late: str) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        if (request.method == "GET") is (late == "discovery"):
            await asyncio.sleep(5)
        return httpx2.Response(200, json={"token_endpoint": f"{ISSUER}/token"})

    registered = client(token_endpoint=None, metadata_url=f"{ISSUER}/.well-known/openid-configuration")
    renewer = OAuthRefresher({"acme": [registered]}, transport=httpx2.MockTransport(answer))
    with pytest.raises(ProviderUnavailable) as raised:
        await renewer.renew("acme", OLD, deadline=timedelta(milliseconds=300))
    assert (late == "token") is raised.value.uncertain


# -- how the client authenticates -------------------------------------------------------------------------------------


def asked() -> Callable[[httpx2.Request], httpx2.Response]:
    """A provider that must not be asked."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        pytest.fail(f"{request.url} was asked")

    return answer


async def coroutine() -> str:
    return "s"


@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyError, TypeError, httpx2.ReadTimeout, TimeoutError])
async def test_an_error_of_the_function_for_the_secret_is_the_applications(error: type[Exception]) -> None:
    """Nothing was sent, so the error says nothing about the grant, and reaches the application as it is."""
    planned = error("the key management service is away")

    def secret() -> str:
        raise planned

    with pytest.raises(error) as raised:
        await refresher(asked(), client(client_secret=secret)).renew("acme", OLD, deadline=DEADLINE)
    assert planned is raised.value


@pytest.mark.parametrize("made", [b"canary", None, 5, "", " ", coroutine, "\ud800canary"])
async def test_a_function_for_the_secret_returns_text(made: object) -> None:
    def secret() -> Any:
        return coroutine() if made is coroutine else made

    with pytest.raises(ConfigurationError, match="'web' returned") as raised:
        await refresher(asked(), client(client_secret=secret)).renew("acme", OLD, deadline=DEADLINE)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("secret", "sent"),
    [("plain-._~", "plain-._~"), ("a+b", "a%2Bb"), ("p%40ss+word/x=", "p%2540ss%2Bword%2Fx%3D"), ("ü :", "%C3%BC+%3A")],
)
async def test_basic_authentication_is_form_encoded(secret: str, sent: str) -> None:
    """RFC 6749, section 2.3.1: at the refresh and at the exchange of a code."""
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode())
        return httpx2.Response(200, json={"access_token": "a"})

    registered = client(client_id="i:d", client_secret=secret)
    await refresher(answer, registered).renew("acme", OLD, deadline=DEADLINE)
    await redeemed(answer, registered)
    assert [f"i%3Ad:{sent}"] * 2 == seen


async def redeemed(answer: Callable[[httpx2.Request], httpx2.Response], registered: OAuthClient) -> None:
    """Exchange a code, as a flow does."""
    async with Line(httpx2.MockTransport(answer)).open(registered) as talk:
        await talk.redeem("https://provider.example/token", code="c", redirect_uri="https://app.example", verifier="v")


def pem(key: Any) -> str:
    """A private key, as its file has it."""
    written: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return written.decode()


def public(key: Any) -> str:
    """A public key, as its file has it."""
    written: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return written.decode()


KEYS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_private_key_signs_by_its_own_algorithm(algorithm: str) -> None:
    """The assertion names the client and the token endpoint (RFC 7523), for a refresh and for a code."""
    key = KEYS[algorithm]()
    seen: list[dict[str, str]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert int(request.headers["Content-Length"]) == len(request.content)
        seen.append(dict(parse_qsl(request.content.decode())))
        return httpx2.Response(200, json={"access_token": "a"})

    registered = client(client_secret=pem(key), auth_method="private_key_jwt")
    await refresher(answer, registered).renew("acme", OLD, deadline=DEADLINE)
    await redeemed(answer, client(client_secret=lambda: pem(key), auth_method="private_key_jwt"))
    assert ["refresh_token", "authorization_code"] == [form["grant_type"] for form in seen]
    for form in seen:
        assert "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" == form["client_assertion_type"]
        with warnings.catch_warnings(action="ignore"):  # joserfc warns of the name EdDSA
            read = jwt.decode(form["client_assertion"], import_key(public(key)), algorithms=[algorithm])
        assert algorithm == read.header["alg"]
        assert ["id", "id", "https://provider.example/token"] == [read.claims[name] for name in ("iss", "sub", "aud")]
        assert "client_secret" not in form


BAD_KEYS: dict[str, Callable[[], str]] = {
    "no key": lambda: "canary",
    "P-384": lambda: pem(ec.generate_private_key(ec.SECP384R1())),
    "X25519": lambda: pem(x25519.X25519PrivateKey.generate()),
    "a public key": lambda: public(ed25519.Ed25519PrivateKey.generate()),
    "half a key": lambda: pem(ed25519.Ed25519PrivateKey.generate())[:-60],
}


@pytest.mark.parametrize("name", BAD_KEYS)
async def test_a_key_that_cannot_sign_is_refused(name: str) -> None:
    """At once if it is text, and before anything is sent if a function returns it."""
    key = BAD_KEYS[name]()
    with pytest.raises(ConfigurationError, match="P-256"):
        client(client_secret=key, auth_method="private_key_jwt")
    late = client(client_secret=lambda: key, auth_method="private_key_jwt")
    with pytest.raises(ConfigurationError, match="P-256") as raised:
        await refresher(asked(), late).renew("acme", OLD, deadline=DEADLINE)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "uncertain"), [(httpx2.ConnectError("no"), False), (httpx2.ReadTimeout("slow"), True)]
)
async def test_a_lost_answer_is_told_from_a_request_that_was_not_sent(error: Exception, uncertain: bool) -> None:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        raise error

    with pytest.raises(ProviderUnavailable) as raised:
        await refresher(answer).renew("acme", OLD, deadline=DEADLINE)
    assert (uncertain, False) == (raised.value.uncertain, raised.value.opaque)


@pytest.mark.parametrize("then", ["works", "ends"])
async def test_a_lost_answer_is_asked_for_again_within_a_grace_period(then: str) -> None:
    asked: list[str] = []

    def answer(_request: httpx2.Request) -> httpx2.Response:
        asked.append("once")
        if len(asked) == 1:
            raise httpx2.RemoteProtocolError("the line is cut")
        ended = httpx2.Response(400, json={"error": "invalid_grant"})
        return ended if then == "ends" else httpx2.Response(200, json={"access_token": "a"})

    patient = client(behaviour=RefreshBehaviour(rotates=True, grace=timedelta(seconds=30)))
    renewing = refresher(answer, patient).renew("acme", OLD, deadline=DEADLINE)
    if then == "works":
        assert "a" == (await renewing).access_token.reveal()
    else:
        with pytest.raises(GrantEnded) as raised:
            await renewing
        assert "lost_in_refresh" == raised.value.provider_code
    assert 2 == len(asked)


def test_the_right_client_or_none() -> None:
    renewer = refresher(lambda _: httpx2.Response(200), client(), client(name="app"))
    assert renewer.can_renew("acme", OLD)
    assert not renewer.can_renew("acme", TokenSet(access_token="a"))
    for tokens in (
        TokenSet(access_token="a", refresh_token="r"),
        TokenSet(access_token="a", refresh_token="r", client="x"),
    ):
        with pytest.raises(ConfigurationError, match="knows"):
            renewer.can_renew("acme", tokens)
    with pytest.raises(ConfigurationError, match="address"):
        OAuthRefresher({"acme": [client(token_endpoint=None)]})
    provider = oidc("acme", issuer="https://provider.example", client_id="id", client_secret="s")
    assert OAuthRefresher.of([provider]).can_renew("acme", TokenSet(access_token="a", refresh_token="r"))


def test_retry_after() -> None:
    """Seconds or a date, at most an hour, and nothing that is neither."""
    assert NOW + timedelta(seconds=7) == retry_moment("7", now=NOW)
    assert NOW + timedelta(minutes=1) == retry_moment("Thu, 01 Jan 2026 00:01:00 GMT", now=NOW)
    assert NOW + timedelta(hours=1) == retry_moment("999999999999", now=NOW)
    assert NOW == retry_moment("Wed, 31 Dec 2025 00:00:00 GMT", now=NOW)
    assert [None] * 4 == [
        retry_moment(text, now=NOW) for text in (None, "soon", "-1", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT")
    ]
    failed = failure_of(TokenAnswer(status=503, retry_after="60", members={}), now=NOW)
    assert isinstance(failed, ProviderUnavailable)
    assert NOW + timedelta(minutes=1) == failed.retry_at


# -- at the built-in provider -----------------------------------------------------------------------------------------


class AtProvider:
    """A user's grant at the built-in provider, obtained by its own code."""

    def __init__(self, **options: Any) -> None:
        self.fake = FakeProvider(redirect_uris=["https://app.example/callback"], **options)
        self.fake.add_account("sub-1", email="ann@example.com")
        self.fake.sign_in_as("sub-1")
        self.transport = httpx2.ASGITransport(app=self.fake)
        registered = OAuthClient(
            client_id=self.fake.client_id,
            client_secret=self.fake.client_secret,
            metadata_url=self.fake.server_metadata_url,
        )
        self.refresher = OAuthRefresher({"acme": [registered]}, transport=self.transport)

    async def tokens(self) -> TokenSet:
        """Obtain tokens by a code."""
        verifier = "v" * 43
        async with httpx2.AsyncClient(transport=self.transport, base_url=self.fake.issuer) as browser:
            asked = {
                "response_type": "code",
                "client_id": self.fake.client_id,
                "redirect_uri": "https://app.example/callback",
                "scope": "openid offline_access",
                "code_challenge": create_s256_code_challenge(verifier),
                "code_challenge_method": "S256",
            }
            back = await browser.get("/authorize", params=asked)
            code = dict(parse_qsl(urlsplit(back.headers["Location"]).query))["code"]
            answer = await browser.post(
                "/token",
                data={
                    "grant_type": "authorization_code",
                    "code": code,
                    "redirect_uri": "https://app.example/callback",
                    "code_verifier": verifier,
                },
                auth=(self.fake.client_id, self.fake.client_secret),
            )
        return TokenSet.from_response(answer.json(), received_at=datetime.now(UTC))

    async def renewed(self, tokens: TokenSet) -> TokenSet:
        return await self.refresher.renew("acme", tokens, deadline=DEADLINE)


async def test_a_rotating_provider_is_asked_with_the_newest_token() -> None:
    """Each renewal gives a new refresh token, and the address comes from the discovery document, once."""
    at = AtProvider()
    first = await at.tokens()
    second = await at.renewed(first)
    third = await at.renewed(second)
    assert 3 == len({tokens.refresh_token for tokens in (first, second, third)})
    assert 1 == at.fake.calls["/.well-known/openid-configuration"]
    with pytest.raises(GrantEnded) as raised:
        await at.renewed(first)
    assert "invalid_grant" == raised.value.provider_code
    with pytest.raises(GrantEnded):
        await at.renewed(third)


async def test_a_provider_that_does_not_rotate_sends_no_refresh_token() -> None:
    at = AtProvider(behaviour=RefreshBehaviour(rotates=False))
    first = await at.tokens()
    for _ in range(2):
        assert (await at.renewed(first)).refresh_token is None


async def test_a_spent_token_works_within_the_grace() -> None:
    at = AtProvider(behaviour=RefreshBehaviour(rotates=True, grace=timedelta(minutes=1)))
    first = await at.tokens()
    assert (await at.renewed(first)).access_token != (await at.renewed(first)).access_token


async def test_plans_of_the_built_in_provider() -> None:
    """A provider that is told to fail does so in each form, and the grant lives."""
    at = AtProvider()
    tokens = await at.tokens()
    at.fake.fail_next("token", status=429, retry_after="30")
    with pytest.raises(ProviderUnavailable) as raised:
        await at.renewed(tokens)
    assert raised.value.retry_at is not None
    at.fake.fail_next("token", status=403, error="invalid_grant")
    with pytest.raises(GrantEnded):
        await at.renewed(tokens)
    at.fake.fail_next("token", lost=Lost.REQUEST)
    with pytest.raises(ProviderUnavailable) as raised:
        await at.renewed(tokens)
    assert raised.value.uncertain
    at.fake.forge_next("token", lambda answer: {**answer, "expires_in": None})
    assert (await at.renewed(tokens)).expires_at is None
