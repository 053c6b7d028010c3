"""The commands of the documentation: run where they stand alone, and else compared with what they name."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import click
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.cli.commands import accountlink
from tests.support.application import Base
from tests.support.databases import Database, create, run_sql
from tests.support.forked import Forks
from tests.support.pages import DOCS, README, ROOT, Block, blocks_in
from tests.support.postgres import PostgresServer, source_from_environment
from tests.support.postgres.binaries import find_binaries

_PAGES: Final = [README, *DOCS.rglob("*.md")]
_URL: Final = "postgresql+asyncpg://me@host/name"
_ACCOUNTS: Final = "from tests.support.application import Connection as linker\n"
_PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_KEY: Final = "ALTER TABLE connections ADD CONSTRAINT connections_user_id_provider_key UNIQUE (user_id, provider)"
_MAIN: Final = "import runpy, sys; sys.path[:0] = sys.argv.pop(1).split(':'); "
_COMMAND: Final = _MAIN + "from accountlink.cli.app import main; main()"
_MODULE: Final = _MAIN + 'runpy.run_module(sys.argv.pop(1), run_name="__main__")'
Run: TypeAlias = Callable[[str], subprocess.CompletedProcess[str]]
_STANDING_ALONE: Final = ("accountlink", "psql", "python -c")


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Give each command of a block with what it prints, if the page shows that."""
    source = re.sub(r"\\\n\s*", " ", block.source)
    if not source.startswith("$ "):
        yield from ((line, "") for line in source.splitlines())
        return
    for piece in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        command, _, shown = piece.partition("\n")
        yield command, shown


def stands_alone(block: Block) -> bool:
    return block.page in _PAGES and all(command.startswith(_STANDING_ALONE) for command, _ in commands(block))


# -- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncpg"])
def kind(request: pytest.FixtureRequest) -> str:
    """The driver that the pages name."""
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the application that the pages name."""
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "accounts.py").write_text(_ACCOUNTS, encoding="utf-8")
    return tmp_path


@pytest.fixture
def environment(postgres: PostgresServer, database: Database) -> Mapping[str, str]:
    """Return the environment of the commands: the programs, and the test's database instead of the page's."""
    wanted = source_from_environment()
    programs = find_binaries(wanted.source, wanted.version).bindir
    path = os.pathsep.join((str(Path(sys.executable).parent), str(programs), os.environ["PATH"]))
    access = {"PGHOST": postgres.host, "PGPORT": str(postgres.port), "PGUSER": postgres.user, "PGDATABASE": "postgres"}
    python_path = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    return {**os.environ, **access, "PATH": path, "PYTHONPATH": python_path, "ACCOUNTLINK_DATABASE_URL": database.url}


@pytest.fixture
def run(place: Path, environment: Mapping[str, str], forks: Forks) -> Run:
    """Run a command in the folder; by a shell where it needs one, or where no interpreter can be forked for it."""

    def ran(command: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = shlex.split(command)
        plain = re.search(r"[|<>;&$]", command) is None
        if plain and program == "accountlink":
            code = _COMMAND
        elif plain and (program, arguments[0]) == ("python", "-m"):
            code, arguments = _MODULE, arguments[1:]
        else:
            return subprocess.run(
                ["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, check=False,
                timeout=60,
            )  # fmt: skip
        return forks.run(code, environment["PYTHONPATH"], *arguments, folder=place, environment=environment)

    return ran


@pytest.mark.parametrize("block", [block for block in blocks_in("console") if stands_alone(block)], ids=str)
async def test_a_command_prints_what_its_page_shows(
    engine: AsyncEngine, database: Database, run: Run, block: Block
) -> None:
    """The commands of a block run one after another, on a table with the key that the pages tell of."""
    await create(engine, Base.metadata)
    await run_sql(engine, _KEY)
    if block.how == "set up":
        assert 0 == (await asyncio.to_thread(run, block.what)).returncode
    for command, shown in commands(block):
        ended = await asyncio.to_thread(run, command.replace(_URL, database.url))
        assert ended.returncode in ((0, 1) if "accountlink" in command else (0,)), ended.stderr
        assert not shown or shown.split() == ended.stdout.replace(database.url, _URL).split()


# -- compared ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [block for block in blocks_in("console") if not stands_alone(block)], ids=str)
def test_a_command_names_what_exists(block: Block) -> None:
    """Programs, files, extras and options of a command are there."""
    for line, _ in commands(block):
        for command in line.partition(" #")[0].split("&&"):
            check(shlex.split(command))


def check(words: list[str]) -> None:
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program == "accountlink":
        accountlink.make_context("accountlink", list(arguments), resilient_parsing=False)
        command = accountlink.commands[arguments[0]]
        command.parse_args(click.Context(command), arguments[1:])
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(extra.split(",")) <= set(_PROJECT["optional-dependencies"])
        for word, after in itertools.pairwise(arguments):
            assert word != "-r" or (ROOT / after).is_file()
    elif program == "export":
        application = (ROOT / "examples" / "fastapi" / "main.py").read_text(encoding="utf-8")
        assert [] == [word for word in arguments if f'environ["{word.partition("=")[0]}"]' not in application]
    elif program == "uvicorn":
        assert (ROOT / f"{arguments[0].removesuffix(':app').replace('.', '/')}.py").is_file()
    elif program.startswith("python") and arguments[0].endswith(".py"):
        text = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert [] == [word for word in arguments[1:] if word.startswith("--") and f'"{word}"' not in text]
    elif program.startswith("python"):
        assert arguments[:2] in (["-m", "venv"], ["-m", "pytest"])
    else:
        assert os.access(ROOT / words[0], os.X_OK), f"no test knows how to check {words[0]}"
