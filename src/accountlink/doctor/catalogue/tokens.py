"""SQL as tokens: enough to find a clause without being misled by quotes, comments and parentheses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Final, NamedTuple

_GAP: Final = r"(?P<gap>[ \t\n\f\r]+|--[^\n]*|/\*(?:.*?\*/|.*\Z))"
_REST: Final = r"""
    (?P<STRING>'(?:[^']|'')*') | (?P<NUMBER>[0-9][0-9A-Za-z_.]*) | (?P<SIGN>.)
"""
_WORD: Final = r"(?P<WORD>[A-Za-z_\x80-\U0010ffff][0-9A-Za-z_$\x80-\U0010ffff]*)"
_FLAGS: Final = re.DOTALL | re.VERBOSE
SQLITE: Final = re.compile(rf'{_GAP}|{_WORD}|(?P<NAME>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*])|{_REST}', _FLAGS)
"""The tokens of SQLite, as sqlite3GetToken() finds them.

Brackets quote too, and every character beyond ASCII is part of a word.
"""
POSTGRESQL: Final = re.compile(rf'{_GAP}|{_WORD}|(?P<NAME>"(?:[^"]|"")*")|{_REST}', _FLAGS)
"""The tokens of the text that the server itself writes.

It doubles quotes and backslashes, and never quotes by dollars.
"""

_VALUES: Final = frozenset({"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "FALSE", "NOT", "NULL", "TRUE"})
"""The words that are no column, even where there is a column that is called so in quotes."""
_NOT_NULL: Final = (("IS", "NOT", "NULL"), ("NOT", "NULL"), ("NOTNULL",))
_LOOSE: Final = frozenset({"OR", "BETWEEN", "CASE"})
"""The words by which an ``AND`` beside them does not join two conditions that must both hold."""


class Kind(Enum):
    """Name the kinds of a token."""

    WORD = auto()
    """A keyword or an unquoted name."""
    NAME = auto()
    """A quoted name."""
    STRING = auto()
    NUMBER = auto()
    SIGN = auto()


class Token(NamedTuple):
    """Hold a token and its place in the text."""

    kind: Kind
    text: str
    start: int
    end: int

    @property
    def code(self) -> str:
        """The token in upper case, to compare with keywords and signs; a quoted one keeps its quotes."""
        return self.text.upper()

    @property
    def name(self) -> str:
        """The name that it is, unquoted. SQLite takes a string for a name where it needs one."""
        if self.kind not in (Kind.NAME, Kind.STRING):
            return self.text
        mark = self.text[0]
        return self.text[1:-1] if mark == "[" else self.text[1:-1].replace(mark * 2, mark)


def quoted(name: str) -> str:
    """Return a name in double quotes, as both databases take it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def scan(pattern: re.Pattern[str], sql: str) -> list[Token]:
    """Cut SQL into tokens; white space and comments are left out."""
    found = []
    for match in pattern.finditer(sql):
        kind = str(match.lastgroup)
        if kind != "gap":
            found.append(Token(Kind[kind], match[0], match.start(), match.end()))
    return found


def top(tokens: Sequence[Token]) -> Iterator[tuple[int, Token]]:
    """Give the tokens outside all parentheses with their places, and of each pair the parenthesis that opens."""
    depth = 0
    for place, token in enumerate(tokens):
        if token.code == ")":
            depth -= 1
        elif depth == 0:
            yield place, token
        if token.code == "(":
            depth += 1


def closing(tokens: Sequence[Token], opening: int) -> int:
    """Return the place of the parenthesis that closes the one at a place.

    Raises:
        ValueError: There is none.
    """
    depth = 0
    for place in range(opening, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place].code, 0)
        if depth == 0:
            return place
    raise ValueError("A parenthesis is not closed.")


def split(tokens: Sequence[Token], code: str) -> list[Sequence[Token]]:
    """Split at a keyword or sign, wherever it stands outside all parentheses."""
    places = [place for place, token in top(tokens) if token.code == code]
    return [tokens[a + 1 : b] for a, b in zip([-1, *places], [*places, len(tokens)], strict=True)]


def conjuncts(condition: Sequence[Token]) -> list[Sequence[Token]]:
    """Split a condition into those that must all hold: what ``AND`` joins, without the parentheses around it."""
    while condition and condition[0].code == "(" and closing(condition, 0) == len(condition) - 1:
        condition = condition[1:-1]
    joined = [] if any(token.code in _LOOSE for _, token in top(condition)) else split(condition, "AND")
    if len(joined) < 2:
        return [condition]
    return [inner for each in joined for inner in conjuncts(each)]


def never_null(condition: Sequence[Token]) -> frozenset[str]:
    """Return the names that a condition says ``IS NOT NULL`` of, for sure: as all of it, or joined by ``AND``."""
    return frozenset(each[0].name for each in conjuncts(condition) if _says_not_null(each))


def _says_not_null(condition: Sequence[Token]) -> bool:
    if tuple(token.code for token in condition[1:]) not in _NOT_NULL:
        return False
    subject = condition[0]
    return subject.kind is Kind.NAME or (subject.kind is Kind.WORD and subject.code not in _VALUES)
