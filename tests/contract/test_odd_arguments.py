"""Arguments that cannot be meant: refused before any SQL, by a message that says what to pass and shows no value."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column, relationship, synonym

from accountlink import (
    AccountLinker,
    AccountNotFound,
    ConfigurationError,
    InvalidCredentials,
    Linked,
    LinkedAccountMixin,
    LinkPolicy,
    Removal,
    ShareGrants,
    TokenSet,
    grants_table,
    link_outbox,
    pending_credentials,
    pooler_options,
    refresh_states,
    transfer_ledger,
    tune_sqlite,
)
from accountlink.values.credentials import checked_scopes, checked_token
from accountlink.values.secrecy import Concealed
from accountlink.web import flow_states
from tests.support.databases import create, rows
from tests.support.models import EXCLUSIVE_SOFT, SECRETS, identity, make_tables, tokens
from tests.support.odd import CANARY, Ambiguous, Index, shown

ON_TWO: Final = pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
ON_SQLITE: Final = pytest.mark.parametrize("kind", ["sqlite"])


class Base(DeclarativeBase):
    """The application's tables."""


class Color(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):  # noqa: UP042  # its str() is not its value
    ONE = "the-word"


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)
    user_id: Mapped[int]
    account_id: Mapped[str] = mapped_column(sa.String(30))
    access_token: Mapped[str | None] = mapped_column(sa.String(40))
    reason: Mapped[str | None] = mapped_column(sa.String(20))
    label: Mapped[str | None] = mapped_column(sa.String(20))
    score: Mapped[int | None]
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(6, 2))
    seen: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[datetime | None] = mapped_column(sa.DateTime)
    color: Mapped[Color | None]
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    other_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id"))
    other: Mapped[User | None] = relationship(User)
    nickname = synonym("label")
    loud: Mapped[str | None] = column_property(sa.func.upper(sa.literal("loud")))


@asynccontextmanager
async def counted(engine: AsyncEngine) -> AsyncIterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    sa.event.listen(engine.sync_engine, "before_cursor_execute", count)
    try:
        yield sent
    finally:
        sa.event.remove(engine.sync_engine, "before_cursor_execute", count)


async def refused(engine: AsyncEngine, linker: AccountLinker[Any, Any] | None = None, **given: Any) -> str:
    """The message with which a link is refused before any SQL; it shows nothing of the values."""
    linker = linker or AccountLinker(Connection, secrets=SECRETS)
    arguments: dict[str, Any] = {"user_id": 1, "identity": identity()} | given
    async with counted(engine) as sent:
        with pytest.raises(ConfigurationError) as caught:
            await linker.link(engine, **arguments)
    assert [] == sent
    assert CANARY not in shown(caught.value)
    return str(caught.value)


