"""The documentation's names, arguments and defaults are those of the code."""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
import sqlalchemy.orm

import accountlink
from accountlink import AccountLinker, Delivery, ShareGrants, TokenSet
from accountlink.doctor.alembic import watch
from accountlink.doctor.reading import LOCK_TIMEOUT
from accountlink.testing.fake_provider import FakeProvider
from accountlink.transfers.signing import LEEWAY
from accountlink.values.keys import MIN_SECRET
from accountlink.values.secrecy import Secret
from accountlink.vault.contents import AccessToken
from accountlink.vault.envelope import BoundTo, new_grant_id, seal
from accountlink.vault.sealing import LEAST_LENGTH
from accountlink.vault.stored import REFUSED_TOO_SOON
from tests.support.pages import DOCS, EVERY_PAGE, README, ROOT, SPAN, blocks_of, name_of, prose_of, text_of

_DEFAULT: Final = re.compile(r"^\| `([\w.]+)\((\w+)=\)` \| `([^`]+)` \|", re.MULTILINE)
_TREE: Final = re.compile(r"^( *)([\w.]+/?) {2,}", re.MULTILINE)
_CLASS: Final = re.compile(r"`((?:[A-Z][a-z]+){2,})\b")
_FOR_CALLERS: Final = (AccountLinker, ShareGrants)
_NOT_CALLED: Final = (Enum, BaseException)
_ANY: Final = inspect.Parameter.VAR_KEYWORD
_MADE_BY_ACCOUNTLINK: Final = ("IssuedGrant", "Transferred")


def public() -> dict[str, Callable[..., Any]]:
    """Return the functions that an application calls, by their names in the documentation."""
    named = {name: getattr(accountlink, name) for name in accountlink.__all__}
    named = {name: one for name, one in named.items() if not (isinstance(one, type) and issubclass(one, _NOT_CALLED))}
    for owner in _FOR_CALLERS:
        methods = inspect.getmembers(owner, inspect.isfunction)
        named |= {f"{owner.__name__}.{name}": method for name, method in methods if not name.startswith("_")}
    named |= {"TokenSet.from_response": TokenSet.from_response, "Delivery.acknowledge": Delivery.acknowledge}
    return named


PUBLIC: Final = public()


