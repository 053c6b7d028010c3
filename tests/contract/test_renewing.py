"""Tokens that are over are renewed once, whoever asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AccountMapping,
    AccountNotFound,
    ConfigurationError,
    CredentialVault,
    EventType,
    Linked,
    LinkPolicy,
    NeedsConsent,
    OAuthRefresher,
    Removal,
    TokenSet,
    refresh_states,
)
from accountlink.errors import MissingScopes, RefreshRefused, RefreshUnavailable
from accountlink.providers import OAuthClient
from accountlink.values.health import HealthState
from accountlink.values.secrecy import revealed
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable
from accountlink.vault.renewing import Timing
from tests.support.models import EXCLUSIVE_SOFT, identity
from tests.support.vaulted import KEY, Vaulted


class Provider:
    """A provider that rotates refresh tokens, and ends the grant when one is used twice."""

    def __init__(self, *, delay: float = 0.0, lifetime: timedelta = timedelta(hours=1)) -> None:
        self.calls: list[str] = []
        self.delay = delay
        self.lifetime = lifetime
        self.scopes: frozenset[str] = frozenset()
        self.ended = False
        self.spent: set[str] = set()
        self.fails: list[Exception] = []
        self.at_once = 0
        self.most_at_once = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()

    def can_renew(self, provider: str, tokens: TokenSet) -> bool:
        return tokens.refresh_token is not None

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        assert tokens.refresh_token is not None
        presented = tokens.refresh_token.reveal()
        self.calls.append(presented)
        self.asked.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay)
            await self.answers.wait()
        finally:
            self.at_once -= 1
        if self.fails:
            raise self.fails.pop(0)
        if self.ended or presented in self.spent:
            self.ended = True
            raise GrantEnded("invalid_grant")
        self.spent.add(presented)
        number = len(self.spent)
        return TokenSet(
            access_token=f"access-{number}",
            refresh_token=f"refresh-{number}",
            expires_at=datetime.now(UTC) + self.lifetime,
            scopes=self.scopes,
        )


PATIENT = Timing(lease=timedelta(seconds=20), deadline=timedelta(seconds=15), poll=timedelta(milliseconds=20))
HASTY = Timing(lease=timedelta(seconds=1), deadline=timedelta(seconds=0.5), poll=timedelta(milliseconds=20))


class Renewed(Vaulted):
    """A table whose tokens are renewed, and several linkers over it, each as in a process of its own."""

    def __init__(self, provider: Provider, *, processes: int = 1, timing: Timing = PATIENT, **options: Any) -> None:
        super().__init__(EXCLUSIVE_SOFT, renews=True, **options)
        self.provider = provider
        self.linkers = [self.other_linker(refresher=provider, refreshes=self.states) for _ in range(processes)]
        for linker in self.linkers:
            assert linker._renewing is not None
            linker._renewing.timing = timing

    async def link(
        self,
        engine: AsyncEngine,
        *,
        ends_in: timedelta | None,
        refresh: str | None = "refresh-0",
        scopes: frozenset[str] = frozenset({"read"}),
    ) -> Any:
        """Link with a token that ends in a while, or ended a while ago."""
        brought = TokenSet(
            access_token="access-0",
            refresh_token=refresh,
            expires_at=None if ends_in is None else datetime.now(UTC) + ends_in,
            scopes=scopes,
            extra={"instance_url": "https://eu1.example"},
        )
        return await self.linked_as(engine, "sub-1", brought)

    async def linked_as(self, engine: AsyncEngine, account: str, brought: TokenSet | None) -> Any:
        outcome = await self.linkers[0].link(engine, user_id=1, identity=identity(account), credentials=brought)
        assert isinstance(outcome, Linked)
        return outcome.account.id

    async def state(self, engine: AsyncEngine) -> dict[str, Any]:
        async with engine.connect() as connection:
            row = (await connection.execute(sa.select(self.states))).mappings().one()
        return dict(row)


OVER = timedelta(seconds=-5)


@pytest.mark.each_driver
async def test_a_token_that_is_over_is_renewed(engine: AsyncEngine) -> None:
    """The new tokens are stored and given out, without the refresh token; what they leave out stays."""
    provider = Provider()
    case = await Renewed(provider).create(engine)
    link_id = await case.link(engine, ends_in=OVER)
    before = await case.column(engine, "version")
    tokens = await case.linkers[0].credentials(engine, user_id=1, link_id=link_id)
    assert ("access-1", frozenset({"read"})) == (tokens.access_token.reveal(), tokens.scopes)
    assert tokens.refresh_token is None
    assert ["instance_url"] == list(tokens.extra)
    assert before == await case.column(engine, "version")
    again = await case.linkers[0].credentials(engine, user_id=1, link_id=link_id)
    assert "access-1" == again.access_token.reveal()
    assert ["refresh-0"] == provider.calls
    stored = await case.linker.stored_credentials(engine, user_id=1, link_id=link_id)
    assert stored.refresh_token is not None
    assert "refresh-1" == stored.refresh_token.reveal()
    state = await case.state(engine)
    assert ("ok", None, None, 0) == (state["state"], state["lease_by"], state["lease_until"], state["failures"])


@pytest.mark.parametrize("delay", [0.0, 0.3])
async def test_many_callers_of_many_processes_ask_once(engine: AsyncEngine, delay: float) -> None:
    provider = Provider(delay=delay)
    case = await Renewed(provider, processes=8).create(engine)
    await case.link(engine, ends_in=OVER)
    got = await asyncio.gather(
        *(linker.credentials(engine, user_id=1, provider="acme") for linker in case.linkers for _ in range(20))
    )
    assert {"access-1": 160} == Counter(tokens.access_token.reveal() for tokens in got)
    assert ["refresh-0"] == provider.calls


async def test_an_early_renewal_lets_nobody_wait(engine: AsyncEngine) -> None:
    provider = Provider()
    provider.answers.clear()
    case = await Renewed(provider, processes=4).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(hours=1)
    await case.link(engine, ends_in=timedelta(minutes=4))
    got = await asyncio.gather(
        *(linker.credentials(engine, user_id=1, provider="acme") for linker in case.linkers for _ in range(40))
    )
    assert {"access-0": 160} == Counter(tokens.access_token.reveal() for tokens in got)
    provider.answers.set()
    for linker in case.linkers:
        await linker.aclose()
    assert ["refresh-0"] == provider.calls
    tokens = await case.linkers[0].credentials(engine, user_id=1, provider="acme")
    assert "access-1" == tokens.access_token.reveal()


FAILURES: dict[str, tuple[Callable[[], Exception], type[AccountLinkError], str]] = {
    "ended": (lambda: GrantEnded("invalid_grant"), NeedsConsent, "needs_consent"),
    "refused": (lambda: ClientRefused("invalid_client"), RefreshRefused, "ok"),
    "away": (ProviderUnavailable, RefreshUnavailable, "failing"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_what_a_failure_is_to_the_caller(engine: AsyncEngine, failure: str) -> None:
    """Each failure is told as itself, and nobody asks again at once."""
    make, expected, state = FAILURES[failure]
    provider = Provider()
    provider.fails = [make()]
    case = await Renewed(provider, processes=2).create(engine)
    await case.link(engine, ends_in=OVER)
    for linker in (*case.linkers, *case.linkers):
        with pytest.raises(expected):
            await linker.credentials(engine, user_id=1, provider="acme")
    assert 1 == len(provider.calls)
    assert state == (await case.state(engine))["state"]


async def test_an_error_that_needs_the_user_names_the_link(engine: AsyncEngine) -> None:
    """Who asked by the provider alone learns which link to reconnect: in the renewal, and from the state after it."""
    provider = Provider()
    provider.fails = [GrantEnded("invalid_grant")]
    case = await Renewed(provider, processes=2).create(engine)
    link_id = await case.link(engine, ends_in=OVER)
    for linker in case.linkers:
        with pytest.raises(NeedsConsent) as raised:
            await linker.credentials(engine, user_id=1, provider="acme")
        assert link_id == raised.value.link_id
    with pytest.raises(MissingScopes) as lacking:
        await case.linkers[0].credentials(engine, user_id=1, provider="acme", require={"calendar"})
    assert link_id == lacking.value.link_id


async def test_a_token_that_lives_is_given_out_whatever_fails(engine: AsyncEngine) -> None:
    provider = Provider()
    provider.fails = [GrantEnded("invalid_grant")]
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=timedelta(seconds=30))
    for _ in range(2):
        tokens = await case.linkers[0].credentials(engine, user_id=1, provider="acme")
        assert "access-0" == tokens.access_token.reveal()
    assert 1 == len(provider.calls)
    assert "needs_consent" == (await case.state(engine))["state"]


@pytest.mark.each_driver
async def test_a_new_link_makes_the_state_void(engine: AsyncEngine) -> None:
    provider = Provider()
    provider.fails = [GrantEnded("invalid_grant")]
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=OVER)
    with pytest.raises(NeedsConsent) as raised:
        await case.linkers[0].credentials(engine, user_id=1, provider="acme")
    assert "invalid_grant" == raised.value.provider_code
    assert raised.value.since is not None
    await case.link(engine, ends_in=OVER, refresh="refresh-x")
    tokens = await case.linkers[0].credentials(engine, user_id=1, provider="acme")
    assert "access-1" == tokens.access_token.reveal()


async def test_the_lease_of_a_dead_caller_ends(engine: AsyncEngine) -> None:
    """A provider that may have answered the dead caller ends the grant: the loss is told as ours."""
    provider = Provider(delay=30)
    case = await Renewed(provider, processes=2, timing=HASTY).create(engine)
    await case.link(engine, ends_in=OVER)
    dead = asyncio.create_task(case.linkers[0].credentials(engine, user_id=1, provider="acme"))
    await provider.asked.wait()
    renewing = case.linkers[0]._renewing
    assert renewing is not None
    for tasks in list(renewing._tasks.values()):
        for task in list(tasks.values()):
            task.cancel()
    with pytest.raises(RefreshUnavailable):  # and not CancelledError: nobody has cancelled this caller
        await dead
    provider.delay, provider.ended = 0.0, True
    with pytest.raises(NeedsConsent) as raised:
        await case.linkers[1].credentials(engine, user_id=1, provider="acme")
    assert "lost_in_refresh" == raised.value.provider_code


async def test_a_slow_provider_is_given_up_before_the_lease_ends(engine: AsyncEngine) -> None:
    provider = Provider(delay=30)
    case = await Renewed(provider, processes=3, timing=HASTY).create(engine)
    await case.link(engine, ends_in=OVER)
    got = await asyncio.gather(
        *(linker.credentials(engine, user_id=1, provider="acme") for linker in case.linkers), return_exceptions=True
    )
    assert [RefreshUnavailable] * 3 == [type(each) for each in got]
    assert (1, 1) == (len(provider.calls), provider.most_at_once)


async def test_a_cancelled_caller_takes_nobody_along(engine: AsyncEngine) -> None:
    provider = Provider(delay=0.3)
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=OVER)
    callers = [asyncio.create_task(case.linkers[0].credentials(engine, user_id=1, provider="acme")) for _ in range(3)]
    await provider.asked.wait()
    callers[0].cancel()
    got = await asyncio.gather(*callers[1:])
    assert {"access-1"} == {tokens.access_token.reveal() for tokens in got}
    assert 1 == len(provider.calls)


async def test_an_unlink_in_mid_call_ends_it(engine: AsyncEngine) -> None:
    provider = Provider(delay=0.3)
    case = await Renewed(provider).create(engine)
    link_id = await case.link(engine, ends_in=OVER)
    caller = asyncio.create_task(case.linkers[0].credentials(engine, user_id=1, provider="acme"))
    await provider.asked.wait()
    await case.linkers[0].unlink(engine, user_id=1, link_id=link_id)
    with pytest.raises(AccountNotFound):
        await caller
    assert [(None, None)] == await case.column(engine, "access_token", "refresh_token")


async def test_what_a_refresher_needs() -> None:
    provider = Provider()
    case = Renewed(provider)
    for options in ({"refresher": provider}, {"refreshes": case.states}):
        with pytest.raises(ConfigurationError, match="refresh_states"):
            case.other_linker(**options)


async def test_health_tells_what_credentials_would_say(engine: AsyncEngine) -> None:
    """Each live link has a health; the links of all users that are ill are listed."""
    provider = Provider()
    provider.fails = [GrantEnded("invalid_grant")]
    case = await Renewed(provider).create(engine)
    linker = case.linkers[0]
    ended = await case.link(engine, ends_in=OVER)
    with pytest.raises(NeedsConsent):
        await linker.credentials(engine, user_id=1, link_id=ended)
    other = TokenSet(access_token="b", expires_at=datetime.now(UTC) + timedelta(hours=1))
    fine = await case.linked_as(engine, "sub-2", other)
    over = TokenSet(access_token="c", expires_at=datetime.now(UTC) + OVER)
    done = await case.linked_as(engine, "sub-3", over)
    bare = await case.linked_as(engine, "sub-4", None)
    health = await linker.health(engine, user_id=1)
    consent, ok = HealthState.NEEDS_CONSENT, HealthState.OK
    assert {ended: consent, fine: ok, done: consent, bare: consent} == {
        link_id: each.state for link_id, each in health.items()
    }
    assert "invalid_grant" == health[ended].provider_code
    assert [(each, consent) for each in (ended, done, bare)] == [
        (link_id, each.state) async for link_id, each in linker.unhealthy(engine)
    ]
    assert [] == [each async for each in linker.unhealthy(engine, state=HealthState.FAILING)]
    await case.link(engine, ends_in=timedelta(hours=1))
    assert ok is (await linker.health(engine, user_id=1))[ended].state
    assert [done, bare] == [link_id async for link_id, _ in linker.unhealthy(engine)]


@pytest.mark.each_driver
async def test_idle_grants_are_kept_alive_once(engine: AsyncEngine) -> None:
    """Grants that are neither renewed nor linked for a while are renewed, by however many workers, once."""
    provider = Provider()
    case = await Renewed(provider, processes=2).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(days=40)
    for user_id in range(1, 31):
        brought = TokenSet(
            access_token=f"access-{user_id}",
            refresh_token=f"refresh-of-{user_id}",
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        await case.linker.link(engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=brought)
    case.clock.now = datetime.now(UTC)
    await case.linker.link(engine, user_id=1, identity=identity("sub-1"), credentials=TokenSet(access_token="new"))
    counted = await asyncio.gather(*(each.keep_alive(engine, idle=timedelta(days=30)) for each in case.linkers))
    assert 29 == sum(each.renewed for each in counted)
    assert {f"refresh-of-{user_id}": 1 for user_id in range(2, 31)} == Counter(provider.calls)
    assert 0 == (await case.linkers[0].keep_alive(engine, idle=timedelta(days=30))).renewed


async def test_a_bounded_number_is_kept_alive(engine: AsyncEngine) -> None:
    provider = Provider()
    case = await Renewed(provider).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(days=40)
    for user_id in range(1, 6):
        brought = TokenSet(access_token="a", refresh_token=f"refresh-of-{user_id}")
        await case.linker.link(engine, user_id=user_id, identity=identity(f"sub-{user_id}"), credentials=brought)
    renewed = [(await case.linkers[0].keep_alive(engine, idle=timedelta(days=30), limit=2)).renewed for _ in range(4)]
    assert [2, 2, 1, 0] == renewed


async def test_a_refused_token_is_renewed_unless_it_is_young(engine: AsyncEngine) -> None:
    """A refusal for rights starts no storm: a token that was just issued is given out again."""
    provider = Provider()
    case = await Renewed(provider).create(engine)
    case.clock.now = datetime.now(UTC) - timedelta(minutes=5)
    await case.link(engine, ends_in=timedelta(hours=1))
    linker = case.linkers[0]
    first = await linker.credentials(engine, user_id=1, provider="acme", rejected="access-0")
    second = await linker.credentials(engine, user_id=1, provider="acme", rejected="access-0")
    third = await linker.credentials(engine, user_id=1, provider="acme", rejected="access-1")
    assert ["access-1"] * 3 == [tokens.access_token.reveal() for tokens in (first, second, third)]
    assert 1 == len(provider.calls)


BUSY = sa.text(
    "SELECT state, query FROM pg_stat_activity WHERE backend_type = 'client backend' "
    "AND datname = current_database() AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR state <> 'idle')"
)
"""What other connections of this database do, in a transaction or not."""


async def test_no_connection_is_held_while_the_provider_is_asked(engine: AsyncEngine) -> None:
    provider = Provider()
    provider.answers.clear()
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=OVER)
    caller = asyncio.create_task(case.linkers[0].credentials(engine, user_id=1, provider="acme"))
    await provider.asked.wait()
    pool: Any = engine.pool
    if hasattr(pool, "checkedout"):
        assert 0 == pool.checkedout()
    if engine.dialect.name == "postgresql":
        async with engine.connect() as connection:
            assert [] == (await connection.execute(BUSY)).all()
    provider.answers.set()
    assert "access-1" == (await caller).access_token.reveal()


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
async def test_a_host_whose_clock_is_wrong_stores_the_end_by_the_databases(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """The refresher computes the end by its own clock; what is stored is by the database's."""
    if engine.dialect.name == "sqlite":
        return  # its clock is the host's
    provider = Provider(lifetime=timedelta(minutes=30) + ahead)
    for module in ("accountlink.vault.renewing", "accountlink.vault.leases"):
        monkeypatch.setattr(f"{module}.present", lambda: datetime.now(UTC) + ahead)
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=OVER)
    tokens = await case.linkers[0].credentials(engine, user_id=1, provider="acme")
    assert tokens.expires_at is not None
    assert abs(tokens.expires_at - datetime.now(UTC) - timedelta(minutes=30)) < timedelta(seconds=20)


