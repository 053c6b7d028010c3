"""Define a request and its answer without a framework."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic

from accountlink.values.outcomes import UserId, sealed
from accountlink.web.outcomes import Impersonated

_WEIGHT: Final = re.compile(r"\s*[qQ]\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*")
_JSON: Final = frozenset({"application/json", "application/problem+json"})
_QUIET: Final = (("cache-control", "no-store"), ("referrer-policy", "no-referrer"))
"""The headers of every answer: addresses with a state or a ticket are neither kept nor passed on (threats A23)."""


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Asked(Generic[UserId]):
    """Hold the parts of a request that the routes look at. The ``Host`` header is none of them.

    Attributes:
        headers: The headers by their lower-case names; several of one name are joined by a comma.
        cookies: The cookies.
        query: The parameters of the query, in their order.
        path: The parameters of the path.
        body: The body; one that is longer than the routes accept may be cut off after that.
        user: The signed-in user; ``None`` if nobody is.
        label: A name of that user to show on the page of a ticket.
    """

    headers: Mapping[str, str] = field(repr=False)
    cookies: Mapping[str, str] = field(repr=False)
    query: Sequence[tuple[str, str]] = field(repr=False)
    path: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    user: UserId | Impersonated[UserId] | None = field(default=None, repr=False)
    label: str | None = field(default=None, repr=False)

    @property
    def wants_json(self) -> bool:
        """Whether an API client sent it: its ``Accept`` prefers JSON to HTML."""
        return prefers_json(self.headers.get("accept", ""))

    @property
    def has_cookies(self) -> bool:
        """Whether any cookie came."""
        return "cookie" in self.headers

    @property
    def has_bearer(self) -> bool:
        """Whether a bearer token came, be it a valid one or not. No browser adds one by itself."""
        return self.headers.get("authorization", "")[:7].lower() == "bearer "


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Hold an answer.

    Attributes:
        status: The status code.
        headers: The headers, each name once.
        body: The body.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


def prefers_json(accept: str) -> bool:
    """Say whether an ``Accept`` header names JSON with a greater weight than HTML.

    ``*/*`` names neither. A browser names HTML, and so gets redirects.

    Source: RFC 9110, section 12.5.1.
    """
    weights: dict[str, float] = {}
    for each in accept.split(","):
        media, *parameters = each.split(";")
        found = [match[1] for parameter in parameters if (match := _WEIGHT.fullmatch(parameter))]
        name = media.strip().lower()
        weights[name] = max(weights.get(name, 0.0), float(found[0]) if found else 1.0)
    return max(weights.get(name, 0.0) for name in _JSON) > weights.get("text/html", 0.0)


def answer_json(
    value: object, *, status: int = 200, media_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> Answer:
    """Answer with JSON."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Answer(status=status, headers=(*_QUIET, ("content-type", media_type), *(headers or {}).items()), body=body)


def answer_page(page: str, *, headers: Mapping[str, str]) -> Answer:
    """Answer with a page."""
    kind = ("content-type", "text/html; charset=utf-8")
    return Answer(status=200, headers=(*_QUIET, kind, *headers.items()), body=page.encode())


def redirect(url: str, *, headers: Mapping[str, str] | None = None) -> Answer:
    """Send the browser to another address, by GET."""
    return Answer(status=303, headers=(*_QUIET, ("location", url), *(headers or {}).items()))


def shown_id(value: Any) -> int | str:
    """Return a link's id as JSON can hold it: a number that JavaScript can hold exactly, else text."""
    exact = isinstance(value, int) and abs(value) < 2**53
    return value if exact else str(value)
