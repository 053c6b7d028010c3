"""Sign and read transfer tokens, each bound to one claimant and to one state of one row."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Self

from itsdangerous import Signer
from itsdangerous.encoding import base64_decode, base64_encode
from itsdangerous.exc import BadData

from accountlink.values.keys import KEEP, Secrets, checked_keys
from accountlink.values.outcomes import LinkedAccount
from accountlink.values.tagging import tagged, untagged

MAX_TOKEN: Final = 65_536
"""The most characters of a token. A token with two ids of 255 characters has far fewer."""
LEEWAY: Final = timedelta(seconds=60)
"""The greatest accepted difference between the clocks of two servers."""
_SECOND: Final = timedelta(seconds=1)
PURPOSE: Final = "transfer"
VERSION: Final = 1
_SALT: Final = b"accountlink.transfer.v1"
_STATE_SALT: Final = b"accountlink.transfer.v1.state"
_DIGEST: Final = 16
"""Bytes that are kept of a keyed digest."""
_LAST_SECOND: Final = int(datetime.max.replace(tzinfo=UTC).timestamp())
_FIELDS: Final[dict[str, type]] = {
    "p": str, "v": int, "t": str, "j": str, "i": int, "e": int, "l": str, "c": str, "a": str, "d": str,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RowState:
    """Hold the state of a link that a transfer token vouches for. The token contains only a keyed digest of it.

    Attributes:
        owner: The owner's user id.
        provider: The provider of the account.
        account_id: The provider's id of the account.
        version: The row's version, or its epoch in the ledger.
        table: The table's name, with the schema in which the row was read: each tenant may have one.
    """

    owner: object = field(repr=False)
    provider: str
    account_id: str
    version: int
    table: str = ""

    @classmethod
    def of(cls, owned: LinkedAccount[Any, Any], version: int, table: str) -> Self:
        """Return the state of a row that was read.

        Args:
            owned: The row.
            version: Its version, or its epoch in the ledger.
            table: The name of its table, with the schema in which it was read.
        """
        return cls(
            owner=owned.user_id,
            provider=owned.provider,
            account_id=str(owned.account_id),
            version=version,
            table=table,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Hold the content of a genuine token.

    Attributes:
        link_id: The link, in its own type.
        claimant: The user whom the token was given to, type-tagged.
        issued_at: When it was signed, in whole seconds since 1970.
        expires_at: When it ends, in whole seconds since 1970.
    """

    link_id: object
    claimant: str = field(repr=False)
    issued_at: int
    expires_at: int
    _key: bytes = field(repr=False)
    _account: bytes = field(repr=False)
    _state: bytes = field(repr=False)

    def is_for(self, user_id: object) -> bool:
        """Say whether the token was given to this user, by an id of the same type."""
        return hmac.compare_digest(self.claimant.encode("utf-8", KEEP), tagged(user_id).encode("utf-8", KEEP))

    def is_of(self, provider: str, account_id: str) -> bool:
        """Say whether the token is about this provider account."""
        return hmac.compare_digest(self._account, _digest(self._key, provider, account_id))

    def fits(self, state: RowState) -> bool:
        """Say whether the row's state is the one that was signed."""
        return hmac.compare_digest(self._state, _state(self._key, state))

    def has_expired(self, now: datetime, *, max_age: timedelta | None = None) -> bool:
        """Say whether the token is too old.

        Args:
            now: The present moment, aware.
            max_age: The greatest age of a token. It has no leeway for clocks that differ, because their difference only
                makes the user prove control once more.
        """
        moment = now.timestamp()
        if moment > self.expires_at + LEEWAY // _SECOND:
            return True
        return max_age is not None and moment - self.issued_at > max_age.total_seconds()


