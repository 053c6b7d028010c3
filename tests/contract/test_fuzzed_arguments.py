"""Whatever comes in: every public function is called with odd arguments, and answers or refuses in its own words.

Nothing but an ``AccountLinkError``, a ``TypeError`` or a violation as SQLAlchemy raised it comes out, and no message
shows an argument's text. With ``ACCOUNTLINK_TEST_STRESS`` set, many more examples are made; ``-rP`` shows the counts.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import accountlink
from accountlink import (
    AccountLinker,
    AccountLinkError,
    AccountMapping,
    CredentialVault,
    GrantMapping,
    HealthState,
    Key,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    Plaintext,
    ProviderIdentity,
    Removal,
    ShareGrants,
    TokenSet,
    grants_table,
    link_outbox,
    pending_credentials,
    refresh_states,
)
from accountlink.doctor import alembic
from accountlink.providers import OAuthClient, oidc
from accountlink.testing import FakeRefresher
from tests.support.databases import Database, create
from tests.support.models import EXCLUSIVE_SOFT, SECRETS
from tests.support.odd import CANARY, ODD, OTHERS, TEXTS, shown

STRESS: Final = bool(os.environ.get("ACCOUNTLINK_TEST_STRESS"))
PURE: Final = 1_000 if STRESS else 15
ON_DATABASE: Final = 500 if STRESS else 10


# -- what there is to be called ---------------------------------------------------------------------------------------


def public() -> dict[str, Callable[..., Any]]:
    """Every function, class and method that an application may call, by its name."""
    found: dict[str, Callable[..., Any]] = {"doctor.alembic.watch": alembic.watch}
    for name in accountlink.__all__:
        value = getattr(accountlink, name)
        if not inspect.isclass(value):
            found[name] = value
        if not inspect.isclass(value) or issubclass(value, LinkedAccountMixin):
            continue
        if not issubclass(value, (BaseException, enum.Enum)):
            found[name] = value
        for kind in value.__mro__:
            for method in vars(kind) if kind.__module__.startswith("accountlink") else ():
                if not method.startswith("_") and inspect.isroutine(inspect.getattr_static(kind, method)):
                    found[f"{kind.__name__}.{method}"] = getattr(kind, method)
    return found


PUBLIC: Final = public()


# -- how it is called -------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The application's tables."""


class Kind(enum.Enum):
    ONE = "one"


class Connection(LinkedAccountMixin, Base):
    """Links, with a column of each ordinary type beside them."""

    __tablename__ = "connections"
    __link_policy__ = EXCLUSIVE_SOFT
    id: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)
    user_id: Mapped[int]
    label: Mapped[str | None] = mapped_column(sa.String(20))
    score: Mapped[int | None]
    ratio: Mapped[float | None]
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    flag: Mapped[bool | None]
    moment: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    naive: Mapped[datetime | None] = mapped_column(sa.DateTime)
    day: Mapped[date | None]
    hour: Mapped[time | None]
    span: Mapped[timedelta | None]
    mark: Mapped[UUID | None]
    raw: Mapped[bytes | None]
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    sort: Mapped[Kind | None]

    @property
    def shout(self) -> str:
        """An attribute that is no column."""
        return str(self.label).upper()


OWN: Final = ("label", "score", "ratio", "price", "flag", "moment", "naive", "day", "hour", "span", "mark", "raw")
COLUMNS: Final = [getattr(Connection, name) for name in (*OWN, "document", "sort")]
KEYS: Final = [*COLUMNS, Connection.user_id, Connection.provider, "label", Connection.shout, Base.metadata]
CANARIES: Final = {"access_token": CANARY, "refresh_token": f"{CANARY}-2", "id_token": f"{CANARY}-3"}
IDENTITY: Final = ProviderIdentity(provider="acme", account_id="sub-1", email=f"{CANARY}@example.com")
VALUES: Final = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=2)
FITTING: Final = st.dictionaries(st.sampled_from(COLUMNS), ODD, min_size=1, max_size=2)
OUTBOX: Final = link_outbox(Base.metadata)
VAULT: Final = CredentialVault(keys=[bytes(32)])
PENDING: Final = pending_credentials(Base.metadata)
REFRESHES: Final = refresh_states(Base.metadata)
CLIENT: Final = OAuthClient(client_id="id", client_secret=f"{CANARY}-4", token_endpoint="https://acme.example/token")
PROVIDER: Final = oidc("acme", issuer="https://acme.example", client_id="id", client_secret=f"{CANARY}-4")
GRANTS: Final = grants_table(Base.metadata, link_id=Connection.id)


