"""``diagnose``: how long it may take, what it may not do, what it leaves out, and what it raises."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import ConfigurationError, Finding, Look, Severity, StoreBusy, StoreUnavailable, diagnose
from accountlink.doctor import diagnose as module
from accountlink.doctor import reading
from accountlink.doctor.alembic import watch
from accountlink.doctor.examine import examine
from accountlink.doctor.ignoring import NAMES
from accountlink.doctor.report import Report
from tests.support.databases import Database, run_sql
from tests.support.schemas import Variation, mapping_of

STALE = "CREATE UNIQUE INDEX one_each ON links (user_id, provider)"
postgresql = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=True)


async def make(engine: AsyncEngine, *statements: str, shape: str = "exclusive", **fields: Any) -> None:
    """Make the table, by default without its key, and run further statements."""
    variation = Variation(name="diagnosed", shape=shape, **({"keys": ()} | fields))
    await run_sql(engine, *variation.statements(engine.dialect.name), *statements)


@asynccontextmanager
async def locked(engine: AsyncEngine) -> AsyncIterator[None]:
    """Hold the table as a migration does."""
    async with engine.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE links IN ACCESS EXCLUSIVE MODE")
        yield


class TestBounds:
    @postgresql
    @pytest.mark.parametrize("look", list(Look))
    async def test_a_lock_is_not_waited_for_for_ever(
        self, engine: AsyncEngine, look: Look, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a migration that holds the table a look ends in ``StoreBusy``, also one at the catalogue alone."""
        monkeypatch.setattr(reading, "LOCK_TIMEOUT", "200ms")
        await make(engine, keys=("CREATE UNIQUE INDEX k ON links {key} WHERE user_id > 0",))
        async with locked(engine):
            with pytest.raises(StoreBusy) as raised:
                await diagnose(engine, mapping_of("exclusive"), look=look)
        assert "55P03" == raised.value.sqlstate

    @postgresql
    async def test_an_engine_that_commits_each_statement(
        self, database: Database, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An engine in AUTOCOMMIT has the same bound, and stays in AUTOCOMMIT."""
        monkeypatch.setattr(reading, "LOCK_TIMEOUT", "200ms")
        await make(engine, keys=("CREATE UNIQUE INDEX k ON links {key} WHERE user_id > 0",))
        alone = database.engine(isolation_level="AUTOCOMMIT")
        async with locked(engine):
            with pytest.raises(StoreBusy):
                await diagnose(alone, mapping_of("exclusive"))
        async with alone.connect() as connection:
            await connection.exec_driver_sql("CREATE TABLE left_behind (id integer)")
        await run_sql(engine, "DROP TABLE left_behind")

    @postgresql
    async def test_what_the_server_sets_stays(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bound that the role or the connection has of its own counts, and nothing stays on the connection."""
        everything = await self._bounds(database, monkeypatch, look=Look.EVERYTHING)
        catalogue = await self._bounds(database, monkeypatch, look=Look.CATALOGUE)
        own = await self._bounds(database, monkeypatch, look=Look.CATALOGUE, lock="7s", statement="8s")

        assert [("0", "0"), ("5s", "0"), ("0", "0")] == everything
        assert [("0", "0"), ("5s", "10s"), ("0", "0")] == catalogue
        assert [("7s", "8s")] * 3 == own

    async def _bounds(
        self,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        *,
        look: Look,
        lock: str = "0",
        statement: str = "0",
    ) -> list[tuple[str, str]]:
        """The bounds of an engine's one connection, before a look, during it and after it."""
        seen: list[tuple[str, str]] = []

        def note(connection: sa.Connection) -> None:
            names = "current_setting('lock_timeout'), current_setting('statement_timeout')"
            lock, statement = connection.exec_driver_sql(f"SELECT {names}").one()
            seen.append((lock, statement))

        def looking(connection: sa.Connection, *arguments: Any, **options: Any) -> Report:
            note(connection)
            return examine(connection, *arguments, **options)

        monkeypatch.setattr(module, "examine", looking)
        engine = database.engine(pool_size=1, max_overflow=0)
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"SET lock_timeout = '{lock}'")
            await connection.exec_driver_sql(f"SET statement_timeout = '{statement}'")
            await connection.run_sync(note)
        await diagnose(engine, mapping_of("exclusive"), look=look)
        async with engine.connect() as connection:
            await connection.run_sync(note)
        await engine.dispose()
        return seen

    @postgresql
    @pytest.mark.parametrize("isolation", [None, "AUTOCOMMIT"])
    async def test_it_cannot_write(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, isolation: str | None
    ) -> None:
        """The server itself refuses a write in the doctor's transaction, whatever the engine's isolation level."""

        def writing(connection: sa.Connection, *_: Any, **__: Any) -> Report:
            connection.exec_driver_sql("CREATE TABLE written (id integer)")
            raise AssertionError

        monkeypatch.setattr(module, "examine", writing)
        options = {} if isolation is None else {"isolation_level": isolation}
        with pytest.raises(StoreUnavailable) as raised:
            await diagnose(database.engine(**options), mapping_of("exclusive"))
        assert raised.value.is_read_only


