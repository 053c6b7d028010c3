"""Provide LinkFlow, which leads a user to a provider and back, and links the account that the provider vouches for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Generic, assert_never

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import (
    AccountLinkError,
    AccountNotFound,
    ConfigurationError,
    FlowNotStartedHere,
    TicketRejected,
)
from accountlink.linker import AccountLinker, Values
from accountlink.providers.provider import Provider
from accountlink.tables.arguments import check_callable, check_kind
from accountlink.tables.rows import present
from accountlink.values.keys import Secrets
from accountlink.values.outcomes import Linked, LinkId, OwnershipConflict, UserId
from accountlink.values.tagging import can_return, tagged, untagged
from accountlink.web.browser import BrowserCookie, known_browser, new_browser
from accountlink.web.checks import check_columns, checked_answer, checked_scopes, consent_for, themselves
from accountlink.web.derived import digest, new_state
from accountlink.web.exchange import Proof
from accountlink.web.journeys import Journeys, is_state
from accountlink.web.outcomes import Finished, Impersonated, Started, Ticket, TicketOffer, Tokens, Unbound
from accountlink.web.states import Absence, FlowRecord, FlowStates, Kind
from accountlink.web.targets import Site

OfClaims = Callable[[Mapping[str, Any]], Values]


class LinkFlow(Generic[UserId, LinkId]):
    """Lead users to a provider and back, and link the accounts that the provider vouches for. It knows no framework.

    ``accountlink.web.fastapi`` and ``accountlink.web.starlette`` make routes of it.

    Args:
        linker: The application's linker.
        engine: The application's engine. Each call uses transactions of its own.
        providers: The providers, each with a slug of its own.
        callback_url: The address of the callback's route, without a slug. A provider's redirect URI is this, ``/`` and
            its slug. It begins with ``https://``, or with ``http://localhost`` for development.
        page: The page that browsers are sent to. Only its origin ever gets a transfer token.
        states: The table that ``flow_states(Base.metadata)`` makes; ``MemoryFlowStates()`` in tests.
        secrets: At least 32 bytes each, newest first. PKCE verifiers and nonces are derived from them.
        trusted_origins: Further origins whose pages may call the routes, such as ``"https://www.app.example"``.
        allowed_return_urls: Complete URLs that may be return targets, beside paths of the page's origin.
        values: Returns application columns from the validated claims. They are set on a new row, on update and on
            restore.
        tokens: What becomes of the provider's tokens.
        clock: Returns the present moment, aware.
        transport: Replaces the network between accountlink and the providers, for tests.

    Raises:
        ConfigurationError: An argument cannot work. The message says which, and what to change.
    """

    def __init__(
        self,
        linker: AccountLinker[UserId, LinkId],
        engine: AsyncEngine,
        *,
        providers: Iterable[Provider],
        callback_url: str,
        page: str,
        states: sa.Table | FlowStates,
        secrets: Secrets,
        trusted_origins: Collection[str] = (),
        allowed_return_urls: Collection[str] = (),
        values: OfClaims | None = None,
        tokens: Tokens = Tokens.STORED,
        clock: Callable[[], datetime] = present,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        check_kind("linker", linker, AccountLinker)
        check_kind("engine", engine, AsyncEngine)
        check_kind("tokens", tokens, Tokens)
        self.linker: Final = linker
        self.engine: Final = engine
        self.site: Final = Site.of(
            callback_url=callback_url, page=page, allowed=allowed_return_urls, trusted=trusted_origins
        )
        self.cookie: Final = BrowserCookie.on(https=self.site.is_secure)
        self._journeys: Final = Journeys(
            engine,
            site=self.site,
            providers=providers,
            states=states,
            secrets=secrets,
            clock=clock,
            transport=transport,
            keeps_extra=linker.vault is not None and tokens is Tokens.STORED,
        )
        self._values: Final = None if values is None else check_callable("values", values)
        self._tokens: Final = tokens
        check_columns(linker.mapping.columns, tokens=tokens, providers=self.providers.values())

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The providers by their slugs."""
        return self._journeys.providers

    # -- the user leaves ----------------------------------------------------------------------------------------------

    async def start(
        self,
        *,
        user_id: UserId | Impersonated[UserId],
        provider: str,
        browser: str | Unbound | None,
        return_to: str | None = None,
        expect: LinkId | None = None,
        scopes: Collection[str] = (),
    ) -> Started:
        """Begin a flow, after a POST of the signed-in user.

        Args:
            user_id: The signed-in user.
            provider: The provider's slug.
            browser: The value of the browser's cookie, ``None`` if it has none yet. ``Unbound.BEARER`` for a user who
                proves themselves by a bearer token at both ends.
            return_to: Where the browser goes in the end: a path, or one of the allowed URLs.
            expect: The link to reconnect; another account is refused. The provider shows its consent screen again.
            scopes: Scopes to ask for beside the provider's own and those that the link has already.

        Returns:
            The provider's address, and the value for the browser's cookie.

        Raises:
            ImpersonationRefused: Somebody acts for the user.
            UnknownProvider: There is no such provider.
            ReturnTargetRejected: The return target is not allowed.
            RequestRejected: A scope is not a scope token, or there are too many.
            AccountNotFound: The user has no such link at this provider.
            ConfigurationError: The user's id is of another type than the column's.
            ProviderFailed, ProviderMismatch: The provider's discovery document cannot be had, or is another issuer's.
            StoreBusy, StoreUnavailable, OutcomeUnknown: The database failed.
        """
        user, known = self._themselves(user_id), self._provider(provider)
        target = self.site.checked(return_to)
        asked = await self._asked(user, known, expect=expect, scopes=scopes)
        bound = None if isinstance(browser, Unbound) else known_browser(browser) or new_browser()
        state = new_state()
        record = self._journeys.record(
            state,
            Kind.FLOW,
            user_id=tagged(user),
            browser=digest(bound or Unbound.BEARER.value),
            provider=known,
            expect=_tagged_link(expect),
            return_to=target,
            scopes=asked,
        )
        url = await self._journeys.leave(state, record, consent=consent_for(known, expect=expect, scopes=asked))
        return Started(url=url, browser=bound)

    # -- the user comes back ------------------------------------------------------------------------------------------

    async def finish(
        self,
        *,
        user_id: UserId | Impersonated[UserId] | None,
        provider: str,
        browser: str | Unbound | None,
        parameters: Mapping[str, str],
    ) -> Finished[UserId, LinkId]:
        """End a flow: check everything that the provider and the browser bring, then link the account.

        Nothing goes to the provider before the user, the browser, the provider and the issuer are those of the start.

        Args:
            user_id: The signed-in user; ``None`` if nobody is.
            provider: The provider's slug, from the route.
            browser: The value of the browser's cookie, if there is one. ``Unbound.BEARER`` for a user who proves
                themselves by a bearer token; only such a request ends a flow that began so.
            parameters: The parameters that the provider sent through the browser, each once.

        Returns:
            The outcome, and where to send the browser.

        Raises:
            ImpersonationRefused: Somebody acts for the user.
            UnknownProvider: There is no such provider.
            RequestRejected: A parameter is not text.
            FlowNotStartedHere: Another user, another browser, or nobody began this flow. It can still be ended by the
                user who did.
            FlowExpired: The user took more than ten minutes.
            FlowReplayed: This answer was used already.
            ProviderMismatch: The answer is another provider's, or another issuer's.
            ConsentDeclined: The user declined.
            ProviderFailed: The provider refused, or could not be reached.
            IdentityNotProven: The provider's answer does not prove who signed in.
            AccountLinkError: Linking failed; see ``AccountLinker.link``.

        Source: RFC 9700, sections 2.1 and 4.4; draft-ietf-oauth-security-topics-update (the binding is checked before
        the token request); RFC 9207.
        """
        exchange, answer = self._journeys.exchange(provider), checked_answer(parameters)
        if user_id is None:
            raise FlowNotStartedHere
        user = self._themselves(user_id)
        known = browser.value if isinstance(browser, Unbound) else known_browser(browser)
        record = await self._journeys.come_back(answer.get("state"), Kind.FLOW, user_id=tagged(user), browser=known)
        try:
            proof = await self._journeys.proof(record, exchange, answer)
            outcome = await self._link(user, record, proof)
        except AccountLinkError as error:
            error.return_to = record.return_to
            raise
        return self._finished(outcome, record.return_to)

    def after(self, error: AccountLinkError) -> str:
        """Return where to send the browser after an error: the flow's return target, or the page, with the code."""
        return error.redirect_url(error.return_to or self.site.page)

    async def _link(self, user: UserId, record: FlowRecord, proof: Proof) -> Linked[UserId, LinkId] | OwnershipConflict:
        expect: Any = None if record.expect is None else untagged(record.expect)
        return await self.linker.link(
            self.engine,
            user_id=user,
            identity=proof.identity,
            credentials=proof.tokens if self._tokens is Tokens.STORED else None,
            expect=expect,
            update_values=None if self._values is None else self._values(proof.identity.claims),
        )

    def _finished(
        self, outcome: Linked[UserId, LinkId] | OwnershipConflict, return_to: str | None
    ) -> Finished[UserId, LinkId]:
        match outcome:
            case Linked():
                base = return_to or self.site.page
            case OwnershipConflict():
                base = self.site.for_token(return_to)
            case _:
                assert_never(outcome)
        return Finished(outcome=outcome, return_to=return_to, redirect_url=outcome.redirect_url(base))

    # -- tickets ------------------------------------------------------------------------------------------------------

    async def ticket(
        self, *, user_id: UserId, provider: str, expect: LinkId | None = None, scopes: Collection[str] = ()
    ) -> Ticket:
        """Make a start for a user who has no browser at hand: in a chat, a job, or a tool of an agent.

        The address can be sent to the user. Only the user themselves, signed in, can begin with it, once.

        Args:
            user_id: The user.
            provider: The provider's slug.
            expect: The link to reconnect.
            scopes: Scopes to ask for, as in :meth:`start`.

        Raises:
            UnknownProvider: There is no such provider.
            RequestRejected: A scope is not a scope token, or there are too many.
            AccountNotFound: The user has no such link at this provider.
            StoreBusy, StoreUnavailable, OutcomeUnknown: The database failed.
        """
        user, known = self._themselves(user_id), self._provider(provider)
        asked = await self._asked(user, known, expect=expect, scopes=scopes)
        ticket = new_state()
        record = self._journeys.record(
            ticket, Kind.TICKET, user_id=tagged(user), provider=known, expect=_tagged_link(expect), scopes=asked
        )
        await self._journeys.keep(record)
        return Ticket(url=self.site.beside_callback(f"tickets/{ticket}"), expires_at=record.expires_at)

    async def offer(self, ticket: str, *, user_id: UserId | Impersonated[UserId] | None) -> TicketOffer:
        """Say what a ticket is for, to its user; opening it changes nothing.

        Raises:
            ImpersonationRefused: Somebody acts for the user.
            TicketRejected: The ticket is not this user's, or no longer valid.
        """
        if user_id is None or not is_state(ticket):
            raise TicketRejected
        record = await self._journeys.states.look(
            self.engine,
            digest=digest(ticket),
            kind=Kind.TICKET,
            user_id=tagged(self._themselves(user_id)),
            now=self._journeys.clock(),
        )
        if isinstance(record, Absence) or record.provider not in self.providers:
            raise TicketRejected
        provider = self._provider(record.provider)
        return TicketOffer(provider=provider, scopes=record.scopes, reconnects=record.expect is not None)

    async def start_with(
        self, ticket: str, *, user_id: UserId | Impersonated[UserId] | None, browser: str | Unbound | None
    ) -> Started:
        """Begin the flow of a ticket, after a POST of its user. Another user's attempt leaves the ticket as it is.

        Args:
            ticket: The ticket, from the address.
            user_id: The signed-in user; ``None`` if nobody is.
            browser: As in :meth:`start`.

        Raises:
            ImpersonationRefused: Somebody acts for the user.
            TicketRejected: The ticket is not this user's, or no longer valid.
            AccountNotFound: The link to reconnect is gone.
            ProviderFailed, ProviderMismatch: The provider's discovery document cannot be had.
            StoreBusy, StoreUnavailable, OutcomeUnknown: The database failed.
        """
        offered = await self.offer(ticket, user_id=user_id)
        await self._journeys.exchange(offered.provider.slug).endpoints()  # a provider that is down burns no ticket
        user: Any = user_id
        record = await self._journeys.states.consume(
            self.engine,
            digest=digest(ticket),
            kind=Kind.TICKET,
            user_id=tagged(user),
            browser=None,
            now=self._journeys.clock(),
        )
        if isinstance(record, Absence):
            raise TicketRejected
        expect: Any = None if record.expect is None else untagged(record.expect)
        return await self.start(
            user_id=user, provider=record.provider, browser=browser, expect=expect, scopes=record.scopes
        )

    # -- what they share ----------------------------------------------------------------------------------------------

    def _themselves(self, user_id: UserId | Impersonated[UserId]) -> UserId:
        user = themselves(user_id)
        self.linker.check_user(user)
        return user

    def _provider(self, slug: str) -> Provider:
        return self._journeys.exchange(slug).provider

    async def _asked(
        self, user: UserId, provider: Provider, *, expect: LinkId | None, scopes: Collection[str]
    ) -> tuple[str, ...]:
        """Return the scopes to ask for: the provider's, the wanted ones, and those that the link has."""
        wanted = checked_scopes(scopes)
        granted: frozenset[str] = frozenset()
        if expect is not None:
            account = await self.linker.account(self.engine, user_id=user, link_id=expect)
            if account.provider != provider.slug:
                raise AccountNotFound
            granted = account.scopes or frozenset()
        elif wanted:
            linked = await self.linker.accounts(self.engine, user_id=user, provider=provider.slug)
            granted = (linked[0].scopes or frozenset()) if len(linked) == 1 else frozenset()
        return tuple(dict.fromkeys((*provider.scopes, *wanted, *sorted(granted))))


def _tagged_link(link_id: object) -> str | None:
    """Return a link's id as a record holds it.

    Raises:
        ConfigurationError: The id is of a type that does not come back from text.
    """
    if link_id is None:
        return None
    if not can_return(link_id):
        raise ConfigurationError(
            "A flow can reconnect a link whose id is a number, a text or a UUID, and this table's is another."
        )
    return tagged(link_id)
