"""AccountMapping: whose column plays which part, and what is refused before a call could go wrong."""

import enum
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, column_property, mapped_column, relationship, synonym

from accountlink import (
    AccountMapping,
    ConfigurationError,
    InvalidIdentity,
    Key,
    LinkPolicy,
    Ownership,
    ProviderIdentity,
    Removal,
    TokenSet,
)
from accountlink.linking.statements import Shape, Statements
from accountlink.linking.store import AccountStore
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import ROLES
from accountlink.values.secrecy import Parameters

EXCLUSIVE: Final = LinkPolicy()
PER_USER: Final = LinkPolicy(ownership=Ownership.PER_USER)
SOFT: Final = LinkPolicy(removal=Removal.SOFT)
BY_EMAIL: Final = LinkPolicy(key=Key.EMAIL, ownership=Ownership.PER_USER)
BLOCKING: Final = LinkPolicy(removal=Removal.SOFT, blocked_reasons={"fraud"})
DIALECTS: Final[dict[str, sa.Dialect]] = {"postgresql": postgresql.dialect(), "sqlite": sqlite.dialect()}  # type: ignore[no-untyped-call]  # SQLAlchemy's
TEXT: Final = ("provider", "account_id", "email", "email_key", "access_token", "refresh_token", "scopes", "reason")
SMALLEST: Final = ("id", "user_id", "provider", "account_id")


def column(role: str, **options: Any) -> sa.Column[Any]:
    kind: Any = sa.DateTime(timezone=True)
    if role in TEXT:
        kind = sa.Text()
    elif role in {"id", "user_id", "version"}:
        kind = sa.Integer()
    elif role == "active":
        kind = sa.Boolean()
    return sa.Column(role, kind, **({"primary_key": True} if role == "id" else {}) | options)


def table(*roles: str, **columns: sa.Column[Any] | None) -> sa.Table:
    """A table of links with columns of these default names, and others as they are given."""
    made = {role: column(role) for role in roles} | columns
    return sa.Table("links", sa.MetaData(), *(each for each in made.values() if each is not None))


def mapped(target: Any, policy: LinkPolicy = EXCLUSIVE, **columns: Any) -> AccountMapping[Any, Any]:
    return AccountMapping(target, policy=policy, **columns)