# -- the table of answers in docs/refreshing.md -----------------------------------------------------------------------


def raising(error: Exception) -> Callable[[httpx2.Request], httpx2.Response]:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        raise error

    return answer


def answering(status: int, **members: object) -> Callable[[httpx2.Request], httpx2.Response]:
    return lambda _: httpx2.Response(status, json=members)


ANSWERS: dict[str, list[Callable[[httpx2.Request], httpx2.Response]]] = {
    "200 with `access_token`": [lambda _: httpx2.Response(200, json={"access_token": "new", "expires_in": 3600})],
    "`invalid_grant`, with any status": [answering(status, error="invalid_grant") for status in (400, 403, 200)],
    "`invalid_client`, `unauthorized_client`, `invalid_scope`": [
        answering(401, error=code) for code in ("invalid_client", "unauthorized_client", "invalid_scope")
    ],
    "429 or 503, with or without `Retry-After`": [
        lambda _: httpx2.Response(429, headers={"Retry-After": "60"}),
        lambda _: httpx2.Response(503),
    ],
    "no answer: the request was not sent": [raising(httpx2.ConnectError("planned"))],
    "no answer: the connection broke, or it took over 20 seconds": [
        raising(httpx2.ReadError("planned")),
        raising(httpx2.ReadTimeout("planned")),
    ],
    "400, 401 or 403 without a code, or with an unknown one": [
        lambda _: httpx2.Response(400, text="no"),
        lambda _: httpx2.Response(401, json={"error": "E1234"}),
        lambda _: httpx2.Response(403, json={}),
    ],
    "200 in JSON without `access_token`": [lambda _: httpx2.Response(200, json={"token_type": "Bearer"})],
    "anything else, such as the page or the redirect of a proxy": [
        *[answering(status) for status in (302, 404, 407, 408)],
        lambda _: httpx2.Response(200, text="<html>maintenance</html>", headers={"Content-Type": "text/html"}),
    ],
}
RESULTS = {
    "the new tokens are stored": None,
    "`NeedsConsent`": NeedsConsent,
    "`RefreshRefused`": RefreshRefused,
    "`RefreshUnavailable`": RefreshUnavailable,
}


