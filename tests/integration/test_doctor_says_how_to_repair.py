"""The doctor's findings end with the command that writes their repair."""

from __future__ import annotations

import json
import shlex
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from accountlink.cli.commands import accountlink

APP: Final = """
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from accountlink import AccountLinker, LinkedAccountMixin, LinkPolicy, tune_sqlite

class Base(DeclarativeBase): pass

class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]

class Mailbox(LinkedAccountMixin, Base):
    __tablename__ = "mailboxes"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]

linker, mailboxes = AccountLinker(Connection), AccountLinker(Mailbox)

def engine():
    return tune_sqlite(create_async_engine("sqlite+aiosqlite:///the shop.db"))

def untuned():
    return create_async_engine("sqlite+aiosqlite:///the shop.db")
"""
COLUMNS: Final = """
    id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, provider TEXT NOT NULL, account_id TEXT NOT NULL, email TEXT,
    access_token TEXT, refresh_token TEXT, expires_at DATETIME, scopes TEXT, version BIGINT NOT NULL,
    created_at DATETIME, updated_at DATETIME, UNIQUE (provider, account_id));
"""
URL: Final = "sqlite+aiosqlite:///the shop.db"


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application with its tables, of which two forbid what their policy allows."""
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "ACCOUNTLINK_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    change("CREATE TABLE connections (" + COLUMNS, "CREATE TABLE mailboxes (" + COLUMNS)
    change("CREATE UNIQUE INDEX one_each ON connections (user_id, provider)")
    change("CREATE UNIQUE INDEX one_box ON mailboxes (user_id, provider)")


def change(*scripts: str) -> None:
    """Change the database as another program would."""
    with closing(sqlite3.connect("the shop.db")) as connection:
        for script in scripts:
            connection.executescript(script)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(accountlink, arguments, env=environment)


def command_in(output: str) -> list[str]:
    """The command that stands in the output, as a shell would split it."""
    (line,) = [line.strip() for line in output.splitlines() if "accountlink doctor" in line]
    return shlex.split(line.partition("accountlink doctor")[2])


@pytest.mark.parametrize(
    "options",
    [
        ("--app", "shop:linker", "--database-url", URL),
        ("--app", "shop:linker", "--engine", "shop:engine"),
        ("--app", "shop:linker", "--app", "shop:mailboxes", "--database-url", URL, "--ignore", "stale-unique:one_box"),
    ],
)
def test_the_command_is_the_one_that_was_run_and_repairs(options: tuple[str, ...]) -> None:
    """Run as it stands there, the command prints the migration, after which the same look is clean."""
    looked = run("doctor", *options)
    assert 1 == looked.exit_code, looked.output
    arguments = command_in(looked.stdout)
    assert [*options, "--emit", "sql"] == arguments

    emitted = run("doctor", *arguments)
    assert "accountlink doctor" not in emitted.stderr
    change(emitted.stdout.partition("\n")[2])  # without the line for the program sqlite3
    again = run("doctor", *options)
    assert (0, "") == (again.exit_code, again.stderr)
    assert "accountlink doctor" not in again.stdout


def test_the_environments_url_is_not_repeated() -> None:
    """A URL from the environment is taken from the environment again."""
    looked = run("doctor", "--app", "shop:linker", ACCOUNTLINK_DATABASE_URL=URL)
    assert ["--app", "shop:linker", "--emit", "sql"] == command_in(looked.stdout)


def test_a_url_with_options_is_not_repeated() -> None:
    """Options may hold a secret, as a password does: the word URL stands in its place."""
    looked = run("doctor", "--app", "shop:linker", "--database-url", f"{URL}?timeout=7")
    assert ["--app", "shop:linker", "--database-url", "URL", "--emit", "sql"] == command_in(looked.stdout)
    assert "timeout=7" not in looked.stdout


def test_each_format_keeps_its_own() -> None:
    """GitHub's log has the command after the annotations; JSON stays findings alone."""
    options = ("--app", "shop:linker", "--database-url", URL, "--format")
    assert [*options[:-1], "--emit", "sql"] == command_in(run("doctor", *options, "github").stdout)
    assert {"ok", "findings"} == json.loads(run("doctor", *options, "json").stdout).keys()


def test_nothing_is_offered_where_nothing_can_be_written() -> None:
    """A finding that no migration repairs has no such command."""
    change("DROP INDEX one_each")
    looked = run("doctor", "--app", "shop:linker", "--engine", "shop:untuned")
    assert "unsafe-pooling" in looked.stdout
    assert "accountlink doctor" not in looked.stdout, looked.stdout
