"""The doctor on random schemas: a right one is clean, and one mutation of it is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.examine import examine
from tests.support.databases import run_sql
from tests.support.schemas import SHAPES, Variation

SEEDS: Final = [*range(15), *(pytest.param(seed, marks=pytest.mark.stress) for seed in range(15, 60))]
"""Each seed is one schema and one mutation of it; a failing one is in the test's name."""
NAMES: Final = ("k", '"Links Key"', "users_email_key", "calendar_connections_user_provider_unique", '"a;b--c"')
LIVE: Final = {
    "deleted_at": ("deleted_at IS NULL", "(deleted_at) IS NULL", "NOT (deleted_at IS NOT NULL)"),
    "is_active": ("is_active", "is_active = true", "is_active IS TRUE", "NOT (NOT is_active)", "is_active AND true"),
}
HARMLESS: Final[tuple[tuple[dict[str, str], str], ...]] = (
    ({"reference": "text"}, "CREATE UNIQUE INDEX h1 ON links (reference)"),
    ({"note": "text NOT NULL DEFAULT 'none'"}, "CREATE INDEX h2 ON links (note)"),
    ({"is_main": "boolean NOT NULL DEFAULT false"}, "CREATE UNIQUE INDEX h3 ON links (user_id) WHERE is_main"),
    ({}, "CREATE UNIQUE INDEX h4 ON links (id, provider)"),
    ({}, "CREATE INDEX h5 ON links (lower(email))"),
)
Mutation = Callable[[random.Random, Variation], Variation]


def key_of(shape: str) -> tuple[list[str], str | None]:
    """The columns of a shape's right key, and which mark its condition reads."""
    columns, _, condition = SHAPES[shape].key.partition(")")
    mark = next((mark for mark in LIVE if mark in condition), None)
    return columns.lstrip("(").split(", "), mark


def index(dice: random.Random, columns: list[str], condition: str = "", *, name: str | None = None) -> str:
    """A unique index under a random name, its columns in random order."""
    shuffled = ", ".join(dice.sample(columns, len(columns)))
    where = f" WHERE {condition}" if condition else ""
    return f"CREATE UNIQUE INDEX {name or dice.choice(NAMES)} ON links ({shuffled}){where}"


def right_schema(dice: random.Random) -> Variation:
    """A random schema that keeps its policy."""
    shape = dice.choice([name for name in SHAPES if not name.startswith("grants")])
    columns, mark = key_of(shape)
    key = index(dice, columns, dice.choice(LIVE[mark]) if mark else "")
    constraint = mark is None and dice.random() < 0.5
    extras = dice.sample(HARMLESS, dice.randrange(4))
    return Variation(
        name="random",
        shape=shape,
        columns={name: kind for added, _ in extras for name, kind in added.items()},
        constraints=(f"CONSTRAINT c UNIQUE ({', '.join(columns)})",) if constraint else (),
        keys=(*(() if constraint else (key,)), *(statement for _, statement in extras)),
    )


def no_key(_: random.Random, schema: Variation) -> Variation:
    """Without its key."""
    keys = tuple(statement for statement in schema.keys if " h" in statement)
    return replace(schema, keys=keys, constraints=(), rules=frozenset({"missing-key"}))


def stale(dice: random.Random, schema: Variation) -> Variation:
    """With a key that leaves a column out."""
    columns, _ = key_of(schema.shape)
    columns.remove(dice.choice(columns[-2:]))
    rules = frozenset({"stale-unique"})
    return replace(schema, keys=(*schema.keys, index(dice, columns, name="stale")), rules=rules)


def counting(dice: random.Random, schema: Variation) -> Variation:
    """With a full key beside or instead of the right one, where there are dead rows."""
    columns, mark = key_of(schema.shape)
    if mark is None:
        return stale(dice, schema)
    kept = schema.keys if dice.random() < 0.5 else no_key(dice, schema).keys
    rules = frozenset({"key-counts-deleted"})
    return replace(schema, keys=(*kept, index(dice, columns, name="full_key")), rules=rules)


def opposite(dice: random.Random, schema: Variation) -> Variation:
    """With a condition that is the opposite, or that leaves rows out."""
    columns, mark = key_of(schema.shape)
    condition = f"NOT ({dice.choice(LIVE[mark])})" if mark else "provider <> 'google'"
    keys = (*no_key(dice, schema).keys, index(dice, columns, condition))
    return replace(schema, keys=keys, constraints=(), rules=frozenset({"wrong-predicate"}))


def nullable(dice: random.Random, schema: Variation) -> Variation:
    """With a column of the key that takes NULL."""
    column = dice.choice(key_of(schema.shape)[0])
    kind = SHAPES[schema.shape].columns[column].removesuffix(" NOT NULL")
    columns = {**schema.columns, column: kind}
    return replace(schema, columns=columns, rules=frozenset({"key-enforces-nothing"}))


def folded(dice: random.Random, schema: Variation) -> Variation:
    """With a key that ignores the case of account ids, where account ids are the key."""
    columns, mark = key_of(schema.shape)
    if "account_id" not in columns:
        return stale(dice, schema)
    columns[columns.index("account_id")] = "lower(account_id)"
    extra = index(dice, columns, dice.choice(LIVE[mark]) if mark else "", name="folded")
    return replace(schema, keys=(*schema.keys, extra), rules=frozenset({"key-compares-differently"}))


def wider(dice: random.Random, schema: Variation) -> Variation:
    """With a key that has a column too many."""
    columns, mark = key_of(schema.shape)
    condition = dice.choice(LIVE[mark]) if mark else ""
    keys = (*no_key(dice, schema).keys, index(dice, [*columns, "refresh_token"], condition))
    return replace(schema, keys=keys, constraints=(), rules=frozenset({"missing-key"}))


MUTATIONS: Final[tuple[Mutation, ...]] = (no_key, stale, counting, opposite, nullable, folded, wider)


async def found(engine: AsyncEngine, schema: Variation) -> set[str]:
    await run_sql(engine, "DROP TABLE IF EXISTS links", *schema.statements(engine.dialect.name))
    async with engine.connect() as connection:
        report = await connection.run_sync(lambda sync: examine(sync, schema.mapping()))
    return {finding.rule for finding in report.findings}


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_right_schema_is_clean_and_a_mutation_of_it_is_found(engine: AsyncEngine, seed: int) -> None:
    """Whatever a right schema looks like it is clean, and one mutation gives its rule's finding and no other."""
    dice = random.Random(seed)  # noqa: S311  # replayed by its seed
    schema = right_schema(dice)
    mutation: Any = MUTATIONS[seed % len(MUTATIONS)]
    mutant = mutation(dice, schema)
    assert set() == await found(engine, schema), schema
    assert set(mutant.rules) == await found(engine, mutant), (mutation.__name__, mutant)
