"""One table decides which type can play which part: each type that SQLAlchemy exports works there, or is refused."""

from __future__ import annotations

import enum
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from accountlink import (
    AccountLinker,
    AccountMapping,
    Change,
    ConfigurationError,
    Granted,
    GrantMapping,
    Key,
    LinkBlocked,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Removal,
    ShareGrants,
)
from accountlink.tables.column_types import GRANT_PARTS, LINK_PARTS, Part, form_of
from accountlink.tables.idtype import IdType
from accountlink.tables.rows import read_moment, read_scopes
from accountlink.tables.type_layers import POSTGRESQL, SQLITE
from tests.support.databases import Database
from tests.support.loose import loose_type
from tests.support.models import SECRETS, Clock, identity, tokens

POLICY: Final = LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"})
BY_EMAIL: Final = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER, removal=Removal.SOFT)
SCOPES: Final = frozenset({"read", "write"})
BIG: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")
ORDINARY: Final[dict[Part, Any]] = {
    Part.ID: BIG,
    Part.USER: BIG,
    Part.MOMENT: sa.DateTime(timezone=True),
    Part.CLOCKED: sa.DateTime(timezone=True),
    Part.NUMBER: sa.BigInteger(),
    Part.FLAG: sa.Boolean(),
}
NO_TYPES: Final = {
    "AbstractMultiRange", "AbstractRange", "AbstractSingleRange", "NamedType", "TupleType", "TypeDecorator",
    "TypeEngine", "UserDefinedType", "Variant",
}  # fmt: skip
"""Types that dialects export as base classes, or for SQLAlchemy's own use in expressions."""
NOWHERE: Final = {"types.NullType"}
"""Types that no CREATE TABLE can name."""


class Vendor(enum.Enum):
    """Providers, as an application names them."""

    ACME = "acme"
    OTHER = "other"


def exported() -> Iterator[tuple[str, type[Any]]]:
    """Every type that SQLAlchemy's generic, PostgreSQL and SQLite dialects export."""
    for module in (sa.types, postgresql, sqlite):
        for name, found in sorted(vars(module).items()):
            is_type = isinstance(found, type) and issubclass(found, sa.types.TypeEngine)
            if is_type and not name.startswith("_") and name not in NO_TYPES:
                yield f"{module.__name__.rpartition('.')[2]}.{name}", found


def made(kind: type[Any]) -> Any:
    """An instance as an application would make it."""
    if issubclass(kind, sa.ARRAY):
        return kind(sa.Text)
    if issubclass(kind, postgresql.DOMAIN):
        return kind("word", sa.Text)
    if issubclass(kind, sa.Enum):
        return kind("acme", "other", name=f"vendor_{kind.__name__.lower()}")
    if issubclass(kind, (sa.CHAR, sa.NCHAR)):
        return kind(300)
    return kind()


OTHERS: Final[dict[str, Any]] = {
    "String(254)": sa.String(254),
    "DateTime with a zone": sa.DateTime(timezone=True),
    "TIMESTAMP with a zone, of seconds": postgresql.TIMESTAMP(timezone=True, precision=0),
    "TIMESTAMP of seconds": postgresql.TIMESTAMP(precision=0),
    "DATETIME in a form of its own": sqlite.DATETIME(truncate_microseconds=True),  # type: ignore[no-untyped-call]  # SQLAlchemy's
    "Uuid as text": sa.Uuid(as_uuid=False),
    "ARRAY of numbers": sa.ARRAY(sa.Integer),
    "ARRAY of VARCHAR": postgresql.ARRAY(sa.String(50)),
    "Enum of a class": sa.Enum(Vendor, name="vendor_class"),
    "Enum that is no type of the database's": sa.Enum(Vendor, native_enum=False),
    "Enum by value": sa.Enum(Vendor, name="vendor_value", values_callable=lambda kind: [each.value for each in kind]),
    "DOMAIN of numbers": postgresql.DOMAIN("count", sa.BigInteger),
    "DOMAIN of moments": postgresql.DOMAIN("moment", sa.DateTime(timezone=True)),
    "DOMAIN of flags": postgresql.DOMAIN("flag", sa.Boolean),
    "ARRAY or JSON": postgresql.ARRAY(sa.Text).with_variant(sa.JSON, "sqlite"),
    "ARRAY or text": postgresql.ARRAY(sa.Text).with_variant(sa.Text, "sqlite"),
    "TIMESTAMP or number": sa.DateTime(timezone=True).with_variant(sa.BigInteger, "sqlite"),
    "number or flag": sa.Boolean().with_variant(sa.Integer, "sqlite"),
    "UUID or text": sa.Uuid().with_variant(sa.String(36), "sqlite"),
    "CITEXT or text": sa.Text().with_variant(postgresql.CITEXT, "postgresql"),
    "small or big number": sa.BigInteger().with_variant(sa.SmallInteger, "sqlite"),
}
TYPES: Final[dict[str, Any]] = {name: made(kind) for name, kind in exported()} | OTHERS


