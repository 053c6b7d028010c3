"""A link whose id is an exact number: the library's own tables know it by one text, from its column and from a call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, mapped_column

from accountlink import (
    AccountLinker,
    CredentialVault,
    GrantEnded,
    HealthState,
    Linked,
    LinkedAccountMixin,
    NeedsConsent,
    link_outbox,
    refresh_states,
)
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE_SOFT, identity, tokens
from tests.support.vaulted import KEY

LATER = timedelta(hours=9)


class Refresher:
    """Renews any tokens, until the grant ends."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended = False

    def can_renew(self, provider: str, held: Any) -> bool:
        return True

    async def renew(self, provider: str, held: Any, *, deadline: timedelta) -> Any:
        self.calls += 1
        if self.ended:
            raise GrantEnded("invalid_grant")
        return tokens("renewed", expires_at=datetime.now(UTC) + LATER)


IDS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "whole": (sa.Numeric(20, 0), lambda: 12345),
    "large": (sa.Numeric(30, 0), lambda: Decimal(10) ** 20),
    "below zero": (sa.DECIMAL(20, 0), lambda: -7),
    "fraction": (sa.Numeric(20, 2), lambda: Decimal("12345.50")),
    "scale": (sa.Numeric(20, 2), lambda: Decimal("12345.00")),
}


@pytest.mark.parametrize("name", IDS)
async def test_a_lease_is_given_back_and_the_end_of_a_grant_is_recorded(engine: AsyncEngine, name: str) -> None:
    """A renewal gives its lease back, and when the provider ends the grant, health says so and nobody asks again."""
    column, made = IDS[name]

    class Base(DeclarativeBase): ...

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = EXCLUSIVE_SOFT
        id = mapped_column(column, primary_key=True, default=made)
        user_id = mapped_column(sa.Integer, nullable=False)

    refresher = Refresher()
    linker: AccountLinker[Any, Any] = AccountLinker(
        Connection,
        vault=CredentialVault(keys=[KEY]),
        refresher=refresher,
        refreshes=refresh_states(Base.metadata),
        outbox=link_outbox(Base.metadata),
    )
    await create(engine, Base.metadata)
    over = tokens(expires_at=datetime.now(UTC) - timedelta(seconds=5))
    outcome = await linker.link(engine, user_id=1, identity=identity(), credentials=over)
    assert isinstance(outcome, Linked)
    link_id = outcome.account.id
    await linker.credentials(engine, user_id=1, link_id=link_id)
    assert [(None,)] == await rows(engine, "SELECT lease_by FROM accountlink_refresh_states")
    refresher.ended = True
    for _ in range(2):
        given = await linker.credentials(engine, user_id=1, link_id=link_id, min_valid=2 * LATER)
        assert "renewed" == given.access_token.reveal()
    assert 2 == refresher.calls
    health = await linker.health(engine, user_id=1)
    assert HealthState.NEEDS_CONSENT is health[link_id].state
    await linker.link(engine, user_id=1, identity=identity(), credentials=over)
    with pytest.raises(NeedsConsent):
        await linker.credentials(engine, user_id=1, link_id=link_id)
    assert 1 == len(set(await rows(engine, "SELECT link_id FROM accountlink_events")))
    assert [link_id] * 4 == [event.link_id async for batch in linker.batches(engine) for event in batch.events]
    await linker.aclose()
