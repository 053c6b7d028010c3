"""What operators stand between: literals, columns, calls, ``CASE`` and ``CAST``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from accountlink.doctor.judge.sql import nodes, values
from accountlink.doctor.judge.sql.cursor import Cursor
from accountlink.doctor.judge.sql.nodes import Node
from accountlink.doctor.judge.sql.tokens import END, Sort, Token, Unreadable

_NO_OPERAND: Final = frozenset(
    {"and", "as", "between", "collate", "else", "end", "from", "in", "is", "like", "or", "select", "then", "when"}
)
_CIRCUMSTANCES: Final = frozenset(
    {
        "current_catalog",
        "current_date",
        "current_role",
        "current_schema",
        "current_time",
        "current_timestamp",
        "current_user",
        "localtime",
        "localtimestamp",
        "session_user",
        "system_user",
    }
)
"""Words that stand for a value which is no column's. PostgreSQL adds ``user``."""
_ROWIDS: Final = frozenset({"rowid", "oid", "_rowid_"})
_TRIMS: Final[dict[str, Callable[[str, str], str]]] = {
    "trim": str.strip,
    "btrim": str.strip,
    "ltrim": str.lstrip,
    "rtrim": str.rstrip,
}
_SIDES: Final = {"both": "btrim", "leading": "ltrim", "trailing": "rtrim"}
_STRICT: Final = frozenset(
    {
        "abs",
        "char_length",
        "date",
        "date_part",
        "date_trunc",
        "datetime",
        "julianday",
        "length",
        "md5",
        "replace",
        "strftime",
        "substr",
        "substring",
        "timezone",
        "unixepoch",
    }
)
"""Functions that make ``NULL`` of ``NULL``, and else something that is not computed here."""


