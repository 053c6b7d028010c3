"""The demo's four broken tables: each stops a user, the doctor says why, and after its migration nothing stops them."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.commands import accountlink
from accountlink.cli.demo import broken
from accountlink.cli.demo.broken import SYSTEMS, Examination, examine
from accountlink.cli.demo.broken_systems import TABLES
from accountlink.cli.demo.models import Base
from tests.support.databases import Database, create, rows, run_sql

STOPPED = {
    "calendar": "blocked_by_constraint on (user_id, provider), rule stale-unique",
    "platforms": "IntegrityError",
    "cloud": "blocked_by_constraint on (provider, account_id), rule key-counts-deleted",
    "sharing": "blocked_by_constraint on (patient_id, doctor_id), rule stale-unique",
}
FOUND = {
    "calendar": [("stale-unique", "accountlink_demo_broken_calendar_old_key")],
    "platforms": [("key-counts-deleted", "accountlink_demo_broken_platforms_key")],
    "cloud": [
        ("key-counts-deleted", "accountlink_demo_broken_cloud_owner_key"),
        ("key-counts-deleted", "accountlink_demo_broken_cloud_user_key"),
    ],
    "sharing": [("stale-unique", "accountlink_demo_broken_sharing_pair_key")],
}
WORKS = {"calendar": "linked, created", "platforms": "inserted", "cloud": "linked, created", "sharing": "granted"}
SLUGS = tuple(FOUND)


async def tables(engine: AsyncEngine) -> set[str]:
    """Name the tables that are in the database."""
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names()))


def outcome(attempt: str) -> str:
    """Return the outcome in the line about an attempt."""
    return attempt.rpartition(": ")[2]


def check(examination: Examination, slug: str) -> None:
    """Expect the way from a user who is stopped to one who is not."""
    assert STOPPED[slug] == outcome(examination.attempt)
    assert FOUND[slug] == [(found.rule, found.name) for found in examination.findings]
    assert () == examination.findings_after
    assert WORKS[slug] == outcome(examination.attempt_after)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, slug: str, step: str, action: Callable[[AsyncEngine], Awaitable[str]]
) -> None:
    """Let one step of a system be another action."""
    (system,) = (system for system in SYSTEMS if system.slug == slug)
    changed = replace(system, before=action) if step == "before" else replace(system, attempt=action)
    monkeypatch.setattr(broken, "SYSTEMS", (changed,))


class TestExamination:
    @pytest.mark.each_driver
    @pytest.mark.parametrize("slug", SLUGS)
    async def test_from_stopped_to_repaired(self, engine: AsyncEngine, slug: str) -> None:
        """What stops the user is what the doctor finds, and the migration drops it by its name; no table is left."""
        await create(engine, Base.metadata)
        before = await tables(engine)
        examination = await examine(engine, slug)

        check(examination, slug)
        assert before == await tables(engine)
        for found in examination.findings:
            assert str(found.name) in examination.schema
            assert str(found.name) in found.message
            assert found.remedy
        if slug != "calendar" or engine.dialect.name == "postgresql":  # SQLite drops a constraint with its table
            statements = [line for line in examination.migration.splitlines() if " DROP " in f" {line}"]
            statements = [line for line in statements if not line.startswith("--")]
            assert all(any(str(found.name) in line for line in statements) for found in examination.findings)

    async def test_command_writes_this_migration(self, database: Database) -> None:
        """On the schema that is shown, ``accountlink doctor --emit sql`` prints the migration that is shown."""
        engine = database.engine()
        examination = await examine(engine, "cloud")
        await run_sql(engine, *(part for part in examination.schema.split(";\n") if part))
        app = "accountlink.cli.demo.broken_systems:_cloud_mapping"
        arguments = ["doctor", "--app", app, "--database-url", database.url, "--emit", "sql"]
        told = await asyncio.to_thread(CliRunner().invoke, accountlink, arguments)

        assert (1, examination.migration) == (told.exit_code, told.stdout)

    async def test_migration_shown_is_the_one_that_ran(
        self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A migration that repairs nothing leaves the user stopped, and the findings where they were."""
        monkeypatch.setattr(broken, "migration", lambda *_, **__: "-- nothing\n")
        examination = await examine(engine, "sharing")

        assert "-- nothing\n" == examination.migration
        assert FOUND["sharing"] == [(found.rule, found.name) for found in examination.findings_after]
        assert STOPPED["sharing"] == outcome(examination.attempt_after)

    async def test_unknown_system(self, engine: AsyncEngine) -> None:
        """A slug that no system has is a KeyError, and nothing is made."""
        with pytest.raises(KeyError, match="'payments'"):
            await examine(engine, "payments")
        assert set() == await tables(engine)


class TestTablesOfEarlierRuns:
    async def test_left_by_a_killed_process(self, engine: AsyncEngine) -> None:
        """A table that is still there, even one of another shape and with rows, is replaced."""
        name = "accountlink_demo_broken_calendar"
        await run_sql(engine, f"CREATE TABLE {name} (id integer, old text)", f"INSERT INTO {name} VALUES (1, 'row')")

        check(await examine(engine, "calendar"), "calendar")
        assert set() == await tables(engine)

    async def test_again_and_again(self, engine: AsyncEngine) -> None:
        """Each examination begins anew, on connections that know the table of the one before."""
        for slug in SLUGS * 2:
            check(await examine(engine, slug), slug)