class TestIgnore:
    async def test_findings_that_were_accepted_are_left_out(self, engine: AsyncEngine) -> None:
        """A rule is left out, or what it finds about one object or one table; the others stay."""
        await make(engine, STALE)
        mapping = mapping_of("exclusive")

        async def rules(*ignore: str) -> list[str]:
            return [finding.rule for finding in await diagnose(engine, mapping, ignore=ignore)]

        assert ["missing-key", "stale-unique"] == await rules()
        assert ["missing-key"] == await rules("stale-unique")
        assert ["missing-key"] == await rules("stale-unique:one_each")
        assert ["missing-key", "stale-unique"] == await rules("stale-unique:two_each", "duplicates")
        assert ["stale-unique"] == await rules("missing-key:links")
        assert [] == await rules("missing-key", "stale-unique")

    @pytest.mark.parametrize("ignore", [["no-such-rule"], ["stale-unique:"], "stale-unique", [""]])
    async def test_no_rule_of_that_name(self, engine: AsyncEngine, ignore: Any) -> None:
        """A wrong rule name is an error that names the existing rules."""
        with pytest.raises(ConfigurationError):
            await diagnose(engine, mapping_of("exclusive"), ignore=ignore)
        assert 15 == len(NAMES)

    async def test_a_table_that_is_not_there_is_told(self, engine: AsyncEngine) -> None:
        """Nothing was looked at, so that nothing can have been accepted."""
        assert 1 == len(await diagnose(engine, mapping_of("exclusive"), ignore=["missing-key"]))

    @pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
    async def test_an_engine_that_is_not_tuned(self, database: Database, engine: AsyncEngine) -> None:
        """The finding about the engine can be accepted as well; the table is looked at in any case."""
        await make(engine)
        untuned = database.untuned()
        found = await diagnose(untuned, mapping_of("exclusive"), ignore=["unsafe-pooling"])
        assert ["missing-key"] == [finding.rule for finding in found]
        assert 2 == len(await diagnose(untuned, mapping_of("exclusive")))

    @pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
    @pytest.mark.parametrize(
        ("severity", "rules"), [(Severity.ERROR, ["unsafe-pooling"]), (Severity.WARNING, ["missing-key"])]
    )
    async def test_answers_that_may_be_somebody_elses(
        self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, severity: Severity, rules: list[str]
    ) -> None:
        """A pooler that mixes up statements is reported even if ignored; after a suspicion it continues."""

        async def check_pooling(_: object) -> Finding:
            return Finding(
                rule="unsafe-pooling", severity=severity, table="", object=None, columns=(), message="", fix=""
            )

        await make(engine)
        monkeypatch.setattr(module, "check_pooling", check_pooling)
        found = await diagnose(engine, mapping_of("exclusive"), ignore=["unsafe-pooling"])
        assert rules == [finding.rule for finding in found]
        assert ["unsafe-pooling"] == [finding.rule for finding in await diagnose(engine, mapping_of("exclusive"))]


class TestIgnoreInAlembic:
    @staticmethod
    async def _diffs(engine: AsyncEngine, metadata: sa.MetaData) -> list[Any]:
        def compare(connection: sa.Connection) -> list[Any]:
            found: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
            return [diff[1:4] for diff in found if diff[0] == "accountlink"]

        async with engine.connect() as connection:
            return await connection.run_sync(compare)

    async def test_what_was_accepted_is_no_difference(self, engine: AsyncEngine) -> None:
        """``alembic check`` ignores the findings that ``watch`` ignores, and fails for the others."""
        await make(engine, STALE)
        metadata = sa.MetaData()
        watch(metadata, mapping_of("exclusive"), ignore=["missing-key"])
        assert [("stale-unique", "links", "one_each")] == await self._diffs(engine, metadata)
        watch(metadata, mapping_of("exclusive"), ignore=["missing-key", "stale-unique:one_each"])
        assert [] == await self._diffs(engine, metadata)

    def test_no_rule_of_that_name(self) -> None:
        """A wrong rule name raises an error when ``env.py`` calls."""
        with pytest.raises(ConfigurationError):
            watch(sa.MetaData(), mapping_of("exclusive"), ignore=["stale"])


