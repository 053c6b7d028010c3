"""Send a flow's requests to one provider, each answer bounded in size, and all of them in time."""

from __future__ import annotations

import asyncio
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from accountlink.errors import ConfigurationError, ProviderFailed
from accountlink.extras import explained
from accountlink.providers.addresses import check_address
from accountlink.providers.authentication import Authentication, authentication_of
from accountlink.providers.client import OAuthClient
from accountlink.values.secrecy import Secret

try:
    import httpx2
    from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]  # Authlib ships no types
    from authlib.integrations.httpx_client import AsyncOAuth2Client  # type: ignore[import-untyped]  # likewise
except ModuleNotFoundError as missing:
    raise explained("accountlink.web", missing) from None

LARGEST: Final = 262_144
"""Bytes of a provider's answer; a discovery document or a set of keys has a tenth of that."""
DEADLINE: Final = timedelta(seconds=20)
"""The time in which all answers of one provider to one flow must have come."""
_UNREACHED: Final = (
    httpx2.HTTPError, httpx2.InvalidURL, AuthlibBaseError, ValueError, TypeError, OverflowError, RecursionError,
)  # fmt: skip
"""The errors of a request whose answer did not come, or is not what it should be."""


_NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
"""The errors of a request that did not leave this machine."""

_GZIP: Final = frozenset({"gzip", "x-gzip"})
_FOREIGN: Final = frozenset({"br", "compress", "deflate", "x-compress", "zstd"})
"""The codings of bodies that can be read, and of those that cannot. Any other name stands for no coding."""


class Conversation:
    """Send the requests of one flow. No error holds text that the provider wrote.

    Args:
        client: Authlib's client of one registration.
        ends: The moment of the event loop's clock at which the last answer must have come.
    """

    def __init__(self, client: AsyncOAuth2Client, *, ends: float) -> None:
        self._client = client
        self._ends = ends

    async def redeem(self, address: str, *, code: str, redirect_uri: str, verifier: str) -> dict[str, Any]:
        """Exchange a code for a token response.

        Raises:
            ProviderFailed: The provider refuses, cannot be reached, or sends no access token.

        Source: RFC 6749, section 4.1.3; RFC 7636, section 4.5.
        """
        async with self._step("token"):
            received: dict[str, Any] = await self._client.fetch_token(
                address,
                grant_type="authorization_code",
                code=code,
                redirect_uri=redirect_uri,
                code_verifier=verifier,
            )
        token = received.get("access_token")
        if not isinstance(token, str) or not token:
            raise ProviderFailed(step="token")
        return received

    async def document(
        self, address: str, *, step: str, headers: Mapping[str, str] | None = None, without: Collection[int] = ()
    ) -> Any:  # what JSON can hold
        """Fetch a JSON document.

        Args:
            address: Its address.
            step: The step of the flow, for errors.
            headers: The request's headers.
            without: Statuses that mean that there is no such document.

        Returns:
            The document, or ``None`` if there is none.

        Raises:
            ProviderFailed: Another status than 200, no JSON, too much of it, or no answer in time.
        """
        async with self._step(step):
            answer = await self._client.request("GET", address, withhold_token=True, headers=headers)
            if answer.status_code in without:
                return None
            if answer.status_code != httpx2.codes.OK:
                raise ProviderFailed(step=step)
            return json.loads(answer.content)

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        """Turn each way in which a request can fail into one error, without what the provider wrote."""
        try:
            async with asyncio.timeout_at(self._ends):
                yield
        except (*_UNREACHED, TimeoutError):
            raise ProviderFailed(step=name) from None


class Line:
    """Open conversations with one provider.

    Args:
        transport: Replaces the network, for tests. It stays open.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport | None) -> None:
        self._transport = None if transport is None else _StaysOpen(transport)
        self._verify: ssl.SSLContext | bool = httpx2.create_ssl_context() if transport is None else False

    @asynccontextmanager
    async def open(self, registered: OAuthClient | None = None) -> AsyncIterator[Conversation]:
        """Open a conversation for one flow: no connection outlives its event loop, and no token stays in memory.

        Args:
            registered: The registration that redeems a code; ``None`` for what needs none.
        """
        how = Authentication() if registered is None else authentication_of(registered)
        async with AsyncOAuth2Client(
            None if registered is None else registered.client_id,
            how.secret,
            token_endpoint_auth_method=how.method,
            transport=self._transport,
            verify=self._verify,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bounded]},
            timeout=DEADLINE.total_seconds(),
        ) as client:
            client.register_compliance_hook("access_token_response", _granted)
            yield Conversation(client, ends=asyncio.get_running_loop().time() + DEADLINE.total_seconds())


class Unreached(Exception):
    """Raised when a request did not reach the provider, so that nothing can have happened there."""


class LostAnswer(Exception):
    """Raised when a request may have reached the provider, and its answer did not come."""


class _Came(Exception):
    """Raised to hand on an answer before Authlib reads it: what it refuses may be stored."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__()
        self.response = response


def _came(response: httpx2.Response) -> httpx2.Response:
    raise _Came(response)


