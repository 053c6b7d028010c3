"""Read the tokens of a link, and replace them while they are still those that were read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any, Final, Generic, TypeAlias

import sqlalchemy as sa

from accountlink.database.patience import Patience
from accountlink.database.transactions import Place, read, run
from accountlink.errors import (
    AccountNotFound,
    AmbiguousAccount,
    ConfigurationError,
    MissingScopes,
    NeedsConsent,
    OutcomeUnknown,
    StoreBusy,
)
from accountlink.linking.call import Call
from accountlink.linking.store import AccountStore
from accountlink.tables.rows import read_moment
from accountlink.values.credentials import TokenSet
from accountlink.values.health import Health, HealthState
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId
from accountlink.values.secrecy import ConcealedText, Parameters, Secret
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.envelope import BoundTo, grant_of
from accountlink.vault.lease_statements import LeaseStatements
from accountlink.vault.renewal import GrantState
from accountlink.vault.sealing import Sealing, TableVault, contents_of, tokens_of
from accountlink.vault.statements import VaultStatements

Opened: TypeAlias = tuple[AccessToken | None, RefreshToken | None]
"""The contents of the columns of a link."""
ATTEMPTS: Final = 5
"""The number of reads of tokens that another call replaces in between."""
UNKNOWN_GRANT: Final = "plain"
"""Stands for the grant id of a token in plain text, which has none."""
REFUSED_TOO_SOON: Final = timedelta(seconds=60)
"""An access token that is younger than this was refused for its rights: no new one would help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTokens(Generic[UserId, LinkId]):
    """Hold the tokens of one link as they stand in its row.

    Attributes:
        account: The link.
        access_token: The text of the column ``access_token``, which no ``repr`` shows: it may be plain text.
        refresh_token: That of ``refresh_token``.
        expires_at: When the access token expires, aware.
        now: The database's present moment, from the same statement.
        bound_to: What the envelopes are bound to.
        seen: What the columns of tokens contain, by the names of the parameters with which a statement compares it.
        state: The state of the grant's renewals, where it was read.
        lease_by: Who has the lease for a renewal.
    """

    account: LinkedAccount[UserId, LinkId]
    access_token: str | None = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: datetime | None
    now: datetime
    bound_to: BoundTo
    seen: Mapping[str, Any] = field(repr=False)
    state: GrantState = field(default_factory=GrantState)
    lease_by: str | None = None

    @property
    def health(self) -> Health:
        """The health of the link's grant, as its renewals have left it."""
        known = self.state
        return Health(
            state=known.state,
            provider_code=known.provider_code or known.refused,
            since=known.since,
            retry_at=None if known.retry_at is None or known.retry_at <= self.now else known.retry_at,
        )

    @property
    def is_spent(self) -> bool:
        """Whether the access token is over, and there are not both tokens that a renewal begins with."""
        return self.is_over and not (self.access_token and self.refresh_token)

    @property
    def is_over(self) -> bool:
        """Whether the access token has expired, or there is none."""
        return not self.access_token or (self.expires_at is not None and self.expires_at <= self.now)


