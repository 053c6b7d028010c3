"""Seal and open the tokens of one table of links."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from accountlink.errors import ConfigurationError
from accountlink.tables.fitting import limit_of
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import AccountMapping
from accountlink.values.credentials import TokenSet
from accountlink.values.policy import Key
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.envelope import BoundTo, Contents, new_grant_id, seal, unseal
from accountlink.vault.keys import VaultKey, current_key
from accountlink.vault.vault import CredentialVault

SEALED_ROLES: Final = ("access_token", "refresh_token")
"""The roles whose columns contain envelopes."""
LEAST_LENGTH: Final = 8192
"""The least length of a column for envelopes that is accepted. It has room for a token of about 6,000 characters."""


class TableVault:
    """Seal and open the tokens of one table of links.

    Args:
        vault: The keys, and what the envelopes are bound to.
        mapping: The columns of the table.

    Raises:
        ConfigurationError: The table has no column for tokens, or one that is too narrow for envelopes.
    """

    def __init__(self, vault: CredentialVault, mapping: AccountMapping[Any, Any]) -> None:
        given: object = mapping
        if not isinstance(given, AccountMapping):
            raise ConfigurationError(f"A vault seals the tokens of an AccountMapping, not of {type(given).__name__}.")
        sealed = {role: mapping.columns[role] for role in SEALED_ROLES if role in mapping.columns}
        if "access_token" not in sealed:
            raise ConfigurationError(
                f"{mapping.name!r} has no 'access_token' column mapped, and a vault seals what is in it. Map "
                "access_token=... or add the column, or leave vault= out."
            )
        for role, column in sealed.items():
            limit = limit_of(column)
            if limit is not None and limit < LEAST_LENGTH:
                raise ConfigurationError(
                    f"{column.name!r} of {mapping.name!r} takes {limit} characters, and an envelope of a large token "
                    f"has thousands. Make it sa.Text, or map {role}=... to another column."
                )
        self.vault: Final = vault
        self.context: Final = vault.context or mapping.table.fullname
        self._by_email: Final = mapping.policy.key is Key.EMAIL
        self._account_role: Final = mapping.email_key_role if self._by_email else "account_id"
        self._user_type: Final = IdType.of(mapping.columns["user_id"])

    @property
    def account_role(self) -> str:
        """The role of the column to whose text envelopes are bound: the account id, or the e-mail key."""
        return self._account_role

    def bound_to(self, *, user_id: Any, provider: str, account_key: str | None) -> BoundTo:
        """Name a link.

        Args:
            user_id: The user, in the column's own Python type.
            provider: The provider's slug. No identifier ends in a blank, so blanks at the end are the column's padding.
            account_key: The text of the column in the account role, where the padding is removed too; ``None`` in a row
                from before the table had the column, to which no envelope is bound.
        """
        return BoundTo(
            context=self.context,
            user_id=self._user_type.one_form(user_id),
            provider=provider.rstrip(" "),
            account_key=(account_key or "").rstrip(" "),
        )

    # -- sealing ------------------------------------------------------------------------------------------------------

    async def ready(self) -> Sealing:
        """Return what seals tokens with the newest key, which is fetched here.

        Raises:
            ConfigurationError: The source returned something that is no key.
            Exception: What the source of the keys raised, unchanged.
        """
        return Sealing(self, await current_key(self.vault.source))

    # -- opening ------------------------------------------------------------------------------------------------------

    async def access_token(self, text: str | None, bound_to: BoundTo) -> AccessToken | None:
        """Return the contents of an ``access_token`` column, or ``None`` if it has no token.

        Args:
            text: The column's value.
            bound_to: The link whose row it is.

        Raises:
            CredentialsUnreadable: The text cannot be read, for any reason.
        """
        return await self._opened(text, AccessToken, bound_to)

    async def refresh_token(self, text: str | None, bound_to: BoundTo) -> RefreshToken | None:
        """Return the contents of a ``refresh_token`` column, or ``None`` if it has no token.

        Args:
            text: The column's value.
            bound_to: The link whose row it is.

        Raises:
            CredentialsUnreadable: The text cannot be read, for any reason.
        """
        return await self._opened(text, RefreshToken, bound_to)

    async def _opened(self, text: str | None, kind: type[Contents], bound_to: BoundTo) -> Contents | None:
        vault = self.vault
        return await unseal(text, kind, source=vault.source, bound_to=bound_to, plaintext=vault.plaintext)


class Sealing:
    """Seal tokens with one key."""

    def __init__(self, table: TableVault, key: VaultKey) -> None:
        self._table = table
        self.key: Final = key

    def __call__(
        self, tokens: TokenSet, *, user_id: Any, provider: str, account_key: str, issued_at: datetime
    ) -> dict[str, str]:
        """Return the envelopes of tokens that begin a new grant, by role.

        Args:
            tokens: The tokens.
            user_id: The user, in the column's own Python type.
            provider: The provider's slug.
            account_key: The account id, or the e-mail key.
            issued_at: When the tokens were obtained, aware.
        """
        bound_to = self._table.bound_to(user_id=user_id, provider=provider, account_key=account_key)
        grant_id = new_grant_id()
        return {
            each.role: seal(each, key=self.key, grant_id=grant_id, bound_to=bound_to)
            for each in contents_of(tokens, issued_at=issued_at)
        }

    def again(self, contents: AccessToken | RefreshToken, *, grant_id: str | None, bound_to: BoundTo) -> str:
        """Return the envelope of a token of a grant that exists already.

        Args:
            contents: The token and what goes with it.
            grant_id: The grant; ``None`` for a token that stood in plain text, which gets a new one.
            bound_to: The link.

        Raises:
            ConfigurationError: The row has no account id (or no e-mail key) that the envelope could be bound to.
        """
        if not bound_to.account_key:
            raise ConfigurationError(
                "The row has no account id, or no e-mail key where links are unique on the e-mail, and a token is "
                "sealed for one account. Fill the column in, or let the user link the account again."
            )
        return seal(contents, key=self.key, grant_id=grant_id or new_grant_id(), bound_to=bound_to)


def contents_of(tokens: TokenSet, *, issued_at: datetime) -> list[AccessToken | RefreshToken]:
    """Return what the columns of a link are to contain for a set of tokens.

    Args:
        tokens: The tokens.
        issued_at: When they were obtained, aware.
    """
    refresh = tokens.refresh_token
    access = AccessToken(
        token=tokens.access_token,
        type=tokens.token_type,
        issued_at=issued_at,
        extra=tokens.extra,
        client=tokens.client if refresh is None else None,
    )
    if refresh is None:
        return [access]
    return [
        access,
        RefreshToken(token=refresh, client=tokens.client, refresh_expires_at=tokens.refresh_expires_at),
    ]


def tokens_of(
    access: AccessToken,
    refresh: RefreshToken | None,
    *,
    expires_at: datetime | None,
    scopes: frozenset[str],
) -> TokenSet:
    """Return the set of tokens that the columns of a link contain.

    Args:
        access: The contents of the column ``access_token``.
        refresh: Those of ``refresh_token``; ``None`` leaves the refresh token out.
        expires_at: When the access token expires, aware.
        scopes: The scopes as granted.
    """
    return TokenSet(
        access_token=access.token.reveal(),
        refresh_token=None if refresh is None else refresh.token.reveal(),
        expires_at=expires_at,
        scopes=scopes,
        token_type=access.type,
        extra=_revealed(access.extra),
        client=access.client if refresh is None else refresh.client,
        refresh_expires_at=None if refresh is None else refresh.refresh_expires_at,
    )


def _revealed(extra: Mapping[str, Any]) -> dict[str, str]:
    return {name: secret.reveal() for name, secret in extra.items()}
