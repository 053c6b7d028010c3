"""The doctor's queries about rows, and its answers for tables with few or no rows."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, ConfigurationError, StoreUnavailable
from accountlink.doctor.diagnose import diagnose
from accountlink.doctor.examine import Look, examine
from accountlink.doctor.findings import Finding
from accountlink.doctor.report import Report
from tests.support.databases import Database, run_sql
from tests.support.schemas import Variation, mapping_of


async def look_at(engine: AsyncEngine, shape: str, **options: Any) -> Report:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: examine(sync, mapping_of(shape), **options))


def rules(report: Report) -> list[str]:
    return [finding.rule for finding in report.findings]


def of(report: Report, rule: str) -> Finding:
    (found,) = [finding for finding in report.findings if finding.rule == rule]
    return found


async def make(engine: AsyncEngine, shape: str, *rows: str, **fields: Any) -> None:
    """Make a table without its key, and rows in it."""
    variation = Variation(name="rows", shape=shape, **({"keys": ()} | fields))
    await run_sql(engine, *variation.statements(engine.dialect.name), *rows)


def links(*rows: str, columns: str = "user_id, provider, account_id") -> str:
    return f"INSERT INTO links ({columns}) VALUES {', '.join(rows)}"


async def test_duplicates_are_counted_by_group_and_by_row(engine: AsyncEngine) -> None:
    """Three rows of one key and two of another are two groups and three rows too many; a dead row is none."""
    await make(
        engine,
        "per-user-soft",
        links("(1, 'acme', 'a')", "(1, 'acme', 'a')", "(1, 'acme', 'a')", "(2, 'acme', 'a')", "(2, 'acme', 'a')"),
        links("(3, 'acme', 'a')", "(4, 'acme', 'b')"),
        links("(3, 'acme', 'a', '2026-01-01')", columns="user_id, provider, account_id, deleted_at"),
    )
    report = await look_at(engine, "per-user-soft")
    assert ["missing-key", "duplicates"] == rules(report)
    assert of(report, "duplicates").message.startswith(
        "2 groups of live rows with equal (user_id, provider, account_id)"
    )
    assert "3 rows too many" in of(report, "duplicates").message


@pytest.mark.parametrize(
    ("tokens", "fix"),
    [
        (("a", "a"), "Decide which row of each group is right, and change or delete the others."),
        (("a", "b"), "Keep the newest row of each group, and end the others."),
    ],
)
async def test_duplicates_of_grants_are_told_as_grants(engine: AsyncEngine, tokens: tuple[str, str], fix: str) -> None:
    """No link updates a grant and no grant has a refresh token: the finding says what can be done about grants."""
    grant = "(1, {}, '{}', '2026-01-01')"
    doctors = ("NULL", "NULL") if tokens == ("a", "a") else ("2", "2")
    rows = [grant.format(doctor, token) for doctor, token in zip(doctors, tokens, strict=True)]
    columns = "patient_id, doctor_id, access_token, token_expires_at"
    await make(engine, "grants-one", links(*rows, columns=columns))
    found = of(await look_at(engine, "grants-one"), "duplicates")
    assert fix == found.fix
    assert "Links" not in found.message


async def test_the_rows_of_two_owners_are_duplicates_where_ownership_is_exclusive(engine: AsyncEngine) -> None:
    """Two users with one account are a group under EXCLUSIVE, and none under PER_USER."""
    await make(engine, "exclusive", links("(1, 'acme', 'a')", "(2, 'acme', 'a')"))
    assert "duplicates" in rules(await look_at(engine, "exclusive"))
    assert "duplicates" not in rules(await look_at(engine, "per-user"))


async def test_addresses_out_of_normal_form_are_found_and_none_is_shown(engine: AsyncEngine) -> None:
    """Capitals, full-width letters and sharp s are found, and normal ones are not; no message carries an address."""
    rows = (
        "'Ann@example.com'",
        "'ann@example.com'",
        "'\uff22\uff2f\uff22@example.com'",
        "'stra\u00dfe@example.com'",
        "'zoé@example.com'",
    )
    values = links(*(f"({n}, 'acme', {row})" for n, row in enumerate(rows)), columns="user_id, provider, email")
    await make(engine, "email", values, keys=("CREATE UNIQUE INDEX k ON links {key}",))
    report = await look_at(engine, "email")
    assert ["key-compares-differently"] == rules(report)
    found = of(report, "key-compares-differently")
    assert ("email", ("email",)) == (found.object, found.columns)
    assert found.message.startswith("In 3 rows email holds")
    assert "example.com" not in repr(report)


async def test_addresses_that_meet_in_normal_form_are_duplicates(engine: AsyncEngine) -> None:
    """Two spellings of one address are a group, although the index of the stored texts holds."""
    values = links(
        "(1, 'acme', 'Ann@example.com')", "(1, 'acme', 'ann@example.com')", columns="user_id, provider, email"
    )
    await make(engine, "email", values, keys=("CREATE UNIQUE INDEX k ON links {key}",))
    assert ["key-compares-differently", "duplicates"] == rules(await look_at(engine, "email"))


async def test_rows_with_null_in_the_key_are_counted(engine: AsyncEngine) -> None:
    """A nullable column of the key tells how many rows have NULL there, since they keep it from being NOT NULL."""
    values = links("(1, 'acme', NULL)", "(2, 'acme', NULL)", "(3, 'acme', 'a')")
    await make(
        engine, "exclusive", values, columns={"account_id": "text"}, keys=("CREATE UNIQUE INDEX k ON links {key}",)
    )
    found = of(await look_at(engine, "exclusive"), "key-enforces-nothing")
    assert ("k", ("account_id",)) == (found.object, found.columns)
    assert found.message.endswith("There are 2 rows of that kind.")


async def test_a_look_at_the_catalogue_reads_no_row(engine: AsyncEngine) -> None:
    """``Look.CATALOGUE`` never names the table in a statement's FROM, however broken its key is."""
    await make(engine, "exclusive", links("(1, 'acme', 'a')", "(2, 'acme', 'a')"))
    statements: list[str] = []
    sa.event.listen(
        engine.sync_engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement)
    )
    assert ["missing-key"] == rules(await look_at(engine, "exclusive", look=Look.CATALOGUE))
    assert statements
    assert not any("FROM links" in statement for statement in statements)


