"""Decide the outcome of a link and the meaning of a unique violation, by facts alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic

from accountlink.errors import (
    AccountLinkError,
    BlockedByConstraint,
    OwnerLookupFailed,
    OwnerNotFound,
    RetryTransaction,
)
from accountlink.values.facts import Failure, Kept, Obstacle, Step, Trouble
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId

BY_SPELLING: Final = "key-compares-differently"
"""The doctor's rule for an index that treats two different identifiers as equal."""
_BY_DEAD_ROWS: Final = ("key-counts-deleted", "wrong-predicate")
"""The doctor's rules for indexes that forbid a write only because of a dead row."""


class Arm(Enum):
    """Name the part of a link's statement that answered."""

    CREATED = "created"
    UPDATED = "updated"
    RESTORED = "restored"
    CONFLICT = "conflict"
    BLOCKED = "blocked"
    MISMATCH = "mismatch"
    MISSING = "missing"
    RESPELT = "respelt"


@dataclass(frozen=True, kw_only=True)
class Answer(Generic[UserId, LinkId]):
    """Hold the database's answer to a link.

    Attributes:
        arm: The part that answered.
        account: The row in the answer; in a conflict it is the owner's.
        version: The version of the owner's row in a conflict, where one is mapped.
        table: The name of the table in a conflict, with the schema in which the owner's row was read.
        why: The reason that blocks a restore.
        user_id: The user's id as their row spells it, where the call spells it in another way.
    """

    arm: Arm
    account: LinkedAccount[UserId, LinkId] | None = field(default=None, repr=False)
    version: int | None = None
    table: str = ""
    why: str | None = None
    user_id: Any = field(default=None, repr=False)


class Own(Enum):
    """Name the state of the user's own row, as a link finds it."""

    NONE = "there is none"
    LIVE = "it is live"
    DEAD = "it was removed"
    BLOCKED = "it was removed for a reason that forbids restoring it"
    OTHER = "it is a link to another account"


class Others(Enum):
    """Name the claim of another user on the account, as a link finds it."""

    NONE = "nobody else has the account, or several users may have it"
    OWNER = "another user has the account, which has one owner at most"


class Wanted(Enum):
    """Name the row that a link may write."""

    ANY = "the user's row of this account, or a new one"
    ONE = "the link that the caller named, and no other"


DECISIONS: Final[Mapping[tuple[Own, Others, Wanted], Arm]] = {
    (Own.NONE, Others.NONE, Wanted.ANY): Arm.CREATED,
    (Own.NONE, Others.OWNER, Wanted.ANY): Arm.CONFLICT,
    (Own.NONE, Others.NONE, Wanted.ONE): Arm.MISSING,
    (Own.NONE, Others.OWNER, Wanted.ONE): Arm.MISSING,
    (Own.LIVE, Others.NONE, Wanted.ANY): Arm.UPDATED,
    (Own.LIVE, Others.OWNER, Wanted.ANY): Arm.CONFLICT,
    (Own.LIVE, Others.NONE, Wanted.ONE): Arm.UPDATED,
    (Own.LIVE, Others.OWNER, Wanted.ONE): Arm.CONFLICT,
    (Own.DEAD, Others.NONE, Wanted.ANY): Arm.RESTORED,
    (Own.DEAD, Others.OWNER, Wanted.ANY): Arm.CONFLICT,
    (Own.DEAD, Others.NONE, Wanted.ONE): Arm.RESTORED,
    (Own.DEAD, Others.OWNER, Wanted.ONE): Arm.CONFLICT,
    (Own.BLOCKED, Others.NONE, Wanted.ANY): Arm.BLOCKED,
    (Own.BLOCKED, Others.OWNER, Wanted.ANY): Arm.CONFLICT,
    (Own.BLOCKED, Others.NONE, Wanted.ONE): Arm.BLOCKED,
    (Own.BLOCKED, Others.OWNER, Wanted.ONE): Arm.CONFLICT,
    (Own.OTHER, Others.NONE, Wanted.ANY): Arm.MISMATCH,
    (Own.OTHER, Others.OWNER, Wanted.ANY): Arm.CONFLICT,
    (Own.OTHER, Others.NONE, Wanted.ONE): Arm.MISMATCH,
    (Own.OTHER, Others.OWNER, Wanted.ONE): Arm.MISMATCH,
}
"""The arm that answers a link, by the rows that the link finds. SQLite's steps read it from this table. PostgreSQL's
statement makes the same decision in SQL, and is tested against this table. A conflict with another user comes first,
except where the caller named a link to another account, or a link that is not the user's."""