def refusal(target: Any, policy: LinkPolicy = EXCLUSIVE, **columns: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        mapped(target, policy, **columns)
    assert "configuration_error" == caught.value.code
    return str(caught.value)


def names(mapping: AccountMapping[Any, Any]) -> dict[str, str]:
    return {role: column.name for role, column in mapping.columns.items()}


class Base(DeclarativeBase):
    """Of this module's models."""


class Calendar(Base):
    """A table with names of its own."""

    __tablename__ = "calendars"
    ident: Mapped[int] = mapped_column("pk", primary_key=True)
    owner_id: Mapped[UUID]
    vendor: Mapped[str]
    vendor_uid: Mapped[str] = mapped_column("uid")
    vendor_mail: Mapped[str | None] = mapped_column()
    is_active: Mapped[bool]
    user = synonym("owner_id")
    lowered = column_property(sa.func.lower(vendor_mail))

    @hybrid_property
    def seller(self) -> str:
        """The vendor, under another name."""
        return self.vendor

    @hybrid_property
    def vendor_key(self) -> str:
        """Something computed."""
        return self.vendor.lower()

    @vendor_key.inplace.expression
    @classmethod
    def _vendor_key(cls) -> sa.ColumnElement[str]:
        return sa.func.lower(cls.vendor)


class Stranger(Base):
    """Another table."""

    __tablename__ = "strangers"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


# -- what is found --------------------------------------------------------------------------------------------------


def test_default_names_need_not_be_given() -> None:
    """A table whose columns carry the names of the roles is mapped by its policy alone."""
    every = table(*ROLES)
    assert {role: role for role in ROLES} == names(mapped(every, SOFT))


def test_only_what_the_table_has_is_mapped() -> None:
    """A role without a column is left out, and a column without a role is the application's own."""
    assert {role: role for role in SMALLEST} == names(mapped(table(*SMALLEST, org=sa.Column("org", sa.Text))))


def test_explicit_attributes_win_over_default_names() -> None:
    """A column that is passed is used, even beside a column with the role's name."""
    other = table(*SMALLEST, "email", other=sa.Column("contact", sa.Text))
    assert "contact" == names(mapped(other, email=other.c.contact))["email"]


def test_none_leaves_a_column_alone() -> None:
    """``None`` maps nothing, whatever the table has."""
    assert set(SMALLEST) == set(names(mapped(table(*SMALLEST, "email", "deleted_at"), email=None, deleted_at=None)))


def test_a_model_is_mapped_by_its_attributes() -> None:
    """Attributes name their columns, whatever these are called in the database."""
    mapping = mapped(
        Calendar,
        id=Calendar.ident,
        user_id=Calendar.owner_id,
        provider=Calendar.vendor,
        account_id=Calendar.vendor_uid,
        email=Calendar.vendor_mail,
    )
    expected = {"id": "pk", "user_id": "owner_id", "provider": "vendor", "account_id": "uid", "email": "vendor_mail"}
    assert expected == names(mapping)
    assert "calendars" == mapping.name


def test_an_attribute_is_found_by_its_own_name_and_not_its_columns() -> None:
    """The default name is the attribute's: a column that is called so under another attribute is not meant."""

    class Crossed(DeclarativeBase):
        pass

    class Link(Crossed):
        __tablename__ = "links"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column("account_id")
        provider: Mapped[str]
        account_id: Mapped[str] = mapped_column("user_id")

    assert {"id": "id", "user_id": "account_id", "provider": "provider", "account_id": "user_id"} == names(mapped(Link))


def test_a_column_of_the_models_table_is_taken() -> None:
    """A model's column may be named by the table's own column as well as by the attribute."""
    column_of_table = sa.inspect(Calendar).local_table.c.owner_id
    mapping = mapped(
        Calendar, id=Calendar.ident, user_id=column_of_table, provider=Calendar.vendor, account_id=Calendar.vendor_uid
    )
    assert "owner_id" == names(mapping)["user_id"]


STAND_INS: Final[dict[str, tuple[str, Callable[[], object], str]]] = {
    "an alias's attribute": ("user_id", lambda: aliased(Calendar).owner_id, "owner_id"),
    "a synonym": ("user_id", lambda: Calendar.user, "owner_id"),
    "a plain hybrid": ("provider", lambda: Calendar.seller, "vendor"),
}


@pytest.mark.parametrize(("role", "make", "column"), STAND_INS.values(), ids=STAND_INS)
def test_what_stands_for_a_column_is_that_column_or_refused(role: str, make: Callable[[], object], column: str) -> None:
    """An alias, a synonym or a plain hybrid names its column, or is refused as none: it is never taken for another."""
    given: dict[str, Any] = {"user_id": Calendar.owner_id, "provider": Calendar.vendor} | {role: make()}
    try:
        mapping = mapped(Calendar, id=Calendar.ident, account_id=Calendar.vendor_uid, **given)
    except ConfigurationError as error:
        assert "is not a column of 'calendars'" in str(error)  # noqa: PT017  # one of two answers
        return
    assert column == names(mapping)[role]


def test_a_table_in_a_schema_is_named_with_it() -> None:
    """Messages name the table as the database does."""
    made = sa.Table("links", sa.MetaData(), *(column(role) for role in SMALLEST), schema="auth")
    assert "auth.links" == mapped(made).name


@pytest.mark.parametrize(
    ("policy", "columns", "roles"),
    [
        (EXCLUSIVE, (), ("user_id", "provider", "account_id")),
        (PER_USER, (), ("user_id", "provider", "account_id")),
        (BY_EMAIL, ("email",), ("user_id", "provider", "email")),
        (BY_EMAIL, ("email", "email_key"), ("user_id", "provider", "email_key")),
        (BY_EMAIL, ("email_key",), ("user_id", "provider", "email_key")),
    ],
)
def test_the_key_is_the_policys(policy: LinkPolicy, columns: tuple[str, ...], roles: tuple[str, ...]) -> None:
    """F15: an e-mail key is ``email_key``, or the e-mail column itself where there is no other."""
    assert roles == mapped(table(*SMALLEST, *columns), policy).key_roles


def test_a_mapping_does_not_need_the_other_models_yet() -> None:
    """A linker is made at import time, when the class that a relationship names by a text may not exist yet."""

    class Early(DeclarativeBase):
        pass

    class Link(Early):
        __tablename__ = "links"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
        provider: Mapped[str]
        account_id: Mapped[str]
        user: Mapped[Any] = relationship("User")

    mapping = mapped(Link)

    class User(Early):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert set(SMALLEST) == set(mapping.columns)
    assert isinstance(Link(user=User(id=1)).user, User)


# -- what is refused ------------------------------------------------------------------------------------------------

MISSING: Final[dict[str, tuple[LinkPolicy, tuple[str, ...], str]]] = {
    "no id": (EXCLUSIVE, ("user_id", "provider", "account_id"), "id"),
    "no user": (EXCLUSIVE, ("id", "provider", "account_id"), "user_id"),
    "no provider": (EXCLUSIVE, ("id", "user_id", "account_id"), "provider"),
    "no account id": (EXCLUSIVE, ("id", "user_id", "provider", "email"), "account_id"),
    "no account id, per user": (PER_USER, ("id", "user_id", "provider", "email"), "account_id"),
    "no e-mail": (BY_EMAIL, SMALLEST, "email"),
    "no reason": (BLOCKING, (*SMALLEST, "deleted_at"), "reason"),
}


@pytest.mark.parametrize(("policy", "roles", "missing"), MISSING.values(), ids=MISSING)
def test_a_missing_column_is_named(policy: LinkPolicy, roles: tuple[str, ...], missing: str) -> None:
    """A table that cannot serve its policy is refused, and the message says what to map or to add."""
    message = refusal(table(*roles), policy)
    assert f"'links' has no {missing!r} column mapped" in message
    assert f"Map {missing}=... or add it." in message


@pytest.mark.parametrize("role", SMALLEST)
def test_a_needed_column_cannot_be_left_alone(role: str) -> None:
    """``None`` for a column that every table of links needs is refused like a missing one."""
    assert f"has no {role!r} column mapped" in refusal(table(*SMALLEST), EXCLUSIVE, **dict.fromkeys([role]))


def test_soft_removal_needs_a_mark() -> None:
    """Removal.SOFT without a column that marks dead rows is refused, with both ways out."""
    message = refusal(table(*SMALLEST), SOFT)
    assert "needs a 'deleted_at' or an 'active' column in 'links'" in message
    assert "or use Removal.DELETE" in message


@pytest.mark.parametrize("marks", [("deleted_at",), ("active",), ("deleted_at", "active")], ids=str)
def test_soft_removal_takes_either_mark(marks: tuple[str, ...]) -> None:
    """A timestamp, a flag or both mark the dead."""
    assert set(marks) <= set(mapped(table(*SMALLEST, *marks), SOFT).columns)


@pytest.mark.parametrize("mark", ["deleted_at", "active"])
def test_deletion_does_not_ignore_a_mark(mark: str) -> None:
    """Removal.DELETE on a table that marks its dead would count them as links, so it is refused with both ways out."""
    message = refusal(table(*SMALLEST, mark), EXCLUSIVE)
    assert f"'links' has {mark!r}, which Removal.DELETE would ignore" in message
    assert f"Use Removal.SOFT, or map {mark}=None" in message


def test_a_column_of_another_table_is_refused() -> None:
    """A column that is not in the table of links is refused, whichever way it is named."""
    links = table(*SMALLEST)
    wrong: list[Any] = [Stranger.user_id, sa.inspect(Stranger).local_table.c.user_id, table(*SMALLEST).c.user_id]
    for each in wrong:
        message = refusal(links, user_id=each)
        assert "is not a column of 'links'. Pass one of its mapped columns." in message


NOT_COLUMNS: Final[dict[str, Callable[[], object]]] = {
    "an expression": lambda: sa.func.lower(Calendar.vendor),
    "a label": lambda: Calendar.vendor.label("provider"),
    "a hybrid with an expression": lambda: Calendar.vendor_key,
    "a column property": lambda: Calendar.lowered,
    "its name": lambda: "vendor",
    "the model": lambda: Calendar,
    "a number": lambda: 7,
}


@pytest.mark.parametrize("make", NOT_COLUMNS.values(), ids=NOT_COLUMNS)
def test_what_is_no_column_is_refused(make: Callable[[], object]) -> None:
    """An attribute that cannot be written is no column, and is refused when the mapping is made."""
    message = refusal(
        Calendar, id=Calendar.ident, user_id=Calendar.owner_id, provider=make(), account_id=Calendar.vendor_uid
    )
    assert "is not a column of 'calendars'" in message


TARGETS: Final[dict[str, Callable[[], object]]] = {
    "an unmapped class": lambda: int,
    "an instance": lambda: Stranger(id=1, user_id=1),
    "a name": lambda: "links",
    "a subquery": lambda: sa.select(table(*SMALLEST)).subquery(),
    "an alias": lambda: table(*SMALLEST).alias(),
    "None": lambda: None,
}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_what_is_no_table_is_refused(make: Callable[[], object]) -> None:
    """Only a mapped class or a table holds links."""
    assert "is neither a mapped class nor a Table." in refusal(make())


@pytest.mark.parametrize("policy", [None, "EXCLUSIVE", Key.EMAIL, LinkPolicy], ids=repr)
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    """A policy that is none is refused with the typed error, and not by an attribute that it lacks."""
    assert "LinkPolicy" in refusal(table(*SMALLEST), policy)


def test_an_unknown_role_is_refused() -> None:
    """A misspelt role is an error, and not a column that is silently not mapped."""
    links = table(*SMALLEST, "email")
    with pytest.raises(TypeError, match="emial"):
        mapped(links, emial=links.c.email)


def test_one_column_plays_one_part() -> None:
    """Two roles on one column would overwrite each other in every statement, so they are refused."""
    links = table("id", "user_id", "provider", "email")
    message = refusal(links, account_id=links.c.email, email=links.c.email)
    assert "account_id" in message
    assert "email" in message


@pytest.mark.parametrize("role", ["provider", "account_id", "email", "email_key"])
@pytest.mark.parametrize("kind", [sa.BigInteger(), sa.Uuid(), sa.LargeBinary()], ids=["number", "uuid", "bytes"])
def test_what_is_compared_as_text_is_text(role: str, kind: Any) -> None:
    """F22: a column that takes no text would fail at the first link, so it is refused when the mapping is made."""
    links = table(*{*SMALLEST, "email", "email_key"} - {role}, **{role: sa.Column(role, kind)})
    assert role in refusal(links, BY_EMAIL)


# -- the link's id --------------------------------------------------------------------------------------------------


def composite(*extra: Any, **options: Any) -> sa.Table:
    return sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("tenant", sa.Integer, primary_key=True),
        column("id", **options),
        *(column(role) for role in SMALLEST[1:]),
        *extra,
    )


