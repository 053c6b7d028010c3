"""Check the arguments of a linker's call before any SQL, and convert them to what the columns take."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final, Protocol, Self, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa

from accountlink.database.transactions import Place
from accountlink.errors import AccountNotFound, BlockedByConstraint, ConfigurationError, InvalidIdentity
from accountlink.linking.decide import BY_SPELLING
from accountlink.linking.statements import Shape
from accountlink.tables.arguments import wrong_kind
from accountlink.tables.column_types import Part, form_of
from accountlink.tables.exact import REFUSED, Spelling
from accountlink.tables.fitting import check_length, fitted, limit_of
from accountlink.tables.idtype import IdType, smallest_bits
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.pending import kept_values
from accountlink.tables.rows import MappedTable, text_of
from accountlink.tables.slugs import slugs_of
from accountlink.values.credentials import TokenSet, join_scopes
from accountlink.values.email import normalize_email
from accountlink.values.identity import ProviderIdentity
from accountlink.values.outcomes import LinkedAccount
from accountlink.values.policy import Key, Removal
from accountlink.values.secrecy import NO_SECRETS, ConcealedNumber, ConcealedText, Parameters, concealed_id
from accountlink.values.text import check_identifier, check_provider

T = TypeVar("T")
_VERSION_BITS: Final = 47
"""The bits of a random version, so that it stays a number that JSON readers keep exact, however often it rises."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Occasion:
    """Hold the facts of a call's event that are not in the row.

    Attributes:
        at: The moment of the event, aware.
        call_id: The id of the call and its retries, by which an event is not written twice.
        data: Further facts of the event, as a JSON object.
    """

    at: datetime
    call_id: UUID
    data: Mapping[str, object] | None = None

    @classmethod
    def of(cls, now: datetime, data: Mapping[str, object] | None = None) -> Occasion:
        """Return the facts of a new call's event.

        Args:
            now: The present moment, aware.
            data: Further facts of the event, as a JSON object.
        """
        return cls(at=now.astimezone(UTC), call_id=uuid4(), data=data)

    def parameters(self) -> Parameters:
        """Return the parameters of the statement that writes the event with the change."""
        bound = Parameters(al_event_at=self.at, al_call_id=self.call_id)
        if self.data is not None:
            bound["al_event_data"] = self.data
        return bound


