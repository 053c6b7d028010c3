"""Define the report of one look at a table."""

from __future__ import annotations

from dataclasses import dataclass

from accountlink.doctor.findings import Finding
from accountlink.doctor.repair.operations import Repair


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Hold the findings, and the migration that repairs them.

    Attributes:
        findings: What is wrong; empty when nothing is.
        repair: The migration; it is never run by the library.
        ignored: What is wrong, too, and was not to be reported.
    """

    findings: tuple[Finding, ...]
    repair: Repair
    ignored: tuple[Finding, ...] = ()