def test_a_composite_key_is_refused() -> None:
    """An id that does not identify a row alone is refused, for an unlink could then hit several."""
    message = refusal(composite())
    assert "'id' alone does not identify a row of 'links'" in message
    assert "Map one unique column" in message


def test_a_column_that_is_neither_key_nor_unique_is_no_id() -> None:
    """A column beside the primary key is no link's id unless it is unique."""
    links = table(*SMALLEST, other=sa.Column("number", sa.Integer))
    assert "'number' alone does not identify a row" in refusal(links, id=links.c.number)


UNIQUE: Final[dict[str, Callable[[], sa.Table]]] = {
    "unique=True": lambda: composite(unique=True),
    "unique=True and index=True": lambda: composite(unique=True, index=True),
    "a unique constraint": lambda: composite(sa.UniqueConstraint("id")),
    "a unique index": lambda: composite(sa.Index("uq_id", "id", unique=True)),
}


@pytest.mark.parametrize("make", UNIQUE.values(), ids=UNIQUE)
def test_a_unique_column_is_an_id(make: Callable[[], sa.Table]) -> None:
    """However a column is declared unique, it identifies a row, also beside a composite primary key."""
    assert "id" == names(mapped(make()))["id"]


NOT_UNIQUE: Final[dict[str, Callable[[], sa.Table]]] = {
    "unique with another": lambda: composite(sa.UniqueConstraint("id", "provider")),
    "unique where live": lambda: composite(sa.Index("uq_id", "id", unique=True, postgresql_where=sa.text("id > 1"))),
    "an index that is not unique": lambda: composite(sa.Index("ix_id", "id")),
    "unique as an expression": lambda: composite(sa.Index("uq_id", sa.text("abs(id)"), unique=True)),
}


