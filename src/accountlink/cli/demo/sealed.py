"""Shows what stands in the table for each token, and what the application reads; puts an envelope into a wrong row.

A real application has no such panel. It never shows a token, not even a part of one: these are of pretend providers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from accountlink import AccountLinker, AccountNotFound, CredentialsUnreadable, NeedsConsent, TokenSet
from accountlink.cli.demo.models import Connection, Moved, pending
from accountlink.values.secrecy import Secret

_SHOWN_OF_TOKEN = 6
_SHOWN_OF_DATA = 6
_FORMAT = "al1"


class CannotMove(Exception):
    """The rows have changed since the page showed them: there is no such envelope to move, or to put back."""


class Sealed:
    """Look at the stored tokens as a reader of the database does, and as the application does.

    Args:
        engine: The application's engine.
        linker: The application's linker, which has a vault.
    """

    def __init__(self, engine: AsyncEngine, linker: AccountLinker[int, int]) -> None:
        self._engine = engine
        self._linker = linker

    # -- looking ------------------------------------------------------------------------------------------------------

    async def links(self, connection: AsyncConnection) -> Sequence[Any]:
        """Return the connected accounts as they are stored, and of each which envelopes were moved."""
        found = (
            select(Connection.id, Connection.user_id, Connection.access_token, Moved.own, Moved.foreign)
            .outerjoin(Moved, Moved.link_id == Connection.id)
            .where(Connection.deleted_at.is_(None))
            .order_by(Connection.id)
        )
        return (await connection.execute(found)).all()

    async def waiting(self, connection: AsyncConnection, people: dict[int, str]) -> list[dict[str, Any]]:
        """Return the tokens that wait for a transfer, without those whose time is over."""
        columns = (pending.c.user_id, pending.c.provider, pending.c.access_token, pending.c.kept_until)
        rows = await connection.execute(select(*columns).order_by(pending.c.kept_until))
        now = datetime.now(UTC)
        return [
            {
                "user": people.get(int(row.user_id)),
                "provider": row.provider,
                "envelope": parts_of(row.access_token),
                "until": in_utc(row.kept_until).isoformat(),
            }
            for row in rows
            if in_utc(row.kept_until) > now
        ]

    async def shown(self, links: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the envelope of each link, and what the application reads when it asks for the link's tokens."""
        found = []
        for link in links:
            shown = {
                "id": link.id,
                "envelope": parts_of(link.access_token),
                "is_moved": _is_moved(link),
            }
            try:
                tokens = await self._linker.stored_credentials(self._engine, user_id=link.user_id, link_id=link.id)
            except CredentialsUnreadable as error:
                shown["refused"] = {"code": error.code, "role": error.role, "reason": error.reason}
            except NeedsConsent:
                shown["refused"] = None
            except AccountNotFound:  # it was disconnected after the look at the rows
                continue
            else:
                shown["read"] = _read(tokens)
            found.append(shown)
        return found

    # -- moving -------------------------------------------------------------------------------------------------------

    async def copy(self, *, from_id: int, to_id: int) -> None:
        """Put the envelope of one link's access token into the row of another, and remember what was there.

        Raises:
            CannotMove: One of the links has no envelope of its own.
        """
        async with self._engine.begin() as connection:
            stored = {link.id: link for link in await self.links(connection)}
            if not (from_id != to_id and _has_own(stored.get(from_id)) and _has_own(stored.get(to_id))):
                raise CannotMove
            own, foreign = stored[to_id].access_token, stored[from_id].access_token
            await connection.execute(delete(Moved).where(Moved.link_id == to_id))
            await connection.execute(insert(Moved).values(link_id=to_id, own=own, foreign=foreign))
            await self._replace(connection, to_id, there=own, by=foreign)

    async def restore(self, *, link_id: int) -> None:
        """Put a link's own envelope back.

        Raises:
            CannotMove: The row has no foreign envelope any more.
        """
        async with self._engine.begin() as connection:
            stored = {link.id: link for link in await self.links(connection)}
            link = stored.get(link_id)
            if link is None or not _is_moved(link):
                raise CannotMove
            await connection.execute(delete(Moved).where(Moved.link_id == link_id))
            await self._replace(connection, link_id, there=link.foreign, by=link.own)

    async def _replace(self, connection: AsyncConnection, link_id: int, *, there: str, by: str) -> None:
        its = (Connection.id == link_id, Connection.access_token == there)
        if not (await connection.execute(update(Connection).where(*its).values(access_token=by))).rowcount:
            raise CannotMove


def parts_of(text: str | None) -> dict[str, Any] | None:
    """Return the parts of an envelope, the ciphertext shortened; ``None`` for no token, and for one in plain text."""
    if text is None or not text.startswith(f"{_FORMAT}."):
        return None
    form, key_id, grant_id, data = text.split(".", 3)
    shortened = f"{data[:_SHOWN_OF_DATA]}…{data[-_SHOWN_OF_DATA:]}"
    return {"format": form, "key_id": key_id, "grant_id": grant_id, "data": shortened, "length": len(data)}


def _is_moved(link: Any) -> bool:
    """Say whether the row has a foreign envelope. A link that was connected again since has its own."""
    return link.foreign is not None and bool(link.foreign == link.access_token)


def _has_own(link: Any) -> bool:
    return link is not None and parts_of(link.access_token) is not None and not _is_moved(link)


def _read(tokens: TokenSet) -> dict[str, str | None]:
    return {"access_token": begins(tokens.access_token), "refresh_token": begins(tokens.refresh_token)}


def begins(token: Secret | None) -> str | None:
    """Return how a token begins, which tells it from another one."""
    return None if token is None else f"{token.reveal()[:_SHOWN_OF_TOKEN]}…"


def in_utc(moment: datetime) -> datetime:
    """Return a moment of the database, of which SQLite does not say that it is in UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
