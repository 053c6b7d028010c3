"""LinkedAccountMixin: the columns and keys that it brings, as the DDL that both databases are given."""

import re
from typing import Any, Final, cast
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    declared_attr,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from accountlink import (
    AccountLinker,
    AccountMapping,
    ConfigurationError,
    Key,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    Removal,
)

DIALECTS: Final[dict[str, sa.Dialect]] = {"postgresql": postgresql.dialect(), "sqlite": sqlite.dialect()}  # type: ignore[no-untyped-call]  # SQLAlchemy's
DELETE, SOFT = Removal.DELETE, Removal.SOFT
EXCLUSIVE, PER_USER = Ownership.EXCLUSIVE, Ownership.PER_USER
BY_ID, BY_EMAIL = Key.ACCOUNT_ID, Key.EMAIL


def policy(
    key: Key = Key.ACCOUNT_ID, ownership: Ownership = Ownership.EXCLUSIVE, removal: Removal = Removal.DELETE
) -> LinkPolicy:
    return LinkPolicy(key=key, ownership=ownership, removal=removal)


def model(rules: LinkPolicy | None = None, *bases: type, metadata: sa.MetaData | None = None, **members: Any) -> Any:
    """A model of links on a base of its own, with these members beside the mixin's."""
    base: Any = type("Base", (DeclarativeBase,), {"metadata": metadata or sa.MetaData()})
    named: dict[str, Any] = {
        "__tablename__": "links",
        "__link_policy__": rules or policy(),
        "__module__": __name__,
        "id": mapped_column(sa.Integer, primary_key=True),
        "user_id": mapped_column(sa.Uuid, nullable=False),
    }
    return type("Link", (LinkedAccountMixin, *(bases or (base,))), named | members)


def ddl(element: Any, dialect: str) -> str:
    return " ".join(str(element.compile(dialect=DIALECTS[dialect])).split())


def indexes(target: Any, dialect: str = "postgresql") -> dict[str, str]:
    """Each index of a model's table by its name, as what follows ``ON``."""
    made = {str(index.name): ddl(CreateIndex(index), dialect) for index in target.__table__.indexes}
    return {name: text.replace(f" INDEX {name} ON links", "") for name, text in made.items()}


def columns(target: Any, dialect: str) -> dict[str, str]:
    """Each column of a model's table by its name, as the DDL has it."""
    body = ddl(CreateTable(target.__table__), dialect).partition("(")[2]
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", body)]
    return {part.partition(" ")[0]: part.partition(" ")[2].rstrip(" )") for part in parts}


# -- keys -----------------------------------------------------------------------------------------------------------

