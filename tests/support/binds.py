"""Each way of saying whose transaction it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

BINDS = ("engine", "connection", "session", "autocommit")


@asynccontextmanager
async def bound(engine: AsyncEngine, how: str) -> AsyncIterator[Any]:
    """Open a bind, and commit what is the caller's to commit."""
    match how:
        case "engine":
            yield engine
        case "connection":
            async with engine.begin() as connection:
                yield connection
        case "autocommit":
            async with engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")
        case "session":
            async with AsyncSession(engine, expire_on_commit=False) as session:
                yield session
                await session.commit()
        case _:
            raise ValueError(how)
