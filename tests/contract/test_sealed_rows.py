"""Text in a sealed column that its link cannot have: refused with a reason, on that row alone, by every call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, AccountMapping, Change, CredentialsUnreadable, CredentialVault, Linked, TokenSet
from tests.support.binds import BINDS, bound
from tests.support.databases import create
from tests.support.models import EMAIL_SOFT, EXCLUSIVE_SOFT, PER_USER_SOFT, identity, tokens
from tests.support.vaulted import KEY, Vaulted

HOWS = pytest.mark.parametrize("how", BINDS)
FEW_HOWS = pytest.mark.parametrize(
    "how", ["engine", *(pytest.param(how, marks=pytest.mark.stress) for how in BINDS[1:])]
)
"""What a column's text is says Python alone: the binds read it alike."""
ROLE = pytest.mark.parametrize("role", ["access_token", pytest.param("refresh_token", marks=pytest.mark.stress)])
UNKNOWN = bytes(range(2, 34))
ROLES = ("access_token", "refresh_token")
SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
MINE, NEXT = tokens("mine", "mine", expires_at=SOON), tokens("next", "next", expires_at=SOON)


def flipped(text: str, place: int) -> str:
    """The text with one bit of its base64url changed, at a place counted from the end."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = len(text) - place
    return text[:at] + alphabet[alphabet.index(text[at]) ^ 1] + text[at + 1 :]


def future(text: str) -> str:
    return "al2" + text.removeprefix("al1")


def another_key(text: str) -> str:
    first, _, *rest = text.split(".")
    return ".".join([first, "AAAAAAAA", *rest])


def another_grant(text: str) -> str:
    first, key, _, data = text.split(".")
    return ".".join([first, key, "A" * 16, data])


DAMAGED: dict[str, tuple[Callable[[str], str], str]] = {
    "a flipped bit of the tag": (lambda text: flipped(text, 5), "not_authentic"),
    "a flipped bit of the ciphertext": (lambda text: flipped(text, 60), "not_authentic"),
    "another key id": (another_key, "unknown_key"),
    "another grant id": (another_grant, "not_authentic"),
    "a cut": (lambda text: text[:-4], "not_authentic or malformed"),
    "a cut to nothing": (lambda text: text.rpartition(".")[0] + ".", "malformed"),
    "a future format": (future, "unknown_format"),
    "plain text": (lambda _: "ya29.a0AfH6SM", "plain_text"),
    "a blank in front": (lambda text: " " + text, "plain_text"),
    "a line behind": (lambda text: text + "\n", "malformed"),
}


async def is_refused(vaulted: Vaulted, bind: Any, link: Any, *, role: str, reason: str, user_id: int = 1) -> None:
    """Every call that opens the row's token is refused, and no message shows it."""
    linker = vaulted.linker
    calls = [
        linker.stored_credentials(bind, user_id=user_id, link_id=link),
        linker.replace_credentials(bind, user_id=user_id, link_id=link, tokens=NEXT, presented="mine"),
    ]
    for call in calls:
        with pytest.raises(CredentialsUnreadable) as raised:
            await call
        assert role == raised.value.role
        assert raised.value.reason in reason.split(" or ")  # whether the bits that are left over are zero is chance


@FEW_HOWS
@ROLE
@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_damaged_envelope_is_refused_on_its_row_alone(
    engine: AsyncEngine, damage: str, role: str, how: str
) -> None:
    """A29, A30: and what the user's other column and other rows contain is still read."""
    vaulted = await Vaulted().create(engine)
    mine = await vaulted.linked(engine, credentials=MINE)
    other = await vaulted.linked(engine, 1, "sub-2", credentials=NEXT)
    change, reason = DAMAGED[damage]
    column, is_mine = vaulted.table.c[role], vaulted.table.c.id == mine
    async with engine.begin() as connection:
        text = str(await connection.scalar(sa.select(column).where(is_mine)))
        await connection.execute(sa.update(vaulted.table).where(is_mine).values({role: change(text)}))
    before = await vaulted.column(engine, *ROLES)
    async with bound(engine, how) as bind:
        await is_refused(vaulted, bind, mine, role=role, reason=reason)
        assert NEXT == await vaulted.linker.stored_credentials(bind, user_id=1, link_id=other)
    if role == "refresh_token":
        valid = await vaulted.linker.credentials(engine, user_id=1, link_id=mine)
        assert MINE.access_token == valid.access_token
    assert before == await vaulted.column(engine, *ROLES)


MOVES = {
    "another user": (2, "acme", "sub-1"),
    "another provider": (1, "other", "sub-1"),
    "another account": (1, "acme", "sub-2"),
}