TOO_LONG: Final = CANARY * 10
NOWHERE: Final = timezone(timedelta(hours=-12))
VALUES: Final[dict[str, tuple[Any, str]]] = {
    "a lone surrogate": (
        {Connection.label: f"{CANARY}\ud800"},
        "'label' of 'connections' has a NUL or a lone surrogate",
    ),
    "a NUL": ({Connection.label: f"{CANARY}\0"}, "'label'"),
    "too long": ({Connection.label: TOO_LONG}, "'label' of 'connections' has 60 characters, and the column takes 20"),
    "no text": ({Connection.label: 7}, "'label' of 'connections' is int, and the column takes str"),
    "a number without end": ({Connection.score: 10**30}, "'score' of 'connections' is outside"),
    "one beyond the column": ({Connection.score: 2**31}, "'score'"),
    "numpy's, beyond it": ({Connection.score: Index(10**30)}, "'score'"),
    "an array": ({Connection.score: Ambiguous()}, "'score' of 'connections' is Ambiguous, and the column takes int"),
    "a number as text": ({Connection.score: "7"}, "takes int"),
    "too many digits": ({Connection.price: Decimal(10**6)}, "'price'"),
    "an endless price": ({Connection.price: float("inf")}, "'price'"),
    "a moment that is NaN": ({Connection.seen: float("nan")}, "'seen' of 'connections' is float, and the column takes"),
    "a naive moment": ({Connection.seen: datetime(2026, 1, 1)}, "'seen' of 'connections' has no time zone"),  # noqa: DTZ001  # on purpose
    "an aware one": ({Connection.local: datetime(2026, 1, 1, tzinfo=UTC)}, "'local' of 'connections' has a time zone"),
    "a moment that UTC has not": ({Connection.seen: datetime.max.replace(tzinfo=NOWHERE)}, "'seen'"),
    "no member": (
        {Connection.color: CANARY},
        "'color' of 'connections' is none of those that its enumeration has: RED",
    ),
    "a surrogate in JSON": ({Connection.document: {"a": [f"{CANARY}\ud800"]}}, "'document'"),
    "a number that JSON has not": ({Connection.document: [float("nan")]}, "'document'"),
    "an expression": (
        {Connection.score: sa.func.length(CANARY)},
        "An SQL expression cannot be the value of the column",
    ),
    "another column": ({Connection.label: Connection.reason}, "Compute it before the call"),
    "no mapping": ([(Connection.label, CANARY)], "take a mapping such as {Model.column: value}, not list"),
    "a text": (CANARY, "take a mapping"),
    "a name": ({"label": CANARY}, "Pass one of its mapped columns: Connection.label, not its name."),
    "a name of nothing": ({CANARY: 1}, "What is given, str, is not a column of 'connections'"),
    "a relationship": ({Connection.other: 1}, "Pass one of its mapped columns: Connection.other_id."),
    "a computed attribute": ({Connection.loud: "X"}, "Connection.loud is not a column of 'connections'"),
    "twice": ({Connection.label: "a", Connection.nickname: "b"}, "'label' is given twice"),
    "what accountlink writes": ({Connection.user_id: 7}, "accountlink writes itself"),
}


@ON_SQLITE
@pytest.mark.parametrize("argument", ["values", "update_values"])
@pytest.mark.parametrize(("values", "message"), VALUES.values(), ids=VALUES)
async def test_values_are_refused_by_their_columns_name(
    engine: AsyncEngine, values: Any, message: str, argument: str
) -> None:
    """A value that its column cannot store, or that has no column, is refused before any SQL, with the remedy."""
    assert message in await refused(engine, **{argument: values})


@ON_TWO
async def test_values_of_related_kinds_are_stored(engine: AsyncEngine) -> None:
    """A flag or numpy's number, a text of a class of its own, an enumeration's name: stored as what they are."""
    await create(engine, Base.metadata)
    values = {
        Connection.label: Word.ONE,
        Connection.score: Index(7),
        Connection.price: True,
        Connection.color: "RED",
    }
    linker = AccountLinker(Connection)
    await linker.link(engine, user_id=1, identity=identity(), values=values)
    stored = await rows(engine, "SELECT label, score, price, color FROM connections")
    assert [("the-word", 7, 1, "RED")] == stored


@ON_TWO
async def test_what_is_too_long_for_a_column_names_it(engine: AsyncEngine) -> None:
    """An account id or a token longer than its column is refused before any SQL, with the column's name."""
    await create(engine, Base.metadata)
    assert "'account_id' of 'connections' has 60 characters" in await refused(engine, identity=identity(TOO_LONG))
    message = await refused(engine, credentials=tokens(TOO_LONG))
    assert "'access_token' of 'connections' has 60 characters, and the column takes 40. Widen the column" in message


@ON_SQLITE
@pytest.mark.parametrize("reason", ["\ud800", "a\0", TOO_LONG, 7, b"x", sa.literal("x")])
async def test_a_reason_that_cannot_be_stored_is_refused(engine: AsyncEngine, reason: Any) -> None:
    """A reason that is not text, or does not fit its column, is refused before any SQL."""
    async with counted(engine) as sent:
        with pytest.raises(ConfigurationError, match="reason"):
            await AccountLinker(Connection).unlink(engine, user_id=1, link_id=1, reason=reason)
    assert [] == sent


SPANS: Final = [600, -timedelta(seconds=1), timedelta.max, float("nan"), "10 min"]


