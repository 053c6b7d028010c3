"""Provide CredentialVault, which an application gives to its linkers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from accountlink.errors import ConfigurationError
from accountlink.values.text import storable
from accountlink.vault.keys import GivenKeys, KeySource, VaultKey

if TYPE_CHECKING:
    from accountlink.linking.store import AccountStore
    from accountlink.tables.mapping import AccountMapping
    from accountlink.values.outcomes import LinkId, UserId
    from accountlink.vault.sealing import TableVault
    from accountlink.vault.stored import StoredCredentials


class Plaintext(Enum):
    """Say whether a sealed column may still contain plain text."""

    REFUSE = "refuse"
    """Plain text is refused with ``CredentialsUnreadable``."""
    READ = "read"
    """Plain text is read as a token, because a backfill is under way."""


class CredentialVault:
    """Seal the tokens of links, so that only their own rows, with a key of the application's, can be read.

    The columns ``access_token`` and ``refresh_token`` then contain envelopes; every call that writes tokens writes
    them. A vault protects against readers of the database, of its backups and of its replicas, and against an envelope
    that is moved to another link. It does not protect against a reader of the application's keys or memory.

    Args:
        keys: The keys, newest first: 32 random bytes each, or the text that ``accountlink secret`` prints. The first
            one seals, and each one opens what it sealed.
        source: Gives the keys instead, from a key management service for example.
        context: The name of the table to which envelopes are bound; without it the table's declared full name. Give
            the old name here after the table was renamed.
        plaintext: Whether the columns may still contain plain text, because a backfill is under way.

    Raises:
        ConfigurationError: Neither or both of ``keys`` and ``source``, keys that are not 32 bytes, a source without
            the two methods of :class:`KeySource`, or a context that is no text or is empty.
        ModuleNotFoundError: The library ``cryptography`` is not installed; the message names the extra.
    """

    def __init__(
        self,
        *,
        keys: Sequence[VaultKey | bytes | str] | None = None,
        source: KeySource | None = None,
        context: str | None = None,
        plaintext: Plaintext = Plaintext.REFUSE,
    ) -> None:
        import accountlink.vault.sealing  # noqa: F401, PLC0415  # an extra: a vault needs it, and nothing else does

        refused: ConfigurationError | None = None
        try:
            self.source: Final[KeySource] = _source(keys, source)
        except ConfigurationError as error:
            refused = error.with_traceback(None)
        del keys  # leave no key in this frame, which a traceback with locals would show
        if refused is not None:
            raise refused
        named: object = context
        if named is not None and not (isinstance(named, str) and named and storable(named)):
            raise ConfigurationError("context=... of a vault takes a text, such as the table's old name.")
        if not isinstance(plaintext, Plaintext):
            raise ConfigurationError("plaintext=... of a vault takes Plaintext.REFUSE or Plaintext.READ.")
        self.context: Final = context
        self.plaintext: Final = plaintext

    def of(self, mapping: AccountMapping[Any, Any]) -> TableVault:
        """Return the vault of one table of links, which seals and opens its tokens.

        Args:
            mapping: The columns of the table.

        Raises:
            ConfigurationError: The table has no column for tokens, or one that is too narrow for envelopes.
        """
        from accountlink.vault.sealing import TableVault  # noqa: PLC0415  # as above

        return TableVault(self, mapping)

    def stored_in(self, accounts: AccountStore[UserId, LinkId]) -> StoredCredentials[UserId, LinkId]:
        """Return what reads and replaces the tokens of one table of links.

        Args:
            accounts: The table.

        Raises:
            ConfigurationError: The table has no column for tokens, or one that is too narrow for envelopes.
        """
        from accountlink.vault.stored import StoredCredentials  # noqa: PLC0415  # as above

        return StoredCredentials(accounts, self.of(accounts.mapping))


def _source(keys: object, source: Any) -> KeySource:
    if (keys is None) is (source is None):
        raise ConfigurationError("A vault takes either keys=[...] or source=..., from which it gets its keys.")
    if source is None:
        given: Any = keys
        return GivenKeys(given)
    if not all(callable(getattr(source, name, None)) for name in ("current", "get")):
        raise ConfigurationError("source=... of a vault has two methods: async current() and async get(key_id).")
    found: KeySource = source
    return found