def links(kind: Any, *roles: str, **options: Any) -> sa.Table:
    """A table of links where these roles are of one type, and the others of their ordinary ones."""
    return sa.Table("links", sa.MetaData(), *(_column(role, LINK_PARTS, kind, roles, options) for role in LINK_PARTS))


def shares(kind: Any, *roles: str, **options: Any) -> sa.Table:
    """A table of grants, likewise."""
    parts = {role: part for role, part in GRANT_PARTS.items() if role not in OMITTED}
    return sa.Table("shares", sa.MetaData(), *(_column(role, parts, kind, roles, options) for role in parts))


OMITTED: Final = ("token", "link_id", "link_version", "issued_id", "max_uses", "uses")


def _column(role: str, parts: Any, kind: Any, roles: tuple[str, ...], options: dict[str, Any]) -> sa.Column[Any]:
    chosen = kind if role in roles else ORDINARY.get(parts[role], sa.Text())
    made_here: dict[str, Any] = {}
    if role == "id" and role in roles:
        made_here["default"] = iter_of(chosen)
    return sa.Column(role, chosen, primary_key=role == "id", **made_here, **options.get(role, {}))


def ids(kind: Any) -> Iterator[Any]:
    """Ids as a column takes them."""
    python, by_uuid = IdType.of(sa.Column("x", kind)).python, IdType.of(sa.Column("x", kind)).is_uuid_text
    full = 300 if isinstance(kind, (sa.CHAR, sa.NCHAR)) else 0
    for number in itertools.count(1):
        as_text = str(_uuid(number)) if by_uuid else f"id-{number}".ljust(full, "x")
        known: dict[Any, Any] = {int: number, str: as_text, UUID: _uuid(number), bytes: b"\xff%d" % number}
        zone = UTC if isinstance(kind, sa.DateTime) and kind.timezone else None
        known |= {datetime: datetime(2026, 1, number, tzinfo=zone), date: date(2026, 1, number)}
        known |= {Decimal: Decimal(number), float: float(number)}
        yield known[python or kind.python_type]


def _uuid(number: int) -> UUID:
    """A UUID with letters: SQLite takes one of digits alone for a number where a column is declared as UUID."""
    return UUID(f"aaaaaaaa-bbbb-4ccc-8ddd-{number:012d}")


def iter_of(kind: Any) -> Callable[[], Any]:
    numbers = ids(kind)
    return lambda: next(numbers)


def accepted(parts: Any, kind: Any) -> tuple[str, ...]:
    return tuple(role for role, part in parts.items() if form_of(part, kind) is not None)


# -- refused where it cannot serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_a_type_that_cannot_serve_is_refused_by_name(kind: Any) -> None:
    """Each pair of part and type is served, or refused when the mapping is made: with column, role, type and remedy."""
    for role in LINK_PARTS:
        table = links(kind, role)
        if role in accepted(LINK_PARTS, kind):
            AccountMapping(table, policy=POLICY)
            continue
        with pytest.raises(ConfigurationError) as caught:
            AccountMapping(table, policy=POLICY)
        assert [] == [
            part for part in (f"'{role}' of 'links'", repr(kind), "Make it ") if part not in str(caught.value)
        ]
    for role in set(GRANT_PARTS) - set(OMITTED):
        table = shares(kind, role)
        if role in accepted(GRANT_PARTS, kind):
            ShareGrants(GrantMapping(table))
            continue
        with pytest.raises(ConfigurationError, match=rf"'{role}' of 'shares' .* Make it "):
            GrantMapping(table)


SPECIMENS: Final[dict[str, tuple[str, Any, str]]] = {
    "a day": ("created_at", sa.Date(), "Make it sa.DateTime(timezone=True)"),
    "a flag for a moment": ("deleted_at", sa.Boolean(), "Make it sa.DateTime(timezone=True)"),
    "a text for a number": ("version", sa.String(20), "Make it sa.BigInteger"),
    "a number for a flag": ("active", sa.Integer(), "Make it sa.Boolean"),
    "a number that is too small for a moment": ("expires_at", sa.SmallInteger(), "Make it sa.DateTime(timezone=True)"),
    "a short column for addresses": ("email", sa.String(100), "takes 100 characters"),
    "a short column for keys": ("email_key", sa.String(253), "takes 253 characters"),
    "texts of one form here and a list there": ("scopes", OTHERS["ARRAY or text"], "in one form on every database"),
}


