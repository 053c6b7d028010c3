"""The blocks of the documentation run, in the way that their page says."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from accountlink import Finding, diagnose
from tests.support.databases import Database
from tests.support.pages import DOCS, EVERY_PAGE, HOW, Block, blocks_in, blocks_of, name_of, text_of

_PRINTED: Final = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)
_LANGUAGES: Final = {"python", "console", "sql", "json"}
"""Each has a test that runs its blocks: here, in test_docs_console.py, and in integration/test_docs_databases.py."""
_BLOCKS: Final = [block for page in EVERY_PAGE for block in blocks_of(page)]
_PYTHON: Final = sorted({block.page for block in blocks_in("python") if block.how != "file"})
_SICK: Final = DOCS / "doctor.md"
"""Its table is wrong, to show what is found."""
_PROJECTS: Final = sorted({block.page for block in _BLOCKS if block.how == "file"})


@pytest.mark.parametrize("block", _BLOCKS, ids=str)
def test_every_block_runs_or_says_why_not(block: Block) -> None:
    """Each block of a page is run by a test, or has a comment with the reason why it cannot run."""
    assert block.how in HOW
    assert bool(block.how) == bool(block.what), "a comment above a block brings a set-up, a name or a reason"
    assert block.how == "not run" or block.language in _LANGUAGES


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_no_block_is_overlooked(page: Path) -> None:
    """Code is fenced, where the tests look for it, and each fence is closed."""
    assert 2 * len(blocks_of(page)) == len(re.findall(r"^ *```", text_of(page), re.MULTILINE))


@pytest.mark.parametrize("page", _PYTHON, ids=name_of)
async def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python blocks of a page run one after another, against SQLite, and print what their comments say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a page may set variables, and no other page has them
    module = ModuleType(f"docs_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    opened: dict[int, AsyncEngine | AsyncSession] = {}
    try:
        for block in blocks_of(page):
            if block.language == "python" and block.how in ("", "set up"):
                await run(block.set_up(), module)
                opened |= openings(module)
                await run(block.tree(), module)
                opened |= openings(module)
                assert _PRINTED.findall(block.source) == capsys.readouterr().out.splitlines(), block
        for session in (one for one in opened.values() if isinstance(one, AsyncSession)):
            await session.close()
        assert page == _SICK or await findings(module) == []
    finally:
        for one in reversed(opened.values()):  # a session before its engine
            await (one.close() if isinstance(one, AsyncSession) else one.dispose())


async def findings(module: ModuleType) -> list[Finding]:
    """Return the doctor's findings for the tables that a page made: no page recommends what another warns of."""
    engine, linker = vars(module).get("engine"), vars(module).get("linker")
    if engine is None or linker is None or engine.dialect.name != "sqlite":
        return []
    return await diagnose(engine, linker)


def openings(module: ModuleType) -> dict[int, AsyncEngine | AsyncSession]:
    return {id(one): one for one in vars(module).values() if isinstance(one, (AsyncEngine, AsyncSession))}


async def run(tree: ast.Module, module: ModuleType) -> None:
    code = compile(tree, module.__name__, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    vars(module).setdefault("__builtins__", builtins)  # Python 3.13 looks for them when it makes a class
    result: Any = FunctionType(code, vars(module))()
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("mode", ["strict", "auto"])
@pytest.mark.parametrize("page", _PROJECTS, ids=name_of)
@pytest.mark.parametrize("kind", ["asyncpg"])
def test_projects_pass(page: Path, mode: str, tmp_path: Path, database: Database) -> None:
    """The files of a page are a project whose tests pass, with pytest-asyncio's default and with its other mode."""
    expected = 0
    for block in blocks_of(page):
        if block.how == "file":
            file = tmp_path / block.what
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.source, encoding="utf-8")
            expected += len(re.findall(r"^(?:async )?def test_", block.source, re.MULTILINE))
    scope = "asyncio_default_fixture_loop_scope=function"  # what is the default; said, it spares a warning
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin"]  # and none that only our own tests need
    options = ["-q", *plugins, "-W", "error", "-o", f"asyncio_mode={mode}", "-o", scope]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ACCOUNTLINK_"))}
        | {"TEST_DATABASE_URL": database.url, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    assert f"{expected} passed" in ended.stdout
    assert expected > 0


@pytest.mark.parametrize("block", blocks_in("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    """A JSON block of a page is valid JSON."""
    assert json.loads(block.source)
