"""The rule behind an index that refused a write, from the columns it compares and the rows it counts."""

from __future__ import annotations

from typing import Any, Final

import pytest

from accountlink.values.blocking import rule_of_grants, rule_of_links
from accountlink.values.facts import UniqueIndex

KEY: Final = ("provider", "account_id")
E: Final = "(expression)"


def index(*columns: str, loose: tuple[str, ...] = (), reads: tuple[str, ...] = (), where: str | None = None) -> Any:
    read = frozenset({*columns, *reads} - {E})
    return UniqueIndex(
        name="i", schema=None, table="links", columns=columns, loose=frozenset(loose), reads=read, where=where
    )


LINKS: Final[dict[str, tuple[UniqueIndex, bool, str | None]]] = {
    "the key": (index(*KEY), False, None),
    "the key, and more": (index("user_id", *KEY, "email"), False, None),
    "the key where live": (index(*KEY, where="deleted_at IS NULL"), False, None),
    "the key, and a dead row": (index(*KEY), True, "key-counts-deleted"),
    "the key and more, and a dead row": (index("user_id", *KEY), True, "key-counts-deleted"),
    "the key where something else, and a dead row": (index(*KEY, where="x"), True, "wrong-predicate"),
    "a part of the key": (index("user_id", "provider"), False, "stale-unique"),
    "a part of the key, and a dead row": (index("user_id", "provider"), True, "stale-unique"),
    "a part of the key, the rest in the condition": (
        index("user_id", "provider", reads=("account_id",), where="account_id <> ''"), False, "stale-unique",
    ),
    "another column": (index("email"), False, "stale-unique"),
    "an expression of another column": (index(E, reads=("email",)), False, "stale-unique"),
    "an expression of the key": (index("provider", E, reads=("account_id",)), False, "key-compares-differently"),
    "an expression of the key, and a dead row": (
        index("provider", E, reads=("account_id",)), True, "key-compares-differently",
    ),
    "an expression beside the key": (index(*KEY, E, reads=("email",)), False, None),
    "the key, loosely": (index(*KEY, loose=("account_id",)), False, "key-compares-differently"),
    "the key, loosely in another part": (index("user_id", *KEY, loose=("user_id",)), False, None),
    "the key, and more that is loose": (index(*KEY, "email", loose=("email",)), False, None),
}  # fmt: skip


@pytest.mark.parametrize("case", LINKS)
def test_the_rule_of_an_index_on_links(case: str) -> None:
    """What the index compares decides; then whether it counts a dead row."""
    given, dead, rule = LINKS[case]
    assert rule == rule_of_links(given, key=KEY, identifier="account_id", dead=dead)


PAIR: Final = ("grantor_id", "grantee_id")
GRANTS: Final[dict[str, tuple[UniqueIndex, bool, str | None]]] = {
    "the token": (index("token"), False, None),
    "the id": (index("id"), False, None),
    "the token, loosely": (index("token", loose=("token",)), False, "key-compares-differently"),
    "an expression of the token": (index(E, reads=("token",)), False, "key-compares-differently"),
    "a pair that may be active twice": (index(*PAIR, where="active", reads=("active",)), False, "stale-unique"),
    "a pair where active": (index(*PAIR, where="active", reads=("active",)), True, None),
    "a pair ever": (index(*PAIR), True, "stale-unique"),
    "a pair where something else": (index(*PAIR, where="link_id > 0", reads=("link_id",)), True, "stale-unique"),
    "another column": (index("link_id"), True, "stale-unique"),
}


@pytest.mark.parametrize("case", GRANTS)
def test_the_rule_of_an_index_on_grants(case: str) -> None:
    """A token is one grant's, and a pair has one active grant where the mapping says so; all else is stale."""
    given, one_active, rule = GRANTS[case]
    assert rule == rule_of_grants(given, row_id="id", token="token", pair=PAIR if one_active else None, mark="active")
