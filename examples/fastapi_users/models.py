"""An application's fastapi-users models, the one key that they lack, and how accountlink reads them."""

from typing import Final
from uuid import UUID

from fastapi_users_db_sqlalchemy import (  # type: ignore[import-not-found]  # not where mypy runs: it pins SQLAlchemy < 2.1
    SQLAlchemyBaseOAuthAccountTableUUID,
    SQLAlchemyBaseUserTableUUID,
)
from sqlalchemy import Index
from sqlalchemy.orm import DeclarativeBase, Mapped, relationship

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal


class Base(DeclarativeBase):
    """The application's metadata."""


class OAuthAccount(SQLAlchemyBaseOAuthAccountTableUUID, Base):  # type: ignore[misc]  # a base class that mypy cannot see
    """A provider account of one user; fastapi-users signs in by it."""

    # fastapi-users makes two ordinary indexes and no key. Without this one, two users can have the same account.
    __table_args__ = (Index("one_owner_of_an_account", "oauth_name", "account_id", unique=True),)


class User(SQLAlchemyBaseUserTableUUID, Base):  # type: ignore[misc]  # a base class that mypy cannot see
    """Store a user, who can sign in."""

    oauth_accounts: Mapped[list[OAuthAccount]] = relationship(lazy="joined")


accounts: Final[AccountMapping[UUID, UUID]] = AccountMapping(
    OAuthAccount,
    policy=LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.DELETE),
    provider=OAuthAccount.oauth_name,
    email=OAuthAccount.account_email,
)  # id, user_id, account_id, access_token, refresh_token and expires_at (whole seconds) carry the default names
linker: Final = AccountLinker(accounts)
