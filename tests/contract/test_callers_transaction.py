"""A session's or connection's transaction stays the caller's, whatever a link comes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import (
    AccountLinkError,
    AccountMismatch,
    AccountNotFound,
    AlreadyOwner,
    BlockedByConstraint,
    Change,
    Linked,
    OwnershipConflict,
    TokenForAnotherUser,
    TokenSuperseded,
    Transferred,
    Unlinked,
)
from tests.support.databases import Database, create, rows, run_sql
from tests.support.models import EXCLUSIVE, EXCLUSIVE_SOFT, Tables, identity, shared_tables, tokens

pytestmark = pytest.mark.each_driver

Call = Callable[[Any], Awaitable[object]]


class Stage:
    """A table with an owner, a stale index, and one call for each way that a link can end."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.linker = tables, tables.linker()

    async def set(self, engine: AsyncEngine) -> None:
        await create(engine, self.tables.metadata)
        await run_sql(engine, "CREATE UNIQUE INDEX stale_email ON connections (email)")
        await self.linker.link(engine, user_id=1, identity=identity("mine"), credentials=tokens())
        await self.linker.link(engine, user_id=2, identity=identity("theirs"), credentials=tokens())
        gone = await self.linker.link(engine, user_id=1, identity=identity("dead"), credentials=tokens())
        assert isinstance(gone, Linked)
        await self.linker.unlink(engine, user_id=1, link_id=gone.account.id)

    def calls(self) -> dict[str, tuple[Call, Callable[[object], bool]]]:
        link, unlink = self.linker.link, self.linker.unlink

        def changed(change: Change) -> Callable[[object], bool]:
            return lambda result: isinstance(result, Linked) and result.change is change

        def kind(*kinds: type) -> Callable[[object], bool]:
            return lambda result: isinstance(result, kinds)

        def of(**call: Any) -> Call:
            return lambda bind: link(bind, **({"user_id": 1} | call))

        return {
            "created": (of(identity=identity("new")), changed(Change.CREATED)),
            "updated": (of(identity=identity("mine"), credentials=tokens("x")), changed(Change.UPDATED)),
            "restored": (of(identity=identity("dead"), credentials=tokens("x")), changed(Change.RESTORED)),
            "conflict": (of(identity=identity("theirs")), kind(OwnershipConflict)),
            "blocked": (of(identity=identity("mine", email="theirs@example.com")), kind(BlockedByConstraint)),
            "blocked-new": (of(identity=identity("n", email="theirs@example.com")), kind(BlockedByConstraint)),
            "mismatch": (of(identity=identity("new"), expect=1), kind(AccountMismatch)),
            "missing": (of(identity=identity("new"), expect=99), kind(AccountNotFound)),
            "foreign": (
                of(identity=identity("new"), values={self.tables.Connection.score: None}),
                kind(sa.exc.IntegrityError),
            ),
            "unlinked": (lambda bind: unlink(bind, user_id=1, link_id=1), kind(Unlinked)),
            "not-unlinked": (lambda bind: unlink(bind, user_id=1, link_id=2), kind(AccountNotFound)),
            "transferred": (self.transfer, kind(Transferred)),
            "owned": (lambda bind: self.transfer(bind, times=2), kind(AlreadyOwner)),
            "rejected": (lambda bind: self.transfer(bind, user=3), kind(TokenForAnotherUser)),
            "superseded": (self.superseded, kind(TokenSuperseded)),
        }

    async def token(self, bind: Any) -> str:
        conflict = await self.linker.link(bind, user_id=1, identity=identity("theirs"))
        assert isinstance(conflict, OwnershipConflict)
        return str(conflict.transfer_token)

    async def transfer(self, bind: Any, *, user: int = 1, times: int = 1) -> object:
        token, outcome = await self.token(bind), None
        for _ in range(times):
            outcome = await self.linker.transfer(bind, token, user_id=user, credentials=tokens("x"))
        return outcome

    async def superseded(self, bind: Any) -> object:
        token = await self.token(bind)
        await self.linker.unlink(bind, user_id=2, link_id=2)
        return await self.linker.transfer(bind, token, user_id=1)


