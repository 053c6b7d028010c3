"""Print for the commands: rich on a terminal, plain text everywhere else."""

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""The width at which plain text is wrapped."""
_INDENT = "   "


class Stream(Enum):
    """Name the streams that a text may go to."""

    OUT = "stdout"
    ERROR = "stderr"


class CannotWrite(Exception):
    """Raised when a stream does not take what a command prints: nobody reads it, or the disk is full.

    It is no ``OSError``, so that nothing takes it for an error of the database.

    Attributes:
        error: What the system said.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


@contextmanager
def writing() -> Iterator[None]:
    """Tell the errors of a stream from all others.

    Raises:
        CannotWrite: The stream did not take the text.
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(error) from None


def say(text: str) -> None:
    """Print a line on stdout.

    Raises:
        CannotWrite: It was not taken.
    """
    with writing():
        click.echo(text)


class Output(Protocol):
    """Write a command's text to a stream."""

    def heading(self, text: str) -> None:
        """Begin a part."""

    def line(self, text: str) -> None:
        """Print one line, which stays one."""

    def paragraph(self, text: str) -> None:
        """Print a text, wrapped."""

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show rows."""


class PlainOutput:
    """Write plain text, for pipes, logs and people who set NO_COLOR."""

    def __init__(self, stream: Stream = Stream.OUT) -> None:
        self._stream = stream

    def heading(self, text: str) -> None:
        """Print the heading on a line of its own."""
        self._print(f"\n{text}")

    def line(self, text: str) -> None:
        """Print the line, indented."""
        self._print(f"{_INDENT}{text}")

    def paragraph(self, text: str) -> None:
        """Print the text, indented, on lines that break between words only."""
        for line in textwrap.wrap(text, WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False):
            self.line(line)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print columns padded to their widest cell."""
        for line in aligned([headings, *rows]):
            self.line(line)

    def _print(self, text: str) -> None:
        click.echo(text, err=self._stream is Stream.ERROR)


class RichOutput:
    """Write colours and a drawn table, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        """Print the heading in bold, on one line of its own."""
        self._console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print the line; a URL stays in one piece."""
        self._console.print(f"{_INDENT}{escape(text)}", soft_wrap=True)

    def paragraph(self, text: str) -> None:
        """Print the text, indented, as wide as the terminal is."""
        self._console.print(Padding(Text(text), (0, 0, 0, len(_INDENT))))

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Draw a table."""
        table = Table(*headings)
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns are padded to their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def output_for_terminal() -> Output:
    """Return rich output for a terminal, and plain output for anything else or under NO_COLOR.

    Source: https://no-color.org
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH)  # FORCE_COLOR colours a pipe, too
    if console.is_terminal and not os.environ.get("NO_COLOR"):
        return RichOutput(console)
    return PlainOutput()
