"""The grammar of SQL expressions, PostgreSQL's and SQLite's: what their operators bind, and what they mean."""

from __future__ import annotations

from functools import partial
from typing import Final

from accountlink.doctor.judge.sql import nodes, values
from accountlink.doctor.judge.sql.nodes import Node
from accountlink.doctor.judge.sql.operands import Operands
from accountlink.doctor.judge.sql.tokens import Sort, Token, Unreadable

_NOT: Final = 3
_OTHER: Final = 7
_SIGN: Final = 13
_COMPARISONS: Final = frozenset({"=", "<>", "<", "<=", ">", ">="})
_LIKES: Final = frozenset({"like", "ilike", "glob", "match", "regexp"})
_EVERYWHERE: Final = {"or": 1, "and": 2, "+": 8, "-": 8, "*": 9, "/": 9, "%": 9, "collate": 12}
_LEVELS: Final = {
    "postgresql": _EVERYWHERE
    | dict.fromkeys(("is", "isnull", "notnull"), 4)
    | dict.fromkeys(_COMPARISONS, 5)
    | dict.fromkeys(("in", "between", "like", "ilike", "not"), 6)
    | {"operator": _OTHER, "^": 10, "at": 11, "[": 14, "::": 15, ".": 15},
    "sqlite": _EVERYWHERE
    | dict.fromkeys(("=", "<>", "is", "isnull", "notnull", "in", "between", "not", *_LIKES), 4)
    | dict.fromkeys(("<", "<=", ">", ">="), 5)
    | dict.fromkeys(("||", "->", "->>"), 10),
}
"""How tightly an operator binds what stands before it; a ``NOT`` there binds like the word that it negates."""
_NO_OPERATORS: Final = frozenset({"(", ")", "]", ",", ":"})
_STRICT: Final = frozenset(
    {
        "+",
        "-",
        "*",
        "/",
        "%",
        "^",
        "~",
        "!~",
        "~*",
        "!~*",
        "~~",
        "!~~",
        "~~*",
        "!~~*",
        "->",
        "->>",
        "&",
        "|",
        "<<",
        ">>",
        "like",
        "ilike",
        "glob",
    }
)
"""Operators that make ``NULL`` of ``NULL``, and else something that is not computed here."""
_TRUTHS: Final = {
    Token(Sort.WORD, "true"): True,
    Token(Sort.WORD, "false"): False,
    Token(Sort.WORD, "unknown"): None,
}


