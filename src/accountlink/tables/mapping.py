"""Map a table of links: say which column of the application's table plays which role."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Generic, Protocol, TypedDict, TypeVar, Unpack, overload

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Mapper, QueryableAttribute

from accountlink.errors import ConfigurationError
from accountlink.tables.checks import check
from accountlink.tables.targets import Attribute, column_of, mapper_of, table_of
from accountlink.values.outcomes import LinkId, UserId
from accountlink.values.policy import Key, LinkPolicy, Ownership, Removal

ROLES: Final = (
    "id",
    "user_id",
    "provider",
    "account_id",
    "email",
    "email_key",
    "access_token",
    "refresh_token",
    "expires_at",
    "scopes",
    "created_at",
    "updated_at",
    "deleted_at",
    "active",
    "reason",
    "version",
)
CREDENTIAL_ROLES: Final = ("access_token", "refresh_token", "expires_at", "scopes")

UserIdT_co = TypeVar("UserIdT_co", covariant=True)
LinkIdT_co = TypeVar("LinkIdT_co", covariant=True)

_Text = QueryableAttribute[str | None] | sa.Column[Any]
_Moment = QueryableAttribute[datetime | None] | sa.Column[Any]


class HasId(Protocol[LinkIdT_co]):
    """Require a model whose ``id`` has this Python type.

    Type checkers read a model's attribute as its value (mypy) or as its descriptor (pyright); both give the type.
    """

    @property
    def id(self) -> LinkIdT_co | Mapped[LinkIdT_co]:
        """The link's own id."""
        ...


class HasUserId(Protocol[UserIdT_co]):
    """Require a model whose ``user_id`` has this Python type."""

    @property
    def user_id(self) -> UserIdT_co | Mapped[UserIdT_co]:
        """The local owner's id."""
        ...


class HasIds(HasUserId[UserIdT_co], HasId[LinkIdT_co], Protocol[UserIdT_co, LinkIdT_co]):
    """Require a model with both ids, from which a type checker reads the types of a linker."""


class OtherColumns(TypedDict, total=False):
    """Hold the columns of a mapping beside its ids; see :class:`AccountMapping`."""

    provider: Attribute | None
    account_id: _Text | None
    email: _Text | None
    email_key: _Text | None
    access_token: _Text | None
    refresh_token: _Text | None
    expires_at: QueryableAttribute[datetime | int | None] | sa.Column[Any] | None
    scopes: Attribute | None
    created_at: _Moment | None
    updated_at: _Moment | None
    deleted_at: _Moment | None
    active: QueryableAttribute[bool | None] | sa.Column[Any] | None
    reason: _Text | None
    version: QueryableAttribute[int | None] | sa.Column[Any] | None


