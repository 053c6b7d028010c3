"""Find the cause of a unique violation: a conflict, a race, or an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from accountlink.database.patience import Patience
from accountlink.database.transactions import Place, recover
from accountlink.linking.decide import Answer, Arm, after_lookup_failure, after_violation
from accountlink.values.facts import Failure, Obstacle, Step, Trouble
from accountlink.values.outcomes import LinkId, UserId


async def explain(
    place: Place,
    violation: Failure,
    look: Callable[..., Obstacle[UserId, LinkId]],
    *,
    provider: str,
    patience: Patience,
) -> Answer[UserId, LinkId] | None:
    """Find the cause of a unique violation, and decide what follows it.

    Args:
        place: Runs the look-up.
        violation: The violation.
        look: Collects the facts behind a ``failure``, on a connection.
        provider: The provider of the account, for messages.
        patience: The attempts that are left.

    Returns:
        The conflict with the owner, or ``None``: the work is to be run again.

    Raises:
        BlockedByConstraint, OwnerLookupFailed, OwnerNotFound, RetryTransaction, StoreBusy, StoreUnavailable: See
            :func:`~accountlink.linking.decide.after_violation` and ``after_lookup_failure``.
    """
    obstacle = await place.attempt(partial(look, failure=violation))
    if isinstance(obstacle, Failure):
        # A plan is stale where the table has just been changed: asked again, the database answers.
        if obstacle.trouble in (Trouble.LOST, Trouble.STALE_PLAN):
            await recover(place, obstacle, patience)
            return None
        if patience.catalogue_moved(obstacle):
            return None
        raise after_lookup_failure(obstacle, provider=provider, owned=place.owned)
    verdict = after_violation(violation, obstacle, provider=provider, causes=patience.causes, owned=place.owned)
    if isinstance(verdict, BaseException):
        raise verdict
    if verdict is Step.CONFLICT:
        return Answer(arm=Arm.CONFLICT, account=obstacle.owner, version=obstacle.version, table=obstacle.table)
    return None