class Reader(Operands):
    """Reads an expression. What cannot be read raises ``Unreadable``, which the nearest brackets around it stop."""

    def expression(self, lowest: int = 1) -> Node:
        """Read an operand and the operators after it that bind at least as tightly as ``lowest``."""
        with self.nested():
            node = self._prefixed()
            while (level := self._level()) >= lowest:
                node = self._continued(node, level)
            return node

    def _level(self) -> int:
        """How tightly the next token binds what stands before it; 0 if it is no operator."""
        token = self.peek()
        if token.sort not in (Sort.WORD, Sort.SYMBOL):
            return 0
        other = _OTHER if token.sort is Sort.SYMBOL and token.text not in _NO_OPERATORS else 0
        return _LEVELS[self.dialect].get(token.text, other)

    def _prefixed(self) -> Node:
        token = self.peek()
        if self.accept("not"):
            return _negated(self.expression(_NOT))
        if token.sort is not Sort.SYMBOL or token.text == "(":
            return self.operand()
        if token.text in _COMPARISONS or token.text in _NO_OPERATORS:
            raise Unreadable
        self.take()
        if token.text == "-":
            return nodes.combine(values.opposite, self.expression(_SIGN))
        signed = token.text == "+" or self.dialect == "sqlite"
        return nodes.unknown(self.expression(_SIGN if signed else _OTHER + 1))

    def _continued(self, node: Node, level: int) -> Node:
        if self.at("["):
            self.skip(bracket="[")
            return nodes.unknown(node)
        word = self.take().text
        match word:
            case "and" | "or":
                return self._chain(node, word, level)
            case "is":
                return self._is(node, level)
            case "isnull" | "notnull":
                return _null_test(node, negated=word == "notnull")
            case "in":
                return self._in(node, "=")
            case "between":
                return self._between(node, level)
            case "not":
                return self._not(node, level)
            case _ if word in _COMPARISONS:
                return self._comparison(node, word, level)
            case _:
                return self._changed(node, word, level)

    def _changed(self, node: Node, word: str, level: int) -> Node:
        """Read an operator that makes another value, and no condition, of what stands before it."""
        match word:
            case "::":
                return self.cast(node, self.type_name())
            case "collate":
                name = ".".join(part.text for part in self.names())
                return nodes.collated(node, name, dialect=self.dialect)
            case "at":
                self.expect("time", "zone")
                return nodes.combine(values.strict, node, self.expression(level + 1))
            case "operator":
                self.skip()
                return nodes.unknown(node, self.expression(level + 1))
            case ".":
                self.names()
                return nodes.unknown(node)
            case _:
                return self._operation(node, word, level)

    def _chain(self, node: Node, word: str, level: int) -> Node:
        parts = [node, self.expression(level + 1)]
        while self.accept(word):
            parts.append(self.expression(level + 1))
        return nodes.combine(values.all_of if word == "and" else values.any_of, *parts, exact=True)

    def _is(self, node: Node, level: int) -> Node:
        negated = self.accept("not")
        if self.accept("distinct", "from"):
            distinct = nodes.distinction(node, self.expression(level + 1))
            return _negated(distinct) if negated else distinct
        if self.dialect == "postgresql":
            return _null_test(node, negated=negated) if self.accept("null") else self._truth_test(node, negated=negated)
        other = self.expression(level + 1)
        if other.flag is not None:
            return _is_truth(node, wanted=other.flag, negated=negated)
        distinct = nodes.distinction(node, other)
        return distinct if negated else _negated(distinct)

    def _truth_test(self, node: Node, *, negated: bool) -> Node:
        word = self.take()
        if word not in _TRUTHS:
            raise Unreadable
        return _is_truth(node, wanted=_TRUTHS[word], negated=negated)

    def _not(self, node: Node, level: int) -> Node:
        if self.accept("in"):
            return self._in(node, "<>")
        if self.accept("between"):
            return _negated(self._between(node, level))
        if self.dialect == "sqlite" and self.accept("null"):
            return _null_test(node, negated=True)
        word = self.take()
        if word.sort is not Sort.WORD or word.text not in _LIKES:
            raise Unreadable
        return self._operation(node, word.text, level)

    def _in(self, node: Node, operator: str) -> Node:
        items = self.group(self.items)
        if items is None:
            return nodes.unknown(node)
        return nodes.membership(operator, node, *items, every=operator == "<>", dialect=self.dialect)

    def _between(self, node: Node, level: int) -> Node:
        low = self.expression(level + 1)
        self.expect("and")
        return nodes.interval(node, low, self.expression(level + 1), dialect=self.dialect)

    def _comparison(self, node: Node, operator: str, level: int) -> Node:
        every = self.at("all")
        if not self._quantified():
            return nodes.comparison(operator, node, self.expression(level + 1), dialect=self.dialect)
        items = self.group(self._array)
        if items is None:
            return nodes.unknown(node)
        return nodes.membership(operator, node, *items, every=every, dialect=self.dialect)

    def _operation(self, node: Node, operator: str, level: int) -> Node:
        if self._quantified():
            self.skip()
            return nodes.unknown(node)
        parts = [node, self.expression(level + 1)]
        if operator in _LIKES and self.accept("escape"):
            parts.append(self.expression(level + 1))
        if operator == "||":
            return nodes.combine(partial(values.concatenate, arrays=self.dialect == "postgresql"), *parts)
        return nodes.combine(values.strict if operator in _STRICT else values.nothing_known, *parts)

    def _quantified(self) -> bool:
        return self.dialect == "postgresql" and any(self.accept(word) for word in ("any", "some", "all"))

    def _array(self) -> list[Node]:
        """Read the members of ``ARRAY[...]`` or of ``'{...}'::type[]``, with casts of the whole."""
        literal = self.peek()
        items: list[Node] | None = None
        if self.at("("):
            items = self.group(self._array)
        elif self.accept("array"):
            items = self.group(self.items, bracket="[")
        elif literal.sort is Sort.TEXT and self.peek(1) == Token(Sort.SYMBOL, "::"):
            self.take()
            members = nodes.members(literal.text)
            items = None if members is None else [nodes.text(member) for member in members]
        if items is None:
            raise Unreadable
        while self.accept("::"):
            kind = self.type_name()
            if not kind.endswith("[]"):
                raise Unreadable
            items = [self.cast(item, kind.removesuffix("[]")) for item in items]
        return items


def _negated(node: Node) -> Node:
    return nodes.combine(values.negate, node, exact=True)


def _null_test(node: Node, *, negated: bool) -> Node:
    test = nodes.combine(values.is_null, node, exact=True)
    return _negated(test) if negated else test


def _is_truth(node: Node, *, wanted: bool | None, negated: bool) -> Node:
    test = nodes.combine(partial(values.is_truth, wanted=wanted), node, exact=True)
    return _negated(test) if negated else test
