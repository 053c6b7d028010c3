"""Define a finding of the doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from accountlink.doctor.judge.subject import Need
from accountlink.doctor.schema import Column, Index, RowPolicy

About = Need | Index | Column | RowPolicy | None
"""The object that a finding is about, as the doctor has it; ``None`` means the whole table, or the way to it."""


class Severity(Enum):
    """Name the severity of a finding."""

    ERROR = "error"
    """Links are refused, lost, doubled or shown to the wrong user."""
    WARNING = "warning"
    """It may come to that, or it could not be decided; the message says which."""


class Remedy(Enum):
    """Name the action of a migration on a finding, in the order in which findings are reported."""

    BLOCKED = "none is written before people have done something"
    KEY = "it makes the key"
    DROP = "it drops the index, once the right key stands"
    REQUIRE = "it makes the columns of the need NOT NULL"
    CLEAR = "it drops the index first, since that promises nothing"
    AT_ONCE = "it makes the constraint again, checked at once"
    BYTEWISE = "it lets the column compare byte by byte"
    ADDRESSES = "it brings the column's addresses into normal form"
    SETTLE = "it settles duplicates of the need"
    LONGER = "it lets the column take longer texts"
    POLICY = "it shows people the policy that they may want"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Describe one fault of a table, or of the way to it.

    Attributes:
        rule: The rule's stable name, such as ``stale-unique``; its page is ``docs/doctor/<rule>.md``.
        severity: How sure, and how bad.
        table: The table, with its schema where that is not the default one.
        object: The true name of the constraint, index, policy or column that it is about; ``None`` where something is
            missing.
        columns: The columns that it is about, in the index's order; an expression as the database writes it.
        message: What is wrong, and what comes of it. Never a value of a row.
        fix: What to do.
        about: What the doctor itself knows of that object; for its own use, as the next one.
        remedy: What a migration does about it; ``None``: it tells people what to do.
    """

    rule: str
    severity: Severity
    table: str
    object: str | None
    columns: tuple[str, ...]
    message: str
    fix: str
    about: About = field(default=None, repr=False, compare=False)
    remedy: Remedy | None = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The whole finding in one paragraph, for a migration's comments."""
        return f"{self.rule}: {self.message} {self.fix}"


def with_remedy(findings: Iterable[Finding], remedy: Remedy) -> list[About]:
    """Return what those findings are about that a migration answers in one way."""
    return [finding.about for finding in findings if finding.remedy is remedy]