class Seal(Protocol):
    """Seal tokens that begin a new grant, for the one link that they are stored in: the vault's part in a call."""

    def __call__(
        self, tokens: TokenSet, *, user_id: Any, provider: str, account_key: str, issued_at: datetime
    ) -> Mapping[str, str]:
        """Return the envelopes by role."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Brought:
    """Hold the tokens that a call brings, and what seals them.

    Attributes:
        tokens: The tokens, which no ``repr`` shows.
        seal: Seals them; ``None`` without a vault.
    """

    tokens: TokenSet
    seal: Seal | None = None

    def sealed(self, *, user_id: Any, provider: str, account_key: str, issued_at: datetime) -> dict[str, str]:
        """Return the envelopes of the tokens by role, or nothing without a vault."""
        if self.seal is None:
            return {}
        sealed = self.seal(
            self.tokens, user_id=user_id, provider=provider, account_key=account_key, issued_at=issued_at
        )
        return {role: ConcealedText(text) for role, text in sealed.items()}


class FrozenCall:
    """Show only the names of a frozen call's parameters, and copy it with other fields."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.parameters)})"

    @property
    def parameters(self) -> Parameters:
        """The parameters of every statement of the call."""
        raise NotImplementedError

    @property
    def shape(self) -> Hashable:
        """The shape of the call, by which its statements are built and cached, if calls have several."""
        return None

    def changed(self, **changes: Any) -> Self:
        """Return a copy with these fields changed. ``dataclasses.replace`` does the same at ten times the cost."""
        made = object.__new__(type(self))
        fields: dict[str, Any] = type(self).__dataclass_fields__  # type: ignore[attr-defined]  # of each subclass
        given = vars(self)
        vars(made).update({name: given[name] for name in fields}, **changes)
        return made

    def within(self, place: Place, step: Callable[[sa.Connection, Self], T], connection: sa.Connection) -> T:
        """Run a step with this call, whose statements wait for locks no longer than the place lets them.

        The place knows its limit once it has a connection, so that this is work: ``partial(call.within, place, step)``.
        """
        limit = place.lock_timeout
        ready = self if limit is None else self.changed(lock_timeout=limit)
        _ = ready.shape, ready.parameters  # which every statement of the step uses
        return step(connection, ready)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Call(FrozenCall):
    """Hold the values that one call brings to the table of links, each as its column takes it.

    Attributes:
        user_id: The user who calls.
        link_id: The id of the one link that the call names, if it names one.
        identity: The provider and the account, by role.
        credentials: The credentials that the call brings, by role.
        stamps: The moments, and the version of a new row, by role.
        reason: Why a link is removed.
        insert: The application's columns to fill in a new row.
        update: The application's columns to fill in a new row, on update and on restore.
        functions: The results of the application's default and onupdate functions, by the names of their parameters.
        occasion: The facts of the call's event, where there is an outbox.
        owner: The user who had the link when it was read: it is written only if they still have it.
        version: The version that the link had when it was read.
        lock_timeout: How long a statement waits for a lock, as PostgreSQL's setting has it; ``None`` leaves that alone.
        is_repeated: Whether an attempt whose answer was lost may have written the call's event.
        kept: The parameters of the claimant's pending credentials, where a conflict or a transfer has to do with them.
        keeps: Whether a conflict is to keep the call's credentials.
        takes: Whether a transfer takes its credentials from the pending ones, which have to be unchanged then.
        brought: The tokens that a transfer brings, to be sealed once its row is known.
        spelt: Whether the credentials are sealed for the user's id as the call spells it, in a column that may treat
            another spelling as equal.
    """

    user_id: Any = None
    link_id: Any = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    credentials: Mapping[str, Any] = field(default_factory=dict)
    stamps: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    insert: Mapping[sa.Column[Any], Any] = field(default_factory=dict)
    update: Mapping[sa.Column[Any], Any] = field(default_factory=dict)
    functions: Mapping[str, Any] = field(default_factory=dict)
    occasion: Occasion | None = None
    owner: Any = None
    version: int | None = None
    lock_timeout: str | None = None
    is_repeated: bool = False
    kept: Mapping[str, Any] = field(default_factory=dict)
    keeps: bool = False
    takes: bool = False
    brought: Brought | None = None
    spelt: bool = False

    @cached_property
    def parameters(self) -> Parameters:
        """The parameters of every statement of the call."""
        bound = Parameters((f"al_{role}", value) for role, value in self.identity.items())
        bound.update((f"al_{role}", value) for role, value in self.credentials.items())
        bound.update((f"al_{role}", value) for role, value in self.stamps.items())
        bound.update((f"al_insert_{column.key}", value) for column, value in self.insert.items())
        bound.update((f"al_update_{column.key}", value) for column, value in self.update.items())
        bound.update(self.functions)
        bound.update(self.kept)
        single = {
            "al_user_id": self.user_id,
            "al_id": self.link_id,
            "al_reason": self.reason,
            "al_owner": self.owner,
            "al_version_read": self.version,
            "al_lock_timeout": self.lock_timeout,
        }
        bound.update((name, value) for name, value in single.items() if value is not None)
        if self.occasion is not None:
            bound.update(self.occasion.parameters())
        return bound

    @cached_property
    def shape(self) -> Shape:
        """The shape of the call, by which its statements are built and cached."""
        return Shape(
            email="email" in self.identity or "email_key" in self.identity,
            credentials=tuple(self.credentials),
            insert=tuple(self.insert),
            update=tuple(self.update),
            expect=self.link_id is not None,
            bounded=self.lock_timeout is not None,
            again=self.is_repeated,
            keeps=self.keeps,
            takes=self.takes,
            spelt=self.spelt,
        )


