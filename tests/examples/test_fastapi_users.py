"""The example beside fastapi-users, in an environment of its own: its adapter holds SQLAlchemy below 2.1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.databases import rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "fastapi_users"
DATABASE = "accountlink_fastapi_users"
KINDS = ("sqlite", "asyncpg", "psycopg")
STORY = """\
On the table as fastapi-users makes it, without a key:
   fastapi-users gives Ada's account to Ben as well: 2 owners are stored
   whoever signs in with it now gets MultipleResultsFound
The second owner is taken away, and the key is made:
   fastapi-users cannot store a second one any more, and breaks off with IntegrityError
With accountlink on that table:
   Cleo connects an account twice: created, updated, one row
   fastapi-users finds Cleo by it: Cleo can sign in
   Dan connects the same account: ownership_conflict; Cleo's row is untouched, and Cleo can sign in
   Cleo disconnects, Dan connects: created, and now it signs Dan in
"""


def run(*arguments: str | Path, timeout: float, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program away from the repository, and without what leads Python or a virtual environment back to it."""
    leading = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COLUMNS")
    environment = {name: value for name, value in os.environ.items() if name not in leading}
    return subprocess.run(
        [str(argument) for argument in arguments],
        env=environment | {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INPUT": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


pytestmark = pytest.mark.stress  # they install an environment of their own, whose SQLAlchemy is an older one


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with accountlink and fastapi-users; where it cannot be made, the test fails."""
    folder = tmp_path_factory.mktemp("fastapi-users")
    made = run(sys.executable, "-m", "venv", folder / "venv", timeout=120, folder=folder)
    assert 0 == made.returncode, made.stdout + made.stderr
    found = next(path for path in (folder / "venv").glob("*/python*") if path.stem == "python")
    installed = run(
        found,
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("-e", f"{ROOT}[sqlite,psycopg]", "-r", EXAMPLE / "requirements.txt"),
        timeout=400,
        folder=folder,
    )
    assert 0 == installed.returncode, installed.stdout + installed.stderr
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each database and driver in turn."""
    return str(request.param)


@pytest.fixture
async def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """An empty database of the story's own."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'users.sqlite3'}"
        return
    server = request.getfixturevalue("postgres")
    admin = await asyncpg.connect(host=server.host, port=server.port, user=server.user, database="postgres")
    try:
        await admin.execute(f"CREATE DATABASE {DATABASE}")
        try:
            yield server.url(driver=kind, database=DATABASE)
        finally:
            await admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    finally:
        await admin.close()


def test_the_environment_has_fastapi_users_and_its_sqlalchemy(python: Path, tmp_path: Path) -> None:
    """The test uses the real adapter with the SQLAlchemy that it requires, and this repository's accountlink."""
    lines = "import accountlink, fastapi_users_db_sqlalchemy as f, sqlalchemy as s; print(f.__version__, s.__version__)"
    told = run(python, "-c", f"{lines}; print(accountlink.__file__)", timeout=60, folder=tmp_path)
    assert re.match(r"7\.\d\S* 2\.0\.\d+\n", told.stdout), told.stdout + told.stderr
    assert str(ROOT / "src") in told.stdout


def test_the_program_on_a_file_of_its_own(python: Path, tmp_path: Path) -> None:
    """Without any option the program tells its whole story on SQLite, and leaves nothing in the folder."""
    ended = run(python, "-W", "error", EXAMPLE / "main.py", timeout=120, folder=tmp_path)
    assert (0, STORY, "") == (ended.returncode, ended.stdout, ended.stderr)
    assert [] == list(tmp_path.iterdir())


async def test_the_story_and_its_rows(python: Path, url: str, tmp_path: Path) -> None:
    """One owner of each account stays, with the tokens that the story gave; again in the same database is refused."""
    ended = run(python, "-W", "error", EXAMPLE / "main.py", "--database-url", url, timeout=120, folder=tmp_path)
    assert (0, STORY, "") == (ended.returncode, ended.stdout, ended.stderr)
    found = (
        "SELECT u.email, o.oauth_name, o.account_id, o.account_email, o.access_token, o.refresh_token, o.expires_at "
        'FROM oauth_account o JOIN "user" u ON u.id = o.user_id ORDER BY o.account_id'
    )
    doubled = "SELECT account_id FROM oauth_account GROUP BY oauth_name, account_id HAVING count(*) > 1"
    engine = create_async_engine(url)
    try:
        assert [
            ("ada@example.org", "google", "account-1", "ada@example.org", "made-up-access-token", None, None),
            ("dan@example.org", "google", "account-2", "cleo@example.org", "made-up-5", None, None),
        ] == await rows(engine, found)
        assert [] == await rows(engine, doubled)
        assert [(5,)] == await rows(engine, 'SELECT count(*) FROM "user"')
        before = await rows(engine, "SELECT * FROM oauth_account ORDER BY id")

        again = run(python, EXAMPLE / "main.py", "--database-url", url, timeout=120, folder=tmp_path)
        assert (1, "") == (again.returncode, again.stdout)
        assert "the database has a table oauth_account already; pass an empty database\n" == again.stderr
        assert before == await rows(engine, "SELECT * FROM oauth_account ORDER BY id")
    finally:
        await engine.dispose()


def test_a_story_that_goes_otherwise(python: Path, tmp_path: Path) -> None:
    """Where fastapi-users' table has the key from the start, nothing is as the first sentence says: exit code 1."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from examples.fastapi_users import main\n"
        "main.DROP_KEY = 'SELECT 1'\n"
        "sys.exit(main.main([]))\n"
    )
    ended = run(python, "-c", program, ROOT, timeout=120, folder=tmp_path)
    assert 1 == ended.returncode, ended.stderr
    assert "IntegrityError" in ended.stderr
    assert "2 owners" not in ended.stdout


def test_a_database_that_cannot_be_used(python: Path, tmp_path: Path) -> None:
    """A server that does not answer: exit code 1, one line, and no password in it."""
    url = "postgresql+asyncpg://me:hidden@127.0.0.1:1/none"
    ended = run(python, EXAMPLE / "main.py", "--database-url", url, timeout=60, folder=tmp_path)
    assert (1, "") == (ended.returncode, ended.stdout)
    assert re.fullmatch(r"the database cannot be used: \w+\n", ended.stderr), ended.stderr
