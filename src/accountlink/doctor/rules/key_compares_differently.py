"""``key-compares-differently``: the database takes two account ids for one, or one address for two.

Account ids are compared byte by byte: ``abc`` and ``ABC`` may be two people's (OpenID Connect Core, section 2). E-mail
addresses are compared in one normal form, which Python makes; a row that holds another form is never found by its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from accountlink.doctor.case import Case, counted, how_to_drop, title
from accountlink.doctor.findings import Finding, Remedy
from accountlink.doctor.schema import Column, Kind

RULE: Final = "key-compares-differently"


def find(case: Case) -> Iterator[Finding]:
    """Find columns and indexes that do not compare as the policy does, and addresses out of normal form."""
    inexact = [column for name in sorted(case.subject.identifiers) if (column := _inexact(case, name)) is not None]
    yield from (_column(case, each) for each in inexact)
    for judgement in case.judgements:
        if judgement.rule != RULE or judgement.reads & {each.name for each in inexact}:
            continue
        index = judgement.index
        yield case.finding(
            RULE,
            about=index,
            remedy=Remedy.DROP,
            message=f"{title(index)} takes identifiers that differ in case for one: the second is refused.",
            fix=f"Create the key on the columns themselves, then {how_to_drop(case, index)}.",
        )
    column = None if case.subject.normal is None else case.table.column(case.subject.normal)
    if column is not None and (case.rows.plain or case.rows.odd):
        yield case.finding(
            RULE,
            about=column,
            remedy=Remedy.ADDRESSES,
            message=f"In {counted(case.rows.plain + case.rows.odd, 'row')} {column.name} holds an address that is not "
            "in normal form: no link finds it, and each makes a second row instead.",
            fix="Bring them into the form that normalize_email makes.",
        )


def _inexact(case: Case, name: str) -> Column | None:
    column = case.table.column(name)
    if column is None:
        return None
    text = column.kind is Kind.TEXT
    identifier_is_text = name != case.subject.roles.get("user_id")
    if (text and column.exact) or (not text and column.kind is not Kind.PADDED and not identifier_is_text):
        return None
    return column


def _column(case: Case, column: Column) -> Finding:
    if column.kind is Kind.PADDED:
        how = "pads every value with blanks"
    elif column.kind is Kind.TEXT:
        collation = f" under {column.collation}" if column.collation else ""
        how = f"takes texts that differ for equal{collation}"
    else:
        how = "holds no text, so that 1 and 01 are one account"
    return case.finding(
        RULE,
        about=column,
        remedy=Remedy.BYTEWISE,
        message=f"{column.name} ({column.type}) {how}: identifiers are compared byte by byte.",
        fix=f"Make {column.name} text with a collation that compares byte by byte.",
    )
