"""examples/platforms runs, tells the truth, and leaves the rows that it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountMismatch, Change
from examples.platforms import broken, main, models, story
from tests.support.databases import Database, create, rows, run_sql
from tests.support.forked import Forks

PROGRAM = Path(__file__).parents[2] / "examples" / "platforms" / "main.py"
STORY = """\
Pages of two organisations
   created: the bakery connects its page, with the page's own token and its name
   created: the bakery connects a second page
   created: the agency connects the bakery's page too; the bakery's row is untouched
   disconnected: the bakery's row is kept, marked as deleted, its token wiped; the agency's is untouched
   restored: the bakery connects it again: the same id, so whatever hangs on it is back, with the new token
      values= fills new rows only: the name is still the one that the row was made with
   updated: update_values= takes over the name that the page has at Meta now
   left to the bakery: 2 pages

The unique index that counts deleted rows
   the bakery connects a page and disconnects it; the dead row still occupies the key
   a bare INSERT of the same page fails: {violation}
   restored: accountlink finds the organisation's own dead row and revives it; it has nothing to insert
      so the index does not stop accountlink here; it stops everything else that inserts into the table
   accountlink doctor: key-counts-deleted, platform_connections_org_platform_account
{repair}
   a second look finds nothing, and the row is as it was
   a bare INSERT passes now (and is rolled back): it would have been a second row, under another id
   restored: accountlink gives the same answer as before, the same id
"""
ON_SQLITE = STORY.format(
    violation="SQLITE_CONSTRAINT_UNIQUE",
    repair="""\
      DROP INDEX platform_connections_org_platform_account
      CREATE UNIQUE INDEX platform_connections_live_account ON platform_connections (org_id, platform, account_id) WHERE deleted_at IS NULL""",  # noqa: E501  # what is printed
)
ON_POSTGRESQL = STORY.format(
    violation="SQLSTATE 23505",
    repair="""\
      CREATE UNIQUE INDEX CONCURRENTLY platform_connections_live_account ON cmis.platform_connections (org_id, platform, account_id) WHERE deleted_at IS NULL
      DROP INDEX CONCURRENTLY cmis.platform_connections_org_platform_account""",  # noqa: E501  # as above
)


@pytest.fixture
async def its_database(database: Database) -> AsyncIterator[Database]:
    """A fresh database, in which PostgreSQL has no schema ``cmis``: before, and afterwards."""
    drop = ("DROP SCHEMA IF EXISTS cmis CASCADE",) if database.is_postgresql else ()
    await run_sql(database.engine(), *drop)
    yield database
    await run_sql(database.engine(), *drop)


@pytest.fixture
async def engine(its_database: Database) -> AsyncEngine:
    """An engine as the system uses it, with the schema made."""
    plain = its_database.engine()
    if its_database.is_postgresql:
        await run_sql(plain, "CREATE SCHEMA cmis")
    return models.for_its_database(plain)


def table_of(engine: AsyncEngine) -> str:
    return "cmis.platform_connections" if engine.dialect.name == "postgresql" else "platform_connections"


async def stored(engine: AsyncEngine, columns: str, *, order: str = "org_id, account_id") -> list[tuple[object, ...]]:
    """Read by raw SQL; SQLite keeps a UUID as its digits."""
    found = await rows(engine, f"SELECT {columns} FROM {table_of(engine)} ORDER BY {order}")
    return [tuple(UUID(str(value)) if n == 0 else value for n, value in enumerate(row)) for row in found]


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


async def test_the_program_on_a_given_database(its_database: Database, tmp_path: Path, forks: Forks) -> None:
    """On a database of one's own it tells the same, takes its schema away again, and can be run twice."""
    expected = ON_POSTGRESQL if its_database.is_postgresql else ON_SQLITE
    for _ in range(2):
        done = forks.program(PROGRAM, "--database-url", its_database.url, folder=tmp_path)
        assert (0, expected, "") == (done.returncode, done.stdout, done.stderr)
    if its_database.is_postgresql:
        left = "SELECT nspname FROM pg_namespace WHERE nspname = 'cmis'"
        assert [] == await rows(its_database.engine(), left)


async def test_what_is_there_is_not_touched(
    engine: AsyncEngine, its_database: Database, tmp_path: Path, forks: Forks
) -> None:
    """Where the schema or the table exists already, perhaps with real rows, the program refuses."""
    await create(engine, models.Base.metadata)
    page = story.listed_by_meta("1", "Real", consent=1)
    linked = await story.connect_page(engine, org_id=UUID(int=1), page=page)
    done = forks.program(PROGRAM, "--database-url", its_database.url, folder=tmp_path)
    assert (1, "") == (done.returncode, done.stdout)
    assert "already; give an empty one" in done.stderr
    assert [(linked.account.id,)] == await stored(engine, "id")


