"""The table of calendar connections as the system has it, and its mapping for accountlink."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Integer, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal


class Base(DeclarativeBase):
    """The application's metadata."""

    type_annotation_map = {str: Text(), datetime: DateTime(timezone=True)}  # noqa: RUF012  # SQLAlchemy's way


class CalendarConnection(Base):
    """A mailbox whose calendar a user has connected; a user may connect several at each provider."""

    __tablename__ = "calendar_connections"
    __table_args__ = (
        UniqueConstraint("user_id", "provider", "email", name="calendar_connections_user_provider_email_unique"),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    user_id: Mapped[str]
    provider: Mapped[str]
    email: Mapped[str]  # in accountlink's normal form, since it is the key
    access_token: Mapped[str]
    refresh_token: Mapped[str | None]
    token_expires_at: Mapped[datetime | None]
    scopes: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


connections = AccountMapping(
    CalendarConnection,
    policy=LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.DELETE),
    expires_at=CalendarConnection.token_expires_at,  # every other column has the name that accountlink looks for
)
linker = AccountLinker(connections)