@pytest.mark.each_driver
@FEW_HOWS
@ROLE
@pytest.mark.parametrize("to", MOVES)
async def test_an_envelope_in_another_row_is_refused(engine: AsyncEngine, to: str, role: str, how: str) -> None:
    """A29: of another user, or of another provider or account of the same user."""
    vaulted = await Vaulted(PER_USER_SOFT, pending=False).create(engine)
    user, provider, account = MOVES[to]
    mine = await vaulted.linked(engine, credentials=MINE)
    theirs = await vaulted.linked(engine, user, account, provider=provider, credentials=NEXT)
    t = vaulted.table
    moved = sa.select(t.c[role]).where(t.c.id == mine).scalar_subquery()
    async with engine.begin() as connection:
        await connection.execute(sa.update(t).where(t.c.id == theirs).values({role: moved}))
    async with bound(engine, how) as bind:
        await is_refused(vaulted, bind, theirs, role=role, reason="not_authentic", user_id=user)
        assert MINE == await vaulted.linker.stored_credentials(bind, user_id=1, link_id=mine)


async def test_an_envelope_in_the_other_column_is_refused(engine: AsyncEngine) -> None:
    """A29: a refresh token is never given out as an access token."""
    vaulted = await Vaulted().create(engine)
    mine = await vaulted.linked(engine, credentials=MINE)
    async with engine.begin() as connection:
        await connection.execute(sa.update(vaulted.table).values(access_token=vaulted.table.c.refresh_token))
    await is_refused(vaulted, engine, mine, role="access_token", reason="not_authentic")
    with pytest.raises(CredentialsUnreadable):
        await vaulted.linker.credentials(engine, user_id=1, link_id=mine)


async def test_an_envelope_in_another_table_is_refused(engine: AsyncEngine) -> None:
    """A29: of the same user and account; after a rename the old name, given as the context, opens it."""
    vaulted = await Vaulted().create(engine)
    await vaulted.linked(engine, credentials=MINE)
    metadata = sa.MetaData()
    columns = [sa.Column(c.name, c.type, primary_key=c.primary_key) for c in vaulted.table.columns]
    table = sa.Table("renamed", metadata, *columns)
    await create(engine, metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(table).from_select(table.columns.keys(), sa.select(*vaulted.table.columns)))
    for context in (None, "connections"):
        mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=EXCLUSIVE_SOFT)
        linker = AccountLinker(mapping, vault=CredentialVault(keys=[KEY], context=context))
        if context is None:
            with pytest.raises(CredentialsUnreadable) as raised:
                await linker.stored_credentials(engine, user_id=1, provider="acme")
            assert "not_authentic" == raised.value.reason
        else:
            assert MINE == await linker.stored_credentials(engine, user_id=1, provider="acme")


async def test_an_unknown_key_is_told_before_anything_is_sealed_with_another(engine: AsyncEngine) -> None:
    """A30: a key that is lost is lost for its rows alone, and linking again heals them."""
    vaulted = await Vaulted(vault=CredentialVault(keys=[UNKNOWN])).create(engine)
    lost = await vaulted.linked(engine, credentials=MINE)
    vaulted.linker = vaulted.other_linker(vault=CredentialVault(keys=[KEY]))
    kept = await vaulted.linked(engine, 1, "sub-2", credentials=NEXT)
    await is_refused(vaulted, engine, lost, role="access_token", reason="unknown_key")
    assert NEXT == await vaulted.linker.stored_credentials(engine, user_id=1, link_id=kept)
    await vaulted.linked(engine, credentials=NEXT)
    assert NEXT == await vaulted.linker.stored_credentials(engine, user_id=1, link_id=lost)


async def test_an_older_envelope_of_the_same_link_is_not_detected(engine: AsyncEngine) -> None:
    """A29: documented: whoever may write the table can put back what once stood in the same row."""
    vaulted = await Vaulted().create(engine)
    mine = await vaulted.linked(engine, credentials=MINE)
    ((access, refresh),) = await vaulted.column(engine, *ROLES)
    await vaulted.linked(engine, credentials=NEXT)
    async with engine.begin() as connection:
        await connection.execute(sa.update(vaulted.table).values(access_token=access, refresh_token=refresh))
    assert MINE == await vaulted.linker.stored_credentials(engine, user_id=1, link_id=mine)


# -- what a row keeps, and what it loses ------------------------------------------------------------------------------

TABLES: dict[str, dict[str, Any]] = {"soft": {}, "no nulls": {"nulls": False}, "outbox": {"outbox": True}}
TABLE = pytest.mark.parametrize("table", TABLES)