def identities() -> st.SearchStrategy[Any]:
    """Identities of a few accounts, with whatever a provider may send."""
    made: st.SearchStrategy[dict[str, Any]] = st.builds(
        dict,
        provider=st.sampled_from(["acme", "other", "x" * 200]),
        account_id=st.sampled_from(["sub-1", "sub-2", "é" * 255, 12345, "%s"]),
        email=st.sampled_from([None, "ann@example.com", "not an address", f"{'x' * 300}@example.com"]),
    )
    return made.map(lambda given: ProviderIdentity(**given))


def credentials() -> st.SearchStrategy[Any]:
    """Token sets, with moments at both ends of what there is, and tokens of every size."""
    moments = [
        None,
        datetime(2026, 2, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
    ]
    made: st.SearchStrategy[dict[str, Any]] = st.builds(
        dict,
        access_token=st.sampled_from([CANARY, CANARY * 5_000]),
        refresh_token=st.sampled_from([None, CANARY]),
        expires_at=st.sampled_from(moments),
        scopes=st.sampled_from([frozenset(), frozenset({"read"}), frozenset({"x" * 5_000})]),
    )
    return made.map(lambda given: TokenSet(**given))


@dataclass(frozen=True)
class Call:
    """How a function is called.

    Attributes:
        good: What each argument may rightly be: a list of values, or a strategy.
        told: Arguments that are names, which a message may tell again.
    """

    good: Mapping[str, Any]
    told: frozenset[str] = frozenset()


def taking(*told: str, **good: Any) -> Call:
    return Call(good, frozenset(told))


BASES: Final = ["/settings", "https://app.example/x?y=1"]
SECONDS: Final = [timedelta(minutes=1), timedelta(hours=1)]
BINDS: Final = ["engine", "connection", "session"]
"""Opened anew for each call, by name."""
NAMES: Final = {"name": ["some_table", "x" * 60, "é" * 40], "schema": [None, "elsewhere"]}
MAPPED: Final = [AccountMapping(Connection, policy=EXCLUSIVE_SOFT)]
REDIRECTING: Final = ("Linked", "Unlinked", "Transferred", "AlreadyOwner", "OwnershipConflict")
CALLS: Final[dict[str, Call]] = {
    "doctor.alembic.watch": taking(
        "ignore", target_metadata=[sa.MetaData()], targets=[MAPPED[0]], ignore=[(), ["duplicates"]]
    ),
    "AccountLinkError.redirect_url": taking(base=BASES),
    "AccountLinker": taking(
        accounts=[Connection, *MAPPED],
        secrets=[SECRETS, ()],
        clock=[lambda: datetime.now(UTC)],
        guard_last=[None],
        ledger=[None],
        outbox=[None, OUTBOX],
        vault=[None, VAULT],
        pending=[None, PENDING],
        refresher=[None, FakeRefresher()],
        refreshes=[None, REFRESHES],
        transfer_lifetime=SECONDS,
        lock_timeout=[None, *SECONDS],
    ),
    "AccountLinker.link": taking(
        bind=BINDS,
        user_id=[1, 2],
        identity=identities(),
        credentials=st.none() | credentials(),
        expect=[None, 1],
        values=st.none() | FITTING,
        update_values=st.none() | FITTING,
    ),
    "AccountLinker.transfer": taking(
        bind=BINDS,
        token=["", "token"],
        user_id=[1, 2],
        credentials=st.none() | credentials(),
        max_auth_age=[None, *SECONDS],
    ),
    "AccountLinker.accounts": taking(bind=BINDS, user_id=[1], provider=[None, "acme"]),
    "AccountLinker.unlinked": taking(bind=BINDS, user_id=[1], provider=[None, "acme"]),
    "AccountLinker.account": taking(bind=BINDS, user_id=[1], link_id=[None, 1], provider=[None, "acme"]),
    "AccountLinker.credentials": taking(
        engine=["engine"],
        user_id=[1, 2],
        link_id=[None, 1],
        provider=[None, "acme"],
        min_valid=SECONDS,
        require=[(), {"read"}],
        rejected=[None, CANARY],
    ),
    "AccountLinker.stored_credentials": taking(bind=BINDS, user_id=[1, 2], link_id=[None, 1], provider=[None, "acme"]),
    "AccountLinker.replace_credentials": taking(
        bind=BINDS,
        user_id=[1, 2],
        tokens=credentials(),
        presented=[CANARY],
        link_id=[None, 1],
        provider=[None, "acme"],
    ),
    "AccountLinker.health": taking(bind=BINDS, user_id=[1, 2]),
    "AccountLinker.unhealthy": taking(engine=["engine"], state=[None, HealthState.FAILING]),
    "AccountLinker.keep_alive": taking(engine=["engine"], idle=SECONDS, limit=[None, 1]),
    "AccountLinker.check_user": taking(user_id=[1, 2]),
    "AccountLinker.find_owner": taking(bind=BINDS, provider=["acme"], account_id=["sub-1"]),
    "AccountLinker.events": taking(engine=["engine"], poll=[None], lease=SECONDS),
    "AccountLinker.batches": taking(engine=["engine"], size=[1, 100, 10_000], poll=[None], lease=SECONDS),
    "AccountLinker.unlink": taking(bind=BINDS, user_id=[1, 2], link_id=[1, 2, 3], reason=[None, "asked to"]),
    "AccountMapping": taking(
        target=[Connection, Connection.__table__],
        policy=[EXCLUSIVE_SOFT, LinkPolicy()],
        given=[{}, {"email": None}, {"email": Connection.label}, {"version": Connection.label}],
    ),
    "AccountMapping.column": taking(attribute=COLUMNS),
    "AccountMapping.written": taking(role=["version"]),
    "Batch.acknowledge": taking(),
    "CredentialVault": taking(
        keys=[None, [bytes(32)]], source=[None], context=[None, "some_table"], plaintext=list(Plaintext)
    ),
    "CredentialVault.of": taking(mapping=[MAPPED[0]]),
    "Delivery.acknowledge": taking(),
    "GrantMapping": taking(target=[GRANTS], one_active_per_pair=[False, True], given=[{}, {"link_id": None}]),
    "GrantMapping.with_one_active_per_pair": taking(),
    "LinkPolicy": taking(
        key=list(Key), ownership=list(Ownership), removal=list(Removal), blocked_reasons=[(), {"fraud"}]
    ),
    "OAuthRefresher": taking(
        clients=[{}, {"acme": [CLIENT]}],
        extra=[None, {"acme": ["instance_url"]}],
        transport=[None],
        clock=[lambda: datetime.now(UTC)],
    ),
    "OAuthRefresher.of": taking(providers=[(), [PROVIDER]], transport=[None], clock=[lambda: datetime.now(UTC)]),
    "OwnershipConflict.as_problem": taking(),
    "ProviderIdentity": taking(
        provider=["acme"],
        account_id=["sub-1", 7],
        email=[None, f"{CANARY}@example.com"],
        email_verified=[None, True],
        issuer=[None, "https://acme.example"],
        display_name=[None, CANARY],
        claims=[{}, {"sub": CANARY}, {str(number): [CANARY] * 100 for number in range(1_000)}],
    ),
    "ShareGrants": taking(
        grants=[GRANTS],
        accounts=[Connection, *MAPPED],
        outbox=[None, OUTBOX],
        clock=[None],
        one_active_per_pair=[False, True],
        lock_timeout=[None, *SECONDS],
    ),
    "ShareGrants.issue": taking(
        bind=BINDS, grantor_id=[1], link_id=[None, 1], expires_in=SECONDS, max_uses=[1, 2, 2**31 - 1]
    ),
    "ShareGrants.redeem": taking(bind=BINDS, token=["token", CANARY * 1_000], grantee_id=[1, 2]),
    "ShareGrants.revoke": taking(bind=BINDS, grantor_id=[1], grant_id=[None, UUID(int=7)], token=[None, "token"]),
    "ShareGrants.expire": taking(bind=BINDS),
    "ShareGrants.active": taking(bind=BINDS, grantor_id=[None, 1], grantee_id=[None, 2], link_id=[None, 1]),
    "ShareGrants.events": taking(engine=["engine"], poll=[None], lease=SECONDS),
    "ShareGrants.batches": taking(engine=["engine"], size=[1, 100, 10_000], poll=[None], lease=SECONDS),
    "TokenSet": taking(
        **{name: [text] for name, text in CANARIES.items()},
        expires_at=[None, datetime(2026, 1, 1, tzinfo=UTC)],
        scopes=[(), {"read"}],
        token_type=["Bearer"],
        extra=[None, {"instance_url": CANARY}],
        client=[None, "web"],
        refresh_expires_at=[None, datetime(2026, 1, 1, tzinfo=UTC)],
    ),
    "TokenSet.from_response": taking(
        response=[CANARIES, {"access_token": CANARY, "scope": "a b", "expires_in": 3600}],
        received_at=[datetime(2026, 1, 1, tzinfo=UTC)],
        extra=[(), ["scope"]],
        client=[None, "web"],
        refresh_expires_in=[None, "expires_in"],
    ),
    "VaultKey": taking(secret=[bytes(32), "A" * 43], id=[None]),
    "diagnose": taking(
        "ignore", engine=["engine"], linker=[*MAPPED], look=list(accountlink.Look), ignore=[(), ["duplicates"]]
    ),
    "grants_table": taking(
        *NAMES,
        metadata=st.builds(sa.MetaData),
        user_id=[sa.BigInteger, sa.Uuid()],
        link_id=[None, sa.Integer()],
        one_active_per_pair=[False, True],
        **NAMES,
    ),
    "link_outbox": taking(*NAMES, metadata=st.builds(sa.MetaData), **NAMES),
    "normalize_email": taking(email=["ann@example.com"]),
    "pooler_options": taking(
        "url", url=["postgresql+asyncpg://h/d", "postgresql+psycopg://h/d"], connect_args=[None, {"timeout": 3}]
    ),
    "pending_credentials": taking(*NAMES, metadata=st.builds(sa.MetaData), **NAMES),
    "refresh_states": taking(*NAMES, metadata=st.builds(sa.MetaData), **NAMES),
    "transfer_ledger": taking(*NAMES, metadata=st.builds(sa.MetaData), **NAMES),
    "tune_sqlite": taking(engine=["new engine"], busy_timeout=[0, 5_000]),
    **{f"{kind}.redirect_url": taking(base=BASES) for kind in REDIRECTING},
}
MADE: Final = (
    "AlreadyGranted", "AlreadyOwner", "Batch", "Delivery", "Finding", "Grant", "GrantEvent", "Granted", "Health",
    "IssuedGrant", "KeptAlive",
    "LinkEvent", "Linked", "LinkedAccount", "OwnershipConflict", "Revoked", "Secret", "Transferred", "Unlinked",
)  # fmt: skip
"""Values that the library makes and returns: their constructors check nothing."""
ELSEWHERE: Final = (
    "AccountLinker.aclose", "CredentialVault.stored_in", "KeySource", "KeySource.current", "KeySource.get",
    "LinkedAccountAuth", "LinkedAccountAuth.async_auth_flow", "LinkedAccountAuth.sync_auth_flow",
    "OAuthRefresher.can_renew", "OAuthRefresher.renew", "Refresher", "Refresher.can_renew", "Refresher.renew",
)  # fmt: skip
"""Protocols that an application follows, and what the library itself or a client of HTTP calls."""
ON_BIND: Final = ("bind", "engine")
POSTGRESQL: Final[sa.Dialect] = sa.make_url("postgresql+asyncpg://").get_dialect()()


def test_every_public_function_is_fuzzed() -> None:
    """A function that is new, or has a new argument, fails here until it is said what it may be called with."""
    assert sorted(PUBLIC) == sorted([*CALLS, *MADE, *ELSEWHERE])
    for name, call in CALLS.items():
        assert set(inspect.signature(PUBLIC[name]).parameters) - {"self"} == set(call.good), name


def arguments(call: Call) -> st.SearchStrategy[dict[str, Any]]:
    """Good arguments, of which one or two are replaced by odd ones."""
    good = {
        name: values if isinstance(values, st.SearchStrategy) else st.sampled_from(values)
        for name, values in call.good.items()
    }
    if not good:
        return st.just({})
    odd = {name: ODD | VALUES if name.endswith("values") else ODD for name in good}
    which = st.sets(st.sampled_from(sorted(good)), max_size=2)
    return which.flatmap(lambda chosen: st.fixed_dictionaries({n: odd[n] if n in chosen else good[n] for n in good}))


class Counts:
    """The results of one function's calls."""

    def __init__(self, name: str, call: Call) -> None:
        self.name = name
        self.call = call
        self.ended: Counter[str] = Counter()

    def returned(self) -> None:
        self.ended["returned"] += 1

    def raised(self, error: BaseException, given: Mapping[str, Any]) -> None:
        """Judge an error: of which class it is, and what it shows."""
        self.ended[type(error).__name__] += 1
        if not isinstance(error, (AccountLinkError, TypeError, IntegrityError)):
            raise error
        if isinstance(error, AccountLinkError) and not any(name in self.call.told for name in given):
            assert CANARY not in shown(error), shown(error)

    def tell(self) -> None:
        total = sum(self.ended.values())
        print(f"{self.name}: {total} calls, {dict(self.ended.most_common())}")  # noqa: T201  # the counts are the product


def examples(number: int) -> settings:
    quick = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.explicit, Phase.generate, Phase.shrink]
    return settings(
        max_examples=number,
        suppress_health_check=quick,
        phases=phases,
        database=None,
        derandomize=not STRESS,
    )