class TestRepairLeavesOut:
    """No migration for the other findings touches what was accepted."""

    async def _look(self, engine: AsyncEngine, shape: str, *ignore: str) -> Report:
        async with engine.connect() as connection:
            return await connection.run_sync(lambda sync: examine(sync, mapping_of(shape), ignore=ignore))

    async def test_an_index_that_was_accepted(self, engine: AsyncEngine) -> None:
        """It stays, and the migration says so."""
        await make(engine, STALE)
        report = await self._look(engine, "exclusive", "stale-unique")
        assert (["missing-key"], ["stale-unique"]) == (_rules(report.findings), _rules(report.ignored))
        assert not any("DROP" in step.sql for step in report.repair.steps)
        assert "stale-unique: one_each is ignored, so it stays as it is." in report.repair.by_hand

    async def test_a_key_that_nobody_wants(self, engine: AsyncEngine) -> None:
        """It is not made, its rows are not settled, and its columns stay nullable."""
        rows = "INSERT INTO links (user_id, provider, account_id) VALUES (1, 'acme', 'a'), (2, 'acme', 'a')"
        await make(engine, rows, STALE, columns={"account_id": "text"})
        report = await self._look(engine, "exclusive", "missing-key", "duplicates")
        assert ["stale-unique"] == _rules(report.findings)
        assert ["DROP INDEX"] == [re.split(r" (?:CONCURRENTLY )?\S*one_each", s.sql)[0] for s in report.repair.steps]

    async def test_rows_that_stay_as_they_are(self, engine: AsyncEngine) -> None:
        """Where the rows stay, the key over them cannot be made either, and nothing fails half-way."""
        rows = "INSERT INTO links (user_id, provider, account_id) VALUES (1, 'acme', 'a'), (2, 'acme', 'a')"
        await make(engine, rows)
        report = await self._look(engine, "exclusive", "duplicates")
        assert (["missing-key"], ()) == (_rules(report.findings), report.repair.steps)
        assert any(text.startswith("duplicates: (provider, account_id) is ignored") for text in report.repair.by_hand)

    async def test_what_may_protect_an_accepted_key(self, engine: AsyncEngine) -> None:
        """An index that is all that half protects a key stays while that key's repair is left out."""
        columns = {"account_id": "text"}
        key = "CREATE UNIQUE INDEX k ON links (provider, account_id)"
        await make(engine, shape="exclusive-soft", columns=columns, keys=(key,))
        whole = await self._look(engine, "exclusive-soft")
        report = await self._look(engine, "exclusive-soft", "key-enforces-nothing")
        assert ["key-counts-deleted", "key-enforces-nothing"] == _rules(whole.findings)
        assert any(step.sql.startswith("DROP INDEX") for step in whole.repair.steps)
        assert () == report.repair.steps
        assert any("It may be all that protects a key" in text for text in report.repair.by_hand)

    async def test_nothing_ignored_changes_nothing(self, engine: AsyncEngine) -> None:
        """Ignoring what was not found leaves the migration as it is."""
        await make(engine, STALE)
        plain = await self._look(engine, "exclusive")
        assert plain == await self._look(engine, "exclusive", "narrow-column", "stale-unique:elsewhere")


def _rules(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.rule for finding in findings]


class TestRefused:
    @pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
    async def test_a_role_that_does_not_exist(self, database: Database) -> None:
        """A refused role, password or database is not StoreUnavailable: the error comes unchanged."""
        assert database.server is not None
        url = sa.make_url(database.url).set(username="nobody_at_all", password="canary-password")
        with pytest.raises((DBAPIError, asyncpg.PostgresError)) as raised:  # SQLAlchemy 2.1, 2.0
            await diagnose(database.engine(url=url), mapping_of("exclusive"))
        assert "28000" == getattr(getattr(raised.value, "orig", raised.value), "sqlstate", None)
        assert "canary-password" not in repr(raised.value)

    @pytest.mark.parametrize("kind", ["psycopg"], indirect=True)
    async def test_a_role_that_does_not_exist_by_psycopg(self, database: Database) -> None:
        """A refusal before a connection exists has no code in psycopg, so it is StoreUnavailable."""
        url = sa.make_url(database.url).set(username="nobody_at_all", password="canary-password")
        with pytest.raises(StoreUnavailable) as raised:
            await diagnose(database.engine(url=url), mapping_of("exclusive"))
        assert "canary-password" not in repr(raised.value)
