"""Answers for the page beside the user's own accounts: notices, shares, the vault, tokens, the doctor, and the tables.

A real application shows its users the notices and the shares. The rows, the events and the statements of everybody are
here for those who want to see what accountlink does.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from accountlink import EventType, ShareGrants
from accountlink.cli.demo import broken
from accountlink.cli.demo.answers import NO_STORE, answered, posted, refusal
from accountlink.cli.demo.backend import Endpoint, signed_in
from accountlink.cli.demo.models import Base, Connection, Told, User, shares
from accountlink.cli.demo.providers import NAMES
from accountlink.cli.demo.sealed import Sealed
from accountlink.cli.demo.statements import Statements
from accountlink.cli.demo.tokens import Tokens

PREFIX = "/demo"
_SHARED_FOR = timedelta(days=7)
_EVENTS = 30
"""The number of events that the page shows."""
_LARGEST_ID = 2**63 - 1
_COLUMNS = ("id", "user_id", "provider", "account_id", "email", "updated_at", "deleted_at")
_TOKENS = ("access_token", "refresh_token")


class Panels:
    """Answer the page's own requests, in JSON.

    Args:
        engine: The application's engine.
        grants: Where shares live.
        sealed: Looks at the stored tokens.
        tokens: Looks at how long they are valid, and ends them.
        statements: What the requests executed.
    """

    def __init__(
        self, *, engine: AsyncEngine, grants: ShareGrants, sealed: Sealed, tokens: Tokens, statements: Statements
    ) -> None:
        self._engine = engine
        self._grants = grants
        self._sealed = sealed
        self._tokens = tokens
        self._statements = statements

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        posts: dict[str, Endpoint] = {
            "/notices/read": self.read_notice,
            "/shares": self.share,
            "/shares/redeem": self.redeem,
            "/shares/{grant_id:uuid}/revoke": self.revoke,
            "/vault/{link_id:int}/copy": self.copy_envelope,
            "/vault/{link_id:int}/restore": self.restore_envelope,
            **self._tokens.posts(),
            "/doctor/{system}": self.doctor,
            "/reset": self.reset,
        }
        return [
            Mount(
                PREFIX,
                routes=[
                    Route("/state", answered(self.state)),
                    *(Route(path, posted(endpoint), methods=["POST"]) for path, endpoint in posts.items()),
                ],
            )
        ]

    async def state(self, request: Request) -> Response:
        """Say everything that the page shows."""
        user_id = signed_in(request)
        async with self._engine.connect() as connection:
            people = {user.id: user.name for user in await connection.execute(select(User.id, User.name))}
            rows = await self._rows(connection, people)
            told = [_event(event, people) for event in await connection.execute(_LATEST)]
            notices = await self._notices(connection, user_id, people)
            unredeemed = await self._unredeemed(connection, user_id)
            links = await self._sealed.links(connection)
            waiting = await self._sealed.waiting(connection, people)
        return JSONResponse(
            {
                "user": {"id": user_id, "name": people[user_id]} if user_id in people else None,
                "people": [{"id": key, "name": name} for key, name in people.items()],
                "providers": [{"slug": slug, "name": name} for slug, name in NAMES.items()],
                "systems": [{"slug": each.slug, "title": each.title, "story": each.story} for each in broken.SYSTEMS],
                "notices": notices,
                "shares": await self._shares(user_id, people, unredeemed),
                "vault": {"links": await self._sealed.shown(links), "waiting": waiting},
                "tokens": await self._tokens.shown(user_id),
                "rows": rows,
                "events": told,
                "statements": [asdict(each) for each in self._statements.latest()],
            },
            headers=NO_STORE,
        )

    # -- notices ------------------------------------------------------------------------------------------------------

    async def read_notice(self, request: Request) -> Response:
        """Mark a notice of the user's as read."""
        asked = await request.json()
        event_id = int(asked["event_id"])
        if not 0 < event_id <= _LARGEST_ID:
            raise ValueError("no event has this id")
        its = (Told.event_id == event_id, Told.other_user_id == signed_in(request))
        async with self._engine.begin() as connection:
            await connection.execute(update(Told).where(*its).values(is_read=True))
        return JSONResponse({}, headers=NO_STORE)

    async def _notices(
        self, connection: AsyncConnection, user_id: int | None, people: dict[int, str]
    ) -> list[dict[str, Any]]:
        unread = (
            select(Told)
            .where(Told.other_user_id == user_id, Told.type == EventType.TRANSFERRED.value, ~Told.is_read)
            .order_by(Told.event_id.desc())
        )
        return [_event(event, people) for event in await connection.execute(unread)]

    # -- shares -------------------------------------------------------------------------------------------------------

    async def share(self, request: Request) -> Response:
        """Issue a token for one of the user's connections. No later answer holds it."""
        asked = await request.json()
        if asked["link_id"] is None:
            raise ValueError("a share of this page is about an account")
        issued = await self._grants.issue(
            self._engine, grantor_id=signed_in(request), link_id=asked["link_id"], expires_in=_SHARED_FOR
        )
        return JSONResponse({"token": issued.token}, headers=NO_STORE)

    async def redeem(self, request: Request) -> Response:
        """Give the user the access whose token they have."""
        asked = await request.json()
        outcome = await self._grants.redeem(self._engine, asked["token"], grantee_id=signed_in(request))
        return JSONResponse({"outcome": outcome.code}, headers=NO_STORE)

    async def revoke(self, request: Request) -> Response:
        """End an access, or the token for one."""
        outcome = await self._grants.revoke(
            self._engine, grantor_id=signed_in(request), grant_id=request.path_params["grant_id"]
        )
        return JSONResponse({"outcome": outcome.code}, headers=NO_STORE)

    async def _unredeemed(self, connection: AsyncConnection, user_id: int | None) -> Sequence[Any]:
        """Return the user's tokens that nobody has used. That of an account they no longer have is worth nothing."""
        waiting = (
            select(shares.c.id, shares.c.link_id, shares.c.expires_at)
            .join(Connection, Connection.id == shares.c.link_id)
            .where(shares.c.grantor_id == user_id, shares.c.redeemed_at.is_(None), shares.c.active)
            .where(Connection.user_id == user_id, Connection.deleted_at.is_(None))
        )
        return (await connection.execute(waiting)).all()

    async def _shares(self, user_id: int | None, people: dict[int, str], unredeemed: Sequence[Any]) -> dict[str, Any]:
        """Return what the user gives, and what they were given. Only ``active`` says who has access now."""
        if user_id not in people:
            return {"given": [], "waiting": [], "received": []}
        return {
            "given": [
                _share(grant, people[grant.grantee_id])
                for grant in await self._grants.active(self._engine, grantor_id=user_id)
            ],
            "waiting": [_share(grant, None) for grant in unredeemed],
            "received": [
                _share(grant, people[grant.grantor_id])
                for grant in await self._grants.active(self._engine, grantee_id=user_id)
            ],
        }

    # -- the vault ----------------------------------------------------------------------------------------------------

    async def copy_envelope(self, request: Request) -> Response:
        """Put the envelope of one row into another one, as somebody could who can write to the database."""
        asked = await request.json()
        await self._sealed.copy(from_id=int(asked["from"]), to_id=request.path_params["link_id"])
        return JSONResponse({}, headers=NO_STORE)

    async def restore_envelope(self, request: Request) -> Response:
        """Put a row's own envelope back."""
        await self._sealed.restore(link_id=request.path_params["link_id"])
        return JSONResponse({}, headers=NO_STORE)

    # -- the doctor ---------------------------------------------------------------------------------------------------

    async def doctor(self, request: Request) -> Response:
        """Break a schema as one of four real systems had broken it, and repair it as the doctor says."""
        slug = request.path_params["system"]
        if slug not in {system.slug for system in broken.SYSTEMS}:
            return refusal("unknown_system", status=404)
        return JSONResponse(asdict(await broken.examine(self._engine, slug)), headers=NO_STORE)

    # -- the database -------------------------------------------------------------------------------------------------

    async def reset(self, _: Request) -> Response:
        """Empty every table but that of the users."""
        async with self._engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                if table is not User.__table__:
                    await connection.execute(delete(table))
        self._statements.clear()
        return JSONResponse({}, headers=NO_STORE)

    async def _rows(self, connection: AsyncConnection, people: dict[int, str]) -> list[dict[str, Any]]:
        """Return the connections as they are stored, and of each token only a mark that changes with it."""
        table = Connection.__table__
        stored = await connection.execute(select(table).order_by(table.c.id))
        return [
            {name: _shown(row[name]) for name in _COLUMNS}
            | {name: _mark(row[name]) for name in _TOKENS}
            | {"user": people.get(row["user_id"])}
            for row in stored.mappings()
        ]


_LATEST = select(Told).order_by(Told.event_id.desc()).limit(_EVENTS)


def _event(event: Any, people: dict[int, str]) -> dict[str, Any]:
    return {
        "id": event.event_id,
        "type": event.type,
        "user": people.get(event.user_id),
        "other_user": people.get(event.other_user_id),
        "provider": event.provider,
        "link_id": event.link_id,
        "occurred_at": _shown(event.occurred_at),
    }


def _share(grant: Any, other: str | None) -> dict[str, Any]:
    return {"id": str(grant.id), "link_id": grant.link_id, "with": other, "expires_at": _shown(grant.expires_at)}


def _shown(value: Any) -> Any:
    """Return a column's value for JSON; a moment in UTC, which SQLite stores without saying so."""
    if not isinstance(value, datetime):
        return value
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _mark(token: str | None) -> str | None:
    return None if token is None else hashlib.sha256(token.encode()).hexdigest()[:6]
