"""Each verb by the library, as an application calls it: on an engine, with values that are made for the call."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import Change, Granted, Linked, OwnershipConflict, ProviderIdentity, TokenSet, Transferred, Unlinked
from benchmarks.ground import LINKER, SHARES
from benchmarks.verbs.tasks import EXPIRES_AT, Task, Verb

By = Callable[[AsyncEngine, Task], Awaitable[None]]
_SCOPES = frozenset({"calendar", "mail"})


async def _link(engine: AsyncEngine, task: Task) -> Change | None:
    """Link; and say what it came to, ``None`` for a conflict."""
    outcome = await LINKER.link(
        engine,
        user_id=task.user_id,
        identity=ProviderIdentity(provider="acme", account_id=task.account_id, email=f"{task.account_id}@example.com"),
        credentials=TokenSet(access_token="a" * 64, refresh_token="r" * 64, expires_at=EXPIRES_AT, scopes=_SCOPES),
    )
    match outcome:
        case Linked(change=change):
            return change
        case OwnershipConflict():
            return None


async def first(engine: AsyncEngine, task: Task) -> None:
    """Link an account that no user has."""
    assert await _link(engine, task) is Change.CREATED


async def relink(engine: AsyncEngine, task: Task) -> None:
    """Link an account that the caller has."""
    assert await _link(engine, task) is Change.UPDATED


async def conflict(engine: AsyncEngine, task: Task) -> None:
    """Link an account that another user has."""
    assert await _link(engine, task) is None


async def restore(engine: AsyncEngine, task: Task) -> None:
    """Link an account that the caller had."""
    assert await _link(engine, task) is Change.RESTORED


async def unlink(engine: AsyncEngine, task: Task) -> None:
    """Disconnect a link."""
    assert isinstance(await LINKER.unlink(engine, user_id=task.user_id, link_id=task.link_id), Unlinked)


async def transfer(engine: AsyncEngine, task: Task) -> None:
    """Redeem a conflict's token."""
    assert isinstance(await LINKER.transfer(engine, task.token, user_id=task.user_id), Transferred)


async def redeem(engine: AsyncEngine, task: Task) -> None:
    """Redeem a grant's token."""
    assert isinstance(await SHARES.redeem(engine, task.token, grantee_id=task.user_id), Granted)


async def accounts(engine: AsyncEngine, task: Task) -> None:
    """List a user's links."""
    assert len(await LINKER.accounts(engine, user_id=task.user_id)) == 1


async def find_owner(engine: AsyncEngine, task: Task) -> None:
    """Find who has an account."""
    assert await LINKER.find_owner(engine, provider="acme", account_id=task.account_id) is not None


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
