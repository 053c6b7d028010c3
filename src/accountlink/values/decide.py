"""From facts to decisions. Every function here is pure, and is tested as a table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

from accountlink.errors import (
    AccountLinkError,
    BlockedByConstraint,
    ConfigurationError,
    LinkBlocked,
    OutcomeUnknown,
    OwnerLookupFailed,
    OwnerNotFound,
    RetryTransaction,
    StoreBusy,
    StoreUnavailable,
    TokenExpired,
    TokenRejected,
    TokenSuperseded,
)
from accountlink.values.facts import Claimed, Failure, Kept, Obstacle, Trouble
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId

RUNS: Final = 3
"""How often a statement that a race left without an answer is run before its cause is looked for."""
CAUSES: Final = 3
"""How often a cause is looked for before the answer is that none can be found."""
RETRIES: Final = 5
"""How often accountlink's own transaction is tried again after a serialization failure or a deadlock. With three, one
in 2,560 links of 64 racing for one row at REPEATABLE READ ran out of them."""
RECONNECTS: Final = 1
"""How often a lost connection is replaced before the caller is told."""

BY_SPELLING: Final = "key-compares-differently"
"""The rule by which a row of another key is in the way that only compares equal."""
_BY_DEAD_ROWS: Final = ("key-counts-deleted", "wrong-predicate")
"""Rules by which an index blocks only where a dead row is in the way."""


class Step(Enum):
    """What to do next."""

    AGAIN = "run the statement again"
    CONFLICT = "answer that another user is the owner"
    OWNED = "answer that the claimant has the account already"
    MOVE = "let the link change hands"


def after_failure(
    failure: Failure, *, owned: bool, ambiguous: bool, retries: int, reconnects: int
) -> Step | BaseException:
    """Decide what a database error comes to, a unique violation aside.

    Args:
        failure: The error, read.
        owned: Whether the transaction is accountlink's own.
        ambiguous: Whether an attempt whose answer did not come may have been committed.
        retries: How many retries are left.
        reconnects: How many new connections are left.

    Returns:
        ``Step.AGAIN``, or the error to raise.
    """
    match failure.trouble:
        case Trouble.SERIALIZATION if owned and retries:
            return Step.AGAIN
        case Trouble.SERIALIZATION if owned:
            return OutcomeUnknown() if ambiguous else StoreBusy(sqlstate=failure.sqlstate)
        case Trouble.SERIALIZATION:
            return RetryTransaction(sqlstate=failure.sqlstate)
        case Trouble.STALE_PLAN if retries:
            return Step.AGAIN
        case Trouble.STALE_PLAN if not owned:
            return RetryTransaction(sqlstate=failure.sqlstate)
        case Trouble.BUSY | Trouble.TIMEOUT:
            return OutcomeUnknown() if ambiguous else StoreBusy(sqlstate=failure.sqlstate)
        case Trouble.LOST if owned and reconnects:
            return Step.AGAIN
        case Trouble.LOST:
            return OutcomeUnknown() if ambiguous else StoreUnavailable()
        case Trouble.VALUE:
            error = ConfigurationError(
                "SQLAlchemy or the driver cannot send a value of this call to the database, and nothing was changed. "
                "Pass for each column in values= and update_values= what its type takes."
            )
            error.__cause__ = failure.error
            return error
        case _:
            return failure.error


def after_lookup_failure(failure: Failure, *, provider: str, owned: bool) -> AccountLinkError:
    """Decide what a failed look-up of the owner comes to."""
    if failure.trouble is Trouble.SERIALIZATION and not owned:
        return RetryTransaction(sqlstate=failure.sqlstate)
    return OwnerLookupFailed(provider=provider, sqlstate=failure.sqlstate)


def after_violation(
    failure: Failure, obstacle: Obstacle[Any, Any], *, provider: str, causes: int, owned: bool
) -> Step | BaseException:
    """Decide what a unique violation comes to, once it is known what is behind it.

    Nothing here turns a violation into success: the row is written again, or the truth is told.

    Args:
        failure: The violation.
        obstacle: What was found behind it.
        provider: The provider of the account that was to be linked.
        causes: How many more times the statement may be run and its cause looked for.
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


def of_claim(claimed: Claimed[Any, Any], *, expired: bool, fits: bool) -> Step | TokenRejected | LinkBlocked:
    """Decide what a genuine transfer token of this user comes to, given what the database holds.

    Who has the account is told so first: the token of a transfer whose answer was lost may be over by now.

    Args:
        claimed: What was found.
        expired: Whether the token is too old.
        fits: Whether the row is in the state that the token was signed for.

    Returns:
        ``Step.OWNED``, ``Step.MOVE``, or the error to raise.
    """
    if claimed.own is not None:
        return Step.OWNED
    if expired:
        return TokenExpired()
    if claimed.named is None or not claimed.live or not fits:
        return TokenSuperseded()
    if claimed.why is not None:
        return LinkBlocked(provider=claimed.named.provider, reason=claimed.why)
    return Step.MOVE


def restorable(rows: Iterable[Kept[UserId, LinkId]]) -> list[LinkedAccount[UserId, LinkId]]:
    """Return the dead rows that a link would restore, in the order of the rows.

    Args:
        rows: All rows of one user, live and dead; of the dead ones those first that a link prefers.
    """
    kept = list(rows)
    taken = {row.key for row in kept if row.live}
    met: set[object] = set()
    found: list[LinkedAccount[UserId, LinkId]] = []
    for row in kept:
        one = (row.key, row.account.account_id)
        if row.live or row.key in taken or one in met:
            continue
        met.add(one)
        if not row.blocked:
            found.append(row.account)
    return found


def after_lost_claim(refused: AccountLinkError, *, ambiguous: bool) -> AccountLinkError:
    """Decide what a refusal comes to that follows an attempt whose answer did not come: that one may have worked."""
    return OutcomeUnknown() if ambiguous else refused


def _blocked(failure: Failure, obstacle: Obstacle[Any, Any], *, rule: str) -> BlockedByConstraint:
    index = obstacle.index
    return BlockedByConstraint(
        constraint=failure.constraint if index is None else index.name,
        columns=failure.columns if index is None else index.columns,
        rule=rule,
    )