class TransferSigner:
    """Sign transfer tokens for one table with the newest of several secrets, and read tokens of all of them.

    Args:
        secrets: At least 32 bytes each, newest first. The tokens of a removed secret are refused at once.
        table: The name of the table of links. A token for one table is refused for another.

    Raises:
        ConfigurationError: The secrets are one text instead of a list, none, or one is too short.

    Source: RFC 2104; itsdangerous 2.2, "Concepts" (salt per purpose, key rotation).
    """

    def __init__(self, secrets: Secrets, *, table: str) -> None:
        keys = checked_keys(secrets)
        # One signer per secret: reading has to know which of them signed a token, since its digests depend on that.
        self._keys = [_Key(secret=key, table=table) for key in keys]

    def sign(
        self,
        *,
        link_id: object,
        claimant: object,
        state: RowState,
        jti: bytes,
        issued_at: datetime,
        expires_at: datetime,
    ) -> str:
        """Return a token by which the claimant can take the link, as long as the row stays unchanged.

        Args:
            link_id: The owner's link.
            claimant: The user who has just proved control of the provider account.
            state: The state of the row.
            jti: At least 16 random bytes, so that no two tokens are equal.
            issued_at: The present moment, aware.
            expires_at: When the token ends, aware; whole seconds.
        """
        newest = self._keys[0]
        payload = {
            "p": PURPOSE,
            "v": VERSION,
            "t": newest.table,
            "j": _text(jti),
            "i": int(issued_at.timestamp()),
            "e": int(expires_at.astimezone(UTC).timestamp()),
            "l": tagged(link_id),
            "c": tagged(claimant),
            "a": _text(_digest(newest.derived, state.provider, state.account_id)),
            "d": _text(_state(newest.derived, state)),
        }
        # What URLSafeSerializer writes and reads, without its attempt to compress, which costs more than the signature.
        return newest.signer.sign(base64_encode(json.dumps(payload, separators=(",", ":")))).decode()

    def read(self, token: object) -> Claim | None:
        """Return the content of a token, after checking its signature, or ``None`` for any other value.

        No error leaves this method: a traceback with locals would show the token in the frames above it.

        Nothing else is read before the signature is checked. Several texts of one signature are valid, because base64
        leaves bits unused. So a token must never be identified by its text.

        Args:
            token: The value that the user presented, of any type.

        Returns:
            The content, or ``None`` if none of the secrets signed the value as a transfer token for this table.
        """
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not token.isascii():
            return None
        for key in self._keys:
            try:
                payload = json.loads(base64_decode(key.signer.unsign(token)))
            except (BadData, ValueError, RecursionError):
                continue
            return _read(payload, key)
        return None


class _Key:
    """Hold a secret's signer, and the key that is derived from the secret for digests."""

    def __init__(self, *, secret: bytes, table: str) -> None:
        self.signer = Signer([secret], salt=_SALT, key_derivation="hmac", digest_method=sha256)
        self.derived = hmac.digest(hmac.digest(secret, _STATE_SALT, sha256), table.encode("utf-8", KEEP), sha256)
        self.table = _text(_digest(self.derived, PURPOSE))


def _read(payload: object, key: _Key) -> Claim | None:
    """Read a signed payload, or return ``None`` for another purpose, version, table or shape."""
    if not isinstance(payload, dict) or any(type(payload.get(name)) is not kind for name, kind in _FIELDS.items()):
        return None
    if (payload["p"], payload["v"], payload["t"]) != (PURPOSE, VERSION, key.table):
        return None
    account, state = _bytes(payload["a"]), _bytes(payload["d"])
    link_id = untagged(payload["l"])
    if link_id is None or account is None or state is None or max(payload["i"], payload["e"]) > _LAST_SECOND:
        return None
    return Claim(
        link_id=link_id,
        claimant=payload["c"],
        issued_at=payload["i"],
        expires_at=payload["e"],
        _key=key.derived,
        _account=account,
        _state=state,
    )


def _state(key: bytes, state: RowState) -> bytes:
    return _digest(key, tagged(state.owner), state.provider, state.account_id, str(state.version), state.table)


def _digest(key: bytes, *fields: str) -> bytes:
    encoded = [text.encode("utf-8", KEEP) for text in fields]
    return hmac.digest(key, b"".join(len(part).to_bytes(4) + part for part in encoded), sha256)[:_DIGEST]


def _text(raw: bytes) -> str:
    return base64_encode(raw).decode()


def _bytes(text: str) -> bytes | None:
    try:
        raw = base64_decode(text)
    except BadData:
        return None
    return raw if len(raw) == _DIGEST else None
