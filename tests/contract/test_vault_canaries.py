"""Canaries for a linker with a vault: each kind of secret, through every ending of every call, and searched for.

Searched are outcomes and errors (their texts, attributes, causes, encodings, and the locals of the frames that raised
them), whatever any logger says (SQLAlchemy's echo of parameters and of rows too), what a tool that listens to
SQLAlchemy's events sees (OpenTelemetry's instrumentation is one), the log of a PostgreSQL server that logs everything,
the rows of every table, and the database's files, which have the dead rows too.

A secret counts as found in hexadecimal and in base64 too: what is only encoded is not sealed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    AccountMismatch,
    AccountNotFound,
    AlreadyOwner,
    AmbiguousAccount,
    BlockedByConstraint,
    ConfigurationError,
    CredentialsUnreadable,
    CredentialVault,
    InvalidCredentials,
    LinkBlocked,
    Linked,
    LinkedAccountMixin,
    LinkPolicy,
    MissingScopes,
    NeedsConsent,
    OutcomeUnknown,
    Ownership,
    OwnershipConflict,
    Plaintext,
    Removal,
    StoreBusy,
    StoreUnavailable,
    TokenExpired,
    TokenForAnotherUser,
    TokenForged,
    TokenSet,
    TokenSuperseded,
    Transferred,
    Unlinked,
    VaultKey,
    link_outbox,
    pending_credentials,
    tune_sqlite,
)
from accountlink.values.base64url import encoded
from accountlink.vault.envelope import BoundTo, new_grant_id, seal
from tests.support.binds import BINDS, bound
from tests.support.canaries import FACES, faces_of, in_clear, listening, locals_of, shown_by
from tests.support.databases import Database, create, run_sql
from tests.support.models import identity
from tests.support.wire import Lose, WireProxy

TOKENS: Final = ("canary-access", "canary-refresh", "canary-id-token", "canary-extra")
NAMED: Final = ("canary-presented", "canary-rejected")
KEYS: Final = ("canary-key-that-seals-from-now-on", "canary-key-that-has-sealed-before")
SIGNS: Final = "canary-secret-that-signs-transfer-tokens"
EVERY_KIND: Final = (*TOKENS, *NAMED, *(key[:30] for key in KEYS), SIGNS)
ME, OWNER, OTHER = 1, 2, 3


class Base(DeclarativeBase):
    type_annotation_map = {int: sa.BigInteger().with_variant(sa.Integer, "sqlite")}  # noqa: RUF012  # SQLAlchemy's name


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT, blocked_reasons={"fraud"})
    __table_args__ = (
        sa.CheckConstraint("label <> 'refused'", name="label_allowed"),
        sa.Index("one_email", "email", unique=True),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
    label: Mapped[str | None]


OUTBOX: Final = link_outbox(Base.metadata)
PENDING: Final = pending_credentials(Base.metadata)


def key(number: int) -> bytes:
    """One of the vault's keys: 32 bytes that begin with a canary."""
    return KEYS[number].encode()[:32]


def tokens(name: str, **fields: Any) -> TokenSet:
    given: dict[str, Any] = {
        "access_token": f"canary-access-{name}",
        "refresh_token": f"canary-refresh-{name}",
        "id_token": f"canary-id-token-{name}",
        "expires_at": datetime(2999, 1, 1, tzinfo=UTC),
        "scopes": {"read"},
        "extra": {"instance_url": f"canary-extra-{name}"},
        "client": "web",
    }
    return TokenSet(**(given | fields))


class Keys:
    """A source of keys, as for a key management service."""

    async def current(self) -> VaultKey:
        return VaultKey(secret=key(0))

    async def get(self, key_id: str) -> VaultKey | None:
        return next((each for each in map(_key, (0, 1)) if each.id == key_id), None)


class BrokenKeys(Keys):
    """A source that cannot be reached."""

    async def current(self) -> VaultKey:
        raise LookupError("the source's own")

    async def get(self, key_id: str) -> VaultKey | None:
        raise LookupError("the source's own")


class RawKeys(Keys):
    """A source that returns the bytes of a key, by mistake."""

    async def current(self) -> Any:
        return key(0)

    async def get(self, key_id: str) -> Any:
        return key(0)


def _key(number: int) -> VaultKey:
    return VaultKey(secret=key(number))


