"""The OAuth tokens of a linked account."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from accountlink.core.secrecy import Secret
from accountlink.errors import InvalidCredentials


@dataclass(frozen=True, kw_only=True, slots=True, init=False)
class TokenSet:
    """What a provider's token endpoint issued.

    Secrets show in no ``repr``, ``asdict``, pickle or encoder; read one with ``tokens.access_token.reveal()``.

    Attributes:
        access_token: The access token.
        refresh_token: The refresh token, or ``None`` when the provider sent none; a relink then keeps the stored one.
        expires_at: When the access token ends, aware; ``None`` where the provider does not say.
        scopes: The scopes as granted, not as asked for.
        token_type: How the access token is presented.
        id_token: The raw ID token, for the callback's own use; accountlink stores none.

    Raises:
        InvalidCredentials: From the constructor: an empty token, one that is not text or that no text column
            can hold (NUL, lone surrogates), a naive ``expires_at``.
    """

    access_token: Secret
    refresh_token: Secret | None
    expires_at: datetime | None
    scopes: frozenset[str]
    token_type: str
    id_token: Secret | None

    def __init__(
        self,
        *,
        access_token: str,
        refresh_token: str | None = None,
        expires_at: datetime | None = None,
        scopes: Collection[str] = frozenset(),
        token_type: str = "Bearer",  # noqa: S107  # the name of a scheme, not a secret
        id_token: str | None = None,
    ) -> None:
        """Take the tokens as text and conceal them."""
        if isinstance(scopes, str):
            raise InvalidCredentials(field="scopes", problem="is one text, not a set of texts")
        if expires_at is not None and expires_at.tzinfo is None:
            raise InvalidCredentials(field="expires_at", problem="is a naive datetime")
        conceal = object.__setattr__
        conceal(self, "access_token", _secret(access_token, field="access_token"))
        conceal(
            self,
            "refresh_token",
            None if refresh_token is None else _secret(refresh_token, field="refresh_token"),
        )
        conceal(self, "expires_at", expires_at)
        conceal(self, "scopes", frozenset(_scope(scope) for scope in scopes))
        conceal(self, "token_type", token_type)
        conceal(self, "id_token", None if id_token is None else _secret(id_token, field="id_token"))

    @classmethod
    def from_response(cls, response: Mapping[str, Any], *, received_at: datetime) -> TokenSet:
        """Read a token response, as Authlib or any OAuth 2.0 client hands it over.

        Args:
            response: The decoded response; ``scope`` is split at spaces and commas (GitHub's way).
            received_at: When it arrived, aware; ``expires_in`` counts from then. An ``expires_at`` in seconds wins.

        Raises:
            InvalidCredentials: No usable access token in it.

        Source: RFC 6749, section 5.1.
        """
        expires_at: datetime | None = None
        if response.get("expires_at") is not None:
            expires_at = datetime.fromtimestamp(float(response["expires_at"]), UTC)
        elif response.get("expires_in") is not None:
            expires_at = received_at + timedelta(seconds=float(response["expires_in"]))
        return cls(
            access_token=response.get("access_token", ""),
            refresh_token=response.get("refresh_token") or None,
            expires_at=expires_at,
            scopes=split_scopes(response.get("scope") or ""),
            token_type=response.get("token_type") or "Bearer",
            id_token=response.get("id_token") or None,
        )


def split_scopes(text: str) -> frozenset[str]:
    """Read scopes from one text, separated by spaces or commas."""
    return frozenset(text.replace(",", " ").split())


def join_scopes(scopes: Collection[str]) -> str:
    """Write scopes as one text, sorted, separated by single spaces (RFC 6749, section 3.3)."""
    return " ".join(sorted(scopes))


def _secret(text: object, *, field: str) -> Secret:
    if not isinstance(text, str):
        raise InvalidCredentials(field=field, problem=f"is {type(text).__name__}, not text")
    if not text:
        raise InvalidCredentials(field=field, problem="is empty")
    if "\0" in text or _has_surrogate(text):
        raise InvalidCredentials(field=field, problem="contains a character that no text column can hold")
    return Secret(text)


def _scope(scope: object) -> str:
    if not isinstance(scope, str) or not scope or any(c.isspace() or c == "\0" for c in scope) or _has_surrogate(scope):
        raise InvalidCredentials(field="scopes", problem="holds something that is not a scope token")
    return scope


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
