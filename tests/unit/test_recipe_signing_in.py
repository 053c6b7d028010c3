"""The recipe of signing in, beyond what its page prints: who is joined by an address, and races."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from accountlink import ProviderIdentity, TokenSet
from accountlink.providers import EmailTrust, Evidence, oidc
from accountlink.web import ProvenIdentity
from tests.support.databases import create
from tests.support.pages import DOCS, blocks_of
from tests.unit.test_docs_run import run

ABSENT: Final = object()
LOCAL: Final = (True, False, None)
CLAIMS: Final = (True, False, ABSENT, "true", "false", 1, None)
ADDRESS: Final = "grace@example.org"


@pytest.fixture
async def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The application of the page, as it stands after its last block."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("recipe_signing_in")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks_of(DOCS / "recipes" / "signing-in.md"):
        await run(block.set_up(), module)
        await run(block.tree(), module)
    yield module
    await vars(module)["engine"].dispose()


def proven(
    account_id: str, *, email: str | None = ADDRESS, claim: object = True, trusted: bool = True
) -> ProvenIdentity:
    """What a provider vouches for, whose preset trusts its flag or does not."""
    provider = oidc(
        "acme",
        issuer="https://acme.example",
        client_id="id",
        client_secret="secret",
        email_trust=EmailTrust.VERIFIED_FLAG if trusted else EmailTrust.UNTRUSTED,
    )
    claims = {"iss": "https://acme.example", "sub": account_id, "email": email, "email_verified": claim}
    identity = provider.identity(
        Evidence(claims={name: value for name, value in claims.items() if value is not ABSENT})
    )
    return ProvenIdentity(
        identity=identity, tokens=TokenSet(access_token="at"), return_to=None, redirect_url="https://app.example/"
    )


async def test_one_of_all_cells_joins(recipe: Any) -> None:
    """A01: a trusted provider, the boolean true, and an address that the user has proved; no flag is ever flipped."""
    joined = []
    for number, (local, claim, trusted) in enumerate(product(LOCAL, CLAIMS, (True, False))):
        email = f"user-{number}@example.org"
        async with recipe.sessions() as session:
            user = recipe.User(email=email, email_verified=local)
            session.add(user)
            await session.commit()
        try:
            assert user.id == await recipe.user_of(proven(f"a{number}", email=email, claim=claim, trusted=trusted))
            joined.append((local, claim, trusted))
        except recipe.AddressTaken:
            assert await recipe.linker.find_owner(recipe.engine, provider="acme", account_id=f"a{number}") is None
        async with recipe.sessions() as session:
            assert local is (await session.get(recipe.User, user.id)).email_verified
    assert [(True, True, True)] == joined


async def test_by_default_nobody_is_joined(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A01: the first ``may_join`` of the page refuses the one cell, too."""
    [first, second] = [
        block for block in blocks_of(DOCS / "recipes" / "signing-in.md") if "def may_join" in block.source
    ]
    assert "return False" in first.source
    assert "return False" not in second.source
    monkeypatch.setattr(recipe, "may_join", lambda user, identity: False)
    async with recipe.sessions() as session:
        session.add(recipe.User(email=ADDRESS, email_verified=True))
        await session.commit()
    with pytest.raises(recipe.AddressTaken):
        await recipe.user_of(proven("a1"))


@pytest.mark.parametrize("kind", ["asyncpg"])
@pytest.mark.parametrize("email", [ADDRESS, None])
async def test_many_tabs_make_one_user(
    recipe: Any, engine: AsyncEngine, email: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first sign-in in five tabs at once makes one user with one link, and each tab is signed in as that user.

    PostgreSQL, because on SQLite one writer waits for the other, and no tab ever comes too late.
    """
    await create(engine, recipe.Base.metadata)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    monkeypatch.setattr(recipe, "sessions", sessions)
    for number in range(5):
        visitor = proven(f"a{number}", email=email and f"{number}{email}")
        users = await asyncio.gather(*(recipe.user_of(visitor) for _ in range(5)))
        assert 1 == len(set(users))
        async with sessions() as session:
            assert number + 1 == await session.scalar(select(func.count()).select_from(recipe.User))
            assert 1 == len(await recipe.linker.accounts(session, user_id=users[0]))


async def test_what_came_before_the_proof_goes(recipe: Any) -> None:
    """A03: the attacker's own account no longer signs in; the link in use stays if the application says so."""
    async with recipe.sessions() as session:
        user = recipe.User(email=ADDRESS, email_verified=False)
        session.add(user)
        await session.flush()
        kept = await recipe.linker.link(session, user_id=user.id, identity=_identity("victims"))
        await recipe.linker.link(session, user_id=user.id, identity=_identity("trojan"))
        await recipe.address_proved(session, user, keep=kept.account.id)
        await session.commit()
    assert [kept.account.id] == [one.id for one in await recipe.linker.accounts(recipe.engine, user_id=user.id)]
    assert user.id != await recipe.user_of(proven("trojan", email=None))


def _identity(account_id: str) -> ProviderIdentity:
    return ProviderIdentity(provider="acme", account_id=account_id)
