"""Check the arguments of a call, so that a wrong one is refused before any SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, TypeVar

from accountlink.errors import ConfigurationError
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.mixin import LinkedAccountMixin, policy_of

NO_TIME: Final = timedelta(0)
SHORTEST: Final = timedelta(microseconds=1)
LONGEST: Final = timedelta(days=36_525)
"""A hundred years: a longer time is taken for a mistake."""
_MS: Final = timedelta(milliseconds=1)
_GREATEST_SETTING: Final = 2**31 - 1
"""The greatest time that PostgreSQL accepts in a setting, in milliseconds."""
C = TypeVar("C")


def check_kind(name: str, value: object, *kinds: type) -> None:
    """Refuse an argument that is not of the required class.

    Raises:
        ConfigurationError: The argument is of none of the classes.
    """
    if not isinstance(value, kinds):
        raise wrong_kind(name, value, kinds[0])


def wrong_kind(name: str, value: object, kind: type) -> ConfigurationError:
    """Return the error for an argument that is not of the required class."""
    return ConfigurationError(f"{name}= takes a {kind.__name__}, not {type(value).__name__}.")


def check_callable(name: str, value: C) -> C:
    """Return an argument that can be called, or refuse it.

    Raises:
        ConfigurationError: The argument cannot be called.
    """
    if not callable(value):
        raise ConfigurationError(f"{name}= takes a function, not {type(value).__name__}.")
    return value


def check_span(name: str, value: object, *, least: timedelta = SHORTEST) -> None:
    """Refuse an argument that is not a length of time, or is out of the allowed range.

    Args:
        name: The argument's name.
        value: The value that was passed.
        least: The shortest time that is allowed.

    Raises:
        ConfigurationError: No ``timedelta``, a shorter one, or one of more than a hundred years.
    """
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name}= takes a timedelta, not {type(value).__name__}.")
    if not least <= value <= LONGEST:
        bound = "no time or more" if least == NO_TIME else "more than no time"
        raise ConfigurationError(f"{name}= takes {bound}, and a hundred years at most.")


def milliseconds(name: str, value: object) -> str | None:
    """Return a length of time in the form of PostgreSQL's settings, or ``None`` for none.

    Raises:
        ConfigurationError: No ``timedelta``, a negative one, or more milliseconds than a setting takes (24 days).
    """
    if value is None:
        return None
    check_span(name, value, least=NO_TIME)
    number = round(value / _MS) if isinstance(value, timedelta) else 0
    if number > _GREATEST_SETTING:
        raise ConfigurationError(f"{name}= takes 24 days at most. To wait for ever, give None.")
    return f"{max(1, number)}ms"


def mapping_of(accounts: Any) -> AccountMapping[Any, Any]:  # checked here
    """Return the mapping of a model that has the mixin, or return a given mapping unchanged.

    Raises:
        ConfigurationError: The argument is neither.
    """
    if isinstance(accounts, AccountMapping):
        return accounts
    if isinstance(accounts, type) and issubclass(accounts, LinkedAccountMixin):
        model: type[Any] = accounts
        return AccountMapping(model, policy=policy_of(accounts))
    raise ConfigurationError(
        "AccountLinker takes a model with LinkedAccountMixin, or an AccountMapping of your own table and its policy."
    )