ENDINGS = (
    "created",
    "updated",
    "restored",
    "conflict",
    "blocked",
    "blocked-new",
    "mismatch",
    "missing",
    "foreign",
    "unlinked",
    "not-unlinked",
    "transferred",
    "owned",
    "rejected",
    "superseded",
)


async def ending(call: Call, bind: Any) -> object:
    try:
        return await call(bind)
    except (AccountLinkError, sa.exc.IntegrityError) as error:
        return error


async def stage(engine: AsyncEngine) -> Stage:
    made = Stage(shared_tables(EXCLUSIVE_SOFT))
    await made.set(engine)
    return made


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("how", ["autobegun session", "begun session", "outer savepoint", "connection"])
async def test_pending_work_commits_after_each_ending(engine: AsyncEngine, how: str, name: str) -> None:
    """F01: after each outcome the caller's pending work commits, and the caller's session answers the next query."""
    set_stage = await stage(engine)
    call, expected = set_stage.calls()[name]
    note = set_stage.tables.Note

    if how == "connection":
        async with engine.connect() as connection:
            await connection.execute(sa.insert(note).values(text="before"))
            assert expected(result := await ending(call, connection)), result
            await connection.execute(sa.insert(note).values(text="after"))
            await connection.commit()
    else:
        async with AsyncSession(engine) as session:
            if how == "begun session":
                async with session.begin():
                    session.add(note(text="before"))
                    assert expected(result := await ending(call, session)), result
                    session.add(note(text="after"))
                assert {"before", "after"} == {text for (text,) in await rows(engine, "SELECT text FROM notes")}
                return
            session.add(note(text="before"))
            if how == "outer savepoint":
                async with session.begin_nested():
                    session.add(note(text="inside"))
                    assert expected(result := await ending(call, session)), result
            else:
                assert expected(result := await ending(call, session)), result
            session.add(note(text="after"))
            count = await session.scalar(sa.select(sa.func.count()).select_from(note))
            assert (3 if how == "outer savepoint" else 2) == count
            await session.commit()

    texts = {"before", "after"} | ({"inside"} if how == "outer savepoint" else set())
    assert texts == {text for (text,) in await rows(engine, "SELECT text FROM notes")}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("how", ["session", "connection", "outer savepoint"])
async def test_nothing_is_committed_on_the_callers_behalf(engine: AsyncEngine, how: str, name: str) -> None:
    """Rolling back undoes the link with everything else, also when the link was the transaction's first work."""
    set_stage = await stage(engine)
    call, expected = set_stage.calls()[name]
    before = await rows(engine, "SELECT * FROM connections ORDER BY id")
    if how == "connection":
        async with engine.connect() as connection:
            assert expected(result := await ending(call, connection)), result
            await connection.rollback()
    else:
        async with AsyncSession(engine) as session:
            if how == "outer savepoint":
                savepoint = await session.begin_nested()
                assert expected(result := await ending(call, session)), result
                await savepoint.rollback()
                await session.commit()
            else:
                assert expected(result := await ending(call, session)), result
                await session.rollback()
    assert before == await rows(engine, "SELECT * FROM connections ORDER BY id")


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("name", ENDINGS)
async def test_an_untuned_sqlite_engine_keeps_the_transaction_too(database: Database, name: str) -> None:
    """SQLite's driver begins nothing before a savepoint; a link in such a transaction is still undone with it."""
    set_stage = await stage(database.engine())
    call, expected = set_stage.calls()[name]
    untuned = database.untuned()
    before = await rows(untuned, "SELECT * FROM connections ORDER BY id")
    async with AsyncSession(untuned) as session:
        assert expected(result := await ending(call, session)), result
        await session.rollback()
    assert before == await rows(untuned, "SELECT * FROM connections ORDER BY id")
    async with AsyncSession(untuned) as session:
        session.add(set_stage.tables.Note(text="before"))
        assert expected(result := await ending(call, session)), result
        await session.commit()
    assert [("before",)] == await rows(untuned, "SELECT text FROM notes")