@pytest.mark.each_driver
@HOWS
@TABLE
async def test_a_relink_keeps_a_refresh_token_or_replaces_it(engine: AsyncEngine, table: str, how: str) -> None:
    """RFC 6749, sections 5.1 and 6: kept, it is readable; scopes are those granted last."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    first = TokenSet(access_token="a-1", refresh_token="r-1", scopes={"read"}, client="web", extra={"url": "one"})
    await vaulted.linked(engine, credentials=first)
    relinks: list[tuple[dict[str, Any], tuple[str, str, set[str]]]] = [
        ({"access_token": "a-2"}, ("a-2", "r-1", {"read"})),
        ({"access_token": "a-3", "scopes": {"write"}}, ("a-3", "r-1", {"write"})),
        ({"access_token": "a-4", "refresh_token": "r-4", "extra": {"url": "four"}}, ("a-4", "r-4", {"write"})),
        ({"access_token": "a-5"}, ("a-5", "r-4", {"write"})),
    ]
    async with bound(engine, how) as bind:
        for brought, expected in relinks:
            await vaulted.linked(bind, credentials=TokenSet(**brought))
            assert expected[:2] == await vaulted.whole(bind, 1)
            stored = await vaulted.linker.stored_credentials(bind, user_id=1, provider="acme")
            assert (frozenset(expected[2]), set(brought.get("extra", ()))) == (stored.scopes, set(stored.extra))
        await vaulted.linked(bind)
        assert ("a-5", "r-4") == await vaulted.whole(bind, 1)


@pytest.mark.each_driver
@HOWS
@TABLE
async def test_an_unlink_wipes_and_a_restore_brings_nothing_back(engine: AsyncEngine, table: str, how: str) -> None:
    """A32: every credential column, NOT NULL ones too; the former refresh token does not come back with a new link."""
    vaulted = await Vaulted(**TABLES[table]).create(engine)
    link_id = await vaulted.linked(engine, credentials=MINE)
    empty = ("", "", "") if table == "no nulls" else (None, None, None)
    roles = (*ROLES, "scopes")
    async with bound(engine, how) as bind:
        await vaulted.linker.unlink(bind, user_id=1, link_id=link_id)
    assert [empty] == await vaulted.column(engine, *roles)
    async with bound(engine, how) as bind:
        outcome = await vaulted.linker.link(bind, user_id=1, identity=identity())
        assert isinstance(outcome, Linked)
        assert (link_id, Change.RESTORED) == (outcome.account.id, outcome.change)
    assert [empty] == await vaulted.column(engine, *roles)
    await vaulted.linker.unlink(engine, user_id=1, link_id=link_id)
    async with bound(engine, how) as bind:
        await vaulted.linked(bind, credentials=TokenSet(access_token="new"))
        assert ("new", None) == await vaulted.whole(bind, 1)


@HOWS
async def test_tokens_that_nothing_wiped_are_not_restored(engine: AsyncEngine, how: str) -> None:
    """A32: a row that the application's own code marked as dead still has tokens: a restore wipes them."""
    vaulted = await Vaulted().create(engine)
    await vaulted.linked(engine, credentials=MINE)
    async with engine.begin() as connection:
        await connection.execute(sa.update(vaulted.table).values(deleted_at=sa.func.now()))
    async with bound(engine, how) as bind:
        await vaulted.linked(bind)
    assert [(None, None)] == await vaulted.column(engine, *ROLES)


@HOWS
async def test_an_account_id_that_is_filled_in_leaves_a_kept_token_readable(engine: AsyncEngine, how: str) -> None:
    """Under EMAIL the envelope is bound to the e-mail key: neither the account id nor a spelling is part of it."""
    model = Vaulted(EMAIL_SOFT, pending=False).table
    columns = [sa.Column(c.name, c.type, primary_key=c.primary_key, nullable=True) for c in model.columns]
    table = sa.Table("by_email", metadata := sa.MetaData(), *columns)
    await create(engine, metadata)
    mapping: AccountMapping[Any, Any] = AccountMapping(table, policy=EMAIL_SOFT)
    linker = AccountLinker(mapping, vault=CredentialVault(keys=[KEY]))
    outcomes: list[object] = []
    for spelling, brought in (("Ann@Example.com", MINE), ("ann@example.com", TokenSet(access_token="second"))):
        who = identity(email=spelling)
        async with bound(engine, how) as bind:
            outcomes.append(await linker.link(bind, user_id=1, identity=who, credentials=brought))
        if brought is MINE:
            async with engine.begin() as connection:
                await connection.execute(sa.update(table).values(account_id=sa.null()))
    (_, outcome) = outcomes
    assert isinstance(outcome, Linked)
    assert (Change.UPDATED, "sub-1") == (outcome.change, outcome.account.account_id)
    stored = await linker.stored_credentials(engine, user_id=1, provider="acme")
    assert ("second", MINE.refresh_token) == (stored.access_token.reveal(), stored.refresh_token)
