"""Where one server lives: a private directory, as a user and with programs that can be used from there."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.support.postgres.binaries import Binaries, PostgresUnavailable, Source, nothing_found, search
from tests.support.postgres.keeper import Account, remove_directory, run_program

MEMORY: Final = Path("/dev/shm")  # noqa: S108  (only a parent of mkdtemp)
"""A file system in memory, where there is one. A disk's costs the server half of its time in the kernel."""
_ROOM: Final = 2 << 30
"""What must be free in a preferred folder, in bytes. A server takes less than 300 MB, and each worker has one."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one server lives: its private directory, its programs, and its user unless that is ours."""

    directory: Path
    binaries: Binaries
    account: Account | None

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The file that the server, and its keeper, write their messages to."""
        return self.directory / "server.log"


def server_account() -> Account | None:
    """Give the user to run the server as; None means the one who runs the tests."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("nobody", "postgres"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    raise PostgresUnavailable(
        "PostgreSQL refuses to run as root, and there is no user called nobody or postgres to run it as. "
        "Run the tests as an ordinary user."
    )


@contextmanager
def private_directory(account: Account | None, *, preferred: Path | None = None) -> Iterator[Path]:
    """Make a directory of the server's user's own, for the length of a ``with`` block."""
    directory = Path(tempfile.mkdtemp(prefix="accountlink-postgres-", dir=_temporary_base(account, preferred)))
    try:
        if account is not None:
            os.chown(directory, account.uid, account.gid)
        yield directory
    finally:
        remove_directory(directory)


def _temporary_base(account: Account | None, preferred: Path | None) -> Path:
    names = [tempfile.gettempdir(), "/tmp", "/var/tmp", str(MEMORY)]  # noqa: S108  (only parents of mkdtemp)
    if preferred is not None and preferred.is_dir() and shutil.disk_usage(preferred).free >= _ROOM:
        names.insert(0, str(preferred))
    bases = [base for base in map(Path, dict.fromkeys(names)) if _can_hold(base, account)]
    if not bases:
        raise PostgresUnavailable(f"None of {', '.join(names)} can be entered by the server's user. Set TMPDIR.")
    # Programs may have to be copied there; where nothing may be executed is the last choice.
    return min(bases, key=lambda base: os.statvfs(base).f_flag & getattr(os, "ST_NOEXEC", 0))


def _can_hold(base: Path, account: Account | None) -> bool:
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        return False
    entered = (base.resolve(), *base.resolve().parents)
    return account is None or all(folder.stat().st_mode & stat.S_IXOTH for folder in entered)


def choose_binaries(source: Source, version: str | None, directory: Path, account: Account | None) -> Binaries:
    """Find programs that the server's user can run, copying the wheel's into the directory where need be."""
    refused: list[str] = []
    for found in search(source, version, refused):
        if account is None or _starts(found, account):
            return found
        if found.source == "wheel":
            copied = _copy_wheel(found, directory, account)
            if _starts(copied, account):
                return copied
        refused.append(f"{found.bindir}: out of reach for the server's user")
    raise nothing_found(source, version, refused)


def _starts(binaries: Binaries, account: Account) -> bool:
    return run_program(binaries.bindir / "initdb", "--version", account=account).returncode == 0


def _copy_wheel(binaries: Binaries, directory: Path, account: Account) -> Binaries:
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
