"""Carries values to and from columns: moments, scopes, and the parameters of a statement."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic

import sqlalchemy as sa

from accountlink.core.credentials import TokenSet, join_scopes, split_scopes
from accountlink.core.email import normalize_email
from accountlink.core.identity import ProviderIdentity
from accountlink.core.outcomes import LinkedAccount, LinkId, UserId
from accountlink.core.policy import Key, Removal
from accountlink.core.secrecy import ConcealedText, Parameters, concealed_id
from accountlink.errors import ConfigurationError, InvalidIdentity
from accountlink.storage.fitting import check_length, fitted, limit_of
from accountlink.storage.idtype import smallest_bits
from accountlink.storage.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.storage.slugs import slugs_of
from accountlink.storage.statements import Shape
from accountlink.storage.targets import TableMapping

_VERSION_BITS = 47
"""A random version stays a number that every reader of JSON keeps whole, for as long as it is counted up."""
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


def read_scopes(value: Any) -> frozenset[str]:
    """Read scopes back from one text or from a list."""
    return split_scopes(value) if isinstance(value, str) else frozenset(value or ())


def first_version(kind: sa.types.TypeEngine[Any]) -> int:
    """Where the version of a new row begins that may stand under the id of a deleted one: at random."""
    return 1 + randomness.randbelow(2 ** min(smallest_bits(kind) - 1, _VERSION_BITS))


class _NoContext:
    """Stands for the statement's context where there is none."""

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(self._complaint)


def caller(mapping: TableMapping, column: sa.Column[Any], function: Any) -> Callable[[], Any]:
    """How to ask a column's own ``default`` or ``onupdate`` function for its value, once per call.

    SQLAlchemy asks them for the outermost statement only: inside one with several arms it would write NULL.
    """
    context = _NoContext(
        f"The default or onupdate function of {mapping.name}.{column.name} reads the statement's context, and a link "
        f"has none to give. Use a function without arguments, or pass values={{{column.name}: ...}} or update_values=."
    )
    return lambda: function.arg(context)