def after_lookup_failure(failure: Failure, *, provider: str, owned: bool) -> AccountLinkError:
    """Decide which error to raise after a failed look-up of the owner."""
    if failure.trouble is Trouble.SERIALIZATION and not owned:
        return RetryTransaction(sqlstate=failure.sqlstate)
    return OwnerLookupFailed(provider=provider, sqlstate=failure.sqlstate)


def after_violation(
    failure: Failure, obstacle: Obstacle[Any, Any], *, provider: str, causes: int, owned: bool
) -> Step | BaseException:
    """Decide what follows a unique violation, by the facts behind it.

    No decision turns a violation into a success: the statement runs again, or the call reports a conflict or an error.

    Args:
        failure: The violation.
        obstacle: The facts behind the violation.
        provider: The provider of the account that was to be linked.
        causes: How many more times the statement may be run and the cause of a violation be looked for.
        owned: Whether the transaction is accountlink's own.

    Returns:
        ``Step.AGAIN``, ``Step.CONFLICT``, or the error to raise.
    """
    if not obstacle.ours:
        return failure.error
    if failure.trouble is Trouble.DEFERRABLE:
        return _blocked(failure, obstacle, rule="deferrable-key")
    if obstacle.owner is not None:
        return Step.CONFLICT
    if obstacle.index is not None and not obstacle.is_key:
        return _blocked(failure, obstacle, rule=obstacle.rule or "stale-unique")
    if obstacle.misspelt and not obstacle.own_live:
        return _blocked(failure, obstacle, rule=BY_SPELLING)
    if obstacle.snapshot and not owned:
        return RetryTransaction(sqlstate=failure.sqlstate)
    if obstacle.rule in _BY_DEAD_ROWS and obstacle.dead and not obstacle.own_live:
        return _blocked(failure, obstacle, rule=obstacle.rule)
    if causes > 0:
        return Step.AGAIN
    if obstacle.rule is not None and obstacle.rule not in _BY_DEAD_ROWS:
        return _blocked(failure, obstacle, rule=obstacle.rule)
    return OwnerNotFound(
        provider=provider,
        constraint=failure.constraint if obstacle.index is None else obstacle.index.name,
        row_security=obstacle.index is not None and obstacle.index.row_security,
    )


def restorable(rows: Iterable[Kept[UserId, LinkId]]) -> list[LinkedAccount[UserId, LinkId]]:
    """Return the dead rows that a link would restore, in the order of the rows.

    Args:
        rows: All rows of one user, live and dead, in the order in which a link prefers them.
    """
    listed = list(rows)
    live_keys = {row.key for row in listed if row.live}
    met: set[object] = set()
    found: list[LinkedAccount[UserId, LinkId]] = []
    for row in listed:
        one = (row.key, row.account.account_id)
        if row.live or row.key in live_keys or one in met:
            continue
        met.add(one)
        if not row.blocked:
            found.append(row.account)
    return found


def _blocked(failure: Failure, obstacle: Obstacle[Any, Any], *, rule: str) -> BlockedByConstraint:
    index = obstacle.index
    return BlockedByConstraint(
        constraint=failure.constraint if index is None else index.name,
        columns=failure.columns if index is None else index.columns,
        rule=rule,
    )
