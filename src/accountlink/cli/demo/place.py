"""Keeps what must outlast the demo: a folder with a secret, and with the SQLite file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from accountlink.cli.demo.stage import CannotStart

_SECRET_BYTES = 32


def default_folder() -> Path:
    """Return the folder of the system's user for the data of this program."""
    return Path(click.get_app_dir("accountlink")) / "demo"


def lasting_secret(folder: Path) -> str:
    """Return the secret in the folder, which only its owner can read. The first call makes both.

    A restart with another secret would end every session, every flow and every transfer token.

    Raises:
        CannotStart: The folder cannot be used.
    """
    file = folder / "secret"
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return _read(file)
        with os.fdopen(descriptor, "w", encoding="ascii") as made:
            made.write(secrets.token_urlsafe(_SECRET_BYTES))
        return _read(file)


def _read(file: Path) -> str:
    secret = file.read_text("ascii").strip()
    if len(secret) < _SECRET_BYTES:
        raise CannotStart(f"{file} holds no secret, perhaps because the demo was stopped while it wrote it. Delete it.")
    return secret


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as problem:
        raise CannotStart(
            f"the folder {folder} cannot be used ({type(problem).__name__}): name another one with --folder"
        ) from None
