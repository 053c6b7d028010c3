"""The cloud accounts of users, as the application has them, and how accountlink reads them."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, DateTime, Index, Integer, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal, link_outbox
from accountlink.web import flow_states

WholeNumber = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up in INTEGER columns alone
LIVE: Final = text("is_active")


class Base(DeclarativeBase):
    """The application's metadata."""


class CloudProviderAccount(Base):
    """Store one user's account at one cloud provider; no other user can have it connected at the same time."""

    __tablename__ = "cloud_provider_accounts"
    __table_args__ = (
        # The two keys count live rows only: what one user disconnected, another may connect.
        Index(
            "cloud_one_owner",
            "provider",
            "provider_account_id",
            unique=True,
            postgresql_where=LIVE,
            sqlite_where=LIVE,
        ),
        Index(
            "cloud_one_link_per_user",
            "user_id",
            "provider",
            "provider_account_id",
            unique=True,
            postgresql_where=LIVE,
            sqlite_where=LIVE,
        ),
        # Each link looks for the user's own row, disconnected ones included; a partial index cannot find those.
        Index("cloud_of_a_user", "user_id", "provider", "provider_account_id"),
    )

    id: Mapped[int] = mapped_column(WholeNumber, primary_key=True)
    user_id: Mapped[int] = mapped_column(WholeNumber)
    provider: Mapped[str] = mapped_column(Text)
    provider_account_id: Mapped[str] = mapped_column(Text)
    account_email: Mapped[str | None] = mapped_column(Text)
    access_token: Mapped[str | None] = mapped_column(Text)
    refresh_token: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    scopes: Mapped[str | None] = mapped_column(Text)
    is_active: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    version: Mapped[int] = mapped_column(WholeNumber)  # transfer tokens need it: it tells two states of a row apart


cloud_accounts: Final = AccountMapping(
    CloudProviderAccount,
    policy=LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT),
    account_id=CloudProviderAccount.provider_account_id,
    email=CloudProviderAccount.account_email,
    active=CloudProviderAccount.is_active,
)  # every other column has the name that accountlink looks for by itself


outbox: Final = link_outbox(Base.metadata, name="cloud_provider_events")
"""Events of the accounts, written in the transaction of each change, for the worker that informs users."""

flows: Final = flow_states(Base.metadata, name="cloud_provider_flows")
"""The users who are on their way to the provider and back."""


def make_linker(*secrets: str) -> AccountLinker[int, int]:
    """Return the application's linker.

    Args:
        secrets: From your secret store, newest first, at least 32 bytes each; they sign transfer tokens.
    """
    return AccountLinker(cloud_accounts, secrets=list(secrets), outbox=outbox)
