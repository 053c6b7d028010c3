"""Fixtures that every test may use: real databases, never skipped; and which combinations the default run takes."""

from __future__ import annotations

from tests.support.bytecode import import_tests  # the first of all, so that what the others load is shared

# isort: split
import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.databases import KINDS, Database, fresh_database
from tests.support.effort import Effort, mark_stress
from tests.support.forked import Forks, forking
from tests.support.oidc import OidcProvider, run_oidc_provider
from tests.support.postgres import MEMORY, PostgresServer, run_server, source_from_environment

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Start one worker more than there are cores, since each waits for its database at times; none for a few tests."""
    few = config.args and all("::" in each for each in config.args)  # it would take longer than they do
    return 0 if few else (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import the tests beforehand where several workers import all of them."""
    worker = getattr(session.config, "workerinput", None)
    if worker and session.config.args == session.config.getini("testpaths"):
        import_tests(begin=int(worker["workerid"].removeprefix("gw")) / worker["workercount"])
    return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the combinations in which no factor can break on its own to the stress run.

    The tests that share one run of a type checker come first: a worker gives away what stands last, and each that got
    some of them would run it again.
    """
    mark_stress(items)
    items.sort(key=lambda item: not item.nodeid.startswith("tests/typing/"))


@pytest.fixture(params=["quick", pytest.param("full", marks=pytest.mark.stress)])
def effort(request: pytest.FixtureRequest) -> Effort:
    """How many rounds a race takes: few, chosen to find what it is there to find; in the stress run also many."""
    return Effort(full=request.param == "full")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL for the whole run; where none can be had, each test that needs one fails."""
    os.environ["PGSSLMODE"] = "disable"  # to ask for TLS, which it has not, is a third of the cost of a connection
    wanted = source_from_environment()
    settings = {
        "autovacuum": "off",  # nothing but the tests writes WAL while they measure it
        "max_wal_size": "128MB",  # so little is kept in memory
    }
    with run_server(source=wanted.source, version=wanted.version, settings=settings, preferred=MEMORY) as server:
        yield server


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Run code as in a fresh interpreter, for less."""
    with forking() as started:
        yield started


@pytest.fixture(scope="session")
def oidc() -> Iterator[OidcProvider]:
    """The npm package ``oidc-provider``, on which a test opens issuers of its own."""
    with run_oidc_provider() as provider:
        yield provider


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each database and driver in turn."""
    return str(request.param)


@pytest.fixture
async def database(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A fresh database of the kind."""
    server = None if kind == "sqlite" else request.getfixturevalue("postgres")
    async with fresh_database(kind, tmp_path, server) as made:
        yield made


@pytest.fixture
def engine(database: Database) -> AsyncEngine:
    """An ordinary engine on the fresh database."""
    return database.engine()


def pytest_configure() -> None:
    """Let the garbage collector look seldom: at Python's own thresholds a sixth of the suite's time went there."""
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    """Take what was collected out of the garbage collector's rounds: it lives as long as the run."""
    gc.collect()
    gc.freeze()
