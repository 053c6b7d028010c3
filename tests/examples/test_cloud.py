"""The example of cloud provider accounts: its program, its stories on each database, and every redirect it can give."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import ConfigurationError
from examples import doctor
from examples.cloud import main as cloud
from examples.cloud.app import notices_to_former_owners
from examples.cloud.broken import FULL_KEYS, migrate
from examples.cloud.faults import lookup_fails, owner_vanishes
from examples.cloud.models import Base, make_linker
from tests.support.databases import Database, create, rows, run_sql
from tests.support.forked import Forks

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "cloud" / "main.py"
PAGE = "https://app.example/settings/cloud"
SUCCESS = f"{PAGE}?connection=success"
EVERYTHING = "SELECT * FROM cloud_provider_accounts ORDER BY id"
KEYS = {
    "cloud_one_owner": ["provider", "provider_account_id"],
    "cloud_one_link_per_user": ["user_id", "provider", "provider_account_id"],
}

BEGINNING = r"""Ben took Ada's account over, and Ada has it back; Ben's old token: https://app\.example/settings/cloud\?error=token_superseded
20 callbacks of Ada's at once: 1 created, 19 updated, one row
Ada loads one of them again: https://app\.example/settings/cloud\?error=flow_replayed
Ben opens the address of Ada's callback: https://app\.example/settings/cloud\?error=flow_not_started_here
Ada renews that link, and signs in to another account: https://app\.example/settings/cloud\?error=account_mismatch
Ada cancels at the provider: https://app\.example/settings/cloud\?error=consent_declined
The provider is down: https://app\.example/settings/cloud\?error=provider_error
An answer without a token: https://app\.example/settings/cloud\?error=provider_error
An answer without an account id: https://app\.example/settings/cloud\?error=identity_not_proven
A token for another application: https://app\.example/settings/cloud\?error=identity_not_proven
An account id that cannot be one: https://app\.example/settings/cloud\?error=invalid_identity
A token that cannot be stored: https://app\.example/settings/cloud\?error=invalid_credentials
"""
MIDDLE = {
    True: r"""The owner's row is gone when it is looked for: tried again, https://app\.example/settings/cloud\?connection=success
The same each time: https://app\.example/settings/cloud\?error=database_inconsistency
The look-up itself fails: https://app\.example/settings/cloud\?error=database_query_failed
   neither left a row
