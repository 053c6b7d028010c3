"""``accountlink connections`` and ``accountlink keep-alive``: what they print and how they end, on real databases."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import GrantEnded, ProviderUnavailable
from accountlink.cli import keeping
from accountlink.cli.commands import accountlink
from accountlink.testing import link_with_expired_token
from tests.support.databases import Database, create

APP: Final = """
import asyncio, sys
from datetime import UTC, datetime, timedelta
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from accountlink import AccountLinker, CredentialVault, LinkedAccountMixin, LinkPolicy, Removal, refresh_states
from accountlink.testing import FakeRefresher

class Base(DeclarativeBase): pass

class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]

class Slow(FakeRefresher):
    async def renew(self, provider, tokens, *, deadline):
        print("asked", file=sys.stderr, flush=True)
        await asyncio.sleep(1.5)
        return await super().renew(provider, tokens, deadline=deadline)

vault = CredentialVault(keys=["A" * 42 + "E"])
refresher, states = FakeRefresher(), refresh_states(Base.metadata)
plain = AccountLinker(Connection, vault=vault)
linker = AccountLinker(Connection, vault=vault, refresher=refresher, refreshes=states)
long_ago = AccountLinker(Connection, vault=vault, clock=lambda: datetime.now(UTC) - timedelta(days=40))
slow = AccountLinker(Connection, vault=vault, refresher=Slow(), refreshes=states)

def made():
    return linker

def engine():
    return create_async_engine("sqlite+aiosqlite:///shop.db")
