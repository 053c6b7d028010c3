"""Read and rewrite the statement that made a table or an index, where SQLite keeps a property only there.

Source: SQLite documentation, "CREATE TABLE" and "CREATE INDEX"; the grammar in parse.y, which lets commas between a
table's constraints be left out.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from accountlink.doctor.catalogue.tokens import SQLITE, Token, closing, never_null, quoted, scan, split, top

_TABLE_CLAUSES: Final = frozenset({"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"})
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NO_TABLE: Final = "This is not a CREATE TABLE statement with a list of columns."


def fold(name: str) -> str:
    """Return a name as SQLite compares it: upper and lower case differ only beyond ASCII."""
    return name.translate(_LOWER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """Describe a ``UNIQUE`` or ``PRIMARY KEY`` clause, of a column or of the table.

    Attributes:
        name: The name of its constraint, if it has one.
        primary: Whether it is the primary key.
        columns: Its columns, as the clause spells them.
        first: The place of its first token, ``CONSTRAINT`` included.
        last: The place of its last token, ``ON CONFLICT …`` included.
    """

    name: str | None
    primary: bool
    columns: tuple[str, ...]
    first: int
    last: int


@dataclass(kw_only=True, slots=True)
class TableDDL:
    """Hold the properties that a ``CREATE TABLE`` states and no pragma tells; columns stand by their folded names.

    Attributes:
        keys: Its ``UNIQUE`` and ``PRIMARY KEY`` clauses.
        collations: The collation of each column that names one.
        generated: The expression of each generated column.
        required: The columns that a ``CHECK`` says ``IS NOT NULL`` of.
        options: What follows the list of columns: ``WITHOUT ROWID``, ``STRICT``.
    """

    keys: list[Key] = field(default_factory=list)
    collations: dict[str, str] = field(default_factory=dict)
    generated: dict[str, str] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    options: tuple[str, ...] = ()

    @property
    def without_rowid(self) -> bool:
        """The answer to whether the table has no rowid."""
        return "WITHOUT ROWID" in self.options


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexDDL:
    """Hold the properties that a ``CREATE INDEX`` states and no pragma tells.

    Attributes:
        parts: Its parts, without the collation and direction of each.
        where: The condition of a partial index, without ``WHERE``.
    """

    parts: tuple[str, ...]
    where: str | None


def read_table(table_sql: str) -> TableDDL:
    """Read a ``CREATE TABLE`` statement.

    Raises:
        ValueError: It is something else, or has no list of columns.
    """
    tokens = scan(SQLITE, table_sql)
    opening = _name_place(tokens) + 1
    end = closing(tokens, opening)
    told = TableDDL(options=tuple(" ".join(t.code for t in option) for option in split(tokens[end + 1 :], ",")))
    for first, last in _items(tokens, opening, end):
        _read_item(table_sql, tokens, first, last, told)
    return told


def read_index(index_sql: str) -> IndexDDL:
    """Read a ``CREATE INDEX`` statement.

    Raises:
        ValueError: It is something else.
    """
    tokens = scan(SQLITE, index_sql)
    codes = [token.code for token in tokens]
    if codes[:1] != ["CREATE"] or "INDEX" not in codes[1:3] or "ON" not in codes:
        raise ValueError("This is not a CREATE INDEX statement.")
    opening = codes.index("ON") + 2  # the table's name stands between
    end = closing(tokens, opening)
    where = tokens[end + 2 :] if codes[end + 1 : end + 2] == ["WHERE"] else ()
    parts = (_text(index_sql, _bare(part)) for part in split(tokens[opening + 1 : end], ","))
    return IndexDDL(parts=tuple(parts), where=_text(index_sql, where) if where else None)


def without_unique(table_sql: str, columns: Sequence[str]) -> str:
    """Return a ``CREATE TABLE`` without its ``UNIQUE`` constraints on exactly these columns, in this order.

    Where the same constraint stands there twice, as a column's and as the table's, both go: SQLite makes one index of
    them. All else stays as it is written; only comments within what goes, and right before it, go too.

    Raises:
        ValueError: There is none, or the statement is no ``CREATE TABLE`` with a list of columns.
    """
    wanted = [fold(column) for column in columns]
    unwanted = [
        key for key in read_table(table_sql).keys if not key.primary and wanted == [fold(name) for name in key.columns]
    ]
    if not unwanted:
        raise ValueError(f"There is no UNIQUE constraint on exactly ({', '.join(columns)}).")
    tokens = scan(SQLITE, table_sql)
    opening = _name_place(tokens) + 1
    cut = {place for key in unwanted for place in range(key.first, key.last + 1)}
    for first, last in _items(tokens, opening, closing(tokens, opening)):
        if cut.issuperset(range(first, last + 1)):
            cut.add(first - 1)  # the comma before it; a column always stands before the first constraint
    for place in sorted(cut, reverse=True):
        rest = table_sql[tokens[place].end :]
        gap = "" if rest[0].isspace() or rest[0] in ",)" else " "
        table_sql = table_sql[: tokens[place - 1].end] + gap + rest
    return table_sql


def renamed(table_sql: str, new_name: str) -> str:
    """Return a ``CREATE TABLE`` for a table of another name; a schema before the name stays.

    Raises:
        ValueError: It is something else, or has no list of columns.
    """
    tokens = scan(SQLITE, table_sql)
    name = tokens[_name_place(tokens)]
    return f"{table_sql[: name.start]}{quoted(new_name)}{table_sql[name.end :]}"


def _name_place(tokens: Sequence[Token]) -> int:
    """Return the place of the table's name; the list of columns opens right after it."""
    codes = [token.code for token in tokens]
    place = 2 if codes[1:2] in (["TEMP"], ["TEMPORARY"]) else 1
    if codes[:1] != ["CREATE"] or codes[place : place + 1] != ["TABLE"]:
        raise ValueError(_NO_TABLE)
    place += 1
    if codes[place : place + 3] == ["IF", "NOT", "EXISTS"]:
        place += 3
    if codes[place + 1 : place + 2] == ["."]:
        place += 2
    if codes[place + 1 : place + 2] != ["("]:
        raise ValueError(_NO_TABLE)
    return place