@pytest.mark.parametrize("span", [*SPANS, timedelta(0), None], ids=repr)
def test_a_lifetime_is_a_length_of_time(span: Any) -> None:
    """A lifetime is refused at construction if it is no timedelta, not positive, or over a hundred years."""
    with pytest.raises(ConfigurationError, match="transfer_lifetime= takes"):
        AccountLinker(Connection, transfer_lifetime=span)


@pytest.mark.parametrize("span", [*SPANS, timedelta(days=25)], ids=repr)
def test_a_lock_timeout_is_what_the_server_takes(span: Any) -> None:
    """A lock timeout over 24 days, PostgreSQL's greatest value, is refused at construction."""
    with pytest.raises(ConfigurationError, match="lock_timeout= takes"):
        AccountLinker(Connection, lock_timeout=span)
    with pytest.raises(ConfigurationError, match="lock_timeout= takes"):
        ShareGrants(grants_table(sa.MetaData()), lock_timeout=span)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_the_longest_lock_timeout_is_one(engine: AsyncEngine) -> None:
    """An accepted lock timeout is set: the server takes the longest allowed value."""
    await create(engine, Base.metadata)
    linker = AccountLinker(Connection, lock_timeout=timedelta(milliseconds=2**31 - 1))
    assert isinstance(await linker.link(engine, user_id=1, identity=identity()), Linked)


@pytest.mark.parametrize("clock", [7, None, "now"], ids=repr)
def test_a_clock_is_a_function(clock: Any) -> None:
    """An argument that is not callable is refused at construction, not at the first link."""
    with pytest.raises(ConfigurationError, match="clock= takes a function"):
        AccountLinker(Connection, clock=clock)

    guard: Any = clock or 7
    with pytest.raises(ConfigurationError, match="guard_last= takes a function"):
        AccountLinker(Connection, guard_last=guard)


@ON_SQLITE
@pytest.mark.parametrize("now", [None, 7.0, datetime(2026, 1, 1), datetime.max.replace(tzinfo=UTC)], ids=repr)  # noqa: DTZ001  # on purpose
async def test_a_clock_tells_a_present_moment(engine: AsyncEngine, now: Any) -> None:
    """A clock that returns no moment, a naive one, or one at the end of time is refused before any SQL."""
    linker = AccountLinker(Connection, clock=lambda: now)
    assert (await refused(engine, linker)).startswith("clock= returned")


@ON_TWO
async def test_the_librarys_tables_take_long_names(engine: AsyncEngine) -> None:
    """With names of 60 characters the tables can be made and used, whatever the metadata's naming convention is."""
    names = {
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
    for metadata in (sa.MetaData(), sa.MetaData(naming_convention=names)):
        made = [
            grants_table(metadata, name="grants".ljust(60, "_"), one_active_per_pair=True),
            link_outbox(metadata, name="events".ljust(60, "_")),
            transfer_ledger(metadata, name="ledger".ljust(60, "_")),
        ]
        await create(engine, metadata)
        shares = ShareGrants(made[0], outbox=made[1])
        issued = await shares.issue(engine, grantor_id=1, expires_in=timedelta(hours=1))
        assert "granted" == (await shares.redeem(engine, issued.token, grantee_id=2)).code
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)


@ON_TWO
@pytest.mark.parametrize(
    ("convention", "named"),
    [({"pk": "pk_%(table_name)s"}, "ix_{0}_{1}"), ({"ix": "%(column_0_name)s_of_%(table_name)s"}, "{1}_of_{0}")],
    ids=["without indexes", "with indexes"],
)
async def test_the_librarys_tables_on_a_naming_convention(
    engine: AsyncEngine, convention: dict[str, str], named: str
) -> None:
    """Each index has a name, also where a convention says nothing of indexes: else its table could not be made."""
    metadata = sa.MetaData(naming_convention=convention)
    grants_table(metadata, link_id=sa.BigInteger)
    for make in (transfer_ledger, link_outbox, pending_credentials, refresh_states, flow_states):
        make(metadata)
    await create(engine, metadata)
    first_columns = {
        "accountlink_transfer_ledger": [],
        "accountlink_events": ["table_name"],
        "accountlink_pending_credentials": ["kept_until"],
        "accountlink_refresh_states": ["table_name"],
        "accountlink_flow_states": ["expires_at", "user_id"],
        "accountlink_grants": ["grantee_id", "issued_id", "link_id"],
    }
    expected = {name: {named.format(name, column) for column in first} for name, first in first_columns.items()}
    expected["accountlink_grants"].add("ix_accountlink_grants_pair")  # a name of its own
    assert expected == {name: {index.name for index in table.indexes} for name, table in metadata.tables.items()}


