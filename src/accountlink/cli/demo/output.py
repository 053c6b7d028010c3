"""What the demo prints: rich on a terminal, plain text everywhere else."""

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Output(Protocol):
    """Where the story goes."""

    def heading(self, text: str) -> None:
        """Begin a part of the story."""

    def line(self, text: str) -> None:
        """Tell one thing that happened and was checked."""

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show rows."""


class PlainOutput:
    """Plain text, for pipes, logs and people who set NO_COLOR."""

    def heading(self, text: str) -> None:
        """Print the heading on a line of its own."""
        click.echo(f"\n{text}")

    def line(self, text: str) -> None:
        """Print the line, indented."""
        click.echo(f"   {text}")

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print columns padded to their widest cell."""
        lines = [headings, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            click.echo("   " + "  ".join(cells).rstrip())


class RichOutput:
    """Colours and a drawn table, for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        """Print the heading in bold."""
        self._console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False)

    def line(self, text: str) -> None:
        """Print the line; a URL stays in one piece."""
        self._console.print(f"   {escape(text)}", soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Draw a table."""
        table = Table(*headings)
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(table)


def output_for_terminal() -> Output:
    """Return rich output for a terminal, and plain output for anything else or under NO_COLOR.

    Source: https://no-color.org
    """
    console = Console()
    if console.is_terminal and not os.environ.get("NO_COLOR"):
        return RichOutput(console)
    return PlainOutput()