def defaults(called: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """The arguments of a call that may be left out and then mean something."""
    for parameter in inspect.signature(called).parameters.values():
        default = parameter.default
        means_something = (default or default is False) and not callable(default)
        if default is not parameter.empty and means_something and not repr(default).startswith("<factory"):
            yield parameter.name, default


def test_every_default_is_told_and_true() -> None:
    """The page of defaults has each of them, as it is in the code, and nothing else."""
    names = vars(accountlink) | {"timedelta": timedelta}
    told = {(call, name): eval(text, names) for call, name, text in _DEFAULT.findall(text_of(DOCS / "defaults.md"))}  # noqa: S307  # our own page
    expected = {
        (call, name): default
        for call, called in PUBLIC.items()
        if call not in _MADE_BY_ACCOUNTLINK
        for name, default in defaults(called)
    }
    assert expected == told


def envelope_length(length: int) -> int:
    """The length of the envelope of an access token of so many characters."""
    sealed = seal(
        AccessToken(token=Secret("x" * length), issued_at=datetime(2026, 11, 29, tzinfo=UTC)),
        key=accountlink.VaultKey(secret=bytes(32)),
        grant_id=new_grant_id(),
        bound_to=BoundTo(context="connections", user_id=1, provider="google", account_key="1"),
    )
    return len(sealed)


@pytest.mark.parametrize(
    ("page", "claim", "holds"),
    [
        ("README.md", r"`Key\.ACCOUNT_ID` \(default\)", accountlink.LinkPolicy().key is accountlink.Key.ACCOUNT_ID),
        ("README.md", r"`Ownership\.EXCLUSIVE` \(default\)", accountlink.LinkPolicy().ownership.value == "exclusive"),
        ("README.md", r"`Removal\.DELETE` \(default\)", accountlink.LinkPolicy().removal.value == "delete"),
        ("docs/linking.md", r"ten seconds by default", ("lock_timeout", timedelta(seconds=10))),
        ("docs/conflicts.md", r"ten minutes by default", ("transfer_lifetime", timedelta(minutes=10))),
        ("docs/errors/token_expired.md", r"lives for ten minutes unless", ("transfer_lifetime", timedelta(minutes=10))),
        ("docs/transfer.md", r"ten minutes, and 60 seconds of leeway", timedelta(seconds=60) == LEEWAY),
        ("docs/errors/token_expired.md", r"leeway of 60 seconds", timedelta(seconds=60) == LEEWAY),
        ("docs/conflicts.md", r"at least 32 bytes", MIN_SECRET == 32),
        ("docs/vault.md", r"less than 8,192 characters", LEAST_LENGTH == 8192),
        ("docs/vault.md", r"a token of about 6,000\.", 8000 < envelope_length(6000) <= LEAST_LENGTH),
        ("docs/vault.md", r"A token of 100 characters becomes 284\.", envelope_length(100) == 284),
        ("docs/vault.md", r"8,735 characters, which become 11,797\.", envelope_length(8735) == 11797),
        ("docs/vault.md", r"younger than 60 seconds", timedelta(seconds=60) == REFUSED_TOO_SOON),
        ("CHANGELOG.md", r"A look waits 5 s at most", LOCK_TIMEOUT == "5s"),
    ],
)
def test_a_default_in_prose_is_true(page: str, claim: str, holds: bool | tuple[str, object]) -> None:
    """Where a page tells a default in its own words, these are true."""
    assert re.search(claim, re.sub(r"\s+", " ", text_of(ROOT / page)))
    assert holds is True or holds in set(defaults(AccountLinker))


def calls(page: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls that stand in the text of a page, such as ``linker.unlink(bind, user_id=...)``."""
    for span in SPAN.findall(prose_of(page)):
        try:
            tree = ast.parse(span.strip("`").removeprefix("await "), mode="eval")
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                yield ast.unparse(node.func).rpartition(".")[2], node


def signatures() -> dict[str, list[inspect.Signature]]:
    """The signatures of what has a name: several, where a linker and its grants share one."""
    found: dict[str, list[inspect.Signature]] = {}
    others = {
        **{one.__name__: one for one in (watch, FakeProvider)},
        **dict(inspect.getmembers(FakeProvider, inspect.isfunction)),
    }
    for name, called in [*PUBLIC.items(), *others.items()]:
        found.setdefault(name.rpartition(".")[2], []).append(inspect.signature(called))
    return found


@pytest.mark.parametrize("page", [page for page in EVERY_PAGE if page.name != "CHANGELOG.md"], ids=name_of)
def test_calls_in_prose_fit(page: Path) -> None:
    """A call in the text passes arguments that exist; what stands beside ``=...`` is the default."""
    known, wrong = signatures(), []
    for name, call in calls(page):
        given = {word.arg: word.value for word in call.keywords if word.arg}
        shape = any(isinstance(value, ast.Constant) and value.value is ... for value in given.values())
        constants = {
            word: value.value
            for word, value in given.items()
            if shape and isinstance(value, ast.Constant) and value.value is not ...
        }
        if name in known and not any(
            (given.keys() <= one.parameters.keys() or _ANY in {each.kind for each in one.parameters.values()})
            and all(one.parameters[word].default == value for word, value in constants.items())
            for one in known[name]
        ):
            wrong.append(ast.unparse(call))
    assert [] == wrong


def test_names_in_prose_exist() -> None:
    """A class that a page names is accountlink's, Python's, or one that the code of a page or of the project uses."""
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    known = set(re.findall(r"\w+", source + "".join(block.source for page in EVERY_PAGE for block in blocks_of(page))))
    known |= {*dir(builtins), *dir(sa.exc), *dir(sa.orm.exc)}
    told = {(name_of(page), name) for page in EVERY_PAGE for name in re.findall(_CLASS, prose_of(page))}
    assert set() == {(page, name) for page, name in told if name not in known}


def test_the_layout_is_the_layout() -> None:
    """CONTRIBUTING names each folder, and no file or folder that does not exist."""
    block = next(block.source for block in blocks_of(ROOT / "CONTRIBUTING.md") if not block.language)
    parent, shown = ROOT, set()
    for indent, name in re.findall(r"^( *)([\w./]+)(?: |$)", block, re.MULTILINE):
        parent = parent if indent else ROOT / name
        shown.add(parent / name if indent else ROOT / name)
    assert [] == [str(path) for path in sorted(shown) if not path.exists()]
    for folder in (ROOT / "src" / "accountlink", ROOT / "tests"):
        folders = {path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert folders <= shown


def test_the_readme_leads_on() -> None:
    """README names the pages of the way to a first application and its tests in order, and each names the next."""
    way = ["fastapi", "linking", "conflicts", "transfer", "unlinking", "testing"]
    numbered = re.findall(r"^\d\. \[[\w ]+\]\(docs/(\w+)\.md\): .+\.$", text_of(README), re.MULTILINE)
    assert way == numbered
    for page, following in itertools.pairwise(way):
        assert text_of(DOCS / f"{page}.md").endswith(f"Next: [{following}]({following}.md).\n")


def test_the_readme_names_every_task() -> None:
    """Each page about a task is one step from the README."""
    reached = set(re.findall(r"\]\(docs/([\w-]+)\.md", text_of(README)))
    assert {page.stem for page in DOCS.glob("*.md")} <= reached
