"""A claimant's tokens on their way through the routes: sealed, kept in a conflict, and there after the transfer.

The application writes no line for it: its linker has a vault and a table of pending credentials.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountNotFound, CredentialsUnreadable, CredentialVault, NeedsConsent
from accountlink.web import Tokens, flow_states
from tests.support.flows import PAGE, SUBJECT, Stage, stage_on
from tests.support.issued import texts_of
from tests.support.routers import FRAMEWORKS, api_client, application, browser_of, connected
from tests.support.vaulted import KEY

EACH_FRAMEWORK: Final = pytest.mark.parametrize("framework", FRAMEWORKS)
SQLITE: Final = pytest.mark.parametrize("kind", ["sqlite"])
OFFLINE: Final[dict[str, Any]] = {"scopes": ("openid", "email", "offline_access")}
INSTANCE: Final = {"instance_url": "https://eu1.example"}
USERS: Final = (1, 2, 3)


async def sealed_stage(engine: AsyncEngine, **options: Any) -> Stage:
    """Make a flow whose linker has a vault."""
    given: dict[str, Any] = {"oidc_options": OFFLINE, "states": flow_states} | options
    return await stage_on(engine, vault=CredentialVault(keys=[KEY]), **given)


async def kept(stage: Stage) -> list[Any]:
    """Return the rows of pending credentials, by user."""
    table = stage.metadata.tables["accountlink_pending_credentials"]
    async with stage.flow.engine.connect() as connection:
        return list(await connection.execute(sa.select(table).order_by(table.c.user_id)))


async def everything_in(stage: Stage) -> str:
    """Return the text of every row of every table."""
    async with stage.flow.engine.connect() as connection:
        tables = [await connection.execute(sa.select(table)) for table in stage.metadata.sorted_tables]
        return repr([tuple(row) for table in tables for row in table])


async def belong_to(stage: Stage, owner: int, issued: tuple[str, str | None]) -> None:
    """Check that the link has these tokens, and that each token in the database is readable for its own user alone."""
    linker = stage.flow.linker
    stored = await linker.stored_credentials(stage.flow.engine, user_id=owner, provider="acme")
    assert issued == texts_of(stored)
    for other in {*USERS} - {owner}:
        with pytest.raises(AccountNotFound):
            await linker.stored_credentials(stage.flow.engine, user_id=other, provider="acme")

    text = await everything_in(stage)
    secrets = [token for answer in stage.issued.answers for token in (answer["access_token"], answer["refresh_token"])]
    assert [] == [token for token in secrets if token in text]

    for row in [*(await kept(stage)), *map(Row, await stage.rows())]:
        assert [str(row.user_id)] == await readers(stage, row.access_token, "access_token")
        assert [str(row.user_id)] == await readers(stage, row.refresh_token, "refresh_token")


class Row:
    """A row of links, whose columns are attributes as those of pending credentials are."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.user_id = columns["user_id"]
        self.access_token = columns["access_token"]
        self.refresh_token = columns["refresh_token"]


async def readers(stage: Stage, envelope: str, role: str) -> list[str]:
    """Return the users in whose row an envelope could be opened."""
    vault = CredentialVault(keys=[KEY]).of(stage.flow.linker.mapping)
    opened = []
    for user_id in USERS:
        bound_to = vault.bound_to(user_id=user_id, provider="acme", account_key=SUBJECT)
        with suppress(CredentialsUnreadable):
            await (vault.access_token if role == "access_token" else vault.refresh_token)(envelope, bound_to)
            opened.append(str(user_id))
    return opened


async def claimed(stage: Stage, client: httpx2.AsyncClient) -> tuple[str, tuple[str, str | None]]:
    """Meet the conflict; return the transfer token, and the tokens that the provider issued meanwhile."""
    conflict = await connected(stage, client)
    assert (409, "ownership_conflict") == (conflict.status_code, conflict.json()["code"])
    return conflict.json()["transfer_token"], stage.issued.newest()


# -- the story of three users ------------------------------------------------------------------------------------------


