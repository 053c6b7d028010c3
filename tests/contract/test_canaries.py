"""Canaries: values that must stay where they were given, pushed through every ending of every call, and searched for.

Covered: outcomes and errors as text, as attributes, along the whole chain of causes, as tracebacks with locals (the
test's own frames aside), in encoders and pickles, in warnings, and in whatever any logger says, SQLAlchemy's echo too.

Not covered, because it is not the library's to say: application values in SQLAlchemy's echo of parameters, which are
the application's own, and which `hide_parameters=True` hides; the rows that `echo="debug"` prints, which hold the
columns that a call reads, and never a token; what the application's own triggers and types put into the text of an
exception; the database server's own log.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import enum
import json
import pickle
import pprint
import sqlite3
import warnings
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountMapping,
    AccountMismatch,
    AccountNotFound,
    AlreadyOwner,
    AmbiguousAccount,
    BlockedByConstraint,
    ConfigurationError,
    InvalidCredentials,
    InvalidIdentity,
    LastAccount,
    LinkBlocked,
    Linked,
    LinkedAccount,
    LinkedAccountMixin,
    LinkPolicy,
    OutcomeUnknown,
    OwnerLookupFailed,
    OwnerNotFound,
    Ownership,
    OwnershipConflict,
    ProviderIdentity,
    Removal,
    RetryTransaction,
    StoreBusy,
    StoreUnavailable,
    TokenExpired,
    TokenForAnotherUser,
    TokenForged,
    TokenSet,
    Transferred,
    Unlinked,
    tune_sqlite,
)
from tests.support.binds import BINDS, bound
from tests.support.canaries import listening, locals_of, shown_by
from tests.support.databases import Database, create, run_sql
from tests.support.wire import Lose, WireProxy, executes

pytestmark = pytest.mark.each_driver

Canaries = tuple[str, ...]
TOKENS: Canaries = ("canary-access", "canary-refresh", "canary-id-token")
PERSONAL = ("canary-mail", "canary-name", "canary-claim")
VALUES = ("canary-label",)
ACCOUNT = ("canary-account",)
OWNER_ID, OTHER_OWNER_ID = 7_777_777, 8_888_888
OWNER = (str(OWNER_ID), str(OTHER_OWNER_ID))
EVERYTHING = (*TOKENS, *PERSONAL, *VALUES, *ACCOUNT, *OWNER)
IN_LOCALS = (*TOKENS, *PERSONAL, *OWNER)
"""What no frame's locals may show: error reports often have them. The account id is no secret of the user who has just
proved to control it, and what the application gives its own columns stands in its own frames, too."""
SECRETS = ["test-secret-of-at-least-32-bytes-0001"]
ME, SOLE = 1, 5


class Mood(enum.Enum):
    GOOD = "good"


class Base(DeclarativeBase):
    type_annotation_map = {int: sa.BigInteger().with_variant(sa.Integer, "sqlite")}  # noqa: RUF012  # SQLAlchemy's name


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons={"fraud"})
    __table_args__ = (
        sa.CheckConstraint("score < 100", name="score_small"),
        sa.Index("one_email", "email", unique=True),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    label: Mapped[str | None] = mapped_column(sa.Text)
    score: Mapped[int] = mapped_column(default=7)
    mood: Mapped[Mood | None]
    seen: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    short: Mapped[str | None] = mapped_column(sa.String(5))


LABEL: dict[Any, Any] = {Connection.label: "canary-label"}


def identity(name: str, **fields: Any) -> ProviderIdentity:
    given: dict[str, Any] = {
        "provider": "acme",
        "account_id": f"canary-account-{name}",
        "email": f"canary-mail-{name}@example.com",
        "display_name": "canary-name",
        "claims": {"address": "canary-claim"},
    }
    return ProviderIdentity(**(given | fields))


def tokens(name: str = "new") -> TokenSet:
    return TokenSet(
        access_token=f"canary-access-{name}",
        refresh_token=f"canary-refresh-{name}",
        id_token=f"canary-id-token-{name}",
        expires_at=datetime(2026, 2, 1, tzinfo=UTC),
        scopes={"read"},
    )


# -- endings ---------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Rows of a caller and of two owners, and the ids of the caller's links."""

    linker: AccountLinker[Any, Any]
    live: int
    blocked: int
    theirs: int
    sole: int


