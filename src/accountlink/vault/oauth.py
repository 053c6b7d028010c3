"""Renew tokens by OAuth's refresh tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from accountlink.errors import ConfigurationError
from accountlink.providers.client import OAuthClient
from accountlink.providers.conversation import LostAnswer, TokenLine, Unreached
from accountlink.providers.provider import Provider
from accountlink.tables.arguments import check_callable
from accountlink.tables.rows import present
from accountlink.values.credentials import TokenSet
from accountlink.vault.answers import TokenAnswer, failure_of, members_of, tokens_of
from accountlink.vault.refresher import GrantEnded, ProviderUnavailable
from accountlink.vault.renewal import LOST


class OAuthRefresher:
    """Renew tokens with the refresh token of the grant, by the OAuth client that it was issued to.

    Args:
        clients: The registrations at each provider, by the provider's slug. Each has a ``token_endpoint`` or a
            ``metadata_url``. A grant that names no client is that of the only one.
        extra: The members of a token response that are kept in ``TokenSet.extra``, by the provider's slug.
        transport: Replaces the network, for tests: an ``httpx2`` transport. It stays open.
        clock: Returns the present moment of this machine, aware.

    Raises:
        ConfigurationError: A client without an address, or two clients of one name at a provider.
        ModuleNotFoundError: The libraries of the extra ``[web]`` are not installed.
    """

    def __init__(
        self,
        clients: Mapping[str, Sequence[OAuthClient]],
        *,
        extra: Mapping[str, Collection[str]] | None = None,
        transport: Any = None,  # an httpx2.AsyncBaseTransport
        clock: Callable[[], datetime] = present,
    ) -> None:
        self._clients: Final = {slug: _by_name(slug, several) for slug, several in _mapping("clients", clients).items()}
        beside = {} if extra is None else _mapping("extra", extra)
        self._extra: Final = {slug: _texts(names) for slug, names in beside.items()}
        self._line: Final = TokenLine(transport)
        self._clock: Final = check_callable("clock", clock)

    @classmethod
    def of(
        cls, providers: Iterable[Provider], *, transport: Any = None, clock: Callable[[], datetime] = present
    ) -> OAuthRefresher:
        """Return a refresher for the providers of a flow: their clients, addresses and extra members.

        Args:
            providers: The providers, as ``LinkFlow`` takes them.
            transport: Replaces the network, for tests.
            clock: Returns the present moment of this machine, aware.
        """
        given: Any = providers
        known: list[Provider] = list(given) if isinstance(given, Iterable) else [given]
        several: list[object] = [*known]
        if not all(isinstance(each, Provider) for each in several):
            raise ConfigurationError("OAuthRefresher.of(...) takes the providers that LinkFlow takes.")
        made = cls(
            {each.slug: [_of(each, client) for client in each.clients] for each in known},
            extra={each.slug: each.extra for each in known},
            transport=transport,
            clock=clock,
        )
        for each in known:
            if each.metadata_url is not None and each.issuer is not None:
                made._line.issuers[each.metadata_url] = each.issuer
        return made

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        """Say whether there is a refresh token. See :meth:`Refresher.can_renew`."""
        if tokens.refresh_token is None:
            return False
        self._client(provider, tokens.client)
        return True

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        """Redeem the refresh token. See :meth:`Refresher.renew`.

        If the answer is lost, and the client's behaviour knows a grace period, the same token is redeemed once more.

        Source: RFC 6749, section 6.
        """
        client = self._client(provider, tokens.client)
        ends = asyncio.get_running_loop().time() + deadline.total_seconds()
        grace = client.behaviour.grace
        try:
            return await self._redeemed(provider, client, tokens, ends=ends)
        except ProviderUnavailable as away:
            if not away.uncertain or not grace:
                raise
        try:
            return await self._redeemed(provider, client, tokens, ends=ends)
        except GrantEnded:
            raise GrantEnded(LOST) from None

    async def _redeemed(self, provider: str, client: OAuthClient, tokens: TokenSet, *, ends: float) -> TokenSet:
        assert tokens.refresh_token is not None  # noqa: S101  # can_renew has said so
        try:
            status, headers, body = await self._line.refresh(client, tokens.refresh_token, ends=ends)
        except Unreached:
            raise ProviderUnavailable from None
        except LostAnswer:
            raise ProviderUnavailable(uncertain=True) from None
        now = self._clock()
        answer = TokenAnswer(
            status=status,
            retry_after=headers.get("retry-after"),
            members=members_of(body, headers.get("content-type", "")),
        )
        failed = failure_of(answer, now=now)
        if failed is not None:
            raise failed
        extra = self._extra.get(provider, ())
        return tokens_of(answer.members or {}, now=now, extra=extra, client=tokens.client)

    def _client(self, provider: str, name: str | None) -> OAuthClient:
        known = self._clients.get(provider, {})
        if name is None and len(known) == 1:
            return next(iter(known.values()))
        if name is None or name not in known:
            named = "no client" if name is None else f"the client {name!r}"
            raise ConfigurationError(
                f"A grant of {provider!r} names {named}, and the refresher knows {sorted(known) or 'none'} there. Give "
                "OAuthRefresher each client that grants were issued to."
            )
        return known[name]


def _mapping(argument: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(slug, str) for slug in value):
        raise ConfigurationError(f'{argument}=... is a mapping by the slugs of providers, such as {{"google": [...]}}.')
    return value


def _texts(names: object) -> tuple[str, ...]:
    found = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else None
    if found is None or not all(isinstance(name, str) for name in found):
        raise ConfigurationError("extra=... has a list of the names of members for each provider.")
    return found


def _of(provider: Provider, client: OAuthClient) -> OAuthClient:
    """Return a provider's client with the provider's addresses, unless it has some of its own."""
    if client.token_endpoint is not None or client.metadata_url is not None:
        return client
    return replace(client, token_endpoint=provider.token_endpoint, metadata_url=provider.metadata_url)


def _by_name(slug: str, registered: object) -> dict[str, OAuthClient]:
    several = registered if isinstance(registered, Sequence) and not isinstance(registered, (str, bytes)) else ()
    if not several or not all(isinstance(client, OAuthClient) for client in several):
        raise ConfigurationError(f"OAuthRefresher takes a list of OAuthClient for {slug!r}.")
    found: dict[str, OAuthClient] = {}
    for client in several:
        if client.token_endpoint is None and client.metadata_url is None:
            raise ConfigurationError(
                f"The client {client.name!r} of {slug!r} has no address. Give it token_endpoint=... or "
                "metadata_url=..., or use OAuthRefresher.of(providers)."
            )
        if client.name in found:
            raise ConfigurationError(f"{slug!r} has two clients with the name {client.name!r}. Give each its own name.")
        found[client.name] = client
    return found
