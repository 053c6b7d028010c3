"""``accountlink doctor``: what it prints and how it ends, on real databases, and that it only reads."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from sqlalchemy.ext.asyncio import create_async_engine

from accountlink.cli import reaching, reports
from accountlink.cli.commands import accountlink
from accountlink.cli.loading import CannotRun
from accountlink.cli.output import Stream
from accountlink.cli.reports import Examined
from accountlink.doctor import diagnose as looking
from accountlink.doctor import reading
from accountlink.doctor.findings import Finding, Severity
from tests.support.databases import Database
from tests.support.pgbouncer import run_pgbouncer
from tests.support.postgres import PostgresServer

APP: Final = """
import os
from functools import cache

from sqlalchemy import BigInteger, Integer, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import AccountLinker, LinkedAccountMixin, LinkPolicy, Removal, tune_sqlite

print("the application says hello")
URL = "sqlite+aiosqlite:///shop.db"


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger().with_variant(Integer, "sqlite")}


class Connection(LinkedAccountMixin, Base):
    __tablename__ = "connections"
    __link_policy__ = LinkPolicy(removal=Removal.SOFT)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


class Mailbox(LinkedAccountMixin, Base):
    __tablename__ = "mailboxes"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


class Container:
    linker = AccountLinker(Connection)


linker = Container.linker
mailboxes = AccountLinker(Mailbox)
mapping = linker.mapping
engine = create_async_engine(URL)
blocking = create_engine("sqlite://")
number = 7


def current():
    return create_async_engine(os.environ["SHOP_DATABASE_URL"])


def tuned():
    return tune_sqlite(create_async_engine(URL))


async def later():
    return engine


def failing():
    raise RuntimeError("dsn=postgresql://me:hidden@host/db")


def needing(argument):
    return engine


def in_memory():
    return create_async_engine("sqlite+aiosqlite://")


def tuned_in_memory():
    return tune_sqlite(in_memory())


def by_uri():
    return create_async_engine("sqlite+aiosqlite:///file:shop.db?uri=true&mode=rwc")


def tuned_by_uri():
    return tune_sqlite(by_uri())


@cache
def kept():
    return tuned()


def linkers():
    return linker


def __getattr__(name):
    if name == "broken":
        raise RuntimeError("dsn=postgresql://me:hidden@host/db")
    raise AttributeError(name)


class Settings:
    @property
    def secret(self):
        print("the application says hello")
        raise LookupError("dsn=postgresql://me:hidden@host/db")


class Proxy:
    def __getattribute__(self, name):
        raise RuntimeError("working outside of a context: hidden")


settings, proxy = Settings(), Proxy()
"""
STALE: Final = "CREATE UNIQUE INDEX one_each ON connections (user_id, provider)"
FULL: Final = "CREATE UNIQUE INDEX connections_key ON connections (provider, account_id)"
STALE_MAILBOX: Final = "CREATE UNIQUE INDEX one_box ON mailboxes (provider)"
_numbers = count()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine that runs the tests prefers, the output is a pipe's, and nothing stays on the path."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "ACCOUNTLINK_DATABASE_URL", "SHOP_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An application in the current directory: the name of its module."""
    name = f"shop_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(APP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def url(shop: str, database: Database) -> str:
    """Each database in turn, with the application's tables as its models declare them."""
    make(shop, database.url)
    return database.url


@pytest.fixture
def sqlite_url(shop: str, tmp_path: Path) -> str:
    """The application's tables in SQLite."""
    url = "sqlite+aiosqlite:///shop.db"
    make(shop, url)
    return url


def make(shop: str, url: str, *statements: str) -> None:
    """Make the application's tables, or change them by statements; each call has connections of its own."""
    sys.path.insert(0, str(Path.cwd()))
    metadata = import_module(shop).Base.metadata

    async def talk() -> None:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            if not statements:
                await connection.run_sync(metadata.create_all)
            for statement in statements:
                await connection.exec_driver_sql(statement)
        await engine.dispose()

    asyncio.run(talk())


def doctor(*arguments: str, color: bool = False) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(accountlink, ["doctor", *arguments], color=color)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(result: Result) -> str:
    """Return the command's stderr without the application's own output."""
    return result.stderr.replace("the application says hello\n", "")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as people do, in a process of its own where a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "accountlink", "doctor", *arguments],
        env=dict(os.environ) | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def finding(**fields: Any) -> Finding:
    given: dict[str, Any] = {
        "rule": "stale-unique",
        "severity": Severity.ERROR,
        "table": "links",
        "object": "old_key",
        "columns": ("user_id", "provider"),
        "message": "Not allowed.",
        "fix": "Drop it.",
    }
    return Finding(**(given | fields))


def examined(*findings: Finding) -> Examined:
    return Examined(tables=("links",), dialect="postgresql", findings=findings)


