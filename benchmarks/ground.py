"""Build the ground of the benchmarks: a server, the tables that all contestants share, and the library over them."""

import platform
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    Key,
    LinkedAccountMixin,
    LinkPolicy,
    Ownership,
    Removal,
    ShareGrants,
    grants_table,
)
from tests.support.postgres import run_server

_ABOUT = {
    "postgresql": "'PostgreSQL ' || current_setting('server_version') || ', fsync ' || current_setting('fsync')",
    "sqlite": "'SQLite ' || sqlite_version()",
}
"""The query by which a server names itself."""


class Base(DeclarativeBase):
    """Hold the benchmarks' own metadata."""


class Connection(LinkedAccountMixin, Base):
    """Map the table of links; each contestant has provider accounts of its own in it."""

    __tablename__ = "accountlink_benchmark"
    __link_policy__ = LinkPolicy(key=Key.ACCOUNT_ID, ownership=Ownership.EXCLUSIVE, removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


GRANTS = grants_table(Base.metadata, name="accountlink_benchmark_grants")
LINKER: AccountLinker[int, int] = AccountLinker(Connection, secrets=["benchmark".ljust(32, "-")])
SHARES = ShareGrants(GRANTS)


@contextmanager
def database(given: str | None, fsync: str) -> Iterator[sa.URL]:
    """Yield the URL of the given database, or of a new server that ends with the run."""
    if given is not None:
        yield sa.make_url(given).set(drivername="postgresql+asyncpg")
        return
    with run_server(settings={"fsync": fsync, "full_page_writes": fsync}) as server:
        yield sa.make_url(server.url(driver="asyncpg", database="postgres"))


@asynccontextmanager
async def tables(url: sa.URL) -> AsyncIterator[str]:
    """Create the tables, drop them afterwards, and yield what the run stands on."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
            server = (await connection.execute(sa.text(f"SELECT {_ABOUT[url.get_backend_name()]}"))).scalar_one()
        packages = ", ".join(f"{name} {version(name)}" for name in ("sqlalchemy", url.get_driver_name()))
        yield f"{server}; Python {platform.python_version()}, {packages}"
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)
        await engine.dispose()
