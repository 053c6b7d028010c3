"""The cost of importing accountlink, and the modules on which its values may depend."""

import ast
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import accountlink
from tests.support.forked import Forks

PACKAGE: Final = Path(accountlink.__file__).parent
EXTRAS: Final = (
    "aiosqlite", "alembic", "authlib", "click", "cryptography", "fastapi", "httpcore2", "httpx", "httpx2", "hypothesis",
    "joserfc", "psycopg", "pytest", "rich", "starlette", "uvicorn",
)  # fmt: skip
IMPURE: Final = (
    "asyncio", "asyncpg", "http", "logging", "os", "pathlib", "psycopg", "random", "secrets", "socket", "sqlalchemy",
    "sqlite3", "subprocess", "threading", "time", "urllib.request", "aiosqlite", "itsdangerous",
)  # fmt: skip
VALUES: Final = sorted((PACKAGE / "values").rglob("*.py"))


def run(code: str) -> str:
    """Run code in a fresh interpreter where a warning is an error, as in an application's own tests."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def test_importing_the_package_loads_no_extra() -> None:
    """Whoever installed accountlink without extras can import it: none of their packages is loaded."""
    loaded = json.loads(run("import accountlink, sys, json; print(json.dumps(sorted(sys.modules)))"))
    tops = {name.partition(".")[0] for name in loaded}
    assert set() == tops & set(EXTRAS)
    assert {"accountlink.cli", "accountlink.testing", "accountlink.web"} & set(loaded) == set()


def test_the_flow_knows_no_web_framework() -> None:
    """Whoever writes their own routes needs neither Starlette nor FastAPI."""
    loaded = json.loads(run("import accountlink.web, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert set() == {name.partition(".")[0] for name in loaded} & {"fastapi", "pydantic", "starlette"}


@pytest.mark.parametrize("missing", EXTRAS)
def test_importing_the_package_does_without_each_extra(forks: Forks, missing: str) -> None:
    """An extra that is not installed is not missed."""
    done = forks.run("import warnings; warnings.simplefilter('error'); import accountlink", missing=[missing])
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_importing_the_package_starts_nothing() -> None:
    """An import opens no file, socket or thread, and changes neither the event loop policy nor the logging."""
    state = "threading.active_count(), len(logging.root.handlers), logging.root.level"
    code = f"import threading, logging; before = {state}; import accountlink; print(before == ({state}))"
    assert "True" == run(code).strip()


def test_the_public_names_are_sorted_and_each_named_once() -> None:
    """The list of public names reads like an index."""
    assert sorted(set(accountlink.__all__)) == accountlink.__all__


def test_the_public_names_are_complete() -> None:
    """Everything that the package imports for its users is public, and everything public exists."""
    for name in accountlink.__all__:
        getattr(accountlink, name)  # some are loaded when they are asked for
    names = {
        name
        for name, value in vars(accountlink).items()
        if not name.startswith("_") and name != "TYPE_CHECKING" and not isinstance(value, ModuleType)
    }
    assert names == set(accountlink.__all__)


def test_every_public_name_is_documented() -> None:
    """``help()`` says of each public name, in its own words, what it promises."""
    undocumented = [name for name in accountlink.__all__ if not (getattr(accountlink, name).__doc__ or "").strip()]
    assert [] == undocumented
    generated = [
        name for name in accountlink.__all__ if (getattr(accountlink, name).__doc__ or "").startswith(f"{name}(")
    ]
    assert [] == generated


def test_the_package_says_that_it_is_typed() -> None:
    """Type checkers read the annotations of the installed package."""
    assert files("accountlink").joinpath("py.typed").is_file()


def _imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _within(module: str, of: str) -> bool:
    return module == of or module.startswith(f"{of}.")


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_the_values_are_pure(path: Path) -> None:
    """No module of the values can ask a database, the clock, chance or the network."""
    assert [] == [name for name in sorted(_imports(path)) for other in IMPURE if _within(name, other)]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_the_values_know_themselves_and_the_errors_only(path: Path) -> None:
    """Of accountlink, the values import the values and the errors."""
    own = [name for name in sorted(_imports(path)) if _within(name, "accountlink")]
    assert [] == [
        name for name in own if not (_within(name, "accountlink.values") or _within(name, "accountlink.errors"))
    ]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.name)
def test_the_values_do_not_ask_for_the_time(path: Path) -> None:
    """Moments come in as arguments: nothing in the values calls ``now``, ``utcnow`` or ``today``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert set() == called & {"now", "utcnow", "today", "urandom", "token_bytes", "uuid4"}


def test_the_errors_know_nothing_of_accountlink() -> None:
    """The errors can be raised from everywhere, since they import nothing of the package."""
    assert [] == [name for name in sorted(_imports(PACKAGE / "errors.py")) if _within(name, "accountlink")]


def test_errors_and_values_do_not_know_sqlalchemy() -> None:
    """Errors, values, the signing of tokens and their sealing do not depend on SQLAlchemy or a driver."""
    sealing = [PACKAGE / "vault" / f"{name}.py" for name in ("contents", "envelope", "keys")]
    pure = [PACKAGE / "errors.py", PACKAGE / "transfers" / "signing.py", *sealing, *VALUES]
    drivers = ("sqlalchemy", "asyncpg", "psycopg", "aiosqlite", "sqlite3")
    assert [] == [(path.name, name) for path in pure for name in _imports(path) if name.split(".")[0] in drivers]
