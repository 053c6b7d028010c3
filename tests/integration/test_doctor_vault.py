"""The doctor on a table whose linker has a vault, on the table of pending credentials, and on a linker without one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import (
    AccountLinker,
    AccountMapping,
    ConfigurationError,
    CredentialVault,
    Linked,
    Look,
    OwnershipConflict,
    Plaintext,
    Severity,
    Transferred,
    VaultKey,
    diagnose,
    pending_credentials,
)
from accountlink.cli.commands import accountlink
from accountlink.doctor.alembic import watch
from accountlink.doctor.examine import examine
from accountlink.doctor.findings import Finding
from accountlink.doctor.repair.script import sql_script
from accountlink.doctor.report import Report
from accountlink.doctor.subjects import Target, targets_of
from accountlink.vault.contents import AccessToken
from accountlink.vault.envelope import Envelope, read
from tests.support.databases import Database, create, rows, run_sql
from tests.support.emitted import run_revision, run_script
from tests.support.models import EMAIL_SOFT, POLICIES, identity, make_tables, tokens
from tests.support.vaulted import KEY, Vaulted

PENDING: Final = "accountlink_pending_credentials"
READING: Final = CredentialVault(keys=[KEY], plaintext=Plaintext.READ)
CANARY: Final = "canary-token"
BARE: Final[dict[str, Any]] = {"expires_at": None, "scopes": frozenset()}
"""The members of a set of tokens for a table without columns for them."""
FORMS: Final = {
    "al1.": True,
    "al1.AAAAAAAA.BBBBBBBBBBBBBBBB.CCCC": True,
    "al2.whatever": True,
    "al10.whatever": True,
    "al007.": True,
    "al1": False,
    "al.1": False,
    "al1x.": False,
    "alx1.": False,
    "al1x2.": False,
    "al1-2.": False,
    "AL1.AAAAAAAA.BBBBBBBBBBBBBBBB.CCCC": False,
    "aL1.": False,
    " al1.": False,
    "xal1.": False,
    "\nal1.": False,
    "x\nal1.": False,
    "al\n1.": False,
    "al1\n.": False,
    "al1.\n": True,
    "al\u0661.": False,
    "al\uff11.": False,
    "ya29.token": False,
    "%": False,
    " ": False,
    "a": False,
    "al": False,
    ".": False,
}
"""Texts of a token column, and whether each begins like an envelope."""


def rules(findings: Sequence[Finding]) -> list[str]:
    return [finding.rule for finding in findings]


def of(findings: Sequence[Finding], rule: str) -> Finding:
    (found,) = [finding for finding in findings if finding.rule == rule]
    return found


async def look_at(engine: AsyncEngine, target: Target) -> Report:
    """Look on a fresh connection: what changes a column's type ends cached statements."""
    await engine.dispose()
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: examine(sync, target))


async def insert(engine: AsyncEngine, table: sa.Table, *values: dict[str, Any]) -> None:
    """Insert links as they were before a vault; each gets an account of its own."""
    made = [
        {"user_id": number, "provider": "acme", "account_id": f"sub-{number}", "email": f"u{number}@example.com"} | each
        for number, each in enumerate(values, 100)
    ]
    async with engine.begin() as connection:
        for each in made:
            await connection.execute(sa.insert(table).values(each))


# -- a healthy vault --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_table_with_a_vault_is_clean(engine: AsyncEngine, policy: str) -> None:
    """Sealed tokens, no tokens, removed links: the doctor finds nothing, under Plaintext.READ neither."""
    with_pending = policy.startswith("exclusive")
    vaulted = await Vaulted(POLICIES[policy], pending=with_pending).create(engine)
    linker = vaulted.linker
    await linker.link(engine, user_id=1, identity=identity("sub-1"), credentials=tokens())
    await linker.link(engine, user_id=2, identity=identity("sub-2"), credentials=tokens(refresh=None))
    await linker.link(engine, user_id=3, identity=identity("sub-3"))
    gone = await linker.link(engine, user_id=4, identity=identity("sub-4"), credentials=tokens())
    assert isinstance(gone, Linked)
    await linker.unlink(engine, user_id=4, link_id=gone.account.id)
    if with_pending:
        outcome = await linker.link(engine, user_id=9, identity=identity("sub-1"), credentials=tokens())
        assert isinstance(outcome, OwnershipConflict)
        assert 1 == len(await vaulted.kept(engine))

    assert [] == await diagnose(engine, linker)
    assert [] == await diagnose(engine, vaulted.other_linker(vault=READING))


