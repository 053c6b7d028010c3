"""``missing-vault``: sealed tokens in a table whose linker has no vault.

Such a linker writes plain text beside the envelopes, and gives an envelope out where an application reads the column
itself. The finding is a warning: another linker of the same table may have the vault, and a token of a provider may
begin like an envelope.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.judge.subject import Tokens

RULE: Final = "missing-vault"


def find(case: Case) -> Iterator[Finding]:
    """Find rows with envelopes, dead ones included."""
    sealed = case.rows.tokens
    if sealed.rows and case.subject.tokens is Tokens.PLAIN:
        yield case.finding(
            RULE,
            severity=Severity.WARNING,
            about=None,
            columns=sealed.columns,
            message=f"{counted(sealed.rows, 'row')} with a token that begins like an envelope of a vault, and this "
            "linker has no vault: it cannot read these tokens, and writes plain text beside them.",
            fix="Give the linker the vault whose keys sealed them: AccountLinker(vault=...).",
        )