# -- functions without a database -------------------------------------------------------------------------------------


def made(name: str) -> Any:
    """An object whose method is to be called."""
    match name:
        case "Linked":
            return accountlink.Linked(account=ACCOUNT, change=accountlink.Change.CREATED)
        case "OwnershipConflict":
            return accountlink.OwnershipConflict(provider="acme", account_id="sub-1", transfer_token=CANARY)
        case "Transferred":
            return accountlink.Transferred(account=ACCOUNT, previous_owner_id=7)
        case "Unlinked" | "AlreadyOwner":
            return getattr(accountlink, name)(account=ACCOUNT)
        case "AccountLinkError":
            return accountlink.AccountNotFound()
        case "AccountLinker":
            return AccountLinker(MAPPED[0])
        case "AccountMapping":
            return MAPPED[0]
        case "CredentialVault":
            return VAULT
        case "GrantMapping":
            return GrantMapping(GRANTS)
        case _:
            raise LookupError(name)


ACCOUNT: Final = accountlink.LinkedAccount(id=1, user_id=7, provider="acme", account_id="sub-1")
WITH_DATABASE: Final = [name for name, call in CALLS.items() if set(call.good) & set(ON_BIND)]
WITHOUT: Final = [name for name in CALLS if name not in WITH_DATABASE and not name.endswith(".acknowledge")]


