"""Hold the OAuth tokens of a linked account, and check them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from accountlink.errors import InvalidCredentials
from accountlink.values.secrecy import NO_SECRETS, Concealed, Secret, SecretMembers
from accountlink.values.text import encodable, unstorable

_REVEALED: Final = "Pass its text, such as tokens.access_token.reveal()."


@dataclass(frozen=True, kw_only=True, slots=True, init=False)
class TokenSet:
    """Hold the tokens that a provider's token endpoint issued.

    Secrets show in no ``repr``, ``asdict``, pickle or encoder; read one with ``tokens.access_token.reveal()``.

    Attributes:
        access_token: The access token.
        refresh_token: The refresh token, or ``None`` when the provider sent none; a relink then keeps the stored one.
        expires_at: When the access token expires, aware; ``None`` if the provider does not say.
        scopes: The scopes that were granted, not those asked for; without any, a relink keeps the stored ones.
        token_type: The scheme by which the access token is presented.
        id_token: The raw ID token, for the callback's own use; accountlink stores none.
        extra: Members of the token response beside the tokens, such as Salesforce's ``instance_url``, by name. Each is
            as secret as the token: ``tokens.extra["instance_url"].reveal()``. They need a vault.
        client: The name of the OAuth client that the tokens were issued to; ``None`` if the provider has one client.
            It needs a vault.
        refresh_expires_at: When the refresh token expires, aware; ``None`` if the provider does not say. It needs a
            vault.

    Raises:
        InvalidCredentials: From the constructor: an empty token, one that is not text or that no text column
            can hold (NUL, lone surrogates), a naive moment, members that are not text, or ``refresh_expires_at``
            without a refresh token.
    """

    access_token: Secret
    refresh_token: Secret | None
    expires_at: datetime | None
    scopes: frozenset[str]
    token_type: str
    id_token: Secret | None
    extra: Mapping[str, Secret]
    client: str | None
    refresh_expires_at: datetime | None

    def __init__(
        self,
        *,
        access_token: str,
        refresh_token: str | None = None,
        expires_at: datetime | None = None,
        scopes: Collection[str] = frozenset(),
        token_type: str = "Bearer",  # noqa: S107  # the name of a scheme, not a secret
        id_token: str | None = None,
        extra: Mapping[str, str] | None = None,
        client: str | None = None,
        refresh_expires_at: datetime | None = None,
    ) -> None:
        """Store the tokens so that no ``repr`` shows them."""
        given: Any = scopes
        scopes = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given
        texts = {"access_token": access_token, "refresh_token": refresh_token, "id_token": id_token}
        wrong = _wrong(texts, expires_at, scopes, token_type) or _wrong_beside(
            {} if extra is None else extra, client, refresh_expires_at, renewable=refresh_token is not None
        )
        if wrong is not None:  # leave no token in this frame, which a traceback with locals would show
            del self, texts
            access_token = refresh_token = id_token = ""
            extra = None
            raise wrong
        conceal = object.__setattr__
        for name, text in texts.items():
            conceal(self, name, None if text is None else Secret(str.__str__(text)))
        conceal(self, "expires_at", expires_at)
        conceal(self, "scopes", frozenset(str.__str__(scope) for scope in scopes))
        conceal(self, "token_type", str.__str__(token_type))
        conceal(self, "extra", SecretMembers(extra) if extra else NO_SECRETS)
        conceal(self, "client", None if client is None else str.__str__(client))
        conceal(self, "refresh_expires_at", refresh_expires_at)

    @classmethod
    def from_response(
        cls,
        response: Mapping[str, Any],
        *,
        received_at: datetime,
        extra: Collection[str] = (),
        client: str | None = None,
        refresh_expires_in: str | None = None,
    ) -> TokenSet:
        """Read a token response, as Authlib or any OAuth 2.0 client hands it over.

        Args:
            response: The decoded response; ``scope`` is a list, or text that is split at spaces and
                commas (GitHub's way).
            received_at: When it arrived, aware; ``expires_in`` counts from then. An ``expires_at`` in seconds wins.
            extra: The names of further members to keep in ``TokenSet.extra``. A name that the response does not have
                is left out, and a whole number becomes its text. They need a vault.
            client: The name of the OAuth client that asked; see the attribute. It needs a vault.
            refresh_expires_in: The name of the member with the seconds until the refresh token expires, such as
                ``"refresh_token_expires_in"``; providers have no common one. It needs a vault. Zero means no end, and
                without a refresh token it says nothing.

        Raises:
            InvalidCredentials: The response is not a mapping with a usable access token, ``received_at`` is naive, or
                ``extra`` is one text instead of several names.

        Source: RFC 6749, section 5.1.
        """
        unread = _unreadable(response, received_at, extra)
        if unread is not None:
            del response
            raise unread
        scope = response.get("scope") or ""
        ends = _ends(response.get("expires_at"), response.get("expires_in"), received_at)
        refresh = response.get("refresh_token") or None
        lasts = None if refresh_expires_in is None or refresh is None else response.get(refresh_expires_in)
        found = {name: response[name] for name in extra if response.get(name) is not None}
        try:
            return cls(
                access_token=response.get("access_token", ""),
                refresh_token=refresh,
                expires_at=_or_raise(ends),
                scopes=split_scopes(scope) if isinstance(scope, str) else scope,
                token_type=response.get("token_type") or "Bearer",
                id_token=response.get("id_token") or None,
                extra={name: str(each) if type(each) is int else each for name, each in found.items()},
                client=client,
                refresh_expires_at=None
                if lasts in (None, 0, "0", "")
                else _or_raise(_ends(None, lasts, received_at, field="refresh_expires_at")),
            )
        except InvalidCredentials as error:
            refused = error.with_traceback(None)
        del response, scope, found, refresh  # leave no token in this frame, which a traceback with locals would show
        raise refused


def _unreadable(response: object, received_at: object, extra: object) -> InvalidCredentials | None:
    if isinstance(extra, str):
        return InvalidCredentials(field="extra", problem="is one text, and takes a list of names")
    if not isinstance(response, Mapping):
        return InvalidCredentials(field="response", problem=f"is {type(response).__name__}, not a mapping")
    if not isinstance(received_at, datetime):
        return InvalidCredentials(field="received_at", problem=f"is {type(received_at).__name__}, not a datetime")
    return None


def _or_raise(ends: datetime | InvalidCredentials | None) -> datetime | None:
    if isinstance(ends, InvalidCredentials):
        raise ends
    return ends


def _ends(
    at: Any, within: Any, received_at: datetime, *, field: str = "expires_at"
) -> datetime | InvalidCredentials | None:
    try:
        if at is not None:
            return datetime.fromtimestamp(float(at), UTC)
        if within is not None:
            return received_at + timedelta(seconds=float(within))
    except (TypeError, ValueError, OverflowError, OSError):
        return InvalidCredentials(field=field, problem="is not a number of seconds")
    return None


def checked_scopes(scopes: object) -> frozenset[str]:
    """Return the scopes that a caller requires.

    Raises:
        InvalidCredentials: One text instead of several, or something that is not a scope.
    """
    found = tuple(scopes) if isinstance(scopes, Iterable) and not isinstance(scopes, str) else scopes
    if (wrong := _wrong_scopes(found)) is not None:
        raise InvalidCredentials(field="require", problem=wrong, remedy='Pass a set of scopes, such as {"calendar"}.')
    assert isinstance(found, tuple)  # noqa: S101  # it was checked
    return frozenset(str.__str__(scope) for scope in found)


def checked_token(name: str, token: Concealed[object]) -> Secret | None:
    """Return a token that a caller names, or ``None`` if they name none.

    Args:
        name: The argument, for the error.
        token: Its value, which no traceback with locals shows.

    Raises:
        InvalidCredentials: It is not text, or empty.
    """
    text = token.reveal()
    if text is None:
        return None
    problem = unstorable(text)
    if problem or not isinstance(text, str):
        remedy = _REVEALED if isinstance(text, Secret) else "Pass the token as text, as it was sent."
        del text  # leave no token in this frame, which a traceback with locals would show
        raise InvalidCredentials(field=name, problem=problem or "is not text", remedy=remedy)
    return Secret(str.__str__(text))


def split_scopes(text: str) -> frozenset[str]:
    """Return the scopes in a text that separates them by spaces or commas."""
    return frozenset(text.replace(",", " ").split())


def join_scopes(scopes: Collection[str]) -> str:
    """Return scopes as one text, sorted and separated by single spaces (RFC 6749, section 3.3)."""
    return " ".join(sorted(scopes))


def _wrong(texts: Mapping[str, Any], expires_at: Any, scopes: Any, token_type: Any) -> InvalidCredentials | None:
    """Return the error for a token set with a wrong field, or ``None`` if all fields are right."""
    for name, text in texts.items():
        if (problem := unstorable(text)) and not (text is None and name != "access_token"):
            if isinstance(text, Secret):
                return InvalidCredentials(field=name, problem=problem, remedy=_REVEALED)
            return InvalidCredentials(field=name, problem=problem)
    if problem := _out_of_time(expires_at):
        return InvalidCredentials(field="expires_at", problem=problem)
    if problem := unstorable(token_type):
        return InvalidCredentials(field="token_type", problem=problem)
    if (problem := _wrong_scopes(scopes)) is not None:
        return InvalidCredentials(field="scopes", problem=problem)
    return None


def _wrong_scopes(scopes: Any) -> str | None:
    if isinstance(scopes, str) or not isinstance(scopes, Iterable):
        return "is not a set of texts"
    if not all(isinstance(scope, str) and not unstorable(scope) and split_scopes(scope) == {scope} for scope in scopes):
        return "holds something that is not a scope token"
    return None


def _wrong_beside(extra: Any, client: Any, refresh_expires_at: Any, *, renewable: bool) -> InvalidCredentials | None:
    """Return the error for a wrong field beside the tokens, or ``None`` if all of them are right."""
    if not isinstance(extra, Mapping) or not all(isinstance(text, str) for pair in extra.items() for text in pair):
        return InvalidCredentials(field="extra", problem="is not a mapping from text to text")
    if not all(encodable(text) for pair in extra.items() for text in pair):
        return InvalidCredentials(field="extra", problem="contains a lone surrogate")
    if client is not None and (problem := unstorable(client)):
        return InvalidCredentials(field="client", problem=problem)
    if problem := _out_of_time(refresh_expires_at):
        return InvalidCredentials(field="refresh_expires_at", problem=problem)
    if refresh_expires_at is not None and not renewable:
        return InvalidCredentials(field="refresh_expires_at", problem="belongs to no refresh token")
    return None


def _out_of_time(moment: Any) -> str | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        return f"is {type(moment).__name__}, not a datetime"
    if moment.utcoffset() is None:
        return "is a naive datetime"
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return "has no equal in UTC"
    return None