async def test_token_columns_that_take_no_null(engine: AsyncEngine) -> None:
    """Empty text stands for no token where NULL cannot, and is no plain text that was left."""
    table = own_table(access_token=sa.Column(sa.Text, nullable=False), refresh_token=sa.Column(sa.Text, nullable=False))
    linker = linker_of(table)
    await create(engine, table.metadata)
    outcome = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens(**BARE))
    assert isinstance(outcome, Linked)
    await linker.unlink(engine, user_id=1, link_id=outcome.account.id)
    await linker.link(engine, user_id=2, identity=identity("sub-2"), credentials=tokens(refresh=None, **BARE))

    assert [] == await diagnose(engine, linker)


class NoKeys:
    """A key management service that nobody may ask."""

    async def current(self) -> VaultKey:
        raise AssertionError

    async def get(self, key_id: str) -> VaultKey | None:
        raise AssertionError(key_id)


async def test_the_doctor_asks_for_no_key(engine: AsyncEngine) -> None:
    """A look needs neither the newest key nor any other one, whatever stands in the table."""
    vaulted = await Vaulted().create(engine)
    await vaulted.linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    await insert(engine, vaulted.table, {"access_token": CANARY})

    found = await diagnose(engine, vaulted.other_linker(vault=CredentialVault(source=NoKeys())))
    assert ["plain-text-left"] == rules(found)


def test_the_doctor_loads_no_cryptography() -> None:
    """A look at a linker without a vault does without the library that seals tokens."""
    code = (
        "import asyncio, sys; import sqlalchemy as sa; from sqlalchemy.ext.asyncio import create_async_engine\n"
        "from accountlink import AccountLinker, AccountMapping, LinkPolicy, diagnose, tune_sqlite\n"
        "names = ('user_id', 'provider', 'account_id', 'access_token')\n"
        "table = sa.Table('links', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True),\n"
        "                 *(sa.Column(name, sa.Text) for name in names))\n"
        "engine = tune_sqlite(create_async_engine('sqlite+aiosqlite://'))\n"
        "found = asyncio.run(diagnose(engine, AccountLinker(AccountMapping(table, policy=LinkPolicy()))))\n"
        "import accountlink.doctor.alembic, accountlink.cli.doctor\n"
        "print(found[0].rule, 'cryptography' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "missing-key False\n" == done.stdout


# -- narrow columns ---------------------------------------------------------------------------------------------------


def own_table(**columns: sa.Column[Any]) -> sa.Table:
    """A table of links of an application's own, without keys beside its primary key."""
    own = {"access_token": sa.Column(sa.Text), "refresh_token": sa.Column(sa.Text)} | columns
    table = sa.Table(
        "links",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        *(sa.Column(name, column.type, nullable=column.nullable) for name, column in own.items()),
    )
    live = table.c.deleted_at.is_(None)
    sa.Index("one_owner", table.c.provider, table.c.account_id, unique=True, postgresql_where=live, sqlite_where=live)
    return table


def linker_of(table: sa.Table, **options: Any) -> AccountLinker[Any, Any]:
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=POLICIES["exclusive-soft"])
    return AccountLinker(mapping, **({"vault": CredentialVault(keys=[KEY])} | options))


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
async def test_a_narrow_column_is_an_error_with_a_vault(engine: AsyncEngine) -> None:
    """Sealed columns that are shorter in the database than declared are errors, and the emitted SQL widens them."""
    vaulted = await Vaulted().create(engine)
    await run_sql(
        engine,
        "ALTER TABLE connections ALTER COLUMN access_token TYPE varchar(8191)",
        "ALTER TABLE connections ALTER COLUMN refresh_token TYPE varchar(8192)",
        f"ALTER TABLE {PENDING} ALTER COLUMN access_token TYPE varchar(4096)",
        f"ALTER TABLE {PENDING} ALTER COLUMN refresh_token TYPE varchar(4096)",
    )
    found = await diagnose(engine, vaulted.linker)
    assert [
        ("narrow-column", Severity.ERROR, "connections", "access_token"),
        ("narrow-column", Severity.ERROR, PENDING, "access_token"),
        ("narrow-column", Severity.ERROR, PENDING, "refresh_token"),
    ] == [(each.rule, each.severity, each.table, each.object) for each in found]
    assert "fewer than 8192 characters. An envelope of the vault may have as many." in found[0].message

    without = await diagnose(engine, vaulted.other_linker(vault=None, pending=None))
    assert [("narrow-column", Severity.WARNING)] == [(each.rule, each.severity) for each in without]
    mapped = await diagnose(engine, vaulted.linker.mapping)
    assert [Severity.WARNING] == [each.severity for each in mapped]

    for target in targets_of(vaulted.linker):
        await run_script(engine, sql_script((await look_at(engine, target)).repair))
    await engine.dispose()
    assert [] == await diagnose(engine, vaulted.linker)