def called(name: str, given: dict[str, Any]) -> Any:
    """Call a function with what it takes by position and by keyword."""
    owner, _, method = name.rpartition(".")
    bound = owner in vars(accountlink) and not isinstance(
        inspect.getattr_static(getattr(accountlink, owner), method), classmethod
    )
    function = getattr(made(owner), method) if bound else PUBLIC[name]
    places: list[Any] = []
    words: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        value = given[parameter.name]
        match parameter.kind:
            case inspect.Parameter.POSITIONAL_OR_KEYWORD:
                places.append(value)
            case inspect.Parameter.VAR_POSITIONAL:
                places.append(value)
            case inspect.Parameter.VAR_KEYWORD:
                words |= value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else {}
            case _:
                words[parameter.name] = value
    return function(*places, **words)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("name", WITHOUT)
def test_a_function_answers_or_refuses_in_its_own_words(name: str) -> None:
    """Each function that needs no database, with odd arguments."""
    fuzz(name, answered, number=PURE)


def answered(name: str, given: dict[str, Any]) -> None:
    result = called(name, given)
    if isinstance(result, sa.Table):
        metadata_can_be_created(result.metadata)


def fuzz(name: str, run: Callable[[str, dict[str, Any]], object], *, number: int, on: str = "no database") -> None:
    """Call a function again and again, and judge what comes out."""
    counts = Counts(f"{name} [{on}]", CALLS[name])

    @examples(number)
    @given(arguments(CALLS[name]))
    def once(given: dict[str, Any]) -> None:
        try:
            run(name, given)
        except Exception as error:  # noqa: BLE001  # whatever comes out is judged
            counts.raised(error, given)
        else:
            counts.returned()

    once()
    counts.tell()


