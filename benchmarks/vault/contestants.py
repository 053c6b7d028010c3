"""Hold the calls that are held against one another: linkers with and without a vault, and queries by hand."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    Change,
    CredentialVault,
    Linked,
    OwnershipConflict,
    ProviderIdentity,
    TokenSet,
    Transferred,
    pending_credentials,
)
from benchmarks.ground import LINKER as PLAIN
from benchmarks.ground import Base, Connection

RIVALS = 1_000_000_000  # added to a user's id it is that of the user who comes second
SCOPES = frozenset({"calendar", "mail"})
EXPIRES_AT = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=8)
ACCESS, REFRESH = "a" * 64, "r" * 64
TOKENS = TokenSet(access_token=ACCESS, refresh_token=REFRESH, expires_at=EXPIRES_AT, scopes=SCOPES)
STANDING = 32  # as many links of each linker are read and written again in turn
PENDING = pending_credentials(Base.metadata, name="accountlink_benchmark_pending")
FERNET = Fernet(Fernet.generate_key())

Linker = AccountLinker[int, int]
_SECRETS = ["benchmark".ljust(32, "-")]
_VAULT = CredentialVault(keys=[bytes(range(32))])
SEALED: Linker = AccountLinker(Connection, secrets=_SECRETS, vault=_VAULT)
KEEPING: Linker = AccountLinker(Connection, secrets=_SECRETS, vault=_VAULT, pending=PENDING)
LINKERS = {"no vault": PLAIN, "vault": SEALED, "vault, pending": KEEPING}

_T: Any = Connection.__table__
_USERS = count(1)  # of one run: each has one link
_NOW = {"postgresql": "clock_timestamp()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Describe one call.

    Attributes:
        user_id: Who calls.
        account_id: The provider account that it is about.
        link_id: Its row, where there is one.
        token: The transfer token, where there is one.
    """

    user_id: int
    account_id: str
    link_id: int = 0
    token: str = ""

    @property
    def identity(self) -> ProviderIdentity:
        """The identity that the provider has vouched for."""
        return ProviderIdentity(provider="acme", account_id=self.account_id, email=f"{self.account_id}@example.com")


