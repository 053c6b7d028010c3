"""How production came to refuse a page that comes back: a unique index that counts deleted rows.

The columns are those of ``models.py``. Only the key lacks its condition, so that a disconnected row still occupies it.
"""

from typing import Final

import sqlalchemy as sa

from examples.platforms.models import SCHEMA, Base

first_release: Final = sa.MetaData()
_table: Final = Base.metadata.tables[f"{SCHEMA}.platform_connections"].to_metadata(first_release)
_table.indexes.clear()
full_key: Final = sa.Index(
    "platform_connections_org_platform_account", _table.c.org_id, _table.c.platform, _table.c.account_id, unique=True
)
