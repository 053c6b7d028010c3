"""Types of the application's own: what the Python side of a column takes is what it is given, or it is refused."""

from __future__ import annotations

import base64
import json
import secrets as randomness
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
import sqlmodel
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, registry

from accountlink import (
    AccountLinker,
    AccountMapping,
    Change,
    ConfigurationError,
    GrantMapping,
    Linked,
    LinkedAccountMixin,
)
from accountlink.doctor.subjects import subject_of
from accountlink.tables.column_types import Part, form_of
from accountlink.tables.idtype import IdType
from accountlink.tables.rows import read_moment
from tests.contract.test_column_types import POLICY, exists, life_of_a_grant, life_of_a_link, links, shares
from tests.support.databases import Database
from tests.support.models import EXCLUSIVE_SOFT, Clock, identity, tokens

NOON: Final = datetime(2026, 7, 1, 12, tzinfo=UTC)


class Decorator(sa.TypeDecorator[Any]):
    """Shared behaviour of these types."""

    impl: Any = sa.Text

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.cache_ok = True


class Words(Decorator):
    """Only another name: as SQLModel's AutoString."""

    impl = sa.String


class Naive(Decorator):
    """Only another name for a moment without a zone."""

    impl = sa.DateTime


class ZoneInPython(Decorator):
    """SQLAlchemy's own recipe: aware in Python, naive in the database."""

    impl = sa.DateTime

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("tzinfo is required")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.replace(tzinfo=UTC)


class WholeSeconds(Decorator):
    """Cuts a moment without a zone, and says nothing about zones."""

    impl = sa.DateTime

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.replace(microsecond=0)


class Milliseconds(Decorator):
    """A moment as a number of the application's own unit."""

    impl = sa.BigInteger

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value.timestamp() * 1000)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else datetime.fromtimestamp(value / 1000, UTC)


class CommaList(Decorator):
    """A list in Python, one text in the database."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else ",".join(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.split(",")


class JsonText(Decorator):
    """JSON in a text column."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


class Sealed(Decorator):
    """Encrypts, as far as this test cares: bytes that differ each time."""

    impl: Any = sa.LargeBinary

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else randomness.token_bytes(4) + base64.b64encode(value.encode())

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else base64.b64decode(value[4:]).decode()


class SealedText(Sealed):
    """A sealed value that is stored as text."""

    impl = sa.Text

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else randomness.token_hex(2) + base64.b64encode(value.encode()).decode()


class Members(Decorator):
    """Takes members of an enumeration and no texts."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.value


class YesOrNo(Decorator):
    """A flag as a letter."""

    impl = sa.CHAR(1)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else "NY"[value]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value == "Y"


class Inverted(Decorator):
    """A flag that the database holds the other way round."""

    impl = sa.Boolean

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else not value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else not value


class Offset(Decorator):
    """A number that the database holds as another one."""

    impl = sa.BigInteger

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value + 1000

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value - 1000


class Outer(Decorator):
    """A decorator around another."""

    impl = ZoneInPython


class Elsewhere(Decorator):
    """Exists on PostgreSQL only, and says so."""

    def load_dialect_impl(self, dialect: Any) -> Any:
        if dialect.name != "postgresql":
            raise NotImplementedError
        return dialect.type_descriptor(sa.DateTime(timezone=True))


class Guid(Decorator):
    """As fastapi-users has it: a UUID in Python, and in the database one or its text."""

    impl = sa.Uuid

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(sa.Uuid() if dialect.name == "postgresql" else sa.CHAR(36))

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return str(UUID(str(value)))

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value if value is None or isinstance(value, UUID) else UUID(value)

    @property
    def python_type(self) -> type[Any]:
        return UUID


SERVED: Final[dict[str, tuple[Any, tuple[str, ...]]]] = {
    "another name for text": (Words(), ("provider", "account_id", "email", "email_key", "scopes", "user_id", "id")),
    "another name for a naive moment": (Naive(), ("expires_at", "created_at", "updated_at", "deleted_at")),
    "a zone in Python": (ZoneInPython(), ("expires_at", "created_at", "updated_at", "deleted_at")),
    "a decorator of a decorator": (Outer(), ("expires_at", "created_at", "updated_at", "deleted_at")),
    "whole seconds": (WholeSeconds(), ("expires_at", "created_at", "updated_at", "deleted_at")),
    "milliseconds": (Milliseconds(), ("expires_at", "created_at", "updated_at", "deleted_at")),
    "a variant": (
        sa.DateTime(timezone=True).with_variant(ZoneInPython(), "sqlite"),
        ("expires_at", "created_at", "updated_at", "deleted_at"),
    ),
    "a list with commas": (CommaList(), ("scopes",)),
    "a list as JSON": (JsonText(), ("scopes",)),
    "encrypted bytes": (Sealed(), ("access_token", "refresh_token", "email", "scopes")),
    "a UUID or its text": (Guid(), ("id", "user_id")),
    "encrypted text": (SealedText(), ("access_token", "refresh_token", "email", "scopes")),
}


async def far_from_utc(connection: AsyncConnection) -> None:
    """In a session of another time zone a moment that loses its zone on the way is another moment."""
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql("SET TIME ZONE 'America/New_York'")


async def test_what_a_type_takes_in_python_is_what_it_is_given(database: Database) -> None:
    """A type of the application's own lives a whole life: in the form that it takes, whatever is behind it."""
    failed: dict[str, BaseException] = {}
    async with database.engine().connect() as connection:
        for name, (kind, roles) in SERVED.items():
            table = links(kind, *roles)
            await far_from_utc(connection)
            assert await exists(connection, table)
            try:
                await life_of_a_link(connection, table)
            except Exception as error:  # noqa: BLE001  # each is told below, beside the others
                failed[name] = error
            await connection.rollback()
    assert not failed, "\n".join(f"{name}: {error!r}" for name, error in failed.items())