@pytest.mark.parametrize("name", ["x" * 64, "é" * 32, "", "a\0", "\ud800", None, 7], ids=ascii)
def test_a_name_that_no_database_keeps_is_refused(name: Any) -> None:
    """A table name over 63 bytes is refused, because PostgreSQL would cut it off and two tables could meet."""
    for make in (grants_table, link_outbox, transfer_ledger):
        metadata = sa.MetaData()
        with pytest.raises(ConfigurationError, match=make.__name__):
            make(metadata, name=name)
        assert not metadata.tables
    with pytest.raises(ConfigurationError, match="MetaData"):
        grants_table(Base)  # type: ignore[arg-type]  # on purpose


def test_names_of_indexes_keep_within_their_bytes() -> None:
    """An index name over 63 bytes is refused, although SQLAlchemy counts characters and not bytes."""
    metadata = sa.MetaData()
    for make in (grants_table, link_outbox):
        with pytest.raises(ConfigurationError, match="shorter"):
            make(metadata, name="é" * 30)
    assert not metadata.tables


@ON_TWO
async def test_a_bind_that_can_run_nothing_is_told(engine: AsyncEngine) -> None:
    """A session that is closed for good or has no engine, a connection that is closed or was never begun."""
    await create(engine, Base.metadata)
    linker = AccountLinker(Connection)
    ended = AsyncSession(engine, close_resets_only=False)
    await ended.close()
    async with engine.connect() as closed:
        pass
    for bind in (ended, AsyncSession(), closed, engine.connect()):
        with pytest.raises(ConfigurationError, match="can run nothing"):
            await linker.accounts(bind, user_id=1)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg", "psycopg"])
async def test_a_value_that_cannot_be_sent_is_told(engine: AsyncEngine) -> None:
    """A refusal by SQLAlchemy or the driver is raised without the value, and the transaction continues."""

    class Picky(sa.types.TypeDecorator[str]):
        impl = sa.Text
        cache_ok = True

        def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
            raise ValueError(f"{value} of {dialect.name}")

    tables = make_tables(EXCLUSIVE_SOFT)
    tables.Connection.__table__.c.label.type = Picky()
    await create(engine, tables.metadata)
    async with engine.begin() as connection:
        with pytest.raises(ConfigurationError, match="cannot send a value") as caught:
            await tables.linker().link(
                connection, user_id=1, identity=identity(), values={tables.Connection.label: CANARY}
            )
        assert CANARY not in shown(caught.value)
        assert isinstance(await tables.linker().link(connection, user_id=1, identity=identity()), Linked)


@pytest.mark.parametrize("kind", ["asyncpg"])
async def test_a_value_that_the_driver_refuses_is_told(engine: AsyncEngine) -> None:
    """A wrong value that an application's type lets through to asyncpg is refused, and not shown."""

    class Lax(sa.types.TypeDecorator[Any]):
        impl = sa.Integer
        cache_ok = True

        def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
            return value

    tables = make_tables(EXCLUSIVE_SOFT)
    tables.Connection.__table__.c.score.type = Lax()
    await create(engine, tables.metadata)
    values = {tables.Connection.score: CANARY}
    async with engine.connect() as connection:
        for bind in (engine, connection):
            with pytest.raises(ConfigurationError, match="cannot send a value") as caught:
                await tables.linker().link(bind, user_id=1, identity=identity(), values=values)
            assert CANARY not in shown(caught.value)


