"""Seal a token for one column of one link, and open it there again.

An envelope is ``al1.<key id>.<grant id>.<data>``. Its data is a nonce (12 bytes), a ciphertext and a tag (16 bytes), in
base64url without padding. AES-256-GCM seals it under a key of its own, which HKDF-SHA256 derives from the vault's key
and the associated data. docs/vault-vectors.json has examples of each step.

Source: NIST SP 800-38D, section 8.2.2 (random nonces) and 8.3 (how many); RFC 5869, section 3.1 (no salt).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

from accountlink.errors import ConfigurationError, CredentialsUnreadable
from accountlink.extras import explained
from accountlink.values.base64url import decoded, encoded
from accountlink.values.secrecy import Secret
from accountlink.values.text import encodable, storable
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.keys import KEY_BYTES, KeySource, VaultKey, key_of
from accountlink.vault.vault import Plaintext

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ModuleNotFoundError as missing:
    raise explained("accountlink.vault.envelope", missing) from None

FORMAT: Final = "al1"
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
GRANT_BYTES: Final = 12
"""Bytes of a grant id. It only has to differ from the other grants of one link: after 2**32 of them the chance that two
were ever equal is 2**-33. 96 bits are 16 characters, and leave no unused bits in them."""
_GRANT_ID: Final = re.compile(r"[A-Za-z0-9_-]{16}")
_BEGINS: Final = re.compile(r"al[0-9]+\.")
_WHOLE: Final = re.compile(r"al1\.([A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]{16})\.([A-Za-z0-9_-]+)")

Contents = TypeVar("Contents", AccessToken, RefreshToken)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundTo:
    """Name the link that an envelope is bound to: it cannot be opened for another one.

    Attributes:
        context: The table, or what the application calls it.
        user_id: The user. A number, a UUID and a text with equal ``str()`` are one user here.
        provider: The provider's slug.
        account_key: The account id, or the stored e-mail key where links are unique on the e-mail.

    Raises:
        ConfigurationError: From the constructor: an empty or odd context, a user id of another type, a text that UTF-8
            cannot encode.
    """

    context: str
    user_id: int | str | UUID = field(repr=False)
    provider: str
    account_key: str = field(repr=False)
    before_role: bytes = field(init=False, repr=False, compare=False)
    """The bytes of the associated data that name the link, before the column's role."""
    after_role: bytes = field(init=False, repr=False, compare=False)
    """Those after it."""

    def __post_init__(self) -> None:
        if not self.context:
            raise ConfigurationError("The context of a vault is a name, and not empty.")
        if isinstance(self.user_id, bool) or not isinstance(self.user_id, (int, str, UUID)):
            raise ConfigurationError(f"A user id is a number, a text or a UUID, not {type(self.user_id).__name__}.")
        sized: list[bytes] = []
        for name, text in zip(("context", "user id", "provider", "account key"), self.parts(), strict=True):
            if not encodable(text):
                raise ConfigurationError(f"The {name} of an envelope contains a lone surrogate. Pass text.")
            sized.append(_sized(text))
        object.__setattr__(self, "before_role", sized[0])
        object.__setattr__(self, "after_role", b"".join(sized[1:]))

    def parts(self) -> tuple[str, str, str, str]:
        """Return the link as texts, in the order of the associated data without the role."""
        context, provider, account_key = map(str.__str__, (self.context, self.provider, self.account_key))
        return context, _plain(self.user_id), provider, account_key


def _plain(user_id: int | str | UUID) -> str:
    """Return an id's text, also of a member of an enumeration, whose ``str()`` would be its name."""
    match user_id:
        case str():
            return str.__str__(user_id)
        case int():
            return int.__repr__(user_id)
        case UUID():
            return str(UUID(int=user_id.int))


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """Hold the parts of an envelope. None of them is secret, and none was checked by a key.

    Attributes:
        key_id: The id of the vault's key that sealed it.
        grant_id: The grant whose token it contains.
        data: The nonce, the ciphertext and the tag.
    """

    key_id: str
    grant_id: str
    data: bytes = field(repr=False)


def new_grant_id() -> str:
    """Return a random grant id."""
    return encoded(secrets.token_bytes(GRANT_BYTES))


def associated_data(*, key_id: str, grant_id: str, role: str, bound_to: BoundTo) -> bytes:
    """Return what an envelope is bound to, each part with its length, so that no two bindings have equal bytes.

    Args:
        key_id: The id of the vault's key.
        grant_id: The grant.
        role: The column's role.
        bound_to: The link.
    """
    head = _sized(FORMAT) + _sized(key_id) + _sized(grant_id)
    return head + bound_to.before_role + _sized(role) + bound_to.after_role


def _sized(text: str) -> bytes:
    """Return a text in UTF-8, with its length in bytes before it."""
    part = text.encode("utf-8")
    return len(part).to_bytes(4, "big") + part


