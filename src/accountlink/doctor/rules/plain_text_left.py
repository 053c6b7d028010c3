"""``plain-text-left``: tokens in plain text in columns that the linker's vault seals.

A vault seals what is written from then on. The tokens that were there before stay readable for everybody who can read
the database, until a backfill has sealed them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted
from accountlink.doctor.findings import Finding, Severity
from accountlink.doctor.judge.subject import Tokens

RULE: Final = "plain-text-left"


def find(case: Case) -> Iterator[Finding]:
    """Find rows with plain text, dead ones included."""
    left, tokens = case.rows.tokens, case.subject.tokens
    if not left.rows or tokens not in (Tokens.SEALED, Tokens.MIXED):
        return
    refused = tokens is Tokens.SEALED
    meaning = (
        "The vault refuses these tokens with CredentialsUnreadable."
        if refused
        else "The vault reads them (Plaintext.READ), and so does everybody who can read the database."
    )
    first = "Give the vault Plaintext.READ, so that they are read meanwhile, and run" if refused else "Run"
    yield case.finding(
        RULE,
        severity=Severity.ERROR if refused else Severity.WARNING,
        about=None,
        columns=left.columns,
        message=f"{counted(left.rows, 'row')} with a token in plain text, dead rows included, in a table whose tokens "
        f"are sealed. {meaning}",
        fix=f"{first} accountlink backfill, which seals them. No SQL can do that.",
    )
