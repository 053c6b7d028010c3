"""Writes a migration as an SQL script, for ``psql`` or ``sqlite3``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import Final

from accountlink.doctor.repair.batches import Batch, Way, downgrade, upgrade
from accountlink.doctor.repair.operations import Repair

_WIDTH: Final = 110
_RUN: Final = {
    "postgresql": "psql -v ON_ERROR_STOP=1 -f this-file.sql",
    "sqlite": "sqlite3 -bail database.db < this-file.sql",
}
_STOPPING: Final = {"sqlite": (".bail on",)}
"""The lines that make the program itself stop at the first error, whatever options it was called with."""
_TITLES: Final = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}
_BEGIN: Final = {"postgresql": "BEGIN", "sqlite": "BEGIN IMMEDIATE"}
_HEADERS: Final = {
    "postgresql": (
        "Run it as the owner of the table, and without --single-transaction: what is built CONCURRENTLY cannot be in "
        "one.\nEach step says what it locks. Stopped after any statement, nothing that was protected is unprotected, "
        "with one exception: a key that would make the settling of duplicates fail goes before it, and its step says "
        "so. Run the doctor again: it writes what is left.\nConnect to the server itself, not through a transaction "
        "pooler: settings of the session must reach all statements."
    ),
    "sqlite": (
        "Other writers wait while a transaction lasts. Stopped before COMMIT, nothing has changed.\nIts first line is "
        "for the program sqlite3, which would go on after an error otherwise. Whatever else runs this must leave that "
        "line out, and stop at the first error."
    ),
}


def sql_script(repair: Repair) -> str:
    """Write a migration as a script.

    Args:
        repair: The migration.

    Returns:
        The script, with its downgrade as comments at the end, and a line break at its own end.
    """
    return "\n".join(_lines(repair)) + "\n"


def commented(text: str, mark: str, width: int = _WIDTH) -> Iterator[str]:
    """Write a text as comments, none of whose lines leaves them.

    Args:
        text: One or several paragraphs, each a line.
        mark: What begins a comment.
        width: How long a line is at most; a longer word stays whole.
    """
    for line in text.splitlines():
        for part in wrap(line, width - len(mark) - 1, break_long_words=False, break_on_hyphens=False) or [""]:
            yield f"{mark} {part}".rstrip()


def _lines(repair: Repair) -> Iterator[str]:
    yield from _STOPPING.get(repair.dialect, ()) if repair.steps else ()
    yield from commented(f"Repairs {repair.table} ({_TITLES[repair.dialect]}).", "--")
    if repair.steps:
        yield from commented(f"Read it, then run it: {_RUN[repair.dialect]}", "--")
        yield from commented(_HEADERS[repair.dialect], "--")
    else:
        yield "-- There is nothing that a migration could repair." if repair.by_hand else "-- Nothing to repair."
    yield from _by_hand(repair.by_hand)
    if not repair.steps:
        return
    yield ""
    yield from _run(repair.dialect, upgrade(repair))
    taken_back = downgrade(repair)
    yield from ("-- Downgrade", "-- ---------")
    if not taken_back:
        yield "-- Nothing of this can be taken back."
        return
    yield from ("-- What can be taken back, in this order:", "--")
    for text in (*_STOPPING.get(repair.dialect, ()), *_run(repair.dialect, taken_back)):
        yield from (f"-- {line}".rstrip() for line in text.split("\n"))


def _by_hand(texts: Sequence[str]) -> Iterator[str]:
    if texts:
        yield from ("--", "-- BY HAND, since no migration can decide it:")
    for number, text in enumerate(texts, 1):
        first, *rest = commented(text, "--")
        yield f"-- {number}. {first.removeprefix('-- ')}"
        yield from (line.replace("--", "--   ", 1) for line in rest)


def _run(dialect: str, batches: Iterable[Batch]) -> Iterator[str]:
    """Write the statements, with transactions around them."""
    for batch in batches:
        if batch.way is Way.TOGETHER:
            yield from (f"{_BEGIN[dialect]};", "")
        for statement in batch.statements:
            yield from commented(statement.why, "--")
            end = "\n;" if "--" in statement.sql.rpartition("\n")[2] else ";"  # a comment would swallow it
            yield from (f"{statement.sql}{end}", "")
        if batch.way is Way.TOGETHER:
            yield from ("COMMIT;", "")
