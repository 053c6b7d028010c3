"""Send requests with the access token of a linked account, by ``httpx2``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Generator
from typing import Any, Final, Generic

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import ConfigurationError
from accountlink.extras import explained
from accountlink.linker import AccountLinker
from accountlink.providers.addresses import check_address
from accountlink.values.credentials import TokenSet
from accountlink.values.outcomes import LinkId, UserId

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise explained("LinkedAccountAuth", missing) from None


class LinkedAccountAuth(httpx2.Auth, Generic[UserId, LinkId]):
    """Authenticate the requests of an ``httpx2.AsyncClient`` with a valid access token of a link.

    The token is asked of :meth:`AccountLinker.credentials` for each request. If the API answers 401, the token is
    renewed where that helps, and the request is sent once more.

    Args:
        linker: The linker, with a vault.
        engine: An engine.
        user_id: The user's id, in the column's own Python type.
        origins: The origins that may get the token, such as ``"https://www.googleapis.com"``. A request to any other
            origin is refused before it is sent.
        link_id: The link's id. Give this or ``provider``, or both.
        provider: The provider's slug. Alone it is enough if the user has one account there.
        require: The scopes that the requests need.

    Raises:
        ConfigurationError: From the constructor: no origin, or a text that is none. From a request: an origin that was
            not given, a synchronous client, or a token that cannot stand in a header.
        AccountLinkError: From a request: see :meth:`AccountLinker.credentials`.
    """

    def __init__(
        self,
        linker: AccountLinker[UserId, LinkId],
        engine: AsyncEngine,
        *,
        user_id: UserId,
        origins: Collection[str],
        link_id: LinkId | None = None,
        provider: str | None = None,
        require: Collection[str] = frozenset(),
    ) -> None:
        self._linker: Final = linker
        self._engine: Final = engine
        self._named: Final[dict[str, Any]] = {"user_id": user_id, "link_id": link_id, "provider": provider}
        self._require: Final = require
        self._origins: Final = frozenset(_origin(each) for each in _several(origins))

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send the request with a token; after a 401 once more, with another token."""
        self._check(request)
        tokens = await self._tokens()
        response = yield _with(request, tokens)
        if response.status_code != httpx2.codes.UNAUTHORIZED or not isinstance(request.stream, httpx2.ByteStream):
            return
        other = await self._tokens(rejected=tokens.access_token.reveal())
        if other.access_token != tokens.access_token:
            yield _with(request, other)

    def sync_auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Refuse a synchronous client."""
        raise ConfigurationError(
            "LinkedAccountAuth needs httpx2.AsyncClient. In synchronous code get a token first, such as by "
            "anyio.from_thread.run(...) or asyncio.run(linker.credentials(...)), and put it into the header yourself."
        )
        yield request  # type: ignore[unreachable]  # which makes this a generator

    async def _tokens(self, *, rejected: str | None = None) -> TokenSet:
        return await self._linker.credentials(self._engine, **self._named, require=self._require, rejected=rejected)

    def _check(self, request: httpx2.Request) -> None:
        origin = _origin(str(request.url.copy_with(path="/", query=None, fragment=None, username=None, password=None)))
        if origin not in self._origins:
            raise ConfigurationError(
                f"{origin!r} is none of the origins that LinkedAccountAuth was given, and gets no token. Add it to "
                "origins=... if it belongs to the provider's API."
            )


def _with(request: httpx2.Request, tokens: TokenSet) -> httpx2.Request:
    scheme = "Bearer" if tokens.token_type.lower() == "bearer" else tokens.token_type
    header = f"{scheme} {tokens.access_token.reveal()}"
    if not header.isascii() or not header.isprintable() or header != header.strip():
        del header  # leave no token in this frame; httpx2 would show it in its own error
        raise ConfigurationError(
            "The link's access token, or its type, cannot stand in a header: it has a line break, a blank at an end, "
            "or another character than those of ASCII. Link the account again with the token alone."
        )
    request.headers["Authorization"] = header
    return request


def _several(origins: object) -> Collection[str]:
    several = origins if isinstance(origins, Collection) and not isinstance(origins, (str, bytes)) else ()
    if not several or not all(isinstance(each, str) for each in several):
        raise ConfigurationError('origins=... is a list of origins, such as ["https://www.googleapis.com"].')
    return several


def _origin(address: str) -> str:
    """Return the scheme, the host and the port of an address as one text, with the port that is meant."""
    check_address(address, field="origins")
    url = httpx2.URL(address)
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ConfigurationError('An origin has a scheme, a host and perhaps a port: "https://www.googleapis.com".')
    port = url.port or {"https": 443, "http": 80}[url.scheme]
    return f"{url.scheme}://{url.host}:{port}"
