"""The keys as they were, which disconnected rows still occupy, and the migration to the right ones.

Both as plain statements, for an Alembic migration to copy. On a large PostgreSQL table write ``CREATE UNIQUE INDEX
CONCURRENTLY`` and ``DROP INDEX CONCURRENTLY``, outside of a transaction.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

FULL_KEYS: Final = (
    "DROP INDEX cloud_one_owner",
    "DROP INDEX cloud_one_link_per_user",
    "CREATE UNIQUE INDEX uq_cloud_account ON cloud_provider_accounts (provider, provider_account_id)",
    "CREATE UNIQUE INDEX uq_cloud_user_account ON cloud_provider_accounts (user_id, provider, provider_account_id)",
)
"""Back to the table as it was. It reads well, and forbids what ``Removal.SOFT`` allows."""

LIVE_KEYS: Final = (
    "CREATE UNIQUE INDEX cloud_one_owner ON cloud_provider_accounts (provider, provider_account_id) WHERE is_active",
    """
    CREATE UNIQUE INDEX cloud_one_link_per_user
    ON cloud_provider_accounts (user_id, provider, provider_account_id) WHERE is_active
    """,
    "DROP INDEX uq_cloud_account",
    "DROP INDEX uq_cloud_user_account",
)
"""The migration: the same keys, for live rows only. The new ones stand before the old ones go."""


async def migrate(engine: AsyncEngine, statements: Sequence[str]) -> None:
    """Run statements in one transaction."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
