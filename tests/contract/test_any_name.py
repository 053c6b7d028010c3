"""Tables and columns may have any name: no part of a statement has a name that can meet them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountMapping,
    AlreadyGranted,
    Change,
    ConfigurationError,
    Granted,
    Key,
    Linked,
    LinkPolicy,
    Ownership,
    OwnershipConflict,
    Removal,
    ShareGrants,
    Transferred,
    grants_table,
    link_outbox,
    transfer_ledger,
)
from tests.support.databases import create, rows
from tests.support.models import SECRETS, identity, tokens

POLICY: Final = LinkPolicy(
    key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons={"banned"}
)
ROLES: Final[dict[str, Any]] = {
    "id": sa.Integer,
    "user_id": sa.Integer,
    "provider": sa.Text,
    "account_id": sa.Text,
    "email": sa.Text,
    "access_token": sa.Text,
    "refresh_token": sa.Text,
    "created_at": sa.DateTime(timezone=True),
    "updated_at": sa.DateTime(timezone=True),
    "deleted_at": sa.DateTime(timezone=True),
    "reason": sa.Text,
}
ORDINARY: Final = ("connections", "shares", "ledger", "events")
ONCE_TAKEN: Final = (
    "own", "other", "updated", "inserted", "answer", "event", "raised", "removed", "twin", "locked", "moved",
    "left_behind", "free", "linked", "shared", "seen", "held", "taken", "used", "ended", "issued", "use", "of", "due",
)  # fmt: skip
"""Names that parts of statements had when they could still meet an application's names."""


def quoted(name: str) -> sa.sql.quoted_name:
    """A name that may be a word of SQL's own."""
    return sa.sql.quoted_name(name, quote=True)


@dataclass(frozen=True)
class Schema:
    """The four tables that statements are about, each with a metadata of its own, which knows nothing of the others."""

    metadata: Sequence[sa.MetaData]
    linker: AccountLinker[Any, Any]
    shares: ShareGrants

    @classmethod
    def of(
        cls, tables: Sequence[str] = ORDINARY, columns: dict[str, str] | None = None, more: Sequence[str] = ()
    ) -> Schema:
        """Make them.

        Args:
            tables: The names of links, grants, ledger and outbox.
            columns: The names of the links' columns, by role; a role without one is called like its role.
            more: Names of further columns of the application's.
        """
        metadata, names = [sa.MetaData() for _ in tables], columns or {}
        links = sa.Table(
            tables[0],
            metadata[0],
            *(
                sa.Column(quoted(names.get(role, role)), kind, key=role, primary_key=role == "id")
                for role, kind in ROLES.items()
            ),
            *(
                sa.Column(quoted(name), sa.Integer, key=f"more {n}", default=1, onupdate=2)
                for n, name in enumerate(more)
            ),
        )
        c = links.c
        live = c.deleted_at.is_(None)
        sa.Index("one_owner", c.provider, c.account_id, unique=True, postgresql_where=live, sqlite_where=live)
        ledger, outbox = transfer_ledger(metadata[2], name=tables[2]), link_outbox(metadata[3], name=tables[3])
        grants = grants_table(
            metadata[1], name=tables[1], user_id=sa.Integer(), link_id=sa.Integer(), one_active_per_pair=True
        )
        linker = AccountLinker(AccountMapping(links, policy=POLICY), secrets=SECRETS, ledger=ledger, outbox=outbox)
        return cls(metadata, linker, ShareGrants(grants, accounts=linker, outbox=outbox))

    async def story(self, engine: AsyncEngine) -> None:
        """Call everything, and come to every end."""
        linker, shares = self.linker, self.shares
        made = await linker.link(engine, user_id=1, identity=identity(), credentials=tokens(expires_at=None, scopes=()))
        assert isinstance(made, Linked)
        assert made.change is Change.CREATED
        link_id = made.account.id
        again = await linker.link(engine, user_id=1, identity=identity(), expect=link_id)
        assert isinstance(again, Linked)
        assert again.change is Change.UPDATED
        await linker.unlink(engine, user_id=1, link_id=link_id, reason="left")
        back = await linker.link(engine, user_id=1, identity=identity())
        assert isinstance(back, Linked)
        assert back.change is Change.RESTORED
        await self._sharing(engine, shares, link_id)
        conflict = await linker.link(engine, user_id=2, identity=identity())
        assert isinstance(conflict, OwnershipConflict)
        moved = await linker.transfer(engine, str(conflict.transfer_token), user_id=2)
        assert isinstance(moved, Transferred)
        owner = await linker.find_owner(engine, provider="acme", account_id="sub-1")
        assert [owner] == list(await linker.accounts(engine, user_id=2))
        assert [] == list(await shares.active(engine, grantor_id=1)), "of a link that has changed hands"
        linked = [event async for event in _all(linker.events(engine))]
        assert ["linked", "updated", "unlinked", "restored", "conflict", "transferred"] == linked
        shared = [event async for event in _all(shares.events(engine))]
        assert [*2 * ["grant_issued", "grant_redeemed"], *2 * ["grant_revoked"]] == shared

    async def _sharing(self, engine: AsyncEngine, shares: ShareGrants, link_id: int) -> None:
        token = ""
        for uses in (1, 2):
            token = (
                await shares.issue(engine, grantor_id=1, link_id=link_id, expires_in=timedelta(hours=1), max_uses=uses)
            ).token
            assert isinstance(await shares.redeem(engine, token, grantee_id=3), Granted)
            assert isinstance(await shares.redeem(engine, token, grantee_id=3), AlreadyGranted)
        assert 1 == len(await shares.active(engine, grantee_id=3))
        await shares.revoke(engine, grantor_id=1, token=token)
        assert 0 == await shares.expire(engine)