Prepare = Callable[[int], Awaitable[Sequence[Task]]]
Call = Callable[[Task], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Hold one kind of call.

    Attributes:
        name: The call, and who makes it.
        prepare: Makes the rows that so many calls need; its time does not count.
        call: Makes one call, and checks what it came to.
    """

    name: str
    prepare: Prepare
    call: Call


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Hold one contestant against another.

    Attributes:
        title: The call.
        own: The name of the contestant.
        other: The name of what it is held against.
        limit: The ratio that is aimed at, at most; ``None`` where it is only for information.
    """

    title: str
    own: str
    other: str
    limit: float | None = None


# -- rows -------------------------------------------------------------------------------------------------------------


class Rows:
    """Make the rows that calls meet, through an engine whose time does not count."""

    def __init__(self, engine: AsyncEngine, run: str) -> None:
        self._engine = engine
        self._run = run
        self._turns = count()
        self._standing: dict[str, list[Task]] = {}

    def fresh(self, number: int) -> list[Task]:
        """Make tasks of users who have no link."""
        users = [next(_USERS) for _ in range(number)]
        return [Task(user_id=user_id, account_id=f"{self._run}-{user_id}") for user_id in users]

    async def linked(self, number: int, linker: Linker, tokens: TokenSet = TOKENS) -> list[Task]:
        """Make tasks of users who have a link."""
        return [await self._linked(task, linker, tokens) for task in self.fresh(number)]

    async def _linked(self, task: Task, linker: Linker, tokens: TokenSet) -> Task:
        met = await linker.link(self._engine, user_id=task.user_id, identity=task.identity, credentials=tokens)
        assert isinstance(met, Linked)
        return Task(user_id=task.user_id, account_id=task.account_id, link_id=met.account.id)

    async def standing(self, number: int, name: str, linker: Linker, tokens: TokenSet = TOKENS) -> list[Task]:
        """Return tasks of users who have a link, the same ones in turn."""
        if name not in self._standing:
            self._standing[name] = await self.linked(STANDING, linker, tokens)
        return [self._standing[name][next(self._turns) % STANDING] for _ in range(number)]

    async def dead(self, number: int, linker: Linker) -> list[Task]:
        """Make tasks of users who had a link."""
        tasks = await self.linked(number, linker)
        for task in tasks:
            await linker.unlink(self._engine, user_id=task.user_id, link_id=task.link_id)
        return tasks

    async def rivals(self, number: int, name: str, linker: Linker) -> list[Task]:
        """Make tasks of users whose account another user has, each a user who has met no conflict."""
        owned = await self.standing(number, name, linker)
        users = [next(_USERS) + RIVALS for _ in range(number)]
        return [Task(user_id=user, account_id=task.account_id) for user, task in zip(users, owned, strict=True)]

    async def claimed(self, number: int, linker: Linker) -> list[Task]:
        """Make tasks of users who have met a conflict, whose tokens the linker keeps if it can."""
        return [await self._claimed(task, linker) for task in await self.linked(number, linker)]

    async def _claimed(self, task: Task, linker: Linker) -> Task:
        rival = task.user_id + RIVALS
        met = await linker.link(self._engine, user_id=rival, identity=task.identity, credentials=TOKENS)
        assert isinstance(met, OwnershipConflict)
        assert met.transfer_token is not None
        return Task(user_id=rival, account_id=task.account_id, token=met.transfer_token)


# -- the calls of linkers ---------------------------------------------------------------------------------------------


def writing(engine: AsyncEngine, rows: Rows) -> list[Contestant]:
    """Make the calls that write, by each linker.

    Each linker has a cache of compiled statements of its own, as in an application that has one linker. In one cache,
    the linker that comes second pays for comparing its statements with the equal ones of the first.
    """
    made: list[Contestant] = []
    for name, linker in LINKERS.items():
        own = engine.execution_options(compiled_cache={})
        made += _linking(own, rows, name, linker)
        made.append(_transferring(own, rows, name, linker, brings=True))
        if linker is KEEPING:
            made.append(_transferring(own, rows, name, linker, brings=False))
    return made


def _linking(engine: AsyncEngine, rows: Rows, name: str, linker: Linker) -> list[Contestant]:
    def linking(expected: Change | None) -> Call:
        async def call(task: Task) -> None:
            met = await linker.link(engine, user_id=task.user_id, identity=task.identity, credentials=TOKENS)
            assert expected is (met.change if isinstance(met, Linked) else None)

        return call

    async def fresh(number: int) -> Sequence[Task]:
        return rows.fresh(number)

    async def standing(number: int) -> Sequence[Task]:
        return await rows.standing(number, name, linker)

    async def dead(number: int) -> Sequence[Task]:
        return await rows.dead(number, linker)

    async def rivals(number: int) -> Sequence[Task]:
        return await rows.rivals(number, name, linker)

    return [
        Contestant(name=f"created, {name}", prepare=fresh, call=linking(Change.CREATED)),
        Contestant(name=f"updated, {name}", prepare=standing, call=linking(Change.UPDATED)),
        Contestant(name=f"restored, {name}", prepare=dead, call=linking(Change.RESTORED)),
        Contestant(name=f"conflict, {name}", prepare=rivals, call=linking(None)),
    ]


def _transferring(engine: AsyncEngine, rows: Rows, name: str, linker: Linker, *, brings: bool) -> Contestant:
    async def prepare(number: int) -> Sequence[Task]:
        return await rows.claimed(number, linker)

    async def call(task: Task) -> None:
        brought = TOKENS if brings else None
        met = await linker.transfer(engine, task.token, user_id=task.user_id, credentials=brought)
        assert isinstance(met, Transferred)
        assert met.has_credentials

    return Contestant(name=f"transfer{' kept' if not brings else ''}, {name}", prepare=prepare, call=call)


def reading(engine: AsyncEngine, rows: Rows) -> list[Contestant]:
    """Make the calls of the vault that read and replace tokens."""

    async def standing(number: int) -> Sequence[Task]:
        return await rows.standing(number, "vault", SEALED)

    async def by_id(task: Task) -> None:
        found = await SEALED.credentials(engine, user_id=task.user_id, link_id=task.link_id)
        assert found.access_token.reveal() == ACCESS

    async def by_provider(task: Task) -> None:
        found = await SEALED.credentials(engine, user_id=task.user_id, provider="acme")
        assert found.access_token.reveal() == ACCESS

    async def stored(task: Task) -> None:
        found = await SEALED.stored_credentials(engine, user_id=task.user_id, link_id=task.link_id)
        assert found.refresh_token is not None
        assert found.refresh_token.reveal() == REFRESH

    async def replaced(task: Task) -> None:
        assert await SEALED.replace_credentials(
            engine, user_id=task.user_id, link_id=task.link_id, tokens=TOKENS, presented=REFRESH
        )

    calls = {
        "credentials(link_id=)": by_id,
        "credentials(provider=)": by_provider,
        "stored_credentials": stored,
        "replace_credentials": replaced,
    }
    return [Contestant(name=name, prepare=standing, call=call) for name, call in calls.items()]


# -- by hand ----------------------------------------------------------------------------------------------------------


def by_hand(engine: AsyncEngine, rows: Rows) -> list[Contestant]:
    """Make the queries that one would write oneself, with SQLAlchemy, on a connection that commits by itself."""
    committing = engine.execution_options(isolation_level="AUTOCOMMIT")
    roles = ["id", "user_id", "provider", "account_id", "email", "scopes", "created_at", "updated_at", "deleted_at"]
    read = [_T.c[name] for name in (*roles, "version", "access_token", "refresh_token", "expires_at")]
    now: sa.ColumnElement[Any] = sa.literal_column(_NOW[engine.dialect.name])
    live = (_T.c.user_id == sa.bindparam("of"), _T.c.deleted_at.is_(None))
    named = _T.c.id == sa.bindparam("named")
    one = sa.select(*read, now).where(named, *live)
    of_provider = sa.select(*read, now).where(_T.c.provider == sa.bindparam("named"), *live)
    new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in ("access_token", "refresh_token")}
    write = sa.update(_T).where(named, *live, _T.c.refresh_token == sa.bindparam("seen")).values(**new)

    async def plain(number: int) -> Sequence[Task]:
        return await rows.standing(number, "no vault", PLAIN)

    async def encrypted(number: int) -> Sequence[Task]:
        tokens = (FERNET.encrypt(token.encode()).decode() for token in (ACCESS, REFRESH))
        brought = TokenSet(access_token=next(tokens), refresh_token=next(tokens), expires_at=EXPIRES_AT, scopes=SCOPES)
        return await rows.standing(number, "Fernet", PLAIN, brought)

    async def select(task: Task) -> None:
        async with committing.connect() as connection:
            row = (await connection.execute(one, {"named": task.link_id, "of": task.user_id})).one()
        assert row.access_token == ACCESS

    async def select_by_provider(task: Task) -> None:
        async with committing.connect() as connection:
            row = (await connection.execute(of_provider, {"named": "acme", "of": task.user_id})).one()
        assert row.access_token == ACCESS

    async def decrypted(task: Task) -> None:
        async with committing.connect() as connection:
            row = (await connection.execute(one, {"named": task.link_id, "of": task.user_id})).one()
        assert FERNET.decrypt(row.access_token).decode() == ACCESS

    async def replaced(task: Task) -> None:
        async with committing.connect() as connection:
            row = (await connection.execute(one, {"named": task.link_id, "of": task.user_id})).one()
            given = {"named": task.link_id, "of": task.user_id, "seen": row.refresh_token}
            fresh = {"new_access_token": ACCESS, "new_refresh_token": REFRESH}
            assert (await connection.execute(write, given | fresh)).rowcount == 1

    return [
        Contestant(name="SELECT by id", prepare=plain, call=select),
        Contestant(name="SELECT by provider", prepare=plain, call=select_by_provider),
        Contestant(name="SELECT and Fernet", prepare=encrypted, call=decrypted),
        Contestant(name="SELECT and UPDATE", prepare=plain, call=replaced),
    ]