def test_another_outcome_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A result that differs from the story is reported on stderr, and the program exits with 1."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(story, "CAFE", story.SHOP)  # no second page after all
    assert 1 == main.main()
    assert "This is not how the story goes. UnexpectedOutcome: the second page" in capsys.readouterr().err


async def test_the_rows_of_the_pages(engine: AsyncEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """After the story each organisation has its own rows, live, with their own tokens and names."""
    await create(engine, models.Base.metadata)
    await story.pages_of_organisations(engine)
    scopes = "pages_manage_posts pages_read_engagement"
    assert [
        (story.AGENCY, "meta", story.SHOP, "Example Bakery", "fake-page-token-3", scopes, None, None),
        (story.BAKERY, "meta", story.SHOP, "Example Bakery & Sons", "fake-page-token-4", scopes, None, None),
        (story.BAKERY, "meta", story.CAFE, "Example Café", "fake-page-token-2", scopes, None, None),
    ] == await stored(
        engine, "org_id, platform, account_id, account_name, page_access_token, scopes, token_expires_at, deleted_at"
    )
    assert "fake-" not in capsys.readouterr().out


async def test_disconnected_wiped_and_restored(engine: AsyncEngine) -> None:
    """A disconnect leaves the row without a token, a reconnect brings it back under its id, with its first moment."""
    await create(engine, models.Base.metadata)
    page, org = story.listed_by_meta("1", "Example", consent=1), UUID(int=1)
    first = await story.connect_page(engine, org_id=org, page=page)
    ((_, connected_at),) = await stored(engine, "id, connected_at")
    await story.disconnect(engine, org_id=org, link_id=first.account.id)
    ((row_id, token, refresh_token, scopes, deleted_at),) = await stored(
        engine, "id, page_access_token, refresh_token, scopes, deleted_at"
    )
    assert (first.account.id, None, None, None) == (row_id, token, refresh_token, scopes)
    assert deleted_at is not None
    again = await story.connect_page(engine, org_id=org, page=page)
    assert (Change.RESTORED, first.account.id) == (again.change, again.account.id)
    assert [(first.account.id, page.access_token, None, connected_at)] == await stored(
        engine, "id, page_access_token, deleted_at, connected_at"
    )


async def test_a_reconnect_of_another_page_writes_nothing(engine: AsyncEngine) -> None:
    """The reconnect button of one page cannot bring in another one."""
    await create(engine, models.Base.metadata)
    page, other = (story.listed_by_meta(n, f"Example {n}", consent=int(n)) for n in "12")
    org = UUID(int=1)
    first = await story.connect_page(engine, org_id=org, page=page)
    before = await stored(engine, "*")
    with pytest.raises(AccountMismatch) as caught:
        await story.reconnect_page(engine, org_id=org, link_id=first.account.id, page=other)
    assert ("account_mismatch", "meta") == (caught.value.code, caught.value.provider)
    assert before == await stored(engine, "*")


async def test_the_story_of_the_full_key(engine: AsyncEngine) -> None:
    """From the broken schema: one live row in the end, and one unique key, which is for live rows."""
    await create(engine, broken.first_release)
    await story.key_that_counts_deleted_rows(engine)
    assert [(story.BAKERY, story.SHOP, "fake-page-token-1", None)] == await stored(
        engine, "org_id, account_id, page_access_token, deleted_at"
    )
    query = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'cmis' AND indexname NOT LIKE '%pkey'"
        if engine.dialect.name == "postgresql"
        else "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    )
    ((name, definition),) = await rows(engine, query)
    assert "platform_connections_live_account" == name
    assert "UNIQUE" in definition
    assert "deleted_at IS NULL" in definition


async def test_the_full_key_refuses_an_insert_and_not_accountlink(engine: AsyncEngine) -> None:
    """On the broken schema a dead row stops a raw INSERT of the same page; accountlink restores that row."""
    await create(engine, broken.first_release)
    page, org = story.listed_by_meta("1", "Example", consent=1), story.BAKERY
    first = await story.connect_page(engine, org_id=org, page=page)
    await story.disconnect(engine, org_id=org, link_id=first.account.id)
    ((_, *copied),) = await rows(engine, f"SELECT * FROM {table_of(engine)}")
    table, copy = table_of(engine), "org_id, platform, account_id, connected_at, updated_at"
    new_id = UUID(int=99)
    literal = str(new_id) if engine.dialect.name == "postgresql" else new_id.hex
    with pytest.raises(IntegrityError):
        await run_sql(engine, f"INSERT INTO {table} (id, {copy}) SELECT '{literal}', {copy} FROM {table}")
    assert [tuple(copied)] == [tuple(row[1:]) for row in await rows(engine, f"SELECT * FROM {table}")]
    back = await story.connect_page(engine, org_id=org, page=page)
    assert (Change.RESTORED, first.account.id) == (back.change, back.account.id)
    other = await story.connect_page(engine, org_id=story.AGENCY, page=page)
    assert Change.CREATED is other.change
