"""The application of the page about rotation: rows sealed with an older key, and some that are not as they should be.

``python -m tests.support.sealed_connections KIND`` puts rows of a kind into the database of the environment, and lets
the application of the current directory have a linker with a vault.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import AccountLinker, CredentialVault, ProviderIdentity, TokenSet
from tests.support.application import Connection
from tests.support.vaulted import KEY, OLD_KEY

linker: AccountLinker[int, int] = AccountLinker(Connection, vault=CredentialVault(keys=[KEY, OLD_KEY]))
WRITERS: Final[dict[str, AccountLinker[int, int]]] = {
    "older": AccountLinker(Connection, vault=CredentialVault(keys=[OLD_KEY])),
    "plain": AccountLinker(Connection),
    "lost": AccountLinker(Connection, vault=CredentialVault(keys=[bytes(32)])),
}
KINDS: Final = {
    "older": {"older": 40},
    "plain": {"plain": 40},
    "lost": {"older": 38, "lost": 2},
}


async def fill(kind: str) -> None:
    """Link users to accounts by the linkers that write such rows."""
    engine = create_async_engine(os.environ["ACCOUNTLINK_DATABASE_URL"])
    number = 0
    async with engine.begin() as connection:
        await connection.execute(sa.delete(Connection))
        for writer, times in KINDS[kind].items():
            for _ in range(times):
                number += 1
                await _link(connection, WRITERS[writer], number)
    await engine.dispose()


async def _link(connection: Any, writer: AccountLinker[int, int], number: int) -> None:
    identity = ProviderIdentity(provider="google", account_id=f"account-{number}")
    tokens = TokenSet(access_token=f"access-{number}", refresh_token=f"refresh-{number}")
    await writer.link(connection, user_id=number, identity=identity, credentials=tokens)


if __name__ == "__main__":
    asyncio.run(fill(sys.argv[1]))
    accounts = Path("myapp") / "accounts.py"
    accounts.write_text("from tests.support.sealed_connections import linker\n", encoding="utf-8")
