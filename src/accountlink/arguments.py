"""What a call must bring: ids of their columns' own types, and arguments of the right kinds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from accountlink.errors import AccountLinkError, AccountNotFound, ConfigurationError
from accountlink.storage.idtype import IdType
from accountlink.storage.mapping import AccountMapping
from accountlink.storage.mixin import LinkedAccountMixin, policy_of


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


def moment_of(clock: Callable[[], datetime]) -> datetime:
    """Ask a clock.

    Raises:
        ConfigurationError: Its answer has no zone.
    """
    now = clock()
    if now.tzinfo is None:
        raise ConfigurationError("clock= returned a naive datetime. Return datetime.now(UTC).")
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