async def test_a_right_table_is_not_read_either(engine: AsyncEngine) -> None:
    """Where the key holds, nothing is left to ask the rows: a look is the catalogue's few queries."""
    await make(engine, "exclusive", keys=("CREATE UNIQUE INDEX k ON links {key}",))
    statements: list[str] = []
    sa.event.listen(
        engine.sync_engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement)
    )
    assert [] == rules(await look_at(engine, "exclusive"))
    assert not any("FROM links" in statement for statement in statements)


async def test_a_table_that_is_not_there_is_a_missing_key(engine: AsyncEngine) -> None:
    """Without its table nothing can be enforced, and the finding says that the table is missing."""
    report = await look_at(engine, "exclusive")
    assert ["missing-key"] == rules(report)
    assert "The table is not in this database" in of(report, "missing-key").message


async def test_a_column_that_is_not_there_is_named(engine: AsyncEngine) -> None:
    """A missing column of the mapping is reported, and nothing else is judged."""
    await make(engine, "exclusive", columns={"refresh_token": None})
    report = await look_at(engine, "exclusive")
    assert ["missing-key"] == rules(report)
    assert ("refresh_token",) == of(report, "missing-key").columns


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
async def test_an_invalid_index_is_found_by_its_true_name(engine: AsyncEngine) -> None:
    """An invalid index of a failed CREATE UNIQUE INDEX CONCURRENTLY is named, beside the duplicates that caused it."""
    await make(engine, "exclusive", links("(1, 'acme', 'a')", "(2, 'acme', 'a')"))
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(IntegrityError):
            await alone.exec_driver_sql("CREATE UNIQUE INDEX CONCURRENTLY half ON links (provider, account_id)")
    report = await look_at(engine, "exclusive")
    assert ["invalid-index", "duplicates"] == rules(report)
    assert "half" == of(report, "invalid-index").object


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
async def test_a_role_that_may_not_read_is_told_so(engine: AsyncEngine) -> None:
    """Without the right SELECT the doctor raises an error that says which role needs it."""
    await make(engine, "exclusive")
    await run_sql(engine, "DROP ROLE IF EXISTS blind", "CREATE ROLE blind")
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SET LOCAL ROLE blind")
            with pytest.raises(ConfigurationError) as raised:
                await connection.run_sync(lambda sync: examine(sync, mapping_of("exclusive")))
    finally:
        await run_sql(engine, "DROP ROLE blind")
    assert "The role blind may not read links" in str(raised.value)


async def test_diagnose_takes_a_linker_or_its_mapping(engine: AsyncEngine) -> None:
    """A running application asks with what it has: both give the same findings, and a second call too."""
    await make(engine, "exclusive")
    mapping = mapping_of("exclusive")
    linker: AccountLinker[Any, Any] = AccountLinker(mapping)  # type: ignore[arg-type]  # links only here
    found = await diagnose(engine, linker)
    assert ["missing-key"] == [finding.rule for finding in found]
    assert found == await diagnose(engine, mapping)


async def test_diagnose_leaves_nothing_behind(engine: AsyncEngine) -> None:
    """After a look the pool has all its connections back, and the table can be locked at once."""
    await make(engine, "exclusive")
    await diagnose(engine, mapping_of("exclusive"))
    assert 0 == engine.pool.checkedout()  # type: ignore[attr-defined]  # the pool of these engines counts
    await run_sql(engine, "DROP TABLE links")


@pytest.mark.parametrize("target", [object(), "links", None])
async def test_what_has_no_mapping_is_refused(engine: AsyncEngine, target: object) -> None:
    """A target without a mapping is refused before any SQL, by name."""
    with pytest.raises(ConfigurationError) as raised:
        await diagnose(engine, target)
    assert type(target).__name__ in str(raised.value)


async def test_what_is_no_engine_is_refused(engine: AsyncEngine) -> None:
    """A connection is refused: the doctor looks at how the engine connects."""
    async with engine.connect() as connection:
        with pytest.raises(ConfigurationError) as raised:
            await diagnose(connection, mapping_of("exclusive"))  # type: ignore[arg-type]  # on purpose
    assert "AsyncConnection" in str(raised.value)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"], indirect=True)
async def test_a_database_that_is_not_there_is_unavailable(database: Database) -> None:
    """An engine that reaches nothing gives ``StoreUnavailable``, without the URL in its text."""
    assert database.server is not None
    url = f"postgresql+{database.kind}://nobody:canary-password@127.0.0.1:9/none"
    with pytest.raises(StoreUnavailable) as raised:
        await diagnose(database.engine(url=url), mapping_of("exclusive"))
    assert "canary-password" not in repr(raised.value)