# -- endings ----------------------------------------------------------------------------------------------------------


def linker_with(vault: CredentialVault | None, **options: Any) -> AccountLinker[Any, Any]:
    given: dict[str, Any] = {"secrets": [SIGNS], "vault": vault, "pending": PENDING, "outbox": OUTBOX}
    given["clock"] = lambda: datetime(2026, 1, 2, tzinfo=UTC)  # so old tokens that a refusal asks for new ones
    return AccountLinker(Connection, **(given | options))


@dataclass
class Stage:
    """A linker, the ids of links by the names of their accounts, and every transfer token that was issued."""

    linker: AccountLinker[Any, Any]
    ids: dict[str, int] = field(default_factory=dict)
    issued: list[str] = field(default_factory=list)


async def stage_on(engine: AsyncEngine) -> Stage:
    await create(engine, Base.metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(User), [{"id": user} for user in (ME, OWNER, OTHER)])
    stage = Stage(linker_with(CredentialVault(keys=[key(0), encoded(key(1))])))
    older = linker_with(CredentialVault(keys=[key(1)]))
    past = datetime(2026, 1, 1, tzinfo=UTC)
    brought: dict[str, TokenSet | None] = {
        "over": tokens("over", expires_at=past),
        "ended": TokenSet(access_token="canary-access-ended", expires_at=past),
        "bare": None,
    }
    for name in ("live", "dead", "fraud", *brought):
        linked = await older.link(
            engine, user_id=ME, identity=identity(name), credentials=brought.get(name, tokens("first"))
        )
        assert isinstance(linked, Linked)
        stage.ids[name] = linked.account.id
    for name in ("theirs", "kept", "brought", "gone"):
        linked = await stage.linker.link(engine, user_id=OWNER, identity=identity(name), credentials=tokens("theirs"))
        assert isinstance(linked, Linked)
        stage.ids[name] = linked.account.id
    await stage.linker.unlink(engine, user_id=ME, link_id=stage.ids["dead"])
    await stage.linker.unlink(engine, user_id=ME, link_id=stage.ids["fraud"], reason="fraud")
    return stage


Call = Callable[[Any], Awaitable[object]]
Endings = dict[str, tuple[Call, type[Any]]]


def endings(stage: Stage, how: str) -> Endings:
    """One call for each ending that an ordinary database brings about, in an order that brings it about."""
    return links(stage) | transfers(stage) | valid(stage, how) | reads(stage) | replacements(stage) | removals(stage)


def links(stage: Stage) -> Endings:
    def link(name: str, brought: TokenSet | None = tokens("new"), **call: Any) -> Call:  # noqa: B008  # it is frozen
        given: dict[str, Any] = {"user_id": ME, "identity": identity(name), "credentials": brought}
        return lambda bind: stage.linker.link(bind, **(given | call))

    def sealed_by(source: Any) -> Call:
        linker = linker_with(CredentialVault(source=source))
        return lambda bind: linker.link(bind, user_id=ME, identity=identity("source"), credentials=tokens("source"))

    taken = {"email": "theirs@example.com"}
    return {
        "created": (link("new"), Linked),
        "created by a source": (sealed_by(Keys()), Linked),
        "updated": (link("live"), Linked),
        "updated without a refresh token": (link("live", tokens("x", refresh_token=None)), Linked),
        "restored": (link("dead"), Linked),
        "conflict": (link("theirs"), OwnershipConflict),
        "conflict without tokens": (link("theirs", None), OwnershipConflict),
        "blocked": (link("fraud"), LinkBlocked),
        "blocked by a constraint": (link("n", identity=identity("n", **taken)), BlockedByConstraint),
        "update blocked": (link("live", identity=identity("live", **taken)), BlockedByConstraint),
        "mismatch": (link("else", expect=stage.ids["live"]), AccountMismatch),
        "missing": (link("else", expect=stage.ids["theirs"]), AccountNotFound),
        "foreign key": (link("fk", user_id=424_242), sa.exc.IntegrityError),
        "check": (link("check", values={Connection.label: "refused"}), sa.exc.IntegrityError),
        "no source": (sealed_by(BrokenKeys()), LookupError),
        "no key": (sealed_by(RawKeys()), ConfigurationError),
    }


