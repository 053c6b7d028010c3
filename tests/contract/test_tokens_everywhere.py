"""A token of every kind at every endpoint: it works at its own, and nowhere else (A20)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, Final

import pytest
import sqlalchemy as sa
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AlreadyGranted,
    AlreadyOwner,
    Granted,
    GrantMapping,
    GrantRejected,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Revoked,
    ShareGrants,
    TokenForged,
    Transferred,
    grants_table,
)
from tests.support.databases import create
from tests.support.models import SECRETS, identity

HOLDER: Final = 1
"""Has the accounts, and issues the grants."""
OTHER: Final = 2
"""Every token is for this user."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A call that takes a token, and the token that is its own."""

    issue: Callable[[], Awaitable[str]]
    present: Callable[[str], Awaitable[object]]
    works: tuple[type, ...]
    refuses: type[Exception]


async def endpoints(engine: AsyncEngine) -> dict[str, Endpoint]:
    """Two tables of links with the same secrets, and three of grants: what one application may well have."""

    class Base(DeclarativeBase):
        pass

    class Mail(LinkedAccountMixin, Base):
        __tablename__ = "mails"
        __link_policy__ = LinkPolicy(ownership=Ownership.EXCLUSIVE)
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int]

    class Drive(LinkedAccountMixin, Base):
        __tablename__ = "drives"
        __link_policy__ = LinkPolicy(ownership=Ownership.EXCLUSIVE)
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int]

    class Share(Base):
        """Tokens in plain text, as an older table may hold them."""

        __tablename__ = "shares"
        id: Mapped[int] = mapped_column(primary_key=True)
        grantor_id: Mapped[int]
        grantee_id: Mapped[int | None]
        token: Mapped[str] = mapped_column(sa.Text, unique=True)
        expires_at = mapped_column(sa.DateTime(timezone=True), nullable=False)
        active: Mapped[bool]

    own = ShareGrants(grants_table(Base.metadata, user_id=sa.Integer()))
    plain = ShareGrants(GrantMapping(Share))
    await create(engine, Base.metadata)
    return {
        "a transfer of mail": transfer(engine, AccountLinker(Mail, secrets=SECRETS)),
        "a transfer of a drive": transfer(engine, AccountLinker(Drive, secrets=SECRETS)),
        "a grant": redemption(engine, own),
        "a grant in plain text": redemption(engine, plain),
        "a grant's end": ending(engine, own),
    }


def transfer(engine: AsyncEngine, linker: AccountLinker[Any, Any]) -> Endpoint:
    numbers = count()

    async def issue() -> str:
        account = identity(f"shared-{next(numbers)}")
        await linker.link(engine, user_id=HOLDER, identity=account)
        conflict = await linker.link(engine, user_id=OTHER, identity=account)
        assert isinstance(conflict, OwnershipConflict)
        return str(conflict.transfer_token)

    return Endpoint(
        issue=issue,
        present=lambda token: linker.transfer(engine, token, user_id=OTHER),
        works=(Transferred, AlreadyOwner),
        refuses=TokenForged,
    )


def redemption(engine: AsyncEngine, grants: ShareGrants) -> Endpoint:
    async def issue() -> str:
        issued = await grants.issue(engine, grantor_id=HOLDER, expires_in=timedelta(hours=1))
        return issued.token

    return Endpoint(
        issue=issue,
        present=lambda token: grants.redeem(engine, token, grantee_id=OTHER),
        works=(Granted, AlreadyGranted),
        refuses=GrantRejected,
    )


def ending(engine: AsyncEngine, grants: ShareGrants) -> Endpoint:
    """The grantor ends a grant by its token; the token is of the same kind as the one that redeems."""
    return Endpoint(
        issue=redemption(engine, grants).issue,
        present=lambda token: grants.revoke(engine, grantor_id=HOLDER, token=token),
        works=(Revoked,),
        refuses=GrantRejected,
    )


def of_the_application() -> dict[str, str]:
    """Tokens that an application signs for its own purposes with the linker's secret."""
    payload = {"p": "transfer", "user": OTHER}
    salts = {"a session": "session", "a state": "oauth-state", "a mail's link": "itsdangerous"}
    return {name: URLSafeTimedSerializer(SECRETS[0], salt=salt).dumps(payload) for name, salt in salts.items()}


SAME_KIND: Final = {frozenset({"a grant", "a grant's end"})}
"""A token for two calls: the user who has it may redeem it, and its grantor may revoke it."""


async def test_a_token_works_at_its_own_endpoint_and_at_no_other(engine: AsyncEngine) -> None:
    """N kinds at n endpoints: each works at its own, and the other n² - n are refused and change nothing."""
    known = await endpoints(engine)
    refused = 0
    for there, endpoint in known.items():
        foreign = {kind: await other.issue() for kind, other in known.items() if kind != there}
        foreign = {kind: token for kind, token in foreign.items() if frozenset({kind, there}) not in SAME_KIND}
        for token in (foreign | of_the_application()).values():
            with pytest.raises(endpoint.refuses) as raised:
                await endpoint.present(token)
            assert endpoint.refuses is type(raised.value)
            assert token not in str(raised.value)
            refused += 1
        outcome = await endpoint.present(await endpoint.issue())
        assert isinstance(outcome, endpoint.works)
    assert len(known) * (len(known) - 1 + 3) - 2 == refused