class TokenLine:
    """Send requests for new tokens to providers, and hand on each answer as it came.

    Args:
        transport: Replaces the network, for tests. It stays open.

    Attributes:
        issuers: The issuer that a discovery document must name, by the document's address, where that is known
            (OpenID Connect Discovery 1.0, section 4.3).
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport | None) -> None:
        self._transport = None if transport is None else _StaysOpen(transport)
        self._verify: ssl.SSLContext | bool = httpx2.create_ssl_context() if transport is None else False
        self.issuers: Final[dict[str, str]] = {}
        self._endpoints: Final[dict[str, str]] = {}

    async def refresh(
        self, registered: OAuthClient, refresh_token: Secret, *, ends: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Redeem a refresh token, and return the status, the headers and the body of the answer.

        Args:
            registered: The registration that the token was issued to.
            refresh_token: The token.
            ends: The moment of the event loop's clock at which the answer must have come.

        Raises:
            Unreached: The request did not reach the provider.
            LostAnswer: It may have, and no answer came in time.
            ConfigurationError: The client's secret cannot be used.
            Exception: Whatever the application's function for the secret raises. Nothing was sent then.

        Source: RFC 6749, section 6.
        """
        how = authentication_of(registered)
        endpoint = None
        try:
            async with asyncio.timeout_at(ends), self._opened(registered, how) as client:
                endpoint = await self._endpoint(client, registered)
                client.register_compliance_hook("refresh_token_response", _came)
                await client.refresh_token(endpoint, refresh_token=refresh_token.reveal(), auth=None)
        except _Came as answer:
            came = answer.response
            return came.status_code, came.headers, came.content
        except (Unreached, *_NEVER_SENT):
            raise Unreached from None
        except (*_UNREACHED, TimeoutError):
            raise (Unreached if endpoint is None else LostAnswer) from None
        raise LostAnswer  # which does not happen: the hook raises

    async def _endpoint(self, client: AsyncOAuth2Client, registered: OAuthClient) -> str:
        """Return the address of the token endpoint, which a discovery document may have to name first."""
        if registered.token_endpoint is not None:
            return registered.token_endpoint
        address = str(registered.metadata_url)
        if address not in self._endpoints:
            try:
                answer = await client.request("GET", address, withhold_token=True)
                document = json.loads(answer.content)
                found = document["token_endpoint"]
                check_address(found, field="token_endpoint")
                is_right = answer.status_code == httpx2.codes.OK and found is not None
                if not is_right or document.get("issuer") != self.issuers.get(address, document.get("issuer")):
                    raise Unreached
            except (*_UNREACHED, KeyError, ConfigurationError):
                raise Unreached from None
            self._endpoints[address] = str(found)
        return self._endpoints[address]

    @asynccontextmanager
    async def _opened(self, registered: OAuthClient, how: Authentication) -> AsyncIterator[AsyncOAuth2Client]:
        """Open a client for one request: no connection outlives its event loop, and no token stays in memory."""
        async with AsyncOAuth2Client(
            registered.client_id,
            how.secret,
            token_endpoint_auth_method=how.method,
            transport=self._transport,
            verify=self._verify,
            headers={"Accept-Encoding": "identity", "Accept": "application/json"},
            event_hooks={"response": [_bounded]},
            timeout=DEADLINE.total_seconds(),
        ) as client:
            yield client


class _StaysOpen(httpx2.AsyncBaseTransport):
    """Pass requests on to a transport that the application opened and will close."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)


class _Bounded(httpx2.AsyncByteStream):
    """Break off a body that is too large, also one that is so only when it is decompressed."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, decompress: Callable[[bytes, int], bytes] | None) -> None:
        self._stream = stream
        self._decompress = decompress

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = LARGEST
        async for received in self._stream:
            part = received if self._decompress is None else self._decompress(received, left + 1)
            left -= len(part)
            if left < 0:
                raise httpx2.ReadError("the provider's answer is too large")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _granted(response: httpx2.Response) -> httpx2.Response:
    """Take no token from a refusal or a redirect, whatever its body holds (RFC 6749, section 5.1)."""
    if not response.is_success:
        raise ValueError("a token response has the status 200")
    return response


async def _bounded(response: httpx2.Response) -> None:
    """Bound the body of an answer before it is read.

    It was asked for as it is, and some servers compress it nonetheless, or call a body in the clear by a strange name.
    """
    codings = {each.strip().lower() for each in response.headers.pop("Content-Encoding", "").split(",")}
    if codings & _FOREIGN:
        raise httpx2.DecodingError("the provider compressed its answer, which it was asked not to")
    decompress = _gunzip() if codings & _GZIP else None
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Bounded(response.stream, decompress=decompress)


def _gunzip() -> Callable[[bytes, int], bytes]:
    """Return a function that decompresses the next part of a body, up to a number of bytes."""
    opened = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def decompress(part: bytes, most: int) -> bytes:
        try:
            return opened.decompress(part, most)
        except zlib.error:
            raise httpx2.DecodingError("the provider's answer is not compressed as it says") from None

    return decompress