class TestFailures:
    @pytest.mark.parametrize("step", ["before", "attempt"])
    async def test_user_meets_a_database_error(
        self, engine: AsyncEngine, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error that is no refusal by a key comes through, and the table is dropped."""

        async def without_its_column(engine: AsyncEngine) -> str:
            await run_sql(engine, "SELECT no_such_column FROM accountlink_demo_broken_cloud")
            return "never"

        stand_in(monkeypatch, "cloud", step, without_its_column)

        with pytest.raises(DBAPIError, match="no_such_column"):
            await examine(engine, "cloud")
        assert set() == await tables(engine)

    @pytest.mark.each_driver
    async def test_migration_breaks_off(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A migration that fails inside its transaction leaves no table, and no connection that is inside one."""
        begin = "BEGIN IMMEDIATE" if engine.dialect.name == "sqlite" else "BEGIN"
        with monkeypatch.context() as patched:
            patched.setattr(broken, "migration", lambda *_, **__: f"{begin};\nSELECT no_such_column;\n")
            with pytest.raises(DBAPIError, match="no_such_column"):
                await examine(engine, "cloud")

        assert set() == await tables(engine)
        check(await examine(engine, "cloud"), "cloud")

    async def test_cancelled(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A browser that goes away interrupts no statement: the examination ends first, and then its caller does."""
        reached, ended = asyncio.Event(), asyncio.Event()

        async def for_a_moment(_: AsyncEngine) -> str:
            reached.set()
            await asyncio.sleep(0.05)
            ended.set()
            return "done"

        stand_in(monkeypatch, "sharing", "attempt", for_a_moment)
        task = asyncio.create_task(examine(engine, "sharing"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert ended.is_set()
        assert set() == await tables(engine)

    async def test_cancelled_and_without_an_end(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """An examination that does not end is broken off; its table is dropped, and the next one can begin."""
        reached = asyncio.Event()

        async def for_ever(_: AsyncEngine) -> str:
            reached.set()
            await asyncio.Event().wait()
            return "never"

        with monkeypatch.context() as patched:
            stand_in(patched, "sharing", "attempt", for_ever)
            task = asyncio.create_task(examine(engine, "sharing"))
            await reached.wait()
            assert {"accountlink_demo_broken_sharing"} == await tables(engine)
            while not task.done():  # servers cancel again what goes on after it was cancelled
                task.cancel()
                await asyncio.sleep(0.01)
            assert task.cancelled()

        assert set() == await tables(engine)
        check(await examine(engine, "sharing"), "sharing")

    async def test_cancelled_at_any_moment(self, engine: AsyncEngine) -> None:
        """Wherever the cancellation comes, also in the migration, the next examination is not disturbed."""
        for delay in range(0, 100, 20):
            task = asyncio.create_task(examine(engine, "platforms"))
            await asyncio.sleep(delay / 1000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert set() == await tables(engine)

        check(await examine(engine, "platforms"), "platforms")
        assert set() == await tables(engine)


class TestSeveralAtOnce:
    async def test_they_take_turns(self, engine: AsyncEngine) -> None:
        """Examinations at once, of one system and of all, each come to what one alone comes to."""
        slugs = [*SLUGS, *SLUGS]
        for slug, examination in zip(
            slugs, await asyncio.gather(*(examine(engine, slug) for slug in slugs)), strict=True
        ):
            check(examination, slug)
        assert set() == await tables(engine)

    async def test_the_demo_goes_on_meanwhile(self, engine: AsyncEngine) -> None:
        """Writers of the demo's other tables in one database are not disturbed, and do not disturb."""
        await create(engine, Base.metadata)

        async def write() -> None:
            for number in range(20):
                await run_sql(engine, f"INSERT INTO accountlink_demo_users (id, name) VALUES ({number}, 'Ada')")
                await asyncio.sleep(0)

        examinations = await asyncio.gather(*(examine(engine, slug) for slug in SLUGS), write())
        for slug, examination in zip(SLUGS, examinations, strict=False):
            assert isinstance(examination, Examination)
            check(examination, slug)
        assert [(20,)] == await rows(engine, "SELECT count(*) FROM accountlink_demo_users")


class TestSystems:
    def test_names_of_the_demo(self) -> None:
        """Tables, indexes and constraints have names that no application has."""
        for table in TABLES.tables.values():
            named = [table.name, *(str(index.name) for index in table.indexes)]
            named += [str(key.name) for key in table.constraints if isinstance(key, sa.UniqueConstraint)]
            assert all(name.startswith("accountlink_demo_broken_") for name in named)

    def test_stories(self) -> None:
        """Each system has a slug, a title, and two sentences."""
        assert SLUGS == tuple(system.slug for system in SYSTEMS)
        for system in SYSTEMS:
            assert system.title
            assert (2, True) == (system.story.count(". ") + 1, system.story.endswith("."))

    def test_examples_are_not_needed(self) -> None:
        """The wheel has no examples/, so the demo imports none."""
        folder = Path(broken.__file__).parent
        for name in ("broken.py", "broken_systems.py"):
            text = (folder / name).read_text(encoding="utf-8")
            assert not re.search(r"^\s*(?:from|import) examples\b", text, re.MULTILINE)
