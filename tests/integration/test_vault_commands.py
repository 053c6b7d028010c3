"""``accountlink secret``, ``backfill`` and ``rotate-keys``: what they print and how they end, on real databases."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.ext.asyncio import create_async_engine

from accountlink import CredentialVault, ProviderIdentity, TokenSet, VaultKey
from accountlink.cli import sealing
from accountlink.cli.commands import accountlink
from accountlink.cli.sealing import Order, Task
from tests.support.databases import Database, create

APP: Final = """
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from accountlink import AccountLinker, CredentialVault, LinkedAccountMixin, LinkPolicy, Removal

NEW, OLD = "A" * 42 + "E", "B" * 42 + "E"
class Base(DeclarativeBase): pass

class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]

plain = AccountLinker(Connection)
old = AccountLinker(Connection, vault=CredentialVault(keys=[OLD]))
linker = AccountLinker(Connection, vault=CredentialVault(keys=[NEW, OLD]))

def made():
    return linker

def engine():
    return create_async_engine("sqlite+aiosqlite:///shop.db")

class Failing:
    async def current(self):
        raise RuntimeError("token=hidden")
    async def get(self, key_id):
        return None

failing = AccountLinker(Connection, vault=CredentialVault(source=Failing()))
"""
COMMANDS: Final = ["backfill", "rotate-keys"]
_numbers = count()


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application in the current directory: its module."""
    monkeypatch.delenv("ACCOUNTLINK_DATABASE_URL", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"sealed_shop_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return import_module(name)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(accountlink, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fill(shop: Any, url: str, **linkers: int) -> None:
    """Link so many users by each linker of the application."""

    async def filling() -> None:
        engine = create_async_engine(url)
        await create(engine, shop.Base.metadata)
        numbers = count(1)
        for name, times in linkers.items():
            linker = getattr(shop, name)
            for number in (next(numbers) for _ in range(times)):
                identity = ProviderIdentity(provider="acme", account_id=f"sub-{number}", email=f"{number}@example.com")
                tokens = TokenSet(access_token=f"access-{number}", refresh_token=f"refresh-{number}")
                await linker.link(engine, user_id=number, identity=identity, credentials=tokens)
        await engine.dispose()

    asyncio.run(filling())


def execute(url: str, *statements: str) -> None:
    async def executing() -> None:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))
        await engine.dispose()

    asyncio.run(executing())


def key_ids(url: str) -> list[str]:
    async def reading() -> list[str]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            texts = list(await connection.scalars(sa.text("SELECT access_token FROM connections ORDER BY id")))
        await engine.dispose()
        return [text.split(".")[1] for text in texts if text]

    return asyncio.run(reading())


def app(shop: Any, attribute: str = "linker") -> tuple[str, str]:
    return ("--app", f"{shop.__name__}:{attribute}")


# -- secret -----------------------------------------------------------------------------------------------------------


def test_a_secret_is_a_key_and_nothing_else() -> None:
    """One line on stdout, which a vault takes as it is; another one each time."""
    results = [run("secret") for _ in range(2)]
    assert [(0, "")] * 2 == [(each.exit_code, each.stderr) for each in results]
    texts = [each.stdout.removesuffix("\n") for each in results]
    assert [43, 43] == [len(text) for text in texts]
    assert 2 == len({VaultKey(secret=text).id for text in texts})
    CredentialVault(keys=texts)


# -- what they print --------------------------------------------------------------------------------------------------


@pytest.mark.each_driver
def test_rotation_from_the_first_count_to_the_last(shop: Any, database: Database) -> None:
    """A dry run, the rotation, and a rotation that finds nothing."""
    fill(shop, database.url, old=3, linker=1)
    command = ("rotate-keys", *app(shop), "--database-url", database.url)
    counted = run(*command, "--dry-run")
    assert (1, "connections: 4 rows scanned, 3 to seal, 0 that cannot be sealed.\n") == (
        counted.exit_code,
        counted.stdout,
    )
    assert {VaultKey(secret=key).id for key in (shop.NEW, shop.OLD)} == set(key_ids(database.url))
    sealed = run(*command, "--batch-size", "2")
    assert (0, "connections: 4 rows scanned, 3 sealed, 0 left.\n", "") == (
        sealed.exit_code,
        sealed.stdout,
        sealed.stderr,
    )
    assert [VaultKey(secret=shop.NEW).id] * 4 == key_ids(database.url)
    assert "connections: 4 rows scanned, 0 sealed, 0 left.\n" == run(*command).stdout


