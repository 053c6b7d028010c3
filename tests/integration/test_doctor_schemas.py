"""The doctor on schemas: wrong ones by their rule, right ones in silence, whatever anything is called."""

from __future__ import annotations

from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.examine import examine
from accountlink.doctor.findings import Finding
from tests.support.databases import collation_without_case, run_sql
from tests.support.schemas import Variation

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
RIGHT_KEY: Final = "CREATE UNIQUE INDEX k ON links {key}"
STALE, MISSING, COUNTS, NOTHING = "stale-unique", "missing-key", "key-counts-deleted", "key-enforces-nothing"
PREDICATE, INVALID, DEFERRABLE = "wrong-predicate", "invalid-index", "deferrable-key"
DIFFERENT, DUPLICATES, NARROW = "key-compares-differently", "duplicates", "narrow-column"
HIDDEN, PARTITION = "hidden-owner", "partition-key"


def wrong(name: str, shape: str, rule: str | set[str], *keys: str, **fields: Any) -> Variation:
    """A schema that must be found; without keys of its own it has the right one."""
    rules = frozenset({rule} if isinstance(rule, str) else rule)
    return Variation(name=name, shape=shape, rules=rules, keys=keys or (RIGHT_KEY,), **fields)


def right(name: str, shape: str, *keys: str, **fields: Any) -> Variation:
    """A schema with which nothing is wrong."""
    return Variation(name=name, shape=shape, keys=keys or (RIGHT_KEY,), **fields)