def seal(contents: AccessToken | RefreshToken, *, key: VaultKey, grant_id: str, bound_to: BoundTo) -> str:
    """Return an envelope that only this column of this link can open.

    Args:
        contents: The token and what goes with it.
        key: The vault's newest key.
        grant_id: The grant, as :func:`new_grant_id` made it.
        bound_to: The link.

    Raises:
        ConfigurationError: The grant id is not one of :func:`new_grant_id`.
        InvalidCredentials: The contents cannot be written.
    """
    return _seal(contents, key=key, grant_id=grant_id, bound_to=bound_to, nonce=secrets.token_bytes(NONCE_BYTES))


def _seal(
    contents: AccessToken | RefreshToken, *, key: VaultKey, grant_id: str, bound_to: BoundTo, nonce: bytes
) -> str:
    """Seal with a nonce. Whoever seals twice with one nonce and one grant shows both tokens."""
    if not _GRANT_ID.fullmatch(grant_id):
        raise ConfigurationError("A grant id is the 16 characters that new_grant_id() returns.")
    plaintext = contents.written()
    associated = associated_data(key_id=key.id, grant_id=grant_id, role=contents.role, bound_to=bound_to)
    ciphertext = _row_cipher(key, associated).encrypt(nonce, plaintext, associated)
    return f"{FORMAT}.{key.id}.{grant_id}.{encoded(nonce + ciphertext)}"


def read(
    text: str | None, kind: type[Contents], *, plaintext: Plaintext
) -> Envelope | Contents | CredentialsUnreadable | None:
    """Say what a column's text is, without a key.

    Args:
        text: The column's value.
        kind: The contents that the column is for.
        plaintext: Whether plain text is refused.

    Returns:
        The envelope; the contents, if the text is plain and may be; ``None`` if there is no token, because the column
        is null or empty; or the error to raise for plain text that is refused, an envelope of another format, or a
        damaged one.
    """
    if not text:
        return None
    if matched := _WHOLE.fullmatch(text):
        data = decoded(matched[3])
        if data is not None and len(data) > NONCE_BYTES + TAG_BYTES:
            return Envelope(key_id=matched[1], grant_id=matched[2], data=data)
    began = _BEGINS.match(text)
    if began is None and plaintext is Plaintext.READ and storable(text):
        return kind(token=Secret(text))
    reason = "plain_text" if began is None else "malformed" if began[0] == f"{FORMAT}." else "unknown_format"
    return CredentialsUnreadable(role=kind.role, reason=reason)


def grant_of(text: str | None) -> str | None:
    """Return the grant id of a column's text, or ``None`` if the text is no envelope."""
    matched = _WHOLE.fullmatch(text or "")
    return None if matched is None else matched[2]


def open_envelope(envelope: Envelope, kind: type[Contents], *, key: VaultKey, bound_to: BoundTo) -> Contents:
    """Return the contents of an envelope that stood in this column of this link.

    Args:
        envelope: The envelope.
        kind: The contents that the column is for.
        key: The vault's key that the envelope names.
        bound_to: The link in whose row the envelope stood.

    Raises:
        CredentialsUnreadable: The envelope was changed, or was sealed for another column or link, with another key, or
            by a program that writes other contents.
    """
    data = _decrypted(envelope, kind.role, key=key, bound_to=bound_to)
    contents = None if data is None else kind.read(data)
    if contents is None:
        reason = "not_authentic" if data is None else "contents"
        del data  # leave no token in this frame, which a traceback with locals would show
        raise CredentialsUnreadable(role=kind.role, reason=reason, key_id=envelope.key_id)
    return contents


def _decrypted(envelope: Envelope, role: str, *, key: VaultKey, bound_to: BoundTo) -> bytes | None:
    associated = associated_data(key_id=envelope.key_id, grant_id=envelope.grant_id, role=role, bound_to=bound_to)
    nonce, ciphertext = envelope.data[:NONCE_BYTES], envelope.data[NONCE_BYTES:]
    try:
        return _row_cipher(key, associated).decrypt(nonce, ciphertext, associated)
    except InvalidTag:
        return None


async def unseal(
    text: str | None, kind: type[Contents], *, source: KeySource, bound_to: BoundTo, plaintext: Plaintext
) -> Contents | None:
    """Return the contents of a column, or ``None`` if it has no token.

    Args:
        text: The column's value.
        kind: The contents that the column is for.
        source: Where the keys come from. What it raises is not caught.
        bound_to: The link whose row it is.
        plaintext: Whether plain text is refused.

    Raises:
        CredentialsUnreadable: The text cannot be read, for any reason.
        ConfigurationError: The source returned another key than the one that was asked for.
    """
    found = read(text, kind, plaintext=plaintext)
    text = None  # leave no token in this frame, which a traceback with locals would show
    if isinstance(found, CredentialsUnreadable):
        raise found
    if not isinstance(found, Envelope):
        return found
    key = await key_of(source, found.key_id)
    if key is None:
        raise CredentialsUnreadable(role=kind.role, reason="unknown_key", key_id=found.key_id)
    return open_envelope(found, kind, key=key, bound_to=bound_to)


def _row_cipher(key: VaultKey, associated: bytes) -> AESGCM:
    """Return the cipher of one column of one link: no key of AES ever seals more than the tokens of one grant."""
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=associated).derive(key.secret.reveal()))
