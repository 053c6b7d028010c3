"""Without an extra: each entry point says in one line what is missing, and the command that installs it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.support.forked import Forks

APP: Final = """
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from accountlink import AccountLinker, LinkedAccountMixin, LinkPolicy

class Base(DeclarativeBase): pass

class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]

linker = AccountLinker(Connection)

def lite():
    return create_async_engine("sqlite+aiosqlite:///shop.db")
"""
MAIN: Final = "from accountlink.cli.app import main; main()"
AS_MODULE: Final = "import runpy; runpy.run_module('accountlink', run_name='__main__')"
DOCTOR: Final = ("doctor", "--app", "shop:linker")


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application in the current directory."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "shop.db").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCOUNTLINK_DATABASE_URL", raising=False)


@pytest.mark.parametrize(
    ("missing", "code", "arguments", "told"),
    [
        ("click", MAIN, (), 'the command line needs click: pip install "accountlink[cli]"'),
        ("rich", MAIN, ("--version",), 'the command line needs rich: pip install "accountlink[cli]"'),
        ("click", AS_MODULE, DOCTOR, 'the command line needs click: pip install "accountlink[cli]"'),
        ("aiosqlite", MAIN, (*DOCTOR, "--database-url", "sqlite+aiosqlite:///shop.db"),
         'the driver aiosqlite, which is not installed, or not whole: pip install "accountlink[sqlite]"'),
        ("psycopg", MAIN, (*DOCTOR, "--database-url", "postgresql+psycopg://h/d"),
         'the driver psycopg, which is not installed, or not whole: pip install "accountlink[psycopg]"'),
        ("aiosqlite", MAIN, (*DOCTOR, "--engine", "shop:lite"),
         'there is no module aiosqlite, which pip install "accountlink[sqlite]" installs'),
        ("cryptography", MAIN, ("rotate-keys", *DOCTOR[1:]),
         'a vault needs cryptography: pip install "accountlink[vault]"'),
        ("cryptography", MAIN, ("backfill", *DOCTOR[1:]),
         'a vault needs cryptography: pip install "accountlink[vault]"'),
        ("starlette", MAIN, ("demo", "--once"), 'the demo needs starlette: pip install "accountlink[demo]"'),
        ("httpx2", MAIN, ("demo", "--once"), 'the demo needs httpx2: pip install "accountlink[demo]"'),
        ("joserfc", AS_MODULE, ("demo", "--once"), 'the demo needs joserfc: pip install "accountlink[demo]"'),
        ("psycopg", MAIN, ("demo", "--once", "--database-url", "postgresql+psycopg://h/d"),
         '--database-url needs a driver that is not installed: pip install "accountlink[psycopg]"'),
    ],
)  # fmt: skip
def test_a_command_says_which_extra_it_needs(
    forks: Forks, missing: str, code: str, arguments: tuple[str, ...], told: str
) -> None:
    """One line on stderr with the command to run, nothing on stdout, an exit code that is not 0, and no traceback."""
    ran = forks.run(code, *arguments, missing=[missing])
    assert told in ran.stderr
    assert ("", 1) == (ran.stdout, ran.stderr.count("\n")), ran.stderr
    assert (1 if "--database-url needs" in told else 2) == ran.returncode


@pytest.mark.parametrize(
    ("missing", "module", "extra"),
    [
        ("alembic", "accountlink.doctor.alembic", "alembic"),
        ("httpx2", "accountlink.testing.fake_provider", "demo"),
        ("joserfc", "accountlink.testing.fake_provider", "demo"),
        ("starlette", "accountlink.testing.fake_provider", "demo"),
        ("httpx2", "accountlink.web", "web"),
        ("joserfc", "accountlink.web", "web"),
        ("starlette", "accountlink.web.starlette", "starlette"),
        ("fastapi", "accountlink.web.fastapi", "fastapi"),
        ("cryptography", "accountlink.vault.envelope", "vault"),
    ],
)
def test_a_module_says_which_extra_it_needs(forks: Forks, missing: str, module: str, extra: str) -> None:
    """The import error names the library and the command, and comes from the import that was written."""
    ran = forks.run(f"import {module}", missing=[missing])
    told = f'ModuleNotFoundError: {module} needs {missing}, which is not installed: pip install "accountlink[{extra}]"'
    assert told == ran.stderr.splitlines()[-1]
    assert 1 == ran.stderr.count("Traceback")


def test_what_no_extra_brings_is_told_as_it_is(forks: Forks) -> None:
    """A library that is missing for another reason keeps its own error."""
    ran = forks.run("import accountlink.web", missing=["authlib"])
    assert "authlib" in ran.stderr.splitlines()[-1]
    assert "pip install" not in ran.stderr


def test_a_secret_needs_no_cryptography(forks: Forks) -> None:
    """``accountlink secret`` prints random bytes, and encrypts nothing."""
    ran = forks.run(MAIN, "secret", missing=["cryptography"])
    assert (0, 44, "") == (ran.returncode, len(ran.stdout), ran.stderr)


def test_the_doctor_writes_a_revision_without_alembic(forks: Forks) -> None:
    """``--emit alembic`` is text, for which Alembic itself is not needed."""
    arguments = (*DOCTOR, "--database-url", "sqlite+aiosqlite:///shop.db", "--emit", "alembic")
    ran = forks.run(MAIN, *arguments, missing=["alembic", "psycopg"])
    assert (1, "") == (ran.returncode, ran.stdout)
    assert "The table is not in this database" in ran.stderr.replace("\n   ", " ")


@pytest.mark.parametrize(("missing", "driver"), [((), "psycopg"), (("psycopg",), "asyncpg")])
def test_a_url_without_a_driver_takes_the_one_that_is_there(
    forks: Forks, missing: tuple[str, ...], driver: str
) -> None:
    """``postgresql://`` means psycopg, as SQLAlchemy 2.1 has it, on both series; asyncpg where that is missing."""
    ran = forks.run(MAIN, *DOCTOR, "--database-url", "postgresql://me:hidden@127.0.0.1:9/d", missing=missing)
    assert 2 == ran.returncode
    assert ran.stderr.startswith(f"accountlink: the database at postgresql+{driver}://me:***@127.0.0.1:9/d cannot be")
    assert 1 == ran.stderr.count("\n")


def test_the_demo_says_where_it_cannot_keep_its_data(forks: Forks, tmp_path: Path) -> None:
    """A folder that is none is one line, and nothing is served."""
    (tmp_path / "taken").write_text("a file")
    ran = forks.run(MAIN, "demo", "--folder", str(tmp_path / "taken" / "below"))
    assert (1, "") == (ran.returncode, ran.stdout)
    assert ran.stderr.startswith("accountlink: the folder ")
    assert ran.stderr.endswith("cannot be used (NotADirectoryError): name another one with --folder\n")
