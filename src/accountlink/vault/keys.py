"""Hold the keys of a vault: what a key is, its id, and where keys come from."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NoReturn, Protocol

from accountlink.errors import ConfigurationError
from accountlink.values.base64url import decoded, encoded
from accountlink.values.secrecy import Concealed

KEY_BYTES: Final = 32
"""The length of a key. A vault's key is random, so a longer one would be no stronger."""
_ID_SALT: Final = b"al1 key id"
_ID_BYTES: Final = 6
"""Bytes of a key's id: 48 bits tell the few keys of one application apart, and tell nobody the key."""
_MAKE_ONE: Final = "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
_NO_KEY: Final = (
    "A key of a vault is exactly 32 random bytes, or their text in base64url without padding (43 characters): "
    f"{_MAKE_ONE}."
)


@dataclass(frozen=True, slots=True, init=False)
class VaultKey:
    """Hold one key of a vault. Only ``key.secret.reveal()`` shows it.

    Attributes:
        id: The key's id, derived from the key. It is written into each envelope, and is not secret.
        secret: The 32 bytes of the key.

    Raises:
        ConfigurationError: From the constructor: the key is not 32 bytes, or ``id`` is another key's id.
    """

    id: str
    secret: Concealed[bytes]

    def __init__(self, *, secret: bytes | str, id: str | None = None) -> None:  # noqa: A002  # the field's name
        """Derive the id of a key.

        Args:
            secret: 32 random bytes, or their text in base64url without padding: 43 characters.
            id: The id that the key is expected to have, for a source that stores ids beside wrapped keys; ``None``
                where nothing is expected.
        """
        raw = _raw(secret)
        derived = None if raw is None else encoded(sha256(_ID_SALT + raw).digest()[:_ID_BYTES])
        if raw is None or (id is not None and id != derived):
            del self, secret, raw  # leave no key in this frame, which a traceback with locals would show
            raise ConfigurationError(_NO_KEY if derived is None else _another(derived))
        object.__setattr__(self, "id", derived)
        object.__setattr__(self, "secret", Concealed(raw))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to pickle a key: a pickle would show it."""
        raise TypeError("a key cannot be pickled: let each process read it from the application's configuration")

    def __copy__(self) -> VaultKey:
        """Return the key itself, which cannot change."""
        return self

    def __deepcopy__(self, memo: object) -> VaultKey:
        """Return the key itself, which cannot change."""
        return self


def _another(derived: str) -> str:
    return (
        f"The id of this key is {derived!r}, and another one was given with it. Leave id= out, or look up why another "
        "key came back than the one that was stored."
    )


def _raw(secret: object) -> bytes | None:
    raw = decoded(str.__str__(secret)) if isinstance(secret, str) else secret
    return bytes(raw) if isinstance(raw, bytes) and len(raw) == KEY_BYTES else None


class KeySource(Protocol):
    """Give a vault its keys, from a key management service for example.

    A call that writes tokens asks for the current key before its transaction begins. A call that reads tokens asks for
    their key after it has read the row, which names the key. The vault remembers no key, so a source should remember
    those that it has fetched. What it raises reaches the caller unchanged.
    """

    async def current(self) -> VaultKey:
        """Return the key that seals from now on."""
        ...

    async def get(self, key_id: str) -> VaultKey | None:
        """Return the key with this id, or ``None`` if there is no such key (any more).

        Args:
            key_id: 8 characters of ``A-Z``, ``a-z``, ``0-9``, ``-`` and ``_``, read from an envelope. A row that
                somebody changed may name a key that never existed.
        """
        ...


class GivenKeys:
    """Be the source of keys that the application holds itself.

    Args:
        keys: The keys, newest first: the first one seals, and each one opens what it sealed.

    Raises:
        ConfigurationError: One key instead of a list, no key, something that is no key, one key twice, or two keys
            with one id.
    """

    def __init__(self, keys: Sequence[VaultKey | bytes | str]) -> None:
        refused = None
        try:
            self._keys = _by_id(keys)
        except ConfigurationError as error:
            refused = error.with_traceback(None)
        if refused is not None:
            del keys  # leave no key in this frame, which a traceback with locals would show
            raise refused
        self._newest = next(iter(self._keys.values()))

    async def current(self) -> VaultKey:
        """Return the newest key."""
        return self._newest

    async def get(self, key_id: str) -> VaultKey | None:
        """Return the key with this id, or ``None`` if it was not given.

        Args:
            key_id: The id, read from an envelope.
        """
        return self._keys.get(key_id)


def _by_id(keys: Any) -> dict[str, VaultKey]:
    """Return the keys in their order, each by its id."""
    if isinstance(keys, (str, bytes, VaultKey)) or not isinstance(keys, Iterable):
        raise ConfigurationError("keys=... takes a list of keys, newest first, so that keys can be rotated.")
    found: dict[str, VaultKey] = {}
    for key in (each if isinstance(each, VaultKey) else VaultKey(secret=each) for each in keys):
        if key.id in found:
            raise ConfigurationError(_same_id(key, found[key.id]))
        found[key.id] = key
    if not found:
        raise ConfigurationError(f"keys=... needs at least one key: {_MAKE_ONE}.")
    return found


def _same_id(one: VaultKey, other: VaultKey) -> str:
    if one.secret.reveal() == other.secret.reveal():
        return f"keys=... has the key {one.id!r} twice. Name each key once, newest first."
    return (
        f"keys=... has two keys with the id {one.id!r}. Replace the newer one, which may not have sealed anything yet."
    )


async def _given(answer: object, method: str) -> object:
    if not isinstance(answer, Awaitable):
        raise ConfigurationError(f"{method} of the key source is not async. Declare it with `async def`.")
    given: object = await answer
    return given


async def current_key(source: KeySource) -> VaultKey:
    """Return the key of a source that seals from now on.

    Raises:
        ConfigurationError: The source returned something that is no key.
    """
    key = await _given(source.current(), "current()")
    if not isinstance(key, VaultKey):
        kind = type(key).__name__
        del key  # leave no key in this frame, which a traceback with locals would show
        raise ConfigurationError(f"current() of the key source returned {kind}. Return a VaultKey.")
    return key


async def key_of(source: KeySource, key_id: str) -> VaultKey | None:
    """Return the key of a source with this id, or ``None`` if the source has no such key.

    Args:
        source: The source.
        key_id: The id, read from an envelope.

    Raises:
        ConfigurationError: The source returned another key, or something that is no key.
    """
    key = await _given(source.get(key_id), "get()")
    if key is None:
        return None
    if not isinstance(key, VaultKey):
        kind = type(key).__name__
        del key  # leave no key in this frame, which a traceback with locals would show
        raise ConfigurationError(f"get() of the key source returned {kind}. Return a VaultKey or None.")
    if key.id != key_id:
        raise ConfigurationError(
            f"get({key_id!r}) of the key source returned the key {key.id!r}. Return the key that was asked for, or "
            "None."
        )
    return key
