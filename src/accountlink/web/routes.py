"""Answer each route, without a framework: what a request asks for, what the flow or the linker says, and the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, assert_never
from urllib.parse import urlencode

from accountlink import errors
from accountlink.errors import (
    AccountLinkError,
    AccountNotFound,
    CrossSiteRequest,
    NotSignedIn,
    RequestRejected,
    UnknownProvider,
)
from accountlink.tables.id_text import reader
from accountlink.values.health import Health
from accountlink.values.outcomes import (
    AlreadyOwner,
    Linked,
    LinkedAccount,
    LinkId,
    OwnershipConflict,
    Transferred,
    Unlinked,
    UserId,
)
from accountlink.web.asked import Answer, Asked, answer_json, redirect, shown_id
from accountlink.web.checks import OF_THE_PROVIDER, themselves
from accountlink.web.fields import fields_of, once
from accountlink.web.flow import LinkFlow
from accountlink.web.logs import log_error, log_outcome, person
from accountlink.web.origins import refuse_other_sites
from accountlink.web.outcomes import Finished, Impersonated, Started, Unbound
from accountlink.web.pages import answer_ticket
from accountlink.web.problems import PROBLEM, answer_problem

_LONGEST_BOUNCE: Final = 6_000
"""Characters of the query into which a posted answer is turned; servers and proxies take about 8,000 in an address."""


class LinkRoutes(Generic[UserId, LinkId]):
    """Answer the routes of one flow.

    Args:
        flow: The flow.
    """

    def __init__(self, flow: LinkFlow[UserId, LinkId]) -> None:
        self.flow: Final = flow
        self._read_id: Final = reader(flow.linker.mapping.columns["id"].type, flow.engine.dialect)

    async def answer(self, route: LinkRoute, asked: Asked[UserId]) -> Answer:
        """Answer a request. An error of accountlink becomes an answer; any other one goes on to the application."""
        try:
            if route.is_guarded:
                refuse_other_sites(asked, self.flow.site)
            return await route.run(self, asked)
        except AccountLinkError as error:
            slug = asked.path.get("provider")
            provider = slug if slug in self.flow.providers else None  # no text of a request gets into the log
            log_error(error, route=route.name, provider=provider, who=person(asked.user, self.flow.linker))
            # A redirect would tell another site's page that its request arrived.
            in_json = route.answers_json or asked.wants_json or isinstance(error, CrossSiteRequest)
            return answer_problem(error) if in_json else redirect(self.flow.after(error))

    # -- the user's accounts ------------------------------------------------------------------------------------------

    async def accounts(self, asked: Asked[UserId]) -> Answer:
        """List the user's linked accounts."""
        user = _signed_in(asked)
        owner: UserId = user.user_id if isinstance(user, Impersonated) else user
        linker, engine = self.flow.linker, self.flow.engine
        linked = await linker.accounts(engine, user_id=owner)
        health = await linker.health(engine, user_id=owner) if linker.renews_tokens else {}
        return answer_json([_listed(account, health.get(account.id)) for account in linked])

    async def remove(self, asked: Asked[UserId]) -> Answer:
        """Disconnect an account, for an API client."""
        return answer_json(_body(await self._unlinked(asked), return_to=None))

    async def unlink(self, asked: Asked[UserId]) -> Answer:
        """Disconnect an account, for a form."""
        outcome = await self._unlinked(asked)
        if asked.wants_json:
            return answer_json(_body(outcome, return_to=None))
        return redirect(outcome.redirect_url(self.flow.site.page))

    async def transfer(self, asked: Asked[UserId]) -> Answer:
        """Give the user the account for which they hold a transfer token."""
        user = themselves(_signed_in(asked))
        token = fields_of(asked).text("transfer_token")
        if token is None:
            raise RequestRejected(field="transfer_token")
        outcome = await self.flow.linker.transfer(self.flow.engine, token, user_id=user)
        log_outcome(outcome, user=user)
        if asked.wants_json:
            return answer_json(_body(outcome, return_to=None))
        return redirect(outcome.redirect_url(self.flow.site.page))

    # -- to the provider and back -------------------------------------------------------------------------------------

    async def connect(self, asked: Asked[UserId]) -> Answer:
        """Send the user to a provider."""
        user, fields = themselves(_signed_in(asked)), fields_of(asked)
        expect = fields.id_text("expect")
        started = await self.flow.start(
            user_id=user,
            provider=asked.path["provider"],
            browser=self._starting(asked),
            return_to=fields.text("return_to"),
            expect=None if expect is None else self._link_id(expect),
            scopes=fields.words("scopes"),
        )
        return self._leaving(asked, started)

    async def callback(self, asked: Asked[UserId]) -> Answer:
        """End a flow in the browser that began it."""
        browser = asked.cookies.get(self.flow.cookie.name)
        finished = await self._finished(asked, browser, once(asked.query, where="query"))
        return _arrived(finished) if asked.wants_json else redirect(finished.redirect_url)

    async def bounce(self, asked: Asked[UserId]) -> Answer:
        """Turn a provider's cross-site POST into a GET, which brings the cookies that ``SameSite=Lax`` held back.

        It reads and changes nothing. Parameters that no flow reads stay behind: Apple's ``user`` is a name and an
        e-mail address, which belong into no address, and which nobody vouched for (threats A37).
        """
        slug = asked.path["provider"]
        if slug not in self.flow.providers:
            raise UnknownProvider
        fields = fields_of(asked)
        query = urlencode([(name, value) for name in OF_THE_PROVIDER if (value := fields.text(name)) is not None])
        if len(query) > _LONGEST_BOUNCE:
            raise RequestRejected(field="body")
        return redirect(f"{self.flow.site.redirect_uri(slug)}?{query}")

    async def finish(self, asked: Asked[UserId]) -> Answer:
        """End a flow whose answer came to a page of the application, which hands the parameters on."""
        themselves(_signed_in(asked))
        fields = fields_of(asked)
        texts = {name: fields.text(name) for name in OF_THE_PROVIDER}
        parameters = {name: value for name, value in texts.items() if value is not None}
        return _arrived(await self._finished(asked, self._finishing(asked), parameters))

    # -- tickets ------------------------------------------------------------------------------------------------------

    async def ticket(self, asked: Asked[UserId]) -> Answer:
        """Show what a ticket is for. The ticket stays as it is, whoever looks."""
        offer = await self.flow.offer(asked.path["ticket"], user_id=asked.user)
        if asked.wants_json:
            return answer_json(
                {"provider": offer.provider.slug, "scopes": list(offer.scopes), "reconnects": offer.reconnects}
            )
        return answer_ticket(offer, label=asked.label, site=self.flow.site)

    async def use_ticket(self, asked: Asked[UserId]) -> Answer:
        """Send the user to the provider of a ticket."""
        started = await self.flow.start_with(asked.path["ticket"], user_id=asked.user, browser=self._starting(asked))
        return self._leaving(asked, started)

    # -- what they share ----------------------------------------------------------------------------------------------

    async def _finished(
        self, asked: Asked[UserId], browser: str | Unbound | None, parameters: Mapping[str, str]
    ) -> Finished[UserId, LinkId]:
        finished = await self.flow.finish(
            user_id=asked.user, provider=asked.path["provider"], browser=browser, parameters=parameters
        )
        log_outcome(finished.outcome, user=asked.user)
        return finished

    def _starting(self, asked: Asked[UserId]) -> str | Unbound | None:
        """Return what a flow is bound to that begins now.

        A flow is bound to the browser's cookie, so that nobody can begin one as themselves and let another browser end
        it, into which they have signed the victim with the attacker's account. Only a request with a bearer token and
        without any cookie begins one that is not: no cookie can have said who its user is. An attacker who adds the
        header to their own session's request gets a bound flow, and without the session's cookie they are nobody.
        """
        if asked.has_bearer and not asked.has_cookies:
            return Unbound.BEARER
        return asked.cookies.get(self.flow.cookie.name)

    def _finishing(self, asked: Asked[UserId]) -> str | Unbound | None:
        """Return what a flow is bound to that ends now.

        A flow without a cookie ends by a request with a bearer token only. No link, form or image sends one, and a
        script of another site needs the application's consent (CORS). So no other page can make a browser end it, and
        the callback, which browsers open by themselves, never does.
        """
        own = asked.cookies.get(self.flow.cookie.name)
        return Unbound.BEARER if own is None and asked.has_bearer else own

    def _leaving(self, asked: Asked[UserId], started: Started) -> Answer:
        cookie = {} if started.browser is None else {"set-cookie": self.flow.cookie.header(started.browser)}
        if asked.wants_json:
            return answer_json({"url": started.url}, headers=cookie)
        return redirect(started.url, headers=cookie)

    async def _unlinked(self, asked: Asked[UserId]) -> Unlinked[UserId, LinkId]:
        user = themselves(_signed_in(asked))
        link_id = self._link_id(asked.path["link_id"])
        outcome = await self.flow.linker.unlink(self.flow.engine, user_id=user, link_id=link_id)
        log_outcome(outcome, user=user)
        return outcome

    def _link_id(self, text: str) -> LinkId:
        """Return a link's id in its column's own type.

        Raises:
            AccountNotFound: The text is no id that the column can hold.
        """
        try:
            link_id: LinkId = self._read_id(text)
        except Exception:  # noqa: BLE001  # a column's type is the application's code, and may raise anything
            raise AccountNotFound from None
        return link_id


