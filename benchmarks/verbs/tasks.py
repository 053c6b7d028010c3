"""The verbs, and the calls that each contestant gets to do: all of one kind meet the same rows."""

import enum
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import OwnershipConflict, ProviderIdentity
from benchmarks.ground import LINKER, SHARES, Connection

RIVALS = 1_000_000_000  # added to a user's id it is that of the user who comes second
EXPIRES_AT = datetime.now(UTC) + timedelta(hours=1)
SECRET = b"by hand".ljust(32, b"-")
_USERS = count(1)  # nobody calls twice in a run
_LINKS = f"""
INSERT INTO {Connection.__tablename__} AS made
  (user_id, provider, account_id, email, access_token, refresh_token, expires_at, scopes,
   created_at, updated_at, deleted_at, version)
SELECT user_id, 'acme', account_id, account_id || '@example.com', 'former', 'former', now(), 'mail',
       now(), now(), CASE WHEN $3 THEN now() END, 1
  FROM unnest($1::bigint[], $2::text[]) AS given (user_id, account_id)
RETURNING id, user_id, account_id
"""


class Verb(enum.Enum):
    """Name the tasks: the verb that is called, and the state that it meets."""

    FIRST = "link, first"
    RELINK = "link, again"
    CONFLICT = "link, conflict"
    RESTORE = "link, restore"
    UNLINK = "unlink"
    TRANSFER = "transfer"
    REDEEM = "redeem"
    ACCOUNTS = "accounts"
    FIND_OWNER = "find_owner"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Describe one call.

    Attributes:
        user_id: Who calls.
        account_id: The provider account that it is about.
        link_id: Its row, where the call names it.
        token: The token that the library's call presents.
        signed: The one of a transfer by hand: link id, version, owner, and a signature.
    """

    user_id: int
    account_id: str
    link_id: int = 0
    token: str = ""
    signed: str = ""


def sign(text: str) -> str:
    """Sign what a token by hand says."""
    return f"{text}.{hmac.digest(SECRET, text.encode(), 'sha256').hex()}"


class Tasks:
    """Make tasks; each meets rows of its own, which are made here, before anything is timed."""

    def __init__(self, run: str, engine: AsyncEngine, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._run = run
        self._engine = engine
        self._connection = connection

    async def of(self, verb: Verb, number: int) -> list[Task]:
        """Make so many tasks of one verb."""
        match verb:
            case Verb.FIRST:
                return [Task(user_id=user_id, account_id=account) for user_id, account in self._fresh(number)]
            case Verb.RESTORE:
                return await self._linked(number, dead=True)
            case Verb.CONFLICT:
                return [_rival(task) for task in await self._linked(number, dead=False)]
            case Verb.TRANSFER:
                return [await self._claimed(task) for task in await self._linked(number, dead=False)]
            case Verb.REDEEM:
                return [await self._issued(user_id, account) for user_id, account in self._fresh(number)]
            case _:
                return await self._linked(number, dead=False)

    def _fresh(self, number: int) -> list[tuple[int, str]]:
        users = [next(_USERS) for _ in range(number)]
        return [(user_id, f"{self._run}-{user_id}") for user_id in users]

    async def _linked(self, number: int, *, dead: bool) -> list[Task]:
        users, accounts = zip(*self._fresh(number), strict=True)
        rows = await self._connection.fetch(_LINKS, users, accounts, dead)
        return [Task(user_id=row["user_id"], account_id=row["account_id"], link_id=row["id"]) for row in rows]

    async def _claimed(self, task: Task) -> Task:
        rival = _rival(task)
        identity = ProviderIdentity(provider="acme", account_id=task.account_id)
        met = await LINKER.link(self._engine, user_id=rival.user_id, identity=identity)
        assert isinstance(met, OwnershipConflict)
        assert met.transfer_token is not None
        signed = sign(f"{task.link_id}.1.{task.user_id}")
        return Task(user_id=rival.user_id, account_id=task.account_id, token=met.transfer_token, signed=signed)

    async def _issued(self, user_id: int, account: str) -> Task:
        issued = await SHARES.issue(self._engine, grantor_id=user_id, expires_in=timedelta(hours=1))
        return Task(user_id=user_id + RIVALS, account_id=account, token=issued.token)


def _rival(task: Task) -> Task:
    return Task(user_id=task.user_id + RIVALS, account_id=task.account_id, link_id=task.link_id)