@pytest.mark.parametrize(("role", "kind", "remedy"), SPECIMENS.values(), ids=SPECIMENS)
def test_what_would_fail_at_the_first_call_is_refused(role: str, kind: Any, remedy: str) -> None:
    """A column that would fail at some later link or unlink is refused when the mapping is made, with the way out."""
    with pytest.raises(ConfigurationError) as caught:
        AccountMapping(links(kind, role), policy=POLICY)
    assert f"'{role}' of 'links'" in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"server_default": "1970-01-01"}], ids=["no default", "a far date"])
def test_a_mark_that_is_never_null_is_refused(options: dict[str, Any]) -> None:
    """A live row is one whose deleted_at is NULL: without NULL each relink would restore, and wipe tokens."""
    table = links(ORDINARY[Part.MOMENT], deleted_at={"nullable": False} | options)
    with pytest.raises(ConfigurationError) as caught:
        AccountMapping(table, policy=POLICY)
    assert "'deleted_at' of 'links' takes no NULL" in str(caught.value)
    assert "map deleted_at=None and an 'active' flag" in str(caught.value)
    assert AccountMapping(table, policy=POLICY, deleted_at=None).columns.keys() >= {"active"}


@pytest.mark.parametrize("role", ["grantee_id", "redeemed_at", "ended_at"])
def test_what_is_empty_at_first_takes_null(role: str) -> None:
    """Columns of a grant that are filled later would refuse the first issue, so they are refused before it."""
    options: dict[str, Any] = {role: {"nullable": False}}
    with pytest.raises(ConfigurationError, match=rf"'{role}' of 'shares' takes no NULL"):
        GrantMapping(shares(sa.Text(), **options))


# -- served where it is accepted --------------------------------------------------------------------------------------


def distinct(dialect: sa.Dialect) -> dict[str, Any]:
    """The types, without those that on this database are one of them under a second name."""
    found: dict[Any, tuple[str, Any]] = {}
    for name, kind in TYPES.items():
        forms = tuple(form_of(part, kind) for part in Part)
        try:
            found.setdefault((kind.compile(dialect=dialect), forms, IdType.of(sa.Column("x", kind))), (name, kind))
        except (sa.exc.CompileError, AttributeError):  # the database has no such type
            continue
    return dict(found.values())


async def exists(connection: AsyncConnection, table: sa.Table) -> bool:
    """Whether this database can have such a table at all."""
    if connection.dialect.name == "sqlite" and any(c.type.__visit_name__ == "JSONB" for c in table.columns):
        return sqlite3.sqlite_version_info >= (3, 45)
    try:
        async with connection.begin_nested():
            await connection.run_sync(table.metadata.create_all)
    except (sa.exc.CompileError, sa.exc.DBAPIError, AttributeError):  # the last is how SQLite answers to a DOMAIN
        return False
    return True


@pytest.mark.filterwarnings("ignore:Type object:sqlalchemy.exc.SADeprecationWarning")  # SQLAlchemy's own DOMAIN
async def test_what_is_accepted_works(database: Database) -> None:
    """A column of each accepted type lives a whole life, in a session far from UTC: what goes in comes out again."""
    failed: dict[str, BaseException] = {}
    if database.is_postgresql:
        await loose_type(database.engine(), "citext")  # makes the type, also where the server has no such extension
    async with database.engine().connect() as connection:
        if database.is_postgresql:
            await connection.exec_driver_sql("SET TIME ZONE 'America/New_York'")
            await connection.commit()
        for name, kind in distinct(connection.dialect).items():
            for parts, make, live in ((LINK_PARTS, links, life_of_a_link), (GRANT_PARTS, shares, life_of_a_grant)):
                roles = tuple(role for role in accepted(parts, kind) if role not in OMITTED)
                table: sa.Table = make(kind, *roles)
                if roles and await exists(connection, table):
                    try:
                        await live(connection, table)
                    except Exception as error:  # noqa: BLE001  # each is told below, beside the others
                        failed[f"{name}: {' '.join(roles)}"] = error
                await connection.rollback()
                if database.is_postgresql:
                    await connection.exec_driver_sql("SET TIME ZONE 'America/New_York'")
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())


