"""Hold what an envelope contains, and write it as JSON.

Each kind of contents belongs to one column. No kind shows a token in a ``repr`` or a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final, Self

from accountlink.errors import InvalidCredentials
from accountlink.values.secrecy import Secret, SecretMembers
from accountlink.values.text import encodable, unstorable

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_WRITER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Writes all contents: ``json.dumps`` would make one for each."""


class _Contents:
    """Write contents as JSON, and read them again."""

    __slots__ = ()
    role: ClassVar[str]

    def written(self) -> bytes:
        """Return the contents as JSON in UTF-8.

        Raises:
            InvalidCredentials: An empty token, a text that UTF-8 or a text column cannot hold, a naive moment.
        """
        members = self._members()
        if wrong := self._wrong(members):
            del members, self  # leave no token in this frame, which a traceback with locals would show
            raise InvalidCredentials(field=wrong[0], problem=wrong[1])
        return _WRITER.encode(members).encode("utf-8")

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Return the contents that :meth:`written` wrote, or ``None`` for any other bytes.

        No error leaves this function, since it would carry the token.
        """
        try:
            members = json.loads(data.decode("utf-8"))
            if not isinstance(members, dict) or not cls._names_all(members) or cls._wrong(members):
                return None
            return cls._of(members)
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None

    def _members(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _of(cls, members: dict[str, Any]) -> Self:
        """Return the contents with these members, all of which were checked but the moments."""
        raise NotImplementedError

    @classmethod
    def _names_all(cls, members: Mapping[str, Any]) -> bool:
        """Say whether members that were read are those that are written, and no others."""
        raise NotImplementedError

    @classmethod
    def _wrong(cls, members: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return the first wrong member and its fault, or ``None``."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken(_Contents):
    """Hold the contents of the column ``access_token``.

    Attributes:
        token: The access token.
        type: The scheme by which the token is presented.
        issued_at: When the token was obtained, aware, written in whole seconds; ``None`` where nobody knows, as for
            plain text.
        extra: Members of the token response that somebody named beforehand. Their values are as secret as the token.
        client: The name of the OAuth client that a grant without a refresh token was given to. A grant with one has the
            name in :class:`RefreshToken`, and here ``None``, which is not written.
    """

    role: ClassVar[str] = "access_token"
    """The role of the column, which the envelope is bound to."""

    token: Secret
    type: str = "Bearer"
    issued_at: datetime | None = None
    extra: Mapping[str, Secret] = field(default_factory=dict)
    client: str | None = None

    def _members(self) -> dict[str, Any]:
        return {
            "token": self.token.reveal(),
            "type": self.type,
            "issued_at": _seconds(self.issued_at, name="issued_at"),
            "extra": {name: self.extra[name].reveal() for name in self.extra},
        } | ({} if self.client is None else {"client": self.client})

    @classmethod
    def _of(cls, members: dict[str, Any]) -> Self:
        return cls(
            token=Secret(members["token"]),
            type=members["type"],
            issued_at=_moment(members["issued_at"]),
            extra=SecretMembers(members["extra"]),
            client=members.get("client"),
        )

    @classmethod
    def _names_all(cls, members: Mapping[str, Any]) -> bool:
        return members.keys() - {"client"} == {"token", "type", "issued_at", "extra"}

    @classmethod
    def _wrong(cls, members: Mapping[str, Any]) -> tuple[str, str] | None:
        for name in ("token", "type", "client"):
            if name in members and (problem := unstorable(members[name])):
                return name, problem
        extra = members["extra"]
        if extra == {}:
            return None
        if not isinstance(extra, dict) or not all(isinstance(text, str) for pair in extra.items() for text in pair):
            return "extra", "is not a mapping from text to text"
        if not all(encodable(text) for pair in extra.items() for text in pair):
            return "extra", "contains a lone surrogate"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class RefreshToken(_Contents):
    """Hold the contents of the column ``refresh_token``.

    Attributes:
        token: The refresh token.
        client: The name of the OAuth client that the grant was given to; ``None`` for the provider's only client.
        refresh_expires_at: When the refresh token expires, aware, written in whole seconds; ``None`` if the provider
            does not say.
    """

    role: ClassVar[str] = "refresh_token"
    """The role of the column, which the envelope is bound to."""

    token: Secret
    client: str | None = None
    refresh_expires_at: datetime | None = None

    def _members(self) -> dict[str, Any]:
        return {
            "token": self.token.reveal(),
            "client": self.client,
            "refresh_expires_at": _seconds(self.refresh_expires_at, name="refresh_expires_at"),
        }

    @classmethod
    def _of(cls, members: dict[str, Any]) -> Self:
        return cls(
            token=Secret(members["token"]),
            client=members["client"],
            refresh_expires_at=_moment(members["refresh_expires_at"]),
        )

    @classmethod
    def _names_all(cls, members: Mapping[str, Any]) -> bool:
        return members.keys() == {"token", "client", "refresh_expires_at"}

    @classmethod
    def _wrong(cls, members: Mapping[str, Any]) -> tuple[str, str] | None:
        if problem := unstorable(members["token"]):
            return "token", problem
        if members["client"] is not None and (problem := unstorable(members["client"])):
            return "client", problem
        return None


def _seconds(moment: datetime | None, *, name: str) -> int | None:
    """Return a moment in whole seconds since 1970, rounded down."""
    if moment is None:
        return None
    if moment.utcoffset() is None:
        raise InvalidCredentials(field=name, problem="is a naive datetime")
    return (moment - _EPOCH) // _SECOND


def _moment(seconds: object) -> datetime | None:
    if seconds is None:
        return None
    if type(seconds) is not int:
        raise TypeError
    return _EPOCH + timedelta(seconds=seconds)
