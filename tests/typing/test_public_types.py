"""The types that an application sees: a strict mypy reads what it would write, right and wrong."""

import os
import re
import sys
from pathlib import Path
from typing import Final

import pytest
from mypy import api

SAMPLE: Final = (Path(__file__).parent / "sample.py").read_text(encoding="utf-8")
BEFORE: Final = """
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session


async def mistake(
    bind: AsyncSession, user: UUID, identity: ProviderIdentity, tokens: TokenSet, sessions: Session,
    maker: async_sessionmaker[AsyncSession], linked: Linked[UUID, int], conflict: OwnershipConflict,
) -> None:
"""

MISTAKES: Final = {
    "an e-mail attribute that is a number": (
        "AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, email=Calendar.id)",
        "arg-type|call-overload",
    ),
    "an account id that is a moment": (
        "AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, account_id=Calendar.gone_at)",
        "arg-type|call-overload",
    ),
    "a moment that is a text": (
        "AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, deleted_at=Calendar.vendor_mail)",
        "arg-type|call-overload",
    ),
    "a flag that is a text": (
        "AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, active=Calendar.vendor)",
        "arg-type|call-overload",
    ),
    "a name instead of an attribute": (
        'AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, email="vendor_mail")',
        "arg-type|call-overload",
    ),
    "a misspelt role": (
        "AccountMapping(Calendar, policy=LinkPolicy(), user_id=Calendar.owner_id, emial=Calendar.vendor_mail)",
        "call-overload|call-arg",
    ),
    "no policy": ("AccountMapping(Cloud)", "call-overload|call-arg"),
    "a model without a user": ("AccountLinker(Calendar)", "type-var|arg-type|call-overload"),
    "a user of another type": ("await linker.link(bind, user_id=7, identity=identity)", "arg-type"),
    "a user as text": ("await linker.link(bind, user_id=str(user), identity=identity)", "arg-type"),
    "a user of another type, of a mapping": (
        "await AccountLinker(calendars).link(bind, user_id=7, identity=identity)",
        "arg-type|call-overload",
    ),
    "a link of another type": (
        'await linker.link(bind, user_id=user, identity=identity, expect="7")',
        "arg-type|call-overload",
    ),
    "user and link the wrong way round": ("await linker.unlink(bind, user_id=7, link_id=user)", "arg-type"),
    "a user by position": ("await linker.link(bind, user, identity)", "misc|call-arg"),
    "an identity by position": ('ProviderIdentity("google", "1")', "misc|call-arg"),
    "a verified e-mail as text": (
        'ProviderIdentity(provider="google", account_id="1", email_verified="false")',
        "arg-type|call-overload",
    ),
    "a dict for credentials": (
        'await linker.link(bind, user_id=user, identity=identity, credentials={"access_token": "a"})',
        "arg-type|call-overload",
    ),
    "a sessionmaker": ("await linker.link(maker, user_id=user, identity=identity)", "arg-type"),
    "a synchronous session": ("await linker.link(sessions, user_id=user, identity=identity)", "arg-type"),
    "an outcome that is not looked at": (
        "(await linker.link(bind, user_id=user, identity=identity)).account",
        "union-attr",
    ),
    "a token that may be absent": ("len(conflict.transfer_token)", "arg-type"),
    "a secret as text": ('"Bearer " + tokens.access_token', "operator"),
    "a secret that may be absent": ("tokens.refresh_token.reveal()", "union-attr"),
    "a changed outcome": ("linked.change = Change.UPDATED", "misc"),
    "a changed snapshot": ("linked.account.user_id = user", "misc"),
    "a key as text": ('LinkPolicy(key="email")', "arg-type"),
    "reasons that are numbers": ("LinkPolicy(removal=Removal.SOFT, blocked_reasons={7})", "arg-type"),
    "a naive clock's type": ("AccountLinker(Connection, clock=lambda: 7)", "arg-type|return-value|call-overload"),
    "a guard for another type of user": (
        "AccountLinker(AccountMapping(Cloud, policy=LinkPolicy()), guard_last=another_way_in)",
        "arg-type|call-overload",
    ),
}
UNHANDLED: Final = """
    match await linker.link(bind, user_id=user, identity=identity):
        case Linked():
            pass
        case rest:
            assert_never(rest)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what strict mypy reports for the sample and for each mistake in it."""
    directory = tmp_path_factory.mktemp("typing")
    bodies = {name: f"    {line}\n" for name, (line, _) in MISTAKES.items()} | {"an unhandled outcome": UNHANDLED}
    text, places = SAMPLE, {}
    for number, (name, body) in enumerate(bodies.items()):
        start = text.count("\n")
        text += BEFORE.replace("mistake", f"mistake_{number}") + body
        places[name] = range(start + 1, text.count("\n") + 1)
    (directory / "sample.py").write_text(SAMPLE, encoding="utf-8")
    (directory / "mistakes.py").write_text(text, encoding="utf-8")
    options = ["--strict", "--config-file=", "--python-executable", sys.executable, "--no-error-summary"]
    files = [str(directory / name) for name in ("sample.py", "mistakes.py")]
    out, err, _ = api.run([*options, "--cache-dir", os.devnull, *files])
    assert "" == err
    lines = [(int(m[1]), line) for line in out.splitlines() if (m := re.search(r"mistakes\.py:(\d+): error:", line))]
    said = {name: "\n".join(line for at, line in lines if at in where) for name, where in places.items()}
    return said | {
        "sample": "\n".join(line for line in out.splitlines() if "mistakes.py:" not in line),
        "elsewhere": "\n".join(line for at, line in lines if at < min(places[next(iter(places))])),
    }


def test_a_right_program_has_no_errors(report: dict[str, str]) -> None:
    """A program that links, matches and ends in ``assert_never`` is well typed, with the ids' types inferred."""
    assert "" == report["sample"]
    assert "" == report["elsewhere"]


@pytest.mark.parametrize(("name", "code"), [(name, code) for name, (_, code) in MISTAKES.items()], ids=MISTAKES)
def test_a_mistake_is_seen_before_it_runs(report: dict[str, str], name: str, code: str) -> None:
    """A mistake that would fail at run time, or worse would not, is an error of this kind for the type checker."""
    assert re.search(rf"\[({code})\]", report[name]), report[name] or "mypy saw nothing"


def test_a_match_that_forgets_the_conflict_is_seen(report: dict[str, str]) -> None:
    """A25: whoever handles success alone is told of the outcome that is left."""
    assert "OwnershipConflict" in report["an unhandled outcome"]
    assert "[arg-type]" in report["an unhandled outcome"]