def metadata_can_be_created(metadata: sa.MetaData) -> None:
    """An object that was made can be created in the database: no identifier is too long, for instance."""
    for table in metadata.sorted_tables:
        commands: list[Any] = [sa.schema.CreateTable(table), *map(sa.schema.CreateIndex, table.indexes)]
        for command in commands:
            assert "CREATE" in str(command.compile(dialect=POSTGRESQL))


# -- functions on a database ------------------------------------------------------------------------------------------


@dataclass
class World:
    """A database with links and grants in it, and the objects that are called."""

    engine: AsyncEngine
    linker: AccountLinker[Any, Any]
    shares: ShareGrants
    tokens: list[str]

    @classmethod
    async def made(cls, url: str, kind: str) -> World:
        engine = create_async_engine(url)
        if kind == "sqlite":
            accountlink.tune_sqlite(engine)
        await create(engine, Base.metadata)
        linker = AccountLinker(
            Connection,
            secrets=SECRETS,
            outbox=OUTBOX,
            vault=VAULT,
            pending=PENDING,
            refresher=FakeRefresher(),
            refreshes=REFRESHES,
        )
        shares = ShareGrants(GRANTS, accounts=linker, outbox=OUTBOX)
        await linker.link(engine, user_id=1, identity=IDENTITY)
        conflict: Any = await linker.link(engine, user_id=2, identity=IDENTITY)
        issued = await shares.issue(engine, grantor_id=1, link_id=1, expires_in=SECONDS[1])
        return cls(engine, linker, shares, [conflict.transfer_token, issued.token])

    async def call(self, name: str, given: dict[str, Any]) -> None:
        """Call a method on a bind that is opened for it; afterwards the bind still answers."""
        given = dict(given)
        if isinstance(token := given.get("token"), str) and token == "token":
            given["token"] = self.tokens["ShareGrants" in name]
        if name == "tune_sqlite":
            engine = given["engine"]
            if isinstance(engine, str) and engine == "new engine":
                engine = create_async_engine("sqlite+aiosqlite://")
            accountlink.tune_sqlite(engine, busy_timeout=given["busy_timeout"])
            async with engine.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
            await engine.dispose()
            return
        place = next(word for word in ON_BIND if word in given)
        how = given[place] if isinstance(given[place], str) else None
        async with opened(self.engine, given[place]) as bind:
            given[place] = bind
            function = accountlink.diagnose if name == "diagnose" else self.method(name)
            try:
                answer: Any = function(**given)
                if inspect.isasyncgen(answer):
                    with suppress(TimeoutError):  # with poll= it waits for what will not come
                        async with asyncio.timeout(0.1 if given.get("poll") else 10), aclosing(answer) as deliveries:
                            delivery: Any = await anext(deliveries)
                            if hasattr(delivery, "acknowledge"):
                                await delivery.acknowledge()
                else:
                    await answer
            except StopAsyncIteration:
                pass  # there is no event
            finally:
                if isinstance(bind, (AsyncSession, AsyncConnection)) and how in BINDS:
                    await bind.execute(sa.text("SELECT 1"))

    def method(self, name: str) -> Callable[..., Any]:
        owner, _, method = name.partition(".")
        function: Callable[..., Any] = getattr(self.linker if owner == "AccountLinker" else self.shares, method)
        return function