@pytest.mark.parametrize("make", NOT_UNIQUE.values(), ids=NOT_UNIQUE)
def test_a_column_that_is_unique_in_part_is_no_id(make: Callable[[], sa.Table]) -> None:
    """A key that spans more than the id, or fewer rows than all, does not identify a row by the id."""
    assert "does not identify a row" in refusal(make())


class Guid(sa.TypeDecorator[UUID]):
    """As many applications have it: a UUID in a text column."""

    impl = sa.CHAR(36)
    cache_ok: ClassVar[bool] = True  # type: ignore[misc]  # SQLAlchemy's own recipe

    def process_bind_param(self, value: object, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)


class Word(sa.TypeDecorator[str]):
    """A type that only names the type behind it, as SQLModel's."""

    impl = sa.String
    cache_ok: ClassVar[bool] = True  # type: ignore[misc]  # SQLAlchemy's own recipe


ID_TYPES: Final[dict[str, tuple[Any, list[object], list[object]]]] = {
    "int4": (sa.Integer(), [7, -(2**31), 2**31 - 1], ["7", 7.0, True, UUID(int=7), None]),
    "int8": (sa.BigInteger(), [7, 2**63 - 1], ["7", False]),
    "int2": (sa.SmallInteger(), [7, 2**15 - 1], ["7"]),
    "text": (sa.Text(), ["7", ""], [7, UUID(int=7), b"7"]),
    "uuid": (sa.Uuid(), [UUID(int=7)], ["7", str(UUID(int=7)), 7]),
    "uuid as text": (sa.Uuid(as_uuid=False), [str(UUID(int=7))], [UUID(int=7), 7]),
    "postgresql uuid": (postgresql.UUID(), [UUID(int=7)], [str(UUID(int=7))]),
    "citext": (postgresql.CITEXT(), ["7"], [7]),
    "a type of the application's": (Guid(), [UUID(int=7), "7"], [None]),
    "another name for text": (Word(), ["7"], [7, UUID(int=7)]),
}


