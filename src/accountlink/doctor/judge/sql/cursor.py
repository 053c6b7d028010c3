"""A place in the tokens of an SQL expression, and what can be told there without knowing its grammar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from accountlink.doctor.judge.sql.tokens import END, Sort, Token, Unreadable, brackets, lowered, tokenize

Part = TypeVar("Part")

NESTING: Final = 80
"""How deep expressions may be nested: some 400 of the 1,000 calls that Python allows."""
_NAMES: Final = (Sort.WORD, Sort.QUOTED, Sort.NAME)
_SECOND_WORDS: Final = {
    "character": "varying",
    "char": "varying",
    "bit": "varying",
    "double": "precision",
}


class Cursor:
    """A place in the tokens. What finds something else than it expects raises ``Unreadable``."""

    def __init__(self, sql: str, *, columns: Collection[str], dialect: str) -> None:
        """Stand at the beginning.

        Raises:
            Unreadable: The text cannot be split into tokens, or its brackets do not match.
        """
        self.dialect = dialect
        self.read: set[str] = set()
        """The columns that have been met."""
        self._columns = {lowered(name) if dialect == "sqlite" else name: name for name in columns}
        self._tokens = tokenize(sql, dialect=dialect)
        self._closing = brackets(self._tokens)
        self._position = 0
        self._end = len(self._tokens)
        self._nesting = 0

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or one behind it; ``END`` at the end of the brackets that are being read."""
        position = self._position + ahead
        return self._tokens[position] if position < self._end else END

    def at(self, *words: str) -> bool:
        """Whether the next tokens are these key words or symbols."""
        return all(
            token.text == word and token.sort in (Sort.WORD, Sort.SYMBOL)
            for token, word in ((self.peek(ahead), word) for ahead, word in enumerate(words))
        )

    def take(self) -> Token:
        """The next token, which is passed."""
        token = self.peek()
        self._position += token is not END
        return token

    def accept(self, *words: str) -> bool:
        """Pass these key words or symbols if they come next, and say whether they did."""
        found = self.at(*words)
        self._position += len(words) if found else 0
        return found

    def expect(self, *words: str) -> None:
        """Pass these key words or symbols."""
        if not self.accept(*words):
            raise Unreadable

    def all_of_it(self, read: Callable[[], Part]) -> Part | None:
        """Read up to the end, or pass all that is left; ``None`` if it cannot be read."""
        start = self._position
        with suppress(Unreadable):
            part = read()
            if self.peek() is END:
                return part
        self._mention(start)
        return None

    def group(self, read: Callable[[], Part], *, bracket: str = "(") -> Part | None:
        """Pass a pair of brackets, reading what stands in it; ``None`` if that cannot be read."""
        if not self.at(bracket):
            raise Unreadable
        closing, end = self._closing[self._position], self._end
        self._position, self._end = self._position + 1, closing
        try:
            return self.all_of_it(read)
        finally:
            self._position, self._end = closing + 1, end

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Count how deep expressions are nested."""
        if self._nesting >= NESTING:
            raise Unreadable
        self._nesting += 1
        try:
            yield
        finally:
            self._nesting -= 1

    def column(self, token: Token) -> str | None:
        """The column that a token names, if it names one; it counts as read."""
        if token.sort not in _NAMES:
            return None
        name = self._columns.get(lowered(token.text) if self.dialect == "sqlite" else token.text)
        if name is not None:
            self.read.add(name)
        return name

    def names(self) -> list[Token]:
        """Pass a name and what qualifies it: ``schema.table.column``."""
        names = [self._name()]
        while self.accept("."):
            names.append(self._name())
        return names

    def type_name(self) -> str:
        """Pass the name of a type: ``character varying(50)``, ``timestamp with time zone``, ``text[]``."""
        names = self.names()
        name = ".".join(part.text if part.sort is Sort.WORD else f'"{part.text}"' for part in names)
        second = _SECOND_WORDS.get(name)
        if second is not None and self.accept(second):
            name = f"{name} {second}"
        if self.at("("):
            opening = self._position
            self.group(self._skip)
            name += "(" + "".join(token.text for token in self._tokens[opening + 1 : self._position])
        for zone in ("with", "without"):
            if self.accept(zone, "time", "zone"):
                name = f"{name} {zone} time zone"
        while self.accept("[", "]"):
            name += "[]"
        return name

    def skip(self, *, bracket: str = "(") -> None:
        """Pass a pair of brackets, whatever stands in it; the columns there count as read."""
        self.group(self._skip, bracket=bracket)

    def _name(self) -> Token:
        token = self.take()
        if token.sort not in _NAMES:
            raise Unreadable
        return token

    def _skip(self) -> None:
        self._mention(self._position)
        self._position = self._end

    def _mention(self, start: int) -> None:
        for token in self._tokens[start : self._end]:
            self.column(token)
