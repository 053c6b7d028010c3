"""Run the protocol with one provider: where it answers, the way there, and the checks of what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri  # type: ignore[import-untyped]  # Authlib ships no types
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]  # likewise
from joserfc.jwk import KeySet

from accountlink.errors import ConfigurationError, IdentityNotProven, ProviderFailed, ProviderMismatch
from accountlink.providers.addresses import check_address
from accountlink.providers.conversation import Conversation, Line
from accountlink.providers.provider import Evidence, EvidenceMissing, Provider, Userinfo
from accountlink.values.credentials import TokenSet
from accountlink.values.identity import ProviderIdentity
from accountlink.web.id_tokens import UnknownKey, checked_claims, issuers, key_set

FRESH: Final = timedelta(hours=1)
"""The time for which a discovery document and a set of keys are used without asking again."""
_ASKED_BY: Final = {"email": "email", "profile": "name"}
"""The claim that a scope asks for (OpenID Connect Core 1.0, section 5.4)."""
_NO_DOCUMENT: Final = (403, 404)
"""The statuses by which a provider says that it tells nothing here."""


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
        line: Opens conversations with it.
        clock: Returns the present moment, aware.
        keeps_extra: Whether the tokens are to have the client's name and the provider's extra members, which only a
            vault stores.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        redirect_uri: str,
        line: Line,
        clock: Callable[[], datetime],
        keeps_extra: bool = False,
    ) -> None:
        self._beside: Final[dict[str, Any]] = (
            {"extra": provider.extra, "client": provider.client.name} if keeps_extra else {}
        )
        self.provider: Final = provider
        self.redirect_uri: Final = redirect_uri
        self._line = line
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
        if self.provider.issuer is None or iss in issuers(self.provider):
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
        async with self._line.open(self.provider.client) as talk:
            received = await talk.redeem(endpoints.token, code=code, redirect_uri=self.redirect_uri, verifier=verifier)
            moment = self._clock()
            claims: Mapping[str, Any] = {}
            if self.provider.id_token:
                claims = await self._claims(talk, endpoints, received, nonce=nonce)
            documents = await self._documents(talk, endpoints, received, claims, scopes)
        evidence = Evidence(claims=claims, documents=documents)
        try:
            identity = self.provider.identity(evidence)
        except EvidenceMissing:
            raise IdentityNotProven from None
        told = {name: value for name, value in received.items() if name != "expires_at" or "expires_in" not in received}
        if told.get("scope") is None:  # an empty text means that nothing was granted (GitHub Apps)
            told["scope"] = list(scopes)
        return Proof(identity=identity, tokens=TokenSet.from_response(told, received_at=moment, **self._beside))

    async def _claims(
        self, talk: Conversation, endpoints: Endpoints, received: Mapping[str, Any], *, nonce: str
    ) -> dict[str, Any]:
        """Return the claims of the ID token; ask for the keys once more if the provider has a new one."""

        def checked(keys: KeySet) -> dict[str, Any]:
            return checked_claims(
                received.get("id_token"),
                keys,
                provider=self.provider,
                algorithms=endpoints.algorithms,
                nonce=nonce,
                access_token=received["access_token"],
                now=self._clock(),
            )

        try:
            if (known := self._keys) is not None and self._clock() - known[1] < FRESH:
                return checked(known[0])
        except UnknownKey:
            pass
        try:
            return checked(await self._fresh_keys(talk, endpoints))
        except UnknownKey:
            raise IdentityNotProven from None

    async def _fresh_keys(self, talk: Conversation, endpoints: Endpoints) -> KeySet:
        if endpoints.keys is None:
            raise ProviderFailed(step="keys")
        keys = key_set(await talk.document(endpoints.keys, step="keys"))
        if keys is None:
            raise ProviderFailed(step="keys")
        self._keys = (keys, self._clock())
        return keys

    # -- documents ----------------------------------------------------------------------------------------------------

    async def _documents(
        self,
        talk: Conversation,
        endpoints: Endpoints,
        received: Mapping[str, Any],
        claims: Mapping[str, Any],
        scopes: tuple[str, ...],
    ) -> dict[str, Any]:
        """Ask for the profile with the access token."""
        headers = {**self.provider.request_headers, "Authorization": f"Bearer {received['access_token']}"}
        documents: dict[str, Any] = {}
        if endpoints.userinfo is not None and self._needs_userinfo(claims, scopes):
            told = await talk.document(endpoints.userinfo, step="profile", headers=headers)
            # OpenID Connect Core 1.0, section 5.3.2: the answer is about another account otherwise.
            if not isinstance(told, dict) or (claims and told.get("sub") != claims["sub"]):
                raise IdentityNotProven
            documents["userinfo"] = told
        for name, address in self.provider.requests.items():
            without = _NO_DOCUMENT if name in self.provider.optional_requests else ()
            found = await talk.document(address, step="profile", headers=headers, without=without)
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
            async with self._line.open() as talk:
                document = await talk.document(provider.metadata_url, step="discovery")
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