USERS_ID: Final = "CREATE (user_id, provider, account_id)"
USERS_EMAIL: Final = "CREATE (user_id, provider, email_key)"
LIVE: Final = " WHERE deleted_at IS NULL"
KEYS: Final[dict[str, tuple[LinkPolicy, str, str | None]]] = {
    "exclusive": (policy(BY_ID, EXCLUSIVE, DELETE), "CREATE UNIQUE (provider, account_id)", USERS_ID),
    "exclusive, soft": (policy(BY_ID, EXCLUSIVE, SOFT), f"CREATE UNIQUE (provider, account_id){LIVE}", USERS_ID),
    "per user": (policy(BY_ID, PER_USER, DELETE), "CREATE UNIQUE (user_id, provider, account_id)", None),
    "per user, soft": (policy(BY_ID, PER_USER, SOFT), f"CREATE UNIQUE (user_id, provider, account_id){LIVE}", USERS_ID),
    "by e-mail": (policy(BY_EMAIL, PER_USER, DELETE), "CREATE UNIQUE (user_id, provider, email_key)", None),
    "by e-mail, soft": (
        policy(BY_EMAIL, PER_USER, SOFT),
        f"CREATE UNIQUE (user_id, provider, email_key){LIVE}",
        USERS_EMAIL,
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("rules", "unique", "lookup"), KEYS.values(), ids=KEYS)
def test_the_keys_are_right_for_the_policy(rules: LinkPolicy, unique: str, lookup: str | None, dialect: str) -> None:
    """F15: each policy has its unique key, partial where rows die softly, and an index for the user's own rows."""
    expected = {"uq_links_link": unique} | ({"ix_links_user": lookup} if lookup else {})
    assert expected == indexes(model(rules), dialect)


def test_there_is_no_constraint_beside_the_keys() -> None:
    """An index can be partial and can be made concurrently; a constraint beside it could not be told apart from it."""
    for rules, *_ in KEYS.values():
        kinds = {type(constraint) for constraint in model(rules).__table__.constraints}
        assert {sa.PrimaryKeyConstraint} == kinds


# -- columns --------------------------------------------------------------------------------------------------------

POSTGRESQL: Final = {
    "id": "SERIAL NOT NULL",
    "user_id": "UUID NOT NULL",
    "provider": 'VARCHAR(255) COLLATE "C" NOT NULL',
    "account_id": 'VARCHAR(255) COLLATE "C" NOT NULL',
    "email": "TEXT",
    "access_token": "TEXT",
    "refresh_token": "TEXT",
    "expires_at": "TIMESTAMP WITH TIME ZONE",
    "scopes": "TEXT",
    "created_at": "TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL",
    "updated_at": "TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL",
    "version": "BIGINT DEFAULT '1' NOT NULL",
    "PRIMARY": "KEY (id",
}
SQLITE: Final = {
    "id": "INTEGER NOT NULL",
    "user_id": "CHAR(32) NOT NULL",
    "provider": "VARCHAR(255) NOT NULL",
    "account_id": "VARCHAR(255) NOT NULL",
    "email": "TEXT",
    "access_token": "TEXT",
    "refresh_token": "TEXT",
    "expires_at": "DATETIME",
    "scopes": "TEXT",
    "created_at": "DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL",
    "updated_at": "DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL",
    "version": "BIGINT DEFAULT '1' NOT NULL",
    "PRIMARY": "KEY (id",
}
SOFT_POSTGRESQL: Final = {"deleted_at": "TIMESTAMP WITH TIME ZONE", "reason": "TEXT"}
SOFT_SQLITE: Final = {"deleted_at": "DATETIME", "reason": "TEXT"}
EMAIL_COLUMN: Final = {"email_key": "TEXT NOT NULL"}
COLUMNS: Final[dict[str, tuple[LinkPolicy, str, dict[str, str]]]] = {
    "exclusive, postgresql": (policy(), "postgresql", POSTGRESQL),
    "exclusive, sqlite": (policy(), "sqlite", SQLITE),
    "soft, postgresql": (policy(removal=SOFT), "postgresql", POSTGRESQL | SOFT_POSTGRESQL),
    "soft, sqlite": (policy(removal=SOFT), "sqlite", SQLITE | SOFT_SQLITE),
    "by e-mail, postgresql": (policy(BY_EMAIL, PER_USER), "postgresql", POSTGRESQL | EMAIL_COLUMN),
    "by e-mail, sqlite": (policy(BY_EMAIL, PER_USER), "sqlite", SQLITE | EMAIL_COLUMN),
    "by e-mail, soft": (
        policy(BY_EMAIL, PER_USER, SOFT),
        "postgresql",
        POSTGRESQL | EMAIL_COLUMN | SOFT_POSTGRESQL,
    ),
}


@pytest.mark.parametrize(("rules", "dialect", "expected"), COLUMNS.values(), ids=COLUMNS)
def test_the_columns_are_right_for_the_policy(rules: LinkPolicy, dialect: str, expected: dict[str, str]) -> None:
    """A08, F23: key columns are NOT NULL and compare byte by byte, tokens are unbounded text, and no column is idle."""
    assert expected == columns(model(rules), dialect)


def test_an_account_id_of_255_characters_fits_into_an_index() -> None:
    """F21: the widest key, in the widest characters, stays below what a page of PostgreSQL's index can hold."""
    table = model(policy(BY_ID, PER_USER)).__table__
    widest = sum(4 * table.c[name].type.length for name in ("provider", "account_id")) + 16
    assert widest <= 2_704


@pytest.mark.parametrize(("rules", "_unique", "_lookup"), KEYS.values(), ids=KEYS)
def test_a_model_is_its_own_mapping(rules: LinkPolicy, _unique: str, _lookup: str | None) -> None:
    """A linker takes the model as it is, and its mapping has exactly the mixin's columns."""
    made = model(rules)
    linker: AccountLinker[Any, Any] = AccountLinker(made)
    assert set(made.__table__.columns.keys()) == set(linker.mapping.columns)
    assert (rules, made.__table__) == (linker.mapping.policy, linker.mapping.table)


# -- beside an application's own ------------------------------------------------------------------------------------

TWO: Final = {"uq_links_link", "ix_links_user"}


def test_the_keys_survive_a_dict_of_table_args() -> None:
    """``__table_args__`` as a dict keeps what it says, and takes nothing away."""
    made = model(__table_args__={"schema": "auth", "comment": "links"})
    assert (TWO, "auth", "links") == (set(indexes(made)), made.__table__.schema, made.__table__.comment)
    assert "ON auth.links (provider, account_id)" in indexes(made)["uq_links_link"]


def test_the_keys_survive_a_tuple_of_table_args() -> None:
    """``__table_args__`` as a tuple keeps its own indexes and constraints beside the mixin's."""
    made = model(
        __table_args__=(
            sa.Index("ix_own", "email"),
            sa.CheckConstraint("version > 0", name="ck_own"),
            {"schema": "auth"},
        )
    )
    assert TWO | {"ix_own"} == set(indexes(made))
    assert "ck_own" in {constraint.name for constraint in made.__table__.constraints}


def test_the_keys_survive_table_args_that_are_computed() -> None:
    """``__table_args__`` as a declared attribute of a base is one more way to say the same."""

    class Args:
        @declared_attr.directive
        def __table_args__(cls) -> Any:  # noqa: N805  # as SQLAlchemy calls it
            return (sa.Index(f"ix_{cast('Any', cls).__name__.lower()}_email", "email"),)

    class Computed(DeclarativeBase):
        pass

    assert TWO | {"ix_link_email"} == set(indexes(model(None, Args, Computed)))


@pytest.mark.parametrize("rules", [policy(removal=SOFT), policy(BY_EMAIL, PER_USER)], ids=["exclusive", "by e-mail"])
def test_a_naming_convention_does_not_touch_the_keys(rules: LinkPolicy) -> None:
    """The keys have the same names under every convention, so that a migration is the same everywhere."""
    convention: dict[str, Any] = {
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
    made = model(rules, metadata=sa.MetaData(naming_convention=convention, schema="tenant"))
    assert indexes(model(rules)).keys() == indexes(made).keys()
    assert "pk_links" == made.__table__.primary_key.name


def test_the_order_of_the_bases_does_not_matter() -> None:
    """The mixin may stand before or behind the base."""

    class Ordered(DeclarativeBase):
        pass

    class Link(Ordered, LinkedAccountMixin):
        __tablename__ = "links"
        __link_policy__ = policy(removal=SOFT)
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[UUID]

    assert indexes(model(policy(removal=SOFT))) == indexes(Link)


def test_an_abstract_base_brings_the_mixin_to_several_tables() -> None:
    """A policy on an abstract base serves its tables, each with keys of its own."""

    class Abstract(DeclarativeBase):
        pass

    class Links(LinkedAccountMixin, Abstract):
        __abstract__ = True
        __link_policy__ = policy(removal=SOFT)
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[UUID]

    class Calendars(Links):
        __tablename__ = "calendars"

    class Clouds(Links):
        __tablename__ = "clouds"
        __link_policy__ = policy(ownership=PER_USER)

    assert {"uq_calendars_link", "ix_calendars_user"} == set(indexes(Calendars))
    assert {"uq_clouds_link"} == set(indexes(Clouds))
    assert "deleted_at" not in Clouds.__table__.columns


def test_a_plain_registry_serves_too() -> None:
    """A class that is mapped by a decorator has the same keys."""

    @registry().mapped
    class Link(LinkedAccountMixin):
        __tablename__ = "links"
        __link_policy__ = policy()
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[UUID]

    assert indexes(model()) == indexes(Link)


class Kinds(DeclarativeBase):
    """Of the inheritance below."""


class Link(LinkedAccountMixin, Kinds):
    """The base of several classes of links."""

    __tablename__ = "links"
    __link_policy__ = policy(removal=SOFT)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "any"}  # noqa: RUF012  # SQLAlchemy's name
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    kind: Mapped[str]


class CalendarLink(Link):
    """In the same table."""

    __mapper_args__ = {"polymorphic_identity": "calendar"}  # noqa: RUF012  # SQLAlchemy's name


class CloudLink(Link):
    """In a table beside it."""

    __tablename__ = "cloud_links"
    __mapper_args__ = {"polymorphic_identity": "cloud"}  # noqa: RUF012  # SQLAlchemy's name
    id: Mapped[int] = mapped_column(sa.ForeignKey("links.id"), primary_key=True)
    region: Mapped[str]


def test_inheriting_classes_bring_no_second_key() -> None:
    """Whatever inherits from a model of links, in its table or beside it, the table has each key once."""
    assert indexes(model(policy(removal=SOFT))) == indexes(Link)
    assert {} == indexes(CloudLink)


def test_a_base_of_dataclasses_is_served() -> None:
    """An application whose models are dataclasses maps its links as one, without a warning."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Link(LinkedAccountMixin, Base):
        __tablename__ = "links"
        __link_policy__ = policy()
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        user_id: Mapped[UUID]

    assert indexes(model()) == indexes(Link)
    assert UUID(int=1) == Link(user_id=UUID(int=1)).user_id


def test_columns_of_an_applications_own_stay() -> None:
    """A column that a model declares itself replaces the mixin's, and the keys are made of it."""
    made = model(
        policy(removal=SOFT),
        account_id=mapped_column("subject", sa.Text, nullable=False),
        user_id=mapped_column("owner", sa.Text, sa.ForeignKey("users.id"), nullable=False),
        org_name=mapped_column(sa.Text),
    )
    assert f"CREATE UNIQUE (provider, subject){LIVE}" == indexes(made)["uq_links_link"]
    assert "CREATE (owner, provider, subject)" == indexes(made)["ix_links_user"]
    assert "org_name" in made.__table__.columns


def test_relationships_of_an_applications_own_stay() -> None:
    """A model may refer to its user, and be referred to."""

    class Related(DeclarativeBase):
        pass

    class User(Related):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        links: Mapped[list["Connection"]] = relationship(back_populates="user")

    class Connection(LinkedAccountMixin, Related):
        __tablename__ = "links"
        __link_policy__ = policy()
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
        user: Mapped[User] = relationship(back_populates="links")

    link = Connection(user=User(id=1), provider="google", account_id="1")
    assert [link] == link.user.links


def test_two_models_share_nothing() -> None:
    """The mixin's columns are copied for each model."""
    one, other = model(), model()
    shared = set(one.__table__.columns) & set(other.__table__.columns)
    assert set() == shared


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 40, 50, 54, 55, 56, 63, 100])
def test_a_long_name_is_cut_before_the_database_cuts_it(length: int) -> None:
    """The names of the keys fit into PostgreSQL's 63 bytes, and stay as they are where they fit anyway."""
    made = model(policy(removal=SOFT), __tablename__="t" * length)
    names = [str(index.name) for index in made.__table__.indexes]
    assert 2 == len(set(names))
    assert [] == [name for name in names if len(name.encode()) > 63]
    assert ("uq_" + "t" * length + "_link" in names) == (length <= 55)


