"""Decide after a database error whether work runs again, or which error ends it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from accountlink.errors import ConfigurationError, OutcomeUnknown, RetryTransaction, StoreBusy, StoreUnavailable
from accountlink.values.facts import Failure, Step, Trouble

RUNS: Final = 3
"""The number of times that work runs without an answer, because of races, before the cause is looked for."""
CAUSES: Final = 3
"""The number of times that a cause is looked for before an error says that none can be found."""
RETRIES: Final = 5
"""The number of times that accountlink's own transaction is tried again after a serialization failure or a deadlock.
With three, one of 2,560 links ran out of them, when 64 links raced for one row at REPEATABLE READ."""
RECONNECTS: Final = 1
"""The number of times that a lost connection is replaced before an error is raised."""
_CATALOGUE_MOVED: Final = "XX000"
"""The SQLSTATE of PostgreSQL for a query of its catalogue about an object that another session is changing."""
_BACKOFF: Final = 0.01
"""Seconds: the first pause before a transaction of our own is tried again; doubled each time, and jittered."""


@dataclass(kw_only=True, slots=True)
class Patience:
    """Count the attempts that are left within one call.

    Attributes:
        writes: Whether the work changes anything, so that a lost answer may hide a commit.
        reads_catalogue: Whether the work reads the catalogue, and runs again if another session changes the catalogue.
        ambiguous: Whether an attempt whose answer did not come may have been committed.
    """

    runs: int = RUNS
    causes: int = CAUSES
    retries: int = RETRIES
    reconnects: int = RECONNECTS
    writes: bool = True
    reads_catalogue: bool = False
    ambiguous: bool = False

    def catalogue_moved(self, failure: Failure) -> bool:
        """Say whether a read of the catalogue failed because another session changes it, and may run again."""
        return failure.sqlstate == _CATALOGUE_MOVED and self.causes > 0

    async def recover(
        self, failure: Failure, *, owned: bool, reconnects: bool, committed: bool
    ) -> BaseException | None:
        """Prepare another attempt, or return the error to raise.

        Args:
            failure: The database error.
            owned: Whether the transaction is accountlink's own.
            reconnects: Whether another attempt gets another connection.
            committed: Whether the attempt may have been committed.
        """
        if self.reads_catalogue and self.catalogue_moved(failure):
            self.causes -= 1
            return None
        unanswered = failure.trouble in (Trouble.LOST, Trouble.TIMEOUT)
        self.ambiguous = self.ambiguous or (unanswered and self.writes and committed)
        verdict = after_failure(
            failure,
            owned=owned,
            ambiguous=self.ambiguous,
            retries=self.retries,
            reconnects=self.reconnects if reconnects else 0,
        )
        if isinstance(verdict, BaseException):
            return verdict
        if failure.trouble is Trouble.LOST:
            self.reconnects -= 1
            return None
        tried = RETRIES - self.retries
        self.retries -= 1
        await asyncio.sleep(random.uniform(0, _BACKOFF * 2**tried))  # noqa: S311  # jitter, not a secret
        return None


def after_failure(
    failure: Failure, *, owned: bool, ambiguous: bool, retries: int, reconnects: int
) -> Step | BaseException:
    """Decide which error, or which further attempt, follows a database error that is not a unique violation.

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
        case Trouble.LOST | Trouble.READ_ONLY:  # the latter ends with a failover, which no retry waits for
            unavailable = StoreUnavailable(is_read_only=failure.trouble is Trouble.READ_ONLY)
            return OutcomeUnknown() if ambiguous else unavailable
        case Trouble.VALUE:
            error = ConfigurationError(
                "SQLAlchemy or the driver cannot send a value of this call to the database, and nothing was changed. "
                "Pass for each column in values= and update_values= what its type takes."
            )
            error.__cause__ = failure.error
            return error
        case _:
            return failure.error


def final_error(failure: Failure, *, ambiguous: bool = False) -> BaseException:
    """Return the error to raise for a failure after which nothing is tried again.

    Args:
        failure: The failure.
        ambiguous: Whether it may hide a commit.
    """
    verdict = after_failure(failure, owned=False, ambiguous=ambiguous, retries=0, reconnects=0)
    return verdict if isinstance(verdict, BaseException) else failure.error
