"""Read a provider's answer to a refresh token: what failed, or the members that can be stored."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, Final
from urllib.parse import parse_qsl

from accountlink.values.credentials import TokenSet, split_scopes
from accountlink.values.text import encodable, unstorable
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, RenewalFailed

ENDED: Final = frozenset(
    {"invalid_grant", "bad_refresh_token", "interaction_required", "consent_required", "login_required"}
)
"""Codes by which a provider says that the grant has ended: OAuth's own, GitHub's, and those of OpenID Connect."""
REFUSED: Final = frozenset(
    {"invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type", "incorrect_client_credentials"}
)
"""Codes by which a provider refuses the application, whatever the user consented to: OAuth's own, and GitHub's."""
AWAY: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
"""Codes by which a provider says that another attempt may work."""
_SUCCESS: Final = range(200, 300)
_OPAQUE: Final = frozenset({400, 401, 403})
"""The statuses by which a provider refuses. Any other without a code may be that of a proxy, and says nothing."""
_LONGEST_WAIT: Final = timedelta(hours=1)
_MOST_DIGITS: Final = 400
"""A number of more digits is endless for us; from 4,300 on Python refuses to read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenAnswer:
    """Hold a provider's answer to a request for tokens.

    Attributes:
        status: The status of the response.
        retry_after: The header ``Retry-After``, if there is one.
        members: The members of the body; ``None`` if the body has no such form.
    """

    status: int
    retry_after: str | None
    members: Mapping[str, Any] | None


def members_of(body: bytes, content_type: str) -> dict[str, Any] | None:
    """Return the members of a body, in JSON or as a form; ``None`` for any other body.

    Args:
        body: The body.
        content_type: The header ``Content-Type``.
    """
    try:
        if "application/x-www-form-urlencoded" in content_type.lower():
            form = dict(parse_qsl(body.decode("utf-8")))
            if form:
                return form
        found = _json(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_int=_whole)
    except UnicodeDecodeError:  # some other member may be written in another code than the tokens, which are ASCII
        return json.loads(body.decode("latin-1"), parse_int=_whole)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < _MOST_DIGITS else inf


def failure_of(answer: TokenAnswer, *, now: datetime) -> RenewalFailed | None:
    """Say how a renewal failed, or return ``None`` if it did not.

    A known OAuth error code decides, whatever the status: providers send it with 400, 401, 403 and 200. No description
    is read. An access token counts whatever else stands in the answer, because the former tokens may be spent.

    Args:
        answer: The answer.
        now: The present moment, aware, from which ``Retry-After`` counts.

    Source: RFC 6749, section 5.2; RFC 6585, section 4; RFC 9110, section 10.2.3.
    """
    members = answer.members or {}
    code = members.get("error")
    known = code if isinstance(code, str) else ""
    if known in ENDED:
        return GrantEnded(known)
    if known in REFUSED:
        return ClientRefused(known)
    is_success = answer.status in _SUCCESS
    if is_success and known not in AWAY and not unstorable(members.get("access_token")):
        return None
    retry_at = retry_moment(answer.retry_after, now=now)
    if retry_at is not None or known in AWAY:
        return ProviderUnavailable(retry_at)
    is_refusal = answer.status in _OPAQUE or (is_success and answer.members is not None)
    is_renewed = is_success and members.get("access_token") is not None  # but nobody can store the token
    return ProviderUnavailable(opaque=is_refusal, uncertain=is_renewed)


def retry_moment(retry_after: str | None, *, now: datetime) -> datetime | None:
    """Return the moment that the header ``Retry-After`` names, at most an hour ahead, or ``None``.

    Args:
        retry_after: The header: seconds, or a date.
        now: The present moment, aware.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=min(int(text[:6]), 3_600))
        return now + wait
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return min(max(aware, now), now + _LONGEST_WAIT)


def tokens_of(members: Mapping[str, Any], *, now: datetime, extra: Iterable[str], client: str | None) -> TokenSet:
    """Return the tokens of a success, without what cannot be stored; of that what was stored before stays.

    The provider may have replaced the refresh token, so one strange member must not cost the whole answer.

    Args:
        members: The members, with an access token.
        now: The present moment, aware, from which ``expires_in`` counts.
        extra: The names of the members that are kept beside the tokens.
        client: The name of the OAuth client that asked.
    """
    texts = {name: members.get(name) for name in ("refresh_token", "token_type", "id_token")}
    usable: dict[str, Any] = {name: text for name, text in texts.items() if not unstorable(text)}
    return TokenSet(
        access_token=members["access_token"],
        expires_at=_ends(members, now),
        scopes=_scopes(members.get("scope")),
        extra={name: str(members[name]) for name in extra if _is_text(members.get(name))},
        client=client,
        **usable,
    )


def _is_text(value: object) -> bool:
    """Say whether a value is a text that can be stored, or a whole number, which becomes one."""
    return type(value) is int or (isinstance(value, str) and encodable(value))


def _ends(members: Mapping[str, Any], now: datetime) -> datetime | None:
    """Return when an access token ends; ``None`` if that is not said in numbers of seconds that make a moment."""
    within, at = _seconds(members.get("expires_in")), _seconds(members.get("expires_at"))
    try:
        if within is not None:
            return now + timedelta(seconds=within)
    except OverflowError:
        pass
    try:
        return None if at is None else datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if abs(seconds) < inf else None


def _scopes(value: object) -> list[str]:
    """Return the scopes of a text or of a list of texts; none if one of them is no scope."""
    several: Collection[object] = [value] if isinstance(value, str) else value if isinstance(value, list) else ()
    texts = [each for each in several if isinstance(each, str)]
    scopes = [scope for text in texts for scope in split_scopes(text)]
    return scopes if len(texts) == len(several) and not any(map(unstorable, scopes)) else []