async def test_objects_that_the_session_holds_get_the_new_values(engine: AsyncEngine) -> None:
    """ORM objects of the row are current after a link, without a lazy load that async code could not do."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    async with AsyncSession(engine) as session:
        first = await linker.link(session, user_id=1, identity=identity(), credentials=tokens("a1"))
        assert isinstance(first, Linked)
        held = await session.get(tables.Connection, first.account.id)
        assert held is not None
        assert "a1" == held.access_token
        await linker.link(session, user_id=1, identity=identity(email="new@example.com"), credentials=tokens("a2"))
        assert ("a2", "new@example.com") == (held.access_token, held.email)
        await linker.unlink(session, user_id=1, link_id=held.id)
        assert held.deleted_at is not None
        assert held.access_token is None
        again = await linker.link(session, user_id=1, identity=identity(), credentials=tokens("a3"))
        assert isinstance(again, Linked)
        assert Change.RESTORED is again.change
        assert {"access_token": "a3", "deleted_at": None} == {
            k: getattr(held, k) for k in ("access_token", "deleted_at")
        }
        held.label = "mine"
        await linker.link(session, user_id=1, identity=identity(), credentials=tokens("a4"))
        assert {"label": "mine", "access_token": "a4"} == {k: getattr(held, k) for k in ("label", "access_token")}
        await session.commit()
    assert [("mine", "a4")] == await rows(engine, "SELECT label, access_token FROM connections")


async def test_a_session_whose_object_cannot_be_read_again_stays_usable(engine: AsyncEngine) -> None:
    """F01: the values of a held object are read in a savepoint, too: what the caller had pending still commits."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    linker = tables.linker()
    await linker.link(engine, user_id=1, identity=identity())

    def spoil(_: object, __: object, statement: str, parameters: object, *___: object) -> tuple[str, Any]:
        reads = statement.startswith(("SELECT true", "SELECT 1 AS"))
        return ("SELECT no_such_column", ()) if reads else (statement, parameters)

    async with AsyncSession(engine) as session:
        session.add(tables.Note(text="kept"))
        held = await session.get_one(tables.Connection, 1)
        sa.event.listen(engine.sync_engine, "before_cursor_execute", spoil, retval=True)
        with pytest.raises(sa.exc.DBAPIError):
            await linker.link(session, user_id=1, identity=identity(), credentials=tokens())
        sa.event.remove(engine.sync_engine, "before_cursor_execute", spoil)
        assert held in session
        await session.commit()
    assert [("kept",)] == await rows(engine, "SELECT text FROM notes")


async def test_an_object_that_was_just_added_gets_values_that_it_never_had(engine: AsyncEngine) -> None:
    """An attribute that the application left out reads as None after a flush, without a look at the database."""
    tables = shared_tables(EXCLUSIVE_SOFT)
    await create(engine, tables.metadata)
    async with AsyncSession(engine) as session:
        added = tables.Connection(user_id=1, provider="acme", account_id="sub-1")
        session.add(added)
        linked = await tables.linker().link(session, user_id=1, identity=identity(), credentials=tokens())
        assert isinstance(linked, Linked)
        assert Change.UPDATED is linked.change
        assert ("access-1", "sub-1@example.com") == (added.access_token, added.email)
        assert not session.dirty


async def test_an_object_of_a_deleted_row_is_deleted_in_the_session(engine: AsyncEngine) -> None:
    """Unlinking under Removal.DELETE tells the session; a rollback brings the object back with the row."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    linker = tables.linker()
    async with AsyncSession(engine, expire_on_commit=False) as session:
        first = await linker.link(session, user_id=1, identity=identity())
        assert isinstance(first, Linked)
        held = await session.get(tables.Connection, first.account.id)
        await session.commit()
        await linker.unlink(session, user_id=1, link_id=first.account.id)
        assert held not in session
        assert await session.get(tables.Connection, first.account.id) is None
        await session.rollback()
        assert held in session
        assert await session.get(tables.Connection, first.account.id) is held


async def test_a_session_is_flushed_first(engine: AsyncEngine) -> None:
    """A user who is still pending in the session is inserted before their link."""
    tables = shared_tables(EXCLUSIVE)
    await create(engine, tables.metadata)
    async with AsyncSession(engine) as session:
        session.add(tables.Connection(user_id=9, provider="acme", account_id="sub-1"))
        outcome = await tables.linker().link(session, user_id=1, identity=identity())
        assert isinstance(outcome, OwnershipConflict)
        await session.commit()
