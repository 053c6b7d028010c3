"""The old keys, which count disconnected rows; the doctor writes the migration to the right ones."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

FULL_KEYS: Final = (
    "DROP INDEX cloud_one_owner",
    "DROP INDEX cloud_one_link_per_user",
    "CREATE UNIQUE INDEX uq_cloud_account ON cloud_provider_accounts (provider, provider_account_id)",
    "CREATE UNIQUE INDEX uq_cloud_user_account ON cloud_provider_accounts (user_id, provider, provider_account_id)",
)
"""Statements that restore the old table. Its keys look right, but forbid what ``Removal.SOFT`` allows."""


async def migrate(engine: AsyncEngine, statements: Sequence[str]) -> None:
    """Run statements in one transaction."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
