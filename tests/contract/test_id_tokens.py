"""A15, A16: a corpus of ID tokens that prove nothing, sent by a provider that is otherwise genuine."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Linked
from accountlink.errors import IdentityNotProven, ProviderFailed
from accountlink.testing.fake_provider import FakeProvider
from tests.support.flows import Stage, stage_on

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])

Claims = dict[str, Any]
Forgery = Callable[[FakeProvider, Claims], Claims | str]
FOREIGN: Final = ECKey.generate_key("P-256", {"kid": "key-1", "alg": "ES256"})
RSA: Final = RSAKey.generate_key(2048, {"kid": "key-1"})


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(header: Claims, claims: Claims, signature: str = "") -> str:
    return f"{b64(header)}.{b64(claims)}.{signature}"


def with_header(**header: Any) -> Forgery:
    """A token that the genuine key signed, with an odd header."""
    return lambda provider, claims: provider.signer.sign(claims, header)


def with_claims(**changed: Any) -> Forgery:
    """A token that the genuine key signed, with other claims; ``None`` takes one out."""
    return lambda provider, claims: {n: v for n, v in (claims | changed).items() if v is not None}


def public_key_as_secret(provider: FakeProvider, claims: Claims) -> str:
    """HS256 with the public key as the secret: what a verifier accepts that lets the token choose the algorithm."""
    public = json.dumps(provider.signer.public_jwks()["keys"][0])
    return jwt.encode({"alg": "HS256", "kid": "key-1"}, claims, OctKey.import_key(public), algorithms=["HS256"])


def own_key_in_header(_: FakeProvider, claims: Claims) -> str:
    header = {"alg": "ES256", "kid": "key-1", "jwk": FOREIGN.as_dict(private=False)}
    return f"{b64(header)}.{b64(claims)}." + jwt.encode({"alg": "ES256"}, claims, FOREIGN).rpartition(".")[2]


def swapped_payload(provider: FakeProvider, claims: Claims) -> str:
    head, _, signature = provider.signer.sign(claims, {}).split(".")
    return f"{head}.{b64(claims | {'sub': 'victim'})}.{signature}"


def flipped_bit(provider: FakeProvider, claims: Claims) -> str:
    head, payload, signature = provider.signer.sign(claims, {}).split(".")
    return f"{head}.{payload}.{'B' if signature[0] != 'B' else 'C'}{signature[1:]}"


CORPUS: Final[dict[str, Forgery]] = {
    # the signature
    "none": lambda _, claims: unsigned({"alg": "none"}, claims),
    "None": lambda _, claims: unsigned({"alg": "None"}, claims),
    "none with a kid": lambda _, claims: unsigned({"alg": "none", "kid": "key-1"}, claims, "x"),
    "no algorithm": lambda _, claims: unsigned({"kid": "key-1"}, claims, "x"),
    "empty signature": lambda provider, claims: provider.signer.sign(claims, {}).rpartition(".")[0] + ".",
    "public key as a secret": public_key_as_secret,
    "another key": lambda _, claims: jwt.encode({"alg": "ES256", "kid": "key-1"}, claims, FOREIGN),
    "another key and kid": lambda _, claims: jwt.encode({"alg": "ES256", "kid": "key-9"}, claims, FOREIGN),
    "another kind of key": lambda _, claims: jwt.encode({"alg": "RS256", "kid": "key-1"}, claims, RSA),
    "key in the header": own_key_in_header,
    "swapped payload": swapped_payload,
    "flipped bit": flipped_bit,
    "unknown crit": with_header(crit=["exp-policy"], **{"exp-policy": "x"}),
    "crit without its member": with_header(crit=["b64x"]),
    "a kid of another type": with_header(kid=7),
    # whose it is
    "another issuer": with_claims(iss="https://evil.example"),
    "issuer with a slash": with_claims(iss="https://acme.example/"),
    "issuer in a list": with_claims(iss=["https://acme.example"]),
    "no issuer": with_claims(iss=None),
    "another audience": with_claims(aud="another-client"),
    "another audience, our azp": with_claims(aud="another-client", azp="demo-client"),
    "our audience, another azp": with_claims(azp="another-client"),
    "no audience": with_claims(aud=None),
    "empty audience": with_claims(aud=[]),
    "audience of another type": with_claims(aud={"demo-client": True}),
    "audience in other letters": with_claims(aud="Demo-Client"),
    # which flow
    "another nonce": with_claims(nonce="x" * 43),
    "no nonce": with_claims(nonce=None),
    "empty nonce": with_claims(nonce=""),
    "nonce in a list": lambda _, claims: claims | {"nonce": [claims["nonce"]]},
    "access token's hash of another": with_claims(at_hash="x" * 22),
    # when
    "expired": with_claims(exp=int(time.time()) - 3_600),
    "no expiry": with_claims(exp=None),
    "expiry as text": with_claims(exp="tomorrow"),
    "from the future": with_claims(iat=int(time.time()) + 86_400),
    "not yet": with_claims(nbf=int(time.time()) + 3_600),
    "no time of issue": with_claims(iat=None),
    # who
    "no subject": with_claims(sub=None),
    "empty subject": with_claims(sub=""),
    "subject of another type": with_claims(sub={"id": 1}),
    "subject as a number": with_claims(sub=7),
    # the form
    "not a token": lambda _, __: "not a token",
    "two parts": lambda _, claims: unsigned({"alg": "ES256"}, claims).rstrip("."),
    "five parts": lambda _, claims: unsigned({"alg": "dir", "enc": "A256GCM"}, claims, "x.y.z"),
    "a list": lambda provider, _: f"{b64({'alg': 'ES256', 'kid': 'key-1'})}.{b64([1])}.x",
    "not JSON": lambda provider, _: f"{b64(b'{')}.{b64(b'{')}.x",
    "deeply nested": lambda provider, _: f"{b64(b'[' * 50_000)}.{b64(b'[' * 50_000)}.x",
    "a large header": with_header(padding="x" * 5_000),
    "a large payload": with_claims(padding="x" * 150_000),
}


def with_member(member: Claims, told: Claims) -> Claims:
    return {name: value for name, value in told.items() if name != "id_token"} | member


async def sent(engine: AsyncEngine, forgery: Forgery) -> tuple[Stage, Any]:
    """Go to the provider, which answers with the forged token."""
    stage = await stage_on(engine)
    started = await stage.start(1)
    parameters = await stage.consent(started.url)
    stage.provider.forge_next_id_token(lambda claims: forgery(stage.provider, claims))
    return stage, stage.finish(started, parameters)


@pytest.mark.parametrize("name", CORPUS)
async def test_an_id_token_that_proves_nothing_is_refused(engine: AsyncEngine, name: str) -> None:
    """A15, A16: one error for all, and nothing is linked."""
    stage, finishing = await sent(engine, CORPUS[name])
    with pytest.raises(IdentityNotProven) as raised:
        await finishing
    assert raised.value.__cause__ is None
    assert [] == await stage.rows()


GOOD: Final[dict[str, Forgery]] = {
    "unchanged": with_claims(),
    "audience in a list": with_claims(aud=["demo-client"]),
    "several audiences, our azp": with_claims(aud=["demo-client", "api"], azp="demo-client"),
    "a clock that is half a minute behind": with_claims(iat=int(time.time()) + 30),
    "an unknown member in the header": with_header(vendor="x"),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_token_in_another_form_is_accepted(engine: AsyncEngine, name: str) -> None:
    """So that the corpus fails for its own reasons."""
    _, finishing = await sent(engine, GOOD[name])
    assert isinstance((await finishing).outcome, Linked)


async def test_a_response_without_an_id_token_proves_nothing(engine: AsyncEngine) -> None:
    """OpenID Connect Core 1.0, section 3.1.3.3: the ID token is required."""
    for id_token in ({}, {"id_token": 7}, {"id_token": ""}, {"id_token": None}):
        stage = await stage_on(engine)
        started = await stage.start(1)
        parameters = await stage.consent(started.url)
        stage.provider.forge_next("token", partial(with_member, id_token))
        with pytest.raises(IdentityNotProven):
            await stage.finish(started, parameters)


async def test_keys_that_were_rotated_are_fetched_once(engine: AsyncEngine) -> None:
    """A provider signs with a new key at any time; the flow asks for its keys again, once."""
    stage = await stage_on(engine)
    await stage.connect()
    stage.provider.signer.rotate()
    assert isinstance((await stage.connect()).outcome, Linked)
    assert 2 == stage.provider.calls["/jwks"]
    await stage.connect()
    assert 2 == stage.provider.calls["/jwks"]


async def test_a_tenants_token_counts_for_accepted_tenants_only(engine: AsyncEngine) -> None:
    """A06, A38: with tenants, a token's issuer is that of its own tenant, and the tenant is an accepted one."""
    template = "https://{tenantid}.example"
    for tenant, accepted in (("acme", True), ("evil", False), (None, False)):
        stage = await stage_on(engine, oidc_options={"issuer": template, "tenants": ["acme"]})
        stage.provider.forge_next("configuration", lambda document: document | {"issuer": template})
        changed = {"tid": tenant, "iss": f"https://{tenant}.example"}
        stage.provider.forge_next_id_token(partial(with_claims(**changed), stage.provider))
        started = await stage.start(1)
        finishing = stage.finish(started, await stage.consent(started.url))
        if accepted:
            assert isinstance((await finishing).outcome, Linked)
            continue
        with pytest.raises(IdentityNotProven):
            await finishing