@pytest.mark.parametrize("type_", [Naive(), ZoneInPython(), WholeSeconds()], ids=repr)
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_a_moment_is_stored_in_utc_whatever_the_session(kind: str, database: Database, type_: Any) -> None:
    """12:00 UTC is 12:00 in a column without a zone, also where the session's own time is 08:00."""
    table = links(type_, "expires_at", "created_at")
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=POLICY), clock=lambda: NOON)
    async with database.engine().connect() as connection:
        await far_from_utc(connection)
        assert await exists(connection, table)
        await linker.link(connection, user_id=1, identity=identity(), credentials=tokens(expires_at=NOON))
        stored = await connection.exec_driver_sql("SELECT expires_at::text, created_at::text FROM links")
        assert ("2026-07-01 12:00:00", "2026-07-01 12:00:00") == tuple(stored.one())


@pytest.mark.parametrize("type_", [Naive(), ZoneInPython(), WholeSeconds(), Words()], ids=repr)
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_grants_know_types_of_the_applications_own(kind: str, database: Database, type_: Any) -> None:
    """The times and texts of a table of grants may have such types, with any clock."""
    roles = ("grantor_id", "grantee_id", "token_hash") if isinstance(type_, Words) else ("expires_at", "created_at")
    table = shares(type_, *roles)
    async with database.engine().connect() as connection:
        await far_from_utc(connection)
        assert await exists(connection, table)
        await life_of_a_grant(connection, table)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("moment", "scopes"),
    [(ZoneInPython(), Words()), (WholeSeconds(), CommaList()), (Milliseconds(), JsonText())],
    ids=["a zone in Python", "whole seconds", "milliseconds"],
)
async def test_what_takes_no_null_is_emptied_in_the_form_that_it_takes(
    kind: str, database: Database, moment: Any, scopes: Any
) -> None:
    """A restore without credentials leaves an end in 1970 and no scopes, in the form of the application's types."""
    required = {"nullable": False}
    table = links(moment, "expires_at", expires_at=required, scopes=required)
    table.c.scopes.type = scopes
    linker: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=POLICY))
    async with database.engine().connect() as connection:
        await far_from_utc(connection)
        assert await exists(connection, table)
        first = await linker.link(connection, user_id=1, identity=identity(), credentials=tokens())
        assert isinstance(first, Linked)
        await linker.unlink(connection, user_id=1, link_id=first.account.id)
        restored = await linker.link(connection, user_id=1, identity=identity())
        assert isinstance(restored, Linked)
        assert (Change.RESTORED, frozenset()) == (restored.change, restored.account.scopes)
        ends = (await connection.execute(sa.select(table.c.expires_at))).scalar_one()
        assert datetime(1970, 1, 1, tzinfo=UTC) == read_moment(ends)


REFUSED: Final[dict[str, tuple[str, Any]]] = {
    "an account id that is another each time": ("account_id", SealedText()),
    "a reason that is another each time": ("reason", SealedText()),
    "an account id as bytes": ("account_id", Sealed()),
    "a provider that takes members": ("provider", Members()),
    "a flag as a letter": ("active", YesOrNo()),
    "a flag the other way round": ("active", Inverted()),
    "a number that is another in the database": ("version", Offset()),
    "a moment that takes no moment": ("created_at", YesOrNo()),
    "a moment in two forms": ("expires_at", sa.DateTime(timezone=True).with_variant(Milliseconds.impl, "sqlite")),
    "scopes that take members": ("scopes", Members()),
    "scopes as a moment": ("scopes", Naive()),
}


