"""Which statements SQLAlchemy may take for one another: those of one text and no others, on every series of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Final

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from accountlink import AccountMapping, Key, link_outbox, transfer_ledger
from accountlink.linking.statements import Shape
from accountlink.tables.mapping import CREDENTIAL_ROLES
from accountlink.tables.upserts import insert_or_nothing, insert_or_update
from accountlink.transfers.statements import TransferStatements
from tests.support.models import POLICIES, make_tables

DIALECTS: Final[dict[str, sa.Dialect]] = {
    "postgresql": sa.create_engine("postgresql+psycopg://").dialect,
    "sqlite": sa.create_engine("sqlite://", paramstyle="named").dialect,
}
IN_PARTS: Final = ("arms", "probe_and_tell", "move", "delete_and_raise", "remove_or_read")
"""Statements that write in parts (PostgreSQL)."""
IN_STEPS: Final = ("own", "insert", "update", "raise_epoch")
"""Statements that do one thing each (SQLite)."""


def text(statement: Any, dialect: str) -> str:
    return str(statement.compile(dialect=DIALECTS[dialect]))


def key(statement: Any) -> Any:
    """The statement's cache key; there always is one."""
    made = statement._generate_cache_key()
    assert made is not None
    return made.key


@cache
def statements_of(policy: str, ledger: bool, outbox: bool) -> tuple[TransferStatements, tuple[sa.Column[Any], ...]]:
    """The statements of a table, and columns of the application's own; the same table at every call."""
    tables = make_tables(POLICIES[policy])
    version = {"version": None} if ledger else {}
    mapping: AccountMapping[Any, Any] = AccountMapping(tables.Connection, policy=POLICIES[policy], **version)
    kept = transfer_ledger(tables.metadata) if ledger else None
    told = link_outbox(tables.metadata) if outbox else None
    c = mapping.table.c
    return TransferStatements(mapping, kept, told), (c.label, c.score)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A statement of one shape for one table."""

    policy: str
    ledger: bool
    outbox: bool
    name: str
    email: bool
    credentials: frozenset[str]
    insert: frozenset[int]
    update: frozenset[int]
    expect: bool
    bounded: bool
    again: bool

    @property
    def dialect(self) -> str:
        return "sqlite" if self.name in IN_STEPS else "postgresql"

    def build(self) -> Any:
        """The statement, built anew."""
        statements, columns = statements_of(self.policy, self.ledger, self.outbox)
        shape = Shape(
            email=self.email or statements._policy.key is Key.EMAIL,
            credentials=tuple(role for role in CREDENTIAL_ROLES if role in self.credentials),
            insert=tuple(columns[at] for at in sorted(self.insert)),
            update=tuple(columns[at] for at in sorted(self.update)),
            expect=self.expect,
            bounded=self.bounded,
            again=self.again,
        )
        return _build(statements, self.name, shape)


SPECS: Final = st.builds(
    Spec,
    policy=st.sampled_from(sorted(POLICIES)),
    name=st.sampled_from(IN_PARTS + IN_STEPS),
    credentials=st.frozensets(st.sampled_from(CREDENTIAL_ROLES)),
    insert=st.frozensets(st.sampled_from((0, 1))),
    update=st.frozensets(st.sampled_from((0, 1))),
    **dict.fromkeys(("ledger", "outbox", "email", "expect", "bounded", "again"), st.booleans()),
)


def _build(statements: TransferStatements, name: str, shape: Shape) -> Any:
    ledger = statements.ledger
    match name:
        case "update":
            return statements.update(shape, was_live=shape.again)
        case "raise_epoch":
            return statements.named() if ledger is None else statements.raise_epoch(ledger)
        case "move":
            return statements.move_and_tell(shape)
        case "delete_and_raise":
            return statements.delete_and_raise(bounded=shape.bounded)
        case "remove_or_read":
            reason = shape.email and "reason" in statements._c
            return statements.remove_or_read(reason=reason, bounded=shape.bounded)
        case _:
            return getattr(statements, name)(shape)


@settings(max_examples=50)
@given(SPECS, st.sampled_from([field.name for field in fields(Spec)]), SPECS)
def test_two_statements_share_a_cache_key_only_if_they_share_their_text(one: Spec, differing: str, other: Spec) -> None:
    """No statement is ever answered with the compiled form of another one, not even of one that differs in one thing.

    And a statement that is built again finds the compiled one: the cache does not fill up with copies.
    """
    two = replace(one, **{differing: getattr(other, differing)})
    first, second = one.build(), two.build()
    assert key(first) == key(one.build())
    if key(first) == key(second):
        assert (one.dialect, text(first, one.dialect)) == (two.dialect, text(second, two.dialect))


TABLE: Final = sa.Table(
    "counts",
    sa.MetaData(),
    sa.Column("a", sa.Text, primary_key=True),
    sa.Column("b", sa.Text, primary_key=True),
    sa.Column("n", sa.Integer),
    sa.Column("m", sa.Integer),
)
C: Final = TABLE.c
SETS: Final[list[dict[str, sa.ColumnElement[Any]]]] = [
    {"n": C.n},
    {"m": C.n},
    {"n": C.m},
    {"n": C.n + sa.literal_column("1")},
    {"n": C.n + sa.literal(1)},
    {"n": C.n - sa.literal(1)},
    {"n": sa.func.now()},
    {"n": C.n, "m": C.m},
    {"n": C.m, "m": C.n},
    {"n": sa.bindparam("given", type_=sa.Integer)},
    {"n": sa.bindparam("other", type_=sa.Integer)},
]
CONDITIONS: Final[list[sa.ColumnElement[bool] | None]] = [
    None,
    C.n == sa.bindparam("given", type_=sa.Integer),
    C.m == sa.bindparam("given", type_=sa.Integer),
    C.n != sa.bindparam("given", type_=sa.Integer),
    C.n == sa.bindparam("other", type_=sa.Integer),
    C.n.is_(None),
]
KEYS: Final[list[Sequence[str]]] = [("a",), ("b",), ("a", "b"), ("b", "a")]


def upserts() -> list[Any]:
    """Inserts that differ in what follows ON CONFLICT alone; and those without such a clause."""
    clauses = [
        insert_or_update(TABLE, key=columns, values=values, where=where)
        for columns in KEYS
        for values in SETS
        for where in CONDITIONS
    ]
    return [made.values(a="x", b="y") for made in [*clauses, insert_or_nothing(TABLE), sa.insert(TABLE)]]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whatever_follows_on_conflict_is_in_the_cache_key(dialect: str) -> None:
    """Target, assignments and condition each tell two statements apart, whose other parts are alike."""
    texts: dict[Any, str] = {}
    for made in upserts():
        assert texts.setdefault(key(made), text(made, dialect)) == text(made, dialect)
    assert len(set(texts.values())) == len(KEYS) * len(SETS) * len(CONDITIONS) + 2


def test_the_values_of_a_statement_that_was_compiled_for_others_are_its_own() -> None:
    """Two upserts of one cache key that bring other literals write what they bring, and not what the first one did."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        TABLE.create(connection)
        connection.execute(sa.insert(TABLE).values(a="x", b="y", n=0, m=0))
        keys = set()
        for by, at in [(1, 0), (10, 1), (100, 11), (1000, 5)]:  # the last one's condition is not met
            made = insert_or_update(
                TABLE, key=("a", "b"), values={"n": C.n + sa.literal(by)}, where=C.n == sa.literal(at)
            )
            keys.add(key(made.values(a="x", b="y")))
            connection.execute(made.values(a="x", b="y"))
        assert [("x", "y", 111, 0)] == [tuple(row) for row in connection.execute(sa.select(TABLE))]
    assert 1 == len(keys)
    engine.dispose()