async def stage_on(engine: AsyncEngine) -> Stage:
    await create(engine, Base.metadata)
    async with engine.begin() as connection:
        users = [{"id": user} for user in (ME, SOLE, OWNER_ID, OTHER_OWNER_ID)]
        await connection.execute(sa.insert(User), users)
    linker: AccountLinker[Any, Any] = AccountLinker(Connection, secrets=SECRETS)
    ids: dict[str, int] = {}
    names = [(ME, "live"), (ME, "live-2"), (ME, "dead"), (ME, "fraud"), (SOLE, "sole"), (OWNER_ID, "theirs")]
    names += [(OWNER_ID, f"moving-{how}") for how in BINDS] + [(OTHER_OWNER_ID, "lonely")]
    for user, name in names:
        linked = await linker.link(
            engine, user_id=user, identity=identity(name), credentials=tokens("old"), values=LABEL
        )
        assert isinstance(linked, Linked)
        ids[name] = linked.account.id
    await linker.unlink(engine, user_id=ME, link_id=ids["dead"])
    await linker.unlink(engine, user_id=ME, link_id=ids["fraud"], reason="fraud")
    return Stage(linker=linker, live=ids["live"], blocked=ids["fraud"], theirs=ids["theirs"], sole=ids["sole"])


Call = Callable[[Any], Awaitable[object]]


def endings(stage: Stage, how: str, *, sqlite: bool) -> dict[str, tuple[Call, tuple[type, ...]]]:
    """One call for each ending that an ordinary database brings about, and what it is expected to be."""
    linker = stage.linker

    async def last(connection: Any, user_id: int) -> bool:
        return False

    async def broken(connection: Any, user_id: int) -> bool:
        raise LookupError("the guard's own")

    def link(name: str, values: Any = None, **call: Any) -> Call:
        given: dict[str, Any] = {
            "user_id": ME,
            "identity": identity(name),
            "credentials": tokens(),
            "values": LABEL | (values or {}),
            "update_values": LABEL,
        }
        return lambda bind: linker.link(bind, **(given | call))

    wrong: tuple[type, ...] = (ConfigurationError,)
    guarded = AccountLinker(Connection, secrets=SECRETS, guard_last=last)
    failing = AccountLinker(Connection, secrets=SECRETS, guard_last=broken)
    found = {
        "created": (link(f"new-{how}"), (Linked,)),
        "updated": (link("live"), (Linked,)),
        "restored": (link("dead"), (Linked,)),
        "conflict": (link("theirs"), (OwnershipConflict,)),
        "blocked": (
            link("live", identity=identity("live", email="canary-mail-theirs@example.com")),
            (BlockedByConstraint,),
        ),
        "blocked new": (
            link("n", identity=identity("n", email="canary-mail-theirs@example.com")),
            (BlockedByConstraint,),
        ),
        "fraud": (link("fraud"), (LinkBlocked,)),
        "mismatch": (link("else", expect=stage.live), (AccountMismatch,)),
        "missing": (link("else", expect=stage.theirs), (AccountNotFound,)),
        "foreign key": (link("fk", user_id=424_242), (sa.exc.IntegrityError,)),
        "check": (link("check", {Connection.score: 100}), (sa.exc.IntegrityError,)),
        "not null": (link("null", {Connection.score: None}), (sa.exc.IntegrityError,)),
        "no such member": (link("mood", {Connection.mood: "canary-label"}), wrong),
        "no moment": (link("seen", {Connection.seen: "canary-label"}), wrong),
        "no number": (link("number", {Connection.score: "canary-label"}), wrong),
        "too long": (link("long", {Connection.short: "canary-label"}), wrong),
        "no type": (link("type", {Connection.label: Mood.GOOD}), wrong),
        "unlinked": (lambda bind: linker.unlink(bind, user_id=ME, link_id=stage.live), (Unlinked,)),
        "unlinked again": (lambda bind: linker.unlink(bind, user_id=ME, link_id=stage.blocked), (Unlinked,)),
        "not unlinked": (lambda bind: linker.unlink(bind, user_id=ME, link_id=stage.theirs), (AccountNotFound,)),
        "ambiguous": (
            lambda bind: linker.account(bind, user_id=ME, provider="acme"),
            (AmbiguousAccount, LinkedAccount),
        ),
        "no account": (lambda bind: linker.account(bind, user_id=ME, link_id=stage.theirs), (AccountNotFound,)),
        "accounts": (lambda bind: linker.accounts(bind, user_id=ME), (list,)),
        "owner": (
            lambda bind: linker.find_owner(bind, provider="acme", account_id="canary-account-theirs"),
            (LinkedAccount,),
        ),
        "nobody": (
            lambda bind: linker.find_owner(bind, provider="acme", account_id="canary-account-nobody"),
            (type(None),),
        ),
    }

    def transfer(by: AccountLinker[Any, Any], name: str, *, user: int = ME, times: int = 1) -> Call:
        async def call(bind: Any) -> object:
            conflict = await linker.link(bind, user_id=ME, identity=identity(name), credentials=tokens())
            assert isinstance(conflict, OwnershipConflict)
            assert conflict.transfer_token is not None
            for _ in range(times - 1):
                await by.transfer(bind, conflict.transfer_token, user_id=user, credentials=tokens())
            return await by.transfer(bind, conflict.transfer_token, user_id=user, credentials=tokens())

        return call

    late: AccountLinker[Any, Any] = AccountLinker(
        Connection, secrets=SECRETS, clock=lambda: datetime(8999, 12, 31, tzinfo=UTC)
    )
    other: AccountLinker[Any, Any] = AccountLinker(Connection, secrets=["another-secret-of-32-bytes-or-more"])
    found |= {
        "forged": (transfer(other, "theirs"), (TokenForged,)),
        "another user's": (transfer(linker, "theirs", user=SOLE), (TokenForAnotherUser,)),
        "expired": (transfer(late, "theirs"), (TokenExpired,)),
    }
    if how != "autocommit":
        found["owner's last"] = (transfer(guarded, "lonely"), (LastAccount,))
        found["owner's guard"] = (transfer(failing, "lonely"), (LookupError,))
    found["moved"] = (
        transfer(linker, f"moving-{how}", times=2 if how in ("session", "autocommit") else 1),
        (Transferred, AlreadyOwner),
    )
    if how != "autocommit":
        found["last"] = (lambda bind: guarded.unlink(bind, user_id=SOLE, link_id=stage.sole), (LastAccount,))
        found["guard"] = (lambda bind: failing.unlink(bind, user_id=SOLE, link_id=stage.sole), (LookupError,))
    return found


