"""Define the link policy: the key of links, the owners of an account, and the removal of a link."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from accountlink.errors import ConfigurationError
from accountlink.values.text import flaw


class Key(Enum):
    """Choose the key on which a link of one user is unique."""

    ACCOUNT_ID = "account_id"
    """``(user_id, provider, account_id)``: a changed e-mail address updates the row."""
    EMAIL = "email"
    """``(user_id, provider, e-mail in normal form)``: for a table without an account id, or with this key already."""


class Ownership(Enum):
    """Choose how many users may have one provider account."""

    EXCLUSIVE = "exclusive"
    """An account has at most one live owner; a second user gets a conflict."""
    PER_USER = "per_user"
    """Each user may link the account; links are unique within one user only."""


class Removal(Enum):
    """Choose what unlinking does to the row."""

    SOFT = "soft"
    """The row is marked dead and restored, with the same id, when the user links the account again."""
    DELETE = "delete"
    """The row is deleted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPolicy:
    """Hold the rules of one table of links.

    Attributes:
        key: The key on which a link is unique; ``Key.ACCOUNT_ID`` by default.
        ownership: Whether a provider account has one live owner or may have several; ``Ownership.EXCLUSIVE`` by
            default.
        removal: Whether unlinking keeps the row. With the default, ``Removal.DELETE``, linking again makes a new row.
        blocked_reasons: Reasons of unlinking that forbid restoring (``{"fraud"}``); none unless given, and only with
            ``Removal.SOFT``.

    Raises:
        ConfigurationError: ``Key.EMAIL`` with ``EXCLUSIVE``, since an e-mail address never proves ownership;
            ``blocked_reasons`` with ``Removal.DELETE``, which keeps no row that could carry the reason.
    """

    key: Key = Key.ACCOUNT_ID
    ownership: Ownership = Ownership.EXCLUSIVE
    removal: Removal = Removal.DELETE
    blocked_reasons: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse combinations of rules that contradict each other."""
        for name, kind in (("key", Key), ("ownership", Ownership), ("removal", Removal)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(f"LinkPolicy({name}=...) takes a member of {kind.__name__}.")
        reasons: Any = self.blocked_reasons
        if isinstance(reasons, (str, bytes)) or not isinstance(reasons, Iterable):
            raise ConfigurationError("LinkPolicy(blocked_reasons=...) takes a set of texts, not one text.")
        reasons = list(reasons)
        if not all(isinstance(reason, str) and reason and flaw(reason) is None for reason in reasons):
            raise ConfigurationError(
                "Each of LinkPolicy(blocked_reasons=...) is a text, none is empty, and none has characters that cannot "
                "be seen."
            )
        object.__setattr__(self, "blocked_reasons", frozenset(str.__str__(reason) for reason in reasons))
        if self.key is Key.EMAIL and self.ownership is Ownership.EXCLUSIVE:
            raise ConfigurationError(
                "An e-mail address never proves ownership of an account, so Key.EMAIL cannot be EXCLUSIVE. "
                "Use Key.ACCOUNT_ID, or Ownership.PER_USER."
            )
        if self.blocked_reasons and self.removal is not Removal.SOFT:
            raise ConfigurationError(
                "blocked_reasons needs Removal.SOFT: a deleted row cannot remember why it was unlinked."
            )