def _items(tokens: Sequence[Token], opening: int, end: int) -> Iterator[tuple[int, int]]:
    """Return the first and last place of each item between the commas of the list of columns."""
    first = opening + 1
    for item in split(tokens[first:end], ","):
        yield first, first + len(item) - 1
        first += len(item) + 1


def _read_item(sql: str, tokens: Sequence[Token], first: int, last: int, told: TableDDL) -> None:
    """Note what a column, or what one or more of the table's constraints say."""
    column = None if tokens[first].code in _TABLE_CLAUSES else tokens[first].name
    for place, token in top(tokens[first : last + 1]):
        here = first + place
        inside = _inside(tokens, here + 1)
        match token.code:
            case "UNIQUE" | "PRIMARY":
                told.keys.append(_key(tokens, here, first, column))
            case "CHECK":
                told.required |= {fold(name) for name in never_null(inside)}
            case "COLLATE" if column is not None:
                told.collations[fold(column)] = tokens[here + 1].name
            case "AS" if column is not None:
                told.generated[fold(column)] = _text(sql, inside)


def _key(tokens: Sequence[Token], place: int, earliest: int, column: str | None) -> Key:
    primary = tokens[place].code == "PRIMARY"
    last = place + primary  # PRIMARY is followed by KEY
    columns: tuple[str, ...] = () if column is None else (column,)
    if column is None:
        columns = tuple(part[0].name for part in split(_inside(tokens, last + 1), ","))
        last = closing(tokens, last + 1)
    if [token.code for token in tokens[last + 1 : last + 3]] == ["ON", "CONFLICT"]:
        last += 3
    named = place - 2 >= earliest and tokens[place - 2].code == "CONSTRAINT"
    name = tokens[place - 1].name if named else None
    return Key(name=name, primary=primary, columns=columns, first=place - 2 * named, last=last)


def _inside(tokens: Sequence[Token], opening: int) -> Sequence[Token]:
    """Return the tokens in the parentheses that open at a place, or none if no parenthesis opens there."""
    if opening >= len(tokens) or tokens[opening].code != "(":
        return ()
    return tokens[opening + 1 : closing(tokens, opening)]


def _bare(part: Sequence[Token]) -> Sequence[Token]:
    """Return an index's part without its order and its collation, which the pragma tells."""
    codes = [token.code for token in part]
    if codes[-2:] in (["NULLS", "FIRST"], ["NULLS", "LAST"]):
        part, codes = part[:-2], codes[:-2]
    if len(part) > 1 and codes[-1] in ("ASC", "DESC"):
        part, codes = part[:-1], codes[:-1]
    if len(part) > 2 and codes[-2] == "COLLATE":
        part = part[:-2]
    return part


def _text(sql: str, part: Sequence[Token]) -> str:
    return sql[part[0].start : part[-1].end]
