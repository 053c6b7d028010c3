"""Running a server for the length of a ``with`` block."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.postgres import keeper as keeper_script
from tests.support.postgres.binaries import REMEDY, PostgresUnavailable, Source
from tests.support.postgres.keeper import environment, run_program
from tests.support.postgres.place import Place, choose_binaries, private_directory, server_account
from tests.support.postgres.readiness import answers, says_ready
from tests.support.postgres.settings import HOST, configuration

_USER = "postgres"
_PORT_ATTEMPTS = 5
_READY_SECONDS = 30.0
# How long the keeper waits after SIGINT (fast shutdown), SIGQUIT (immediate shutdown) and SIGKILL.
_PATIENCE = (10.0, 5.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """A running server that trusts every connection from this machine and listens on loopback only."""

    host: str
    port: int
    user: str
    version: str
    pid: int
    data_directory: Path
    log_file: Path

    def url(self, *, driver: str = "asyncpg", database: str = "postgres") -> str:
        """Give the SQLAlchemy URL of one database.

        Args:
            driver: The DBAPI's name as SQLAlchemy writes it, such as ``asyncpg`` or ``psycopg``.
            database: A database's name, taken as it stands.

        Returns:
            ``postgresql+driver://user@host:port/database``.
        """
        return f"postgresql+{driver}://{self.user}@{self.host}:{self.port}/{database}"


@contextmanager
def run_server(
    *,
    source: Source = "any",
    version: str | None = None,
    settings: Mapping[str, str] = {},
    preferred: Path | None = None,
) -> Iterator[PostgresServer]:
    """Run a fresh PostgreSQL server for the length of a ``with`` block.

    Any number can run at once, each with its own directory and port. The server and its files go when the
    block is left, and also when this process is killed. As root the server runs as ``nobody``, or else as
    ``postgres``.

    Args:
        source: Where to look for PostgreSQL.
        version: The major version wanted, such as ``16``.
        settings: Server settings by name, over the defaults for tests (no fsync, 300 connections, UTC). ALTER
            SYSTEM overrides them later.
        preferred: The folder to make the server's directory in, if it has room and the server's user can enter it.

    Yields:
        The server, which has answered a connection.

    Raises:
        PostgresUnavailable: None was found, or it did not start; the message ends with the server's own log.
        ValueError: A setting's name is not a name, or belongs to this function (address, port, directories).
    """
    lines = configuration(settings)
    if os.name != "posix":
        raise PostgresUnavailable("Servers for tests run on Linux and macOS only; point the tests at one of your own.")
    account = server_account()
    with private_directory(account, preferred=preferred) as directory:
        place = Place(
            directory=directory, binaries=choose_binaries(source, version, directory, account), account=account
        )
        _initialise(place)
        with (place.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(lines)
        server, keeper = _start(place)
        try:
            yield server
        finally:
            _dismiss(keeper)


def _initialise(place: Place) -> None:
    said = ""
    for locale in ("--locale=C.UTF-8", "--no-locale"):
        options = ("--no-sync", "--auth=trust", f"--username={_USER}", "--encoding=UTF8", locale)
        answer = run_program(place.binaries.bindir / "initdb", "-D", place.data, *options, account=place.account)
        if answer.returncode == 0:
            return
        said += answer.stdout
    raise PostgresUnavailable(f"initdb in {place.binaries.bindir} failed. {REMEDY}\n{said[-2000:]}")


def _start(place: Place) -> tuple[PostgresServer, subprocess.Popen[bytes]]:
    for _ in range(_PORT_ATTEMPTS):
        port = _free_port()
        keeper = _hire(place, port)
        try:
            pid = _wait_until_ready(place, keeper, port)
        except BaseException:
            _dismiss(keeper)
            raise
        if pid is not None:
            server = PostgresServer(
                host=HOST,
                port=port,
                user=_USER,
                version=place.binaries.version,
                pid=pid,
                data_directory=place.data,
                log_file=place.log,
            )
            return server, keeper
        _dismiss(keeper)
    raise _failed(place, f"found its port taken {_PORT_ATTEMPTS} times")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _hire(place: Place, port: int) -> subprocess.Popen[bytes]:
    task = {
        "directory": str(place.directory),
        "server": [str(place.binaries.bindir / "postgres"), "-D", str(place.data), "-p", str(port)],
        "repair": [str(place.binaries.bindir / "postgres"), "--single", "-D", str(place.data), "postgres"],
        "account": None if place.account is None else asdict(place.account),
        "patience": _PATIENCE,
    }
    with place.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", keeper_script.__file__, json.dumps(task)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(),
            start_new_session=True,  # so that Ctrl-C reaches the tests, and only they decide
        )


def _dismiss(keeper: subprocess.Popen[bytes]) -> None:
    try:
        keeper.communicate(b"stop", timeout=sum(_PATIENCE) + 10)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.communicate()


def _wait_until_ready(place: Place, keeper: subprocess.Popen[bytes], port: int) -> int | None:
    """Wait for the server's own word and for an answer; None means that another process took the port."""
    deadline = time.monotonic() + _READY_SECONDS
    told = b"" if keeper.stdout is None else keeper.stdout.readline()
    while time.monotonic() < deadline:
        if keeper.poll() is not None:
            if b"could not bind" in place.log.read_bytes():
                return None
            raise _failed(place, "ended at once")
        if says_ready(place.data, told.strip()) and answers(port, _USER):
            return int(told)
        time.sleep(0.01)
    raise _failed(place, f"was not ready after {_READY_SECONDS:.0f} s")


def _failed(place: Place, what: str) -> PostgresUnavailable:
    tail = place.log.read_text(encoding="utf-8", errors="replace")[-4000:]
    return PostgresUnavailable(
        f"PostgreSQL {place.binaries.version} of {place.binaries.bindir} {what}. Its log ends:\n{tail}"
    )