@pytest.mark.parametrize(("kind", "taken", "refused"), ID_TYPES.values(), ids=ID_TYPES)
def test_an_id_is_of_its_columns_type(kind: Any, taken: list[object], refused: list[object]) -> None:
    """F22: an id of another type is refused before a driver sees it; a type of the application's own is not judged."""
    found = IdType.of(sa.Column("x", kind))
    assert taken == [value for value in taken if found.accepts(value) and found.holds(value)]
    assert [] == [value for value in refused if found.accepts(value)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (sa.Integer(), 2**31),
        (sa.Integer(), -(2**31) - 1),
        (sa.SmallInteger(), 2**15),
        (sa.BigInteger(), 2**63),
        (sa.Text(), "a\0b"),
        (sa.Text(), "a\ud800"),
    ],
    ids=["int4", "int4, negative", "int2", "int8", "NUL", "surrogate"],
)
def test_an_id_that_the_column_cannot_hold_is_known(kind: Any, value: object) -> None:
    """F22: a value that its column cannot store, though its type is right, is refused before any SQL."""
    found = IdType.of(sa.Column("x", kind))
    assert (True, False) == (found.accepts(value), found.holds(value))


def test_a_variant_that_holds_more_is_not_refused_by_the_smaller_one() -> None:
    """F22: a number that a variant of the column holds is not refused for the sake of the default's range."""
    found = IdType.of(sa.Column("x", sa.Integer().with_variant(sa.BigInteger(), "postgresql")))
    assert found.holds(2**40)


