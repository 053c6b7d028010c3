"""Writes a migration as a revision for Alembic."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from textwrap import indent, wrap
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from accountlink.doctor.repair.batches import Batch, Way, downgrade, upgrade
from accountlink.doctor.repair.operations import Repair
from accountlink.doctor.repair.script import commented

_WIDTH: Final = 88
_INDENT: Final = "    "
_CALL: Final = "op.execute("
_AUTOCOMMIT: Final = "with op.get_context().autocommit_block():"
_VERBATIM: Final = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's own
"""A dialect that does not double percent signs: what doubles them undoes it."""
_QUOTED: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_DOCUMENTED: Final = {
    "postgresql": (
        "Some statements cannot run in a transaction, and what came before them is committed first. Let env.py pass "
        "transaction_per_migration=True, so that this is never another migration."
    ),
    "sqlite": "Its statements run in transactions of their own, since some of them must not be in Alembic's.",
}


def alembic_revision(repair: Repair, *, revision: str, down_revision: str | None, created: datetime) -> str:
    """Write a migration as a module for the folder ``versions`` of Alembic.

    Args:
        repair: The migration.
        revision: The revision's own id.
        down_revision: The revision that it follows, or ``None`` for the first.
        created: When it was written.

    Returns:
        The whole module.
    """
    return "\n".join(_lines(repair, revision=revision, down_revision=down_revision, created=created)) + "\n"


def upgrade_lines(repair: Repair) -> list[str]:
    """Write the body of ``upgrade()``, without the indentation of the function; empty when there is nothing to run."""
    return list(_code(repair.dialect, upgrade(repair)))


def downgrade_lines(repair: Repair) -> list[str]:
    """Write the body of ``downgrade()`` as :func:`upgrade_lines` does."""
    return list(_code(repair.dialect, downgrade(repair)))


# -- the module -------------------------------------------------------------------------------------------------------


def _lines(repair: Repair, *, revision: str, down_revision: str | None, created: datetime) -> Iterator[str]:
    head = [f"Repair {repair.table}.", "", *wrap(_DOCUMENTED[repair.dialect], _WIDTH), ""]
    head += [f"Revision ID: {revision}", f"Revises: {down_revision or ''}".rstrip(), f"Create Date: {created}"]
    yield from ('"""' + _escaped("\n".join(head)).replace('"""', '\\"\\"\\"'), '"""', "")
    body, back = upgrade_lines(repair), downgrade_lines(repair)
    yield from ("import sqlalchemy as sa",) if any("sa.DDL(" in line for line in (*body, *back)) else ()
    yield from ("from alembic import op", "") if repair.steps else ()
    yield from (f"revision = {_literal(revision)}", f"down_revision = {_literal(down_revision)}")
    yield from ("branch_labels = None", "depends_on = None", "", "", "def upgrade() -> None:")
    yield f'{_INDENT}"""Repair what the doctor found."""'
    yield from _indented(body)
    for number, text in enumerate(repair.by_hand, 1):
        yield from ("", *([f"{_INDENT}# BY HAND, since no migration can decide it:"] if number == 1 else []))
        yield from _indented(commented(f"{number}. {text}", "#", _WIDTH - 4))
    yield from ("", "", "def downgrade() -> None:")
    yield f'{_INDENT}"""Take back what can be taken back."""'
    yield from _indented(back)


# -- statements -------------------------------------------------------------------------------------------------------


def _code(dialect: str, batches: Sequence[Batch]) -> Iterator[str]:
    """Write the statements, with transactions around them: of SQLite Alembic itself has none."""
    if dialect == "sqlite" and batches:
        yield _AUTOCOMMIT
        yield from _indented(line for batch in batches for line in _sqlite(batch))
        return
    for batch in batches:
        if batch.way is Way.ALONE:
            yield _AUTOCOMMIT
            yield from _indented(_statements(batch, depth=2))
        else:
            yield from _statements(batch, depth=1)


def _sqlite(batch: Batch) -> Iterator[str]:
    if batch.way is Way.TOGETHER:
        yield from (_execute("BEGIN IMMEDIATE"), "try:", *_indented(_statements(batch, depth=3)))
        yield from ("except BaseException:", *_indented((_execute("ROLLBACK"), "raise")), _execute("COMMIT"))
    else:
        yield from _statements(batch, depth=2)


def _statements(batch: Batch, *, depth: int) -> Iterator[str]:
    """Write calls that are as long as their depth allows, as formatters do."""
    for statement in batch.statements:
        yield from commented(statement.why, "#", _WIDTH - 12)
        call = _execute(statement.sql)
        if "\n" not in call and len(call) > _WIDTH - depth * len(_INDENT):
            call = f"{_CALL}\n{_INDENT}{call.removeprefix(_CALL).removesuffix(')')}\n)"
        yield call


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (indent(line, _INDENT) for line in lines)


def _execute(sql: str) -> str:
    """Run one statement as it is: neither a colon nor a quotation mark in it means anything to Python or SQLAlchemy."""
    if _reaches(sql) == sql:
        return _called(_CALL, sql, ")")
    return _called(f"{_CALL}sa.DDL(", sql.replace("%", "%%"), "))")  # whose colons mean nothing


def _reaches(text: str) -> str | None:
    """Return what the database gets of a text; ``None`` where SQLAlchemy finds a parameter in it."""
    clause = sa.text(text)
    return None if clause.compile().params else str(clause.compile(dialect=_VERBATIM))


def _called(call: str, text: str, end: str) -> str:
    if "\n" not in text or any("\n" in match.group() for match in _QUOTED.finditer(text)):
        return f"{call}{_literal(text)}{end}"  # a line break within quotation marks must not be indented
    body = indent(_escaped(text).replace('"""', '\\"\\"\\"'), _INDENT)
    return f'{call}\n{_INDENT}"""\n{body}\n{_INDENT}"""\n{end}'


def _literal(text: str | None) -> str:
    if text is None:
        return "None"
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + _escaped(text).replace("\n", "\\n").replace(quote, f"\\{quote}") + quote


def _escaped(text: str) -> str:
    """Write what stands between quotation marks, these and line breaks aside."""
    return "".join(c if c == "\n" or (c.isprintable() and c != "\\") else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
