"""Runs a piece of work until the database has answered it, or until an error says why it cannot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn, TypeVar

from accountlink.database.catalogue import absent_tables
from accountlink.database.transactions import Foreign, Place, Talk, Work
from accountlink.database.violations import is_unusable
from accountlink.errors import ConfigurationError, OutcomeUnknown, StoreBusy
from accountlink.values import decide
from accountlink.values.decide import Step
from accountlink.values.facts import Answer, Arm, Failure, Obstacle, Trouble
from accountlink.values.outcomes import LinkId, UserId

T = TypeVar("T")
CATALOGUE_MOVED: Final = "XX000"
"""PostgreSQL's answer to a query of its catalogue that another session is changing at that moment."""
_BACKOFF: Final = 0.01
"""Seconds: the first pause before a transaction of our own is tried again; doubled each time, and jittered."""


@dataclass(kw_only=True, slots=True)
class Patience:
    """Count the retries that are left within one call.

    Attributes:
        ambiguous: Whether an attempt whose answer did not come may have been committed.
    """

    runs: int = decide.RUNS
    causes: int = decide.CAUSES
    retries: int = decide.RETRIES
    reconnects: int = decide.RECONNECTS
    writes: bool = True
    ambiguous: bool = False

    async def recover(self, place: Place, failure: Failure) -> None:
        """Make ready for another attempt after a database error, or raise what it comes to."""
        lost = failure.trouble is Trouble.LOST
        unanswered = lost or failure.trouble is Trouble.TIMEOUT
        self.ambiguous = self.ambiguous or (unanswered and self.writes and place.ambiguous)
        verdict = decide.after_failure(
            failure,
            owned=place.owned,
            ambiguous=self.ambiguous,
            retries=self.retries,
            reconnects=self.reconnects if place.reconnects else 0,
        )
        if failure.trouble is Trouble.NO_TABLE:
            await _explain_absence(place, failure)
        if isinstance(verdict, BaseException):
            _raise(verdict)
        if lost:
            self.reconnects -= 1
            return
        tried = decide.RETRIES - self.retries
        self.retries -= 1
        await asyncio.sleep(random.uniform(0, _BACKOFF * 2**tried))  # noqa: S311  # jitter, not a secret


def reached(place: Place | Failure) -> Place:
    """Return the place, or raise what the failure to get there comes to: nothing was sent yet."""
    if not isinstance(place, Failure):
        return place
    verdict = _final(place)
    if is_unusable(place.error):
        verdict = ConfigurationError(
            "This session or connection can run nothing: it is closed, was never begun, has no engine, or its "
            "transaction is over. Pass an open one, or the engine."
        )
        verdict.__cause__ = place.error
    raise verdict


def acknowledged(failure: Failure, *, ambiguous: bool) -> NoReturn:
    """Raise what a failure to acknowledge comes to.

    Args:
        failure: The failure.
        ambiguous: Whether it may hide a commit.
    """
    _raise(_final(failure, ambiguous=ambiguous))


def done(place: Place, failure: Failure | None) -> None:
    """Raise what a failure comes to that follows the work; where the place commits by itself, that is done already."""
    if failure is not None:
        _raise(_final(failure, ambiguous=place.owned))


def _final(failure: Failure, *, ambiguous: bool = False) -> BaseException:
    verdict = decide.after_failure(failure, owned=False, ambiguous=ambiguous, retries=0, reconnects=0)
    return verdict if isinstance(verdict, BaseException) else failure.error


async def read(place: Place, work: Work[T]) -> T:
    """Run work that changes nothing, again where that helps."""
    return await run(place, work, Patience(writes=False))


async def read_catalogue(place: Place, work: Work[T]) -> T:
    """Run work that reads the catalogue, again where another session changed it meanwhile."""
    patience = Patience(writes=False)
    while isinstance(result := await place.attempt(work), Failure):
        if result.sqlstate == CATALOGUE_MOVED and patience.causes > 0:
            patience.causes -= 1
        else:
            await patience.recover(place, result)
    return result


async def run(place: Place, work: Work[T], patience: Patience) -> T:
    """Run work that no unique index can refuse, again where that is safe."""
    while isinstance(result := await place.attempt(work), Failure):
        await patience.recover(place, result)
    return result


async def converse(place: Place, talk: Talk[T], patience: Patience) -> T:
    """Run work that also waits for other things than the database, again where that is safe."""
    try:
        while isinstance(result := await place.converse(talk), Failure):
            await patience.recover(place, result)
    except Foreign as raised:
        foreign = raised.error
    else:
        return result
    raise foreign


