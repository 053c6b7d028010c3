"""Define the outcomes of a linker's calls: frozen values that the caller matches by class."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from accountlink.errors import with_query
from accountlink.values.secrecy import Concealed

UserId = TypeVar("UserId")
LinkId = TypeVar("LinkId")
C = TypeVar("C")


def sealed(cls: type[C]) -> type[C]:
    """Make an attempt to change a frozen value raise ``FrozenInstanceError``.

    With slots, Python's own ``__setattr__`` of a frozen class raises a bare ``TypeError`` for a name that is no field
    (``typing`` sets one when a generic class is called by its alias).
    """

    def unchangeable(_: object, name: str, *_value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    for name in ("__setattr__", "__delattr__"):
        setattr(cls, name, unchangeable)
    return cls


class NoTruth:
    """Refuse ``bool(outcome)``: asking whether an outcome is true would take a conflict for a success."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no truth value: match on its class")


class Change(Enum):
    """Say whether a link created, updated or restored its row."""

    CREATED = "created"
    """A new row."""
    UPDATED = "updated"
    """The user's live row, written again."""
    RESTORED = "restored"
    """The user's dead row, live again under its old id."""


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedAccount(Generic[UserId, LinkId]):
    """A snapshot of one stored link. Fields whose column is not mapped are ``None``.

    Attributes:
        id: The link's own id.
        user_id: The local owner.
        provider: The provider's slug.
        account_id: The provider's id of the account.
        email: The address as stored.
        scopes: The scopes as granted.
        created_at: When the row was made, aware.
        updated_at: When accountlink last wrote it, aware.
        deleted_at: When it was unlinked, aware; ``None`` while it is live.
    """

    id: LinkId
    user_id: UserId = field(repr=False)
    provider: str
    account_id: str | None
    email: str | None = field(default=None, repr=False)
    scopes: frozenset[str] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    deleted_at: datetime | None = None


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Linked(NoTruth, Generic[UserId, LinkId]):
    """Report that the row now holds this identity and these credentials.

    Attributes:
        account: The row, as it is now.
        change: Whether it was created, updated or restored.
    """

    code: ClassVar[str] = "linked"
    account: LinkedAccount[UserId, LinkId]
    change: Change

    def redirect_url(self, base: str) -> str:
        """Return ``base`` with ``connection=success`` merged into its query.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        return with_query(base, "connection", "success")


class _OwnedByAnother(NoTruth):
    """Keep the owner outside the dataclass fields, and so out of ``repr``, ``asdict``, pickles and encoders."""

    __slots__ = ("_owner",)
    _owner: Concealed[Any]

    @property
    def owner_id(self) -> Any:  # a column's own Python type, known to the linker only
        """The owner's user id, for the server's own log; never send it anywhere.

        Raises:
            AttributeError: The conflict is a copy from a pickle, which does not contain the owner.
        """
        return self._owner.reveal()


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class OwnershipConflict(_OwnedByAnother):
    """Report that another user is the live owner of this provider account. Nothing was written.

    Attributes:
        provider: The provider of the account.
        account_id: The account that the current user has just proved to control.
        transfer_token: A token that proves, for this user only, that they control the account now. ``None`` without
            secrets, or for a table without a ``version`` column and a ledger, whose rows' states look alike. Its text
            is readable, but does not say who the owner is.
        expires_at: When the transfer token ends, aware; ``None`` without a token.
    """

    code: ClassVar[str] = "ownership_conflict"
    provider: str
    account_id: str
    transfer_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None

    def redirect_url(self, base: str) -> str:
        """Return ``base?error=ownership_conflict#transfer_token=...``.

        The token is in the fragment. Browsers do not send that to servers, so no log and no Referer header has it.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        url = with_query(base, "error", self.code)
        return url if self.transfer_token is None else f"{url}#transfer_token={self.transfer_token}"

    def as_problem(self) -> dict[str, Any]:
        """Return a problem document that says neither who the owner is nor which e-mail address the account has.

        Source: RFC 9457, section 3.
        """
        problem: dict[str, Any] = {
            "type": f"urn:accountlink:{self.code}",
            "title": "This provider account is linked to another user.",
            "status": 409,
            "code": self.code,
            "provider": self.provider,
        }
        if self.transfer_token is not None and self.expires_at is not None:
            problem["transfer_token"] = self.transfer_token
            problem["expires_at"] = self.expires_at.isoformat()
        return problem


def conflict_with(owner_id: object, conflict: OwnershipConflict) -> OwnershipConflict:
    """Return a conflict with its owner set, for the server's own log."""
    object.__setattr__(conflict, "_owner", Concealed(owner_id))
    return conflict


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Unlinked(NoTruth, Generic[UserId, LinkId]):
    """Report that the link is removed, by this call or by an earlier one.

    Attributes:
        account: The row as it is now, or as it was when it was deleted.
    """

    code: ClassVar[str] = "unlinked"
    account: LinkedAccount[UserId, LinkId]

    def redirect_url(self, base: str) -> str:
        """Return ``base`` with ``connection=unlinked`` merged into its query.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        return with_query(base, "connection", "unlinked")


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class Transferred(NoTruth, Generic[UserId, LinkId]):
    """Report that the link now belongs to this user, under its old id, without the former owner's credentials.

    Attributes:
        account: The row, as it is now.
        previous_owner_id: The former owner's id, so that the server can inform them. A ``repr`` does not show it, but
            encoders do: do not send the outcome itself to a browser.
        has_credentials: Whether the link has the claimant's tokens: those that the transfer brought, or those that
            their conflict has kept. Without any, the claimant has to link again before the account can be used.
    """

    code: ClassVar[str] = "transferred"
    account: LinkedAccount[UserId, LinkId]
    previous_owner_id: UserId = field(repr=False)
    has_credentials: bool = False

    def redirect_url(self, base: str) -> str:
        """Return ``base`` with ``connection=success`` merged into its query.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        return with_query(base, "connection", "success")


@sealed
@dataclass(frozen=True, kw_only=True, slots=True)
class AlreadyOwner(NoTruth, Generic[UserId, LinkId]):
    """Report that the user already has a live link to this account, by a transfer or by a link. Nothing was written.

    Attributes:
        account: The user's row, as it is.
    """

    code: ClassVar[str] = "already_owner"
    account: LinkedAccount[UserId, LinkId]

    def redirect_url(self, base: str) -> str:
        """Return ``base`` with ``connection=success`` merged into its query.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        return with_query(base, "connection", "success")
