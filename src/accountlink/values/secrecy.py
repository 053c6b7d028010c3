"""Hide values that must not be shown: tokens, other users' ids, and statement parameters."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, NoReturn, TypeVar
from uuid import UUID

_MASK: Final = "'**********'"
T = TypeVar("T")


class Secret:
    """Hold a text that only :meth:`reveal` shows.

    It has no ``__dict__``, and is neither iterable nor picklable, so that no encoder finds the text in it.
    """

    __slots__ = ("reveal",)
    reveal: Callable[[], str]
    """Return the text itself."""

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "reveal", lambda: text)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a secret cannot be changed")

    def __repr__(self) -> str:
        return _MASK

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(*(each.reveal().encode("utf-8", "surrogatepass") for each in (self, other)))

    def __hash__(self) -> int:
        return hash((Secret, self.reveal()))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled: store it with link(..., credentials=...) and read it from there")


def revealed(secret: Secret | None) -> str | None:
    """Return the text of a secret, or ``None`` if there is none."""
    return None if secret is None else secret.reveal()


class SecretMembers(Mapping[str, Secret]):
    """Hold secrets by name. The names show, and no secret does: not in a copy, a pickle or an encoder either."""

    __slots__ = ("_members",)
    _members: dict[str, Secret]

    def __init__(self, members: Mapping[str, str]) -> None:
        secrets = {str.__str__(name): Secret(str.__str__(text)) for name, text in members.items()}
        object.__setattr__(self, "_members", secrets)

    def __getitem__(self, name: str) -> Secret:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("secrets cannot be changed")

    def __hash__(self) -> int:
        return hash(frozenset(self._members.items()))

    def __repr__(self) -> str:
        return repr(self._members)

    def __copy__(self) -> SecretMembers:
        return self

    def __deepcopy__(self, memo: object) -> SecretMembers:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "secrets cannot be pickled: store them with link(..., credentials=...) and read them from there"
        )

    def revealed(self) -> dict[str, str]:
        """Return the texts by name."""
        return {name: secret.reveal() for name, secret in self._members.items()}


NO_SECRETS: Final = SecretMembers({})
"""Stands wherever there are none, so that asking costs nothing."""


class Concealed(Generic[T]):
    """Carry a value beside others without showing it in a ``repr``."""

    __slots__ = ("reveal",)
    reveal: Callable[[], T]
    """Return the value."""

    def __init__(self, value: T) -> None:
        self.reveal = lambda: value

    def __repr__(self) -> str:
        return "<concealed>"


class ConcealedText(str):
    """Hold a text that drivers and databases take as it is, and that a log of statement parameters shows masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK


class ConcealedNumber(int):
    """Hold a whole number that drivers take as it is, and that a log of statement parameters shows masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK

    def __str__(self) -> str:
        return int.__repr__(self)


class ConcealedUuid(UUID):
    """Hold a UUID, or its text for a database without UUIDs, that a log of statement parameters shows masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK

    @property
    def hex(self) -> str:
        """The UUID's 32 hexadecimal digits."""
        return ConcealedText(super().hex)

    def replace(self, old: str, new: str) -> str:
        """Return the UUID's text with a part replaced, for SQLAlchemy where a column's UUIDs are texts in Python."""
        return ConcealedText(str(self).replace(old, new))


def concealed_id(value: Any) -> Any:  # an id of whatever type its column has
    """Return another user's id as a statement parameter that a log shows masked."""
    match value:
        case bool():
            return value
        case int():
            return ConcealedNumber(value)
        case UUID():
            return ConcealedUuid(int=value.int)
        case str():
            return ConcealedText(value)
        case _:
            return value


class Parameters(dict[str, Any]):
    """Hold statement parameters, and show only their names in a ``repr``."""

    def __repr__(self) -> str:
        return f"<parameters {', '.join(self)}>"