NO_KEY: Final = "CREATE INDEX not_unique ON links (id)"
WRONG: Final = [
    wrong("no key at all", "per-user", MISSING, NO_KEY),
    wrong("no key at all", "exclusive", MISSING, NO_KEY),
    wrong("no key at all", "email", MISSING, NO_KEY),
    wrong("no key at all", "grants", MISSING, NO_KEY),
    wrong("an index that is not unique", "exclusive", MISSING, "CREATE INDEX k ON links (provider, account_id)"),
    wrong("a key per user where ownership is exclusive", "exclusive", MISSING,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id)"),
    wrong("a key with a column too many", "per-user", MISSING,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id, email)"),
    wrong("a key with an application's column too many", "exclusive", MISSING,
          "CREATE UNIQUE INDEX k ON links (provider, account_id, kind)", columns={"kind": "text NOT NULL"}),
    wrong("ids that repeat", "per-user", MISSING, RIGHT_KEY, columns={"id": "bigint NOT NULL"}),
    wrong("one active grant per pair without its index", "grants-one", MISSING, RIGHT_KEY),
    wrong("one account per provider", "email", STALE, RIGHT_KEY, "CREATE UNIQUE INDEX s ON links (user_id, provider)"),
    wrong("one account per provider, as a constraint", "per-user", STALE, RIGHT_KEY,
          constraints=("CONSTRAINT s UNIQUE (user_id, provider)",)),
    wrong("one account per provider, soft", "per-user-soft", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, provider) WHERE deleted_at IS NULL"),
    wrong("one account per user", "exclusive", STALE, RIGHT_KEY, "CREATE UNIQUE INDEX s ON links (user_id)"),
    wrong("a global key where each user may link", "per-user", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (provider, account_id)"),
    wrong("a global key among live rows", "per-user-soft", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (provider, account_id) WHERE deleted_at IS NULL"),
    wrong("unique addresses", "exclusive", STALE, RIGHT_KEY, "CREATE UNIQUE INDEX s ON links (email)"),
    wrong("unique lower-case addresses", "exclusive", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (lower(email))"),
    wrong("unique addresses per provider", "exclusive", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (provider, email)"),
    wrong("unique account ids without the provider", "exclusive", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (account_id)"),
    wrong("unique account ids under an e-mail key", "email", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, provider, account_id)"),
    wrong("an old key with a constant column", "per-user", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, provider, kind)",
          columns={"kind": "text NOT NULL DEFAULT 'oauth'"}),
    wrong("an old key on rows as they are made", "per-user", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, provider) WHERE status = 'on'",
          columns={"status": "text NOT NULL DEFAULT 'on'"}),
    wrong("a composite primary key", "per-user", STALE, RIGHT_KEY, "CREATE UNIQUE INDEX i ON links (id)",
          columns={"id": "bigint NOT NULL"}, constraints=("PRIMARY KEY (user_id, provider)",)),
    wrong("a unique pair", "grants", STALE, RIGHT_KEY, constraints=("UNIQUE (patient_id, doctor_id)",)),
    wrong("a unique pair beside one active grant", "grants-one", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX o ON links (patient_id, doctor_id) WHERE is_active",
          constraints=("UNIQUE (patient_id, doctor_id)",)),
    wrong("one active grant per pair, unasked", "grants", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX o ON links (patient_id, doctor_id) WHERE is_active"),
    wrong("one grant per patient", "grants", STALE, RIGHT_KEY, "CREATE UNIQUE INDEX o ON links (patient_id)"),
    wrong("NULL counts as equal in a wider key", "exclusive", STALE, RIGHT_KEY,
          "CREATE UNIQUE INDEX s ON links (user_id, kind) NULLS NOT DISTINCT", columns={"kind": "text"},
          only=POSTGRESQL),
    wrong("an exclusion constraint of equalities", "per-user", STALE, RIGHT_KEY,
          constraints=("CONSTRAINT s EXCLUDE USING btree (user_id WITH =, provider WITH =)",), only=POSTGRESQL),
    wrong("a full key", "per-user-soft", COUNTS, "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id)"),
    wrong("a full key as a constraint", "exclusive-flag", COUNTS, NO_KEY,
          constraints=("CONSTRAINT k UNIQUE (provider, account_id)",)),
    wrong("a full key beside the right one", "exclusive-soft", COUNTS, RIGHT_KEY,
          "CREATE UNIQUE INDEX f ON links (user_id, provider, account_id)"),
    wrong("a condition that is always true", "per-user-soft", COUNTS,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id) WHERE user_id IS NOT NULL"),
    wrong("the flag in the key", "exclusive-flag", COUNTS,
          "CREATE UNIQUE INDEX k ON links (provider, account_id, is_active)"),
    wrong("the mark in the key, NULL equal", "exclusive-soft", COUNTS,
          "CREATE UNIQUE INDEX k ON links (provider, account_id, (deleted_at IS NULL))"),
    wrong("deleted_at in the key", "per-user-soft", NOTHING,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id, deleted_at)"),
    wrong("deleted_at in the key of owners", "exclusive-soft", NOTHING,
          "CREATE UNIQUE INDEX k ON links (provider, account_id, deleted_at)"),
    wrong("a nullable account id", "exclusive", NOTHING, columns={"account_id": "text"}),
    wrong("a nullable provider", "per-user", NOTHING, columns={"provider": "text"}),
    wrong("a nullable address as the key", "email", NOTHING, columns={"email": "text"}),
    wrong("a nullable token", "grants", NOTHING, columns={"access_token": "text"}),
    wrong("a nullable user", "per-user-soft", NOTHING, columns={"user_id": "bigint"}),
    wrong("the opposite condition", "per-user-soft", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id) WHERE deleted_at IS NOT NULL"),
    wrong("the opposite flag", "exclusive-flag", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE NOT is_active"),
    wrong("a condition on one provider", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE provider = 'google'"),
    wrong("a condition on an application's column", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE kind = 'oauth'", columns={"kind": "text"}),
    wrong("a condition that needs an address", "per-user-soft", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id)"
          " WHERE deleted_at IS NULL AND email IS NOT NULL"),
    wrong("a condition that lets dead rows in", "exclusive-flag", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE is_active OR version > 1"),
    wrong("a condition without one provider", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE provider <> 'google'"),
    wrong("a condition on new rows", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE id > 100000"),
    wrong("a mark that is never NULL", "exclusive-soft", NOTHING,
          "CREATE UNIQUE INDEX k ON links (provider, account_id, deleted_at)",
          columns={"deleted_at": "moment NOT NULL DEFAULT '2999-01-01'"}),
    wrong("a mark that is never NULL beside the right key", "exclusive-soft", NOTHING,
          columns={"deleted_at": "moment NOT NULL DEFAULT '2999-01-01'"}),
    wrong("a mark that every new row has", "exclusive-soft", NOTHING,
          columns={"deleted_at": "moment DEFAULT CURRENT_TIMESTAMP"}),
    wrong("a key run together", "exclusive", STALE,
          "CREATE UNIQUE INDEX k ON links ((provider || account_id))"),
    wrong("a key of each tenant", "exclusive", MISSING,
          "CREATE UNIQUE INDEX k ON links (tenant_id, provider, account_id)", columns={"tenant_id": "bigint NOT NULL"}),
    wrong("one of three providers left out", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE provider IN ('google', 'github')",
          before=("CREATE TYPE vendor AS ENUM ('google', 'github', 'meta')",), columns={"provider": "vendor NOT NULL"},
          only=POSTGRESQL),
    wrong("a condition that a trigger keeps", "exclusive-soft", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE NOT is_deleted",
          "CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS"
          " $$ BEGIN NEW.is_deleted := NEW.deleted_at IS NOT NULL; RETURN NEW; END $$",
          "CREATE TRIGGER mark BEFORE INSERT OR UPDATE ON links FOR EACH ROW EXECUTE FUNCTION mark()",
          columns={"is_deleted": "boolean NOT NULL DEFAULT false"}, only=POSTGRESQL),
    wrong("a digest of the key in a column of its own", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (digest)",
          columns={"digest": "text GENERATED ALWAYS AS (md5(provider || ':' || account_id)) STORED"}, only=POSTGRESQL),
    wrong("a condition that cannot be decided", "exclusive", PREDICATE,
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE length(account_id) < 999"),
    wrong("a deferrable key", "exclusive", DEFERRABLE, NO_KEY,
          constraints=("CONSTRAINT k UNIQUE (provider, account_id) DEFERRABLE INITIALLY DEFERRED",), only=POSTGRESQL),
    wrong("a deferrable constraint on another column", "per-user", DEFERRABLE, RIGHT_KEY,
          columns={"position": "integer NOT NULL"}, constraints=("CONSTRAINT p UNIQUE (position) DEFERRABLE",),
          only=POSTGRESQL),
    wrong("lower() on the account id", "exclusive", DIFFERENT,
          "CREATE UNIQUE INDEX k ON links (provider, lower(account_id))"),
    wrong("lower() on the account id beside the right key", "per-user", DIFFERENT, RIGHT_KEY,
          "CREATE UNIQUE INDEX f ON links (user_id, provider, lower(account_id))"),
    wrong("an index with a collation without case", "exclusive", DIFFERENT,
          "CREATE UNIQUE INDEX k ON links (provider, account_id COLLATE NOCASE)", only=SQLITE),
    wrong("a column with a collation without case", "exclusive", DIFFERENT,
          columns={"account_id": "text COLLATE NOCASE NOT NULL"}, only=SQLITE),
    wrong("a column with a collation without case", "exclusive", DIFFERENT,
          columns={"account_id": "text COLLATE nocase NOT NULL"}, only=POSTGRESQL),
    wrong("an index with a collation without case", "exclusive", DIFFERENT,
          "CREATE UNIQUE INDEX k ON links (provider, account_id COLLATE nocase)",
          only=POSTGRESQL),
    wrong("numbers as account ids", "exclusive", DIFFERENT, columns={"account_id": "bigint NOT NULL"}),
    wrong("blank-padded account ids", "exclusive", {DIFFERENT, NARROW}, columns={"account_id": "char(40) NOT NULL"},
          only=POSTGRESQL),
    wrong("short account ids", "exclusive", NARROW, columns={"account_id": "varchar(64) NOT NULL"}, only=POSTGRESQL),
    wrong("short access tokens", "per-user", NARROW, columns={"access_token": "varchar(1024)"}, only=POSTGRESQL),
    wrong("short refresh tokens", "per-user", NARROW, columns={"refresh_token": "varchar(255)"}, only=POSTGRESQL),
    wrong("short addresses", "email", NARROW, columns={"email": "varchar(100) NOT NULL"}, only=POSTGRESQL),
    wrong("narrow user ids", "per-user", NARROW, columns={"user_id": "integer NOT NULL"}, only=POSTGRESQL),
    wrong("hidden rows", "exclusive", HIDDEN, RIGHT_KEY, "ALTER TABLE links ENABLE ROW LEVEL SECURITY",
          "ALTER TABLE links FORCE ROW LEVEL SECURITY",
          "CREATE POLICY mine ON links USING (user_id = 1)", "GRANT ALL ON links TO ordinary", only=POSTGRESQL),
    wrong("partitions by user", "exclusive", PARTITION, NO_KEY,
          columns={"id": "bigint NOT NULL"}, suffix=" PARTITION BY HASH (user_id)", only=POSTGRESQL),
    wrong("children by inheritance", "exclusive", PARTITION, RIGHT_KEY,
          "CREATE TABLE more_links () INHERITS (links)", only=POSTGRESQL),
]  # fmt: skip
RIGHT: Final = [
    *(right("its own key", shape) for shape in
      ("per-user", "per-user-soft", "exclusive", "exclusive-soft", "exclusive-flag", "email", "grants")),
    right("an odd name", "exclusive", 'CREATE UNIQUE INDEX "users_email_key; --" ON links {key}'),
    right("the name of a key that is gone", "email",
          "CREATE UNIQUE INDEX calendar_connections_user_provider_unique ON links {key}"),
    right("as a constraint", "exclusive", NO_KEY, constraints=("CONSTRAINT anything UNIQUE (provider, account_id)",)),
    right("as a constraint without a name", "per-user", NO_KEY,
          constraints=("UNIQUE (account_id, user_id, provider)",)),
    right("another order", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links (account_id, provider, user_id) WHERE deleted_at IS NULL"),
    right("a flag compared", "exclusive-flag",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE is_active = true"),
    right("a flag compared to a flag", "exclusive-flag",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE (is_active IS TRUE)"),
    right("a flag that is not false", "exclusive-flag",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE NOT (is_active = false)"),
    right("parentheses and a cast", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id) WHERE ((deleted_at) IS NULL) AND NOT false"),
    right("not not null", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id) WHERE NOT (deleted_at IS NOT NULL)"),
    right("a condition that every row meets", "exclusive",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE account_id IS NOT NULL"),
    right("a moment for none", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id, coalesce(deleted_at, '1970-01-01'))",
          only=SQLITE),
    right("a moment for none", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links"
          " (user_id, provider, account_id, coalesce(deleted_at, '1970-01-01 00:00+00'::timestamptz))",
          only=POSTGRESQL),
    right("the key of each user beside the owner's", "exclusive-flag", RIGHT_KEY,
          "CREATE UNIQUE INDEX u ON links (user_id, provider, account_id) WHERE is_active"),
    right("an index of the application's own column", "per-user", RIGHT_KEY,
          "CREATE UNIQUE INDEX x ON links (reference)", columns={"reference": "text"}),
    right("a main account each", "per-user", RIGHT_KEY,
          "CREATE UNIQUE INDEX x ON links (user_id, provider) WHERE is_main",
          columns={"is_main": "boolean NOT NULL DEFAULT false"}),
    right("further columns", "exclusive", columns={"note": "text", "score": "integer NOT NULL DEFAULT 7"}),
    right("indexes that are not unique", "exclusive", RIGHT_KEY, "CREATE INDEX a ON links (user_id, provider)",
          "CREATE INDEX b ON links (lower(email))", "CREATE INDEX c ON links (provider) WHERE email IS NULL"),
    right("a key with the id in it", "exclusive", RIGHT_KEY, "CREATE UNIQUE INDEX x ON links (user_id, id)"),
    right("all of an enumeration", "exclusive",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE provider IN ('google', 'github')",
          before=("CREATE TYPE vendor AS ENUM ('google', 'github')",), columns={"provider": "vendor NOT NULL"},
          only=POSTGRESQL),
    right("all that a check lets in", "exclusive",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE provider IN ('google', 'github')",
          constraints=("CHECK (provider IN ('google', 'github'))",), only=POSTGRESQL),
    right("a status that a check ties to the mark", "exclusive-soft",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) WHERE status = 'active'",
          columns={"status": "text NOT NULL DEFAULT 'active'"},
          constraints=("CHECK ((status = 'active') = (deleted_at IS NULL))",), only=POSTGRESQL),
    right("users told apart without case", "per-user", columns={"user_id": "text COLLATE NOCASE NOT NULL"},
          only=SQLITE),
    right("the key and many literals", "per-user-soft", RIGHT_KEY,
          "CREATE UNIQUE INDEX x ON links (user_id, provider, account_id, label) WHERE deleted_at IS NULL"
          f" AND (provider || label) NOT IN ({', '.join(repr(str(n)) for n in range(40))})",
          columns={"label": "text NOT NULL DEFAULT 'none'"}),
    right("an index on many columns", "exclusive", RIGHT_KEY,
          "CREATE UNIQUE INDEX x ON links (a, b, c, d, e, f, user_id) WHERE a <> b",
          columns=dict.fromkeys("abcdef", "text")),
    right("a flag that the database computes", "exclusive-flag",
          columns={"is_active": "boolean GENERATED ALWAYS AS (deleted_at IS NULL) STORED", "deleted_at": "moment"}),
    right("included columns", "exclusive",
          "CREATE UNIQUE INDEX k ON links (provider, account_id) INCLUDE (user_id)", only=POSTGRESQL),
    right("NULL equal to NULL", "exclusive", "CREATE UNIQUE INDEX k ON links {key} NULLS NOT DISTINCT",
          columns={"account_id": "text"}, only=POSTGRESQL),
    right("deleted_at in the key, NULL equal to NULL", "per-user-soft",
          "CREATE UNIQUE INDEX k ON links (user_id, provider, account_id, deleted_at) NULLS NOT DISTINCT",
          only=POSTGRESQL),
    right("NOT NULL by a check", "exclusive", RIGHT_KEY, columns={"account_id": "text"},
          constraints=("CHECK (account_id IS NOT NULL)",)),
    right("one active grant per pair", "grants-one", RIGHT_KEY,
          "CREATE UNIQUE INDEX o ON links (patient_id, doctor_id) WHERE is_active"),
    right("partitions by provider", "exclusive", RIGHT_KEY, columns={"id": "bigint NOT NULL"},
          suffix=" PARTITION BY HASH (provider)", only=POSTGRESQL),
    right("rows that are shown to all", "exclusive", RIGHT_KEY, "ALTER TABLE links ENABLE ROW LEVEL SECURITY",
          "CREATE POLICY mine ON links USING (user_id = 1)", "CREATE POLICY seen ON links FOR SELECT USING (true)",
          "GRANT ALL ON links TO ordinary", only=POSTGRESQL),
    right("long columns of a bounded type", "exclusive", columns={"account_id": "varchar(255) NOT NULL"}),
    right("a byte-wise collation", "exclusive", columns={"account_id": 'text COLLATE "C" NOT NULL'}, only=POSTGRESQL),
]  # fmt: skip


def on_its_databases(variations: list[Variation]) -> pytest.MarkDecorator:
    """Each schema on each database that can have it; the reader has tests of its own with psycopg."""
    kinds = {SQLITE: "sqlite", POSTGRESQL: "asyncpg"}
    cases = [
        pytest.param(kind, variation, id=f"{kind}-{variation}")
        for variation in variations
        for dialect, kind in kinds.items()
        if variation.only in (None, dialect)
    ]
    return pytest.mark.parametrize(("kind", "variation"), cases, indirect=["kind"])


async def diagnosed(engine: AsyncEngine, variation: Variation) -> tuple[Finding, ...]:
    dialect = engine.dialect.name
    as_role = any("ordinary" in statement for statement in variation.keys)
    role = ["DROP ROLE IF EXISTS ordinary", "CREATE ROLE ordinary"] if as_role else []
    statements = variation.statements(dialect)
    if any("COLLATE nocase" in statement for statement in statements):
        await collation_without_case(engine)
    await run_sql(engine, *role, *statements)

    def look(connection: sa.Connection) -> tuple[Finding, ...]:
        if as_role:
            connection.exec_driver_sql("SET LOCAL ROLE ordinary")
        return examine(connection, variation.mapping()).findings

    try:
        async with engine.connect() as connection:
            return await connection.run_sync(look)
    finally:
        if as_role:
            await run_sql(engine, "DROP OWNED BY ordinary", "DROP ROLE ordinary")


@on_its_databases(WRONG)
async def test_what_is_wrong_is_found_by_its_rule(engine: AsyncEngine, variation: Variation) -> None:
    """Each wrong schema has its rule's finding, and no other (A08, F13, F14, F16, F18)."""
    found = await diagnosed(engine, variation)
    assert variation.rules == {finding.rule for finding in found}, [finding.message for finding in found]


@on_its_databases(RIGHT)
async def test_what_is_right_is_clean(engine: AsyncEngine, variation: Variation) -> None:
    """A schema that keeps the policy has no finding, whatever its keys are called and however they are written."""
    assert () == await diagnosed(engine, variation)
