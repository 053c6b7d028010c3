"""The demo's tables: users, the provider accounts that belong to them, and what they share."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    Key,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    Removal,
    grants_table,
    link_outbox,
    pending_credentials,
    refresh_states,
)
from accountlink.web import flow_states


class Base(DeclarativeBase):
    """Hold the demo's metadata."""


class User(Base):
    """Hold a person who has an account with us."""

    __tablename__ = "accountlink_demo_users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Connection(LinkedAccountMixin, Base):
    """Hold a provider account of one user; no other user can have it at the same time."""

    __tablename__ = "accountlink_demo_connections"
    __link_policy__ = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))


shares = grants_table(Base.metadata, user_id=User.id, link_id=Connection.id, name="accountlink_demo_shares")
"""The accesses that users give each other to their connections."""

outbox = link_outbox(Base.metadata, name="accountlink_demo_events")
"""The events of connections and shares, for the worker that informs users."""

pending = pending_credentials(Base.metadata, name="accountlink_demo_pending")
"""The tokens of users who met a conflict, sealed, until they move the account to themselves."""

refreshes = refresh_states(Base.metadata, name="accountlink_demo_refreshes")
"""Who renews a token at the moment, and whether the grant of each connection still works."""

flows = flow_states(Base.metadata, name="accountlink_demo_flows")
"""The flows that are under way, so that a restart of the backend loses none."""


class Told(Base):
    """Hold an event that the worker took out of the outbox. The page lists all; some are notices for a user."""

    __tablename__ = "accountlink_demo_told"

    event_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    occurred_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    type: Mapped[str]
    user_id: Mapped[int]
    other_user_id: Mapped[int | None]
    provider: Mapped[str | None]
    link_id: Mapped[int | None]
    is_read: Mapped[bool] = mapped_column(default=False)


class Moved(Base):
    """Hold an envelope that the page put into another row, so that it can be put back."""

    __tablename__ = "accountlink_demo_moved"

    link_id: Mapped[int] = mapped_column(ForeignKey(Connection.id, ondelete="CASCADE"), primary_key=True)
    own: Mapped[str]
    foreign: Mapped[str]
