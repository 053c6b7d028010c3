"""Check a call's arguments: ids of their columns' own types, and arguments of the right kinds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from accountlink.errors import AccountLinkError, AccountNotFound, ConfigurationError
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.mixin import LinkedAccountMixin, policy_of

NO_TIME: Final = timedelta(0)
SHORTEST: Final = timedelta(microseconds=1)
LONGEST: Final = timedelta(days=36_525)
"""A hundred years: what is longer than that was meant to be something else."""
_MS: Final = timedelta(milliseconds=1)
_GREATEST_SETTING: Final = 2**31 - 1
"""The durations that PostgreSQL accepts in a setting, in milliseconds."""
_FIRST_YEAR: Final = 1900
_LAST_YEAR: Final = 9000
"""Clocks that are far off are not believed: with a lifetime added, there must still be a moment."""
C = TypeVar("C")


class Ids:
    """Checks the ids of one table's calls, before any SQL."""

    def __init__(self, mapping: AccountMapping[Any, Any]) -> None:
        self._user: Final = mapping.columns["user_id"]
        self._link: Final = mapping.columns["id"]
        self._user_type: Final = IdType.of(self._user)
        self._link_type: Final = IdType.of(self._link)

    def check_user(self, user_id: object) -> None:
        """Refuse what is no user id of this table.

        Raises:
            ConfigurationError: Of another type, or outside what the column can hold.
        """
        if user_id is None or not self._user_type.accepts(user_id):
            raise _wrong_type("user_id", user_id, self._user.name, self._user_type)
        if not self._user_type.holds(user_id):
            raise _out_of_range("user_id", self._user.name)

    def check_link(self, link_id: object) -> None:
        """Refuse what is no link id of this table.

        Raises:
            ConfigurationError: Of another type.
            AccountNotFound: Outside what the column can hold, so that no link can have it.
        """
        if link_id is None or not self._link_type.accepts(link_id):
            raise _wrong_type("The link's id", link_id, self._link.name, self._link_type)
        if not self._link_type.holds(link_id):
            raise AccountNotFound

    def may_be_link(self, link_id: object) -> bool:
        """Whether a link of this table can have the id."""
        return self._link_type.accepts(link_id) and self._link_type.holds(link_id)


def _out_of_range(what: str, column: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is outside what the column {column!r} can hold. Check where it comes from, or widen the column."
    )


def _wrong_type(what: str, value: object, column: str, wanted: IdType) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is {type(value).__name__}, and the column {column!r} takes "
        f"{wanted.python.__name__ if wanted.python else 'a value'}. Convert it before the call."
    )


def check_id(
    what: str,
    value: object,
    column: str,
    kind: IdType,
    *,
    outside: Callable[[], AccountLinkError] | None = None,
) -> None:
    """Refuse what is no id of a column.

    Args:
        what: The argument's name.
        value: What was given.
        column: The column's name.
        kind: Its type.
        outside: Makes the error for what is outside of what the column can hold, if that is not a mistake in the call.

    Raises:
        ConfigurationError: Of another type, or outside what the column can hold.
    """
    if value is None or not kind.accepts(value):
        raise _wrong_type(what, value, column, kind)
    if not kind.holds(value):
        if outside is not None:
            raise outside()
        raise _out_of_range(what, column)


def check_kind(name: str, value: object, *kinds: type) -> None:
    """Refuse an argument of another kind.

    Raises:
        ConfigurationError: It is of none of the kinds.
    """
    if not isinstance(value, kinds):
        raise ConfigurationError(f"{name}= takes a {kinds[0].__name__}, not {type(value).__name__}.")


def check_callable(name: str, value: C) -> C:
    """Return what can be called.

    Raises:
        ConfigurationError: It cannot.
    """
    if not callable(value):
        raise ConfigurationError(f"{name}= takes a function, not {type(value).__name__}.")
    return value


def check_span(name: str, value: object, *, least: timedelta = SHORTEST, optional: bool = False) -> None:
    """Refuse what is no length of time, or one that cannot be meant.

    Args:
        name: The argument's name.
        value: What was given.
        least: How short it may be.
        optional: Whether it may be ``None``.

    Raises:
        ConfigurationError: No ``timedelta``, a shorter one, or one of more than a hundred years.
    """
    if value is None and optional:
        return
    if not isinstance(value, timedelta):
        raise ConfigurationError(f"{name}= takes a timedelta, not {type(value).__name__}.")
    if not least <= value <= LONGEST:
        bound = "no time or more" if least == NO_TIME else "more than no time"
        raise ConfigurationError(f"{name}= takes {bound}, and a hundred years at most.")


def milliseconds(name: str, value: object) -> str | None:
    """A length of time as PostgreSQL's settings take it; ``None`` for none.

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


def moment_of(clock: Callable[[], datetime]) -> datetime:
    """Ask a clock.

    Raises:
        ConfigurationError: Its answer is no datetime, has no zone, or cannot be a present moment.
    """
    now: object = clock()
    if not isinstance(now, datetime):
        raise ConfigurationError(f"clock= returned {type(now).__name__}. Return datetime.now(UTC).")
    if now.utcoffset() is None:
        raise ConfigurationError("clock= returned a naive datetime. Return datetime.now(UTC).")
    if not _FIRST_YEAR <= now.year < _LAST_YEAR:
        raise ConfigurationError(f"clock= returned a moment in the year {now.year}. Return datetime.now(UTC).")
    return now


def mapping_of(accounts: Any) -> AccountMapping[Any, Any]:  # checked here
    """Return the mapping of a model with the mixin, or a mapping as it is.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(accounts, AccountMapping):
        return accounts
    if isinstance(accounts, type) and issubclass(accounts, LinkedAccountMixin):
        model: type[Any] = accounts
        return AccountMapping(model, policy=policy_of(accounts))
    raise ConfigurationError(
        "AccountLinker takes a model with LinkedAccountMixin, or an AccountMapping of your own table and its policy."
    )
