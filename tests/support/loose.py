"""Tables whose columns take several spellings of an identifier for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, AccountMapping, Key, LinkPolicy, Ownership, Removal
from tests.support.databases import collation_without_case, create, rows, run_sql
from tests.support.models import SECRETS


class LowerCase(sa.types.TypeDecorator[str]):
    """An application's type that makes every text lower-case on its way in."""

    impl = sa.String(255)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return value if value is None else value.lower()


_SIGNS = {"lt": "<", "le": "<=", "eq": "=", "ne": "<>", "ge": ">=", "gt": ">"}
_MADE = "LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog"
"""Set, so that PostgreSQL does not put the function's own text in its place and then looks for another index."""
_STAND_IN = (
    "CREATE TYPE citext",
    "CREATE FUNCTION citextin(cstring) RETURNS citext LANGUAGE internal IMMUTABLE STRICT AS 'textin'",
    "CREATE FUNCTION citextout(citext) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'",
    "CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, LIKE = text, CATEGORY = 'S', COLLATABLE = true)",
    "CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT",
    "CREATE CAST (text AS citext) WITHOUT FUNCTION AS ASSIGNMENT",
    "CREATE CAST (varchar AS citext) WITHOUT FUNCTION AS ASSIGNMENT",
    f"""CREATE FUNCTION citext_cmp(citext, citext) RETURNS integer {_MADE}
        AS 'SELECT bttextcmp(lower($1::text), lower($2::text))'""",
    *(
        f"""CREATE FUNCTION citext_{name}(citext, citext) RETURNS boolean {_MADE}
            AS 'SELECT lower($1::text) {sign} lower($2::text)'"""
        for name, sign in _SIGNS.items()
    ),
    *(
        f"CREATE OPERATOR {sign} (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_{name})"
        for name, sign in _SIGNS.items()
    ),
    """CREATE OPERATOR CLASS citext_ops DEFAULT FOR TYPE citext USING btree AS OPERATOR 1 <, OPERATOR 2 <=,
        OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 citext_cmp(citext, citext)""",
)
"""Statements that imitate the extension ``citext`` on a server that does not have it."""


async def loose_type(engine: AsyncEngine, loose: str) -> sa.types.TypeEngine[Any]:
    """A type of text that takes two spellings for one, made in the database where it has to be.

    A server without ICU has no such collation; ``citext`` takes its place.
    """
    if loose == "nocase":
        return sa.String(255, collation="NOCASE")
    if loose == "icu" and await rows(engine, "SELECT 1 FROM pg_collation WHERE collname = 'und-x-icu'"):
        await collation_without_case(engine)
        return sa.String(255, collation="nocase")
    available = await rows(engine, "SELECT 1 FROM pg_available_extensions WHERE name = 'citext'")
    await run_sql(engine, *(["CREATE EXTENSION citext"] if available else _STAND_IN))
    return CITEXT()


@dataclass(frozen=True)
class Loose:
    """A table of links with such columns, behind one face."""

    metadata: sa.MetaData
    table: sa.Table
    mapping: AccountMapping[Any, Any]
    engine: AsyncEngine

    def linker(self, **options: Any) -> AccountLinker[Any, Any]:
        return AccountLinker(self.mapping, **({"secrets": SECRETS} | options))

    async def put(self, **values: Any) -> None:
        """Write a row past the library, as an earlier application did."""
        async with self.engine.begin() as connection:
            await connection.execute(sa.insert(self.table).values(version=1, **values))

    async def stored(self) -> list[tuple[Any, ...]]:
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(sa.select(self.table).order_by(self.table.c.id))]


async def loose_links(
    engine: AsyncEngine, policy: LinkPolicy, kind: sa.types.TypeEngine[Any], *, index: str = "key", **more: Any
) -> Loose:
    """Make a table of links.

    Args:
        engine: Where.
        policy: The rules of the table.
        kind: The type of the provider, the account id and, if it can be one, of the e-mail address.
        index: The unique index: ``key``, of the live rows; ``full``, of all rows; ``none``.
        more: Further tables, by ``link_outbox`` or ``transfer_ledger``, made of the metadata.
    """
    metadata = sa.MetaData()
    mark = [sa.Column("deleted_at", sa.DateTime(timezone=True))] if policy.removal is Removal.SOFT else []
    big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    table = sa.Table(
        "loose",
        metadata,
        sa.Column("id", big, primary_key=True),
        sa.Column("user_id", big, nullable=False),
        sa.Column("provider", kind, nullable=False),
        sa.Column("account_id", kind),
        sa.Column("email", sa.Text() if isinstance(kind, sa.CHAR) else kind),  # a padded address is refused
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("scopes", sa.Text),
        sa.Column("version", sa.BigInteger, nullable=False),
        *mark,
    )
    key = ["provider", "account_id" if policy.key is Key.ACCOUNT_ID else "email"]
    key = key if policy.ownership is Ownership.EXCLUSIVE else ["user_id", *key]
    if index != "none":
        live = table.c.deleted_at.is_(None) if mark and index == "key" else None
        columns = [table.c[name] for name in key]
        sa.Index("loose_key", *columns, unique=True, postgresql_where=live, sqlite_where=live)
    for make in more.values():
        make(metadata)
    await create(engine, metadata)
    return Loose(metadata=metadata, table=table, mapping=AccountMapping(table, policy=policy), engine=engine)
