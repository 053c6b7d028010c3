"""Carries values to and from columns: moments, scopes, and the parameters of a statement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic

import sqlalchemy as sa

from accountlink.core.credentials import TokenSet, join_scopes, split_scopes
from accountlink.core.email import normalize_email
from accountlink.core.identity import ProviderIdentity
from accountlink.core.outcomes import LinkedAccount, LinkId, UserId
from accountlink.core.policy import Key
from accountlink.core.secrecy import ConcealedText, Parameters
from accountlink.errors import ConfigurationError, InvalidIdentity
from accountlink.storage.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.storage.statements import Shape

MOMENTS = ("expires_at", "created_at", "updated_at", "deleted_at")


def moment_writer(kind: sa.types.TypeEngine[Any]) -> Callable[[datetime], Any]:
    """How a column takes an aware moment: aware, naive in UTC, or as whole seconds since 1970.

    SQLite's own type drops the zone, so an aware moment always goes out in UTC.
    """
    if isinstance(kind, sa.Integer):
        return lambda moment: int(moment.timestamp())
    if isinstance(kind, sa.DateTime) and not kind.timezone:
        return lambda moment: moment.astimezone(UTC).replace(tzinfo=None)
    return lambda moment: moment.astimezone(UTC)


def read_moment(value: Any) -> datetime | None:  # whatever the column's type returns
    """Read a moment back, aware: a naive one is UTC, a number counts seconds since 1970."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return datetime.fromtimestamp(value, UTC)


def read_scopes(value: Any) -> frozenset[str] | None:  # whatever the column's type returns
    """Read scopes back from one text or from a list."""
    if value is None:
        return None
    return split_scopes(value) if isinstance(value, str) else frozenset(value)


class Codec(Generic[UserId, LinkId]):
    """Turns calls into parameters, and rows into snapshots, for one mapping."""

    def __init__(self, mapping: AccountMapping[UserId, LinkId], row_roles: Sequence[str]) -> None:
        self._mapping = mapping
        self._columns = mapping.columns
        self._position = {role: index for index, role in enumerate(row_roles)}
        self._moments = {role: moment_writer(mapping.columns[role].type) for role in MOMENTS if role in mapping.columns}
        scopes = mapping.columns.get("scopes")
        self._scopes_as_text = scopes is not None and isinstance(scopes.type, sa.String)

    # -- to the database ----------------------------------------------------------------------------------------------

    def identity(self, identity: ProviderIdentity) -> Parameters:
        """The parameters that an identity fills.

        Raises:
            InvalidIdentity: No e-mail address under ``Key.EMAIL``, or one without a normal form.
        """
        columns, by_email = self._columns, self._mapping.policy.key is Key.EMAIL
        filled = Parameters(al_provider=identity.provider)
        if "account_id" in columns:
            filled["al_account_id"] = identity.account_id
        if identity.email is None:
            if by_email:
                raise InvalidIdentity(
                    field="email",
                    problem="is missing under Key.EMAIL",
                    remedy="Ask the provider for the e-mail scope.",
                )
            return filled
        if "email" in columns:
            filled["al_email"] = ConcealedText(identity.email)
        if by_email or "email_key" in columns:
            filled[f"al_{self._mapping.email_key_role}"] = ConcealedText(normalize_email(identity.email))
        return filled

    def credentials(self, tokens: TokenSet | None) -> Parameters:
        """The parameters that credentials fill.

        Raises:
            ConfigurationError: The table has no column for something that the credentials bring.
        """
        if tokens is None:
            return Parameters()
        brought: dict[str, Any] = {
            "access_token": ConcealedText(tokens.access_token.reveal()),
            "refresh_token": tokens.refresh_token and ConcealedText(tokens.refresh_token.reveal()),
            "expires_at": tokens.expires_at,
            "scopes": tokens.scopes or None,
        }
        for role, value in brought.items():
            if value is not None and role not in self._columns:
                raise ConfigurationError(
                    f"{self._mapping.name!r} has no column mapped for the credentials' {role!r}, and nothing is "
                    f"dropped in silence. Map {role}=..., or pass a TokenSet without it."
                )
        filled = Parameters()
        for role, value in brought.items():
            if role in self._columns and not (role == "refresh_token" and value is None):
                filled[f"al_{role}"] = self._credential(role, value)
        return filled

    def _credential(self, role: str, value: Any) -> Any:  # as the column takes it
        if role == "scopes":
            granted: frozenset[str] = value or frozenset()
            return join_scopes(granted) if self._scopes_as_text else sorted(granted)
        if role == "expires_at" and value is not None:
            return self.moment(role, value)
        return value

    def moment(self, role: str, moment: datetime) -> Any:  # as the column takes it
        """A moment as the role's column takes it."""
        return self._moments[role](moment)

    def stamps(self, now: datetime) -> Parameters:
        """The parameters that the clock fills in a link."""
        return Parameters(
            (f"al_{role}", self._moments[role](now)) for role in ("created_at", "updated_at") if role in self._moments
        )

    def removal(self, now: datetime) -> Parameters:
        """The parameters that the clock fills in an unlink."""
        return Parameters(
            (f"al_{role}", self._moments[role](now)) for role in ("deleted_at", "updated_at") if role in self._moments
        )

    def application(self, kind: str, values: Mapping[Any, Any] | None) -> tuple[tuple[sa.Column[Any], ...], Parameters]:
        """The application's own columns and their parameters.

        Raises:
            ConfigurationError: A column that is not this table's, or that accountlink itself writes.
        """
        filled = Parameters()
        columns: list[sa.Column[Any]] = []
        for attribute, value in (values or {}).items():
            column = self._mapping.column(attribute)
            for role, owned in self._columns.items():
                if owned is column:
                    raise ConfigurationError(
                        f"{column.name!r} is the mapping's {role!r}, which accountlink writes itself. "
                        "Pass it through identity= or credentials= instead."
                    )
            columns.append(column)
            filled[f"al_{kind}_{column.key}"] = value
        return tuple(columns), filled

    # -- from the database --------------------------------------------------------------------------------------------

    def account(self, row: Sequence[Any], offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """A snapshot of a row that was read in the order of the row roles."""

        def at(role: str) -> Any:  # whatever the column's type returns
            index = self._position.get(role)
            return None if index is None else row[offset + index]

        provider = at("provider")
        return LinkedAccount(
            id=at("id"),
            user_id=at("user_id"),
            provider=provider,
            account_id=at("account_id"),
            email=at("email"),
            scopes=read_scopes(at("scopes")),
            created_at=read_moment(at("created_at")),
            updated_at=read_moment(at("updated_at")),
            deleted_at=read_moment(at("deleted_at")),
        )

    def version(self, row: Sequence[Any], offset: int = 0) -> int | None:
        """The version of a row that was read in the order of the row roles."""
        index = self._position.get("version")
        return None if index is None else row[offset + index]


def shape_of(
    parameters: Parameters,
    *,
    insert: tuple[sa.Column[Any], ...],
    update: tuple[sa.Column[Any], ...],
) -> Shape:
    """The shape of a call to link, by the parameters that it brings."""
    return Shape(
        email="al_email" in parameters or "al_email_key" in parameters,
        credentials=tuple(role for role in CREDENTIAL_ROLES if f"al_{role}" in parameters),
        insert=insert,
        update=update,
        expect="al_id" in parameters,
        bounded="al_lock_timeout" in parameters,
    )