COMPARISONS = [
    Comparison(title="link, created", own="created, vault", other="created, no vault", limit=1.15),
    Comparison(title="link, updated", own="updated, vault", other="updated, no vault", limit=1.15),
    Comparison(title="link, restored", own="restored, vault", other="restored, no vault", limit=1.15),
    Comparison(title="link, conflict", own="conflict, vault", other="conflict, no vault", limit=1.15),
    Comparison(title="link, created, with pending", own="created, vault, pending", other="created, vault"),
    Comparison(title="link, updated, with pending", own="updated, vault, pending", other="updated, vault"),
    Comparison(title="link, conflict, with pending", own="conflict, vault, pending", other="conflict, vault"),
    Comparison(title="transfer(credentials=)", own="transfer, vault", other="transfer, no vault"),
    Comparison(title="transfer(credentials=), pending", own="transfer, vault, pending", other="transfer, vault"),
    Comparison(title="transfer of kept tokens", own="transfer kept, vault, pending", other="transfer, vault"),
    Comparison(title="credentials(link_id=)", own="credentials(link_id=)", other="SELECT by id", limit=1.6),
    Comparison(title="credentials(provider=)", own="credentials(provider=)", other="SELECT by provider", limit=1.6),
    Comparison(title="credentials(link_id=), Fernet", own="credentials(link_id=)", other="SELECT and Fernet"),
    Comparison(title="stored_credentials", own="stored_credentials", other="SELECT by id"),
    Comparison(title="replace_credentials", own="replace_credentials", other="SELECT and UPDATE"),
]