def transfers(stage: Stage) -> Endings:
    def transfer(
        name: str, by: AccountLinker[Any, Any] = stage.linker, *, user: int = ME, times: int = 1, **call: Any
    ) -> Call:
        async def calls(bind: Any) -> object:
            conflict = await stage.linker.link(bind, user_id=ME, identity=identity(name), credentials=tokens("claim"))
            assert isinstance(conflict, OwnershipConflict)
            stage.issued.append(str(conflict.transfer_token))
            outcome: object = None
            for _ in range(times):
                outcome = await by.transfer(bind, stage.issued[-1], user_id=user, **call)
            return outcome

        return calls

    async def superseded(bind: Any) -> object:
        conflict = await stage.linker.link(bind, user_id=ME, identity=identity("gone"), credentials=tokens("claim"))
        assert isinstance(conflict, OwnershipConflict)
        stage.issued.append(str(conflict.transfer_token))
        await stage.linker.unlink(bind, user_id=OWNER, link_id=stage.ids["gone"])
        return await stage.linker.transfer(bind, stage.issued[-1], user_id=ME, credentials=tokens("brought"))

    late = linker_with(stage.linker.vault, clock=lambda: datetime(8999, 12, 31, tzinfo=UTC))
    other = linker_with(stage.linker.vault, secrets=["another-secret-of-32-bytes-or-more"])
    broken = linker_with(CredentialVault(source=BrokenKeys()))
    return {
        "forged": (transfer("theirs", other), TokenForged),
        "another user's": (transfer("theirs", user=OTHER), TokenForAnotherUser),
        "expired": (transfer("theirs", late), TokenExpired),
        "superseded": (superseded, TokenSuperseded),
        "moved without a source": (transfer("kept", broken, credentials=tokens("brought")), LookupError),
        "moved with what was kept": (transfer("kept"), Transferred),
        "moved with what was brought": (transfer("brought", times=2, credentials=tokens("brought")), AlreadyOwner),
    }


def valid(stage: Stage, how: str) -> Endings:
    """Reads of valid tokens, which take an engine."""

    def read(name: str, **call: Any) -> Call:
        given: dict[str, Any] = {"user_id": ME, "link_id": stage.ids[name], "rejected": "canary-rejected"}
        return lambda bind: stage.linker.credentials(bind, **(given | call))

    if how != "engine":
        return {"no engine": (read("live"), ConfigurationError)}
    return {
        "valid": (read("live"), TokenSet),
        "scopes": (read("live", require={"admin"}), MissingScopes),
        "no scopes": (read("live", require="admin"), InvalidCredentials),
        "refused by the API": (read("live", rejected="canary-access-x"), ConfigurationError),
        "over": (read("over"), ConfigurationError),
        "ended": (read("ended"), NeedsConsent),
        "none": (read("bare"), NeedsConsent),
        "not theirs": (read("theirs"), AccountNotFound),
        "several": (read("live", link_id=None, provider="acme"), AmbiguousAccount),
        "unnamed": (read("live", link_id=None), ConfigurationError),
        "rejected NUL": (read("live", rejected="canary-rejected\0"), InvalidCredentials),
        "rejected bytes": (read("live", rejected=b"canary-rejected"), InvalidCredentials),
    }


def reads(stage: Stage) -> Endings:
    linker, broken = stage.linker, linker_with(CredentialVault(source=BrokenKeys()))
    raw = linker_with(CredentialVault(source=RawKeys()))

    def stored(name: str, by: AccountLinker[Any, Any] = linker, **call: Any) -> Call:
        given = {"user_id": ME, "link_id": stage.ids[name]}
        return lambda bind: by.stored_credentials(bind, **(given | call))

    return {
        "stored": (stored("live"), TokenSet),
        "stored, not theirs": (stored("theirs"), AccountNotFound),
        "stored, several": (stored("live", link_id=None, provider="acme"), AmbiguousAccount),
        "stored, no source": (stored("live", broken), LookupError),
        "stored, no key": (stored("live", raw), ConfigurationError),
    }


