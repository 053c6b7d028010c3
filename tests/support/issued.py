"""A network that remembers the tokens which providers have issued, so that a test knows whose tokens are stored."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from accountlink import TokenSet


class Issued(httpx2.AsyncBaseTransport):
    """Pass requests on, and remember what token endpoints answered, the newest last.

    Args:
        network: Reaches the providers.
    """

    def __init__(self, network: httpx2.AsyncBaseTransport) -> None:
        self._network = network
        self.answers: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._network.handle_async_request(request)
        if request.method != "POST" or not request.url.path.endswith("/token"):
            return response
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        body = b"".join([part async for part in response.stream])
        await response.stream.aclose()
        self.answers.append(json.loads(body))
        return httpx2.Response(response.status_code, headers=response.headers, stream=httpx2.ByteStream(body))

    def newest(self) -> tuple[str, str | None]:
        """Return the access token and the refresh token that were issued last."""
        return self.answers[-1]["access_token"], self.answers[-1].get("refresh_token")


def texts_of(tokens: TokenSet) -> tuple[str, str | None]:
    """Return the access token and the refresh token of a set, as text."""
    refresh = tokens.refresh_token
    return tokens.access_token.reveal(), None if refresh is None else refresh.reveal()
