"""A blocked link names its rule by a few facts about the index; the doctor, who judges it by rows, names the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.catalogue import unique_index
from accountlink.doctor.catalogue import read_catalogue
from accountlink.doctor.judge.asking import judge
from accountlink.doctor.schema import Index
from accountlink.doctor.subjects import Mapping, subject_of
from accountlink.grants.store import GrantStore
from accountlink.linking.store import AccountStore
from accountlink.tables.mapping import AccountMapping
from accountlink.values.facts import EXPRESSION, Failure, Trouble, UniqueIndex
from tests.integration.test_doctor_schemas import RIGHT, WRONG
from tests.support.databases import collation_without_case

KNOWN: Final = {
    "per-user-soft: a condition that is always true": "the facts say that there is a condition, not what it comes to",
    "exclusive: a key run together": "the facts say which columns an expression has, not how it puts them together",
}
"""Where the facts are too few, and why."""


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"])
async def test_the_rule_of_a_blocked_link_is_the_doctors(engine: AsyncEngine) -> None:
    """On every schema of the doctor's own tests each unique index that can block has the rule by which it is found."""
    dialect = engine.dialect.name
    if dialect == "postgresql":
        await collation_without_case(engine)
    differing: dict[str, Any] = {}
    looked_at = 0
    for variation in [*WRONG, *RIGHT]:
        statements = variation.statements(dialect)
        if variation.only not in (None, dialect) or any("ordinary" in statement for statement in statements):
            continue  # a role of its own changes nothing about indexes
        async with engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
            for doctors, own in await connection.run_sync(_rules, variation.mapping()):
                looked_at += 1
                if doctors not in own:
                    differing[str(variation)] = (doctors, own)
            await connection.rollback()
    assert set(KNOWN) == set(differing), differing
    assert looked_at > 100


Rules = tuple[str | None, set[str | None]]


def _rules(connection: sa.Connection, mapping: Mapping) -> list[Rules]:
    return list(_each(connection, mapping))


def _each(connection: sa.Connection, mapping: Mapping) -> Iterator[Rules]:
    """The doctor's rule of each unique index, and those that the look-up may come to, with a dead row and without."""
    dialect = connection.dialect.name
    table = read_catalogue(connection, mapping.table.name, schema=None).table
    subject = subject_of(mapping, schema=None)
    if table is None or any(table.column(name) is None for name in subject.roles.values()):
        return
    for judgement in judge(connection, subject, table):
        index = judgement.index
        found = unique_index(connection, _refused_by(index, dialect))
        assert found is not None
        if found.name != index.name:
            continue  # SQLite names columns, and another index on the same ones refuses more
        judged = judgement.rule
        if isinstance(mapping, AccountMapping):
            store: AccountStore[Any, Any] = AccountStore(mapping)
            otherwise = None if store.is_key(found.columns) else "stale-unique"
            dead = (False, True) if subject.soft else (False,)
            yield judged or otherwise, {store.rule_of(found, dead=each) or otherwise for each in dead}
        else:
            yield judged, {_of_grants(mapping, found)}


def _of_grants(mapping: Any, found: UniqueIndex) -> str | None:
    return GrantStore(mapping, None, clock=None)._rule(found)


def _refused_by(index: Index, dialect: str) -> Failure:
    """A violation of the index, as the database words it: SQLite names columns, or an index of expressions."""
    columns = tuple(part.column or EXPRESSION for part in index.parts)
    named = dialect == "postgresql" or EXPRESSION in columns
    name = index.name if named else None
    return Failure(
        trouble=Trouble.UNIQUE,
        schema="public",
        table="links",
        constraint=name,
        columns=columns,
        error=ValueError(),
    )
