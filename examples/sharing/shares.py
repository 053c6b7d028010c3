"""Show the application's code and its results: a patient gives doctors access, and revokes it.

The table is that of ``models.py``, as it is; ``ShareGrants`` is told which of its columns plays which part.
"""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AlreadyGranted, Granted, GrantRejected, Revoked, ShareGrants
from examples.sharing.models import grants
from examples.sharing.story import DOCTOR, PATIENT, active_accesses, check, say

OTHER_DOCTOR = UUID(int=0xD1)
WEEK = timedelta(days=7)


class Calendar:
    """A clock that the story turns; without one, PostgreSQL's own decides."""

    def __init__(self) -> None:
        self.today = datetime(2026, 1, 5, 9, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the present moment of the story."""
        return self.today

    def turn(self, by: timedelta) -> None:
        """Move the clock forward."""
        self.today += by


async def tokens_that_work_once(engine: AsyncEngine) -> None:
    """Issue, redeem, share again, revoke and expire, on the table of ``models.py``.

    Args:
        engine: A database with that table, empty.
    """
    calendar = Calendar()
    shares = ShareGrants(grants, clock=calendar)
    print("\nA patient shares")

    issued = await shares.issue(engine, grantor_id=PATIENT, expires_in=WEEK)
    say(
        f"the patient gets a token of {len(issued.token)} characters to hand on; until it is redeemed nobody has access"
    )
    check("accesses before it is redeemed", found=len(await shares.active(engine, grantor_id=PATIENT)), expected=0)

    await refused_alike(shares.redeem(engine, "a guess", grantee_id=OTHER_DOCTOR))
    say(f"a doctor who guesses: {GrantRejected.code}")
    await refused_alike(shares.redeem(engine, issued.token, grantee_id=PATIENT))
    say(f"the patient's own try: {GrantRejected.code}")

    first = await shares.redeem(engine, issued.token, grantee_id=DOCTOR)
    check("what the doctor gets", found=isinstance(first, Granted), expected=True)
    again = await shares.redeem(engine, issued.token, grantee_id=DOCTOR)
    check("what the doctor gets again", found=again, expected=AlreadyGranted(grant=first.grant))
    say(f"the doctor redeems it: {first.code}; the doctor clicks twice: {again.code}")
    await refused_alike(shares.redeem(engine, issued.token, grantee_id=OTHER_DOCTOR))
    say(f"another doctor with the same token: {GrantRejected.code}")

    later = await shares.issue(engine, grantor_id=PATIENT, expires_in=2 * WEEK)
    second = await shares.redeem(engine, later.token, grantee_id=DOCTOR)
    check("accesses of the pair", found=await active_accesses(engine), expected=1)
    say(f"the same patient shares with the same doctor again: {second.code}, and the earlier access has ended")

    revoked = await shares.revoke(engine, grantor_id=PATIENT, grant_id=second.grant.id)
    check("what revoking comes to", found=isinstance(revoked, Revoked), expected=True)
    check("accesses after that", found=list(await shares.active(engine, grantee_id=DOCTOR)), expected=[])
    await refused_alike(shares.redeem(engine, later.token, grantee_id=DOCTOR))
    say(f"the patient revokes it: {revoked.code}; the doctor's token: {GrantRejected.code}")

    third = await shares.issue(engine, grantor_id=PATIENT, expires_in=WEEK)
    await shares.redeem(engine, third.token, grantee_id=DOCTOR)
    waiting = await shares.issue(engine, grantor_id=PATIENT, expires_in=WEEK)
    calendar.turn(WEEK)
    check("accesses a week later", found=list(await shares.active(engine, grantee_id=DOCTOR)), expected=[])
    await refused_alike(shares.redeem(engine, waiting.token, grantee_id=OTHER_DOCTOR))
    say(f"a third access, and a token that waits: a week later the one is over, the other {GrantRejected.code}")
    ended = [await shares.expire(engine), await shares.expire(engine)]
    check("rows that expired", found=ended, expected=[2, 0])
    say(f"expire() marks {ended[0]} rows; nothing hangs on when it runs")


async def refused_alike(attempt: Awaitable[object]) -> None:
    """Stop the story if a token is redeemed that must be refused."""
    try:
        outcome = await attempt
    except GrantRejected:
        return
    check("what is redeemed in vain", found=outcome, expected=GrantRejected.code)