async def ending_of(call: Call, bind: Any) -> Any:  # an outcome or an error
    try:
        return await call(bind)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is searched
        return error


# -- where a canary may sit ------------------------------------------------------------------------------------------


def encoded(outcome: object) -> Iterator[tuple[str, str]]:
    """An outcome through every encoder at hand."""
    yield "str", str(outcome)
    yield "repr", repr(outcome)
    yield "format", f"{outcome}"
    yield "copy", repr(copy.deepcopy(outcome))
    yield "json str", json.dumps(outcome, default=str)
    if dataclasses.is_dataclass(outcome) and not isinstance(outcome, type):
        plain = dataclasses.asdict(outcome)
        yield "asdict", repr(plain)
        yield "astuple", repr(dataclasses.astuple(outcome))
        yield "json asdict", json.dumps(plain, default=str)
    yield "pprint", pprint.pformat(outcome)
    dumped = pickle.dumps(outcome)
    yield "pickle", dumped.decode("latin-1")
    for owner in (OWNER_ID, OTHER_OWNER_ID):
        if owner.to_bytes(4, "little") in dumped:
            yield "pickle, as a number", str(owner)
    yield "unpickled", repr(pickle.loads(dumped))  # noqa: S301  # our own


def leaks_of(ending: Any) -> list[str]:  # an outcome or an error
    """Where an ending shows what it may not."""
    if isinstance(ending, BaseException):
        places: list[tuple[str, str, Canaries]] = [(where, text, EVERYTHING) for where, text in shown_by(ending)]
        places += [(where, text, IN_LOCALS) for where, text in locals_of(ending)]
        if not isinstance(ending, (sa.exc.SQLAlchemyError, LookupError)):
            places += [(where, text, EVERYTHING) for where, text in encoded_error(ending)]
    elif isinstance(ending, OwnershipConflict):
        forbidden = (*TOKENS, *PERSONAL, *VALUES, *OWNER)
        places = [(where, text, forbidden) for where, text in [*encoded(ending), *public(ending)]]
    else:
        told = ("str", "repr", "format", "copy", "pprint", "unpickled", "json str")
        places = [
            (where, text, (*TOKENS, *VALUES, *(PERSONAL + OWNER if where in told else PERSONAL[1:])))
            for where, text in encoded(ending)
        ]
    return [f"{where}: {canary}" for where, text, canaries in places for canary in canaries if canary in text]