@ON_SQLITE
async def test_a_grantor_beyond_the_links_users_has_no_link(engine: AsyncEngine) -> None:
    """A grantor's id that the table of links cannot hold owns no link: the answer is that for another's link."""
    metadata = Base.metadata
    shares = ShareGrants(grants_table(metadata, name="shares", link_id=sa.Integer()), accounts=Connection)
    await create(engine, metadata)
    with pytest.raises(AccountNotFound):
        await shares.issue(engine, grantor_id=2**31, link_id=1, expires_in=timedelta(hours=1))


def test_a_token_of_a_class_of_its_own_is_its_text() -> None:
    """A member of an enumeration of texts is its value, and not the member's name."""
    made = TokenSet(access_token=Word.ONE, scopes=[Word.ONE], token_type=Word.ONE)
    assert ("the-word", frozenset({"the-word"}), "the-word") == (
        made.access_token.reveal(),
        made.scopes,
        made.token_type,
    )
    assert str is type(made.token_type)
    assert [str] == [type(scope) for scope in made.scopes]


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("token_type", {"token_type": None}),
        ("token_type", {"token_type": ""}),
        ("token_type", {"token_type": "a\0"}),
        ("expires_at", {"expires_at": datetime.max.replace(tzinfo=NOWHERE)}),
    ],
    ids=repr,
)
def test_a_token_set_is_checked_to_the_last_field(field: str, given: dict[str, Any]) -> None:
    """The name of a scheme is text, and an end is a moment that UTC has."""
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet(access_token=CANARY, **given)
    assert field == caught.value.field
    assert CANARY not in shown(caught.value)


def test_a_secret_in_the_place_of_its_text_and_one_scope_say_what_to_pass() -> None:
    """``tokens.access_token`` is what many pass first; and one text is many letters."""
    secret: Any = TokenSet(access_token=CANARY).access_token
    for call in (
        lambda: TokenSet(access_token=secret),
        lambda: checked_token("rejected", Concealed(secret)),
        lambda: checked_token("presented", Concealed(secret)),
    ):
        with pytest.raises(
            InvalidCredentials, match=r"Pass its text, such as tokens\.access_token\.reveal\(\)"
        ) as caught:
            call()
        assert CANARY not in shown(caught.value)
    with pytest.raises(InvalidCredentials, match=r'require .* Pass a set of scopes, such as \{"calendar"\}'):
        checked_scopes("calendar")


@pytest.mark.parametrize("response", [None, "access_token=x", [("access_token", CANARY)], 7], ids=repr)
def test_a_response_is_a_mapping(response: Any) -> None:
    """A value that is not a decoded token response is refused, and not shown."""
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet.from_response(response, received_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert "response" == caught.value.field
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet.from_response({"access_token": CANARY}, received_at=response)
    assert "received_at" == caught.value.field


def test_secrets_of_any_text_sign() -> None:
    """A secret that UTF-8 cannot encode is refused, and the error does not show it."""
    AccountLinker(Connection, secrets=[f"{CANARY}\ud800" * 8])
    ambiguous: Any = Ambiguous()
    with pytest.raises(ConfigurationError):
        AccountLinker(Connection, secrets=ambiguous)


@pytest.mark.parametrize("reasons", [{"a\0"}, {"\ud800"}, [["fraud"]], [7], {""}], ids=ascii)
def test_a_blocked_reason_is_a_text_that_is_stored(reasons: Any) -> None:
    """A reason that no column can hold could never be met."""
    with pytest.raises(ConfigurationError, match="blocked_reasons"):
        LinkPolicy(removal=Removal.SOFT, blocked_reasons=reasons)


@pytest.mark.parametrize("wait", [-1, 2**31, 1.5, True, "5000", None], ids=repr)
async def test_a_busy_timeout_is_a_whole_number(wait: Any, tmp_path: Any) -> None:
    """A busy timeout that SQLite refuses is refused immediately, not at the first connection."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(ConfigurationError, match="busy_timeout="):
        tune_sqlite(engine, busy_timeout=wait)


def test_arguments_of_a_driver_are_a_mapping() -> None:
    """Any other value is refused."""
    with pytest.raises(ConfigurationError, match="connect_args= takes a mapping"):
        pooler_options("postgresql+asyncpg://host/db", connect_args="timeout=3")  # type: ignore[arg-type]  # on purpose
