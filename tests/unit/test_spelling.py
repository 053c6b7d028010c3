"""The meaning of a row with another spelling for a link, and a column type's effect on a text."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from accountlink import AccountMapping, BlockedByConstraint
from accountlink.linking.decide import after_violation
from accountlink.tables.exact import Spelling, exactly
from accountlink.values.facts import Failure, Obstacle, Step, Trouble, UniqueIndex
from accountlink.values.outcomes import LinkedAccount
from tests.support.loose import LowerCase
from tests.support.models import EXCLUSIVE

KEY = UniqueIndex(name="key", schema=None, table="links", columns=("provider", "account_id"))
LOWERED = UniqueIndex(name="lowered", schema=None, table="links", columns=("provider", "(expression)"))
NARROW = UniqueIndex(name="narrow", schema=None, table="links", columns=("user_id", "provider"))
VIOLATION = Failure(trouble=Trouble.UNIQUE, error=ValueError())


def decided(index: UniqueIndex | None = KEY, *, causes: int = 2, owned: bool = True, **facts: Any) -> Any:
    obstacle: Obstacle[Any, Any] = Obstacle(index=index, ours=True, is_key=index is KEY, **facts)
    verdict = after_violation(VIOLATION, obstacle, provider="acme", causes=causes, owned=owned)
    return verdict.rule if isinstance(verdict, BlockedByConstraint) else verdict


RULE = "key-compares-differently"


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (RULE, {"misspelt": True}),
        (RULE, {"misspelt": True, "index": None}),
        (RULE, {"misspelt": True, "snapshot": True, "owned": False}),
        (RULE, {"index": LOWERED, "rule": RULE}),
        (Step.AGAIN, {"misspelt": True, "own_live": True}),  # the user's own row has come meanwhile
        ("stale-unique", {"misspelt": True, "index": NARROW}),  # which forbids any second account
        (Step.CONFLICT, {"misspelt": True, "owner": LinkedAccount(id=1, user_id=2, provider="acme", account_id="abc")}),
    ],
)
def test_a_row_of_another_spelling(expected: object, facts: dict[str, Any]) -> None:
    """Another spelling is what is in the way only where nothing of the account itself is."""
    assert expected == decided(**facts)


def spelling(kind: sa.types.TypeEngine[Any]) -> Spelling:
    names = ("id", "user_id", "provider", "account_id")
    columns = [sa.Column(name, kind if name == "account_id" else sa.Text, primary_key=name == "id") for name in names]
    return Spelling(AccountMapping(sa.Table("links", sa.MetaData(), *columns), policy=EXCLUSIVE), "account_id")


@pytest.mark.parametrize(
    "kind", [LowerCase(), sa.String(255).with_variant(LowerCase(), "sqlite")], ids=["type", "variant"]
)
def test_a_type_that_changes_texts(kind: sa.types.TypeEngine[Any]) -> None:
    """A type that makes text lower-case keeps what is so already, on whichever database it does that."""
    assert spelling(kind).has_code
    assert spelling(kind).keeps("abc")
    assert not spelling(kind).keeps("aBc")


def test_a_type_without_code_keeps_everything() -> None:
    """SQLAlchemy's own types of text change nothing."""
    assert not spelling(sa.String(255)).has_code
    assert spelling(sa.String(255)).keeps("aBc ")


def test_the_comparison_is_cached() -> None:
    """A statement that compares exactly is compiled once, as any other."""
    column = sa.column("a", sa.Text)
    query = sa.select(column).where(exactly(column, sa.bindparam("b", type_=sa.Text)))
    assert query._generate_cache_key() is not None