# -- what can be written --------------------------------------------------------------------------------------------


def sql(statement: Any, dialect: str) -> str:
    return " ".join(str(statement.compile(dialect=DIALECTS[dialect])).split())


def test_the_smallest_table_can_be_linked_again() -> None:
    """Four columns are a table of links: linking again, which has nothing to change there, still is a statement."""
    statements = Statements(mapped(table(*SMALLEST)))
    assert "SET WHERE" not in sql(statements.update(Shape(), was_live=True), "sqlite")
    assert "SET FROM" not in sql(statements.arms(Shape()), "postgresql")


def test_a_column_with_both_python_defaults_can_be_linked() -> None:
    """An application column that fills itself in Python, on insert and on update, is no obstacle to one statement."""
    both = sa.Column("touched", sa.Integer, default=lambda: 1, onupdate=lambda: 2)
    made = sql(Statements(mapped(table(*SMALLEST, "updated_at", both=both))).arms(Shape()), "postgresql")
    assert re.search(r"UPDATE links SET .*touched=", made)
    assert re.search(r"INSERT INTO links \([^()]*touched", made)


def test_no_statement_writes_without_naming_the_user() -> None:
    """A25: every statement that changes a row names the user in its WHERE."""
    statements = Statements(mapped(table(*ROLES), BLOCKING))
    for written in (statements.update(Shape(), was_live=True), statements.remove(reason=True)):
        assert "links.user_id = :al_user_id" in str(written).partition("WHERE")[2]


class Vendor(enum.Enum):
    """Providers, as an application names them."""

    GOOGLE = "google"
    ENTRA = "entra"


ENUMS: Final[dict[str, Any]] = {
    "by name": sa.Enum(Vendor),
    "by value": sa.Enum(Vendor, values_callable=lambda kind: [member.value for member in kind]),
    "validated": sa.Enum(Vendor, validate_strings=True),
    "validated by value": sa.Enum(
        Vendor, values_callable=lambda kind: [member.value for member in kind], validate_strings=True
    ),
    "of texts": sa.Enum("google", "entra", name="vendor"),
}


@pytest.mark.parametrize("kind", ENUMS.values(), ids=ENUMS)
def test_an_enum_is_a_provider(kind: Any) -> None:
    """A provider column may be an Enum: the slug is the member's value, on the way in and on the way out."""
    made = store(table("id", "user_id", "account_id", provider=sa.Column("provider", kind)))
    given = brought(made, ProviderIdentity(provider="google", account_id="1"))["al_provider"]
    bind = kind.dialect_impl(DIALECTS["sqlite"]).bind_processor(DIALECTS["sqlite"])
    result = kind.dialect_impl(DIALECTS["sqlite"]).result_processor(DIALECTS["sqlite"], None)
    stored = bind(given)
    assert stored in kind.enums
    assert "google" == made.account((1, 2, result(stored), "1")).provider


@pytest.mark.parametrize("kind", ENUMS.values(), ids=ENUMS)
def test_a_provider_that_the_enum_does_not_know_is_refused(kind: Any) -> None:
    """A slug that no member has is refused before any SQL, with the typed error."""
    links = table("id", "user_id", "account_id", provider=sa.Column("provider", kind))
    with pytest.raises((ConfigurationError, InvalidIdentity)) as caught:
        brought(store(links), ProviderIdentity(provider="slack", account_id="1"))
    assert "provider" in str(caught.value)


class Discriminated(Base):
    """A base whose rows are of several classes."""

    __tablename__ = "discriminated"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    provider: Mapped[str]
    account_id: Mapped[str]
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "any"}  # noqa: RUF012  # SQLAlchemy's name


class CalendarLink(Discriminated):
    """A class of such rows."""

    __mapper_args__ = {"polymorphic_identity": "calendar"}  # noqa: RUF012  # SQLAlchemy's name


