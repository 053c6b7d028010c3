"""Talk to one provider: its discovery document, its token endpoint, its keys and its profile.

Authlib speaks OAuth, and joserfc checks signatures. Each answer is bounded in size and in time. No error holds text
that the provider wrote.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from accountlink.errors import ConfigurationError, IdentityNotProven, ProviderFailed, ProviderMismatch
from accountlink.extras import explained
from accountlink.providers.provider import Evidence, EvidenceMissing, Provider, Userinfo, check_address
from accountlink.values.credentials import TokenSet
from accountlink.values.identity import ProviderIdentity

try:
    import httpx2
    from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]  # Authlib ships no types
    from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]  # likewise
    from authlib.oauth2.rfc6749.parameters import prepare_grant_uri  # type: ignore[import-untyped]  # likewise
    from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]  # likewise
    from authlib.oidc.core import CodeIDToken  # type: ignore[import-untyped]  # likewise
    from joserfc import jwt
    from joserfc.errors import InvalidKeyIdError, JoseError
    from joserfc.jwk import KeySet
    from joserfc.jws import JWSRegistry
except ModuleNotFoundError as missing:
    raise explained("accountlink.web", missing) from None

LARGEST: Final = 262_144
"""Bytes of a provider's answer; a discovery document or a set of keys has a tenth of that."""
DEADLINE: Final = timedelta(seconds=20)
"""The time in which all of a provider's answers of one flow must have come."""
FRESH: Final = timedelta(hours=1)
"""How long a discovery document and a set of keys are used without asking again."""
LEEWAY: Final = 60
"""Seconds that the provider's clock may differ from ours."""
_UNREACHED: Final = (httpx2.HTTPError, httpx2.InvalidURL, AuthlibBaseError, ValueError, TypeError, RecursionError)
"""The errors of a request whose answer did not come, or is not what it should be."""
_INVALID: Final = (JoseError, AuthlibBaseError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""The errors of a token that is not what it should be."""
_ASKED_BY: Final = {"email": "email", "profile": "name"}
"""The claim that a scope asks for (OpenID Connect Core 1.0, section 5.4)."""
_NO_DOCUMENT: Final = (403, 404)
"""The statuses by which a provider says that it tells nothing here."""
_TENANT: Final = "{tenantid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoints:
    """Hold where a provider answers, from its discovery document or from its description.

    Attributes:
        authorization: The address that the browser is sent to.
        token: The address that the code goes to.
        keys: The address of the signing keys.
        userinfo: The address of userinfo.
        promises_iss: Whether each authorization response has the ``iss`` parameter of RFC 9207.
        algorithms: The accepted signature algorithms.
    """

    authorization: str
    token: str
    keys: str | None
    userinfo: str | None
    promises_iss: bool
    algorithms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Hold what a finished flow proves.

    Attributes:
        identity: The identity that the provider vouched for.
        tokens: The tokens that came with it.
    """

    identity: ProviderIdentity
    tokens: TokenSet


class Exchange:
    """Run the requests of flows with one provider.

    Args:
        provider: The provider.
        redirect_uri: The provider's own redirect URI.
        transport: Replaces the network, for tests. It stays open.
        clock: Returns the present moment, aware.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        redirect_uri: str,
        transport: httpx2.AsyncBaseTransport | None,
        clock: Callable[[], datetime],
    ) -> None:
        self.provider: Final = provider
        self.redirect_uri: Final = redirect_uri
        self._transport = None if transport is None else _StaysOpen(transport)
        self._verify = httpx2.create_ssl_context() if transport is None else False
        self._clock = clock
        self._endpoints: tuple[Endpoints, datetime] | None = None
        self._keys: tuple[KeySet, datetime] | None = None

    # -- the user leaves ----------------------------------------------------------------------------------------------

    async def authorization_url(
        self, *, state: str, nonce: str, verifier: str, scopes: tuple[str, ...], consent: Mapping[str, str]
    ) -> str:
        """Return the address to which the browser is sent.

        Args:
            state: The flow's state.
            nonce: The flow's nonce.
            verifier: The PKCE verifier, of which only the S256 challenge is sent.
            scopes: The scopes to ask for.
            consent: Parameters that force the consent screen, if that is wanted.

        Raises:
            ProviderFailed: The discovery document cannot be had.
        """
        endpoints = await self.endpoints()
        parameters = {**self.provider.authorize_parameters, **consent}
        if self.provider.id_token:
            parameters["nonce"] = nonce
        if self.provider.form_post:
            parameters["response_mode"] = "form_post"
        url = prepare_grant_uri(
            endpoints.authorization,
            client_id=self.provider.client.client_id,
            response_type="code",
            redirect_uri=self.redirect_uri,
            scope=" ".join(scopes) or None,
            state=state,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
            **parameters,
        )
        return str(url)

    # -- the user comes back ------------------------------------------------------------------------------------------

    async def check_issuer(self, iss: str | None) -> None:
        """Refuse an answer that another issuer sent, before its code goes anywhere.

        Raises:
            ProviderFailed: The discovery document cannot be had.
            ProviderMismatch: Another issuer, or none where the provider promises to name itself.

        Source: RFC 9207, section 2.4.
        """
        endpoints = await self.endpoints()
        if iss is None and not endpoints.promises_iss:
            return
        if self.provider.issuer is None or iss in self._issuers():
            return
        raise ProviderMismatch

    async def prove(self, *, code: str, verifier: str, nonce: str, scopes: tuple[str, ...]) -> Proof:
        """Exchange the code, and check everything that comes back.

        Args:
            code: The authorization code.
            verifier: The PKCE verifier.
            nonce: The nonce that the ID token must hold.
            scopes: The scopes that were asked for; they count as granted if the answer does not list them.

        Raises:
            ProviderFailed: An endpoint refuses, cannot be reached, is too slow, or answers with too much.
            IdentityNotProven: The ID token or the profile is not valid for this flow.
            InvalidIdentity: The provider's id of the account is not one that can be stored.
            InvalidCredentials: The tokens are not ones that can be stored.
        """
        endpoints = await self.endpoints()
        async with self._client() as client:
            received = await self._redeemed(client, endpoints, code=code, verifier=verifier)
            moment = self._clock()
            claims: Mapping[str, Any] = {}
            if self.provider.id_token:
                claims = await self._claims(client, endpoints, received, nonce=nonce)
            documents = await self._documents(client, endpoints, received, claims, scopes)
        evidence = Evidence(claims=claims, documents=documents)
        try:
            identity = self.provider.identity(evidence)
        except EvidenceMissing:
            raise IdentityNotProven from None
        told = {name: value for name, value in received.items() if name != "expires_at" or "expires_in" not in received}
        if not told.get("scope"):
            told["scope"] = list(scopes)
        return Proof(identity=identity, tokens=TokenSet.from_response(told, received_at=moment))

    async def _redeemed(
        self, client: AsyncOAuth2Client, endpoints: Endpoints, *, code: str, verifier: str
    ) -> dict[str, Any]:
        """Return the token response (RFC 6749, section 4.1.3; RFC 7636, section 4.5)."""
        async with _step("token"):
            received: dict[str, Any] = await client.fetch_token(
                endpoints.token,
                grant_type="authorization_code",
                code=code,
                redirect_uri=self.redirect_uri,
                code_verifier=verifier,
            )
        token = received.get("access_token")
        if not isinstance(token, str) or not token:
            raise ProviderFailed(step="token")
        return received

    # -- the ID token -------------------------------------------------------------------------------------------------

    async def _claims(
        self, client: AsyncOAuth2Client, endpoints: Endpoints, received: Mapping[str, Any], *, nonce: str
    ) -> dict[str, Any]:
        """Return the claims of the ID token, once all of OpenID Connect Core 1.0, section 3.1.3.7, is checked."""
        raw = received.get("id_token")
        if not isinstance(raw, str):
            raise IdentityNotProven
        registry = JWSRegistry(algorithms=endpoints.algorithms, strict_check_header=False)
        keys = await self._known_keys(client, endpoints)
        try:
            try:
                token = jwt.decode(raw, keys, registry=registry)
            except InvalidKeyIdError:  # the provider has a new key
                token = jwt.decode(raw, await self._known_keys(client, endpoints, anew=True), registry=registry)
            issuer = self._issuer_for(token.claims)
            CodeIDToken(
                token.claims,
                token.header,
                {
                    "iss": {"essential": True, "value": issuer},
                    # Authlib alone lets another audience pass when the token's azp names this client.
                    "aud": {"essential": True, "value": self.provider.client.client_id},
                    "nonce": {"essential": True, "value": nonce},
                },
                {
                    "nonce": nonce,
                    "client_id": self.provider.client.client_id,
                    "access_token": received["access_token"],
                },
            ).validate(now=int(self._clock().timestamp()), leeway=LEEWAY)
        except _INVALID:
            raise IdentityNotProven from None
        subject = token.claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise IdentityNotProven
        return dict(token.claims)

    def _issuer_for(self, claims: Mapping[str, Any]) -> str:
        """Return the issuer that a token must have; with tenants, that of its own accepted tenant.

        Source: Microsoft identity platform, "Validate the issuer": a tenant vouches for its own accounts only.
        """
        issuer = str(self.provider.issuer)
        if not self.provider.tenants:
            return issuer
        tenant = claims.get("tid")
        if not isinstance(tenant, str) or tenant not in self.provider.tenants:
            raise IdentityNotProven
        return issuer.replace(_TENANT, tenant)

    def _issuers(self) -> set[str]:
        issuer = str(self.provider.issuer)
        return {issuer.replace(_TENANT, tenant) for tenant in self.provider.tenants} or {issuer}

    async def _known_keys(self, client: AsyncOAuth2Client, endpoints: Endpoints, *, anew: bool = False) -> KeySet:
        known = self._keys
        if known is not None and not anew and self._clock() - known[1] < FRESH:
            return known[0]
        if endpoints.keys is None:
            raise ProviderFailed(step="keys")
        document = await _document(client, endpoints.keys, step="keys")
        try:
            keys = KeySet.import_key_set(document)
        except _INVALID:
            raise ProviderFailed(step="keys") from None
        self._keys = (keys, self._clock())
        return keys

    # -- documents ----------------------------------------------------------------------------------------------------

    async def _documents(
        self,
        client: AsyncOAuth2Client,
        endpoints: Endpoints,
        received: Mapping[str, Any],
        claims: Mapping[str, Any],
        scopes: tuple[str, ...],
    ) -> dict[str, Any]:
        """Ask for the profile with the access token."""
        headers = {**self.provider.request_headers, "Authorization": f"Bearer {received['access_token']}"}
        documents: dict[str, Any] = {}
        if endpoints.userinfo is not None and self._needs_userinfo(claims, scopes):
            told = await _document(client, endpoints.userinfo, step="profile", headers=headers)
            # OpenID Connect Core 1.0, section 5.3.2: the answer is about another account otherwise.
            if not isinstance(told, dict) or (claims and told.get("sub") != claims["sub"]):
                raise IdentityNotProven
            documents["userinfo"] = told
        for name, address in self.provider.requests.items():
            without = _NO_DOCUMENT if name in self.provider.optional_requests else ()
            found = await _document(client, address, step="profile", headers=headers, without=without)
            if found is not None:
                documents[name] = found
        return documents

    def _needs_userinfo(self, claims: Mapping[str, Any], scopes: tuple[str, ...]) -> bool:
        if self.provider.userinfo is Userinfo.NEVER:
            return False
        return any(claim not in claims for scope, claim in _ASKED_BY.items() if scope in scopes)

    # -- discovery ----------------------------------------------------------------------------------------------------

    async def endpoints(self) -> Endpoints:
        """Return the endpoints, from the provider's description or from its discovery document.

        Raises:
            ProviderFailed: The document cannot be had, or lacks an endpoint.
            ProviderMismatch: It is the document of another issuer.

        Source: OpenID Connect Discovery 1.0, section 4.3 (the document's issuer is the one that was configured).
        """
        provider = self.provider
        known = self._endpoints
        if known is not None and self._clock() - known[1] < FRESH:
            return known[0]
        told: dict[str, Any] = {}
        if provider.metadata_url is not None:
            async with self._client() as client:
                document = await _document(client, provider.metadata_url, step="discovery")
            if not isinstance(document, dict) or document.get("issuer") != provider.issuer:
                raise ProviderMismatch
            told = document
        supported = told.get("id_token_signing_alg_values_supported")
        listed = supported if isinstance(supported, list) else provider.algorithms
        try:
            endpoints = Endpoints(
                authorization=provider.authorization_endpoint or told["authorization_endpoint"],
                token=provider.token_endpoint or told["token_endpoint"],
                keys=provider.jwks_uri or told.get("jwks_uri"),
                userinfo=provider.userinfo_endpoint or told.get("userinfo_endpoint"),
                promises_iss=provider.iss_parameter
                or told.get("authorization_response_iss_parameter_supported") is True,
                algorithms=tuple(name for name in provider.algorithms if name in listed),
            )
            for name in ("authorization", "token", "keys", "userinfo"):
                check_address(getattr(endpoints, name), field=name)
        except (KeyError, ConfigurationError):
            raise ProviderFailed(step="discovery") from None
        needed = [endpoints.authorization, endpoints.token]
        if None in needed or (provider.id_token and not (endpoints.keys and endpoints.algorithms)):
            raise ProviderFailed(step="discovery")
        self._endpoints = (endpoints, self._clock())
        return endpoints

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncOAuth2Client]:
        """Open a client for one flow, so that no connection outlives its event loop and no token stays in memory."""
        registered = self.provider.client
        async with AsyncOAuth2Client(
            registered.client_id,
            registered.secret(),
            token_endpoint_auth_method=registered.auth_method,
            code_challenge_method="S256",
            transport=self._transport,
            verify=self._verify,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bounded]},
            timeout=DEADLINE.total_seconds() / 2,
        ) as client:
            yield client


@asynccontextmanager
async def _step(name: str) -> AsyncIterator[None]:
    """Turn each way in which a request can fail into one error, without what the provider wrote."""
    try:
        async with asyncio.timeout(DEADLINE.total_seconds()):
            yield
    except (*_UNREACHED, TimeoutError):
        raise ProviderFailed(step=name) from None


async def _document(
    client: AsyncOAuth2Client,
    address: str,
    *,
    step: str,
    headers: Mapping[str, str] | None = None,
    without: Collection[int] = (),
) -> Any:  # what JSON can hold, or None for a status that means that there is no document
    async with _step(step):
        answer = await client.request("GET", address, withhold_token=True, headers=headers)
        if answer.status_code in without:
            return None
        if answer.status_code != httpx2.codes.OK:
            raise ProviderFailed(step=step)
        return json.loads(answer.content)


class _StaysOpen(httpx2.AsyncBaseTransport):
    """Pass requests on to a transport that somebody else opened and will close."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)


class _Bounded(httpx2.AsyncByteStream):
    """Break off a body that is too large."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LARGEST
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx2.ReadError("the provider's answer is too large")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bounded(response: httpx2.Response) -> None:
    """Bound the body of an answer before it is read; a compressed one could grow without a bound."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.DecodingError("the provider compressed its answer, which it was asked not to")
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Bounded(response.stream)