# -- plain text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vault", "severity"), [(None, Severity.ERROR), (READING, Severity.WARNING)], ids=["refused", "read"]
)
async def test_plain_text_is_counted(
    engine: AsyncEngine, vault: CredentialVault | None, severity: Severity, caplog: pytest.LogCaptureFixture
) -> None:
    """Live and dead rows with a token in plain text are counted, and no token is in a finding, a report or a log."""
    vaulted = await Vaulted(vault=vault).create(engine)
    await vaulted.linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    await insert(
        engine,
        vaulted.table,
        {"access_token": f"{CANARY}-1", "refresh_token": f"{CANARY}-2"},
        {"access_token": f"{CANARY}-3", "refresh_token": None},
        {"access_token": "", "refresh_token": ""},
        {"access_token": None, "refresh_token": None},
        {"access_token": f"{CANARY}-4", "deleted_at": sa.func.now()},
        {"access_token": "al1.a.b.c", "refresh_token": "al99.of-a-later-format"},
    )
    engine.sync_engine.echo = "debug"
    with caplog.at_level(logging.DEBUG):
        found = await diagnose(engine, vaulted.linker)
        report = await look_at(engine, targets_of(vaulted.linker)[0])
    finding = of(found, "plain-text-left")

    assert [finding] == found
    assert (severity, "connections", None) == (finding.severity, finding.table, finding.object)
    assert ("access_token", "refresh_token") == finding.columns
    assert finding.message.startswith("3 rows with a token in plain text, dead rows included")
    assert "accountlink backfill" in finding.fix
    assert ("CredentialsUnreadable" in finding.message) is (severity is Severity.ERROR)
    assert () == report.repair.steps
    assert (finding.text,) == report.repair.by_hand
    told = repr((found, report, sql_script(report.repair))) + caplog.text
    assert "SELECT count(" in caplog.text
    assert "canary" not in told


async def test_the_finding_names_the_columns_that_have_plain_text(engine: AsyncEngine) -> None:
    """A column without plain text is not among those of the finding."""
    vaulted = await Vaulted().create(engine)
    await insert(engine, vaulted.table, {"access_token": "al1.a.b.c", "refresh_token": CANARY})
    finding = of(await diagnose(engine, vaulted.linker), "plain-text-left")
    assert ("refresh_token",) == finding.columns
    assert finding.message.startswith("1 row with")