@pytest.mark.parametrize("model", [Discriminated, CalendarLink])
def test_a_class_among_several_in_one_table_is_kept_apart_or_refused(model: Any) -> None:
    """A model of a table that holds several classes writes its own mark and reads its own rows, or is refused."""
    try:
        statements = Statements(mapped(model))
    except ConfigurationError as error:
        assert "polymorphic" in str(error) or "inherit" in str(error)  # noqa: PT017  # one of two answers
        return
    assert "kind" in str(statements.insert(Shape()))
    assert model is Discriminated or "kind" in str(statements.named())


class Joined(Discriminated):
    """A class of rows in two tables."""

    __tablename__ = "joined"
    id: Mapped[int] = mapped_column(sa.ForeignKey("discriminated.id"), primary_key=True)
    extra: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "joined"}  # noqa: RUF012  # SQLAlchemy's name


def test_a_model_in_two_tables_is_refused() -> None:
    """Links live in one table: a model that spans two tables is refused, with the remedy."""
    assert "map a model that has a table of its own" in refusal(Joined).replace("Map", "map")


# -- values ---------------------------------------------------------------------------------------------------------


def store(target: sa.Table, policy: LinkPolicy = EXCLUSIVE) -> AccountStore[Any, Any]:
    return AccountStore(mapped(target, policy))


ANYBODY: Final = ProviderIdentity(provider="google", account_id="1", email="anybody@example.com")


def brought(
    made: AccountStore[Any, Any],
    identity: ProviderIdentity = ANYBODY,
    credentials: TokenSet | None = None,
    values: Mapping[Any, Any] | None = None,
) -> Parameters:
    """The parameters of a link."""
    return made.calls.link(
        user_id=1,
        identity=identity,
        credentials=credentials,
        expect=None,
        values=values,
        update_values=None,
    ).parameters


TOKENS: Final = TokenSet(
    access_token="access-canary",
    refresh_token="refresh-canary",
    expires_at=datetime.fromisoformat("2026-01-02T04:04:05+01:00"),
    scopes={"b", "a"},
)
CREDENTIALS: Final = ("access_token", "refresh_token", "expires_at", "scopes")


def test_credentials_fill_their_columns() -> None:
    """Each part of a token set goes to its column, in the form that the column takes."""
    filled = brought(store(table(*SMALLEST, *CREDENTIALS)), credentials=TOKENS)
    assert {
        "al_access_token": "access-canary",
        "al_refresh_token": "refresh-canary",
        "al_expires_at": datetime.fromisoformat("2026-01-02T03:04:05+00:00"),
        "al_scopes": "a b",
    } == {name: value for name, value in filled.items() if name.removeprefix("al_") in CREDENTIALS}


def test_parameters_show_no_value() -> None:
    """A28: the parameters of a statement, as a debugger or a log shows them, hold no token and no address."""
    ada = ProviderIdentity(provider="google", account_id="1", email="ada@example.com")
    filled = brought(store(table(*SMALLEST, "email", *CREDENTIALS)), ada, TOKENS)
    shown = repr(filled)
    assert "al_access_token" in shown
    assert [] == [word for word in ("canary", "ada") if word in shown]
    hidden = [*filled.values()]
    assert [] == [value for value in hidden if "canary" in repr(value)]


@pytest.mark.parametrize("role", CREDENTIALS)
def test_credentials_without_a_column_are_not_dropped(role: str) -> None:
    """Nothing is dropped in silence: a token set that brings what the table cannot hold is refused, and not shown."""
    partial = store(table(*SMALLEST, *(each for each in CREDENTIALS if each != role)))
    with pytest.raises(ConfigurationError) as caught:
        brought(partial, credentials=TOKENS)
    assert f"no column mapped for the credentials' {role!r}" in str(caught.value)
    assert f"Map {role}=..." in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_missing_refresh_token_is_not_written() -> None:
    """A relink without a refresh token keeps the stored one: no parameter for it is made."""
    filled = brought(store(table(*SMALLEST, *CREDENTIALS)), credentials=TokenSet(access_token="a", scopes={"a"}))
    assert "al_refresh_token" not in filled