class AccountMapping(Generic[UserId, LinkId]):
    """A declarative model or a Core table, and the columns in it that accountlink reads and writes.

    Attributes that carry the default names need not be given; give ``None`` for one that must be left alone.

    Args:
        target: A declarative model, or a :class:`sqlalchemy.Table`.
        policy: The rules of the table.
        id: The link's own id: one column, unique by itself.
        user_id: The local owner: a user, an organisation, a tenant.
        provider: The provider's slug.
        account_id: The provider's id of the account; ``None`` when the table has only an e-mail address.
        email: The e-mail address as the provider wrote it.
        email_key: The e-mail address in its normal form, which an e-mail key compares. Without it, ``email`` itself
            holds the normal form under ``Key.EMAIL``.
        access_token: The access token.
        refresh_token: The refresh token.
        expires_at: When the access token ends: an aware or naive (UTC) timestamp, or whole seconds since 1970.
        scopes: The granted scopes: one text, or a list (JSON, ARRAY).
        created_at: When the row was made.
        updated_at: When accountlink last wrote the row.
        deleted_at: When the link was removed; ``NULL`` while it is live.
        active: A flag that is true while the link is live.
        reason: Why the link was removed.
        version: A number that rises when the link is removed, restored or transferred.

    Raises:
        ConfigurationError: The table cannot support the policy; the message says what to add.
    """

    @overload
    def __init__(
        self,
        target: type[Any] | sa.Table,
        *,
        policy: LinkPolicy,
        id: QueryableAttribute[LinkId] | sa.Column[LinkId],
        user_id: QueryableAttribute[UserId] | sa.Column[UserId],
        **columns: Unpack[OtherColumns],
    ) -> None: ...

    @overload
    def __init__(
        self,
        target: type[HasId[LinkId]],
        *,
        policy: LinkPolicy,
        user_id: QueryableAttribute[UserId] | sa.Column[UserId],
        **columns: Unpack[OtherColumns],
    ) -> None: ...

    @overload
    def __init__(
        self,
        target: type[HasUserId[UserId]],
        *,
        policy: LinkPolicy,
        id: QueryableAttribute[LinkId] | sa.Column[LinkId],
        **columns: Unpack[OtherColumns],
    ) -> None: ...

    @overload
    def __init__(
        self, target: type[HasIds[UserId, LinkId]], *, policy: LinkPolicy, **columns: Unpack[OtherColumns]
    ) -> None: ...

    @overload
    def __init__(
        self: AccountMapping[Any, Any],
        target: sa.Table,
        *,
        policy: LinkPolicy,
        id: Attribute = ...,
        user_id: Attribute = ...,
        **columns: Unpack[OtherColumns],
    ) -> None: ...

    def __init__(self, target: type[Any] | sa.Table, *, policy: LinkPolicy, **given: Any) -> None:
        if unknown := sorted(set(given) - set(ROLES)):
            raise TypeError(f"AccountMapping() got an unexpected keyword argument {unknown[0]!r}")
        if not isinstance(policy, LinkPolicy):
            raise ConfigurationError("AccountMapping(policy=...) takes a LinkPolicy.")
        self.policy: Final = policy
        self.mapper: Final[Mapper[Any] | None] = mapper_of(target)
        self.table: Final[sa.Table] = table_of(target, self.mapper)
        self.columns: Final[dict[str, sa.Column[Any]]] = {
            role: column for role in ROLES if (column := self._column(role, given)) is not None
        }
        self.counts_writes: Final = self._adopt_version_id()
        """Says whether the version is the ORM's own, which rises at every write."""
        check(self)

    @property
    def name(self) -> str:
        """The table's name, for messages."""
        return self.table.fullname

    @property
    def key_roles(self) -> tuple[str, ...]:
        """The roles whose columns a link of one user is unique on."""
        return (
            "user_id",
            "provider",
            "account_id" if self.policy.key is Key.ACCOUNT_ID else self.email_key_role,
        )

    @property
    def compared_roles(self) -> tuple[str, ...]:
        """The roles whose texts are compared byte by byte: the provider, the account, and the rest of the key."""
        roles = dict.fromkeys(("provider", "account_id", *self.key_roles[1:]))
        return tuple(role for role in roles if role in self.columns)

    @property
    def email_key_role(self) -> str:
        """The role that holds the normal form of the e-mail address."""
        return "email_key" if "email_key" in self.columns else "email"

    def column(self, attribute: object) -> sa.Column[Any]:
        """Return the column of this table that an attribute or a column names.

        Raises:
            ConfigurationError: It names none of this table's columns.
        """
        return column_of(attribute, mapper=self.mapper, table=self.table)

    def written(self, role: str) -> bool:
        """Say whether accountlink writes the role's column: it exists, and the database does not compute it."""
        column = self.columns.get(role)
        return column is not None and column.computed is None

    @property
    def reuses_ids(self) -> bool:
        """Say whether the table may give the id of a deleted link to a new one, for which an old token would still fit.

        SQLite gives the id of a deleted row again. A version that begins at random tells the two apart.
        """
        exclusive = self.policy.ownership is Ownership.EXCLUSIVE
        return exclusive and self.policy.removal is Removal.DELETE and self.written("version")

    def _adopt_version_id(self) -> bool:
        """Use the ORM's ``version_id_col`` as the version, because it must rise at every write beside the ORM too."""
        counter = None if self.mapper is None else self.mapper.version_id_col
        if self.mapper is None or not isinstance(counter, sa.Column) or self.mapper.version_id_generator is False:
            return False
        if self.columns.get("version", counter) is not counter:
            raise ConfigurationError(
                f"{self.name!r} has the ORM's version_id_col {counter.name!r} and another column mapped as version. "
                "Map version=... to the version_id_col."
            )
        generate: Any = self.mapper.version_id_generator
        if not isinstance(counter.type, sa.Integer) or (generate(None), generate(1), generate(41)) != (1, 2, 42):
            raise ConfigurationError(
                f"{self.name!r} has a version_id_col {counter.name!r} that does not count 1, 2, 3, and a statement "
                "cannot call its generator. Use SQLAlchemy's default generator, or version_id_generator=False."
            )
        self.columns["version"] = counter
        return True

    def _column(self, role: str, given: Mapping[str, Any]) -> sa.Column[Any] | None:
        if role in given:
            return None if given[role] is None else self.column(given[role])
        return (self.table if self.mapper is None else self.mapper).columns.get(role)