def encoded_error(error: BaseException) -> Iterator[tuple[str, str]]:
    yield "pickle", pickle.dumps(error).decode("latin-1")
    yield "json vars", json.dumps(vars(error), default=str)
    yield "deepcopy", repr(vars(copy.deepcopy(error)))


def public(conflict: OwnershipConflict) -> Iterator[tuple[str, str]]:
    yield "problem", json.dumps(conflict.as_problem())
    yield "url", conflict.redirect_url("https://app.example/done?x=1")
    assert conflict.transfer_token is not None
    payload = conflict.transfer_token.partition(".")[0]
    yield "token", base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", BINDS)
async def test_no_ending_shows_what_it_was_given(database: Database, how: str) -> None:
    """A27, A28: no outcome and no error, nor its causes, locals, pickles and encodings, shows a canary."""
    engine = database.engine()
    stage = await stage_on(engine)
    leaks: dict[str, list[str]] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name, (call, expected) in endings(stage, how, sqlite=not database.is_postgresql).items():
            async with bound(engine, how) as bind:
                ending = await ending_of(call, bind)
                assert isinstance(ending, expected), (name, repr(ending))
                if how in ("connection", "session"):
                    await bind.rollback()
            if found := leaks_of(ending):
                leaks[name] = found
            del ending
    assert [] == [str(warning.message) for warning in warned]
    assert {} == leaks


@pytest.mark.parametrize("echo", [True, "debug"])
async def test_no_log_shows_a_token_or_an_address(database: Database, echo: Any) -> None:
    """A28: whatever is logged while calls end in every way holds no token; nor, rows aside, an e-mail or an owner."""
    quiet = database.engine()
    stage = await stage_on(quiet)
    await quiet.dispose()
    engine = database.engine(echo=echo)
    forbidden = TOKENS if echo == "debug" else (*TOKENS, *PERSONAL)
    with listening() as ear:
        for how in BINDS:
            for call, _ in endings(stage, how, sqlite=not database.is_postgresql).values():
                async with bound(engine, how) as bind:
                    await ending_of(call, bind)
                    if how in ("connection", "session"):
                        await bind.rollback()
    assert any("INSERT" in text for text in ear.heard), "nothing was logged"
    canaries = forbidden if echo == "debug" else (*forbidden, *OWNER)
    assert [] == [text for text in ear.heard if any(canary in text for canary in canaries)]


