"""A flow with fake providers, and users who go through it without a browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import CredentialVault, LinkPolicy, OAuthRefresher, Removal, pending_credentials, refresh_states
from accountlink.providers import Provider, oidc
from accountlink.testing.fake_provider import FakeProvider
from accountlink.web import Finished, LinkFlow, MemoryFlowStates, Started
from tests.support.databases import create
from tests.support.issued import Issued
from tests.support.models import SECRETS, make_tables

APP: Final = "https://app.example"
CALLBACK: Final = f"{APP}/accounts/callback"
PAGE: Final = f"{APP}/settings/accounts"
SUBJECT: Final = "248289761001"
FLOW_SECRETS: Final = ["flow-secret-of-at-least-32-bytes-0001"]


class Hosts(httpx2.AsyncBaseTransport):
    """A network in which each host is an ASGI application, and no other host exists."""

    def __init__(self, applications: Mapping[str, Any]) -> None:
        self._transports = {host: httpx2.ASGITransport(app=app) for host, app in applications.items()}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        transport = self._transports.get(request.url.host)
        if transport is None:
            raise httpx2.ConnectError(f"there is no host {request.url.host}")
        return await transport.handle_async_request(request)


def fake(slug: str) -> FakeProvider:
    """A provider at which one account is signed in, and that knows the redirect URI of its slug."""
    provider = FakeProvider(issuer=f"https://{slug}.example", redirect_uris=[f"{CALLBACK}/{slug}"])
    provider.add_account(SUBJECT, email="ada@example.org", name="Ada")
    provider.sign_in_as(SUBJECT)
    return provider


def preset(slug: str, provider: FakeProvider, **options: Any) -> Provider:
    """The description of a fake provider."""
    changed = {name: options.pop(name) for name in ("issuer", "tenants", "extra") if name in options}
    client = {"name": options.pop("client")} if "client" in options else {}
    made = oidc(
        slug, issuer=provider.issuer, client_id=provider.client_id, client_secret=provider.client_secret, **options
    )
    return replace(made, clients=(replace(made.client, **client),), **changed)


@dataclass(kw_only=True)
class Stage:
    """A flow, the network around it, and what users do."""

    flow: LinkFlow[Any, Any]
    providers: dict[str, FakeProvider]
    network: Hosts
    issued: Issued
    states: Any
    metadata: Any

    @property
    def provider(self) -> FakeProvider:
        """The first provider."""
        return next(iter(self.providers.values()))

    async def start(self, user: Any = 1, slug: str = "acme", browser: Any = None, **more: Any) -> Started:
        """Begin a flow."""
        return await self.flow.start(user_id=user, provider=slug, browser=browser, **more)

    async def consent(self, url: str) -> dict[str, str]:
        """Go to the provider, and return the parameters with which it sends the browser back."""
        async with httpx2.AsyncClient(transport=self.network) as browser:
            answer = await browser.get(url)
        assert answer.status_code == 302, answer.text
        assert answer.headers["location"].startswith(CALLBACK)
        return dict(parse_qsl(urlsplit(answer.headers["location"]).query, keep_blank_values=True))

    async def finish(
        self, started: Started, parameters: Mapping[str, str], user: Any = 1, slug: str = "acme", **more: Any
    ) -> Finished[Any, Any]:
        """Come back from the provider."""
        asked: dict[str, Any] = {
            "user_id": user,
            "provider": slug,
            "browser": started.browser,
            "parameters": parameters,
        }
        return await self.flow.finish(**asked | more)

    async def connect(self, user: Any = 1, slug: str = "acme", **more: Any) -> Finished[Any, Any]:
        """Go through a whole flow."""
        started = await self.start(user, slug, **more)
        return await self.finish(started, await self.consent(started.url), user, slug)

    async def rows(self) -> list[dict[str, Any]]:
        """All rows of the links' table."""
        async with self.flow.engine.connect() as connection:
            result = await connection.execute(sa.select(self.metadata.tables["connections"]))
            return [dict(row) for row in result.mappings()]

    def asked_for_tokens(self, slug: str = "acme") -> int:
        """How often the provider's token endpoint was asked."""
        return self.providers[slug].calls["/token"]


async def stage_on(
    engine: AsyncEngine,
    *,
    slugs: Iterable[str] = ("acme",),
    policy: LinkPolicy | None = None,
    user_type: type = int,
    oidc_options: Mapping[str, Any] | None = None,
    states: Any = None,
    vault: CredentialVault | None = None,
    renews: bool = False,
    **options: Any,
) -> Stage:
    """Make tables, a provider for each slug, and a flow with them.

    With a vault conflicts keep the tokens; and if tokens are renewed, then by the flow's own providers.
    """
    tables = make_tables(policy or LinkPolicy(removal=Removal.SOFT), user_type=user_type)
    kept = MemoryFlowStates() if states is None else states(tables.metadata)
    sealed: dict[str, Any] = {} if vault is None else {"vault": vault, "pending": pending_credentials(tables.metadata)}
    refreshes = refresh_states(tables.metadata) if renews else None
    await create(engine, tables.metadata)
    providers = {slug: fake(slug) for slug in slugs}
    network = Hosts({urlsplit(each.issuer).hostname or "": each for each in providers.values()})
    given: dict[str, Any] = {
        "providers": [preset(slug, each, **(oidc_options or {})) for slug, each in providers.items()],
        "callback_url": CALLBACK,
        "page": PAGE,
        "states": kept,
        "secrets": FLOW_SECRETS,
        "transport": (issued := Issued(network)),
    }
    if renews:
        refresher = OAuthRefresher.of(given["providers"], transport=given["transport"])
        sealed |= {"refreshes": refreshes, "refresher": refresher}
    flow = LinkFlow(tables.linker(secrets=SECRETS, **sealed), engine, **given | options)
    return Stage(flow=flow, providers=providers, network=network, issued=issued, states=kept, metadata=tables.metadata)