async def test_texts_are_told_apart_as_the_vault_does(engine: AsyncEngine) -> None:
    """Every text counts as plain text exactly if the vault reads it as a token in plain text."""
    vaulted = await Vaulted(pending=False).create(engine)
    for text, like_envelope in FORMS.items():
        opened = read(text, AccessToken, plaintext=Plaintext.READ)
        assert isinstance(opened, AccessToken) is not like_envelope, text
        await run_sql(engine, "DELETE FROM connections")
        await insert(engine, vaulted.table, {"access_token": text})
        assert ([] if like_envelope else ["plain-text-left"]) == rules(await diagnose(engine, vaulted.linker)), text
        without = await diagnose(engine, vaulted.other_linker(vault=None))
        assert (["missing-vault"] if like_envelope else []) == rules(without), text
    whole = f"al1.AAAAAAAA.BBBBBBBBBBBBBBBB.{'A' * 40}"
    assert isinstance(read(whole, AccessToken, plaintext=Plaintext.READ), Envelope)


async def test_the_tokens_are_counted_by_one_query(engine: AsyncEngine) -> None:
    """One query reads the table, and the catalogue alone none."""
    vaulted = await Vaulted().create(engine)
    await insert(engine, vaulted.table, {"access_token": CANARY})
    asked: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda _c, _k, statement, *_: asked.append(statement))

    assert [] == await diagnose(engine, vaulted.linker, look=Look.CATALOGUE)
    assert [] == [each for each in asked if "FROM connections" in each]
    assert ["plain-text-left"] == rules(await diagnose(engine, vaulted.linker))
    assert 1 == len([each for each in asked if "FROM connections" in each])


async def test_plain_text_can_be_accepted(engine: AsyncEngine) -> None:
    """A team that has planned its backfill accepts the finding by its rule, or by its table."""
    vaulted = await Vaulted().create(engine)
    await insert(engine, vaulted.table, {"access_token": CANARY})
    for pattern in ("plain-text-left", "plain-text-left:connections"):
        assert [] == await diagnose(engine, vaulted.linker, ignore=[pattern])
    assert ["plain-text-left"] == rules(await diagnose(engine, vaulted.linker, ignore=["missing-vault"]))


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
async def test_nothing_is_counted_under_row_level_security(engine: AsyncEngine) -> None:
    """A role that may not see every row gets no count, which would be wrong."""
    vaulted = await Vaulted(POLICIES["per-user-soft"], pending=False).create(engine)
    await insert(engine, vaulted.table, {"access_token": CANARY})
    await run_sql(
        engine,
        "ALTER TABLE connections ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE connections FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON connections USING (user_id = 1)",
        "CREATE ROLE accountlink_sealed_reader",
        "GRANT SELECT ON connections TO accountlink_sealed_reader",
    )
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SET LOCAL ROLE accountlink_sealed_reader")
            report = await connection.run_sync(lambda sync: examine(sync, vaulted.linker))
    finally:
        await run_sql(engine, "DROP OWNED BY accountlink_sealed_reader", "DROP ROLE accountlink_sealed_reader")
    assert () == report.findings