async def test_conflicts_do_not_tell_owners_apart(database: Database) -> None:
    """A25: conflicts with different owners are byte-equal but for token and expiry, whatever the owners' rows hold."""
    engine = database.engine()
    stage = await stage_on(engine)
    policy = LinkPolicy(ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
    tokenless: AccountLinker[Any, Any] = AccountLinker(AccountMapping(Connection, policy=policy))
    faces: list[list[object]] = []
    lengths: list[int] = []
    for owner, bare in ((OWNER_ID, False), (OTHER_OWNER_ID, True)):
        given = identity("one", email=None) if bare else identity("one")
        held = await stage.linker.link(engine, user_id=owner, identity=given, credentials=None if bare else tokens())
        assert isinstance(held, Linked)
        conflict = await stage.linker.link(engine, user_id=ME, identity=identity("one"), credentials=tokens())
        plain = await tokenless.link(engine, user_id=ME, identity=identity("one"), credentials=tokens())
        assert isinstance(conflict, OwnershipConflict)
        assert isinstance(plain, OwnershipConflict)
        assert owner == conflict.owner_id
        assert conflict.transfer_token is not None
        lengths.append(len(conflict.transfer_token))
        bald = dataclasses.replace(conflict, transfer_token=None, expires_at=None)
        problem = {k: v for k, v in conflict.as_problem().items() if k not in ("transfer_token", "expires_at")}
        url = conflict.redirect_url("https://app.example/").partition("#")[0]
        faces.append([repr(bald), str(bald), dataclasses.asdict(bald), pickle.dumps(bald), json.dumps(problem), url])
        faces[-1] += [repr(plain), plain.as_problem(), pickle.dumps(plain), plain.redirect_url("https://app.example/")]
        faces[-1] += [sorted(conflict.as_problem()), plain == bald]
        await stage.linker.unlink(engine, user_id=owner, link_id=held.account.id)
    assert faces[0] == faces[1]
    assert 1 == len(set(lengths))


def faulty_calls(bind: Any) -> dict[str, Callable[[], Any]]:
    """Calls and values that are refused before any SQL, each with a canary in what is refused."""
    linker: AccountLinker[Any, Any] = AccountLinker(Connection, secrets=SECRETS)
    good: dict[str, Any] = {"user_id": ME, "identity": identity("x"), "credentials": tokens()}
    canary = "canary-label"
    bare = sa.Table(
        "bare",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("account_id", sa.Text),
    )
    without_columns: AccountLinker[Any, Any] = AccountLinker(AccountMapping(bare, policy=LinkPolicy()))
    return {
        "user of the wrong type": lambda: linker.link(bind, **(good | {"user_id": "canary-label"})),
        "user out of range": lambda: linker.link(bind, **(good | {"user_id": OWNER_ID * 10**30})),
        "link of the wrong type": lambda: linker.unlink(bind, user_id=ME, link_id=canary),
        "managed column": lambda: linker.link(bind, **good, values={Connection.access_token: canary}),
        "foreign column": lambda: linker.link(bind, **good, values={User.id: canary}),
        "no columns": lambda: without_columns.link(bind, **good),
        "a bind of text": lambda: linker.link("canary-label", **good),  # type: ignore[arg-type]  # on purpose
        "a reason": lambda: without_columns.unlink(bind, user_id=ME, link_id=1, reason=canary),
        "provider": lambda: linker.accounts(bind, user_id=ME, provider="Canary-label canary-label"),
        "account id": lambda: linker.find_owner(bind, provider="acme", account_id="canary-account\x00"),
        "identity account": lambda: identity("x", account_id=" canary-account"),
        "identity e-mail": lambda: identity("x", email="canary-mail\x00@example.com"),
        "identity e-mail type": lambda: identity("x", email=["canary-mail"]),
        "identity flag": lambda: identity("x", email_verified="canary-claim"),
        "identity name": lambda: identity("x", display_name=["canary-name"]),
        "token with NUL": lambda: TokenSet(access_token="canary-access\x00"),
        "token of bytes": lambda: TokenSet(access_token=b"canary-access"),  # type: ignore[arg-type]  # on purpose
        "naive moment": lambda: TokenSet(
            access_token="canary-access",
            expires_at=datetime(2026, 1, 1),  # noqa: DTZ001  # on purpose
        ),
        "scopes in one": lambda: TokenSet(access_token="canary-access", scopes="canary-claim"),
        "scope with a space": lambda: TokenSet(access_token="canary-access", scopes=["canary-claim x"]),
        "response without": lambda: TokenSet.from_response(
            {"refresh_token": "canary-refresh"}, received_at=datetime.now(UTC)
        ),
        "response garbled": lambda: TokenSet.from_response(
            {"access_token": "canary-access", "expires_in": "canary-claim"}, received_at=datetime.now(UTC)
        ),
        "short secret": lambda: AccountLinker(Connection, secrets=["canary-access"]),
        "secret alone": lambda: AccountLinker(Connection, secrets="canary-access" * 5),
    }


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("name", faulty_calls(None))
async def test_what_is_refused_is_not_repeated(database: Database, name: str) -> None:
    """A28: a call or value that is refused is named by its field, never quoted."""
    error: BaseException | None = None
    try:
        made = faulty_calls(database.engine())[name]()
        await made
    except Exception as caught:  # noqa: BLE001  # whatever it is, it is searched
        error = caught
    known = (ConfigurationError, InvalidIdentity, InvalidCredentials, AccountNotFound)
    assert isinstance(error, known), repr(error)
    told = [*shown_by(error), *encoded_error(error)]
    assert [] == [where for where, text in told for canary in EVERYTHING if canary in text]


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_token": "canary-access\x00"},
        {"refresh_token": "canary-refresh\x00"},
        {"expires_at": datetime(2026, 1, 1)},  # noqa: DTZ001  # on purpose
        {"scopes": "canary-claim"},
        {"scopes": ["canary-claim x"]},
    ],
    ids=["access token", "refresh token", "naive moment", "one scope", "a scope with a space"],
)
def test_a_traceback_of_a_refused_token_set_shows_no_token(wrong: dict[str, Any]) -> None:
    """A28: the constructor's own frames can be shown with their locals, and show no token."""
    good: dict[str, Any] = {
        "access_token": "canary-access",
        "refresh_token": "canary-refresh",
        "id_token": "canary-id-token",
    }
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet(**(good | wrong))
    assert [] == [where for where, text in locals_of(caught.value) for canary in TOKENS if canary in text]


