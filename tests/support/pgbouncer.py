"""A real PgBouncer in front of a test server: on loopback, in a private directory, gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.support.postgres import keeper as keeper_script
from tests.support.postgres.keeper import environment
from tests.support.postgres.place import private_directory, server_account
from tests.support.postgres.readiness import answers

VARIABLE = "ACCOUNTLINK_TEST_PGBOUNCER"
REMEDY = "Install PgBouncer (Debian: apt-get install pgbouncer)."
_READY_SECONDS = 10.0
_PORT_ATTEMPTS = 5
# How long the keeper waits after SIGINT (which waits for open transactions), SIGQUIT and SIGKILL.
_PATIENCE = (1.0, 2.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """A running PgBouncer."""

    host: str
    port: int
    user: str
    pid: int
    directory: Path

    def url(self, *, driver: str = "asyncpg", database: str = "postgres") -> str:
        """The SQLAlchemy URL of one of the server's databases, through the pooler."""
        return f"postgresql+{driver}://{self.user}@{self.host}:{self.port}/{database}"


def find_pgbouncer() -> Path | None:
    """The program, where the machine has it; Debian puts it where an ordinary user's PATH does not lead."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which("pgbouncer", path=path)
    return None if found is None else Path(found)


def required_pgbouncer() -> Path:
    """The program; without it the test is skipped, or fails where it was promised that there is one."""
    program = find_pgbouncer()
    if program is None and os.environ.get(VARIABLE) == "required":
        pytest.fail(f"{VARIABLE} is 'required', and there is no pgbouncer on PATH or in /usr/sbin. {REMEDY}")
    if program is None:
        pytest.skip(f"there is no pgbouncer on PATH or in /usr/sbin. {REMEDY}")
    return program


@contextmanager
def run_pgbouncer(server: PostgresServer, *, mode: str = "transaction", **settings: object) -> Iterator[Pooler]:
    """Run PgBouncer in front of a server for the length of a ``with`` block.

    The process and its files go when the block is left, and also when the test run is killed: the keeper of the test
    servers sees to both. As root it runs as the user that those run as, since PgBouncer refuses root, too.

    Args:
        server: What to stand in front of.
        mode: ``transaction``, ``session`` or ``statement``.
        settings: Settings of the section ``[pgbouncer]``, over those of a small pool.

    Yields:
        The pooler, which has let a client in.
    """
    program = required_pgbouncer()
    account = server_account()
    with private_directory(account) as directory:
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port()
            file = _configure(directory, server, {"listen_port": port, "pool_mode": mode} | settings)
            task = {
                "directory": str(directory),
                "server": [str(program), "--quiet", str(file)],
                "repair": [sys.executable, "-c", ""],  # a killed pooler leaves nothing to repair
                "account": None if account is None else vars(account),
                "patience": _PATIENCE,
            }
            with (directory / "pgbouncer.log").open("wb") as log:
                keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", keeper_script.__file__, json.dumps(task)],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment(),
                    start_new_session=True,
                )
            try:
                pid = _wait_until_ready(keeper, port, server.user)
                if pid is not None:
                    yield Pooler(host=server.host, port=port, user=server.user, pid=pid, directory=directory)
                    return
            finally:
                keeper.communicate(b"stop", timeout=sum(_PATIENCE) + 10)
        said = (directory / "pgbouncer.log").read_text(encoding="utf-8", errors="replace")[-2000:]
    pytest.fail(f"PgBouncer did not start. Its log ends:\n{said}")


def _configure(directory: Path, server: PostgresServer, settings: dict[str, object]) -> Path:
    users, file = directory / "users.txt", directory / "pgbouncer.ini"
    users.write_text(f'"{server.user}" ""\n', encoding="utf-8")
    lines = {
        "listen_addr": server.host,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": users,
        "admin_users": server.user,
        "default_pool_size": 4,
        "max_client_conn": 200,
        "server_round_robin": 0,
    } | settings
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    databases = f"[databases]\n* = host={server.host} port={server.port}\n"
    file.write_text(f"{databases}\n[pgbouncer]\n{text}", encoding="utf-8")
    return file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(keeper: subprocess.Popen[bytes], port: int, user: str) -> int | None:
    """Wait until it lets a client in; ``None`` means that it ended, as it does when its port was taken."""
    deadline = time.monotonic() + _READY_SECONDS
    told = b"" if keeper.stdout is None else keeper.stdout.readline()
    while time.monotonic() < deadline and keeper.poll() is None:
        if answers(port, user):
            return int(told)
        time.sleep(0.01)
    return None