class Encrypted(sa.types.TypeDecorator[str]):
    """A type of an application's own that stores texts backwards, as one that encrypts them would."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value[::-1]


class Named(sa.types.TypeDecorator[str]):
    """A type that gives another one a name, and converts nothing."""

    impl = sa.Text
    cache_ok = True


async def test_an_encrypted_column_type_beside_the_vault(engine: AsyncEngine) -> None:
    """What such a type stores is no plain text, although it begins like none: the doctor judges the other column."""
    table = own_table(access_token=sa.Column(Encrypted), refresh_token=sa.Column(Named))
    linker = linker_of(table)
    await create(engine, table.metadata)
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens(**BARE))
    assert [(False, True)] == await rows(
        engine, "SELECT access_token LIKE 'al1.%', refresh_token LIKE 'al1.%' FROM links"
    )

    assert [] == await diagnose(engine, linker)
    await run_sql(engine, f"UPDATE links SET refresh_token = '{CANARY}'")
    assert ("refresh_token",) == of(await diagnose(engine, linker), "plain-text-left").columns


# -- a linker without a vault -----------------------------------------------------------------------------------------


async def test_envelopes_without_a_vault(engine: AsyncEngine) -> None:
    """A linker that lost its vault is told so; a mapping says nothing about vaults, and plain text alone is right."""
    vaulted = await Vaulted().create(engine)
    without = vaulted.other_linker(vault=None, pending=None)
    await without.link(engine, user_id=8, identity=identity("sub-8"), credentials=tokens(CANARY))
    assert [] == await diagnose(engine, without)

    await vaulted.linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    found = await diagnose(engine, without)
    finding = of(found, "missing-vault")
    assert [finding] == found
    assert (Severity.WARNING, ("access_token", "refresh_token")) == (finding.severity, finding.columns)
    assert finding.message.startswith("1 row with a token that begins like an envelope")
    assert [] == await diagnose(engine, vaulted.linker.mapping)
    assert [] == await diagnose(engine, without, look=Look.CATALOGUE)
    assert "al1." not in repr(found)


# -- pending credentials ----------------------------------------------------------------------------------------------


async def repaired(engine: AsyncEngine, linker: AccountLinker[Any, Any]) -> None:
    """Run the script that the doctor emits for the table of pending credentials."""
    _, kept = targets_of(linker)
    await run_script(engine, sql_script((await look_at(engine, kept)).repair))


@pytest.mark.each_driver
async def test_a_missing_table_of_pending_credentials(engine: AsyncEngine) -> None:
    """It is an error, and after the emitted SQL a conflict keeps the claimant's tokens."""
    vaulted = await Vaulted().create(engine)
    linker = vaulted.linker
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    await run_sql(engine, f"DROP TABLE {PENDING}")
    with pytest.raises(ConfigurationError):
        await linker.link(engine, user_id=9, identity=identity(), credentials=tokens("access-9"))

    found = await diagnose(engine, linker)
    assert [("missing-key", Severity.ERROR, PENDING, None)] == [
        (each.rule, each.severity, each.table, each.object) for each in found
    ]
    assert "not in this database" in found[0].message
    assert found == await diagnose(engine, linker, ignore=["missing-key"])
    assert found == await diagnose(engine, linker, look=Look.CATALOGUE)

    await repaired(engine, linker)
    assert [] == await diagnose(engine, linker)
    outcome = await linker.link(engine, user_id=9, identity=identity(), credentials=tokens("access-9"))
    assert isinstance(outcome, OwnershipConflict)
    assert outcome.transfer_token is not None
    transferred = await linker.transfer(engine, outcome.transfer_token, user_id=9)
    assert isinstance(transferred, Transferred)
    assert transferred.has_credentials
    assert 1 == await indexes(engine)


async def indexes(engine: AsyncEngine, schema: str | None = None) -> int:
    """The number of indexes of the table, beside its primary key."""
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: len(sa.inspect(sync).get_indexes(PENDING, schema=schema)))


async def test_the_revision_makes_the_table_and_takes_it_back(database: Database) -> None:
    """Alembic runs the same statements."""
    engine = database.engine()
    vaulted = await Vaulted().create(engine)
    await run_sql(engine, f"DROP TABLE {PENDING}")
    _, kept = targets_of(vaulted.linker)
    repair = (await look_at(engine, kept)).repair
    await run_revision(database.url, repair)
    assert [] == await diagnose(engine, vaulted.linker)
    assert [f"DROP TABLE {PENDING}"] == [undo for step in repair.steps for undo in step.undo]


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=True)
async def test_the_table_is_made_in_its_own_schema(engine: AsyncEngine) -> None:
    """The emitted SQL names the schema that the connection looks in, by a translation too."""
    tables = make_tables(POLICIES["exclusive-soft"])
    kept = pending_credentials(tables.metadata, schema="kept")
    linker = tables.linker(vault=CredentialVault(keys=[KEY]), pending=kept)
    await run_sql(engine, 'CREATE SCHEMA "One Tenant"')
    tenant = engine.execution_options(schema_translate_map={"kept": "One Tenant"})
    await create(tenant, tables.metadata)
    await run_sql(engine, f'DROP TABLE "One Tenant".{PENDING}')

    assert [("missing-key", f"One Tenant.{PENDING}")] == [
        (each.rule, each.table) for each in await diagnose(tenant, linker)
    ]
    await repaired(tenant, linker)
    assert [] == await diagnose(tenant, linker)
    assert 1 == await indexes(engine, "One Tenant")


