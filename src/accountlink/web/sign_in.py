"""Provide SignInFlow, which finds out whose account at a provider a visitor controls, and links nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Final

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import AccountLinkError, FlowNotStartedHere
from accountlink.providers.provider import Provider
from accountlink.tables.arguments import check_kind
from accountlink.tables.rows import present
from accountlink.values.keys import Secrets
from accountlink.web.browser import BrowserCookie, known_browser, new_browser
from accountlink.web.checks import checked_answer
from accountlink.web.derived import digest, new_state
from accountlink.web.journeys import Journeys
from accountlink.web.outcomes import ProvenIdentity, Started
from accountlink.web.states import FlowStates, Kind
from accountlink.web.targets import Site


class SignInFlow:
    """Lead a visitor, who is not signed in, to a provider and back, and return the identity that the provider proves.

    The application decides what follows: it looks for the owner of the account, or makes a new user. A visitor has no
    user id yet, so a sign-in is bound to the browser's cookie alone. Its state is not one of :class:`LinkFlow`, and no
    state of that ends a sign-in.

    Args:
        engine: The application's engine. Each call uses transactions of its own.
        providers: The providers by which users may sign in, each with a slug of its own.
        callback_url: The address of the sign-in's callback route, without a slug; another one than that of a
            ``LinkFlow``. A provider's redirect URI is this, ``/`` and its slug.
        page: The page that browsers are sent to without a return target.
        states: The table that ``flow_states(Base.metadata)`` makes, also if a ``LinkFlow`` has it;
            ``MemoryFlowStates()`` in tests.
        secrets: At least 32 bytes each, newest first. PKCE verifiers and nonces are derived from them.
        allowed_return_urls: Complete URLs that may be return targets, beside paths of the page's origin.
        clock: Returns the present moment, aware.
        transport: Replaces the network between accountlink and the providers, for tests.

    Raises:
        ConfigurationError: An argument cannot work. The message says which, and what to change.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        providers: Iterable[Provider],
        callback_url: str,
        page: str,
        states: sa.Table | FlowStates,
        secrets: Secrets,
        allowed_return_urls: Collection[str] = (),
        clock: Callable[[], datetime] = present,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_kind("engine", engine, AsyncEngine)
        self.site: Final = Site.of(callback_url=callback_url, page=page, allowed=allowed_return_urls)
        self.cookie: Final = BrowserCookie.on(https=self.site.is_secure)
        self._journeys: Final = Journeys(
            engine,
            site=self.site,
            providers=providers,
            states=states,
            secrets=secrets,
            clock=clock,
            transport=transport,
        )

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The providers by their slugs."""
        return self._journeys.providers

    async def start(self, *, provider: str, browser: str | None, return_to: str | None = None) -> Started:
        """Begin a sign-in, after a POST of a visitor.

        Args:
            provider: The provider's slug.
            browser: The value of the browser's cookie, ``None`` if it has none yet.
            return_to: Where the browser goes in the end: a path, or one of the allowed URLs.

        Returns:
            The provider's address, and the value for the browser's cookie.

        Raises:
            UnknownProvider: There is no such provider.
            ReturnTargetRejected: The return target is not allowed.
            ProviderFailed, ProviderMismatch: The provider's discovery document cannot be had, or is another issuer's.
            StoreBusy, StoreUnavailable, OutcomeUnknown: The database failed.
        """
        known = self._journeys.exchange(provider).provider
        target = self.site.checked(return_to)
        bound, state = known_browser(browser) or new_browser(), new_state()
        record = self._journeys.record(
            state,
            Kind.SIGN_IN,
            user_id=_visitor(bound),
            provider=known,
            return_to=target,
            scopes=tuple(known.scopes),
        )
        url = await self._journeys.leave(state, record, consent={})
        return Started(url=url, browser=bound)

    async def finish(self, *, provider: str, browser: str | None, parameters: Mapping[str, str]) -> ProvenIdentity:
        """End a sign-in: check everything that the provider and the browser bring. Nobody is signed in by it.

        Nothing goes to the provider before the browser, the provider and the issuer are those of the start.

        Args:
            provider: The provider's slug, from the route.
            browser: The value of the browser's cookie, if there is one.
            parameters: The parameters that the provider sent through the browser, each once.

        Returns:
            The identity that the provider vouched for, its tokens, and where to send the browser.

        Raises:
            UnknownProvider: There is no such provider.
            RequestRejected: A parameter is not text.
            FlowNotStartedHere: Another browser began this sign-in, or nobody did. It can still be ended there.
            FlowExpired: The visitor took more than ten minutes.
            FlowReplayed: This answer was used already.
            ProviderMismatch: The answer is another provider's, or another issuer's.
            ConsentDeclined: The visitor declined.
            ProviderFailed: The provider refused, or could not be reached.
            IdentityNotProven: The provider's answer does not prove who signed in.
            InvalidIdentity, InvalidCredentials: The provider's values cannot be stored.
            StoreBusy, StoreUnavailable, OutcomeUnknown: The database failed.

        Source: RFC 9700, section 4.7 (an attacker could sign the victim's browser in as themselves); RFC 9207.
        """
        exchange, answer = self._journeys.exchange(provider), checked_answer(parameters)
        bound = known_browser(browser)
        if bound is None:
            raise FlowNotStartedHere
        record = await self._journeys.come_back(
            answer.get("state"), Kind.SIGN_IN, user_id=_visitor(bound), browser=None
        )
        try:
            proof = await self._journeys.proof(record, exchange, answer)
        except AccountLinkError as error:
            error.return_to = record.return_to
            raise
        return ProvenIdentity(
            identity=proof.identity,
            tokens=proof.tokens,
            return_to=record.return_to,
            redirect_url=record.return_to or self.site.page,
        )

    def after(self, error: AccountLinkError) -> str:
        """Return where to send the browser after an error: the return target, or the page, with the code."""
        return error.redirect_url(error.return_to or self.site.page)


def _visitor(browser: str) -> str:
    """Return whose record a sign-in is: that of one browser, and no other finds it. No user's id has this form."""
    return f"browser:{digest(browser)}"
