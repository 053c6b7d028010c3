"""examples/calendar runs, tells the truth, and leaves the rows that it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import BlockedByConstraint, Change
from examples.calendar import broken, main, models, story
from tests.support.databases import Database, create, rows, run_sql
from tests.support.forked import Forks

PROGRAM = Path(__file__).parents[2] / "examples" / "calendar" / "main.py"
KEYS = """
    SELECT conname FROM pg_constraint WHERE conrelid = 'calendar_connections'::regclass AND contype = 'u'
"""
STORY = """\
Several calendars of one user
   created: Ada's google calendar ada@example.com
   created: Ada's google calendar ada.work@example.com
   created: Ada's microsoft calendar ada@example.com
   created: Ada's microsoft calendar ada@school.example.com
   updated: Ada reconnects Ada@Example.COM; it is ada@example.com, and the same row
      it holds the new access token, and still the refresh token, which came only with the first consent
   created: Bob connects the same mailbox, as PER_USER allows; Ada's row stays Ada's
   deleted: Ada disconnects ada.work@example.com; the row is gone, and its tokens with it
   left to Ada: google ada@example.com, microsoft ada@example.com, microsoft ada@school.example.com

The old constraint that a migration missed
   the migration succeeds: {silent_drop}
      no such name, and IF EXISTS says nothing: calendar_connections_user_provider_unique (user_id, provider) is still there
   created: Ada's google calendar ada@example.com
   blocked_by_constraint: Ada's second google calendar; no row was changed
      constraint calendar_connections_user_provider_unique, columns user_id, provider, rule stale-unique
   accountlink doctor: stale-unique, calendar_connections_user_provider_unique (user_id, provider)
      {true_drop}
   a second look finds nothing, and no row was changed
   created: Ada's google calendar ada.work@example.com
"""  # noqa: E501  # what is printed
ON_SQLITE = STORY.format(
    silent_drop="DROP INDEX IF EXISTS calendar_connections_user_id_provider_key",
    true_drop="DROP INDEX calendar_connections_user_provider_unique",
)
ON_POSTGRESQL = STORY.format(
    silent_drop=(
        "ALTER TABLE calendar_connections DROP CONSTRAINT IF EXISTS calendar_connections_user_id_provider_key"
    ),
    true_drop="ALTER TABLE calendar_connections DROP CONSTRAINT calendar_connections_user_provider_unique",
)


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
    """Without any option it tells both stories on SQLite, and leaves nothing behind."""
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
    linked = await story.connect(
        engine, user_id="real", identity=story.google("real@example.com"), tokens=story.first_consent("real")
    )
    done = forks.program(PROGRAM, "--database-url", database.url, folder=tmp_path)
    assert (1, "") == (done.returncode, done.stdout)
    assert "the database has calendar_connections already; give an empty one" in done.stderr
    assert [(linked.account.id,)] == await rows(engine, "SELECT id FROM calendar_connections")


def test_another_outcome_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that differs from the story is reported on stderr, and the program exits with 1."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(story, "later_consent", story.first_consent)  # brings a refresh token after all
    assert 1 == main.main()
    assert (
        "This is not how the story goes. UnexpectedOutcome: the tokens after the reconnect" in capsys.readouterr().err
    )


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_database_that_is_not_there_ends_with_1(tmp_path: Path, forks: Forks, driver: str) -> None:
    """A database that cannot be reached is said in one line, without a traceback."""
    url = f"postgresql+{driver}://nobody@127.0.0.1:9/none"
    done = forks.program(PROGRAM, "--database-url", url, folder=tmp_path)
    assert (1, 1) == (done.returncode, done.stderr.count("\n"))
    assert done.stderr.startswith("The database could not be used: ")


async def test_the_rows_of_several_accounts(engine: AsyncEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """After the story the table holds Ada's three mailboxes and Bob's one, in normal form, with the right tokens."""
    await create(engine, models.Base.metadata)
    await story.several_accounts(engine)
    assert [
        ("user_ada", "google", "ada@example.com", "fake-access-1b", "fake-refresh-1", "calendar.read calendar.write"),
        ("user_ada", "microsoft", "ada@example.com", "fake-access-3", "fake-refresh-3", "calendar.read calendar.write"),
        (
            "user_ada",
            "microsoft",
            "ada@school.example.com",
            "fake-access-4",
            "fake-refresh-4",
            "calendar.read calendar.write",
        ),
        ("user_bob", "google", "ada@example.com", "fake-access-5", "fake-refresh-5", "calendar.read calendar.write"),
    ] == await rows(
        engine,
        "SELECT user_id, provider, email, access_token, refresh_token, scopes FROM calendar_connections"
        " WHERE token_expires_at IS NOT NULL AND created_at <= updated_at ORDER BY user_id, provider, email",
    )
    assert "fake-" not in capsys.readouterr().out


async def test_the_story_of_the_stale_constraint(engine: AsyncEngine) -> None:
    """From the broken schema: both mailboxes are there in the end, and the old constraint is not."""
    await create(engine, broken.first_release)
    await story.stale_constraint(engine)
    assert [("ada.work@example.com",), ("ada@example.com",)] == await rows(
        engine, "SELECT email FROM calendar_connections WHERE user_id = 'user_ada' AND provider = 'google' ORDER BY 1"
    )
    async with engine.connect() as connection:
        assert {"calendar_connections_user_provider_email_unique": ("user_id", "provider", "email")} == (
            await broken.unique_keys(connection)
        )


async def test_the_migration_that_missed(engine: AsyncEngine) -> None:
    """The drop by the assumed name succeeds and changes nothing; the second account names the true one."""
    await create(engine, broken.first_release)
    await run_sql(engine, broken.SILENT_DROP[engine.dialect.name])
    if engine.dialect.name == "postgresql":
        assert [("calendar_connections_user_provider_unique",)] == await rows(engine, KEYS)
    await story.connect(engine, user_id="1", identity=story.microsoft("a@example.com"), tokens=story.first_consent("1"))
    before = await rows(engine, "SELECT * FROM calendar_connections")
    with pytest.raises(BlockedByConstraint) as caught:
        await story.connect(
            engine, user_id="1", identity=story.microsoft("b@example.com"), tokens=story.first_consent("2")
        )
    assert ("blocked_by_constraint", broken.TRUE_NAME, ("user_id", "provider"), "stale-unique") == (
        caught.value.code,
        caught.value.constraint,
        caught.value.columns,
        caught.value.rule,
    )
    assert before == await rows(engine, "SELECT * FROM calendar_connections")
    again = await story.connect(
        engine, user_id="1", identity=story.microsoft("A@EXAMPLE.com"), tokens=story.later_consent("3")
    )
    assert Change.UPDATED is again.change  # the old key does not disturb what it allows


async def test_the_story_notices_a_table_that_is_broken(engine: AsyncEngine) -> None:
    """On the broken schema the first story breaks off; it does not print what did not happen."""
    await create(engine, broken.first_release)
    with pytest.raises(BlockedByConstraint):
        await story.several_accounts(engine)
