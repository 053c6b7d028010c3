"""The rules, one to a file: each looks at a case and says what it finds. Pure, and independent of each other.

A rule is a module of this folder with its name, ``RULE``, and a function ``find``. Its page in the documentation has
its name. Nothing else lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.findings import Finding, Remedy

_MODULES: Final = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]

RULES: Final[dict[str, Callable[[Case], Iterable[Finding]]]] = {module.RULE: module.find for module in _MODULES}
"""The rules by name. ``unsafe-pooling`` is not about a table: see :mod:`accountlink.doctor.pooling`."""

_ORDER: Final = (*Remedy, None)


def judge_by_all(case: Case) -> tuple[Finding, ...]:
    """Apply every rule; a finding that keeps the table from being judged is reported alone."""
    found = [finding for find in RULES.values() for finding in find(case)]
    found.sort(key=lambda finding: _ORDER.index(finding.remedy))
    return tuple(finding for finding in found if finding.remedy is Remedy.BLOCKED) or tuple(found)
