"""Make the library's own table of grants on the application's metadata."""

from __future__ import annotations

from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.orm import QueryableAttribute

from accountlink.errors import ConfigurationError
from accountlink.tables.own_tables import check_own_name, checked_names, shortened
from accountlink.tables.targets import known_table, mapper_of

GRANTS_NAME: Final = "accountlink_grants"
_MARK: Final = "accountlink.sharing"
"""The key in a table's ``info`` that marks it as the library's own, and says whether a pair has one active grant."""
_HASH_LENGTH: Final = 43
"""SHA-256 in base64 without padding."""

IdColumn = QueryableAttribute[Any] | sa.Column[Any] | sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]
"""The ids of another table: its column, to which a foreign key is made, or only their type."""


def grants_table(
    metadata: sa.MetaData,
    *,
    user_id: IdColumn = sa.BigInteger,
    link_id: IdColumn | None = None,
    one_active_per_pair: bool = False,
    name: str = GRANTS_NAME,
    schema: str | None = None,
) -> sa.Table:
    """Make a table of grants on your metadata, so that ``create_all`` and Alembic's autogenerate see it.

    It holds the SHA-256 of each token and never the token. A token for several users has a row of its own, and one for
    each user who has redeemed it.

    Args:
        metadata: The metadata of your tables.
        user_id: What grantor and grantee are: ``User.id``, to which foreign keys are made that delete a user's grants
            with the user, or a type, such as ``Uuid()``. Whole numbers without it.
        link_id: What a linked account is: ``Connection.id``, to which a foreign key is made that deletes a grant with
            the row of its account, or a type. Without it grants are about no linked account.
        one_active_per_pair: Adds a unique index, so that a pair has one active grant at most.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``ShareGrants(...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, the name is longer than the 63 bytes that
            PostgreSQL keeps, or an id is neither a column nor a type.
    """
    check_own_name("grants_table", metadata, name, schema)
    if not isinstance(one_active_per_pair, bool):
        raise ConfigurationError("grants_table(one_active_per_pair=...) takes True or False.")
    if (known := known_table(metadata, name, schema)) is not None:
        if not is_own(known):
            raise ConfigurationError(
                f"The metadata has another table {name!r}. Pass grants_table(..., name=...) that no table has."
            )
        return known
    table = sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True, default=uuid4),
        sa.Column("issued_id", sa.Uuid, index=True),
        _referring("grantor_id", user_id, nullable=False),
        _referring("grantee_id", user_id, index=True),
        sa.Column("token_hash", sa.String(_HASH_LENGTH), nullable=False, unique=True),
        *([] if link_id is None else [_referring("link_id", link_id, index=True)]),
        *([] if link_id is None else [sa.Column("link_version", sa.BigInteger)]),
        sa.Column("max_uses", sa.Integer, nullable=False, server_default="1"),
        sa.Column("uses", sa.Integer, nullable=False, server_default="0"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("redeemed_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        schema=schema,
        info={_MARK: {"one_active_per_pair": one_active_per_pair}},
    )
    active = table.c.active if one_active_per_pair else None
    sa.Index(
        shortened(f"{'uq' if one_active_per_pair else 'ix'}_{name}_pair"),
        table.c.grantor_id,
        table.c.grantee_id,
        unique=one_active_per_pair,
        postgresql_where=active,
        sqlite_where=active,
    )
    return checked_names("grants_table", table)


def is_own(table: sa.Table) -> bool:
    """Say whether :func:`grants_table` made a table."""
    return _MARK in table.info


def wants_one_per_pair(table: sa.Table) -> bool:
    """Say whether a table was made so that a pair has one active grant at most."""
    return bool(table.info.get(_MARK, {}).get("one_active_per_pair"))


def _referring(name: str, to: Any, *, nullable: bool = True, index: bool = False) -> sa.Column[Any]:
    """Return a column of ids, with a foreign key if the column that they refer to is known."""
    if isinstance(to, QueryableAttribute):
        owner: Any = to.class_
        mapper = mapper_of(owner)
        to = None if mapper is None else mapper.columns.get(to.key)
    if isinstance(to, sa.Column):
        key = sa.ForeignKey(to, ondelete="CASCADE")
        return sa.Column(name, to.type, key, nullable=nullable, index=index)
    if isinstance(to, sa.types.TypeEngine) or (isinstance(to, type) and issubclass(to, sa.types.TypeEngine)):
        return sa.Column(name, to, nullable=nullable, index=index)
    raise ConfigurationError(
        f"grants_table({name}=...) takes a column that the ids refer to, such as User.id, or a type, such as Uuid()."
    )
