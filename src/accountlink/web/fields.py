"""Read the fields of a POST, from a form or from JSON. What is not understood is refused, and not guessed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from accountlink.errors import RequestRejected, UnsupportedMediaType
from accountlink.web.asked import Asked

LARGEST: Final = 65_536
"""Bytes of a body."""
_MOST_FIELDS: Final = 100
FORM: Final = "application/x-www-form-urlencoded"
JSON: Final = "application/json"


class Fields:
    """Hold the fields of one request. Fields that a route does not know are ignored.

    Args:
        values: The values by name: text, or whatever JSON has.
    """

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def text(self, name: str) -> str | None:
        """Return a text; ``None`` for a field that is missing, null or empty.

        Raises:
            RequestRejected: The field is something else.
        """
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise RequestRejected(field=name)
        return value

    def id_text(self, name: str) -> str | None:
        """Return the text of an id, which JSON may have as a number.

        Raises:
            RequestRejected: The field is something else.
        """
        value = self._values.get(name)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_number else self.text(name)

    def words(self, name: str) -> Collection[str]:
        """Return words: a text that has them with blanks between, or a list of texts.

        Raises:
            RequestRejected: The field is something else.
        """
        value = self._values.get(name)
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return value
        return (self.text(name) or "").split()


def fields_of(asked: Asked[Any]) -> Fields:
    """Return the fields of a request's body.

    Raises:
        RequestRejected: The body is too long, malformed, or has a field twice.
        UnsupportedMediaType: The body is neither a form nor JSON.
    """
    if len(asked.body) > LARGEST:
        raise RequestRejected(field="body")
    if not asked.body:
        return Fields({})
    media = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in {FORM, JSON}:
        raise UnsupportedMediaType
    try:
        text = asked.body.decode()
        return Fields(_of_form(text) if media == FORM else _of_json(text))
    except (ValueError, RecursionError):  # not UTF-8, not a form, not JSON, or JSON of a thousand levels
        raise RequestRejected(field="body") from None


def once(pairs: Iterable[tuple[str, str]], *, where: str) -> dict[str, str]:
    """Return parameters by name, if each came once: two readers of two values could believe two things.

    Raises:
        RequestRejected: One came twice.

    Source: RFC 6749, section 3.1.
    """
    given = list(pairs)
    found = dict(given)
    if len(found) != len(given):
        raise RequestRejected(field=where)
    return found


def _of_form(text: str) -> dict[str, str]:
    pairs = parse_qsl(
        text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MOST_FIELDS, separator="&"
    )
    return once(pairs, where="body")


def _of_json(text: str) -> Mapping[str, object]:
    value = json.loads(text, object_pairs_hook=_members)
    if not isinstance(value, dict):
        raise RequestRejected(field="body")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return once(pairs, where="body")