@pytest.mark.parametrize("kid", ["the-key", None], ids=["the id of the old one", "no id"])
async def test_a_new_key_that_looks_like_the_old_one_is_fetched_once(engine: AsyncEngine, kid: str | None) -> None:
    """A provider whose keys have no ids of their own must not stop working for an hour when it gets a new one."""
    stage = await stage_on(engine)
    kept = {} if kid is None else {"kid": kid}

    def named(keys: Claims) -> Claims:
        return {"keys": [{name: value for name, value in keys["keys"][-1].items() if name != "kid"} | kept]}

    def signed(claims: Claims) -> str:
        header = {"alg": "ES256"} | kept
        return jwt.encode(header, claims, ECKey.import_key(stage.provider.signer._keys[-1].as_dict(private=True)))

    for asked in (1, 2):
        stage.provider.forge_next("jwks", named)
        stage.provider.forge_next_id_token(signed)
        assert isinstance((await stage.connect()).outcome, Linked)
        assert asked == stage.provider.calls["/jwks"]
        stage.provider.signer.rotate()
    forged = ECKey.generate_key("P-256")
    stage.provider.forge_next("jwks", named)
    stage.provider.forge_next_id_token(lambda claims: jwt.encode({"alg": "ES256"} | kept, claims, forged))
    with pytest.raises(IdentityNotProven):
        await stage.connect()