def replacements(stage: Stage) -> Endings:
    linker = stage.linker

    def replace(by: AccountLinker[Any, Any] = linker, name: str = "live", **call: Any) -> Call:
        given: dict[str, Any] = {"user_id": ME, "link_id": stage.ids[name], "tokens": tokens("renewed")}
        return lambda bind: by.replace_credentials(bind, **(given | {"presented": "canary-presented"} | call))

    plain: AccountLinker[Any, Any] = AccountLinker(Connection)
    return {
        "replaced": (replace(presented="canary-refresh-new"), bool),
        "not replaced": (replace(), bool),
        "presented NUL": (replace(presented="canary-presented\0"), InvalidCredentials),
        "presented bytes": (replace(presented=b"canary-presented"), InvalidCredentials),
        "presented nothing": (replace(presented=None), ConfigurationError),
        "replaced, not theirs": (replace(name="theirs"), AccountNotFound),
        "replaced by no tokens": (replace(tokens="something"), ConfigurationError),
        "replaced by no number": (replace(link_id="something"), ConfigurationError),
        "replaced, no source": (replace(linker_with(CredentialVault(source=BrokenKeys()))), LookupError),
        "replaced, no vault": (replace(plain), ConfigurationError),
    }


def removals(stage: Stage) -> Endings:
    def unlink(name: str, user: int = ME) -> Call:
        return lambda bind: stage.linker.unlink(bind, user_id=user, link_id=stage.ids[name], reason="asked")

    return {"unlinked": (unlink("live"), Unlinked), "not unlinked": (unlink("theirs"), AccountNotFound)}


async def ending_of(call: Call, bind: Any) -> Any:  # an outcome or an error
    try:
        return await call(bind)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is searched
        return error


def leaks_of(ending: Any, canaries: tuple[str, ...]) -> list[str]:
    """Where an ending shows a canary."""
    places = list(faces_of(ending, FACES))
    if isinstance(ending, BaseException):
        places += [*shown_by(ending), *locals_of(ending)]
    return [f"{where}: {canary}" for where, text in places for canary in in_clear(text, canaries)]


# -- what others see --------------------------------------------------------------------------------------------------


@contextmanager
def watched(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect what a tool that listens to an engine's events sees: statements, parameters in every form, failures."""
    seen: list[str] = []

    def note(*things: Any) -> None:
        for thing in things:
            seen.extend([str(thing), repr(thing), json.dumps(thing, default=str)])

    def execute(connection: Any, element: Any, many: Any, params: Any, options: Any) -> None:
        note(many, params, options)

    def cursor(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, *_: Any) -> None:
        note(statement, parameters, getattr(context, "compiled_parameters", None), context.execution_options)

    def failure(context: Any) -> None:
        note(context.statement, context.parameters, context.original_exception, context.sqlalchemy_exception)

    listeners: list[tuple[str, Callable[..., None]]] = [
        ("before_execute", execute),
        ("before_cursor_execute", cursor),
        ("handle_error", failure),
    ]
    for name, listener in listeners:
        sa.event.listen(engine.sync_engine, name, listener)
    yield seen
    for name, listener in listeners:
        sa.event.remove(engine.sync_engine, name, listener)


LOGS_EVERYTHING: Final = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose",
    "log_min_error_statement": "error",
}


def talkative(database: Database) -> AsyncEngine:
    """Open an engine that SQLAlchemy logs everything of, rows too, and the server as well."""
    options: dict[str, Any] = {"echo": "debug"}
    if database.kind == "asyncpg":
        options["connect_args"] = {"server_settings": LOGS_EVERYTHING}
    elif database.kind == "psycopg":
        settings = " ".join(f"-c {name}={value}" for name, value in LOGS_EVERYTHING.items())
        options["connect_args"] = {"options": settings}
    return database.engine(**options)


async def rows_of(engine: AsyncEngine) -> str:
    """Every row of every table."""
    async with engine.connect() as connection:
        tables = Base.metadata.sorted_tables
        return "\n".join([repr(tuple(row)) for table in tables for row in await connection.execute(sa.select(table))])


