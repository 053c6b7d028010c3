"""Lead a browser to a provider and back, and prove whose account the answer is about.

A flow that links an account and one that signs a visitor in share this. They differ in whose record it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, assert_never

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import (
    ConsentDeclined,
    FlowExpired,
    FlowNotStartedHere,
    FlowReplayed,
    ProviderFailed,
    ProviderMismatch,
    UnknownProvider,
)
from accountlink.providers.conversation import Line
from accountlink.providers.provider import Provider
from accountlink.tables.arguments import check_callable
from accountlink.values.keys import Secrets
from accountlink.web.checks import distinct, states_of
from accountlink.web.derived import digest, flow_keys
from accountlink.web.exchange import Exchange, Proof
from accountlink.web.states import LIFETIME, Absence, FlowRecord, FlowStates, Kind
from accountlink.web.targets import Site

STATE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""The form of a state, and of a ticket."""
_LONGEST: Final = 4_096
"""Characters of a code, or of another parameter that a provider sends through the browser."""
_DECLINED: Final = "access_denied"


def is_state(value: object) -> bool:
    """Say whether a value has the form of a state, or of a ticket."""
    return isinstance(value, str) and STATE.fullmatch(value) is not None


class Journeys:
    """Lead browsers to providers and back.

    Args:
        engine: The application's engine.
        site: The application's own addresses.
        providers: The providers, each with a slug of its own.
        states: The table of flows, or a store.
        secrets: PKCE verifiers and nonces are derived from them; the newest first.
        clock: Returns the present moment, aware.
        transport: Replaces the network, for tests.
        keeps_extra: Whether tokens are to have what only a vault stores beside them.

    Raises:
        ConfigurationError: An argument cannot work.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        site: Site,
        providers: Iterable[Provider],
        states: sa.Table | FlowStates,
        secrets: Secrets,
        clock: Callable[[], datetime],
        transport: httpx2.AsyncBaseTransport | None,
        keeps_extra: bool = False,
    ) -> None:
        self.engine: Final = engine
        self.states: Final[FlowStates] = states_of(states)
        self.clock: Final = check_callable("clock", clock)
        self._keys: Final = flow_keys(secrets)
        line = Line(transport)
        self._exchanges: Final = {
            provider.slug: Exchange(
                provider,
                redirect_uri=site.redirect_uri(provider.slug),
                line=line,
                clock=clock,
                keeps_extra=keeps_extra,
            )
            for provider in distinct(providers)
        }

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The providers by their slugs."""
        return {slug: exchange.provider for slug, exchange in self._exchanges.items()}

    def exchange(self, provider: str) -> Exchange:
        """Return the protocol with a provider.

        Raises:
            UnknownProvider: There is no such provider.
        """
        given: object = provider
        exchange = self._exchanges.get(given) if isinstance(given, str) else None
        if exchange is None:
            raise UnknownProvider
        return exchange

    def record(
        self,
        value: str,
        kind: Kind,
        *,
        user_id: str,
        provider: Provider,
        scopes: tuple[str, ...],
        browser: str | None = None,
        expect: str | None = None,
        return_to: str | None = None,
    ) -> FlowRecord:
        """Return the record of a state, or of a ticket, that begins now."""
        return FlowRecord(
            digest=digest(value),
            kind=kind,
            user_id=user_id,
            browser=browser,
            provider=provider.slug,
            key=next(iter(self._keys)),
            expect=expect,
            return_to=return_to,
            scopes=scopes,
            expires_at=self.clock() + LIFETIME,
        )

    async def keep(self, record: FlowRecord) -> None:
        """Store a record."""
        await self.states.add(self.engine, record, now=self.clock())

    async def leave(self, state: str, record: FlowRecord, *, consent: Mapping[str, str]) -> str:
        """Store the record of a state, and return the address to which the browser is sent.

        Args:
            state: The state, whose record this is.
            record: The record.
            consent: Parameters that force the consent screen, if that is wanted.

        Raises:
            ProviderFailed, ProviderMismatch: The provider's discovery document cannot be had; nothing was stored.
        """
        key = self._keys[record.key]
        url = await self.exchange(record.provider).authorization_url(
            state=state,
            nonce=key.nonce(state),
            verifier=key.verifier(state),
            scopes=record.scopes,
            consent=consent,
        )
        await self.keep(record)
        return url

    async def come_back(self, state: str | None, kind: Kind, *, user_id: str, browser: str | None) -> FlowRecord:
        """Return the record of a state, which this statement marks as used.

        Args:
            state: The state, as the browser brought it.
            kind: What the state must be for.
            user_id: Whose record it must be.
            browser: The value to which the record must be bound.

        Raises:
            FlowNotStartedHere: There is no such record.
            FlowExpired: It is too old.
            FlowReplayed: It was used already.
        """
        if state is None or not is_state(state):
            raise FlowNotStartedHere
        record = await self.states.consume(
            self.engine,
            digest=digest(state),
            kind=kind,
            user_id=user_id,
            browser=None if browser is None else digest(browser),
            now=self.clock(),
        )
        match record:
            case FlowRecord():
                return record
            case Absence.USED:
                raise FlowReplayed
            case Absence.EXPIRED:
                raise FlowExpired
            case Absence.UNKNOWN:
                raise FlowNotStartedHere
            case _:
                assert_never(record)

    async def proof(self, record: FlowRecord, exchange: Exchange, parameters: Mapping[str, str]) -> Proof:
        """Check the provider's answer, in the order that the contract gives, and exchange its code."""
        if record.provider != exchange.provider.slug:
            raise ProviderMismatch
        await exchange.check_issuer(parameters.get("iss"))
        if (refusal := parameters.get("error")) is not None:
            raise ConsentDeclined if refusal == _DECLINED else ProviderFailed(step="authorization")
        code, state = parameters.get("code", ""), parameters["state"]
        if not code or len(code) > _LONGEST:
            raise ProviderFailed(step="authorization")
        key = self._keys.get(record.key)
        if key is None:  # its secret was removed in the meantime
            raise FlowExpired
        return await exchange.prove(
            code=code, verifier=key.verifier(state), nonce=key.nonce(state), scopes=record.scopes
        )
