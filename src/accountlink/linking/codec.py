"""Carries values to and from columns: moments, scopes, and the parameters of a statement."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic
from uuid import UUID

import sqlalchemy as sa

from accountlink.errors import ConfigurationError, InvalidIdentity
from accountlink.linking.statements import Shape
from accountlink.tables.column_types import Part, aware, form_of, read_moment, read_scopes
from accountlink.tables.exact import REFUSED, Spelling, text_of
from accountlink.tables.fitting import check_length, fitted, limit_of
from accountlink.tables.idtype import IdType, smallest_bits
from accountlink.tables.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.tables.slugs import slugs_of
from accountlink.tables.targets import TableMapping
from accountlink.tables.type_layers import is_padded
from accountlink.values.credentials import TokenSet, join_scopes
from accountlink.values.email import normalize_email
from accountlink.values.identity import ProviderIdentity
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId
from accountlink.values.policy import Key, Removal
from accountlink.values.secrecy import ConcealedText, Parameters, concealed_id

_VERSION_BITS = 47
"""A random version stays a number that every reader of JSON keeps whole, for as long as it is counted up."""
MOMENTS = ("expires_at", "created_at", "updated_at", "deleted_at")


def moment_writer(part: Part, column: sa.Column[Any]) -> Callable[[datetime], Any]:
    """How a column takes an aware moment: aware, naive in UTC, or as whole seconds since 1970."""
    return form_of(part, column.type) or aware  # a mapping has refused what takes none


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
        self._moments = {
            role: moment_writer(Part.MOMENT, mapping.columns[role]) for role in MOMENTS if role in mapping.columns
        }
        self._defaults = {f"al_default_{c.key}": caller(mapping, c, c.default) for c in defaults}
        self._onupdate = {f"al_onupdate_{c.key}": caller(mapping, c, c.onupdate) for c in onupdate}
        self._slugs = slugs_of(mapping.columns["provider"].type)
        self._stored = {value: slug for slug, value in self._slugs.items()}
        named = dict.fromkeys(("provider", "account_id", *mapping.key_roles[1:]))
        spelling = {role: Spelling(mapping, role) for role in named if role in mapping.columns}
        self._read_back = [(role, f"al_{role}") for role in spelling if role in row_roles]
        self._padded = [role for role, _ in self._read_back if is_padded(mapping.columns[role].type)]
        self.recoded = {role: each for role, each in spelling.items() if each.has_code}
        """The identifiers whose types have Python code, which may change them; in most tables none."""
        self._owner_is_uuid_text = IdType.of(mapping.columns["user_id"]).is_uuid_text
        """asyncpg takes a UUID, or an ordinary text, but no other kind of text."""
        scopes = mapping.columns.get("scopes")
        self._write_scopes = (None if scopes is None else form_of(Part.SCOPES, scopes.type)) or join_scopes
        self._limited = [
            (f"al_{role}", limit, column) for role, column in mapping.columns.items() if (limit := limit_of(column))
        ]

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

    def respelt(self, parameters: Parameters) -> tuple[str, ...]:
        """The columns whose types make another text of what the parameters bring.

        Raises:
            InvalidIdentity: A type refuses what is brought.
        """
        respelt: list[str] = []
        for role, spelling in self.recoded.items():
            try:
                kept = f"al_{role}" not in parameters or spelling.comes_back(parameters[f"al_{role}"])
            except REFUSED:
                raise InvalidIdentity(field=role, problem="is nothing that the type of its column takes") from None
            respelt += [] if kept else [self._columns[role].name]
        return tuple(respelt)

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
            return self._write_scopes(value)
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
        """The parameters that the clock, and the functions of the application's own columns, fill in an unlink."""
        return self._stamped(("deleted_at", "updated_at"), now)

    def transfer(self, now: datetime) -> Parameters:
        """The parameters that the clock, and the functions of the application's own columns, fill in a transfer."""
        return self._stamped(("updated_at",), now)

    def holding(self, account: LinkedAccount[UserId, LinkId], version: int | None) -> Parameters:
        """The parameters that name a row, its owner and its state, as they were read."""
        # Without the padding that a CHAR(n) has added which is mapped as another text.
        filled = Parameters(al_id=account.id, al_account_id=text_of(account.account_id).rstrip(" "))
        owner: Any = account.user_id
        filled["al_owner"] = concealed_id(UUID(owner) if self._owner_is_uuid_text else owner)
        filled["al_provider"] = self.provider(text_of(account.provider).rstrip(" "))
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
        columns.sort(key=lambda column: column.key)  # in whatever order they come, it is one statement
        return tuple(columns), filled

    # -- from the database --------------------------------------------------------------------------------------------

    def account(self, row: Sequence[Any], offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """A snapshot of a row that was read in the order of the row roles."""
        read: dict[str, Any] = dict(zip(self._position, row[offset:], strict=False))
        for role in self._padded:
            read[role] = read[role] and read[role].rstrip(" ")
        return LinkedAccount(
            id=read["id"],
            user_id=read["user_id"],
            provider=self._stored.get(read["provider"], read["provider"]) if self._stored else read["provider"],
            account_id=read.get("account_id"),
            email=read.get("email"),
            scopes=read_scopes(read["scopes"]) if "scopes" in read else None,
            created_at=read_moment(read.get("created_at")),
            updated_at=read_moment(read.get("updated_at")),
            deleted_at=read_moment(read.get("deleted_at")),
        )

    def asked_for(self, row: Sequence[Any], parameters: Parameters, offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """A snapshot of a row that has to be of what the parameters name.

        Raises:
            ConfigurationError: It is not: what the database holds is not what it was given.
        """
        account = self.account(row, offset)
        if not self.is_about(account, parameters):
            raise ConfigurationError(
                f"{self._mapping.name!r} does not hold the provider, the account id or the e-mail key that was given "
                "to it: a trigger, or the column's own type, has changed it. Make the table keep them as they are."
            )
        return account

    def is_about(self, account: LinkedAccount[UserId, LinkId], parameters: Parameters) -> bool:
        """Whether a row that was read is of what the parameters name, byte by byte.

        No identifier ends in a blank, so blanks at the end are the padding of a ``CHAR(n)`` that is mapped as text.
        """
        for role, name in self._read_back:
            asked = parameters.get(name)
            read = getattr(account, role)
            if (
                asked is not None
                and asked != read
                and text_of(read).rstrip(" ") != text_of(self._stored.get(asked, asked))
            ):
                return False
        return True

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