def test_scopes_that_the_provider_does_not_tell_are_not_written() -> None:
    """RFC 6749, section 5.1: a response may omit the scope; that says "unchanged", and empties nothing."""
    filled = brought(store(table(*SMALLEST, *CREDENTIALS)), credentials=TokenSet(access_token="a"))
    assert "al_scopes" not in filled


MOMENTS: Final[dict[str, tuple[Any, object]]] = {
    "aware": (sa.DateTime(timezone=True), datetime.fromisoformat("2026-01-02T03:04:05+00:00")),
    "naive": (sa.DateTime(), datetime.fromisoformat("2026-01-02T03:04:05")),
    "seconds": (sa.BigInteger(), 1_767_323_045),
}


@pytest.mark.parametrize(("kind", "stored"), MOMENTS.values(), ids=MOMENTS)
def test_a_moment_goes_out_and_comes_back(kind: Any, stored: object) -> None:
    """F20: aware, naive in UTC and whole seconds all come back as the same aware moment."""
    links = table(*SMALLEST, expires_at=sa.Column("expires_at", kind), created_at=sa.Column("created_at", kind))
    made = store(links)
    assert TOKENS.expires_at is not None
    assert {"expires_at": stored} == made.stamped(("expires_at",), TOKENS.expires_at)
    assert TOKENS.expires_at == made.account((1, 2, "google", "1", stored)).created_at


SCOPES: Final[dict[str, tuple[Any, object]]] = {
    "text": (sa.Text(), "a b"),
    "varchar": (sa.String(500), "a b"),
    "json": (sa.JSON(), ["a", "b"]),
    "array": (postgresql.ARRAY(sa.Text()), ["a", "b"]),
}


@pytest.mark.parametrize(("kind", "stored"), SCOPES.values(), ids=SCOPES)
def test_scopes_go_out_and_come_back(kind: Any, stored: Any) -> None:
    """Scopes are one text or a list, as the column is, and come back as the same set."""
    roles = ("access_token", "refresh_token", "expires_at")
    made = store(table(*SMALLEST, *roles, scopes=sa.Column("scopes", kind)))
    assert stored == brought(made, credentials=TOKENS)["al_scopes"]
    assert frozenset({"a", "b"}) == made.account((1, 2, "google", "1", stored)).scopes


def test_an_email_key_is_the_normal_form() -> None:
    """F15: the key holds the normal form, and the e-mail column what the provider wrote."""
    ada = ProviderIdentity(provider="google", account_id="1", email="Ada@Example.COM")
    both = brought(store(table(*SMALLEST, "email", "email_key"), BY_EMAIL), ada)
    assert ("Ada@Example.COM", "ada@example.com") == (both["al_email"], both["al_email_key"])
    assert "ada@example.com" == brought(store(table(*SMALLEST, "email"), BY_EMAIL), ada)["al_email"]
    assert "Ada@Example.COM" == brought(store(table(*SMALLEST, "email")), ada)["al_email"]


APPLICATION: Final[dict[str, tuple[Callable[[sa.Table], Mapping[Any, Any]], str]]] = {
    "a role": (lambda links: {links.c.email: "x"}, "'email' is the mapping's 'email'"),
    "its user": (lambda links: {links.c.user_id: 9}, "'user_id' is the mapping's 'user_id'"),
    "another table's": (lambda _: {Stranger.user_id: 9}, "is not a column of 'links'"),
    "a name": (lambda _: {"org": 9}, "is not a column of 'links'"),
}


@pytest.mark.parametrize(("make", "message"), APPLICATION.values(), ids=APPLICATION)
def test_application_values_are_the_applications_own_columns(
    make: Callable[[sa.Table], Mapping[Any, Any]], message: str
) -> None:
    """``values=`` fills columns that accountlink does not write itself, and no others."""
    links = table(*SMALLEST, "email", org=sa.Column("org", sa.Text))
    with pytest.raises(ConfigurationError) as caught:
        brought(store(links), values=make(links))
    assert message in str(caught.value)
    assert "acme" == brought(store(links), values={links.c.org: "acme"})["al_insert_org"]