def test_a_traceback_of_a_refused_token_response_shows_no_token() -> None:
    """A28: what reads a token response keeps none of it in a frame when it refuses it."""
    response: dict[str, Any] = dict(zip(("access_token", "refresh_token", "id_token"), TOKENS, strict=True))
    for wrong in ({"expires_in": "soon"}, {"scope": [7]}, {"access_token": ""}):
        with pytest.raises(InvalidCredentials) as caught:
            TokenSet.from_response(response | wrong, received_at=datetime.now(UTC))
        assert [] == [where for where, text in locals_of(caught.value) for canary in TOKENS if canary in text]


POSTGRESQL = pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
LOOKUP_FAILS = ("SELECT ns.nspname", "pg_index")


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_no_trouble_of_the_server_shows_what_it_was_given(database: Database, how: str) -> None:
    """A27, A28: lock timeout, failed look-up, hidden owner, lost snapshot, a trigger's details: none shows a canary."""
    engine = database.engine()
    stage = await stage_on(engine)
    linker, leaks = stage.linker, dict[str, list[str]]()

    def link(name: str, **fields: Any) -> Call:
        mine = identity(name, **fields)
        return lambda bind: linker.link(bind, user_id=ME, identity=mine, credentials=tokens(), values=LABEL)

    async def check(name: str, on: AsyncEngine, call: Call, *expected: type) -> None:
        async with AsyncSession(on) as session:
            ending = await ending_of(call, on if how == "engine" else session)
            assert isinstance(ending, expected), (name, repr(ending))
        if found := leaks_of(ending):
            leaks[name] = found

    limits = {"lock_timeout": "50ms"}
    args: dict[str, Any] = (
        {"server_settings": limits} if database.kind == "asyncpg" else {"options": "-c lock_timeout=50ms"}
    )
    async with AsyncSession(engine) as rival:
        await linker.link(rival, user_id=OWNER_ID, identity=identity("wanted"), credentials=tokens())
        await check("lock timeout", database.engine(connect_args=args), link("wanted"), StoreBusy)
        await rival.rollback()

    failing = database.engine()

    def fail(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return ("SELECT 1 / 0", ()) if "pg_index" in statement else (statement, parameters)

    sa.event.listen(failing.sync_engine, "before_cursor_execute", fail, retval=True)
    await check("look-up", failing, link("n", email="canary-mail-theirs@example.com"), OwnerLookupFailed)

    if how == "session":
        strict = engine.execution_options(isolation_level="REPEATABLE READ")
        async with AsyncSession(strict) as session:
            await session.execute(sa.text("SELECT count(*) FROM connections"))
            await linker.link(engine, user_id=OWNER_ID, identity=identity("raced"), credentials=tokens())
            ending = await ending_of(link("raced"), session)
            assert isinstance(ending, RetryTransaction)
            assert [] == leaks_of(ending)

    details = (
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' "
        "USING DETAIL = 'Row ' || NEW, COLUMN = 'email', TABLE = 'connections'; END $$"
    )
    await run_sql(
        engine, details, "CREATE TRIGGER tell BEFORE INSERT ON connections FOR EACH ROW EXECUTE FUNCTION tell()"
    )
    await check("trigger", engine, link("told"), sa.exc.DBAPIError)
    await run_sql(engine, "DROP TRIGGER tell ON connections")
    inner = (
        "CREATE FUNCTION inner_sql() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE "
        "'SELECT 1 FROM nowhere WHERE x = ' || quote_literal(NEW.access_token || NEW.email); RETURN NEW; END $$"
    )
    await run_sql(
        engine, inner, "CREATE TRIGGER inner_sql BEFORE INSERT ON connections FOR EACH ROW EXECUTE FUNCTION inner_sql()"
    )
    await check("inner query", engine, link("told"), sa.exc.DBAPIError)
    await run_sql(engine, "DROP TRIGGER inner_sql ON connections")
    await run_sql(
        engine,
        "CREATE ROLE tenant LOGIN",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO tenant",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO tenant",
        "ALTER TABLE connections ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON connections USING (user_id = {ME})",
    )
    try:
        tenant = database.engine(url=make_url(database.url).set(username="tenant"))
        await check("hidden owner", tenant, link("theirs", email="canary-mail-new@example.com"), OwnerNotFound)
        await run_sql(engine, "CREATE POLICY none ON connections AS RESTRICTIVE FOR INSERT WITH CHECK (label = 'x')")
        await check("row refused", tenant, link("refused"), sa.exc.DBAPIError)
        await tenant.dispose()
    finally:
        await run_sql(engine, "DROP OWNED BY tenant", "DROP ROLE tenant")
    assert {} == leaks


@POSTGRESQL
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_no_lost_line_shows_what_it_was_given(database: Database, how: str) -> None:
    """A28: a line that is lost, and a server that is not there, are errors and logs without a canary."""
    assert database.server is not None
    stage = await stage_on(database.engine())

    def link(bind: Any) -> Awaitable[object]:
        return stage.linker.link(bind, user_id=ME, identity=identity("x"), credentials=tokens(), values=LABEL)

    leaks: list[str] = []
    with listening() as ear:
        for lose in Lose:
            async with WireProxy(database.server.host, database.server.port) as line:
                url = make_url(database.url).set(port=line.port)
                engine = database.engine(url=url, pool_size=1, max_overflow=0)
                async with AsyncSession(engine) as session:
                    await session.execute(sa.text("SELECT 1"))
                    await session.rollback()
                    for _ in range(2):
                        line.cut_when(executes("WITH"), lose=lose)
                    ending = await ending_of(link, engine if how == "engine" else session)
                    assert isinstance(ending, OutcomeUnknown if how == "engine" else StoreUnavailable), ending
                    leaks += leaks_of(ending)
                    await session.rollback()
            ending = await ending_of(link, engine if how == "engine" else AsyncSession(engine))
            leaks += leaks_of(ending)
            assert isinstance(ending, StoreUnavailable), ending
            await engine.dispose()
    assert [] == leaks
    assert [] == [text for text in ear.heard if any(canary in text for canary in (*TOKENS, *PERSONAL, *OWNER))]


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("how", ["engine", "session"])
async def test_no_trouble_of_sqlite_shows_what_it_was_given(database: Database, how: str) -> None:
    """A28: a database that another holds, and one that is gone: no canary in the error."""
    stage = await stage_on(database.engine())
    engine = tune_sqlite(database.untuned(), busy_timeout=50)

    def link(bind: Any) -> Awaitable[object]:
        return stage.linker.link(bind, user_id=ME, identity=identity("x"), credentials=tokens(), values=LABEL)

    holder = sqlite3.connect(str(make_url(database.url).database), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    async with AsyncSession(engine) as session:
        ending = await ending_of(link, engine if how == "engine" else session)
    holder.close()
    assert isinstance(ending, StoreBusy)
    assert [] == leaks_of(ending)
    await run_sql(database.engine(), "DROP TABLE connections")
    async with AsyncSession(engine) as session:
        ending = await ending_of(link, engine if how == "engine" else session)
    assert isinstance(ending, ConfigurationError)
    assert isinstance(ending.__cause__, sa.exc.OperationalError)
    assert [] == leaks_of(ending)