async def files_of(database: Database, engine: AsyncEngine) -> str:
    """The bytes of the database's files, where dead rows are too."""
    if not database.is_postgresql:
        file = Path(str(make_url(database.url).database))
        return "".join(each.read_bytes().decode("latin-1") for each in file.parent.glob(f"{file.name}*"))
    pages = "SELECT pg_read_binary_file(pg_relation_filepath(oid)) FROM pg_class WHERE relkind IN ('r', 'i', 't') "
    async with bound(engine, "autocommit") as connection:
        await connection.exec_driver_sql("CHECKPOINT")
        found = await connection.exec_driver_sql(f"{pages} AND oid >= 16384")
        return "".join(bytes(page).decode("latin-1") for (page,) in found)


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.each_driver
@pytest.mark.parametrize("how", [*BINDS[::2], *(pytest.param(how, marks=pytest.mark.stress) for how in BINDS[1::2])])
async def test_no_ending_of_a_call_shows_a_secret(database: Database, how: str) -> None:
    """A28: outcomes, errors, logs, events of SQLAlchemy, the server's log, tables and files: none has a canary."""
    quiet = database.engine()
    stage = await stage_on(quiet)
    engine = talkative(database)
    log = None if database.server is None else database.server.log_file
    begin = 0 if log is None else log.stat().st_size
    leaks: list[str] = []
    with listening() as ear, watched(engine) as seen:
        for name, (call, expected) in endings(stage, how).items():
            async with bound(engine, how) as bind:
                ending = await ending_of(call, bind)
            assert isinstance(ending, expected), (name, repr(ending))
            leaks += [f"{name}: {leak}" for leak in leaks_of(ending, (*EVERY_KIND, *stage.issued))]
            del ending
        async with aclosing(stage.linker.batches(engine)) as batches:
            leaks += [f"event: {leak}" async for batch in batches for leak in leaks_of(batch, EVERY_KIND)]
    told = {"log": "\n".join(ear.heard), "seen": "\n".join(seen), "rows": await rows_of(quiet)}
    told["files"] = await files_of(database, quiet)
    if log is not None:
        told["server"] = log.read_bytes()[begin:].decode(errors="replace")
    assert [] == [name for name, text in told.items() if "al1." not in text], "nothing was searched"
    everything = (*EVERY_KIND, *stage.issued)
    leaks += [f"{name}: {canary}" for name, text in told.items() for canary in in_clear(text, everything)]
    assert [] == leaks


class Forged:
    """Contents that no program of ours writes."""

    def __init__(self, role: str) -> None:
        self.role = role

    def written(self) -> bytes:
        return b'{"token": "canary-access-forged", "other": "canary-extra"}'


def unreadable(role: str) -> dict[str, str]:
    """A text for each reason for which a column cannot be read, with a canary in it where it can have one."""
    bound_to = BoundTo(context="connections", user_id=ME, provider="acme", account_key="bare")
    forged: Any = Forged(role)
    elsewhere = BoundTo(context="connections", user_id=ME, provider="acme", account_key="live")
    return {
        "plain_text": "canary-access-in-plain-text",
        "unknown_format": "al2.canary-access-in-plain-text",
        "malformed": "al1.canary-access-in-plain-text",
        "unknown_key": seal(forged, key=VaultKey(secret=bytes(32)), grant_id=new_grant_id(), bound_to=bound_to),
        "not_authentic": seal(forged, key=_key(0), grant_id=new_grant_id(), bound_to=elsewhere),
        "contents": seal(forged, key=_key(0), grant_id=new_grant_id(), bound_to=bound_to),
    }


async def test_nothing_shows_what_cannot_be_read(database: Database) -> None:
    """A28: plain text that was left in a column, and envelopes that are refused, stand in no error, local or log."""
    quiet = database.engine()
    stage = await stage_on(quiet)
    engine = talkative(database)
    named: dict[str, Any] = {"user_id": ME, "link_id": stage.ids["bare"]}
    renewing: dict[str, Any] = {"tokens": tokens("x"), "presented": "canary-presented"}
    calls: list[Call] = [
        lambda bind: stage.linker.stored_credentials(bind, **named),
        lambda bind: stage.linker.credentials(bind, **named),
        lambda bind: stage.linker.replace_credentials(bind, **named, **renewing),
    ]
    leaks: list[str] = []
    for role in ("refresh_token", "access_token"):
        await stage.linker.link(quiet, user_id=ME, identity=identity("bare"), credentials=tokens("bare"))
        for reason, text in unreadable(role).items():
            async with quiet.begin() as connection:
                changed = sa.update(Connection).where(Connection.id == stage.ids["bare"])
                await connection.execute(changed.values({role: text}))
            with listening() as ear, watched(engine) as seen:
                found = [await ending_of(call, engine) for call in calls]
            unread = [(each.role, each.reason) for each in found if isinstance(each, CredentialsUnreadable)]
            assert [(role, reason)] * (2 if role == "refresh_token" else 3) == unread
            leaks += [f"{reason}: {leak}" for each in found for leak in leaks_of(each, EVERY_KIND)]
            told = "\n".join([*ear.heard, *seen])
            leaks += [f"{reason}, log: {canary}" for canary in in_clear(told, EVERY_KIND)]
    assert [] == leaks