"""
_numbers = count()


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application in the current directory: its module."""
    monkeypatch.delenv("ACCOUNTLINK_DATABASE_URL", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"kept_shop_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return import_module(name)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(accountlink, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def app(shop: Any, attribute: str = "linker") -> tuple[str, str]:
    return ("--app", f"{shop.__name__}:{attribute}")


def fill(shop: Any, url: str, users: int, *, by: str = "long_ago") -> None:
    """Link users by a linker of the application."""

    async def filling() -> None:
        engine = create_async_engine(url)
        await create(engine, shop.Base.metadata)
        for user_id in range(1, users + 1):
            await link_with_expired_token(
                getattr(shop, by), engine, user_id=user_id, provider="acme", account_id=f"sub-{user_id}"
            )
        await engine.dispose()

    asyncio.run(filling())


def states(shop: Any, url: str) -> list[str]:
    async def reading() -> list[str]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            found = list(await connection.scalars(sa.select(shop.states.c.state).order_by(shop.states.c.link_id)))
        await engine.dispose()
        return found

    return asyncio.run(reading())


@pytest.mark.each_driver
def test_idle_grants_are_kept_alive_and_those_that_do_not_work_are_listed(shop: Any, database: Database) -> None:
    """The counts, then the list by state and format; when all works again, nothing is listed."""
    fill(shop, database.url, 5)
    shop.refresher.fail_next(GrantEnded("invalid_grant"))
    shop.refresher.fail_next(ProviderUnavailable())
    where = (*app(shop), "--database-url", database.url)
    kept = run("keep-alive", *where, "--idle", "30d", "--limit", "4")
    assert (1, "connections: 2 renewed, 1 failed, 1 ended, 0 unreadable.\n", "") == (
        kept.exit_code,
        kept.stdout,
        kept.stderr,
    )
    listed = run("connections", *where)
    assert (1, "") == (listed.exit_code, listed.stderr)
    lines = listed.stdout.splitlines()
    assert ["link", "state", "code", "since", "retry", "at"] == lines[0].split()
    assert {"needs_consent", "failing"} == {line.split()[1] for line in lines[1:3]}
    assert "connections: 2 connections do not work." == lines[3]
    ended = run("connections", *where, "--state", "needs_consent", "--format", "json")
    (found,) = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (1, "connections", "needs_consent", "invalid_grant", None) == (
        ended.exit_code,
        *(found[name] for name in ("table", "state", "provider_code", "retry_at")),
    )
    assert found["link_id"] in "12345"
    for text in (listed.stdout, ended.stdout):
        assert not any(secret in text for secret in ("@", "sub-", "access", "refresh"))
    assert 0 == run("keep-alive", *app(shop, "made"), "--database-url", database.url, "--idle", "30d").exit_code
    found_now = states(shop, database.url)
    assert (5, 1) == (len(found_now), found_now.count("needs_consent"))


def test_nothing_to_tell(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that work are not listed, and those that are in use are not renewed. The URL may come from elsewhere."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, 2, by="linker")
    monkeypatch.setenv("ACCOUNTLINK_DATABASE_URL", url)
    kept = run("keep-alive", *app(shop), "--idle", "30d")
    assert (0, "connections: 0 renewed, 0 failed, 0 ended, 0 unreadable.\n") == (kept.exit_code, kept.stdout)
    listed = run("connections", *app(shop))
    assert (0, "connections: 0 connections do not work.\n") == (listed.exit_code, listed.stdout)
    listed = run("connections", *app(shop), "--engine", f"{shop.__name__}:engine", "--format", "json")
    assert (0, "") == (listed.exit_code, listed.stdout)


@pytest.mark.parametrize("command", [("connections",), ("keep-alive", "--idle", "30d")])
def test_what_cannot_be_run_is_one_line(shop: Any, command: tuple[str, ...], tmp_path: Path) -> None:
    """Exit 2, nothing on stdout, and no file is made where the path is wrong."""
    url = "sqlite+aiosqlite:///missing.db"
    (tmp_path / "empty.db").touch()
    for arguments, said in (
        ((*app(shop, "plain"), "--database-url", url), "renews no tokens"),
        ((*app(shop, "Connection"), "--database-url", url), "Name an AccountLinker"),
        (app(shop), "no database was named"),
        ((*app(shop), "--database-url", url), "cannot be opened"),
        ((*app(shop), "--database-url", "sqlite+aiosqlite:///empty.db"), "no table"),
        ((*app(shop), "--database-url", "postgresql+asyncpg://me:hidden@127.0.0.1:9/d"), "cannot be used"),
    ):
        result = run(*command, *arguments)
        assert (2, "", 1) == (result.exit_code, result.stdout, result.stderr.count("\n"))
        assert said in result.stderr
        assert "hidden" not in result.output
    assert not (tmp_path / "missing.db").exists()
    both = run(*command, *app(shop), "--database-url", url, "--engine", f"{shop.__name__}:engine")
    assert (2, True) == (both.exit_code, "name two databases" in both.stderr)


@pytest.mark.parametrize("span", ["30", "d", "0d", "-1d", "1w", "1.5h", "٣d", "99999d", ""])
def test_a_length_of_time_is_read_exactly(shop: Any, span: str) -> None:
    result = run("keep-alive", *app(shop), "--idle", span)
    assert (2, True) == (result.exit_code, "is no length of time" in result.stderr)


def popen(*arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "accountlink", *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to catch")
@pytest.mark.parametrize(
    "signals",
    [("TERM",), ("INT",), ("TERM", "TERM", "TERM"), ("INT", "INT", "INT"), ("INT", "TERM")],
    ids="+".join,
)
def test_a_process_that_is_told_to_end_stores_what_is_under_way(
    shop: Any, tmp_path: Path, signals: tuple[str, ...]
) -> None:
    """A signal while the provider is asked: its answer is stored, and the command exits 2, however often it is told."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, 1)
    with popen("keep-alive", *app(shop, "slow"), "--database-url", url, "--idle", "30d") as process:
        assert process.stderr is not None
        assert "asked\n" == process.stderr.readline()
        for name in signals:
            process.send_signal(getattr(signal, f"SIG{name}"))
            time.sleep(0.1)
        printed, said = process.communicate(timeout=30)
    assert (2, "") == (process.returncode, printed)
    *patience, last = said.splitlines()
    assert "has stored what it had renewed" in last
    assert min(len(signals) - 1, 1) == len(patience)
    assert all("It still stores the tokens" in line for line in patience)
    assert ["ok"] == states(shop, url)


def ended(shop: Any, tmp_path: Path, links: int) -> str:
    """The URL of a database in which the grants of some links have ended."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, links)
    for _ in range(links):
        shop.refresher.fail_next(GrantEnded("invalid_grant"))
    assert 1 == run("keep-alive", *app(shop), "--database-url", url, "--idle", "30d").exit_code
    return url


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes break in another way")
@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_who_goes_away_ends_the_list_quietly(shop: Any, tmp_path: Path, form: str) -> None:
    """As ``head`` does: nothing is said of the database, which is well."""
    url = ended(shop, tmp_path, 3)
    reading, writing = os.pipe()
    os.close(reading)
    where = (*app(shop), "--database-url", url)
    for command in (("connections", "--format", form), ("keep-alive", "--idle", "30d"), ("rotate-keys",)):
        with popen(*command, *where, stdout=writing) as process:
            _, said = process.communicate(timeout=30)
        assert (1, "") == (process.returncode, said)
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_is_told_as_one(shop: Any, tmp_path: Path) -> None:
    url = ended(shop, tmp_path, 3)
    where = (*app(shop), "--database-url", url)
    for command in (("connections",), ("keep-alive", "--idle", "30d"), ("rotate-keys",), ("doctor",)):
        with Path("/dev/full").open("w") as full, popen(*command, *where, stdout=full) as process:
            _, said = process.communicate(timeout=30)
        assert (2, "accountlink: what was found cannot be written: No space left on device.\n") == (
            process.returncode,
            said,
        )


def test_an_interrupted_command_could_not_look(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 would say that something was found."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "load_renewing_linker", interrupted)
    for command in (("connections",), ("keep-alive", "--idle", "30d")):
        result = run(*command, *app(shop), "--database-url", "sqlite+aiosqlite:///shop.db")
        assert (2, "", True) == (result.exit_code, result.stdout, "it was interrupted" in result.stderr)
