"""The application's tables, its provider and its linker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import environ
from typing import Final

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    CredentialVault,
    LinkedAccountMixin,
    LinkPolicy,
    OAuthRefresher,
    providers,
    refresh_states,
    tune_sqlite,
)
from accountlink.web import flow_states


class Base(DeclarativeBase):
    """The application's metadata."""


class Connection(LinkedAccountMixin, Base):
    """A user's account at a provider. The vault seals its tokens."""

    __tablename__ = "connections"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


REFRESHES: Final = refresh_states(Base.metadata)
"""Which process renews a token now, so that no other does."""
STATES: Final = flow_states(Base.metadata)
"""Tickets, and flows that are under way."""

engine = create_async_engine(environ["DATABASE_URL"])
if engine.dialect.name == "sqlite":
    tune_sqlite(engine)
acme = providers.oidc(
    "acme",
    issuer=environ["ACME_ISSUER"],
    client_id=environ["ACME_CLIENT_ID"],
    client_secret=environ["ACME_CLIENT_SECRET"],
    scopes=["openid", "offline_access"],  # without a refresh token the user would have to come back every hour
)
linker = AccountLinker(
    Connection,
    secrets=[environ["TRANSFER_SECRET"]],
    vault=CredentialVault(keys=[environ["VAULT_KEY"]]),
    refresher=OAuthRefresher.of([acme]),
    refreshes=REFRESHES,
)


@asynccontextmanager
async def until_the_end(_: object) -> AsyncIterator[None]:
    """At the end of a process, wait for the renewals that are under way; then close the connections."""
    try:
        yield
    finally:
        await linker.aclose()
        await engine.dispose()