class Codec(Generic[UserId, LinkId]):
    """Turns calls into parameters, and rows into snapshots, for one mapping."""

    def __init__(
        self,
        mapping: AccountMapping[UserId, LinkId],
        row_roles: Sequence[str],
        *,
        defaults: Sequence[sa.Column[Any]] = (),
        onupdate: Sequence[sa.Column[Any]] = (),
    ) -> None:
        self._mapping = mapping
        self._columns = mapping.columns
        self._position = {role: index for index, role in enumerate(row_roles)}
        self._moments = {role: moment_writer(mapping.columns[role].type) for role in MOMENTS if role in mapping.columns}
        self._defaults = {f"al_default_{c.key}": caller(mapping, c, c.default) for c in defaults}
        self._onupdate = {f"al_onupdate_{c.key}": caller(mapping, c, c.onupdate) for c in onupdate}
        self._slugs = slugs_of(mapping.columns["provider"].type)
        self._stored = {value: slug for slug, value in self._slugs.items()}
        scopes = mapping.columns.get("scopes")
        self._limited = [
            (f"al_{role}", limit, column) for role, column in mapping.columns.items() if (limit := limit_of(column))
        ]
        self._scopes_as_text = scopes is not None and isinstance(scopes.type, sa.String)

    # -- to the database ----------------------------------------------------------------------------------------------

    def identity(self, identity: ProviderIdentity) -> Parameters:
        """The parameters that an identity fills.

        Raises:
            InvalidIdentity: No e-mail address under ``Key.EMAIL``, or one without a normal form.
            ConfigurationError: A column is too short for it.
        """
        filled = self._identity(identity)
        self._check_lengths(filled)
        return filled

    def _identity(self, identity: ProviderIdentity) -> Parameters:
        columns, by_email = self._columns, self._mapping.policy.key is Key.EMAIL
        filled = Parameters(al_provider=self.provider(identity.provider))
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

    def provider(self, slug: str) -> Any:
        """A provider's slug as its column takes it: itself, or the member of an enumeration.

        Raises:
            ConfigurationError: The enumeration has no such provider.
        """
        if not self._slugs:
            return slug
        if slug not in self._slugs:
            raise ConfigurationError(
                f"{slug!r} is not a provider that {self._mapping.name!r} can hold: its column takes "
                f"{', '.join(sorted(self._slugs))}. Add it to the enumeration, and to the database's type."
            )
        return self._slugs[slug]

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
            "scopes": tokens.scopes
            or None,  # RFC 6749, section 5.1: a provider may leave them out where they are as asked
        }
        for role, value in brought.items():
            if value is not None and role not in self._columns:
                raise ConfigurationError(
                    f"{self._mapping.name!r} has no column mapped for the credentials' {role!r}, and nothing is "
                    f"dropped in silence. Map {role}=..., or pass a TokenSet without it."
                )
        filled = Parameters()
        for role, value in brought.items():
            if role in self._columns and not (value is None and role in ("refresh_token", "scopes")):
                filled[f"al_{role}"] = self._credential(role, value)
        self._check_lengths(filled)
        return filled

    def _check_lengths(self, filled: Parameters) -> None:
        for name, limit, column in self._limited:
            value = filled.get(name)
            if isinstance(value, str) and len(value) > limit:
                check_length(value, column)

    def reason(self, reason: object) -> str:
        """The reason of a removal, as its column takes it.

        Raises:
            ConfigurationError: There is no column for it, it is no text, or its column cannot hold it.
        """
        if self._mapping.policy.removal is Removal.DELETE:
            raise ConfigurationError("Removal.DELETE keeps no row that could carry a reason. Pass none, or use SOFT.")
        if "reason" not in self._columns:
            raise ConfigurationError(
                f"{self._mapping.name!r} has no 'reason' column mapped. Map one, or pass no reason."
            )
        if not isinstance(reason, str):
            raise ConfigurationError(f"reason= takes a text, not {type(reason).__name__}.")
        text: str = fitted(reason, self._columns["reason"])
        return text

    def _credential(self, role: str, value: Any) -> Any:  # as the column takes it
        if role == "scopes":
            return join_scopes(value) if self._scopes_as_text else sorted(value)
        if role == "expires_at" and value is not None:
            return self.moment(role, value)
        return value

    def moment(self, role: str, moment: datetime) -> Any:  # as the column takes it
        """A moment as the role's column takes it."""
        return self._moments[role](moment)

    def stamps(self, now: datetime) -> Parameters:
        """The parameters that the clock, and the functions of the application's own columns, fill in a link."""
        filled = self._stamped(("created_at", "updated_at"), now)
        if self._mapping.reuses_ids:
            filled["al_version"] = first_version(self._columns["version"].type)
        filled.update((name, call()) for name, call in self._defaults.items())
        return filled

    def removal(self, now: datetime) -> Parameters:
        """The same for an unlink."""
        return self._stamped(("deleted_at", "updated_at"), now)

    def transfer(self, now: datetime) -> Parameters:
        """The same for a transfer."""
        return self._stamped(("updated_at",), now)

    def holding(self, account: LinkedAccount[UserId, LinkId], version: int | None) -> Parameters:
        """The parameters that name a row, its owner and its state, as they were read."""
        filled = Parameters(al_id=account.id, al_account_id=account.account_id)
        filled["al_owner"] = concealed_id(account.user_id)
        filled["al_provider"] = self.provider(account.provider)
        filled["al_version_read"] = version
        return filled

    def _stamped(self, roles: tuple[str, ...], now: datetime) -> Parameters:
        filled = Parameters((f"al_{role}", self._moments[role](now)) for role in roles if role in self._moments)
        filled.update((name, call()) for name, call in self._onupdate.items())
        return filled

    def application(self, kind: str, values: Mapping[Any, Any] | None) -> tuple[tuple[sa.Column[Any], ...], Parameters]:
        """The application's own columns and their parameters.

        Raises:
            ConfigurationError: A column that is not this table's, or that accountlink itself writes.
        """
        filled = Parameters()
        columns: list[sa.Column[Any]] = []
        if values is not None and not isinstance(values, Mapping):
            raise ConfigurationError(
                "values= and update_values= take a mapping such as {Model.column: value}, not "
                f"{type(values).__name__}."
            )
        for attribute, value in (values or {}).items():
            column = self._mapping.column(attribute)
            for role, owned in self._columns.items():
                if owned is column and not (role == "id" and kind == "insert"):
                    raise ConfigurationError(
                        f"{column.name!r} is the mapping's {role!r}, which accountlink writes itself. "
                        "Pass it through identity= or credentials= instead."
                    )
            if column in columns:
                raise ConfigurationError(f"{column.name!r} is given twice, by two names. Give it once.")
            columns.append(column)
            refused: ConfigurationError | None = None
            try:
                filled[f"al_{kind}_{column.key}"] = fitted(value, column)
            except ConfigurationError as error:
                refused = error.with_traceback(None)  # a traceback with locals shows what a frame still holds
            if refused is not None:
                del value, values
                raise refused
        return tuple(columns), filled

    # -- from the database --------------------------------------------------------------------------------------------

    def account(self, row: Sequence[Any], offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """A snapshot of a row that was read in the order of the row roles."""

        def at(role: str) -> Any:  # whatever the column's type returns
            index = self._position.get(role)
            return None if index is None else row[offset + index]

        stored = at("provider")
        return LinkedAccount(
            id=at("id"),
            user_id=at("user_id"),
            provider=self._stored.get(stored, stored) if self._stored else stored,
            account_id=at("account_id"),
            email=at("email"),
            scopes=read_scopes(at("scopes")) if "scopes" in self._position else None,
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
    insert: tuple[sa.Column[Any], ...] = (),
    update: tuple[sa.Column[Any], ...] = (),
) -> Shape:
    """The shape of a call to link or transfer, by the parameters that it brings."""
    return Shape(
        email="al_email" in parameters or "al_email_key" in parameters,
        credentials=tuple(role for role in CREDENTIAL_ROLES if f"al_{role}" in parameters),
        insert=insert,
        update=update,
        expect="al_id" in parameters,
        bounded="al_lock_timeout" in parameters,
    )
