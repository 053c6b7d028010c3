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
_END: Final = ""
"""Ends a block, in the lines that Alembic's own printer takes."""
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
    """Write the body of ``upgrade()`` as Alembic's renderers return it.

    Args:
        repair: The migration.

    Returns:
        Statements and comments without indentation, a statement of several lines in one piece; an empty text ends a
        block. Empty when there is nothing to run.
    """
    return list(_code(repair.dialect, upgrade(repair)))


def downgrade_lines(repair: Repair) -> list[str]:
    """Write the body of ``downgrade()`` as :func:`upgrade_lines` does."""
    return list(_code(repair.dialect, downgrade(repair)))


# -- the module -------------------------------------------------------------------------------------------------------


def _lines(repair: Repair, *, revision: str, down_revision: str | None, created: datetime) -> Iterator[str]:
    head = [f"Repair the unique keys of {repair.table}.", "", *wrap(_DOCUMENTED[repair.dialect], _WIDTH), ""]
    head += [f"Revision ID: {revision}", f"Revises: {down_revision or ''}".rstrip(), f"Create Date: {created}"]
    yield from ('"""' + _escaped("\n".join(head)).replace('"""', '\\"\\"\\"'), '"""', "")
    body = [*printed(upgrade_lines(repair))]
    back = [*printed(downgrade_lines(repair))]
    yield from ("import sqlalchemy as sa",) if any("sa.DDL(" in line for line in (*body, *back)) else ()
    yield from ("from alembic import op", "") if repair.steps else ()
    yield from (f"revision = {_literal(revision)}", f"down_revision = {_literal(down_revision)}")
    yield from ("branch_labels = None", "depends_on = None", "", "", "def upgrade() -> None:")
    yield f'{_INDENT}"""Make the right keys, then drop the wrong ones."""'
    yield from body
    for number, text in enumerate(repair.by_hand, 1):
        yield from ("", *([f"{_INDENT}# BY HAND, since no migration can decide it:"] if number == 1 else []))
        yield from (f"{_INDENT}{line}" for line in commented(f"{number}. {text}", "#", _WIDTH - 4))
    yield from ("", "", "def downgrade() -> None:")
    yield f'{_INDENT}"""Take back what can be taken back."""'
    yield from back


def printed(lines: Iterable[str], *, depth: int = 1) -> Iterator[str]:
    """Indent the body of a function, and break calls that are too long, as formatters do.

    Args:
        lines: As :func:`upgrade_lines` returns them.
        depth: How deep the body stands.
    """
    for line in lines:
        if line == _END:
            depth -= 1
            continue
        here = depth - 1 if line.startswith("except ") else depth
        space = _INDENT * here
        if "\n" not in line and len(space + line) > _WIDTH and line.startswith(_CALL):
            line = f"{_CALL}\n{_INDENT}{line.removeprefix(_CALL).removesuffix(')')}\n)"  # noqa: PLW2901  # the same call
        yield indent(line, space)
        depth = here + (line.endswith(":") and not line.startswith("#"))


# -- statements -------------------------------------------------------------------------------------------------------


def _code(dialect: str, batches: Sequence[Batch]) -> Iterator[str]:
    """Write the statements, with transactions around them: of SQLite Alembic itself has none."""
    if dialect == "sqlite" and batches:
        yield _AUTOCOMMIT
    for batch in batches:
        statements = list(_statements(batch))
        if dialect == "sqlite" and batch.way is Way.TOGETHER:
            rollback = ("except BaseException:", _execute("ROLLBACK"), "raise")
            yield from (_execute("BEGIN IMMEDIATE"), "try:", *statements, *rollback, _END, _execute("COMMIT"))
        elif dialect == "postgresql" and batch.way is Way.ALONE:
            yield from (_AUTOCOMMIT, *statements, _END)
        else:
            yield from statements
    if dialect == "sqlite" and batches:
        yield _END


def _statements(batch: Batch) -> Iterator[str]:
    for statement in batch.statements:
        yield from commented(statement.why, "#", _WIDTH - 12)
        yield _execute(statement.sql)


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
