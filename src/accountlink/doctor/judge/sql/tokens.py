"""The words of an SQL expression, as PostgreSQL and SQLite tell them apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Unreadable(Exception):
    """What stands here is beyond this reader. It never leaves the reader's modules."""


class Sort(Enum):
    """What a token is."""

    WORD = "a key word or a bare name, in lower case"
    QUOTED = "a name in double quotes"
    NAME = "a name in SQLite's other quotes"
    TEXT = "a text"
    NUMBER = "a number"
    CONSTANT = "a literal of another form, with its quotes"
    SYMBOL = "an operator or a bracket"
    END = "the end"


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        sort: What it is.
        text: What it says; of a text or a quoted name, what stands between the quotes.
    """

    sort: Sort
    text: str


END: Final = Token(Sort.END, "")

_WORD: Final = r"(?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)"
_NUMBER: Final = r"(?P<number>\.?[0-9](?:[eE][+-]|[A-Za-z0-9_.])*)"
_TEXT: Final = r"'(?P<text>(?:[^']|'')*+)'"
_GRAMMARS: Final = {
    "postgresql": re.compile(
        r"(?P<space>[ \t\n\r\f\v]+|--[^\n\r]*|/\*(?:(?!/\*|\*/).)*+\*/)"
        r"|[eE]'(?P<escaped>(?:[^'\\]|\\.|'')*+)'"
        r"|(?P<constant>(?:[bBxXnN]|[uU]&)'(?:[^']|'')*+')"
        r'|(?P<refused>[uU]&"|/\*|:=)'
        rf"|{_TEXT}"
        r'|"(?P<quoted>(?:[^"]|"")++)"'
        rf"|{_WORD}|{_NUMBER}"
        r"|(?P<symbol>::|[()\[\],.:]|(?:(?!--|/\*)[-+*/<>=~!@#%^&|`?])+)",
        re.DOTALL,
    ),
    "sqlite": re.compile(
        r"(?P<space>[ \t\n\r\f]+|--[^\n]*|/\*.*?\*/)"
        r"|(?P<constant>[xX]'[^']*+')"
        rf"|{_TEXT}"
        r'|"(?P<quoted>(?:[^"]|"")*+)"'
        r"|`(?P<ticked>(?:[^`]|``)*+)`|\[(?P<name>[^\]]*+)\]"
        rf"|{_WORD}|{_NUMBER}"
        r"|(?P<symbol>->>?|\|\||<<|>>|<=|>=|==|<>|!=|(?!/\*)[=<>+*/%&|~(),.-])",
        re.DOTALL,
    ),
}
"""PostgreSQL 15, section 4.1; sqlite.org/lang_keywords.html and SQLite's tokenize.c. What neither names is refused
altogether: a wrong guess there would shift all that follows."""
_SAME: Final = {"!=": "<>", "==": "="}
_OPEN: Final = {")": "(", "]": "["}
_LOWER: Final = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def lowered(name: str) -> str:
    """A name in lower case as the databases make it: ASCII's letters alone."""
    return name.translate(_LOWER)


def tokenize(sql: str, *, dialect: str) -> list[Token]:
    """Split an expression into tokens.

    Raises:
        Unreadable: It cannot be split with certainty, or the dialect is neither ``postgresql`` nor ``sqlite``.
    """
    if dialect not in _GRAMMARS:
        raise Unreadable
    tokens: list[Token] = []
    position = 0
    while position < len(sql):
        found = _GRAMMARS[dialect].match(sql, position)
        if found is None:
            raise Unreadable
        group, text = str(found.lastgroup), found[str(found.lastgroup)]
        position = found.end()
        if group == "symbol" and dialect == "postgresql":
            text = _operator(text)
            position = found.start() + len(text)
        if group != "space":
            tokens.append(_token(group, text, dialect))
    return tokens


def brackets(tokens: list[Token]) -> dict[int, int]:
    """Tell for each opening bracket where it is closed.

    Raises:
        Unreadable: They do not match.
    """
    closing: dict[int, int] = {}
    opened: list[int] = []
    for position, token in enumerate(tokens):
        if token.sort is not Sort.SYMBOL:
            continue
        if token.text in _OPEN.values():
            opened.append(position)
        elif token.text in _OPEN:
            if not opened or tokens[opened[-1]].text != _OPEN[token.text]:
                raise Unreadable
            closing[opened.pop()] = position
    if opened:
        raise Unreadable
    return closing


def _operator(text: str) -> str:
    """PostgreSQL 15, section 4.1.3: an operator ends in ``+`` or ``-`` only if it has one of certain signs too."""
    if set(text) & set("~!@#%^&|`?"):
        return text
    return text[0] + text[1:].rstrip("+-")


def _token(group: str, text: str, dialect: str) -> Token:
    match group:
        case "word":
            return Token(Sort.WORD, lowered(text))
        case "quoted":
            return Token(Sort.QUOTED, text.replace('""', '"'))
        case "ticked" | "name":
            return Token(Sort.NAME, text.replace("``", "`") if group == "ticked" else text)
        case "text" | "escaped":
            # What a backslash means is a matter of E'' and, in old databases, of a setting.
            plain = dialect == "sqlite" or "\\" not in text
            return Token(Sort.TEXT, text.replace("''", "'")) if plain else Token(Sort.CONSTANT, f"'{text}'")
        case "number":
            return Token(Sort.NUMBER, text)
        case "constant":
            return Token(Sort.CONSTANT, text)
        case "symbol":
            return Token(Sort.SYMBOL, _SAME.get(text, text) if (text, dialect) != ("==", "postgresql") else text)
        case _:
            raise Unreadable