async def test_no_log_shows_plain_text_that_a_backfill_has_not_reached(database: Database) -> None:
    """A28: while plain text is still read, SQLAlchemy's echo of rows shows none of it, and no call's locals do."""
    quiet = database.engine()
    stage = await stage_on(quiet)
    engine = talkative(database)
    async with quiet.begin() as connection:
        plain = {"access_token": "canary-access-plain", "refresh_token": "canary-refresh-plain"}
        await connection.execute(sa.update(Connection).where(Connection.id == stage.ids["live"]).values(plain))
    given: dict[str, Any] = {"keys": [key(0), key(1)], "plaintext": Plaintext.READ}
    reading = linker_with(CredentialVault(**given))
    call: dict[str, Any] = {"user_id": ME, "link_id": stage.ids["live"]}
    broken = linker_with(CredentialVault(**(given | {"keys": None, "source": BrokenKeys()})))
    with listening() as ear:
        stored = await reading.stored_credentials(engine, **call)
        assert "canary-access-plain" == stored.access_token.reveal()
        assert "canary-access-plain" == (await reading.credentials(engine, **call)).access_token.reveal()
        ending = await ending_of(
            lambda bind: broken.replace_credentials(bind, tokens=tokens("x"), presented="x", **call), engine
        )
        leaks = [*leaks_of(stored, EVERY_KIND), *leaks_of(ending, EVERY_KIND)]
        assert await reading.replace_credentials(
            engine, tokens=tokens("renewed"), presented="canary-refresh-plain", **call
        )
    assert [] == leaks
    assert "access_token" in "".join(ear.heard)
    assert [] == in_clear("\n".join(ear.heard), EVERY_KIND)


POSTGRESQL: Final = pytest.mark.parametrize("kind", ["asyncpg", pytest.param("psycopg", marks=pytest.mark.stress)])


def verbs(stage: Stage, transfer_token: str) -> dict[str, Call]:
    """Each call that has to do with tokens, with tokens of its own."""
    linker = stage.linker
    named: dict[str, Any] = {"user_id": ME, "link_id": stage.ids["live"]}
    renewing: dict[str, Any] = {"tokens": tokens("x"), "presented": "canary-refresh-first"}
    brought: dict[str, Any] = {"user_id": ME, "credentials": tokens("x")}
    return {
        "link": lambda bind: linker.link(bind, identity=identity("live"), **brought),
        "conflict": lambda bind: linker.link(bind, identity=identity("theirs"), **brought),
        "transfer": lambda bind: linker.transfer(bind, transfer_token, **brought),
        "replace": lambda bind: linker.replace_credentials(bind, **named, **renewing),
        "stored": lambda bind: linker.stored_credentials(bind, **named),
        "valid": lambda bind: linker.credentials(bind, **named, rejected="canary-rejected"),
        "unlink": lambda bind: linker.unlink(bind, **named),
    }


async def staged_with_a_token(engine: AsyncEngine) -> tuple[Stage, str]:
    stage = await stage_on(engine)
    conflict = await stage.linker.link(engine, user_id=ME, identity=identity("kept"), credentials=tokens("claim"))
    assert isinstance(conflict, OwnershipConflict)
    return stage, str(conflict.transfer_token)


TELLS = (
    "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' "
    "USING DETAIL = 'Row ' || NEW, HINT = NEW; END $$"
)
TROUBLE: Final[dict[str, tuple[list[str], set[str]]]] = {
    "a trigger that tells": (
        [TELLS, "CREATE TRIGGER tell BEFORE UPDATE ON connections FOR EACH ROW EXECUTE FUNCTION tell()"],
        {"link", "transfer", "replace", "unlink"},
    ),
    "a column too short": (
        ["UPDATE connections SET access_token = ''", "ALTER TABLE connections ALTER access_token TYPE varchar(20)"],
        {"link", "transfer"},
    ),
    "a pending column too short": (
        ["TRUNCATE {pending}", "ALTER TABLE {pending} ALTER access_token TYPE varchar(20)"],
        {"conflict"},
    ),
    "no pending table": (["DROP TABLE {pending}"], {"conflict", "transfer"}),
    "no table": (["DROP TABLE connections"], {"link", "conflict", "transfer", "replace", "stored", "valid", "unlink"}),
}
"""What is done to the tables, and the calls that it lets fail at least."""