@pytest.mark.each_driver
def test_backfill_and_what_is_left_of_it(shop: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that cannot be sealed are counted and named by their ids, and the URL may come from the environment."""
    fill(shop, database.url, plain=3, linker=1)
    monkeypatch.setenv("ACCOUNTLINK_DATABASE_URL", database.url)
    assert 1 == run("backfill", *app(shop, "made"), "--dry-run").exit_code
    sealed = run("backfill", *app(shop, "made"))
    assert (0, "connections: 4 rows scanned, 3 sealed, 0 left.\n") == (sealed.exit_code, sealed.stdout)
    execute(
        database.url,
        "UPDATE connections SET access_token = 'al1.broken' WHERE user_id = 1",
        "UPDATE connections SET refresh_token = 'al2.later' WHERE user_id = 2",
        "UPDATE connections SET access_token = (SELECT access_token FROM connections WHERE user_id = 3), "
        "refresh_token = 'al1.broken' WHERE user_id = 4",
    )
    left = run("rotate-keys", *app(shop))
    assert 1 == left.exit_code
    assert [
        "connections: 4 rows scanned, 0 sealed, 3 left.",
        "   2 in connections damaged (malformed): 1, 4",
        "   1 in connections sealed by a newer version (unknown_format): 2",
    ] == left.stdout.splitlines()
    assert 0 == run("backfill", *app(shop)).exit_code


def test_an_older_key_that_is_gone(shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows of one reason are one line, which names some of them."""
    monkeypatch.setattr(sealing, "_NAMED", 2)
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, old=5)
    shop.alone = type(shop.linker)(shop.Connection, vault=CredentialVault(keys=[shop.NEW]))
    result = run("rotate-keys", *app(shop, "alone"), "--engine", f"{shop.__name__}:engine")
    assert 1 == result.exit_code
    assert [
        "connections: 5 rows scanned, 0 sealed, 5 left.",
        "   5 in connections sealed with a key that the vault does not have (unknown_key): 1, 2 and 3 more",
    ] == result.stdout.splitlines()


def test_several_linkers_and_pending_credentials(shop: Any, tmp_path: Path) -> None:
    """Each linker has its own line, and one that is named twice has one."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, old=1, plain=1)
    result = run("rotate-keys", *app(shop), *app(shop, "made"), *app(shop), "--database-url", url)
    lines = ["connections: 2 rows scanned, 1 sealed, 0 left.", "connections: 2 rows scanned, 0 sealed, 0 left."]
    assert (0, lines) == (result.exit_code, result.stdout.splitlines())


def test_on_a_terminal_there_is_a_bar(
    shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar is on stderr, so that stdout is the summary alone."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, old=3)
    near, far = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    order = Order(task=Task.ROTATE, apps=(app(shop)[1],), database_url=url, engine=None, dry_run=False, batch_size=500)
    with os.fdopen(far, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert 0 == asyncio.run(sealing.run(order))
        assert b"3/3" in os.read(near, 65536)
    os.close(near)
    assert "connections: 3 rows scanned, 3 sealed, 0 left.\n" == capsys.readouterr().out


# -- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_run_is_one_line(shop: Any, command: str, tmp_path: Path) -> None:
    """Exit 2, nothing on stdout, and no file is made where the path is wrong."""
    url = "sqlite+aiosqlite:///missing.db"
    (tmp_path / "empty.db").touch()
    for arguments, said in (
        ((*app(shop, "plain"), "--database-url", url), "has no vault"),
        ((*app(shop, "Connection"), "--database-url", url), "Name an AccountLinker"),
        ((*app(shop, "nothing"), "--database-url", url), "has no nothing"),
        (app(shop), "no database was named"),
        ((*app(shop), "--database-url", url), "cannot be opened"),
        ((*app(shop), "--engine", f"{shop.__name__}:engine"), "cannot be opened"),
        ((*app(shop), "--database-url", "sqlite+aiosqlite:///empty.db"), "no table 'connections'"),
        ((*app(shop), "--database-url", "postgresql+asyncpg://me:hidden@127.0.0.1:9/d"), "cannot be used"),
    ):
        result = run(command, *arguments)
        assert (2, "", 1) == (result.exit_code, result.stdout, result.stderr.count("\n"))
        assert said in result.stderr
        assert "hidden" not in result.output
    assert not (tmp_path / "missing.db").exists()
    assert not (tmp_path / "shop.db").exists()
    both = run(command, *app(shop), "--database-url", url, "--engine", f"{shop.__name__}:engine")
    assert (2, True) == (both.exit_code, "name two databases" in both.stderr)


def test_an_error_of_the_source_is_not_quoted(shop: Any, tmp_path: Path) -> None:
    """It is the application's own code, and its text may be a secret."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
    fill(shop, url, old=1)
    result = run("rotate-keys", *app(shop, "failing"), "--database-url", url)
    assert (2, "") == (result.exit_code, result.stdout)
    assert f"the tables could not be sealed: RuntimeError at {shop.__name__}.py:" in result.stderr
    assert "hidden" not in result.stderr


@pytest.mark.parametrize("kind", ["asyncpg"])
def test_a_role_that_may_not_write(shop: Any, database: Database) -> None:
    """The database's own reason, in one line; a dry run needs no right to write."""
    fill(shop, database.url, old=1)
    execute(
        database.url,
        "DROP ROLE IF EXISTS reading_only",
        "CREATE ROLE reading_only LOGIN",
        "GRANT SELECT ON connections TO reading_only",
    )
    url = sa.make_url(database.url).set(username="reading_only").render_as_string(hide_password=False)
    counted = run("rotate-keys", *app(shop), "--database-url", url, "--dry-run")
    assert (1, "connections: 1 rows scanned, 1 to seal, 0 that cannot be sealed.\n") == (
        counted.exit_code,
        counted.stdout,
    )
    result = run("rotate-keys", *app(shop), "--database-url", url)
    assert (2, "") == (result.exit_code, result.stdout)
    assert "SQLSTATE 42501: permission denied for table connections." in result.stderr