class TestVerdict:
    def test_clean(self, shop: str, url: str) -> None:
        """Exit 0 and one line that says what was looked at, when nothing is wrong."""
        result = doctor("--app", f"{shop}:linker", "--database-url", url)

        name = "SQLite" if url.startswith("sqlite") else "PostgreSQL"
        assert (0, f"No findings in connections ({name}).\n", "") == (result.exit_code, result.stdout, said(result))

    def test_findings(self, shop: str, url: str) -> None:
        """Exit 1, and each finding by rule, table, true name and columns, when something is wrong."""
        make(shop, url, STALE)
        result = doctor("--app", f"{shop}:linker", "--database-url", url)

        assert (1, "") == (result.exit_code, said(result))
        assert "\nerror  stale-unique  connections  one_each  (user_id, provider)\n" in result.stdout
        assert re.search(r"^   Fix: .*one_each", result.stdout, re.MULTILINE)
        assert re.search(r"\n1 finding in connections \(\w+\): 1 error\.\n$", result.stdout)

    def test_several_tables(self, shop: str, url: str) -> None:
        """Each --app is looked at, one named twice is looked at once, and the summary names them all."""
        make(shop, url, STALE, STALE_MAILBOX)
        apps = [f"{shop}:{name}" for name in ("linker", "mailboxes", "linker")]
        arguments = [part for app in apps for part in ("--app", app)]
        result = doctor(*arguments, "--database-url", url, "--format", "json")

        expected = [("connections", "one_each"), ("mailboxes", "one_box")]
        assert expected == [(found["table"], found["object"]) for found in json.loads(result.stdout)["findings"]]
        assert "2 findings in connections, mailboxes (" in doctor(*arguments, "--database-url", url).stdout

    @pytest.mark.parametrize("attribute", ["linker", "mapping", "Container.linker", "linkers", "Connection"])
    def test_what_is_named(self, shop: str, sqlite_url: str, attribute: str) -> None:
        """A linker, a mapping, a model, a function, and what stands inside of something else can be named."""
        assert 0 == doctor("--app", f"{shop}:{attribute}", "--database-url", sqlite_url).exit_code

    def test_url_from_the_environment(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A URL with a password need not stand on the command line, where every user of the machine reads it."""
        monkeypatch.setenv("ACCOUNTLINK_DATABASE_URL", sqlite_url)
        assert 0 == doctor("--app", f"{shop}:linker").exit_code

    def test_table_is_not_there(self, shop: str, database: Database) -> None:
        """A database without the table has a finding: it is the wrong one, or a migration is missing."""
        make(shop, database.url, "CREATE TABLE other (id integer)")
        result = doctor("--app", f"{shop}:linker", "--database-url", database.url, "--format", "json")

        assert 1 == result.exit_code
        assert ["missing-key"] == [found["rule"] for found in json.loads(result.stdout)["findings"]]

    def test_in_a_process_of_its_own(self, shop: str, sqlite_url: str) -> None:
        """The command, as python -m accountlink, finds the application in the current directory, without a warning."""
        clean = run("--app", f"{shop}:linker", "--database-url", sqlite_url)
        make(shop, sqlite_url, STALE)
        found = run("--app", f"{shop}:linker", "--format", "json", ACCOUNTLINK_DATABASE_URL=sqlite_url)
        failed = run("--app", f"{shop}:linker", "--database-url", "sqlite+aiosqlite:///nowhere.db")

        assert (0, "No findings in connections (SQLite).\n") == (clean.returncode, clean.stdout)
        assert (1, False) == (found.returncode, json.loads(found.stdout)["ok"])
        assert (2, "") == (failed.returncode, failed.stdout)
        assert "Traceback" not in clean.stderr + found.stderr + failed.stderr


class TestFormats:
    def test_json_is_the_contracts(self, shop: str, sqlite_url: str) -> None:
        """Standard output is one JSON object with ok and findings, whatever the application prints."""
        clean = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url, "--format", "json")
        make(shop, sqlite_url, STALE)
        found = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url, "--format", "json")

        assert {"ok": True, "findings": []} == json.loads(clean.stdout)
        answer = json.loads(found.stdout)
        assert (["ok", "findings"], False) == (list(answer), answer["ok"])
        only = answer["findings"][0]
        assert ["rule", "severity", "table", "object", "columns", "message", "fix"] == list(only)
        expected = ("stale-unique", "error", "connections", "one_each", ["user_id", "provider"])
        assert expected == tuple(only[name] for name in ("rule", "severity", "table", "object", "columns"))

    def test_github(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Each finding is one workflow command, by its severity, and what would end a command is escaped."""
        odd = finding(severity=Severity.WARNING, object="100%\r\n::error::x", columns=(), message="a: b,\nc")
        reports.show_github(examined(finding(), odd), Stream.OUT)

        assert [
            "::error title=accountlink stale-unique::links old_key (user_id, provider): Not allowed.%0AFix: Drop it.",
            "::warning title=accountlink stale-unique::links 100%25\\r\\n::error::x -: a: b,%0Ac%0AFix: Drop it.",
            "2 findings in links (PostgreSQL): 1 error, 1 warning.",
        ] == capsys.readouterr().out.splitlines()

    def test_github_title(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a property of a workflow command colons and commas are escaped, too."""
        reports.show_github(examined(finding(rule="a:b,c%")), Stream.OUT)
        assert "title=accountlink a%3Ab%2Cc%25::" in capsys.readouterr().out

    def test_columns_are_aligned(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The heads of all findings stand in columns, and long messages are wrapped at 100 characters."""
        short = finding(rule="duplicates", object=None, severity=Severity.WARNING, message="many words " * 30)
        reports.show_table(examined(finding(), short), Stream.OUT)
        lines = capsys.readouterr().out.splitlines()

        assert "error    stale-unique  links  old_key  (user_id, provider)" in lines
        assert "warning  duplicates    links  -        (user_id, provider)" in lines
        assert 100 >= max(map(len, lines))

    def test_control_characters_do_not_reach_the_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A name in the database can neither colour a terminal nor begin a line of its own."""
        evil = finding(object="x\x1b[31m\n::error::y", message="z\x07\n::warning::")
        reports.show_table(examined(evil), Stream.OUT)
        printed = capsys.readouterr().out

        assert "x\\x1b[31m\\n::error::y" in printed
        assert [] == [line for line in printed.splitlines() if line.startswith("::")]
        assert set() == set(printed) & {"\x1b", "\x07"}

    def test_drawn_on_a_terminal(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A terminal gets colours; NO_COLOR takes them away."""
        make(shop, sqlite_url, STALE)
        arguments = ("--app", f"{shop}:linker", "--database-url", sqlite_url)
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        coloured = doctor(*arguments, color=True)
        monkeypatch.setenv("NO_COLOR", "1")
        plain = doctor(*arguments, color=True)

        assert (1, 1) == (coloured.exit_code, plain.exit_code)
        assert "\x1b[1m" in coloured.stdout
        assert "\x1b" not in plain.stdout

    def test_coloured_in_a_pipe(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """FORCE_COLOR colours a pipe as well, in which a finding's head stays on one line, whatever its length."""
        name = "one_" + "each_" * 11
        make(shop, sqlite_url, STALE.replace("one_each", name))
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.delenv("NO_COLOR", raising=False)
        result = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url, color=True)

        assert f"\n\x1b[1merror  stale-unique  connections  {name}  (user_id, provider)\x1b[0m\n" in result.stdout


class TestEmit:
    def test_sql_repairs(self, shop: str, sqlite_url: str) -> None:
        """The migration stands on stdout alone; run by SQLite it repairs, and the second run is clean and empty."""
        make(shop, sqlite_url, "DROP INDEX uq_connections_link", FULL, STALE)
        arguments = ("--app", f"{shop}:linker", "--database-url", sqlite_url, "--emit", "sql")
        result = doctor(*arguments)
        assert 1 == result.exit_code
        assert "2 findings in connections (SQLite): 2 errors." in result.stderr
        assert "finding" not in result.stdout
        with sqlite3.connect("shop.db") as connection:
            connection.executescript(re.sub(r"^\..*\n", "", result.stdout))  # a line for the program sqlite3
        connection.close()

        again = doctor(*arguments)
        assert (0, "", "No findings in connections (SQLite).\n") == (again.exit_code, again.stdout, said(again))

    def test_several_tables(self, shop: str, url: str) -> None:
        """The SQL of several tables stands one after the other."""
        make(shop, url, STALE, STALE_MAILBOX)
        apps = ("--app", f"{shop}:linker", "--app", f"{shop}:mailboxes")
        result = doctor(*apps, "--database-url", url, "--emit", "sql")

        assert 1 == result.exit_code
        drops = re.findall(r"^DROP INDEX (?:CONCURRENTLY )?(?:public\.)?(\w+);$", result.stdout, re.MULTILINE)
        assert ["one_each", "one_box"] == drops

    def test_alembic(self, shop: str, url: str) -> None:
        """One revision of all tables, with an id of its own and the one that it follows."""
        make(shop, url, STALE, STALE_MAILBOX)
        apps = ("--app", f"{shop}:linker", "--app", f"{shop}:mailboxes", "--database-url", url)
        result = doctor(*apps, "--emit", "alembic", "--down-revision", "0123abcd")
        another = doctor(*apps, "--emit", "alembic")

        given, following = assigned(result.stdout), assigned(another.stdout)
        assert 1 == result.exit_code
        assert re.fullmatch("[0-9a-f]{12}", given["revision"])
        assert given["revision"] != following["revision"]
        assert ("0123abcd", None) == (given["down_revision"], following["down_revision"])
        assert 1 == result.stdout.count("def upgrade(")
        assert all(name in result.stdout for name in ("one_each", "one_box"))

    def test_nothing_to_repair(self, shop: str, url: str) -> None:
        """Nothing at all on stdout, for both kinds, when nothing is wrong."""
        for kind in ("sql", "alembic"):
            result = doctor("--app", f"{shop}:linker", "--database-url", url, "--emit", kind)
            assert (0, "") == (result.exit_code, result.stdout)

    def test_nothing_is_repaired_that_is_ignored(self, shop: str, url: str) -> None:
        """A migration for the other findings names what stays, and changes nothing of it."""
        make(shop, url, STALE, "DROP INDEX uq_connections_link")
        arguments = ("--app", f"{shop}:linker", "--database-url", url, "--emit", "sql")
        both = doctor(*arguments).stdout
        stale = doctor(*arguments, "--ignore", "missing-key").stdout
        missing = doctor(*arguments, "--ignore", "stale-unique:one_each").stdout

        drop, create = (re.compile(f"^{verb} .*(INDEX|CONSTRAINT)", re.MULTILINE) for verb in ("DROP", "CREATE UNIQUE"))
        found = [(drop.search(text) is not None, create.search(text) is not None) for text in (both, stale, missing)]
        assert [(True, True), (True, False), (False, True)] == found
        assert "missing-key: (provider, account_id) is ignored" in re.sub(r"\n-- *", " ", stale)
        assert "stale-unique: one_each is ignored" in missing

    def test_format_of_the_findings(self, shop: str, sqlite_url: str) -> None:
        """The findings beside a migration have the format that was asked for, on stderr."""
        make(shop, sqlite_url, STALE)
        arguments = ("--app", f"{shop}:linker", "--database-url", sqlite_url, "--emit", "sql", "--format", "json")

        assert ["one_each"] == [found["object"] for found in json.loads(said(doctor(*arguments)))["findings"]]


def assigned(source: str) -> dict[str, Any]:
    """The constants that a module assigns."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            assert isinstance(target, ast.Name)
            found[target.id] = node.value.value
    return found


class TestOnlyReads:
    def test_sqlite_file_stays_as_it_is(self, shop: str, sqlite_url: str) -> None:
        """Not a byte of an SQLite file changes, and no other file appears beside it."""
        make(shop, sqlite_url, STALE)
        before = Path("shop.db").read_bytes()
        doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)
        doctor("--app", f"{shop}:linker", "--engine", f"{shop}:engine")

        assert before == Path("shop.db").read_bytes()
        assert ["shop.db"] == sorted(path.name for path in Path().glob("*.db*"))

    @pytest.mark.parametrize("option", ["--database-url", "--engine"])
    def test_sqlite_file_is_not_made(self, shop: str, option: str) -> None:
        """A mistyped path is an error, and creates no empty database."""
        by_url, by_name = "sqlite+aiosqlite:///", f"{shop}:"
        where = {
            "--database-url": [f"{by_url}shop.db", f"{by_url}file:shop.db?uri=true&mode=rwc"],
            "--engine": [f"{by_name}engine", f"{by_name}tuned_by_uri"],
        }[option]
        results = [doctor("--app", f"{shop}:linker", option, each) for each in where]

        assert [2, 2] == [result.exit_code for result in results]
        for name, result in zip(("shop.db", "file:shop.db"), results, strict=True):
            assert f"the database file {name} cannot be opened: unable to open database file. " in said(result)
        assert [] == list(Path().glob("*.db*"))

    def test_sqlite_in_wal_mode(self, shop: str, sqlite_url: str) -> None:
        """A database in WAL mode is read beside a writer that holds the write lock, and sees what was committed."""
        make(shop, sqlite_url, STALE)
        writer = sqlite3.connect("shop.db", isolation_level=None)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DROP INDEX one_each")
        try:
            result = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)
        finally:
            writer.close()

        assert (1, True) == (result.exit_code, "one_each" in result.stdout)

    def test_database_itself_refuses_writes(self, shop: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A write on the doctor's connection fails in the database, which says so in one line."""

        def writing(connection: sa.Connection, _: object, **__: object) -> None:
            connection.exec_driver_sql("CREATE TABLE written (id integer)")

        monkeypatch.setattr(looking, "examine", writing)
        result = doctor("--app", f"{shop}:linker", "--database-url", url)

        assert 2 == result.exit_code
        assert "The database is read-only at the moment" in said(result)


class TestIgnore:
    def test_accepted(self, shop: str, url: str) -> None:
        """An accepted finding is neither reported nor repaired: exit 0, and ok. The summary counts such findings."""
        make(shop, url, STALE)
        arguments = ("--app", f"{shop}:linker", "--database-url", url)
        table = doctor(*arguments, "--ignore", "stale-unique")
        form = doctor(*arguments, "--ignore", "stale-unique", "--format", "json")
        written = doctor(*arguments, "--ignore", "stale-unique", "--emit", "sql")

        assert [0, 0, 0] == [result.exit_code for result in (table, form, written)]
        assert re.fullmatch(r"No findings in connections \(\w+\), 1 ignored\.\n", table.stdout)
        assert {"ok": True, "findings": []} == json.loads(form.stdout)
        assert "" == written.stdout

    @pytest.mark.parametrize(
        ("pattern", "left"),
        [
            ("stale-unique:one_each", ["one_box"]),
            ("stale-unique:mailboxes", ["one_each"]),
            ("stale-unique:elsewhere", ["one_each", "one_box"]),
            ("missing-key", ["one_each", "one_box"]),
        ],
    )
    def test_about_one_thing(self, shop: str, sqlite_url: str, pattern: str, left: list[str]) -> None:
        """A rule can be ignored for one object or one table: the others' findings stay, and so does exit 1."""
        make(shop, sqlite_url, STALE, STALE_MAILBOX)
        apps = ("--app", f"{shop}:linker", "--app", f"{shop}:mailboxes", "--database-url", sqlite_url)
        result = doctor(*apps, "--ignore", pattern, "--format", "json")

        assert 1 == result.exit_code
        assert left == [found["object"] for found in json.loads(result.stdout)["findings"]]

    def test_several(self, shop: str, sqlite_url: str) -> None:
        """Given several times, each counts; the engine's own finding can be ignored, too."""
        make(shop, sqlite_url, STALE)
        arguments = ("--app", f"{shop}:linker", "--engine", f"{shop}:engine")
        ignored = ("--ignore", "unsafe-pooling", "--ignore", "stale-unique")

        assert [1, 1, 0] == [doctor(*arguments, *ignored[:count]).exit_code for count in (0, 2, 4)]

    @pytest.mark.parametrize("pattern", ["stale", "", "stale-unique:", "Stale-Unique", ":one_each"])
    def test_unknown(self, pattern: str) -> None:
        """An `--ignore` without a known rule is a usage error, since a slip would accept nothing or too much."""
        result = doctor("--app", "a:b", "--ignore", pattern)
        assert (2, True) == (result.exit_code, "--ignore: " in result.stderr)

    def test_table_is_not_there(self, shop: str, database: Database) -> None:
        """A missing table is reported even if its rule is ignored: without it the doctor cannot look."""
        make(shop, database.url, "CREATE TABLE other (id integer)")
        result = doctor("--app", f"{shop}:linker", "--database-url", database.url, "--ignore", "missing-key")
        assert 1 == result.exit_code


class TestEngine:
    def test_its_pooling_is_looked_at(self, shop: str, sqlite_url: str) -> None:
        """The application's own engine is judged as it is; with a URL there is none to judge."""
        untuned = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:engine", "--format", "json")
        tuned = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:tuned")
        by_url = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)

        assert ["unsafe-pooling"] == [found["rule"] for found in json.loads(untuned.stdout)["findings"]]
        assert (1, 0, 0) == (untuned.exit_code, tuned.exit_code, by_url.exit_code)

    @pytest.mark.parametrize(
        ("attribute", "rules"),
        [
            ("in_memory", ["unsafe-pooling", "missing-key"]),
            ("tuned_in_memory", ["missing-key"]),
            ("by_uri", ["unsafe-pooling"]),
            ("tuned_by_uri", []),
            ("kept", []),
        ],
    )
    @pytest.mark.usefixtures("sqlite_url")
    def test_on_sqlite(self, shop: str, attribute: str, rules: list[str]) -> None:
        """An SQLite engine is read, however its database is named, tuned or not."""
        result = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:{attribute}", "--format", "json")

        assert rules == [found["rule"] for found in json.loads(result.stdout)["findings"]], result.stderr

    def test_goes_before_the_environment(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An engine on the command line is meant, whatever the environment says; beside a URL it is a usage error."""
        monkeypatch.setenv("ACCOUNTLINK_DATABASE_URL", "sqlite+aiosqlite:///nowhere.db")
        meant = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:tuned")
        both = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:tuned", "--database-url", sqlite_url)

        assert (0, 2) == (meant.exit_code, both.exit_code)
        assert "name two databases" in both.stderr

    @pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
    @pytest.mark.usefixtures("kind")
    def test_on_postgresql(self, shop: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An engine straight to the server has no pooling to report, and its table is read through it."""
        make(shop, url, STALE)
        monkeypatch.setenv("SHOP_DATABASE_URL", url)
        result = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:current", "--format", "json")

        assert ["stale-unique"] == [found["rule"] for found in json.loads(result.stdout)["findings"]]

    @pytest.mark.parametrize(
        ("attribute", "problem"),
        [
            ("blocking", "is Engine. Name an AsyncEngine, or a function"),
            ("later", "is function. Name an AsyncEngine, or a function"),
            ("number", "is int. Name an AsyncEngine, or a function"),
            ("failing", "cannot be called: RuntimeError at shop_"),
            ("needing", "cannot be called: TypeError"),
            ("nothing", "has no nothing"),
            ("broken", "broken cannot be read: RuntimeError at shop_"),
            ("settings.secret", "settings.secret cannot be read: LookupError at shop_"),
            ("proxy", "proxy cannot be read: RuntimeError at shop_"),
        ],
    )
    def test_that_is_none(self, shop: str, attribute: str, problem: str) -> None:
        """A value that is not an asynchronous engine gives one line and exit 2; the application's text is not shown."""
        result = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:{attribute}")

        assert 2 == result.exit_code
        assert problem in one_line(result)
        assert "hidden" not in result.output


def one_line(result: Result) -> str:
    """The line that the command ended with: the only one."""
    line = said(result)
    assert ("accountlink: ", 1, "") == (line[:13], line.count("\n"), result.stdout), line
    return line


@contextmanager
def unsafe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every engine be judged as one behind a pooler."""

    async def check_pooling(_: object) -> Finding:
        return finding(rule="unsafe-pooling", table="", object=None, columns=())

    with monkeypatch.context() as patched:
        patched.setattr(reaching, "check_pooling", check_pooling)
        yield


class TestPooler:
    @pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
    def test_is_told_and_passed(
        self, shop: str, postgres: PostgresServer, url: str, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a transaction pooler both are found: the engine's unsafe way, and what is wrong with the table."""
        make(shop, url, STALE)
        with run_pgbouncer(postgres) as pooler:
            there = pooler.url(driver=kind, database=str(sa.make_url(url).database))
            monkeypatch.setenv("SHOP_DATABASE_URL", there)
            by_url = doctor("--app", f"{shop}:linker", "--database-url", there, "--format", "json")
            by_engine = doctor("--app", f"{shop}:linker", "--engine", f"{shop}:current", "--format", "json")
            table = doctor("--app", f"{shop}:linker", "--database-url", there)

        for result in (by_url, by_engine):
            assert 1 == result.exit_code, result.stderr
            found = json.loads(result.stdout)["findings"]
            assert ["unsafe-pooling", "stale-unique"] == [each["rule"] for each in found]
        assert re.search(r"^error  unsafe-pooling  - ", table.stdout, re.MULTILINE)

    async def _names(self, url: str, **options: Any) -> list[str]:
        """The names of the statements that the server has for the doctor's connection."""
        way = reaching.way_by_engine(create_async_engine(url, **options))
        await way.pooling()
        async with way.reader.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            rows = await connection.execute(sa.text("SELECT name FROM pg_prepared_statements"))
            path = await connection.execute(sa.text("SHOW search_path"))
            found = [*(str(row.name) for row in rows), str(path.scalar_one())]
        await way.close()
        return found

    async def test_no_statement_has_a_name(self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The doctor's own statements have no name, and the engine's other arguments for its driver are kept."""
        url = postgres.url(driver="asyncpg")
        arguments = {"server_settings": {"search_path": "elsewhere"}}
        with unsafe(monkeypatch):
            assert ["elsewhere"] == await self._names(url, connect_args=arguments)
        assert 1 < len(await self._names(url, connect_args=arguments))

    async def test_connections_made_elsewhere(self, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """An engine whose connections cannot be made without names is not read through, and it is said why."""
        elsewhere = create_async_engine(postgres.url(driver="psycopg"))

        def on_do_connect(dialect: Any, _: object, cargs: Any, cparams: Any) -> Any:
            return dialect.connect(*cargs, **cparams)

        sa.event.listen(elsewhere.sync_engine, "do_connect", on_do_connect)
        with unsafe(monkeypatch), pytest.raises(CannotRun, match="Give --database-url instead of --engine"):
            await reaching.way_by_engine(elsewhere).pooling()
        await elsewhere.dispose()


class TestCannotRun:
    """An option that cannot be used gives one line on stderr with a remedy, nothing on stdout, and exit 2."""

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("postgres://me:hidden@h/d", "begins with postgres://, which names no asynchronous driver"),
            ("postgres://me:hidden@h/d", "Begin it with postgresql+asyncpg:// instead."),
            ("postgresql://me:hidden@127.0.0.1:9/d", "at postgresql+psycopg://me:***@127.0.0.1:9/d cannot"),
            ("postgresql+psycopg2://me:hidden@h/d", "Begin it with postgresql+asyncpg:// instead."),
            ("postgresql+nosuch://me:hidden@h/d", "Begin it with postgresql+asyncpg:// instead."),
            ("sqlite:///shop.db", "Begin it with sqlite+aiosqlite:// instead."),
            ("mysql+aiomysql://me:hidden@h/d", "accountlink knows PostgreSQL and SQLite"),
            ("not a url", "the database URL is not one. Write it as postgresql+asyncpg://user@host/name"),
            ("postgresql+asyncpg://me:hidden@h:port/d", "the database URL is not one."),
            ("postgresql+asyncpg://me:hidden@127.0.0.1:9/d", "at postgresql+asyncpg://me:***@127.0.0.1:9/d cannot"),
            ("postgresql+asyncpg://me:hidden@127.0.0.1:9/d", "Connect call failed"),
            ("postgresql+psycopg://me:hidden@127.0.0.1:9/d", "Connection refused"),
            ("postgresql+asyncpg://me:hidden@127.0.0.1:9/d?sslmode=require", "sslmode=require is ssl=require"),
            ("postgresql+psycopg://127.0.0.1:9/d?password=hidden&hidden=1", "ProgrammingError. Check the URL"),
            ("sqlite+aiosqlite:///nowhere/at.all", "the database file nowhere/at.all cannot be opened"),
            ("sqlite+aiosqlite:///{shop}.py", "file is not a database"),
        ],
    )
    def test_url(self, shop: str, url: str, problem: str) -> None:
        """A URL that cannot be used is an error that says what to write instead, without the password."""
        result = doctor("--app", f"{shop}:linker", "--database-url", url.format(shop=shop))

        assert 2 == result.exit_code
        assert problem in one_line(result)
        assert "hidden" not in result.output

    def test_role_that_may_not(self, shop: str, postgres: PostgresServer) -> None:
        """A role that does not exist is an error with the server's own message."""
        there = sa.make_url(postgres.url(driver="asyncpg")).set(username="nobody_at_all", password="hidden")
        result = doctor("--app", f"{shop}:linker", "--database-url", there.render_as_string(hide_password=False))

        assert 2 == result.exit_code
        assert 'SQLSTATE 28000: role "nobody_at_all" does not exist.' in one_line(result)
        assert "hidden" not in result.output

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("{shop}", "--app takes module:attribute, such as myapp.accounts:linker, not"),
            ("{shop}:", "--app takes module:attribute"),
            (":linker", "--app takes module:attribute"),
            ("{shop}:linker.", "--app takes module:attribute"),
            ("no_such_module:linker", "there is no module no_such_module. Run the command where python -c"),
            ("{shop}.accounts:linker", "there is no module {shop}.accounts."),
            ("{shop}:liker", "the module {shop} has no liker."),
            ("{shop}:number", "{shop}:number names no linker. The doctor takes an AccountLinker"),
            ("{shop}:Base", "{shop}:Base names no linker."),
            ("{shop}:failing", "--app: the function {shop}:failing cannot be called: RuntimeError at {shop}.py:"),
            ("{shop}:broken", "--app: {shop}:broken cannot be read: RuntimeError at {shop}.py:"),
            ("{shop}:settings.secret", "--app: {shop}:settings.secret cannot be read: LookupError at {shop}.py:"),
            ("{shop}:proxy", "--app: {shop}:proxy cannot be read: RuntimeError at {shop}.py:"),
        ],
    )
    def test_app(self, shop: str, name: str, problem: str) -> None:
        """An --app that names no linker is an error before any database is asked."""
        result = doctor("--app", name.format(shop=shop), "--database-url", "postgresql+asyncpg://127.0.0.1:9/d")

        assert 2 == result.exit_code
        assert problem.format(shop=shop) in one_line(result)
        assert "hidden" not in result.output

    @pytest.mark.parametrize(
        ("source", "problem"),
        [
            ("import no_such_dependency", "ModuleNotFoundError at {shop}.py:1: there is no module no_such_dependency"),
            ("import os\nos.environ['HIDDEN_SETTING']", "KeyError at {shop}.py:2. Import it in Python"),
            ("raise ValueError('dsn with hidden password')", "ValueError at {shop}.py:1. Import it in Python"),
            ("import sys\nsys.exit(0)", "SystemExit at {shop}.py:2."),
            (
                "from accountlink import *\nLinkPolicy(key=Key.EMAIL, ownership=Ownership.EXCLUSIVE)",
                "Use Key.ACCOUNT_ID, or",
            ),
        ],
    )
    def test_application_that_fails(self, tmp_path: Path, source: str, problem: str) -> None:
        """An error during the application's import is never exit 0 or 1, and its text is not repeated."""
        name = f"failing_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        sys.path.insert(0, str(tmp_path))
        result = doctor("--app", f"{name}:linker", "--database-url", "sqlite+aiosqlite://")

        assert 2 == result.exit_code
        assert problem.format(shop=name) in one_line(result)
        assert "hidden" not in result.output

    def test_no_database_named(self, shop: str) -> None:
        """Without a database the message names the three ways to name one."""
        result = doctor("--app", f"{shop}:linker")

        assert 2 == result.exit_code
        assert "Give --database-url or --engine, or set ACCOUNTLINK_DATABASE_URL." in one_line(result)

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--app", "a:b", "--format", "xml"],
            ["--app", "a:b", "--emit", "json"],
            ["--app", "a:b", "--down-revision", "1"],
        ],
    )
    def test_usage(self, arguments: list[str]) -> None:
        """A usage error is exit 2, too."""
        assert 2 == doctor(*arguments).exit_code

    def test_database_that_fails_under_way(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database error while it is read is one line without the statement's parameters."""

        def failing(connection: sa.Connection, _: object, **__: object) -> None:
            connection.execute(sa.text("SELECT * FROM nowhere WHERE a = :a"), {"a": "hidden"})

        monkeypatch.setattr(looking, "examine", failing)
        result = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)

        assert 2 == result.exit_code
        assert "OperationalError: no such table: nowhere." in one_line(result)
        assert "hidden" not in result.output


