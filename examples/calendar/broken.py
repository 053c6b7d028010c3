"""How production came to refuse a second account: the first schema, and the migration that missed.

The first release allowed one account per provider. The migration that was to allow several dropped the old
constraint by the name that PostgreSQL would have given it. It had another one, and IF EXISTS turned the mistake into
silence: the migration succeeded, the new key was there, and so was the old one.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

TRUE_NAME: Final = "calendar_connections_user_provider_unique"
ASSUMED_NAME: Final = "calendar_connections_user_id_provider_key"

first_release: Final = sa.MetaData()
"""The old key of the first migration. SQLite cannot drop a constraint, so there it is an index of that name."""

sa.Table(
    "calendar_connections",
    first_release,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("email", sa.Text, nullable=False),
    sa.Column("access_token", sa.Text, nullable=False),
    sa.Column("refresh_token", sa.Text),
    sa.Column("token_expires_at", sa.DateTime(timezone=True)),
    sa.Column("scopes", sa.Text),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("user_id", "provider", name=TRUE_NAME).ddl_if(dialect="postgresql"),
    sa.Index(TRUE_NAME, "user_id", "provider", unique=True).ddl_if(dialect="sqlite"),
)

NEW_KEY: Final = (
    "CREATE UNIQUE INDEX calendar_connections_user_provider_email_unique"
    " ON calendar_connections (user_id, provider, email)"
)
SILENT_DROP: Final = {
    "postgresql": f"ALTER TABLE calendar_connections DROP CONSTRAINT IF EXISTS {ASSUMED_NAME}",
    "sqlite": f"DROP INDEX IF EXISTS {ASSUMED_NAME}",
}


async def unique_keys(connection: AsyncConnection) -> dict[str, tuple[str | None, ...]]:
    """Return what the database itself says is unique in the table: columns by the name of the constraint or index."""

    def read(sync: sa.Connection) -> dict[str, tuple[str | None, ...]]:
        indexes = sa.inspect(sync).get_indexes("calendar_connections")
        return {str(index["name"]): tuple(index["column_names"]) for index in indexes if index["unique"]}

    return await connection.run_sync(read)