Run = Callable[[LinkRoutes[Any, Any], Asked[Any]], Awaitable[Answer]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkRoute:
    """Describe one route.

    Attributes:
        name: Its name, and its operation in OpenAPI.
        method: The one method that it answers.
        path: Its path below the prefix.
        run: The method of :class:`LinkRoutes` that answers.
        errors: The errors that it can answer with, beside those of any request that reaches the database.
        has_user: Whether the application is asked who is signed in.
        has_label: Whether it is asked for a name of that user as well.
        is_guarded: Whether another site's pages are refused.
        answers_json: Whether errors too are answered in JSON, whatever the client accepts.
    """

    name: str
    method: str
    path: str
    run: Run
    errors: tuple[type[AccountLinkError], ...]
    has_user: bool = True
    has_label: bool = False
    is_guarded: bool = False
    answers_json: bool = False


_STORE: Final = (
    errors.ConfigurationError, errors.RetryTransaction, errors.StoreBusy, errors.StoreUnavailable,
    errors.OutcomeUnknown,
)  # fmt: skip
_WRITE: Final = (errors.CrossSiteRequest, errors.NotSignedIn, errors.ImpersonationRefused, *_STORE)
_BODY: Final = (errors.RequestRejected, errors.UnsupportedMediaType)
_LINK: Final = (errors.BlockedByConstraint, errors.LinkBlocked, errors.OwnerLookupFailed, errors.OwnerNotFound)
_START: Final = (errors.AccountNotFound, errors.ProviderFailed, errors.ProviderMismatch)
_END: Final = (
    errors.FlowNotStartedHere, errors.FlowExpired, errors.FlowReplayed, errors.UnknownProvider,
    errors.ProviderMismatch, errors.ProviderFailed, errors.ConsentDeclined, errors.IdentityNotProven,
    errors.InvalidIdentity, errors.InvalidCredentials, errors.RequestRejected, errors.ImpersonationRefused,
    errors.AccountNotFound, errors.AccountMismatch, *_LINK, *_STORE,
)  # fmt: skip

ROUTES: Final = (
    LinkRoute(
        name="accounts", method="GET", path="", run=LinkRoutes.accounts, errors=(errors.NotSignedIn, *_STORE)
    ),
    LinkRoute(
        name="connect", method="POST", path="/connect/{provider}", run=LinkRoutes.connect, is_guarded=True,
        errors=(errors.UnknownProvider, errors.ReturnTargetRejected, *_START, *_BODY, *_WRITE),
    ),
    LinkRoute(name="callback", method="GET", path="/callback/{provider}", run=LinkRoutes.callback, errors=_END),
    LinkRoute(
        name="bounce", method="POST", path="/callback/{provider}", run=LinkRoutes.bounce, has_user=False,
        errors=(errors.UnknownProvider, *_BODY),
    ),
    LinkRoute(
        name="finish", method="POST", path="/finish/{provider}", run=LinkRoutes.finish, is_guarded=True,
        answers_json=True, errors=(errors.CrossSiteRequest, errors.NotSignedIn, *_BODY, *_END),
    ),
    LinkRoute(
        name="transfer", method="POST", path="/transfer", run=LinkRoutes.transfer, is_guarded=True,
        errors=(
            errors.TokenForged, errors.TokenForAnotherUser, errors.TokenExpired, errors.TokenSuperseded,
            errors.LastAccount, *_LINK, *_BODY, *_WRITE,
        ),
    ),
    LinkRoute(
        name="ticket", method="GET", path="/tickets/{ticket}", run=LinkRoutes.ticket, has_label=True,
        errors=(errors.TicketRejected, errors.ImpersonationRefused, *_STORE),
    ),
    LinkRoute(
        name="use_ticket", method="POST", path="/tickets/{ticket}", run=LinkRoutes.use_ticket, is_guarded=True,
        errors=(errors.TicketRejected, errors.ImpersonationRefused, errors.CrossSiteRequest, *_START, *_STORE),
    ),
    LinkRoute(
        name="unlink", method="POST", path="/{link_id}/unlink", run=LinkRoutes.unlink, is_guarded=True,
        errors=(errors.AccountNotFound, errors.LastAccount, *_WRITE),
    ),
    LinkRoute(
        name="remove", method="DELETE", path="/{link_id}", run=LinkRoutes.remove, is_guarded=True, answers_json=True,
        errors=(errors.AccountNotFound, errors.LastAccount, *_WRITE),
    ),
)  # fmt: skip
"""The routes, in the order in which a framework must try them."""


def _signed_in(asked: Asked[UserId]) -> UserId | Impersonated[UserId]:
    if asked.user is None:
        raise NotSignedIn
    return asked.user


def _listed(account: LinkedAccount[Any, Any], health: Health | None) -> dict[str, Any]:
    """Return what a page needs to list an account: neither its owner, nor its e-mail address, nor its account id."""
    beside = {} if health is None else {"health": health.state.value}
    return {
        "id": shown_id(account.id),
        "provider": account.provider,
        "scopes": None if account.scopes is None else sorted(account.scopes),
        "created_at": None if account.created_at is None else account.created_at.isoformat(),
        "updated_at": None if account.updated_at is None else account.updated_at.isoformat(),
        **beside,
    }


def _arrived(finished: Finished[Any, Any]) -> Answer:
    match finished.outcome:
        case Linked():
            return answer_json(_body(finished.outcome, return_to=finished.return_to))
        case OwnershipConflict():
            return answer_json(finished.outcome.as_problem(), status=409, media_type=PROBLEM)
        case _:
            assert_never(finished.outcome)


def _body(
    outcome: Linked[Any, Any] | Unlinked[Any, Any] | Transferred[Any, Any] | AlreadyOwner[Any, Any],
    *,
    return_to: str | None,
) -> dict[str, Any]:
    """Return what happened to a link, without the owner it has or had."""
    told = {
        "connection": "unlinked" if isinstance(outcome, Unlinked) else "success",
        "change": outcome.change.value if isinstance(outcome, Linked) else outcome.code,
        "id": shown_id(outcome.account.id),
        "provider": outcome.account.provider,
        "return_to": return_to,
    }
    return told | {"has_credentials": outcome.has_credentials} if isinstance(outcome, Transferred) else told