OTHERS: Final[dict[str, object]] = {
    "another type": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "other"},
    "no type": {"kid": "other"},
    "a curve that is not known": {"kty": "EC", "crv": "brainpoolP256r1", "x": "AA", "y": "AA", "kid": "other"},
    "members that are missing": {"kty": "RSA", "kid": "other"},
    "a number for an id": {"kty": "RSA", "n": "u" * 342, "e": "AQAB", "kid": 5},
    "a use of another kind": {"kty": "RSA", "n": "u" * 342, "e": "AQAB", "use": ["sig"], "kid": "other"},
    "no key": None,
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_key_that_is_not_understood_is_left_out(engine: AsyncEngine, name: str) -> None:
    """RFC 7517, section 5: a provider may publish a key of a new kind beside the one that it signs with."""
    stage = await stage_on(engine)
    stage.provider.forge_next("jwks", lambda given: {"keys": [OTHERS[name], *given["keys"]]})
    assert isinstance((await stage.connect()).outcome, Linked)


@pytest.mark.parametrize("keys", [[], [{"kty": "AKP", "kid": "key-1"}], None, "key-1", 7, {"kty": "EC"}])
async def test_without_a_key_nobody_is_believed(engine: AsyncEngine, keys: object) -> None:
    """A15: a set without a key that can be used is a failure of the provider, and proves nothing."""
    stage = await stage_on(engine)
    stage.provider.forge_next("jwks", lambda _: {"keys": keys})
    with pytest.raises(ProviderFailed):
        await stage.connect()
    assert [] == await stage.rows()
