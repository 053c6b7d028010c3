"""examples/sharing runs and tells the truth about the constraints of its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.sharing import broken, main, models, shares, story
from tests.support.databases import Database, create, rows, run_sql
from tests.support.forked import Forks

PROGRAM = Path(__file__).parents[2] / "examples" / "sharing" / "main.py"
STORY = """\
Patients who share with doctors: the table
   the same patient gives the same doctor access twice, one after the other: two rows, the second is active
   two more tokens wait to be redeemed: a null doctor is equal to no other
   the same token a second time: {violation}
   a second active access of the pair, by the optional index: {violation}
   once the earlier access is ended, the later token is redeemed

A patient shares
   the patient gets a token of 43 characters to hand on; until it is redeemed nobody has access
   a doctor who guesses: grant_rejected
   the patient's own try: grant_rejected
   the doctor redeems it: granted; the doctor clicks twice: already_granted
   another doctor with the same token: grant_rejected
   the same patient shares with the same doctor again: granted, and the earlier access has ended
   the patient revokes it: revoked; the doctor's token: grant_rejected
   a third access, and a token that waits: a week later the one is over, the other grant_rejected
   expire() marks 2 rows; nothing hangs on when it runs

The key on (patient_id, doctor_id)
   a patient gives a doctor access, and ends it
   the same patient gives the same doctor access again: {violation}
      the token could still be made; the doctor who redeems it is refused, today and for ever
   accountlink doctor: stale-unique, patient_doctor_connections_patient_id_doctor_id_key (patient_id, doctor_id)
{repair}
   the same token is the doctor's now
"""
ON_SQLITE = STORY.format(
    violation="SQLITE_CONSTRAINT_UNIQUE",
    repair="""\
      DROP INDEX patient_doctor_connections_patient_id_doctor_id_key
      CREATE UNIQUE INDEX patient_doctor_connections_one_active ON patient_doctor_connections (patient_id, doctor_id) WHERE is_active""",  # noqa: E501  # what is printed
)
ON_POSTGRESQL = STORY.format(
    violation="SQLSTATE 23505",
    repair="""\
      CREATE UNIQUE INDEX CONCURRENTLY patient_doctor_connections_one_active ON patient_doctor_connections (patient_id, doctor_id) WHERE is_active
      ALTER TABLE patient_doctor_connections DROP CONSTRAINT patient_doctor_connections_patient_id_doctor_id_key""",  # noqa: E501  # as above
)
COLUMNS = "id, patient_id, doctor_id, access_token, token_expires_at, is_active, created_at"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the program as people do, in a process of its own and from another folder."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), *options],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_the_program_tells_its_story(tmp_path: Path) -> None:
    """Without any option it tells its stories on SQLite, and leaves nothing behind."""
    done = run(tmp_path)
    assert (0, ON_SQLITE, "") == (done.returncode, done.stdout, done.stderr)
    assert [] == list(tmp_path.iterdir())


async def test_the_program_on_a_given_database(database: Database, tmp_path: Path, forks: Forks) -> None:
    """On a database of one's own it tells the same, takes its tables away again, and can be run twice."""
    expected = ON_POSTGRESQL if database.is_postgresql else ON_SQLITE
    for _ in range(2):
        done = forks.program(PROGRAM, "--database-url", database.url, folder=tmp_path)
        assert (0, expected, "") == (done.returncode, done.stdout, done.stderr)


async def test_a_table_that_is_there_is_not_touched(database: Database, tmp_path: Path, forks: Forks) -> None:
    """Where the table exists already, perhaps with real rows, the program refuses."""
    engine = database.engine()
    await create(engine, models.Base.metadata)
    await story.add_row(engine, token="real")
    done = forks.program(PROGRAM, "--database-url", database.url, folder=tmp_path)
    assert (1, "") == (done.returncode, done.stdout)
    assert "the database has patient_doctor_connections already; give an empty one" in done.stderr
    assert [("real",)] == await rows(engine, "SELECT access_token FROM patient_doctor_connections")


def test_another_outcome_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that differs from the story is reported on stderr, and the program exits with 1."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(broken, "first_release", models.Base.metadata)  # a table that is not broken
    assert 1 == main.main()
    assert "This is not how the story goes. what the same pair meets: None" in capsys.readouterr().err


async def test_the_rows_under_the_right_constraints(engine: AsyncEngine) -> None:
    """After the story three tokens of one pair were redeemed, one of them is active, and one token waits."""
    await create(engine, models.Base.metadata)
    await story.right_constraints(engine)
    count = "SELECT doctor_id IS NULL, is_active, count(*) FROM patient_doctor_connections GROUP BY 1, 2 ORDER BY 1, 2"
    found = [(bool(waits), bool(active), n) for waits, active, n in await rows(engine, count)]
    assert [(False, False, 2), (False, True, 1), (True, True, 1)] == found


async def test_the_rows_after_sharing(engine: AsyncEngine) -> None:
    """After the story all four rows have ended: three were the doctor's, one token nobody redeemed."""
    await create(engine, models.Base.metadata)
    await shares.tokens_that_work_once(engine)
    count = "SELECT doctor_id IS NULL, is_active, count(*) FROM patient_doctor_connections GROUP BY 1, 2 ORDER BY 1, 2"
    found = [(bool(waits), bool(active), n) for waits, active, n in await rows(engine, count)]
    assert [(False, False, 3), (True, False, 1)] == found


async def test_the_story_of_the_key_on_the_pair(engine: AsyncEngine) -> None:
    """From the broken schema: in the end the pair has two rows, an ended one and an active one."""
    await create(engine, broken.first_release)
    await story.key_on_the_pair(engine)
    count = (
        "SELECT is_active, count(*) FROM patient_doctor_connections WHERE doctor_id IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    assert [(False, 1), (True, 1)] == [(bool(active), n) for active, n in await rows(engine, count)]


@pytest.mark.parametrize(("schema", "refused"), [(broken.first_release, True), (models.Base.metadata, False)])
async def test_the_pair_a_second_time(engine: AsyncEngine, schema: object, refused: bool) -> None:
    """By raw SQL: the key on the pair refuses an ended access a successor, the right constraints do not."""
    assert isinstance(schema, type(broken.first_release))
    await create(engine, schema)
    insert = f"INSERT INTO patient_doctor_connections ({COLUMNS}) VALUES "
    moments = "'2026-01-01 00:00:00', {active}, '2026-01-01 00:00:00'"
    row = "('{id:032x}', '{patient:032x}', '{doctor:032x}', '{token}', " + moments + ")"
    pair = {"patient": 1, "doctor": 2}
    await run_sql(engine, insert + row.format(id=1, token="a", active="false", **pair))
    second = insert + row.format(id=2, token="b", active="true", **pair)
    if refused:
        with pytest.raises(IntegrityError):
            await run_sql(engine, second)
        return
    await run_sql(engine, second)
    for third in (
        row.format(id=3, token="c", active="true", **pair),  # a second one at the same time
        row.format(id=4, token="b", active="true", patient=3, doctor=4),  # a token of another pair
    ):
        with pytest.raises(IntegrityError):
            await run_sql(engine, insert + third)
    assert [("a",), ("b",)] == await rows(engine, "SELECT access_token FROM patient_doctor_connections ORDER BY 1")