class Operands(Cursor):
    """Reads what operators stand between."""

    def __init__(
        self, sql: str, *, columns: Collection[str], dialect: str, inexact: Collection[str], enums: Collection[str]
    ) -> None:
        """Stand at the beginning; arguments as for :func:`accountlink.doctor.judge.expressions.parse`.

        Raises:
            Unreadable: The text cannot be split into tokens, or its brackets do not match.
        """
        super().__init__(sql, columns=columns, dialect=dialect)
        self.inexact = frozenset(inexact)
        self.enums = frozenset(enums)

    @abstractmethod
    def expression(self, lowest: int = 1) -> Node:
        """Read an operand and the operators after it that bind at least as tightly as ``lowest``."""

    def operand(self) -> Node:
        """Read one operand, without operators before or after it."""
        token = self.peek()
        match token.sort:
            case Sort.SYMBOL:
                return self.group(self.expression) or nodes.unknown()
            case Sort.WORD:
                return self._word(token)
            case Sort.QUOTED | Sort.NAME:
                return self._named()
            case Sort.END:
                raise Unreadable
            case _:
                return self._literal(self.take())

    def items(self) -> list[Node]:
        """Read expressions up to the end, with commas between them."""
        items: list[Node] = []
        while self.peek() is not END:
            if items:
                self.expect(",")
            items.append(self.expression())
        return items

    def cast(self, node: Node, kind: str) -> Node:
        """``node::kind``."""
        return nodes.cast(node, kind, enums=self.enums, dialect=self.dialect)

    def _literal(self, token: Token) -> Node:
        match token.sort:
            case Sort.TEXT:
                return nodes.text(token.text)
            case Sort.NUMBER:
                return nodes.number(token.text)
            case _:
                return nodes.constant(values.Opaque(token.text, literal=True))

    def _word(self, token: Token) -> Node:
        match token.text:
            case "null":
                self.take()
                return nodes.constant(None)
            case "true" | "false" if self.dialect == "postgresql" or self.column(token) is None:
                self.take()
                return nodes.constant(token.text == "true")
            case "case":
                self.take()
                return self._case()
            case "cast" if self.peek(1) == Token(Sort.SYMBOL, "("):
                self.take()
                return self.group(self._cast) or nodes.unknown()
            case "array" if self.peek(1) == Token(Sort.SYMBOL, "["):
                self.take()
                self.skip(bracket="[")
                return nodes.unknown()
            case _ if token.text in _NO_OPERAND:
                raise Unreadable
            case _:
                return self._typed() or self._named()

    def _typed(self) -> Node | None:
        """Read a literal that begins with its type (``DATE '2026-01-31'``), if that is what comes next."""
        zoned = self.at("timestamp", "with") or self.at("timestamp", "without")
        if self.dialect == "sqlite" or not (zoned or self.peek(1).sort is Sort.TEXT):
            return None
        kind = self.type_name()
        if self.peek().sort is not Sort.TEXT:
            raise Unreadable
        return self.cast(nodes.text(self.take().text), kind)

    def _named(self) -> Node:
        names = self.names()
        name = names[-1]
        if self.at("("):
            return self._call(names)
        if len(names) == 1 and name.sort is Sort.WORD and self._circumstance(name.text):
            return nodes.unknown()
        column = self.column(name)
        if column is not None:
            return nodes.column(column, exact=column not in self.inexact)
        if len(names) == 1 and self.dialect == "sqlite" and name.sort is Sort.QUOTED:
            # A name in double quotes that is none counts as a text: sqlite.org/quirks.html, section 8.
            return nodes.unknown() if name.text.lower() in _ROWIDS else nodes.text(name.text)
        return nodes.unknown()

    def _circumstance(self, word: str) -> bool:
        return word in _CIRCUMSTANCES or (word == "user" and self.dialect == "postgresql")

    def _call(self, names: list[Token]) -> Node:
        builtin = len(names) == 1 or (len(names) == 2 and names[0].text == "pg_catalog")
        name = names[-1].text if builtin and names[-1].sort is Sort.WORD else ""
        if name == "extract":
            return self.group(self._extract) or nodes.unknown()
        side = _SIDES.get(self.peek(1).text) if name == "trim" and self.peek(2).text == "from" else None
        if side is not None:
            return self.group(partial(self._trim, side)) or nodes.unknown()
        parts = self.group(self.items)
        return nodes.unknown() if parts is None else self._applied(name, parts)

    def _applied(self, name: str, parts: list[Node]) -> Node:
        """The value of a function that is known by its name and its number of arguments."""
        exact = all(part.exact for part in parts)
        match name, len(parts):
            case "coalesce", count if count:
                return nodes.combine(values.coalesce, *parts)
            case "ifnull", 2:
                return nodes.combine(values.coalesce, *parts)
            case "nullif", 2:
                return nodes.combine(partial(values.nullif, exact=exact), *parts)
            case "iif", 3:
                return nodes.combine(values.case, *parts)
            case "lower" | "upper", 1:
                fold = values.lower if name == "lower" else values.upper
                return nodes.combine(partial(fold, turkish=self.dialect == "postgresql"), *parts)
            case "trim" | "btrim" | "ltrim" | "rtrim", 1:
                return nodes.combine(partial(values.stripped, strip=_TRIMS[name]), *parts)
            case _ if name in _STRICT and parts:
                return nodes.combine(values.strict, *parts, exact=False)
            case _:
                return nodes.unknown(*parts)

    def _trim(self, function: str) -> Node:
        self.take()
        self.expect("from")
        return self._applied(function, [self.expression()])

    def _extract(self) -> Node:
        self.take()
        self.expect("from")
        return nodes.combine(values.strict, self.expression())

    def _cast(self) -> Node:
        node = self.expression()
        self.expect("as")
        words = [self.type_name()]
        while self.dialect == "sqlite" and self.peek() is not END:  # any words make a type there
            words.append(self.type_name())
        return self.cast(node, " ".join(words))

    def _case(self) -> Node:
        subject = None if self.at("when") else self.expression()
        parts: list[Node] = []
        results: list[Node] = []
        while self.accept("when"):
            met = self.expression()
            parts.append(met if subject is None else nodes.comparison("=", subject, met, dialect=self.dialect))
            self.expect("then")
            results.append(self.expression())
            parts.append(results[-1])
        results.append(self.expression() if self.accept("else") else nodes.constant(None))
        self.expect("end")
        if not parts:
            raise Unreadable
        return nodes.combine(values.case, *parts, results[-1], exact=all(result.exact for result in results))
