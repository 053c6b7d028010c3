"""The application of the page about refreshing: idle grants, one of which has ended at its provider.

``python -m tests.support.kept_connections`` puts the rows into the database of the environment, and lets the
application of the current directory have a linker that renews tokens.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import AccountLinker, CredentialVault, GrantEnded, TokenSet, refresh_states
from accountlink.testing import FakeRefresher, link_with_expired_token
from tests.support.application import Base, Connection
from tests.support.vaulted import KEY

STATES: Final = refresh_states(Base.metadata)
LINKS: Final = 40
VAULT: Final = CredentialVault(keys=[KEY])


class OneHasEnded(FakeRefresher):
    """Renews all grants but one."""

    async def renew(self, provider: str, tokens: TokenSet, *, deadline: timedelta) -> TokenSet:
        assert tokens.refresh_token is not None
        if tokens.refresh_token.reveal().endswith("-7"):
            raise GrantEnded("invalid_grant")
        return await super().renew(provider, tokens, deadline=deadline)


linker: AccountLinker[int, int] = AccountLinker(Connection, vault=VAULT, refresher=OneHasEnded(), refreshes=STATES)


async def fill() -> None:
    """Link users, each 40 days ago."""
    filling = AccountLinker(Connection, vault=VAULT, clock=lambda: datetime.now(UTC) - timedelta(days=40))
    engine = create_async_engine(os.environ["ACCOUNTLINK_DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for number in range(1, LINKS + 1):
            await link_with_expired_token(filling, connection, user_id=number, account_id=f"account-{number}")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(fill())
    accounts = Path("myapp") / "accounts.py"
    accounts.write_text("from tests.support.kept_connections import linker\n", encoding="utf-8")