""",
    False: r"""\(what happens when the owner's row vanishes is shown on PostgreSQL: --database-url\)
""",
}
END = r"""With full unique keys Ada disconnects, and Ben connects: https://app\.example/settings/cloud\?error=blocked_by_constraint
   uq_cloud_account on \(provider, provider_account_id\): key-counts-deleted
   accountlink doctor names both keys; the migration that it writes:
(      (CREATE UNIQUE|DROP) INDEX .*
){4}With keys WHERE is_active: https://app\.example/settings/cloud\?connection=success
"""

postgresql_only = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])


@pytest.fixture
async def tables(engine: AsyncEngine) -> None:
    """The example's table, as its model declares it."""
    await create(engine, Base.metadata)


def start(*, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the program as people do, from another folder than the repository's."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM)],
        env=environment | {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


# -- the program ------------------------------------------------------------------------------------------------------


def test_the_program_on_a_file_of_its_own(tmp_path: Path) -> None:
    """Without any option the program tells its whole story on SQLite, and leaves nothing in the folder."""
    ended = start(folder=tmp_path)
    assert (0, "") == (ended.returncode, ended.stderr)
    assert re.fullmatch(BEGINNING + MIDDLE[False] + END, ended.stdout), ended.stdout
    assert [] == list(tmp_path.iterdir())


async def test_the_program_on_a_given_database(database: Database, tmp_path: Path, forks: Forks) -> None:
    """With a URL the story is told there, and its rows stay there to be looked at; again is refused."""
    ended = forks.program(PROGRAM, "--database-url", database.url, folder=tmp_path)
    assert (0, "") == (ended.returncode, ended.stderr)
    assert re.fullmatch(BEGINNING + MIDDLE[database.is_postgresql] + END, ended.stdout), ended.stdout
    vanished = [("account-6", 1, True)] if database.is_postgresql else []
    engine = database.engine()
    found = "SELECT provider_account_id, user_id, is_active FROM cloud_provider_accounts ORDER BY 1, 2"
    before = await rows(engine, found)
    assert [
        ("account-3", 1, True),
        ("account-4", 1, True),
        *vanished,
        ("account-8", 1, False),
        ("account-8", 2, True),
        ("account-9", 1, True),
    ] == [(account, user, bool(live)) for account, user, live in before]

    again = forks.program(PROGRAM, "--database-url", database.url, folder=tmp_path)
    assert (1, "") == (again.returncode, again.stdout)
    assert "the database has a table cloud_provider_accounts already; pass an empty database\n" == again.stderr
    assert before == await rows(engine, found)


def test_a_database_that_cannot_be_used(tmp_path: Path, forks: Forks) -> None:
    """A server that does not answer, or a URL that is none: exit code 1, one line, and no password in it."""
    for url in ("postgresql+asyncpg://me:hidden@127.0.0.1:1/none", "not a URL", "mysql://me:hidden@localhost/x"):
        ended = forks.program(PROGRAM, "--database-url", url, folder=tmp_path)
        assert (1, "") == (ended.returncode, ended.stdout)
        assert re.fullmatch(r"the database cannot be used: \w+\n", ended.stderr), ended.stderr


async def test_a_key_that_does_not_fit_ends_the_program(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A migration that was not made: exit code 1, and the story breaks off before that sentence."""
    monkeypatch.setattr(doctor, "statements", lambda _script: ())
    ended = await asyncio.to_thread(cloud.main, ["--database-url", database.url])
    assert 1 == ended
    said = capsys.readouterr()
    assert "what the doctor finds then should be ()" in said.err
    assert "With keys WHERE is_active" not in said.out


# -- the stories ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tables")
async def test_back_again(engine: AsyncEngine) -> None:
    """The row moves to Ben and back to Ada, each time a version on; the first token is void after that (A18)."""
    await cloud.back_again(engine)
    found = "SELECT user_id, provider_account_id, version FROM cloud_provider_accounts"
    assert [(1, "account-9", 3)] == await rows(engine, found)


@pytest.mark.usefixtures("tables")
async def test_race(engine: AsyncEngine) -> None:
    """Parallel callbacks of one user leave one row."""
    await cloud.race(engine)
    assert [(1, "account-3")] == await rows(engine, "SELECT user_id, provider_account_id FROM cloud_provider_accounts")


@pytest.mark.usefixtures("tables")
async def test_mix_ups(engine: AsyncEngine) -> None:
    """A callback in another user's browser, and an account that is not the link's, leave Ada's one row as it is."""
    await cloud.mix_ups(engine)
    assert [(1, "account-4")] == await rows(engine, "SELECT user_id, provider_account_id FROM cloud_provider_accounts")


@pytest.mark.usefixtures("tables")
async def test_refusals(engine: AsyncEngine) -> None:
    """No answer of the provider that proves nothing leaves a row."""
    await cloud.refusals(engine)
    assert [] == await rows(engine, EVERYTHING)


@pytest.mark.usefixtures("tables")
async def test_full_keys(engine: AsyncEngine) -> None:
    """After the migration Ada's dead row and Ben's live one stand side by side, and the keys are the model's."""
    await cloud.full_keys(engine)
    found = "SELECT user_id, is_active, access_token IS NULL FROM cloud_provider_accounts ORDER BY id"
    assert [(1, False, True), (2, True, False)] == [
        (user, bool(live), bool(wiped)) for user, live, wiped in await rows(engine, found)
    ]


@postgresql_only
@pytest.mark.usefixtures("tables")
async def test_faults(engine: AsyncEngine) -> None:
    """A refused link left no row, a retried one left one row, and no trigger stays."""
    await cloud.faults(engine)
    assert [("account-6",)] == await rows(engine, "SELECT provider_account_id FROM cloud_provider_accounts")
    assert [] == await rows(engine, "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert [] == await rows(engine, "SELECT proname FROM pg_proc WHERE proname LIKE 'cloud%'")


# -- the keys ---------------------------------------------------------------------------------------------------------


async def unique_keys(engine: AsyncEngine) -> dict[str, tuple[list[str], str]]:
    """Each unique key with its columns and its condition, from the catalogue."""
    if engine.dialect.name == "sqlite":
        named = await rows(engine, "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%UNIQUE%'")
    else:
        named = await rows(
            engine,
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename = 'cloud_provider_accounts' AND indexdef LIKE '%UNIQUE%' AND indexname NOT LIKE '%pkey'",
        )
    found = {}
    for name, statement in named:
        columns, _, condition = statement.rpartition("(")[2].partition(")")
        if not condition.strip() and "WHERE" in statement:  # PostgreSQL puts parentheses around some conditions
            columns, _, condition = statement.partition("(")[2].partition(")")
        found[name] = ([column.strip() for column in columns.split(",")], condition.replace("WHERE", "").strip())
    return found


@pytest.mark.usefixtures("tables")
async def test_the_migration_leads_to_the_models_keys(engine: AsyncEngine) -> None:
    """The model makes the keys for live rows; back and forth again, they are the same to the letter."""
    right = {name: (columns, "is_active") for name, columns in KEYS.items()}
    assert right == await unique_keys(engine)
    await migrate(engine, FULL_KEYS)
    full = {"uq_cloud_account": KEYS["cloud_one_owner"], "uq_cloud_user_account": KEYS["cloud_one_link_per_user"]}
    assert {name: (columns, "") for name, columns in full.items()} == await unique_keys(engine)
    await doctor.run(engine, await doctor.look_at(engine, cloud.linker))
    assert right == await unique_keys(engine)


@pytest.mark.usefixtures("tables")
async def test_ones_own_dead_row_is_restored_under_either_keys(engine: AsyncEngine) -> None:
    """Ada comes back to what Ada had disconnected, whichever the keys are: the same row, under its id."""
    for keys in ((), FULL_KEYS):
        await migrate(engine, keys)
        assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")
        [before] = await cloud.stored(engine, "account-1")
        assert f"{PAGE}?connection=unlinked" == await cloud.press(engine, cloud.ADA, f"/{before['id']}/unlink")
        assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")
        found = "SELECT id, user_id, is_active FROM cloud_provider_accounts"
        [(link_id, user, live)] = await rows(engine, found)
        assert (before["id"], 1, True) == (link_id, user, bool(live))


# -- the callback -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tables")
async def test_first_link_and_reconnect(engine: AsyncEngine) -> None:
    """Twice the same callback is one live row of Ada's, at its first version, with the new tokens."""
    assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")
    [before] = await cloud.stored(engine, "account-1")
    assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")
    [after] = await cloud.stored(engine, "account-1")
    assert (before["id"], 1) == (after["id"], after["user_id"])
    assert before["access_token"] != after["access_token"]
    found = "SELECT user_id, provider, provider_account_id, account_email, scopes, version, is_active"
    [(*row, live)] = await rows(engine, f"{found} FROM cloud_provider_accounts")
    assert [1, "google", "account-1", "account-1@example.org", "email offline_access openid", 1] == row
    assert live


@pytest.mark.usefixtures("tables")
async def test_conflict(engine: AsyncEngine) -> None:
    """Ben's conflict with Ada leaves Ada's row alone in the table, and every column of it as it was."""
    await cloud.connect(engine, cloud.ADA, "account-2")
    before = await cloud.stored(engine, "account-2")
    url = await cloud.connect(engine, cloud.BEN, "account-2")
    assert f"{PAGE}?error=ownership_conflict#transfer_token=" == url.removesuffix(cloud.token_in(url))
    assert cloud.token_in(url)
    assert before == await cloud.stored(engine, "account-2")
    found = "SELECT user_id, provider_account_id, version FROM cloud_provider_accounts"
    assert [(1, "account-2", 1)] == await rows(engine, found)


@pytest.mark.usefixtures("tables")
async def test_taking_over(engine: AsyncEngine) -> None:
    """The token moves the row to Ben, once and to nobody else, without Ada's tokens; Ada gets the one notice."""
    await cloud.connect(engine, cloud.ADA, "account-9")
    token = cloud.token_in(await cloud.connect(engine, cloud.BEN, "account-9"))
    [before] = await cloud.stored(engine, "account-9")
    refused = await cloud.press(engine, cloud.ADA, "/transfer", transfer_token=token)
    assert f"{PAGE}?error=token_for_another_user" == refused
    assert [before] == await cloud.stored(engine, "account-9")

    assert SUCCESS == await cloud.press(engine, cloud.BEN, "/transfer", transfer_token=token)
    [after] = await cloud.stored(engine, "account-9")
    assert (before["id"], cloud.BEN) == (after["id"], after["user_id"])
    assert (None, None) == (after["access_token"], after["refresh_token"])

    assert SUCCESS == await cloud.press(engine, cloud.BEN, "/transfer", transfer_token=token)
    assert [after] == await cloud.stored(engine, "account-9")
    notices = [notice async for notice in notices_to_former_owners(cloud.linker, engine)]
    assert [(cloud.ADA, before["id"])] == notices


@postgresql_only
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("times", [1, 2])
async def test_an_owner_who_vanishes_is_a_success_in_the_end(engine: AsyncEngine, times: int) -> None:
    """Refused by a row that is gone when it is looked for, the link is written again."""
    async with owner_vanishes(engine, times=times):
        assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")
    assert [(1, "account-1")] == await rows(engine, "SELECT user_id, provider_account_id FROM cloud_provider_accounts")


@postgresql_only
@pytest.mark.usefixtures("tables")
async def test_an_owner_who_always_vanishes_is_an_inconsistency(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Bounded retries, then a word of its own for the user, and an error with the index's name for the operator."""
    async with owner_vanishes(engine, times=1_000):
        assert f"{PAGE}?error=database_inconsistency" == await cloud.connect(engine, cloud.ADA, "account-1")
    assert [] == await rows(engine, EVERYTHING)
    assert [logging.ERROR] == [record.levelno for record in caplog.records if record.name == "accountlink.web"]
    assert "'cloud_one_owner'" in caplog.text


@postgresql_only
@pytest.mark.usefixtures("tables")
async def test_a_look_up_that_fails_is_a_failed_query(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """That nothing is known of the owner is not said to be a conflict; the log has the server's code."""
    async with owner_vanishes(engine, times=1_000):
        with lookup_fails(engine):
            assert f"{PAGE}?error=database_query_failed" == await cloud.connect(engine, cloud.ADA, "account-1")
    assert [] == await rows(engine, EVERYTHING)
    assert "SQLSTATE 22012" in caplog.text
    assert "account-1" not in caplog.text
    assert SUCCESS == await cloud.connect(engine, cloud.ADA, "account-1")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_that_does_not_answer(driver: str) -> None:
    """Any other error of accountlink's gives its own code, too."""
    engine = create_async_engine(f"postgresql+{driver}://nobody@127.0.0.1:1/none")
    try:
        assert f"{PAGE}?error=store_unavailable" == await cloud.connect(engine, cloud.ADA, "account-1")
    finally:
        await engine.dispose()


@pytest.mark.usefixtures("tables")
async def test_a_page_with_a_query(engine: AsyncEngine) -> None:
    """The page's own query stays, whatever the outcome."""
    page = f"{PAGE}?tab=accounts"
    urls = [await cloud.connect(engine, user, "account-1", page=page) for user in (cloud.ADA, cloud.BEN)]
    cloud.provider.fail_next("token", status=503)
    urls.append(await cloud.connect(engine, cloud.ADA, "account-1", page=page))
    endings = ["connection=success", "error=ownership_conflict", "error=provider_error"]
    assert [f"{page}&{ending}" for ending in endings] == [url.partition("#")[0] for url in urls]


@pytest.mark.usefixtures("tables")
async def test_nothing_secret_is_logged(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells the operator who owns the account, and neither tokens nor addresses; the URL tells no owner."""
    caplog.set_level(logging.DEBUG, logger="accountlink.web")
    await cloud.connect(engine, 4711, "account-1")
    url = await cloud.connect(engine, 4712, "account-1")
    assert "user 4712, google: the account is linked to user 4711" in caplog.messages
    assert "4711" not in url.partition("#")[0]
    [row] = await cloud.stored(engine, "account-1")
    for secret in (cloud.token_in(url), row["access_token"], row["refresh_token"], row["account_email"]):
        assert secret not in caplog.text


@pytest.mark.usefixtures("tables")
async def test_a_violation_of_something_else_is_not_given_a_code(engine: AsyncEngine) -> None:
    """A bug in the application's own table surfaces as what it is, and is never called a failed reconnect."""
    await run_sql(engine, "CREATE TABLE logins (account text UNIQUE)", "INSERT INTO logins VALUES ('account-1')")
    note = "INSERT INTO logins VALUES (new.provider_account_id);"
    trigger = ["CREATE TRIGGER note AFTER INSERT ON cloud_provider_accounts "]
    if engine.dialect.name == "sqlite":
        trigger[0] += f"BEGIN {note} END"
    else:
        trigger[0] += "FOR EACH ROW EXECUTE FUNCTION note()"
        trigger.insert(
            0, f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {note} RETURN new; END $$"
        )
    await run_sql(engine, *trigger)
    with pytest.raises(DBAPIError):
        await cloud.connect(engine, cloud.ADA, "account-1")
    assert [] == await rows(engine, EVERYTHING)


def test_the_linker_signs_with_the_given_secrets() -> None:
    """Secrets that are too short are refused at start-up."""
    with pytest.raises(ConfigurationError, match="32 bytes"):
        make_linker("too short")