def test_cut_names_do_not_meet() -> None:
    """Two tables whose names begin alike have keys with different names, and one table's are the same every time."""
    names = {
        str(index.name)
        for tail in ("a", "b")
        for index in model(policy(removal=SOFT), __tablename__="t" * 70 + tail).__table__.indexes
    }
    assert 4 == len(names)
    again = model(policy(removal=SOFT), __tablename__="t" * 70 + "a").__table__.indexes
    assert {str(index.name) for index in again} <= names


def test_a_name_is_measured_in_bytes() -> None:
    """PostgreSQL counts bytes: a table that is named in another script has names that fit, too."""
    made = model(policy(removal=SOFT), __tablename__="連携" * 15)
    assert [] == [index.name for index in made.__table__.indexes if len(str(index.name).encode()) > 63]


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [None, "EXCLUSIVE", Key.EMAIL, LinkPolicy], ids=repr)
def test_a_model_without_a_policy_is_refused(rules: Any) -> None:
    """A model that does not say its rules is refused where it is declared, with the line to add."""
    with pytest.raises(ConfigurationError) as caught:
        model(__link_policy__=rules)
    assert "Link needs `__link_policy__ = LinkPolicy(key=..., ownership=..., removal=...)`." == str(caught.value)


def test_a_model_that_forgot_its_policy_is_refused() -> None:
    """There is no policy by default: who may own an account is the application's decision."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="__link_policy__"):

        class Forgetful(LinkedAccountMixin, Base):
            __tablename__ = "links"
            id: Mapped[int] = mapped_column(primary_key=True)
            user_id: Mapped[UUID]


@pytest.mark.parametrize("target", ["the mixin itself", "an abstract class"])
def test_what_is_no_model_yet_is_no_table_of_links(target: str) -> None:
    """The mixin, or a class that is not mapped, is refused by the linker with the typed error."""

    class Abstract(LinkedAccountMixin):
        pass

    with pytest.raises(ConfigurationError) as caught:
        AccountLinker(cast("Any", {"the mixin itself": LinkedAccountMixin, "an abstract class": Abstract}[target]))
    assert "configuration_error" == caught.value.code


def test_a_nullable_user_is_refused() -> None:
    """A row without a user would take part in no unique key, so ``user_id`` must not be nullable."""
    with pytest.raises(ConfigurationError) as caught:
        model(user_id=mapped_column(sa.Uuid))
    assert "user_id" in str(caught.value)
    assert "nullable: NULL takes part in no unique key." in str(caught.value)


def test_an_optional_user_is_refused() -> None:
    """``Mapped[UUID | None]`` is the same mistake in other words."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="nullable: NULL takes part in no unique key"):

        class Optional(LinkedAccountMixin, Base):
            __tablename__ = "links"
            __link_policy__ = policy()
            id: Mapped[int] = mapped_column(primary_key=True)
            user_id: Mapped[UUID | None]


def test_a_model_without_a_user_is_refused() -> None:
    """A model without ``user_id`` is refused, and the error says so."""
    with pytest.raises(ConfigurationError) as caught:
        model(user_id=None)
    assert "`user_id`" in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "name"),
    [
        (policy(), "provider"),
        (policy(), "account_id"),
        (policy(BY_EMAIL, PER_USER), "email_key"),
    ],
    ids=["provider", "account_id", "email_key"],
)
def test_a_nullable_key_is_refused(rules: LinkPolicy, name: str) -> None:
    """A key column that a model replaces by a nullable one enforces nothing, whichever it is."""
    with pytest.raises(ConfigurationError) as caught:
        model(rules, metadata=None, **{name: mapped_column(sa.Text, nullable=True)})
    assert name in str(caught.value)


def test_a_mapping_of_a_model_may_have_a_policy_of_its_own() -> None:
    """A mapping says the policy itself, and is checked against the model's columns like any other."""
    with pytest.raises(ConfigurationError, match="deleted_at"):
        AccountMapping(model(), policy=policy(removal=SOFT))