@EACH_FRAMEWORK
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_each_claimant_keeps_their_own_tokens(engine: AsyncEngine, framework: str) -> None:
    """Two users claim one account. Each gets their own tokens, and nobody can read another user's at any point."""
    stage = await sealed_stage(engine)
    app = application(framework, stage.flow)
    async with api_client(app, "1") as ann, api_client(app, "2") as ben, api_client(app, "3") as cleo:
        assert "created" == (await connected(stage, ann)).json()["change"]
        anns = stage.issued.newest()
        bens_transfer, bens = await claimed(stage, ben)
        await belong_to(stage, 1, anns)
        first_transfer, _ = await claimed(stage, cleo)
        await belong_to(stage, 1, anns)
        assert ["2", "3"] == [row.user_id for row in await kept(stage)]

        for other in (ann, cleo):
            refused = await other.post("/accounts/transfer", json={"transfer_token": bens_transfer})
            assert "token_for_another_user" == refused.json()["code"]
        await belong_to(stage, 1, anns)

        moved = await ben.post("/accounts/transfer", json={"transfer_token": bens_transfer})
        assert ("transferred", True) == (moved.json()["change"], moved.json()["has_credentials"])
        await belong_to(stage, 2, bens)
        assert ["3"] == [row.user_id for row in await kept(stage)]

        late = await cleo.post("/accounts/transfer", json={"transfer_token": first_transfer})
        assert "token_superseded" == late.json()["code"]
        await belong_to(stage, 2, bens)

        cleos_transfer, cleos = await claimed(stage, cleo)
        await belong_to(stage, 2, bens)
        async with browser_of(app, "3") as browser:  # a form's answer is a redirect, and the tokens are there as well
            moved = await browser.post("/accounts/transfer", data={"transfer_token": cleos_transfer})
        assert f"{PAGE}?connection=success" == moved.headers["location"]
        await belong_to(stage, 3, cleos)
        assert [] == await kept(stage)


# -- has_credentials ---------------------------------------------------------------------------------------------------


@SQLITE
@EACH_FRAMEWORK
@pytest.mark.parametrize("tokens", [Tokens.STORED, Tokens.DISCARDED])
async def test_a_transfer_says_that_there_are_no_tokens(engine: AsyncEngine, framework: str, tokens: Tokens) -> None:
    """Without a vault nothing is kept, and a flow that discards tokens has none. A retry does not say it again."""
    make = stage_on if tokens is Tokens.STORED else sealed_stage
    stage = await make(engine, tokens=tokens)
    app = application(framework, stage.flow)
    async with api_client(app, "1") as owner, api_client(app, "2") as claimant:
        await connected(stage, owner)
        transfer = {"transfer_token": (await connected(stage, claimant)).json()["transfer_token"]}
        moved = (await claimant.post("/accounts/transfer", json=transfer)).json()
        assert ("transferred", False) == (moved["change"], moved["has_credentials"])
        again = (await claimant.post("/accounts/transfer", json=transfer)).json()
        assert ("already_owner", False) == (again["change"], "has_credentials" in again)
    [row] = await stage.rows()
    assert (None, None) == (row["access_token"], row["refresh_token"])


# -- what only a vault stores ------------------------------------------------------------------------------------------


@SQLITE
async def test_extra_members_and_the_client_are_stored(engine: AsyncEngine) -> None:
    """A vault stores what the provider's description names, and it comes through a transfer, too."""
    options = OFFLINE | {"extra": ["instance_url", "absent"], "client": "web"}
    stage = await sealed_stage(engine, oidc_options=options)
    app, linker = application("starlette", stage.flow), stage.flow.linker
    async with api_client(app, "1") as owner, api_client(app, "2") as claimant:
        answers = []
        for client in (owner, claimant):
            stage.provider.forge_next("token", lambda answer: {**answer, **INSTANCE, "unnamed": "not kept"})
            answers.append((await connected(stage, client)).json())
        stored = await linker.stored_credentials(engine, user_id=1, provider="acme")
        assert (INSTANCE, "web") == ({name: each.reveal() for name, each in stored.extra.items()}, stored.client)
        await claimant.post("/accounts/transfer", json={"transfer_token": answers[1]["transfer_token"]})
    stored = await linker.stored_credentials(engine, user_id=2, provider="acme")
    assert (INSTANCE, "web") == ({name: each.reveal() for name, each in stored.extra.items()}, stored.client)
    assert stage.issued.newest() == texts_of(stored)
    assert INSTANCE["instance_url"] not in await everything_in(stage)


