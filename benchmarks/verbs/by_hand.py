"""Each verb as one would write it for asyncpg by hand: a statement that the driver prepares, and nothing besides."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256

import asyncpg

from benchmarks.ground import GRANTS, Connection
from benchmarks.verbs.tasks import EXPIRES_AT, Task, Verb, sign

By = Callable[["asyncpg.Connection[asyncpg.Record]", Task], Awaitable[None]]
_LINKS, _ROW = (
    Connection.__tablename__,
    "id, user_id, provider, account_id, email, scopes, created_at, updated_at, version",
)
_WRITTEN = ("email", "access_token", "refresh_token", "expires_at", "scopes", "updated_at")
_CREDENTIALS = ("a" * 64, "r" * 64, EXPIRES_AT, "calendar mail")

UPSERT = f"""
INSERT INTO {_LINKS} AS held
  (user_id, provider, account_id, email, access_token, refresh_token, expires_at, scopes,
   updated_at, created_at, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 1)
ON CONFLICT (provider, account_id) WHERE deleted_at IS NULL DO UPDATE SET
  {", ".join(f"{c} = CASE WHEN held.user_id = $1 THEN excluded.{c} ELSE held.{c} END" for c in _WRITTEN)}
RETURNING {_ROW}, xmax = 0 AS created
"""
RESTORE = f"""
UPDATE {_LINKS} SET email = $4, access_token = $5, refresh_token = $6, expires_at = $7, scopes = $8, updated_at = $9,
       deleted_at = NULL, version = version + 1
 WHERE user_id = $1 AND provider = $2 AND account_id = $3 AND deleted_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM {_LINKS} WHERE provider = $2 AND account_id = $3 AND deleted_at IS NULL)
RETURNING {_ROW}
"""
UNLINK = f"""
UPDATE {_LINKS} SET deleted_at = $3, updated_at = $3, access_token = NULL, refresh_token = NULL, expires_at = NULL,
       scopes = NULL, version = version + 1
 WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL RETURNING {_ROW}
"""
READ = f"SELECT {_ROW} FROM {_LINKS} WHERE id = $1 AND deleted_at IS NULL"
TRANSFER = f"""
UPDATE {_LINKS} SET user_id = $2, access_token = NULL, refresh_token = NULL, expires_at = NULL, scopes = NULL,
       updated_at = $5, version = version + 1
 WHERE id = $1 AND user_id = $3 AND version = $4 AND deleted_at IS NULL RETURNING {_ROW}
"""
REDEEM = f"""
UPDATE {GRANTS.name} SET grantee_id = $2, redeemed_at = now(), uses = uses + 1
 WHERE token_hash = $1 AND active AND expires_at > now() AND grantee_id IS NULL AND grantor_id <> $2
RETURNING id, grantor_id, grantee_id, expires_at, created_at, redeemed_at, ended_at
"""
ACCOUNTS = f"SELECT {_ROW} FROM {_LINKS} WHERE user_id = $1 AND deleted_at IS NULL ORDER BY created_at, id"
FIND_OWNER = f"SELECT {_ROW} FROM {_LINKS} WHERE provider = $1 AND account_id = $2 AND deleted_at IS NULL"


def _brought(task: Task) -> tuple[object, ...]:
    identity = (task.user_id, "acme", task.account_id, f"{task.account_id}@example.com")
    return (*identity, *_CREDENTIALS, datetime.now(UTC))


async def _upsert(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> tuple[bool, bool]:
    """Link; and say whether the row is the caller's, and whether it is new."""
    row = await connection.fetchrow(UPSERT, *_brought(task))
    assert row is not None
    return row["user_id"] == task.user_id, row["created"]


async def first(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Link an account that no user has."""
    assert await _upsert(connection, task) == (True, True)


async def relink(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Link an account that the caller has."""
    assert await _upsert(connection, task) == (True, False)


async def conflict(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Link an account that another user has, whose row gets a new version by that, with the old values."""
    assert await _upsert(connection, task) == (False, False)


async def restore(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Link an account that the caller had; a statement of its own, which knows that it is one."""
    assert await connection.fetchrow(RESTORE, *_brought(task)) is not None


async def unlink(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Mark a link as dead."""
    assert await connection.fetchrow(UNLINK, task.link_id, task.user_id, datetime.now(UTC)) is not None


async def transfer(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Check the signature and the row, and give it to the caller."""
    text, _, _ = task.signed.rpartition(".")
    assert hmac.compare_digest(sign(text), task.signed)
    link_id, version, owner = map(int, text.split("."))
    row = await connection.fetchrow(READ, link_id)
    assert row is not None
    assert (row["user_id"], row["version"]) == (owner, version)
    moved = (link_id, task.user_id, owner, version, datetime.now(UTC))
    assert await connection.fetchrow(TRANSFER, *moved) is not None


async def redeem(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Redeem a token that one user can redeem."""
    digest = urlsafe_b64encode(sha256(task.token.encode()).digest()).decode().rstrip("=")
    assert await connection.fetchrow(REDEEM, digest, task.user_id) is not None


async def accounts(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """List a user's links."""
    assert len(await connection.fetch(ACCOUNTS, task.user_id)) == 1


async def find_owner(connection: "asyncpg.Connection[asyncpg.Record]", task: Task) -> None:
    """Find who has an account."""
    assert await connection.fetchrow(FIND_OWNER, "acme", task.account_id) is not None


CALLS: dict[Verb, By] = {
    Verb.FIRST: first,
    Verb.RELINK: relink,
    Verb.CONFLICT: conflict,
    Verb.RESTORE: restore,
    Verb.UNLINK: unlink,
    Verb.TRANSFER: transfer,
    Verb.REDEEM: redeem,
    Verb.ACCOUNTS: accounts,
    Verb.FIND_OWNER: find_owner,
}