async def life_of_a_link(connection: AsyncConnection, table: sa.Table) -> None:
    clock = Clock()
    linker: AccountLinker[Any, Any] = AccountLinker(
        AccountMapping(table, policy=POLICY, email_key=None), secrets=SECRETS, clock=clock
    )
    users = ids(table.c.user_id.type)
    one, two, three = next(users), next(users), next(users)
    ends = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)
    call: dict[str, Any] = {"identity": identity("sub-1"), "credentials": tokens(expires_at=ends)}
    created = await linker.link(connection, user_id=one, **call)
    assert isinstance(created, Linked)
    assert (Change.CREATED, one, "acme", "sub-1") == (
        created.change, created.account.user_id, created.account.provider, created.account.account_id,
    )  # fmt: skip
    assert ("sub-1@example.com", SCOPES) == (created.account.email, created.account.scopes)
    assert (clock.now, None) == (created.account.created_at, created.account.deleted_at)
    stored = (await connection.execute(sa.select(table.c.expires_at, table.c.scopes, table.c.access_token))).one()
    assert (ends, SCOPES, "access-1") == (read_moment(stored[0]), read_scopes(stored[1]), stored[2])
    updated = await linker.link(connection, user_id=one, **call)
    assert isinstance(updated, Linked)
    assert (Change.UPDATED, created.account.id) == (updated.change, updated.account.id)
    conflict = await linker.link(connection, user_id=two, **call)
    assert isinstance(conflict, OwnershipConflict)
    can_move = IdType.of(table.c.id).python is not None  # a token says what type of id it names
    assert can_move is (conflict.transfer_token is not None)
    if conflict.transfer_token is None:
        return
    moved = await linker.transfer(connection, conflict.transfer_token, user_id=two)
    assert (two, created.account.id) == (moved.account.user_id, created.account.id)
    owner = await linker.find_owner(connection, provider="acme", account_id="sub-1")
    assert owner is not None
    assert two == owner.user_id
    removed = await linker.unlink(connection, user_id=two, link_id=created.account.id, reason="left")
    assert clock.now == removed.account.deleted_at
    assert [] == list(await linker.accounts(connection, user_id=two))
    restored = await linker.link(connection, user_id=two, **call)
    assert isinstance(restored, Linked)
    assert (Change.RESTORED, created.account.id, None) == (
        restored.change, restored.account.id, restored.account.deleted_at,
    )  # fmt: skip
    await linker.unlink(connection, user_id=two, link_id=created.account.id, reason="fraud")
    with pytest.raises(LinkBlocked):
        await linker.link(connection, user_id=two, **call)
    if type(table.c.email_key.type) is sa.Text:
        return  # as in the life before
    by_email: AccountLinker[Any, Any] = AccountLinker(AccountMapping(table, policy=BY_EMAIL))
    for change in (Change.CREATED, Change.UPDATED):
        outcome = await by_email.link(connection, user_id=three, **call)
        assert isinstance(outcome, Linked)
        assert change is outcome.change


async def life_of_a_grant(connection: AsyncConnection, table: sa.Table) -> None:
    moments_differ = repr(table.c.expires_at.type) != repr(ORDINARY[Part.CLOCKED])
    for clock in (None, Clock()) if moments_differ else (None,):
        mapping = GrantMapping(table)
        grants = ShareGrants(mapping) if clock is None else ShareGrants(mapping, clock=clock)
        users = ids(table.c.grantor_id.type)
        one = next(users)
        two = [*itertools.islice(ids(table.c.grantee_id.type), 2)][1]
        hour = timedelta(hours=1)
        issued = await grants.issue(connection, grantor_id=one, expires_in=hour)
        granted = await grants.redeem(connection, issued.token, grantee_id=two)
        assert isinstance(granted, Granted)
        assert (one, two, issued.id) == (granted.grant.grantor_id, granted.grant.grantee_id, issued.id)
        now = datetime.now(UTC) if clock is None else clock.now
        assert hour - timedelta(minutes=1) < granted.grant.expires_at - now < hour + timedelta(minutes=1)
        assert 1 == len(await grants.active(connection, grantee_id=two))
        await grants.revoke(connection, grantor_id=one, grant_id=issued.id)
        assert [] == list(await grants.active(connection, grantee_id=two))
        await grants.expire(connection)


def test_every_type_exists_somewhere() -> None:
    """The tests above pass over what a database does not have; here is held that this is little."""
    named = set(distinct(POSTGRESQL)) | set(distinct(SQLITE))
    tables = {name: sa.Table("probe", sa.MetaData(), sa.Column("x", kind)) for name, kind in TYPES.items()}
    cannot = {
        name for name, table in tables.items() if not any(_compiles(table, each) for each in (POSTGRESQL, SQLITE))
    }
    assert NOWHERE == cannot
    assert len(named) > 70


def _compiles(table: sa.Table, dialect: sa.Dialect) -> bool:
    try:
        return bool(str(sa.schema.CreateTable(table).compile(dialect=dialect)))
    except sa.exc.CompileError:
        return False