class Calls:
    """Build the calls to one table of links, from checked arguments.

    Args:
        mapping: The columns of the table, by role.
        table: The table.
        tells: Whether there is an outbox, so that calls carry the facts of an event.
        keeps_for: How long the credentials of a call that ends in a conflict are kept; ``None`` where they are not.
    """

    def __init__(
        self, mapping: AccountMapping[Any, Any], table: MappedTable, *, tells: bool, keeps_for: timedelta | None = None
    ) -> None:
        self._mapping = mapping
        self._columns = mapping.columns
        self._table = table
        self._tells = tells
        self._keeps_for = keeps_for
        self._by_email = mapping.policy.key is Key.EMAIL
        self._account_role: Final = mapping.key_roles[-1]
        self._begins_at_random = mapping.reuses_ids
        self.slugs: Final = slugs_of(mapping.columns["provider"].type)
        """The members of the provider's enumeration by slug; empty for a column of texts."""
        spelling = {role: Spelling(mapping, role) for role in mapping.compared_roles}
        self._recoded = {role: each for role, each in spelling.items() if each.has_code}
        """The identifiers whose types have Python code, which may change them; in most tables none."""
        scopes = mapping.columns.get("scopes")
        self._write_scopes = (None if scopes is None else form_of(Part.SCOPES, scopes.type)) or join_scopes
        self._concealed_user = _concealing(table.id_type("user_id"))
        self._limits = {role: limit for role, c in mapping.columns.items() if (limit := limit_of(c)) is not None}

    # -- the calls ----------------------------------------------------------------------------------------------------

    def link(
        self,
        *,
        user_id: object,
        identity: object,
        credentials: object,
        expect: object,
        values: Mapping[Any, object] | None,
        update_values: Mapping[Any, object] | None,
        seal: Seal | None = None,
    ) -> Call:
        """Build the call that links.

        Args:
            user_id: The user.
            identity: The identity.
            credentials: The tokens, if the call brings any.
            expect: The link to reconnect.
            values: Application columns of a new row.
            update_values: Application columns to fill on update too.
            seal: Seals the tokens, where there is a vault.

        Raises:
            InvalidIdentity: No e-mail address under ``Key.EMAIL``, or one without a normal form.
            AccountNotFound: No link can have the id of ``expect``.
            BlockedByConstraint: A column's type changes the text of an identifier.
            ConfigurationError: A call that the mapping cannot serve.
        """
        # Check the arguments, and convert them to what the columns take.
        if not isinstance(identity, ProviderIdentity):
            raise wrong_kind("identity", identity, ProviderIdentity)
        tokens, filled = self._credentials(credentials, seal)
        insert = self._application(values, new=True) if values is not None else {}
        update = self._application(update_values, new=False) if update_values is not None else {}
        named = self._identity(identity)
        user_id = self._table.checked_id("user_id", user_id, what="user_id")
        if expect is not None:
            expect = self._table.checked_id("id", expect, what="The link's id", outside=AccountNotFound)
        if self._recoded and (respelt := self._respelt(named)):
            raise BlockedByConstraint(constraint=None, columns=respelt, rule=BY_SPELLING)
        # Add the moments, the functions' values and the event.
        now = self._table.now()
        sealed: dict[str, str] = {}
        if tokens is not None and tokens.seal is not None:
            account_key = str.__str__(named[self._account_role])
            sealed = tokens.sealed(user_id=user_id, provider=identity.provider, account_key=account_key, issued_at=now)
            self.check_lengths(sealed)
        stamps = self._table.stamped(("created_at", "updated_at"), now)
        if self._begins_at_random:
            stamps["version"] = first_version(self._columns["version"].type)
        kept = {}
        if self._keeps_for is not None and tokens is not None:
            kept = self._kept(tokens, sealed, identity, user_id=user_id, until=now + self._keeps_for, now=now)
        return Call(
            user_id=user_id,
            link_id=expect,
            identity=named,
            credentials=filled | sealed,
            stamps=stamps,
            insert=insert,
            update=update,
            functions=self._table.defaults() | self._table.onupdate(),
            occasion=Occasion.of(now) if self._tells else None,
            spelt=bool(sealed) and isinstance(user_id, str),
            kept=kept,
            keeps=bool(kept),
        )

    def _kept(
        self,
        brought: Brought,
        sealed: dict[str, str],
        identity: ProviderIdentity,
        *,
        user_id: object,
        until: datetime,
        now: datetime,
    ) -> dict[str, Any]:
        """Return the parameters of the credentials that a conflict is to keep."""
        key = self._kept_key(user_id, identity.provider, identity.account_id, now=now)
        return key | kept_values(brought.tokens, sealed=sealed, until=until.astimezone(UTC))

    def _kept_key(self, user_id: Any, provider: str, account_id: str, *, now: datetime) -> dict[str, Any]:
        """Return the parameters that name a claimant's pending credentials."""
        return {
            "al_kept_user_id": str(self._table.id_type("user_id").one_form(user_id)),
            "al_kept_provider": provider,
            "al_kept_account_id": account_id,
            "al_kept_now": now.astimezone(UTC),
        }

    def _none_kept(self, user_id: Any, provider: str, account_id: str, *, now: datetime) -> dict[str, Any]:
        """Return the parameters of a transfer that has found no pending credentials."""
        return {**self._kept_key(user_id, provider, account_id, now=now), "al_kept_access_token": None}

    def transfer(self, *, now: datetime, user_id: object, credentials: object, seal: Seal | None = None) -> Call:
        """Build the call that gives a link to the claimant.

        Args:
            now: The present moment, aware.
            user_id: The claimant, whose id has been checked.
            credentials: The claimant's credentials, if the claimant brings any.
            seal: Seals them, where there is a vault.

        Raises:
            ConfigurationError: The table has no column for something that the credentials bring.
        """
        tokens, filled = self._credentials(credentials, seal)
        return Call(
            user_id=user_id,
            credentials=filled,
            brought=tokens,
            stamps=self._table.stamped(("updated_at",), now),
            functions=self._table.onupdate(),
            occasion=Occasion.of(now) if self._tells else None,
        )

    def replacing(self, *, user_id: object, link_id: object, provider: str | None, tokens: object, seal: Seal) -> Call:
        """Build the call that stores tokens in a link that has some already, once the row is known.

        Raises:
            AccountNotFound: No link can have the id.
            ConfigurationError: An id of the wrong type, or no column for something that the tokens bring.
            InvalidIdentity: A provider that cannot be one.
        """
        if not isinstance(tokens, TokenSet):
            raise wrong_kind("tokens", tokens, TokenSet)
        found, filled = self._credentials(tokens, seal)
        read = self.reading(user_id=user_id, provider=provider, link_id=link_id)
        return read.changed(
            credentials=filled,
            brought=found,
            stamps=self._table.stamped(("updated_at",), self._table.now()),
            functions=self._table.onupdate(),
        )

    def about_row(self, call: Call, row: LinkedAccount[Any, Any], version: int | None, *, now: datetime) -> Call:
        """Return a transfer's call with the values of the row that it is to write, as the row was read.

        Args:
            call: The claimant's call.
            row: The row, of a user whose id no log of parameters shows.
            version: The row's version, or its epoch in the ledger.
            now: The present moment, aware.
        """
        # A CHAR(n) that is mapped as another text type pads the text; the padding is removed.
        provider, account_id = text_of(row.provider).rstrip(" "), text_of(row.account_id).rstrip(" ")
        sealed = {}
        if call.brought is not None and call.brought.seal is not None:
            sealed = call.brought.sealed(user_id=call.user_id, provider=provider, account_key=account_id, issued_at=now)
            self.check_lengths(sealed)
        return call.changed(
            link_id=row.id,
            identity={"provider": self.provider(provider), "account_id": account_id},
            owner=self._concealed_user(row.user_id),
            version=version,
            credentials={**call.credentials, **sealed},
            kept={} if self._keeps_for is None else self._none_kept(call.user_id, provider, account_id, now=now),
        )

    def taking(self, call: Call, kept: Mapping[str, Any]) -> Call:
        """Return a transfer's call with the credentials that the claimant's conflict has kept.

        Args:
            call: The call, with the row's values.
            kept: The credentials by role: envelopes, an aware moment, a set of scopes.
        """
        filled = dict(kept)
        if "expires_at" in kept:
            filled |= self._table.stamped(("expires_at",), kept["expires_at"])
        if "scopes" in kept:
            filled["scopes"] = self._write_scopes(kept["scopes"])
        seen = {**call.kept, "al_kept_access_token": kept["access_token"]}
        return call.changed(credentials=filled, kept=seen, takes=True)

    def unlink(self, *, user_id: object, link_id: object, reason: object) -> Call:
        """Build the call that removes a link.

        Raises:
            AccountNotFound: No link can have the id.
            ConfigurationError: An id of the wrong type, or a reason that the table cannot hold.
        """
        now = self._table.now()
        user_id = self._table.checked_id("user_id", user_id, what="user_id")
        link_id = self._table.checked_id("id", link_id, what="The link's id", outside=AccountNotFound)
        why = None if reason is None else self._reason(reason)
        data = None if why is None else {"reason": why}
        return Call(
            user_id=user_id,
            link_id=link_id,
            stamps=self._table.stamped(("deleted_at", "updated_at"), now),
            reason=why,
            functions=self._table.onupdate(),
            occasion=Occasion.of(now, data) if self._tells else None,
            kept={} if self._keeps_for is None else self._kept_key(user_id, "", "", now=now),
        )

    def reading(self, *, user_id: object, provider: str | None = None, link_id: object = None) -> Call:
        """Build the call that reads a user's links: all, those of one provider, or the one with an id.

        Raises:
            AccountNotFound: No link can have the id.
            ConfigurationError: An id of the wrong type.
            InvalidIdentity: A provider that cannot be one.
        """
        user_id = self._table.checked_id("user_id", user_id, what="user_id")
        named = {} if provider is None else {"provider": self.provider(check_provider(provider))}
        if link_id is not None:
            link_id = self._table.checked_id("id", link_id, what="The link's id", outside=AccountNotFound)
        return Call(user_id=user_id, link_id=link_id, identity=named)

    def finding(self, *, provider: str, account_id: str) -> Call | None:
        """Build the call that finds an account's owner, or return ``None`` if no row can hold the account.

        Raises:
            ConfigurationError: The provider's column cannot hold the provider.
            InvalidIdentity: A provider or an account id that cannot be one.
        """
        named = {
            "provider": self.provider(check_provider(provider)),
            "account_id": check_identifier(account_id, field="account_id"),
        }
        return None if self._recoded and self._respelt(named) else Call(identity=named)

    # -- what they bring ----------------------------------------------------------------------------------------------

    def _identity(self, identity: ProviderIdentity) -> dict[str, Any]:
        named: dict[str, Any] = {"provider": self.provider(identity.provider)}
        if "account_id" in self._columns:
            named["account_id"] = identity.account_id
        if identity.email is not None:
            if "email" in self._columns:
                named["email"] = ConcealedText(identity.email)
            if self._by_email or "email_key" in self._columns:
                named[self._mapping.email_key_role] = ConcealedText(normalize_email(identity.email))
        elif self._by_email:
            raise InvalidIdentity(
                field="email",
                problem="is missing under Key.EMAIL",
                remedy="Ask the provider for the e-mail scope.",
            )
        self.check_lengths(named)
        return named

    def provider(self, slug: str) -> Any:
        """Return a provider's slug as its column takes it: unchanged, or as the member of an enumeration.

        Raises:
            ConfigurationError: The enumeration has no such provider.
        """
        if not self.slugs:
            return slug
        if slug not in self.slugs:
            raise ConfigurationError(
                f"{slug!r} is not a provider that {self._mapping.name!r} can hold: its column takes "
                f"{', '.join(sorted(self.slugs))}. Add it to the enumeration, and to the database's type."
            )
        return self.slugs[slug]

    def _respelt(self, named: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the columns whose types change the text of an identifier."""
        respelt: list[str] = []
        for role, spelling in self._recoded.items():
            try:
                unchanged = role not in named or spelling.comes_back(named[role])
            except REFUSED:
                raise InvalidIdentity(field=role, problem="is nothing that the type of its column takes") from None
            respelt += [] if unchanged else [self._columns[role].name]
        return tuple(respelt)

    def _credentials(self, tokens: object, seal: Seal | None) -> tuple[Brought | None, dict[str, Any]]:
        """Return the tokens, and the credentials by role, without those that the provider left out and the row keeps.

        With a vault the tokens themselves are left empty here, until they are sealed for a row.

        Source: RFC 6749, section 5.1: a provider may leave out the scopes if they are those that were asked for.
        """
        if tokens is None:
            return None, {}
        if not isinstance(tokens, TokenSet):
            raise wrong_kind("credentials", tokens, TokenSet)
        # Refuse a value that has no column.
        refresh = tokens.refresh_token
        brought: dict[str, Any] = {
            "access_token": ConcealedText("" if seal else tokens.access_token.reveal()),
            "refresh_token": None if refresh is None else ConcealedText("" if seal else refresh.reveal()),
            "expires_at": tokens.expires_at,
            "scopes": tokens.scopes or None,
        }
        for role, value in brought.items():
            if value is not None and role not in self._columns:
                raise ConfigurationError(
                    f"{self._mapping.name!r} has no column mapped for the credentials' {role!r}, and nothing is "
                    f"dropped in silence. Map {role}=..., or pass a TokenSet without it."
                )
        if seal is None:
            _check_unsealed(tokens)
        # Convert the values, and leave out those that the row keeps.
        if tokens.expires_at is not None:
            brought |= self._table.stamped(("expires_at",), tokens.expires_at)
        if tokens.scopes:
            brought["scopes"] = self._write_scopes(tokens.scopes)
        left_alone = ("refresh_token", "scopes")
        filled = {
            role: value
            for role, value in brought.items()
            if role in self._columns and not (value is None and role in left_alone)
        }
        self.check_lengths(filled)
        return Brought(tokens=tokens, seal=seal), filled

    def check_lengths(self, filled: Mapping[str, Any]) -> None:
        """Refuse a text that is longer than its column.

        Raises:
            ConfigurationError: A text is longer than its column.
        """
        for role, limit in self._limits.items():
            value = filled.get(role)
            if isinstance(value, str) and len(value) > limit:
                check_length(value, self._columns[role])

    def _reason(self, reason: object) -> str:
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

    def _application(self, values: object, *, new: bool) -> dict[sa.Column[Any], Any]:
        """Return the application's columns and their values, sorted, so that their order makes no second statement."""
        if not isinstance(values, Mapping):
            raise ConfigurationError(
                "values= and update_values= take a mapping such as {Model.column: value}, not "
                f"{type(values).__name__}."
            )
        filled: dict[sa.Column[Any], Any] = {}
        for attribute, value in values.items():
            column = self._mapping.column(attribute)
            for role, owned in self._columns.items():
                if owned is column and not (role == "id" and new):
                    raise ConfigurationError(
                        f"{column.name!r} is the mapping's {role!r}, which accountlink writes itself. "
                        "Pass it through identity= or credentials= instead."
                    )
            if column in filled:
                raise ConfigurationError(f"{column.name!r} is given twice, by two names. Give it once.")
            filled[column] = fitted(value, column)
        return dict(sorted(filled.items(), key=lambda item: item[0].key))


def _check_unsealed(tokens: TokenSet) -> None:
    """Refuse what only an envelope has room for, where there is no vault."""
    beside = {"client": tokens.client, "refresh_expires_at": tokens.refresh_expires_at}
    named = ["extra"] if tokens.extra is not NO_SECRETS else [name for name, value in beside.items() if value]
    if named:
        raise ConfigurationError(
            f"Only a vault stores the credentials' {named[0]!r}, and nothing is dropped in silence. Pass "
            "AccountLinker(vault=CredentialVault(...)), or a TokenSet without it."
        )


def _concealing(kind: IdType) -> Callable[[Any], Any]:
    """Return the function that masks an id of this type in a log of parameters; most ids are whole numbers."""
    if kind.is_uuid_text:  # a text in Python and a UUID in the database, for which asyncpg takes a UUID only
        return lambda text: concealed_id(UUID(str(text)))
    return ConcealedNumber if kind.python is int else concealed_id


def first_version(kind: sa.types.TypeEngine[Any]) -> int:
    """Return a random first version, for a row that may get the id of a deleted one."""
    return 1 + randomness.randbelow(2 ** min(smallest_bits(kind) - 1, _VERSION_BITS))