def documented(begins: str = "| answer | result |") -> dict[str, list[str]]:
    """The rows of a table in the documentation, by their first cell."""
    page = (Path(__file__).parents[2] / "docs" / "refreshing.md").read_text("utf-8")
    table = page.split(begins)[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {first: others for first, *others in rows}


def test_the_table_has_each_answer() -> None:
    assert set(ANSWERS) == set(documented())


@pytest.mark.parametrize("answer", ANSWERS)
async def test_each_answer_is_what_the_table_says(engine: AsyncEngine, answer: str) -> None:
    """The documented result, health and next attempt of each answer are those that come about."""
    result, health, again = documented()[answer]
    for number, respond in enumerate(ANSWERS[answer]):
        registered = OAuthClient(client_id="id", client_secret="s", token_endpoint="https://provider.example/token")
        refresher = OAuthRefresher({"acme": [registered]}, transport=httpx2.MockTransport(respond))
        case = Renewed(Provider())
        case.linkers = [case.other_linker(refresher=refresher, refreshes=case.states)]
        if number == 0:
            await case.create(engine)
        async with engine.begin() as connection:
            await connection.execute(sa.delete(case.states))
        await case.link(engine, ends_in=OVER)
        asking = case.linkers[0].credentials(engine, user_id=1, provider="acme")
        if (expected := RESULTS[result]) is None:
            assert "new" == (await asking).access_token.reveal()
        else:
            with pytest.raises(expected):
                await asking
        state = await case.state(engine)
        assert ("ok" if health == "unchanged" else health.strip("`")) == state["state"]
        assert (again.startswith("at `retry_at`") or again == "after a pause") is (state["retry_at"] is not None)
        assert ("after five" in again) is (state["opaque"] == 1)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is stored after a renewal of ``refresh-0``, which had two scopes; ``ends_in`` is in minutes."""

    refresh_token: str = "refresh-0"  # no secret
    scopes: frozenset[str] = frozenset({"mail", "files"})
    ends_in: int | None = None
    instance_url: str = "https://eu1.example"


MEMBERS: dict[str, tuple[dict[str, Any], Kept]] = {
    "nothing": ({}, Kept()),
    "`refresh_token`": ({"refresh_token": "another"}, Kept(refresh_token="another")),  # no secret
    "`scope`": ({"scope": "files"}, Kept(scopes=frozenset({"files"}))),
    "`expires_in`": ({"expires_in": 600}, Kept(ends_in=10)),
    "one that is named in `extra`, such as `instance_url`": (
        {"instance_url": "https://us2.example"},
        Kept(instance_url="https://us2.example"),
    ),
}
MEANT = {
    "`refresh_token`": ["it replaces the stored one", "the stored one stays"],
    "`scope`": ["the scopes become what it says, even if they are fewer", "the stored scopes stay"],
    "`expires_in`": [
        "the token ends so many seconds from now",
        "the token counts as valid until an API refuses it",
    ],
    "one that is named in `extra`, such as `instance_url`": ["it replaces the stored one", "the stored one stays"],
}
"""The table of the documentation, as the cases above are what it means."""


def test_the_table_has_each_member() -> None:
    assert documented("| member of the answer | with it | without it |") == MEANT
    assert {"nothing", *MEANT} == set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
async def test_each_member_is_stored_as_the_table_says(engine: AsyncEngine, name: str) -> None:
    """An answer brings one member, and leaves out the others."""
    said, kept = MEMBERS[name]
    answers = iter([{"access_token": "new", **said}])
    refresher = OAuthRefresher(
        {"acme": [OAuthClient(client_id="id", client_secret="s", token_endpoint="https://provider.example/token")]},
        extra={"acme": ["instance_url"]},
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=next(answers))),
    )
    case = Renewed(Provider())
    case.linkers = [case.other_linker(refresher=refresher, refreshes=case.states)]
    await case.create(engine)
    await case.link(engine, ends_in=OVER, scopes=frozenset({"mail", "files"}))
    for _ in range(2):  # it counts as valid from now on: there is no second answer
        given = await case.linkers[0].credentials(engine, user_id=1, provider="acme")
        assert ("new", kept.scopes) == (given.access_token.reveal(), given.scopes)
    stored = await case.linkers[0].stored_credentials(engine, user_id=1, provider="acme")
    assert stored.refresh_token is not None
    left = None if stored.expires_at is None else stored.expires_at - datetime.now(UTC)
    assert kept == Kept(
        refresh_token=stored.refresh_token.reveal(),
        scopes=stored.scopes,
        ends_in=None if left is None else round(left.total_seconds() / 60),
        instance_url=stored.extra["instance_url"].reveal(),
    )
    assert "ok" == (await case.state(engine))["state"]


async def test_five_opaque_refusals_end_a_grant(engine: AsyncEngine) -> None:
    """They are minutes apart, so that a proxy which is broken for half a minute ends none."""
    provider = Provider()
    provider.fails = [ProviderUnavailable(opaque=True) for _ in range(5)]
    case = await Renewed(provider).create(engine)
    await case.link(engine, ends_in=OVER)
    raised, waited = [], timedelta(0)
    for _ in range(5):
        with pytest.raises((RefreshUnavailable, NeedsConsent)) as caught:
            await case.linkers[0].credentials(engine, user_id=1, provider="acme")
        raised.append(caught.type)
        if isinstance(caught.value, RefreshUnavailable):
            assert caught.value.retry_at is not None
            waited += caught.value.retry_at - datetime.now(UTC)
        async with engine.begin() as connection:
            await connection.execute(sa.update(case.states).values(retry_at=None))
    assert [RefreshUnavailable] * 4 + [NeedsConsent] == raised
    assert timedelta(minutes=15) < waited < timedelta(minutes=30)


async def from_the_access_token(provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
    assert "access-0" == tokens.access_token.reveal()
    ends = datetime.now(UTC) + timedelta(hours=1)
    return TokenSet(access_token="access-1", refresh_token="of no use here", expires_at=ends)


@pytest.mark.parametrize("missing", ["scopes", "expires_at", "refresh_token"])
async def test_a_table_without_a_column_loses_no_grant(engine: AsyncEngine, missing: str) -> None:
    """What an answer brings beside the tokens is left out where there is no column; the tokens are stored."""
    metadata = sa.MetaData()
    table = sa.Table(
        "links_without_a_column",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, sa.Text) for name in ("user_id", "provider", "account_id", "access_token")),
        *(sa.Column(name, sa.Text) for name in ("refresh_token", "scopes") if name != missing),
        *(sa.Column(name, sa.DateTime(timezone=True)) for name in ("expires_at",) if name != missing),
        sa.UniqueConstraint("provider", "account_id"),
    )
    provider = Provider()
    provider.scopes = frozenset({"read"})
    provider.can_renew = lambda *_: True  # type: ignore[method-assign]
    if missing == "refresh_token":
        provider.renew = from_the_access_token  # type: ignore[method-assign]
    policy = LinkPolicy(removal=Removal.DELETE)
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=policy)
    linker = AccountLinker(
        mapping,
        vault=CredentialVault(keys=[KEY]),
        refresher=provider,
        refreshes=refresh_states(metadata),
        clock=lambda: datetime.now(UTC) - timedelta(minutes=5),  # a younger token would not be renewed when refused
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    brought: dict[str, Any] = {
        "refresh_token": "refresh-0",
        "expires_at": datetime.now(UTC) - timedelta(hours=1),
        "scopes": frozenset(),
    }
    brought.pop(missing)
    old = TokenSet(access_token="access-0", **brought)
    await linker.link(engine, user_id="1", identity=identity(), credentials=old)
    rejected = "access-0" if missing == "expires_at" else None
    for _ in range(2):
        tokens = await linker.credentials(engine, user_id="1", provider="acme", rejected=rejected)
        assert "access-1" == tokens.access_token.reveal()
    stored = await linker.stored_credentials(engine, user_id="1", provider="acme")
    assert (None if missing == "refresh_token" else "refresh-1") == revealed(stored.refresh_token)


@pytest.mark.each_driver
async def test_the_death_of_a_grant_is_an_event_once(engine: AsyncEngine) -> None:
    provider = Provider()
    provider.fails = [GrantEnded("invalid_grant")]
    case = await Renewed(provider, processes=2, outbox=True).create(engine)
    link_id = await case.link(engine, ends_in=OVER)
    for linker in (*case.linkers, *case.linkers):
        with pytest.raises(NeedsConsent):
            await linker.credentials(engine, user_id=1, provider="acme")
    told = []
    async for delivery in case.linkers[0].events(engine):
        told.append(delivery.event)
        await delivery.acknowledge()
    assert [EventType.LINKED, EventType.CONSENT_NEEDED] == [event.type for event in told]
    assert (1, link_id, {"provider_code": "invalid_grant"}) == (told[1].user_id, told[1].link_id, dict(told[1].data))
