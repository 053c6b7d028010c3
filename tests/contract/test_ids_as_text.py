"""Ids in the library's own tables: the text of an id is `str(id)`, whatever its column stores, on every database."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountMapping,
    LinkedAccountMixin,
    OwnershipConflict,
    ShareGrants,
    grants_table,
    link_outbox,
    transfer_ledger,
)
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity
from tests.support.shares import HOUR

BOTH = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])


class Digits(sa.types.TypeDecorator[UUID]):
    """The old recipe: a UUID as 32 characters."""

    impl = sa.CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        return dialect.type_descriptor(sa.CHAR(32))

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else UUID(str(value)).hex

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else UUID(value)


class Guid(Digits):
    """SQLAlchemy's recipe: the database's own UUIDs where it has them."""

    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        own = dialect.name == "postgresql"
        return dialect.type_descriptor(postgresql.UUID() if own else sa.CHAR(32))

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return value if dialect.name == "postgresql" else super().process_bind_param(value, dialect)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return value if isinstance(value, UUID) else super().process_result_value(value, dialect)


class Numbered(str):
    """An id of the application's own: a number, as text with a letter before it."""

    __slots__ = ()


class Lettered(sa.types.TypeDecorator[Numbered]):
    """An id that Python has in another form than the database: the text is what the database has."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else int(value.removeprefix("u"))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else Numbered(f"u{value}")


class Shouting(sa.types.TypeDecorator[str]):
    """A text of an application's own type."""

    impl = sa.String(20)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else str(value)


NUMBERS = count(1)
TYPES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "integer": (sa.Integer(), lambda: next(NUMBERS)),
    "bigint": (sa.BigInteger().with_variant(sa.Integer(), "sqlite"), lambda: 2**31 + next(NUMBERS)),
    "string": (sa.String(40), lambda: f"user {next(NUMBERS)}"),
    "digits": (sa.String(40), lambda: uuid4().hex),
    "char": (sa.CHAR(40), lambda: f"{uuid4()}"),
    "uuid": (sa.Uuid(), uuid4),
    "uuid in char": (sa.Uuid(native_uuid=False), uuid4),
    "decorated digits": (Digits(), uuid4),
    "decorated guid": (Guid(), uuid4),
    "decorated text": (Shouting(), lambda: f"user {next(NUMBERS)}"),
    "decorated number": (Lettered(), lambda: Numbered(f"u{next(NUMBERS)}")),
}
EVENTS = "SELECT type, user_id, other_user_id, link_id FROM accountlink_events ORDER BY id"
EPOCHS = "SELECT link_id FROM accountlink_transfer_ledger"


def text(value: Any) -> str:
    """Return how the tables store an id."""
    return value[1:] if isinstance(value, Numbered) else str(value).strip()


def tables(kind: Any, new: Callable[[], Any]) -> tuple[sa.MetaData, Any]:
    """A table of links whose ids, of links and of users, are of a type; it has no version, so that a ledger counts."""

    class Base(DeclarativeBase):
        pass

    class Connection(LinkedAccountMixin, Base):
        __tablename__ = "connections"
        __link_policy__ = EXCLUSIVE_SOFT
        id: Mapped[Any] = mapped_column(kind, primary_key=True, default=new)
        user_id: Mapped[Any] = mapped_column(kind)

    return Base.metadata, Connection


@BOTH
@pytest.mark.parametrize("name", TYPES)
async def test_events_and_epochs_hold_ids_as_str_writes_them(engine: AsyncEngine, name: str) -> None:
    """Links: the events' three ids and the ledger's are `str(id)`, and come back as the columns' own values."""
    kind, new = TYPES[name]
    metadata, model = tables(kind, new)
    linker: AccountLinker[Any, Any] = AccountLinker(
        AccountMapping(model, policy=EXCLUSIVE_SOFT, version=None),
        secrets=SECRETS,
        ledger=transfer_ledger(metadata),
        outbox=link_outbox(metadata),
    )
    await create(engine, metadata)
    owner, claimant = new(), new()
    link = (await linker.link(engine, user_id=owner, identity=identity())).account  # type: ignore[union-attr]  # it is a first link
    conflict = await linker.link(engine, user_id=claimant, identity=identity())
    assert isinstance(conflict, OwnershipConflict)
    expected = [("linked", owner, None, link.id), ("conflict", claimant, owner, link.id)]
    last = owner
    if conflict.transfer_token is not None:  # ids of other types than int, str and UUID have none
        await linker.transfer(engine, conflict.transfer_token, user_id=claimant)
        expected.append(("transferred", claimant, owner, link.id))
        last = claimant
    await linker.unlink(engine, user_id=last, link_id=link.id)
    expected.append(("unlinked", last, None, link.id))
    as_text = [(word, *(None if value is None else text(value) for value in ids)) for word, *ids in expected]
    assert as_text == await rows(engine, EVENTS)
    assert [(text(link.id),)] == await rows(engine, EPOCHS)
    read = [event async for batch in linker.batches(engine) for event in batch.events]
    first, *later = read
    assert (link.user_id, link.user_id) == (first.user_id, later[0].other_user_id)
    assert [text(user) for _, user, *_ in expected[1:]] == [text(event.user_id) for event in later]
    assert [link.id] * len(read) == [event.link_id for event in read]
    python = next((each for each in (UUID, int, Numbered, str) if isinstance(owner, each)), str)
    assert [] == [event for event in read if not isinstance(event.user_id, python)]


@BOTH
@pytest.mark.parametrize("name", ["uuid", "uuid in char", "decorated guid", "bigint"])
async def test_events_of_grants_hold_ids_as_str_writes_them(engine: AsyncEngine, name: str) -> None:
    """Grants: the users', the link's and the grant's id, which stands in the event's data."""
    kind, new = TYPES[name]
    metadata, model = tables(kind, new)
    linker: AccountLinker[Any, Any] = AccountLinker(model, secrets=SECRETS)
    grants = grants_table(metadata, link_id=model.id, user_id=kind)
    shares = ShareGrants(grants, accounts=linker, outbox=link_outbox(metadata))
    await create(engine, metadata)
    grantor, grantee = new(), new()
    link = (await linker.link(engine, user_id=grantor, identity=identity())).account  # type: ignore[union-attr]  # it is a first link
    issued = await shares.issue(engine, grantor_id=grantor, link_id=link.id, expires_in=HOUR)
    await shares.redeem(engine, issued.token, grantee_id=grantee)
    await shares.revoke(engine, grantor_id=grantor, grant_id=issued.id)
    expected = [
        ("grant_issued", str(grantor), None, str(link.id)),
        ("grant_redeemed", str(grantee), str(grantor), str(link.id)),
        ("grant_revoked", str(grantor), str(grantee), str(link.id)),
    ]
    assert expected == await rows(engine, EVENTS)
    read = [event async for batch in shares.batches(engine) for event in batch.events]
    assert [str(issued.id)] * 3 == [event.data["grant_id"] for event in read]
    assert [issued.id] * 3 == [event.grant_id for event in read]
    assert [(grantor, None), (grantee, grantor), (grantor, grantee)] == [(e.user_id, e.other_user_id) for e in read]
    assert [link.id] * 3 == [event.link_id for event in read]
