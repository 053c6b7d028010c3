"""Two stories about the bare table: which constraint broke it, and which constraints it needs.

There is no call of accountlink here. What these functions do by hand (issue, redeem, end) is only as much as it takes
to show the constraints; it is not how grants should be made. That is in ``shares.py``.
"""

import secrets
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import Executable

from examples import doctor
from examples.sharing import broken
from examples.sharing.models import PatientDoctorConnection, grants

PATIENT, DOCTOR = UUID(int=0xA1), UUID(int=0xD0)


class UnexpectedOutcome(Exception):
    """A result differs from the story."""


# -- rows by hand ------------------------------------------------------------------------------------------------------


async def add_row(engine: AsyncEngine, *, token: str) -> UUID:
    """Add the row of a token that the patient has issued, and no doctor has redeemed."""
    row_id, now = uuid4(), datetime.now(UTC)
    row = {
        "id": row_id,
        "patient_id": PATIENT,
        "access_token": token,
        "token_expires_at": now + timedelta(days=7),
        "created_at": now,
    }
    await _run(engine, insert(PatientDoctorConnection).values(row))
    return row_id


async def give_to_doctor(engine: AsyncEngine, row_id: UUID) -> None:
    """Write the doctor into a row, as `redeem` does."""
    row = update(PatientDoctorConnection).where(PatientDoctorConnection.id == row_id)
    await _run(engine, row.values(doctor_id=DOCTOR))


async def end(engine: AsyncEngine, row_id: UUID) -> None:
    """End a row: it stays, because the system must know who had access to what and when."""
    row = update(PatientDoctorConnection).where(PatientDoctorConnection.id == row_id)
    await _run(engine, row.values(is_active=False))


async def _run(engine: AsyncEngine, statement: Executable) -> None:
    async with engine.begin() as connection:
        await connection.execute(statement)


# -- the table as it was -----------------------------------------------------------------------------------------------


async def key_on_the_pair(engine: AsyncEngine) -> None:
    """The table of ``broken.py``: the same pair a second time is refused, until the key is repaired.

    Args:
        engine: A database with the tables of ``broken.first_release``.
    """
    print("\nThe key on (patient_id, doctor_id)")
    first = await add_row(engine, token=new_token())
    await give_to_doctor(engine, first)
    await end(engine, first)
    say("a patient gives a doctor access, and ends it")

    second = await add_row(engine, token=new_token())
    refusal = await refused(give_to_doctor(engine, second))
    check("what the same pair meets", found=refusal, expected=violation(engine))
    check("accesses that are active", found=await active_accesses(engine), expected=0)
    say(f"the same patient gives the same doctor access again: {refusal}")
    say("   the token could still be made; the doctor who redeems it is refused, today and for ever")

    report = await doctor.look_at(engine, grants)
    causes = {(finding.rule, finding.object) for finding in report.findings}
    check("what the doctor finds", found=("stale-unique", broken.PAIR_KEY) in causes, expected=True)
    say(f"accountlink doctor: stale-unique, {broken.PAIR_KEY} (patient_id, doctor_id)")
    for statement in await doctor.run(engine, report):
        say(f"   {statement}")
    check("what the doctor finds then", found=(await doctor.look_at(engine, grants)).findings, expected=())
    await give_to_doctor(engine, second)
    check("accesses that are active after the repair", found=await active_accesses(engine), expected=1)
    say("the same token is the doctor's now")


# -- the table as it should be -----------------------------------------------------------------------------------------


async def right_constraints(engine: AsyncEngine) -> None:
    """The table of ``models.py``: the same pair any number of times, one access at a time, no token twice."""
    print("Patients who share with doctors: the table")
    first = await add_row(engine, token=new_token())
    await give_to_doctor(engine, first)
    await end(engine, first)
    second = await add_row(engine, token=new_token())
    await give_to_doctor(engine, second)
    check("accesses that are active", found=await active_accesses(engine), expected=1)
    say("the same patient gives the same doctor access twice, one after the other: two rows, the second is active")

    token = new_token()
    third = await add_row(engine, token=token)
    await add_row(engine, token=new_token())
    say("two more tokens wait to be redeemed: a null doctor is equal to no other")

    refusal = await refused(add_row(engine, token=token))
    check("what the same token meets", found=refusal, expected=violation(engine))
    say(f"the same token a second time: {refusal}")

    refusal = await refused(give_to_doctor(engine, third))
    check("what a second active access meets", found=refusal, expected=violation(engine))
    say(f"a second active access of the pair, by the optional index: {refusal}")

    await end(engine, second)
    await give_to_doctor(engine, third)
    check("accesses that are active in the end", found=await active_accesses(engine), expected=1)
    say("once the earlier access is ended, the later token is redeemed")


# -- how the stories look at the database ------------------------------------------------------------------------------


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(32)


async def active_accesses(engine: AsyncEngine) -> int:
    """Count the accesses that the doctor has now."""
    mine = (PatientDoctorConnection.doctor_id == DOCTOR) & PatientDoctorConnection.is_active
    async with engine.connect() as connection:
        result = await connection.execute(select(func.count()).select_from(PatientDoctorConnection).where(mine))
        return result.scalar_one()


async def refused(attempt: Awaitable[object]) -> str | None:
    """Return the database's own name for a refusal, if there was one; never its text, which carries the row."""
    try:
        await attempt
    except IntegrityError as error:
        state = getattr(error.orig, "sqlstate", None)
        return f"SQLSTATE {state}" if state else str(getattr(error.orig, "sqlite_errorname", None))
    return None


def violation(engine: AsyncEngine) -> str:
    """Return what the database calls a violated unique constraint."""
    return {"postgresql": "SQLSTATE 23505", "sqlite": "SQLITE_CONSTRAINT_UNIQUE"}[engine.dialect.name]


def check(what: str, *, found: object, expected: object) -> None:
    """Break the story off where it is not what happened."""
    if found != expected:
        raise UnexpectedOutcome(f"{what}: {found!r}, where {expected!r} was expected")


def say(line: str) -> None:
    """Print one line of the story."""
    print(f"   {line}")