async def test_a_column_of_pending_credentials_is_missing(engine: AsyncEngine) -> None:
    """It is named, as a mapped column is."""
    vaulted = await Vaulted().create(engine)
    await run_sql(engine, f"ALTER TABLE {PENDING} DROP COLUMN scopes")
    (finding,) = await diagnose(engine, vaulted.linker)
    assert ("missing-key", PENDING, ("scopes",)) == (finding.rule, finding.table, finding.columns)
    assert "links with credentials need" in finding.message


async def test_the_key_of_pending_credentials_is_missing(engine: AsyncEngine) -> None:
    """Without its primary key no conflict can keep tokens; the emitted SQL brings a key that serves."""
    vaulted = await Vaulted().create(engine)
    linker = vaulted.linker
    await linker.link(engine, user_id=1, identity=identity(), credentials=tokens())
    await run_sql(
        engine,
        f"ALTER TABLE {PENDING} RENAME TO old_pending",
        f"CREATE TABLE {PENDING} AS SELECT * FROM old_pending",
        "DROP TABLE old_pending",
    )
    with pytest.raises(DBAPIError):
        await linker.link(engine, user_id=9, identity=identity(), credentials=tokens("access-9"))
    found = await diagnose(engine, linker)
    finding = of(found, "missing-key")
    assert (PENDING, ("table_name", "user_id", "provider", "account_id")) == (finding.table, finding.columns)
    assert "links with credentials fail" in finding.message

    await repaired(engine, linker)
    left = await diagnose(engine, linker)
    assert set() == {each.rule for each in left} - {"key-enforces-nothing"}  # SQLite makes no column NOT NULL in place
    outcome = await linker.link(engine, user_id=9, identity=identity(), credentials=tokens("access-9"))
    assert isinstance(outcome, OwnershipConflict)
    assert 1 == len(await vaulted.kept(engine))


async def test_duplicates_of_pending_credentials_are_left_to_people(engine: AsyncEngine) -> None:
    """Two rows of one key keep the key from being made, and no rule says which is right."""
    vaulted = await Vaulted().create(engine)
    await run_sql(
        engine,
        f"ALTER TABLE {PENDING} RENAME TO old_pending",
        f"CREATE TABLE {PENDING} AS SELECT * FROM old_pending",
    )
    assert vaulted.pending is not None
    row = {"table_name": "t", "user_id": "1", "provider": "acme", "account_id": "a", "access_token": "al1.x"}
    await insert_pending(engine, vaulted.pending, row, row)
    report = await look_at(engine, targets_of(vaulted.linker)[1])
    assert {"missing-key", "duplicates"} <= set(rules(report.findings))
    assert "change or delete the others" in sql_script(report.repair)
    assert not any("UNIQUE INDEX" in step.sql for step in report.repair.steps)


async def insert_pending(engine: AsyncEngine, table: sa.Table, *values: dict[str, Any]) -> None:
    async with engine.begin() as connection:
        for each in values:
            await connection.execute(sa.insert(table).values(kept_until=sa.func.now(), **each))


async def test_alembic_sees_a_missing_table_of_pending_credentials(engine: AsyncEngine) -> None:
    """``alembic check`` fails by the doctor's finding, unless autogenerate makes the table in the same revision."""
    vaulted = await Vaulted().create(engine)
    await run_sql(engine, f"DROP TABLE {PENDING}")

    async def diffs(metadata: sa.MetaData) -> list[Any]:
        watch(metadata, vaulted.linker)
        async with engine.connect() as connection:
            found: list[Any] = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
            )
        return [(diff[1], diff[2]) for diff in found if diff[0] == "accountlink"]

    assert [("missing-key", PENDING)] == await diffs(sa.MetaData())
    assert [] == await diffs(vaulted.tables.metadata)