async def _all(deliveries: Any) -> AsyncIterator[str]:
    async with aclosing(deliveries):
        async for delivery in deliveries:
            yield delivery.event.type.value
            await delivery.acknowledge()


@dataclass
class Heard:
    """Every word of the statements that ran, strings aside; what they name themselves; the names of parameters."""

    words: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)


async def heard(engine: AsyncEngine) -> Heard:
    """Run everything once on ordinary tables."""
    found = Heard()

    def listen(_: object, __: object, statement: str, ___: object, context: Any, ____: object) -> None:
        if context is not None and context.compiled is not None and not context.isddl:
            said = re.sub(r"'[^']*'", "", statement)
            found.words.update(re.findall(r"[A-Za-z_]\w*", said))
            found.given.update(re.findall(r"\bal_\w+|(?<= AS )[a-z_]\w*", said))
            found.parameters.update(context.compiled.binds)

    async with made(engine, Schema.of()) as schema:
        sa.event.listen(engine.sync_engine, "before_cursor_execute", listen)
        await schema.story(engine)
        sa.event.remove(engine.sync_engine, "before_cursor_execute", listen)
    return found


@asynccontextmanager
async def made(engine: AsyncEngine, schema: Schema) -> AsyncIterator[Schema]:
    for metadata in schema.metadata:
        await create(engine, metadata)
    yield schema
    async with engine.begin() as connection:
        for metadata in schema.metadata:
            await connection.run_sync(metadata.drop_all)


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=False)
async def test_a_table_may_be_called_like_any_part_of_a_statement(engine: AsyncEngine) -> None:
    """Each name that a statement gives to a part of itself can be the name of a table: of links, grants, or ours."""
    parts = sorted(word for word in (await heard(engine)).words if word.startswith("al_"))
    assert len(parts) >= len(ORDINARY)
    for at in range(0, len(parts), 3):
        async with made(engine, Schema.of([parts[(at + n) % len(parts)] for n in range(len(ORDINARY))])) as schema:
            await schema.story(engine)


@pytest.mark.parametrize("kind", ["asyncpg"], indirect=False)
async def test_a_default_may_read_a_table_that_is_called_like_a_part(engine: AsyncEngine) -> None:
    """A column's default puts a table into the statement that the statement knows nothing of."""
    parts = sorted(word for word in (await heard(engine)).words if word.startswith("al_"))
    schema = Schema.of()
    (metadata, *_), links = schema.metadata, schema.linker.mapping.table
    for name in parts:
        table = sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))
        count = sa.select(sa.func.count()).select_from(table).scalar_subquery()
        links.append_column(sa.Column(f"number of {name}", sa.Integer, key=f"n {name}", default=count))
    async with made(engine, schema):
        await schema.story(engine)
        assert len(parts) * (0,) == (await rows(engine, "SELECT * FROM connections"))[0][-len(parts) :]


@pytest.mark.parametrize("kind", ["sqlite", "asyncpg"], indirect=False)
async def test_a_table_may_be_called_like_any_part_once_was(engine: AsyncEngine) -> None:
    """The words that statements used to call their parts by are names like any other."""
    for at in range(0, len(ONCE_TAKEN), len(ORDINARY)):
        async with made(engine, Schema.of(ONCE_TAKEN[at : at + len(ORDINARY)])) as schema:
            await schema.story(engine)


@pytest.mark.parametrize("kind", ["sqlite", "psycopg"], indirect=False)
async def test_a_column_may_have_any_name_that_statements_use(engine: AsyncEngine) -> None:
    """Every word of a statement can be a column's name, and whatever it names itself the name of a role's column."""
    found = await heard(engine)
    words = sorted({word.lower() for word in found.words | found.parameters} - set(ROLES))
    async with made(engine, Schema.of(more=words)) as schema:
        await schema.story(engine)
    given = sorted(found.given - set(ROLES))
    for at in range(0, len(given), len(ROLES)):
        async with made(engine, Schema.of(columns=dict(zip(ROLES, given[at:], strict=False)))) as schema:
            await schema.story(engine)


async def test_a_column_with_the_key_of_a_parameter_is_refused() -> None:
    """SQLAlchemy would fill such a column with what the parameter brings; the message says what to do."""
    links = sa.Table(
        "links", sa.MetaData(), *(sa.Column(role, kind, primary_key=role == "id") for role, kind in ROLES.items())
    )
    links.append_column(sa.Column("al_user_id", sa.Integer))
    with pytest.raises(ConfigurationError, match="al_user_id") as refused:
        AccountMapping(links, policy=POLICY)
    assert 'key="..."' in str(refused.value)
