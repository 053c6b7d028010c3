"""The demo's tables: a user, and the provider accounts that belong to users."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import Key, LinkedAccountMixin, LinkPolicy, Ownership, Removal, link_outbox
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


outbox = link_outbox(Base.metadata, name="accountlink_demo_events")
"""The events of connections, for the worker that informs users."""

flows = flow_states(Base.metadata, name="accountlink_demo_flows")
"""The flows that are under way, so that a restart of the backend loses none."""