# -- repairs that must leave sealed tokens readable -------------------------------------------------------------------


async def test_addresses_with_sealed_tokens_stay_as_they_are(engine: AsyncEngine) -> None:
    """A token opens only beside the address that it was sealed for, so that no SQL of the doctor's changes one."""
    vaulted = await Vaulted(EMAIL_SOFT, pending=False).create(engine)
    linker = vaulted.linker
    for user in (1, 2):
        await linker.link(engine, user_id=user, identity=identity(email="ann@example.com"), credentials=tokens())
    await run_sql(engine, "UPDATE connections SET email_key = 'Ann@example.com'")
    report = await look_at(engine, targets_of(linker)[0])
    assert ["key-compares-differently"] == rules(report.findings)
    assert () == report.repair.steps
    assert "2 of their rows have sealed tokens" in report.repair.by_hand[0]

    without = vaulted.other_linker(vault=None)
    assert any("lower(" in step.sql for step in (await look_at(engine, targets_of(without.mapping)[0])).repair.steps)
    await run_sql(engine, "UPDATE connections SET access_token = 'plain', refresh_token = NULL")
    report = await look_at(engine, targets_of(linker)[0])
    assert any("lower(" in step.sql for step in report.repair.steps)


# -- the command ------------------------------------------------------------------------------------------------------


APP: Final = """
from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, CredentialVault, LinkedAccountMixin, LinkPolicy, Removal, pending_credentials


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger().with_variant(Integer, "sqlite")}


class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


vault = CredentialVault(keys=[bytes(range(32))])
pending = pending_credentials(Base.metadata)
linker = AccountLinker(Connection, secrets=["k" * 32], vault=vault, pending=pending)


class Mailbox(LinkedAccountMixin, Base):
    __tablename__ = "mailboxes"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


mailboxes = AccountLinker(Mailbox, secrets=["k" * 32], vault=vault, pending=pending)
"""


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database) -> str:
    """An application with a vault, whose table has a row in plain text and whose pending table is missing."""
    name = f"sealed_{database.kind}_{tmp_path.name.translate(str.maketrans('-[]', '___'))}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ACCOUNTLINK_DATABASE_URL", database.url)
    module = import_module(name)
    engine = create_async_engine(database.url)
    await create(engine, module.Base.metadata)
    await insert(engine, module.Connection.__table__, {"access_token": CANARY})
    await run_sql(engine, f"DROP TABLE {PENDING}")
    await engine.dispose()
    return name


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(accountlink, ["doctor", *arguments])
    assert "canary" not in result.output
    assert result.exit_code in (0, 1), result.output
    return result.exit_code, result.stdout


def test_the_command_tells_of_both_tables(shop: str) -> None:
    """Table, JSON and annotations have the findings of the links and of the pending credentials, each once."""
    apps = ("--app", f"{shop}:linker", "--app", f"{shop}:mailboxes")
    code, text = doctor(*apps)
    assert 1 == code
    assert 2 == text.count("plain-text-left") + text.count("missing-key"), text
    assert f"2 findings in connections, {PENDING}, mailboxes (" in " ".join(text.split())

    code, text = doctor(*apps, "--format", "json")
    told = json.loads(text)
    assert (1, False) == (code, told["ok"])
    assert [("plain-text-left", "error", "connections"), ("missing-key", "error", PENDING)] == [
        (each["rule"], each["severity"], each["table"]) for each in told["findings"]
    ]

    code, text = doctor(*apps, "--format", "github")
    assert (1, 2) == (code, text.count("::error"))


def test_the_command_emits_the_table(shop: str) -> None:
    """The SQL and the revision make the table, and name what the backfill is for."""
    for kind in ("sql", "alembic"):
        _, text = doctor("--app", f"{shop}:linker", "--emit", kind)
        assert f"CREATE TABLE {PENDING}" in text
        assert "plain-text-left: 1 row with a token in plain text" in " ".join(text.replace("#", " ").split())
