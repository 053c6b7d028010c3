"""The table "What a row holds afterwards" of docs/linking.md, row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, Linked, ProviderIdentity, TokenSet
from tests.support.application import Base, Connection
from tests.support.databases import create

EARLIER = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 2, 1, tzinfo=UTC)
FIRST = TokenSet(access_token="at-1", refresh_token="rt-1", expires_at=EARLIER, scopes=frozenset({"openid"}))
BARE = TokenSet(access_token="at-2")
FULL = TokenSet(access_token="at-3", refresh_token="rt-3", expires_at=NOW, scopes=frozenset({"email"}))
OLD = {"access_token": "at-1", "refresh_token": "rt-1", "expires_at": EARLIER, "scopes": "openid"}
NONE: dict[str, Any] = dict.fromkeys(OLD)
NEW = {"access_token": "at-3", "refresh_token": "rt-3", "expires_at": NOW, "scopes": "email"}
BARELY = {"access_token": "at-2", "expires_at": None}


@pytest.fixture(params=["sqlite", "asyncpg"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each way of writing: one statement, and several."""
    return str(request.param)


class Case:
    """One user's link to one account."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.moment = EARLIER
        self.linker: AccountLinker[int, int] = AccountLinker(Connection, clock=lambda: self.moment)

    async def link(self, credentials: TokenSet | None, *, email: str | None = "ada@example.org") -> int:
        identity = ProviderIdentity(provider="google", account_id="1", email=email)
        linked = await self.linker.link(self.engine, user_id=1, identity=identity, credentials=credentials)
        assert isinstance(linked, Linked)
        return linked.account.id

    async def row(self) -> dict[str, Any]:
        async with self.engine.connect() as connection:
            found = dict((await connection.execute(Connection.__table__.select())).mappings().one())
        moments = {name: value for name, value in found.items() if isinstance(value, datetime) and value.tzinfo is None}
        return found | {name: value.replace(tzinfo=UTC) for name, value in moments.items()}


@pytest.fixture
async def case(engine: AsyncEngine) -> Case:
    await create(engine, Base.metadata)
    return Case(engine)


@pytest.mark.parametrize(("credentials", "held"), [(None, NONE), (BARE, NONE | BARELY), (FIRST, OLD)])
async def test_created(case: Case, credentials: TokenSet | None, held: dict[str, Any]) -> None:
    """A new row holds what came, and nothing else."""
    await case.link(credentials)
    row = await case.row()
    assert held == {name: row[name] for name in OLD}
    assert (EARLIER, EARLIER, None, None, 1) == tuple(
        row[name] for name in ("created_at", "updated_at", "deleted_at", "reason", "version")
    )


@pytest.mark.parametrize(("credentials", "held"), [(None, OLD), (BARE, OLD | BARELY), (FULL, NEW)])
async def test_updated(case: Case, credentials: TokenSet | None, held: dict[str, Any]) -> None:
    """Access token and expiry come together; refresh token, scopes and e-mail stay where none came."""
    await case.link(FIRST)
    case.moment = NOW
    await case.link(credentials, email=None)
    row = await case.row()
    assert held == {name: row[name] for name in OLD}
    assert (EARLIER, NOW, None, None, 1, "ada@example.org") == tuple(
        row[name] for name in ("created_at", "updated_at", "deleted_at", "reason", "version", "email")
    )


@pytest.mark.parametrize(("credentials", "held"), [(None, NONE), (BARE, NONE | BARELY), (FULL, NEW)])
async def test_restored(case: Case, credentials: TokenSet | None, held: dict[str, Any]) -> None:
    """Nothing of the old credentials comes back."""
    link_id = await case.link(FIRST)
    await case.linker.unlink(case.engine, user_id=1, link_id=link_id, reason="asked to")
    case.moment = NOW
    removed = (await case.row())["version"]
    assert link_id == await case.link(credentials, email=None)
    row = await case.row()
    assert held == {name: row[name] for name in OLD}
    assert (EARLIER, NOW, None, None, removed + 1, "ada@example.org") == tuple(
        row[name] for name in ("created_at", "updated_at", "deleted_at", "reason", "version", "email")
    )