@POSTGRESQL
@pytest.mark.parametrize(
    "trouble", [*[*TROUBLE][:2], *(pytest.param(name, marks=pytest.mark.stress) for name in [*TROUBLE][2:])]
)
async def test_no_trouble_of_the_server_shows_a_secret(database: Database, trouble: str) -> None:
    """A28: whatever the server refuses, its answer, its log and ours show no canary."""
    assert database.server is not None
    quiet = database.engine()
    stage, token = await staged_with_a_token(quiet)
    statements, expected = TROUBLE[trouble]
    await run_sql(quiet, *(statement.format(pending=PENDING.name) for statement in statements))
    await quiet.dispose()
    engine, log, failed = talkative(database), database.server.log_file, set[str]()
    begin, leaks = log.stat().st_size, list[str]()
    with listening() as ear, watched(engine) as seen:
        for name, call in verbs(stage, token).items():
            ending = await ending_of(call, engine)
            if isinstance(ending, Exception):
                failed.add(name)
            leaks += [f"{name}: {leak}" for leak in leaks_of(ending, (*EVERY_KIND, token))]
    assert expected <= failed
    told = {"log": "\n".join(ear.heard), "seen": "\n".join(seen)}
    told["server"] = log.read_bytes()[begin:].decode(errors="replace")
    leaks += [f"{name}: {each}" for name, text in told.items() for each in in_clear(text, (*EVERY_KIND, token))]
    assert [] == leaks


@POSTGRESQL
async def test_no_lost_line_shows_a_secret(database: Database) -> None:
    """A28: a line that is lost in the middle of a call, and a server that is not there, show no canary."""
    assert database.server is not None
    stage, token = await staged_with_a_token(database.engine())
    leaks: list[str] = []
    for name, call in verbs(stage, token).items():
        with listening() as ear:
            async with WireProxy(database.server.host, database.server.port) as line:
                url = make_url(database.url).set(port=line.port)
                engine = database.engine(url=url, pool_size=1, max_overflow=0, echo="debug")
                for lose in Lose:
                    for _ in range(9):
                        line.cut_when(lambda message: "connections" in (message.runs or ""), lose=lose)
                    lost = await ending_of(call, engine)
                    assert isinstance(lost, (OutcomeUnknown, StoreUnavailable)), (name, repr(lost))
                    leaks += [f"{name}: {leak}" for leak in leaks_of(lost, (*EVERY_KIND, token))]
            gone = await ending_of(call, engine)
            assert isinstance(gone, StoreUnavailable), (name, repr(gone))
            leaks += [f"{name}: {leak}" for leak in leaks_of(gone, (*EVERY_KIND, token))]
        leaks += [f"{name}, log: {each}" for each in in_clear("\n".join(ear.heard), (*EVERY_KIND, token))]
    assert [] == leaks


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_no_trouble_of_sqlite_shows_a_secret(database: Database) -> None:
    """A28: a database that another holds, and one without its tables: no canary in the error or the log.

    Reads wait for nobody.
    """
    stage, token = await staged_with_a_token(database.engine())
    holder = sqlite3.connect(str(make_url(database.url).database), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    engine = tune_sqlite(database.untuned(), busy_timeout=20)
    engine.echo = "debug"
    leaks: list[str] = []
    with listening() as ear:
        for gone in (False, True):
            for name, call in verbs(stage, token).items():
                ending = await ending_of(call, engine)
                held = TokenSet if name in {"stored", "valid"} else StoreBusy
                assert isinstance(ending, ConfigurationError if gone else held), (name, repr(ending))
                leaks += [f"{name}: {leak}" for leak in leaks_of(ending, (*EVERY_KIND, token))]
            if not gone:
                holder.close()
                await run_sql(database.engine(), "DROP TABLE connections")
    assert [] == leaks
    assert [] == in_clear("\n".join(ear.heard), (*EVERY_KIND, token))
