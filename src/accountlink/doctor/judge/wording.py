"""Read from an expression's words what the database does not say: columns, mentioned values, and provability.

Which columns it reads, which values it mentions, and whether model rows exhaust it: whether all that it can do shows at
those values. Its meaning is the database's affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from accountlink.doctor.catalogue.sqlite_ddl import fold
from accountlink.doctor.catalogue.tokens import POSTGRESQL, SQLITE, Token, conjuncts, scan
from accountlink.doctor.catalogue.tokens import Kind as Sort
from accountlink.doctor.schema import Column, Kind, Table

_LOGIC: Final = frozenset(
    {
        "AND", "OR", "NOT", "IS", "NULL", "ISNULL", "NOTNULL", "TRUE", "FALSE", "UNKNOWN", "DISTINCT", "FROM", "IN",
        "ANY", "ALL", "ARRAY", "CASE", "WHEN", "THEN", "ELSE", "END", "CAST", "AS", "BETWEEN", "COLLATE", "BOTH",
        "LEADING", "TRAILING",
    }
)  # fmt: skip
_FUNCTIONS: Final = frozenset(
    {"COALESCE", "NULLIF", "IFNULL", "IIF", "LOWER", "UPPER", "TRIM", "BTRIM", "LTRIM", "RTRIM", "CAST"}
)
_TEXT_TYPES: Final = frozenset({"TEXT", "CHARACTER", "VARYING", "VARCHAR", "BPCHAR"})
_OTHER_TYPES: Final = frozenset(
    {
        "INTEGER",
        "BIGINT",
        "SMALLINT",
        "BOOLEAN",
        "TIMESTAMP",
        "WITH",
        "WITHOUT",
        "TIME",
        "ZONE",
        "INT",
        "DATETIME",
        "DATE",
        "NUMERIC",
    }
)
_EQUALITY: Final = frozenset({"=", "==", "<>", "!="})
_ORDER: Final = frozenset({"<", "<=", ">", ">="})
_BYTEWISE: Final = frozenset({"c", "posix", "default", "binary"})
_NULL_TESTS: Final = (["IS", "NULL"], ["IS", "NOT", "NULL"], ["ISNULL"], ["NOTNULL"], ["NOT", "NULL"])
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_LIST: Final = re.compile(r"\{\w+(?:,\w+)*\}", re.ASCII)
_BRACKETS: Final = "()[],.:"


def parts_of(condition: str, dialect: str) -> list[str]:
    """Split a condition into those that must all hold, as they are written."""
    tokens = scan(_pattern(dialect), condition)
    return [condition[part[0].start : part[-1].end] for part in conjuncts(tokens) if part]


@dataclass(frozen=True)
class Wording:
    """Read the words of an expression over one table's columns.

    Attributes:
        sql: Its text.
        table: The table.
        dialect: ``postgresql`` or ``sqlite``.
    """

    sql: str
    table: Table
    dialect: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that it reads, those behind generated ones included; rather too many than too few."""
        return frozenset(column.name for each in (self, *self._generated) for _, column in each.named)

    @cached_property
    def mentions(self) -> tuple[str | int, ...]:
        """The texts and whole numbers that it mentions, each once, those behind generated columns included."""
        found: list[str | int] = []
        for token in (token for each in (self, *self._generated) for token in each.tokens):
            text = token.name
            if token.kind is Sort.NUMBER and _NUMBER.fullmatch(text):
                found.append(int(text))
            elif self._is_text(token):
                found += text[1:-1].split(",") if _LIST.fullmatch(text) else [text]
                found += [int(text)] if _NUMBER.fullmatch(text) else []
        return tuple(dict.fromkeys(found))

    @cached_property
    def plain(self) -> bool:
        """The answer to whether model rows show all that the words can do.

        Such words compare, join conditions and call a few known functions.
        """
        return all(each.plain_alone for each in (self, *self._generated))

    @cached_property
    def plain_alone(self) -> bool:
        """The answer to whether the words are plain, whatever the generated columns that they read do."""
        return all(self._is_plain(place) for place in range(len(self.tokens)))

    @cached_property
    def constant(self) -> bool:
        """The answer to whether the words have one value in every row.

        Such words have literals, operators and casts, and call no function.
        """
        literal = (Sort.NUMBER, Sort.STRING, Sort.SIGN)
        return all(token.kind in literal or self._code(place - 1) == ":" for place, token in enumerate(self.tokens))

    @cached_property
    def literal(self) -> str | None:
        """The text of the one literal that it is, whatever that is cast to."""
        words = [token for token in self.tokens if token.code not in "()"]
        if not words or words[0].kind not in (Sort.STRING, Sort.NUMBER, Sort.WORD) or not self.plain:
            return None
        flag = words[0].code in ("TRUE", "FALSE")
        alone = len(words) == 1 or [token.code for token in words[1:3]] == [":", ":"]
        return words[0].name if alone and (flag or words[0].kind is not Sort.WORD) else None

    def names(self, name: str) -> bool:
        """Say whether the expression contains a name."""
        return any(fold(token.name) == fold(name) for token in self.tokens)

    # -- tokens -------------------------------------------------------------------------------------------------------

    @cached_property
    def tokens(self) -> Sequence[Token]:
        """The tokens of its text."""
        sql = self.sql
        for column in self.table.columns if self.dialect == "postgresql" else ():
            if column.kind is Kind.ENUM:  # its type may be of any name, and needs no words here
                sql = sql.replace(f"::{column.type}", "::text")
        return scan(_pattern(self.dialect), sql)

    @cached_property
    def _by_name(self) -> Mapping[str, Column]:
        return {self._spelled(column.name): column for column in self.table.columns}

    def _spelled(self, name: str) -> str:
        return fold(name) if self.dialect == "sqlite" else name

    def _code(self, place: int) -> str:
        return self.tokens[place].code if 0 <= place < len(self.tokens) else ""

    @cached_property
    def named(self) -> Sequence[tuple[int, Column]]:
        """The places that name a column, not a type, a function or the part before a dot."""
        return [
            (place, column)
            for place, token in enumerate(self.tokens)
            if token.kind in (Sort.WORD, Sort.NAME)
            and (column := self._by_name.get(self._spelled(token.name))) is not None
            and self._code(place - 1) != ":"
            and self._code(place + 1) not in ("(", ".")
        ]

    @cached_property
    def _columns_at(self) -> Mapping[int, Column]:
        return dict(self.named)

    @cached_property
    def _generated(self) -> Sequence[Wording]:
        """The expressions of the generated columns that it reads, directly or through others, each once."""
        found: dict[str, Wording] = {}
        unread = [self]
        while unread:
            for _, column in unread.pop().named:
                if column.generated is not None and column.name not in found:
                    found[column.name] = Wording(column.generated, self.table, self.dialect)
                    unread.append(found[column.name])
        return tuple(found.values())

    def _is_text(self, token: Token) -> bool:
        """Say whether a token is a text; SQLite takes a name in double quotes for one where no column has it."""
        quoted = token.kind is Sort.NAME and self.dialect == "sqlite" and token.text[0] == '"'
        return token.kind is Sort.STRING or (quoted and self._spelled(token.name) not in self._by_name)

    # -- what model rows exhaust ---------------------------------------------------------------------------------------

    def _is_plain(self, place: int) -> bool:
        token = self.tokens[place]
        if (column := self._columns_at.get(place)) is not None:
            return self._plain_column(place, column)
        if self._is_text(token):
            touches = place > 0 and self.tokens[place - 1].end == token.start
            prefixed = touches and self.tokens[place - 1].kind is Sort.WORD  # E'…', X'…'
            odd_list = token.name.startswith("{") and not _LIST.fullmatch(token.name)
            return not (prefixed or odd_list or (self.dialect == "postgresql" and "\\" in token.text))
        match token.kind:
            case Sort.NUMBER:
                return _NUMBER.fullmatch(token.text) is not None
            case Sort.SIGN:
                return self._plain_sign(place)
            case Sort.WORD:
                return self._plain_word(place)
            case _:
                return self._code(place - 1) == "COLLATE" and fold(token.name) in _BYTEWISE

    def _plain_column(self, place: int, column: Column) -> bool:
        if self._null_test(place):
            return True
        return column.exact and column.kind is not Kind.OTHER

    def _null_test(self, place: int) -> bool:
        after = self._after(place)
        return any([self._code(after + n) for n in range(len(test))] == test for test in _NULL_TESTS)

    def _after(self, place: int) -> int:
        """Return the next place after a token and the parentheses that close there."""
        place += 1
        while self._code(place) == ")":
            place += 1
        return place

    def _plain_word(self, place: int) -> bool:
        code = self._code(place)
        called = self._code(place + 1) == "("
        if self._code(place - 1) == "COLLATE":
            return code.lower() in _BYTEWISE
        if code == "BETWEEN":
            before = place - (2 if self._code(place - 1) == "NOT" else 1)
            return self._whole(self._operand_before(before + 1))
        if code in _TEXT_TYPES:
            return not called
        if code in _OTHER_TYPES:
            return not called and (self._code(place - 1) != ":" or self._castable(place - 2))
        return code in _FUNCTIONS if called and code not in _LOGIC else code in _LOGIC

    def _castable(self, colons: int) -> bool:
        """Say whether the operand before ``::`` can be cast to a number, a boolean or a moment without an error."""
        before = self._operand_before(colons)
        literal = before >= 0 and self.tokens[before].kind in (Sort.STRING, Sort.NUMBER)
        return literal or self._code(before) in ("NULL", "TRUE", "FALSE") or self._whole(before)

    def _operand_before(self, place: int) -> int:
        place -= 1
        while self._code(place) == ")":
            place -= 1
        return place

    def _whole(self, place: int) -> bool:
        """Say whether a place has a whole number, or a column of whole numbers."""
        if not 0 <= place < len(self.tokens):
            return False
        column = self._columns_at.get(place)
        return column.kind is Kind.INTEGER if column else _NUMBER.fullmatch(self.tokens[place].name) is not None

    def _plain_sign(self, place: int) -> bool:
        if self._code(place) in _BRACKETS:
            return self._code(place) != "." or self._columns_at.get(place + 1) is not None
        first, last = place, place
        while self._joined(first - 1):
            first -= 1
        while self._joined(last):
            last += 1
        operator = "".join(token.text for token in self.tokens[first : last + 1])
        if operator in _ORDER:  # beyond whole numbers, what lies between two values is not known
            before, after = self._operand_before(first), last + 1
            while self._code(after) in ("(", "-"):
                after += 1
            return self._whole(before) and self._whole(after)
        if operator == "-":
            return place + 1 < len(self.tokens) and self.tokens[place + 1].kind is Sort.NUMBER and self._leads(place)
        return operator in _EQUALITY or operator == "||"

    def _joined(self, place: int) -> bool:
        """Say whether the token at a place and the next one belong to one operator."""
        if not 0 <= place < len(self.tokens) - 1:
            return False
        one, other = self.tokens[place], self.tokens[place + 1]
        signs = all(token.kind is Sort.SIGN and token.code not in _BRACKETS for token in (one, other))
        return signs and one.end == other.start

    def _leads(self, place: int) -> bool:
        """Say whether a minus is the sign of a number, not a subtraction."""
        before = self._code(place - 1)
        return before in ("", "(", ",") or before in _LOGIC or (not before.isalnum() and before != ")")


def _pattern(dialect: str) -> re.Pattern[str]:
    return SQLITE if dialect == "sqlite" else POSTGRESQL