@SQLITE
async def test_without_a_vault_named_members_are_left_out(engine: AsyncEngine) -> None:
    """A provider's description may name members although nothing here could store them: linking works."""
    stage = await stage_on(engine, oidc_options=OFFLINE | {"extra": ["instance_url"], "client": "web"})
    stage.provider.forge_next("token", lambda answer: {**answer, **INSTANCE})
    async with api_client(application("starlette", stage.flow)) as client:
        answer = await connected(stage, client)
    assert (200, "created") == (answer.status_code, answer.json()["change"])
    [row] = await stage.rows()
    assert stage.issued.newest() == (row["access_token"], row["refresh_token"])


@SQLITE
async def test_a_flow_that_discards_tokens_keeps_none_of_it(engine: AsyncEngine) -> None:
    """A linker with a vault and a flow that only wants to know whose account it is go together."""
    options = OFFLINE | {"extra": ["instance_url"], "client": "web"}
    stage = await sealed_stage(engine, oidc_options=options, tokens=Tokens.DISCARDED)
    stage.provider.forge_next("token", lambda answer: {**answer, **INSTANCE})
    async with api_client(application("starlette", stage.flow)) as client:
        assert "created" == (await connected(stage, client)).json()["change"]
    with pytest.raises(NeedsConsent):
        await stage.flow.linker.stored_credentials(engine, user_id=1, provider="acme")


# -- health ------------------------------------------------------------------------------------------------------------


@EACH_FRAMEWORK
@SQLITE
async def test_a_link_that_needs_its_user_is_listed_and_repaired(engine: AsyncEngine, framework: str) -> None:
    """The list says which account has to be reconnected, and a flow that expects it repairs this very link."""
    stage = await sealed_stage(engine, renews=True)
    app, linker = application(framework, stage.flow), stage.flow.linker
    async with api_client(app, "1") as ann:
        await connected(stage, ann)
        (listed,) = (await ann.get("/accounts")).json()
        assert "ok" == listed["health"]

        stage.provider.revoke_consent(SUBJECT)
        table = stage.metadata.tables["connections"]
        async with engine.begin() as connection:  # the access token has ended meanwhile
            await connection.execute(sa.update(table).values(expires_at=datetime(2026, 1, 1, tzinfo=UTC)))
        with pytest.raises(NeedsConsent) as raised:
            await linker.credentials(engine, user_id=1, provider="acme")
        assert "invalid_grant" == raised.value.provider_code
        (listed,) = (await ann.get("/accounts")).json()
        assert "needs_consent" == listed["health"]

        repaired = (await connected(stage, ann, expect=str(listed["id"]))).json()
        assert ("updated", listed["id"]) == (repaired["change"], repaired["id"])
        (listed,) = (await ann.get("/accounts")).json()
        assert "ok" == listed["health"]
    tokens = await linker.credentials(engine, user_id=1, provider="acme")
    assert stage.issued.newest()[0] == tokens.access_token.reveal()


@SQLITE
async def test_a_flow_renews_with_its_own_providers(engine: AsyncEngine) -> None:
    """The refresher of a flow's providers finds the address by discovery, and the client by the name in the grant."""
    stage = await sealed_stage(engine, renews=True)
    await stage.connect()
    first = stage.issued.newest()
    table = stage.metadata.tables["connections"]
    async with engine.begin() as connection:
        await connection.execute(sa.update(table).values(expires_at=datetime(2026, 1, 1, tzinfo=UTC)))
    tokens = await stage.flow.linker.credentials(engine, user_id=1, provider="acme")
    assert first[0] != tokens.access_token.reveal()
    stored = await stage.flow.linker.stored_credentials(engine, user_id=1, provider="acme")
    assert ("default", stage.issued.newest()) == (stored.client, texts_of(stored))
