"""Print the doctor's findings: one small function for each format, behind one interface."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import click

from accountlink.cli.output import Output, PlainOutput, Stream, aligned, output_for_terminal
from accountlink.doctor.findings import Finding, Severity

_NAMES: Final = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Hold the command's result.

    Attributes:
        tables: The tables that were looked at.
        dialect: The database that they are in.
        findings: What is wrong; empty when nothing is.
        ignored: How many more there are that were accepted.
        emitting: The command that writes the migration which repairs them; ``None`` where there is none to write.
    """

    tables: tuple[str, ...]
    dialect: str
    findings: tuple[Finding, ...]
    ignored: int = 0
    emitting: str | None = None

    @property
    def summary(self) -> str:
        """The summary for people, in one line."""
        where = f"{', '.join(self.tables)} ({_NAMES.get(self.dialect, self.dialect)})"
        ignored = f", {self.ignored} ignored" if self.ignored else ""
        if not self.findings:
            return f"No findings in {where}{ignored}."
        counts = {
            severity.value: sum(finding.severity is severity for finding in self.findings) for severity in Severity
        }
        told = ", ".join(_counted(count, noun) for noun, count in counts.items() if count)
        return f"{_counted(len(self.findings), 'finding')} in {where}: {told}{ignored}."


Show = Callable[[Examined, Stream], None]
"""The type of a function that prints the findings to a stream."""


def show_table(examined: Examined, stream: Stream) -> None:
    """Show people each finding's head, message and remedy, then a summary; drawn on a terminal, plain elsewhere."""
    output: Output = output_for_terminal() if stream is Stream.OUT else PlainOutput(stream)
    heads = aligned([_head(finding) for finding in examined.findings]) if examined.findings else []
    for finding, head in zip(examined.findings, heads, strict=True):
        output.heading(head)
        for line in f"{finding.message}\nFix: {finding.fix}".splitlines():
            output.paragraph(visible(line))
    if examined.emitting is not None:
        output.heading("To get the migration that repairs this, which you then read and run:")
        output.line(visible(examined.emitting))
    if examined.findings:
        click.echo(err=stream is Stream.ERROR)
    click.echo(visible(examined.summary), err=stream is Stream.ERROR)


def show_json(examined: Examined, stream: Stream) -> None:
    """Write one JSON object, for programs."""
    findings = [
        {
            "rule": finding.rule,
            "severity": finding.severity.value,
            "table": finding.table,
            "object": finding.object,
            "columns": list(finding.columns),
            "message": finding.message,
            "fix": finding.fix,
        }
        for finding in examined.findings
    ]
    click.echo(json.dumps({"ok": not findings, "findings": findings}, indent=2), err=stream is Stream.ERROR)


def show_github(examined: Examined, stream: Stream) -> None:
    """Write an annotation for each finding, then a summary, for GitHub Actions.

    Source: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands; what is escaped, and
    how, is in ``packages/core/src/command.ts`` of github.com/actions/toolkit.
    """
    for finding in examined.findings:
        title = _escaped_property(f"accountlink {finding.rule}")
        where = " ".join(_head(finding)[2:])
        text = _escaped(f"{where}: {finding.message}\nFix: {finding.fix}")
        click.echo(f"::{finding.severity.value} title={title}::{text}", err=stream is Stream.ERROR)
    if examined.emitting is not None:
        click.echo(f"To get the migration that repairs this: {visible(examined.emitting)}", err=stream is Stream.ERROR)
    click.echo(visible(examined.summary), err=stream is Stream.ERROR)


FORMATS: Final[Mapping[str, Show]] = {"table": show_table, "json": show_json, "github": show_github}
"""The formats, each by its name on the command line."""


def _head(finding: Finding) -> list[str]:
    columns = f"({', '.join(finding.columns)})" if finding.columns else "-"
    cells = (finding.severity.value, finding.rule, finding.table or "-", finding.object or "-", columns)
    return [visible(cell) for cell in cells]


def visible(text: str) -> str:
    """Return the text without control characters: a name in a database may hold what a terminal or CI would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
