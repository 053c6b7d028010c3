"""The process that owns a server, and what it shares with the test run.

The test run runs this very file by its path, as a script in a bare Python (``-I -S``). The keeper starts the
server and ends it as soon as the pipe to the test run closes, which the kernel does even for a test run that
is killed. A ``preexec_fn`` in the test run could not serve: code between fork and exec is unsafe in a threaded
program, and Linux sends the parent-death signal when the starting *thread* ends.

So nothing here imports beyond the standard library, not even accountlink; what both processes need is defined
here, and imported from here by the other modules.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user that the server runs as when the tests run as root, whom PostgreSQL refuses."""

    uid: int
    gid: int


def run_program(
    program: Path | str, *options: Path | str, account: Account | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; one that cannot run answers 126, with the reason as its output."""
    command = [str(program), *map(str, options)]
    try:
        return subprocess.run(
            command,
            cwd="/",  # the server's user may not be able to enter ours
            env=environment(),
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


def environment() -> dict[str, str]:
    """Give the environment that PostgreSQL's programs and the keeper run in."""
    # An allow-list: PG* variables would steer the programs, and secrets are not for another user's process.
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def remove_directory(directory: Path) -> None:
    """Remove a directory and everything in it."""
    for _ in range(20):  # a process that is just ending may still write a file
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(directory)


# --- keeping: what follows runs in the keeper only -----------------------------------------------------------


def _keep(task: str) -> None:
    wanted = json.loads(task)
    account = None if wanted["account"] is None else Account(**wanted["account"])
    test_run = os.getppid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # Whoever ends "all Python processes" ends the test run too; the keeper then still has to tidy up.
        signal.signal(number, lambda *_: None)
    server = subprocess.Popen(
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
        remove_directory(Path(wanted["directory"]))


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


def _release_shared_memory(repair: list[str], account: Account | None) -> None:
    # A killed server leaves its segments behind; the next start on the same data removes them. Children of
    # the killed one that have not ended yet make it refuse, hence the attempts.
    for _ in range(10):
        if run_program(*repair, account=account).returncode == 0:
            return
        time.sleep(0.3)


if __name__ == "__main__":
    _keep(sys.argv[1])