class TestUnexpected:
    """Any other failure is no finding: exit 2, one line, and no text that may contain a secret."""

    @pytest.mark.parametrize("error", [RuntimeError("hidden"), KeyError("hidden"), SystemExit(0), SystemExit("hidden")])
    def test_while_it_looks(
        self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        """An unexpected error is shown by its class, with the way to see more."""

        def failing(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(looking, "examine", failing)
        result = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)

        assert 2 == result.exit_code
        assert f"the doctor could not look: {type(error).__name__}" in one_line(result)
        assert "Set ACCOUNTLINK_TRACEBACK=1 to see it" in one_line(result)
        assert "hidden" not in result.output

    @pytest.mark.parametrize(
        ("kind", "told"),
        [
            ("LookupError", "LookupError at {name}.py:10, which"),
            ("OSError", "cannot be read: OSError at {name}.py:10."),
        ],
    )
    def test_in_the_applications_own_code(self, shop: str, tmp_path: Path, kind: str, told: str) -> None:
        """An error of an engine's listener is shown with the application's file and line, and without its text."""
        source = """
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine("sqlite+aiosqlite://")


@sa.event.listens_for(engine.sync_engine, "do_connect")
def on_do_connect(*_):
    raise KIND("dsn with hidden password")
"""
        name = f"listening_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source.replace("KIND", kind), encoding="utf-8")
        result = run("--app", f"{shop}:linker", "--engine", f"{name}:engine")

        assert (2, "", True) == (result.returncode, result.stdout, told.format(name=name) in result.stderr), (
            result.stderr
        )
        assert "hidden" not in result.stderr
        assert "Traceback" not in result.stderr

    def test_shown_when_asked_for(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who sets the variable gets the traceback and the text, and the same exit code."""

        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("shown")

        monkeypatch.setattr(looking, "examine", failing)
        monkeypatch.setenv("ACCOUNTLINK_TRACEBACK", "1")
        result = CliRunner().invoke(accountlink, ["doctor", "--app", f"{shop}:linker", "--database-url", sqlite_url])
        assert (2, True) == (result.exit_code, "RuntimeError: shown\n" in result.stderr)

    def test_while_it_prints(self, shop: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A finding that the terminal's encoding cannot print is neither a finding nor a success."""

        def failing(*_: object) -> None:
            "hidden\u00fc".encode("ascii")

        monkeypatch.setitem(reports.FORMATS, "table", failing)
        result = doctor("--app", f"{shop}:linker", "--database-url", sqlite_url)

        assert (2, True) == (result.exit_code, "UnicodeEncodeError" in one_line(result))
        assert "hidden" not in result.output


class TestLocked:
    @pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
    @pytest.mark.usefixtures("kind")
    def test_does_not_wait_for_ever(
        self, shop: str, url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a migration that holds the table the command ends in time: exit 2, and one line that says why."""
        monkeypatch.setattr(reading, "LOCK_TIMEOUT", "200ms")

        async def locked() -> Result:
            holder = await asyncpg.connect(postgres.url(driver="asyncpg").replace("+asyncpg", ""))
            try:
                async with holder.transaction():
                    await holder.execute("LOCK TABLE connections IN ACCESS EXCLUSIVE MODE")
                    return await asyncio.to_thread(doctor, "--app", f"{shop}:linker", "--database-url", url)
            finally:
                await holder.close()

        result = asyncio.run(locked())
        assert 2 == result.exit_code
        assert "SQLSTATE 55P03" in one_line(result)
        assert "Run the doctor again when nothing holds the table" in one_line(result)


def test_every_format_has_one_interface() -> None:
    """Each format is chosen by its name, and takes what was found and where to print it."""
    shows: list[Callable[[Examined, Stream], None]] = list(reports.FORMATS.values())
    assert (["table", "json", "github"], 3) == (list(reports.FORMATS), len(shows))
