"""Write ids as text together with their type, so that two ids of different types are never one."""

from __future__ import annotations

import re
from uuid import UUID

from accountlink.errors import ConfigurationError


def tagged(value: object) -> str:
    """Return an id as text with its type, so that ``7`` and ``"7"`` stay two users."""
    match value:
        case bool():
            raise ConfigurationError("A boolean is no id.")
        case int():
            return f"i{int(value)}"
        case UUID():
            return f"u{value.hex}"
        case str():
            return f"s{str.__str__(value)}"
        case _:
            return f"{type(value).__name__}:{value}"


def can_return(link_id: object) -> bool:
    """Say whether a token can carry a link id and give it back unchanged: a number, a text or a UUID."""
    return isinstance(link_id, (int, str, UUID)) and not isinstance(link_id, bool)


def untagged(tag: str) -> int | str | UUID | None:
    """Return the id that was written by :func:`tagged`; ``None`` for one that cannot be read back."""
    if re.fullmatch(r"i-?[0-9]{1,40}", tag):
        return int(tag[1:])
    if re.fullmatch(r"u[0-9a-f]{32}", tag):
        return UUID(tag[1:])
    return tag[1:] if tag.startswith("s") else None