@pytest.mark.parametrize(("role", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_a_type_would_get_wrong_is_refused(role: str, kind: Any) -> None:
    """A type that statements would read or compare otherwise than Python does is refused when the mapping is made."""
    table = links(kind, role)
    with pytest.raises(ConfigurationError) as caught:
        AccountMapping(table, policy=POLICY)
    assert f"{role!r} of 'links'" in str(caught.value)
    assert repr(kind) in str(caught.value)
    assert "Make it " in str(caught.value)


def test_a_moment_that_the_databases_clock_cannot_write_is_refused_for_grants() -> None:
    """A grant's moments are written and compared by SQL, which knows nothing of the application's own unit."""
    with pytest.raises(ConfigurationError, match=r"'expires_at' of 'shares' .*Milliseconds"):
        GrantMapping(shares(Milliseconds(), "expires_at"))


def test_a_type_that_refuses_a_database_is_judged_by_the_other() -> None:
    """A type that exists on PostgreSQL only is served there."""
    assert form_of(Part.MOMENT, Elsewhere()) is form_of(Part.MOMENT, sa.DateTime(timezone=True))


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (Words(), ["7"], [7, b"7", UUID(int=7)]),
        (Words(100), ["7"], [7]),
        (Words().with_variant(sa.Text, "sqlite"), ["7"], [7]),
    ],
    ids=["text", "with a length", "with a variant"],
)
def test_an_id_behind_another_name_is_of_the_type_behind_it(kind: Any, taken: list[Any], refused: list[Any]) -> None:
    """An id of another type is refused before a driver sees it, also where the column's type is another name."""
    found = IdType.of(sa.Column("x", kind))
    assert (taken, []) == ([v for v in taken if found.accepts(v)], [v for v in refused if found.accepts(v)])


def test_a_number_behind_another_name_has_its_range() -> None:
    """A number that the column behind another name cannot hold is known before any SQL."""

    class Small(Decorator):
        impl = sa.SmallInteger

    found = IdType.of(sa.Column("x", Small()))
    assert (True, False) == (found.holds(2**15 - 1), found.holds(2**15))


@pytest.mark.parametrize("text", ["7", "not-a-uuid", ""])
def test_a_uuid_that_is_a_text_in_python_has_to_be_one(text: str) -> None:
    """A column of UUIDs that are texts in Python holds no other text: known before any SQL."""
    found = IdType.of(sa.Column("x", sa.Uuid(as_uuid=False)))
    assert (False, True) == (found.holds(text), found.holds(str(uuid4())))


def test_the_doctor_knows_the_length_behind_another_name() -> None:
    """The required length is read from the base type of the application's own type."""
    mapping = AccountMapping(links(Words(40), "user_id"), policy=POLICY)
    assert 40 == subject_of(mapping, schema=None).lengths["user_id"]


# -- models of other makers -------------------------------------------------------------------------------------------


def sql_model() -> Any:
    """A table of links as SQLModel's users write it: each text is an AutoString, each moment has no zone."""

    class Base(sqlmodel.SQLModel, registry=registry()):
        pass

    class Link(Base, table=True):
        __tablename__ = "links"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        user_id: str
        provider: str
        account_id: str
        email: str | None = None
        access_token: str | None = None
        refresh_token: str | None = None
        expires_at: datetime | None = None
        scopes: str | None = None
        created_at: datetime
        updated_at: datetime
        deleted_at: datetime | None = None
        reason: str | None = None
        version: int = 1

    return Link


def data_classes() -> Any:
    """The mixin beside a base that makes dataclasses of its models."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Link(LinkedAccountMixin, Base):
        __tablename__ = "links"
        __link_policy__ = EXCLUSIVE_SOFT
        id: Mapped[int] = mapped_column(
            sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, init=False
        )
        user_id: Mapped[str] = mapped_column(Words(40))

    return Link


MODELS: Final[dict[str, Callable[[], Any]]] = {"SQLModel": sql_model, "dataclasses": data_classes}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
async def test_models_of_other_makers_are_tables_of_links(database: Database, make: Callable[[], Any]) -> None:
    """A model of SQLModel's, or a dataclass, is linked, read, unlinked and restored, with its scopes and moments."""
    model = make()
    mapping: AccountMapping[Any, Any] = AccountMapping(model, policy=EXCLUSIVE_SOFT)
    linker: AccountLinker[Any, Any] = AccountLinker(mapping, clock=Clock())
    call: dict[str, Any] = {"user_id": "ann", "identity": identity(), "credentials": tokens(expires_at=NOON)}
    async with database.engine().connect() as connection:
        await far_from_utc(connection)
        await connection.run_sync(mapping.table.create)
        first, again = (await linker.link(connection, **call), await linker.link(connection, **call))
        assert isinstance(first, Linked)
        assert isinstance(again, Linked)
        await linker.unlink(connection, user_id="ann", link_id=first.account.id)
        restored = await linker.link(connection, **call)
        assert isinstance(restored, Linked)
        [account] = await linker.accounts(connection, user_id="ann")
        assert (Change.CREATED, Change.UPDATED, Change.RESTORED) == (first.change, again.change, restored.change)
        assert restored.account == account
        assert frozenset({"read", "write"}) == account.scopes
        with pytest.raises(ConfigurationError, match="user_id is int"):
            await linker.link(connection, **call | {"user_id": 7})
        columns = mapping.table.c
        [stored] = await connection.execute(sa.select(columns.scopes, columns.expires_at))
        assert ("read write", NOON) == (stored[0], stored[1].replace(tzinfo=stored[1].tzinfo or UTC))