@asynccontextmanager
async def opened(engine: AsyncEngine, how: Any) -> AsyncIterator[Any]:
    """Open a bind that is named; whatever else is given is the bind."""
    match how if isinstance(how, str) else None:
        case "engine":
            yield engine
        case "connection":
            async with engine.connect() as connection:
                yield connection
        case "session":
            async with AsyncSession(engine) as session:
                yield session
        case _:
            yield how


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::RuntimeWarning")
def test_a_call_answers_or_refuses_in_its_own_words(database: Database) -> None:
    """Each call, on each driver, with odd arguments; the caller's transaction goes on after whatever was raised."""
    with asyncio.Runner() as runner:
        world = runner.run(World.made(database.url, database.kind))
        try:
            for name in WITH_DATABASE:
                fuzz(
                    name, lambda name, given: runner.run(world.call(name, given)), number=ON_DATABASE, on=database.kind
                )
        finally:
            runner.run(world.engine.dispose())


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::RuntimeWarning")
def test_every_odd_value_of_a_column_is_stored_or_refused(database: Database) -> None:
    """Each odd value in a column of each type: stored, or refused in words of the library's own."""
    counts = Counts(f"values [{database.kind}]", CALLS["AccountLinker.link"])
    odd = (*TEXTS, *OTHERS)
    with asyncio.Runner() as runner:
        world = runner.run(World.made(database.url, database.kind))
        for number, column in enumerate(COLUMNS):
            for make in odd if STRESS else odd[number % 12 :: 12]:
                given = {"bind": "connection", "user_id": 1, "identity": IDENTITY, "update_values": {column: make()}}
                try:
                    runner.run(world.call("AccountLinker.link", given))
                except Exception as error:  # noqa: BLE001  # whatever comes out is judged
                    counts.raised(error, given)
                else:
                    counts.returned()
        runner.run(world.engine.dispose())
    counts.tell()
