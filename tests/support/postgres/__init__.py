"""A real PostgreSQL for tests: from the system or a wheel, run in a private directory, gone afterwards."""

from tests.support.postgres.binaries import (
    Binaries,
    PostgresUnavailable,
    Source,
    WantedPostgres,
    find_binaries,
    source_from_environment,
)
from tests.support.postgres.place import MEMORY
from tests.support.postgres.server import PostgresServer, run_server

__all__ = [
    "MEMORY",
    "Binaries",
    "PostgresServer",
    "PostgresUnavailable",
    "Source",
    "WantedPostgres",
    "find_binaries",
    "run_server",
    "source_from_environment",
]