class StoredCredentials(Generic[UserId, LinkId]):
    """Read and replace the tokens of one table of links.

    Args:
        accounts: The table.
        vault: Seals and opens its tokens.
    """

    def __init__(self, accounts: AccountStore[UserId, LinkId], vault: TableVault) -> None:
        self.accounts: Final = accounts
        self.vault: Final = vault

    @cached_property
    def statements(self) -> VaultStatements:
        """The builder of the statements, made when tokens are first read."""
        return VaultStatements(self.accounts.mapping)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def find(
        self, place: Place, call: Call, *, statements: LeaseStatements | None = None
    ) -> StoredTokens[UserId, LinkId]:
        """Read the tokens of the one live link that a call names, sealed as they are.

        Args:
            place: Runs the statement.
            call: Names the link by its id, or by its provider where the user has one account there.
            statements: Reads the state of renewals beside the tokens.

        Raises:
            AccountNotFound: The user has no such live link.
            AmbiguousAccount: The provider alone matches several links of the user.
        """
        found = await read(place, partial(self._rows, call=call, renewals=statements))
        if not found:
            raise AccountNotFound
        if len(found) > 1:
            raise AmbiguousAccount(provider=found[0].account.provider, count=len(found))
        return found[0]

    def _rows(
        self, connection: sa.Connection, call: Call, renewals: LeaseStatements | None
    ) -> list[StoredTokens[UserId, LinkId]]:
        accounts, on_sqlite = self.accounts, connection.dialect.name == "sqlite"
        roles = (*call.identity, *(("id",) if call.link_id is not None else ()))
        build = self.statements.tokens if renewals is None else renewals.tokens_and_state
        rows = self.run_named(
            connection,
            call.parameters,
            ("tokens", roles, on_sqlite, renewals is not None),
            lambda: build(roles, self.vault.account_role, on_sqlite=on_sqlite),
        )
        found = [self.of_row(row) for row in rows]
        return [stored for stored in found if accounts.is_about(stored.account, call.identity)]

    def run_named(
        self,
        connection: sa.Connection,
        parameters: Parameters,
        key: Hashable,
        build: Callable[[], sa.Executable],
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run a statement that may need the name under which the library's tables store the table of the links.

        Args:
            connection: The connection that runs it.
            parameters: The statement's other parameters.
            key: Names the statement in the cache.
            build: Builds the statement.
        """
        named = Parameters(parameters, al_links=self.accounts.name_on(connection))
        return self.accounts.run(connection, named, key, build)

    def of_row(self, row: sa.Row[Any]) -> StoredTokens[UserId, LinkId]:
        """Return the tokens in a row of a query for them."""
        account = self.accounts.account(row)
        return StoredTokens(
            account=account,
            access_token=row.access_token,
            refresh_token=row.refresh_token,
            expires_at=read_moment(row.expires_at),
            now=row.now if isinstance(row.now, datetime) else datetime.fromisoformat(row.now),
            bound_to=self.vault.bound_to(
                user_id=account.user_id, provider=account.provider, account_key=row.account_key
            ),
            seen={f"al_seen_{role}": _seen(row, role) for role in self.statements.compared},
            state=_state(row),
            lease_by=getattr(row, "state_lease_by", None),
        )

    async def all_of(
        self, place: Place, call: Call, *, statements: LeaseStatements
    ) -> list[StoredTokens[UserId, LinkId]]:
        """Read the tokens of all live links of the call's user, sealed as they are, with the states of renewals."""
        return await read(place, partial(self._rows, call=call, renewals=statements))

    async def whole(self, stored: StoredTokens[UserId, LinkId]) -> TokenSet:
        """Open all tokens of a link.

        Args:
            stored: The tokens as they stand in the row.

        Raises:
            NeedsConsent: The link has no access token.
            CredentialsUnreadable: A token cannot be read.
        """
        access = await self.vault.access_token(stored.access_token, stored.bound_to)
        if access is None:
            raise NeedsConsent(link_id=stored.account.id)
        refresh = await self.vault.refresh_token(stored.refresh_token, stored.bound_to)
        return _tokens(stored, access, refresh)

    async def valid(
        self, stored: StoredTokens[UserId, LinkId], *, require: frozenset[str], rejected: Secret | None
    ) -> TokenSet:
        """Open the access token of a link, if it is valid by the database's clock.

        Args:
            stored: The tokens as they stand in the row.
            require: The scopes that the caller needs.
            rejected: An access token that the API has just refused.

        Raises:
            MissingScopes: The user has not granted some of the scopes.
            NeedsConsent: There is no access token, or it is over or refused and there is no refresh token.
            ConfigurationError: It is over or refused, and nothing renews it; or the table has no column for scopes.
            CredentialsUnreadable: The token cannot be read.
        """
        self.check_scopes(stored, require)
        access = None if stored.is_over else await self.vault.access_token(stored.access_token, stored.bound_to)
        if access is None or self.is_refused(access, rejected, now=stored.now):
            raise _not_renewed(stored)
        return self.given(stored, access)

    def given(self, stored: StoredTokens[UserId, LinkId], access: AccessToken) -> TokenSet:
        """Return what a caller gets of a link's tokens: everything but the refresh token."""
        return _tokens(stored, access, None)

    async def opened(self, stored: StoredTokens[UserId, LinkId]) -> tuple[TokenSet | None, AccessToken | None]:
        """Open all tokens of a link; each is ``None`` if the link has no access token.

        Args:
            stored: The tokens as they stand in the row.

        Raises:
            CredentialsUnreadable: A token cannot be read.
        """
        access, refresh = await self.contents(stored)
        return self.together(stored, access, refresh), access

    async def contents(self, stored: StoredTokens[UserId, LinkId]) -> Opened:
        """Open the columns of a link; each is ``None`` if it has no token.

        Args:
            stored: The tokens as they stand in the row.

        Raises:
            CredentialsUnreadable: A token cannot be read.
        """
        access = await self.vault.access_token(stored.access_token, stored.bound_to)
        return access, await self.vault.refresh_token(stored.refresh_token, stored.bound_to)

    def together(
        self, stored: StoredTokens[UserId, LinkId], access: AccessToken | None, refresh: RefreshToken | None
    ) -> TokenSet | None:
        """Return all tokens of a link, or ``None`` if it has no access token."""
        return None if access is None else _tokens(stored, access, refresh)

    def check_scopes(self, stored: StoredTokens[UserId, LinkId], require: frozenset[str]) -> None:
        """Refuse a link without scopes that the caller needs.

        Raises:
            MissingScopes: The user has not granted some of the scopes.
        """
        if require and "scopes" not in self.accounts.mapping.columns:
            raise ConfigurationError(
                f"require=... asks which scopes were granted, and {self.accounts.mapping.name!r} has no column mapped "
                "for 'scopes'. Map scopes=..., or leave require= out."
            )
        self.check_granted(stored.account.scopes or frozenset(), require, link_id=stored.account.id)

    def check_granted(self, scopes: frozenset[str], require: frozenset[str], *, link_id: LinkId) -> None:
        """Refuse scopes without those that the caller needs.

        Raises:
            MissingScopes: The user has not granted some of the scopes.
        """
        if missing := require - scopes:
            raise MissingScopes(missing=missing, link_id=link_id)

    def is_refused(self, access: AccessToken, rejected: Secret | None, *, now: datetime) -> bool:
        """Say whether this is the access token that the API has refused, and old enough for a new one to help."""
        if rejected is None or access.token != rejected:
            return False
        return access.issued_at is None or now - access.issued_at >= REFUSED_TOO_SOON

    # -- replacing ----------------------------------------------------------------------------------------------------

    async def replace(self, place: Place, call: Call, sealing: Sealing, *, presented: Secret) -> LinkId | None:
        """Store tokens in the one live link that a call names, if it still has what they were obtained with.

        The row is read, opened and compared, and then written if it has not changed since. A row that another call has
        only sealed again is read again.

        Args:
            place: Runs the statements.
            call: Names the link, and brings the tokens.
            sealing: Seals them.
            presented: The refresh token that they were obtained with, or the access token where there was none.

        Returns:
            The link's id, or ``None``: the link has other tokens by now, and nothing was written.

        Raises:
            OutcomeUnknown: The answer to a write was lost, and the link has other tokens by now.
            StoreBusy: The row was changed between each read and the write that followed.
        """
        patience = Patience()
        for _ in range(ATTEMPTS):
            stored = await self.find(place, call)
            contents = await self.contents(stored)
            ready = self.fitting(stored, call, sealing, contents, presented=presented, issued_at=self.accounts.now())
            if ready is None and not patience.ambiguous:
                return None
            if ready is None:
                # An earlier attempt, whose answer was lost, may have stored the tokens.
                if await self._has_brought(stored, call):
                    return stored.account.id
                break
            if await run(place, partial(self._written, call=ready), patience):
                return stored.account.id
        raise OutcomeUnknown if patience.ambiguous else StoreBusy

    async def _has_brought(self, stored: StoredTokens[UserId, LinkId], call: Call) -> bool:
        """Say whether a link has the tokens that a call brings."""
        access = await self.vault.access_token(stored.access_token, stored.bound_to)
        return access is not None and call.brought is not None and access.token == call.brought.tokens.access_token

    def fitting(
        self,
        stored: StoredTokens[UserId, LinkId],
        call: Call,
        sealing: Sealing,
        contents: Opened,
        *,
        presented: Secret,
        issued_at: datetime,
    ) -> Call | None:
        """Return the call that writes the row as it was read, or ``None`` if the row has other tokens.

        Args:
            stored: The row's tokens.
            call: Brings the new tokens.
            sealing: Seals them.
            contents: What the row's columns contain.
            presented: The token that they were obtained with.
            issued_at: When they were obtained, aware.
        """
        access, refresh = contents
        known = refresh or access
        if known is None or call.brought is None or known.token != presented:
            return None
        sealed = {
            contents.role: ConcealedText(
                sealing.again(contents, grant_id=grant_of(_text(stored, contents.role)), bound_to=stored.bound_to)
            )
            for contents in renewed(call.brought.tokens, access, refresh, issued_at=issued_at)
        }
        self.accounts.calls.check_lengths(sealed)
        return call.changed(link_id=stored.account.id, credentials={**call.credentials, **sealed}, kept=stored.seen)

    def _written(self, connection: sa.Connection, call: Call) -> bool:
        shape = call.shape
        row = self.accounts.run(
            connection, call.parameters, ("replace", shape), lambda: self.statements.replace(shape)
        ).first()
        return row is not None


def renewed(
    tokens: TokenSet, access: AccessToken | None, refresh: RefreshToken | None, *, issued_at: datetime
) -> list[AccessToken | RefreshToken]:
    """Return what the columns of a link are to contain after a renewal of its tokens.

    What the new tokens leave out stays: the refresh token, the OAuth client, and members of ``extra``. A refresh token
    that stays belongs to the client that has just used it.

    Args:
        tokens: The new tokens.
        access: What the column ``access_token`` contained.
        refresh: What the column ``refresh_token`` contained.
        issued_at: When the new tokens were obtained, aware.
    """
    new = contents_of(tokens, issued_at=issued_at)
    first, *rest = new
    assert isinstance(first, AccessToken)  # noqa: S101  # the first one always is
    if access is not None:
        client = (first.client or access.client) if refresh is None and not rest else None
        first = replace(first, extra={**access.extra, **first.extra}, client=client)
    if refresh is not None:
        rest = [replace(each, client=each.client or refresh.client) for each in rest if isinstance(each, RefreshToken)]
        if not rest and tokens.client not in (None, refresh.client):
            rest = [replace(refresh, client=tokens.client)]
    return [first, *rest]


def grant_in(access_token: str | None, refresh_token: str | None) -> str:
    """Return the id of the grant to which the state of a row's renewals belongs: that of its access token.

    Args:
        access_token: The text of the column.
        refresh_token: The text of the column.
    """
    return grant_of(access_token) or grant_of(refresh_token) or UNKNOWN_GRANT


def _seen(row: sa.Row[Any], role: str) -> Any:  # as the driver returns it
    """Return what a column of tokens contains, as a parameter that no log shows."""
    seen = getattr(row, f"seen_{role}", getattr(row, role))
    return ConcealedText(seen) if isinstance(seen, str) else seen


def _text(stored: StoredTokens[Any, Any], role: str) -> str | None:
    return stored.access_token if role == AccessToken.role else stored.refresh_token


def _tokens(stored: StoredTokens[Any, Any], access: AccessToken, refresh: RefreshToken | None) -> TokenSet:
    scopes = stored.account.scopes or frozenset()
    return tokens_of(access, refresh, expires_at=stored.expires_at, scopes=scopes)


def _state(row: sa.Row[Any]) -> GrantState:
    """Return the state of a grant's renewals, if it was read and belongs to the grant of the access token."""
    if getattr(row, "state_grant_id", None) is None:
        return GrantState()
    leased_until = read_moment(row.state_lease_until)
    if row.state_grant_id != grant_in(row.access_token, row.refresh_token):
        return GrantState(leased_until=leased_until)
    return GrantState(
        leased_until=leased_until,
        retry_at=read_moment(row.state_retry_at),
        state=HealthState(row.state_state),
        provider_code=row.state_provider_code,
        since=read_moment(row.state_since),
        refused=row.state_refused,
        refreshed_at=read_moment(row.state_refreshed_at),
    )


def _not_renewed(stored: StoredTokens[Any, Any]) -> NeedsConsent | ConfigurationError:
    """Return the error for a link whose access token is over."""
    if not stored.refresh_token:
        return NeedsConsent(since=stored.expires_at if stored.is_over else None, link_id=stored.account.id)
    ended = "has expired" if stored.is_over else "was refused"
    return ConfigurationError(
        f"The access token {ended}, and this linker does not renew it. Read stored_credentials(), renew the token at "
        "the provider, and store it with replace_credentials()."
    )