async def settle(
    place: Place,
    work: Work[Answer[UserId, LinkId] | None],
    *,
    again: Work[Answer[UserId, LinkId] | None] | None = None,
    probe: Work[Answer[UserId, LinkId] | None] | None,
    look: Callable[..., Obstacle[UserId, LinkId]],
    tell: Callable[..., None] | None = None,
    provider: str,
) -> Answer[UserId, LinkId]:
    """Run a link until it is settled.

    Args:
        place: Where.
        work: The link; ``None`` when a concurrent transaction came between.
        again: The same after an attempt whose answer was lost, where that makes a difference.
        probe: An insert that a unique index may refuse, to find out what keeps coming between; ``None`` where the link
            may not insert.
        look: Finds out what is behind a unique violation.
        tell: Writes the event of a conflict that was found behind one, with the owner's row; ``None``: nobody is told.
        provider: For messages.
    """
    patience = Patience()
    while patience.causes > 0:
        result = await place.attempt(again if again is not None and patience.ambiguous else work)
        if result is None and patience.runs > 1:
            patience.runs -= 1
            continue
        if result is None and probe is not None:
            result = await place.attempt(probe)
        if isinstance(result, Answer):
            return result
        if isinstance(result, Failure) and result.trouble not in (Trouble.UNIQUE, Trouble.DEFERRABLE):
            await patience.recover(place, result)
            continue
        patience.causes -= 1
        if isinstance(result, Failure):
            settled = await _explained(place, result, look, provider, patience)
            if settled is not None and tell is not None:
                await run(place, partial(tell, owned=settled.account), patience)
            if settled is not None:
                return settled
    raise StoreBusy


async def redeem(
    place: Place,
    attempt: Callable[[], Awaitable[T | Failure | None]],
    patience: Patience,
    *,
    look: Callable[..., Obstacle[UserId, LinkId]],
    provider: Callable[[], str],
) -> T:
    """Run a transfer until it is settled.

    Args:
        place: Where.
        attempt: The transfer; its answer is ``None`` when a concurrent transaction came between.
        patience: What is left of trying again.
        look: Finds out what is behind a unique violation, the present owner's row aside.
        provider: For messages, once the row is read.
    """
    while patience.causes > 0 and patience.runs > 0:
        result = await attempt()
        if result is None:
            patience.runs -= 1
        elif not isinstance(result, Failure):
            return result
        elif result.trouble not in (Trouble.UNIQUE, Trouble.DEFERRABLE):
            await patience.recover(place, result)
        else:
            patience.causes -= 1
            await _explained(place, result, look, provider(), patience)
    raise OutcomeUnknown if patience.ambiguous else StoreBusy


async def _explained(
    place: Place, violation: Failure, look: Callable[..., Obstacle[UserId, LinkId]], provider: str, patience: Patience
) -> Answer[UserId, LinkId] | None:
    """Find out what a unique violation means: a conflict, another run (``None``), or an error, which is raised."""
    obstacle = await place.attempt(partial(look, failure=violation))
    # A plan is stale where the table has just been changed: asked again, the database answers.
    if isinstance(obstacle, Failure) and obstacle.trouble in (Trouble.LOST, Trouble.STALE_PLAN):
        await patience.recover(place, obstacle)
        return None
    if isinstance(obstacle, Failure) and obstacle.sqlstate == CATALOGUE_MOVED and patience.causes > 0:
        return None
    if isinstance(obstacle, Failure):
        _raise(decide.after_lookup_failure(obstacle, provider=provider, owned=place.owned))
    verdict = decide.after_violation(violation, obstacle, provider=provider, causes=patience.causes, owned=place.owned)
    if verdict is Step.CONFLICT:
        return Answer(arm=Arm.CONFLICT, account=obstacle.owner, version=obstacle.version, table=obstacle.table)
    if isinstance(verdict, BaseException):
        _raise(verdict)
    return None


async def _explain_absence(place: Place, failure: Failure) -> None:
    """Say so if a table of ours is missing; an application's own, which a trigger writes, is the application's."""
    absent = await place.attempt(partial(absent_tables, tables=place.tables))
    if isinstance(absent, Failure) or not absent:
        return
    named = ", ".join(repr(name) for name in absent)
    error = ConfigurationError(
        f"The database has no table {named}. Make it by an Alembic migration, or by "
        "`await connection.run_sync(Base.metadata.create_all)`; if it is there, look at the database, the schema and "
        "the search_path that this connection uses."
    )
    error.__cause__ = failure.error
    _raise(error)


def _raise(error: BaseException) -> NoReturn:
    """Raise outside of any handler, so that the error has no context that would carry a statement's values."""
    raise error
