"""A migration as values: its operations in order, each with its reason and with what takes it back.

Whatever plans an operation makes a :class:`Step` of it; both renderers know nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Describe one operation of a migration: a statement.

    Attributes:
        sql: The statement, without a semicolon at its end.
        why: What it does and what it locks, for a reviewer: one or several lines.
        undo: The statements that take it back, in order; empty where nothing has to be, or nothing can be (then
            ``why`` says so).
        alone: Whether it, and its ``undo``, must run outside of a transaction (``CONCURRENTLY``). Neighbours that need
            not run in one transaction together.
        names: The indexes and constraints that it makes, drops or renames.
    """

    sql: str
    why: str
    undo: tuple[str, ...] = ()
    alone: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """Describe a migration that repairs what was found in one table.

    Attributes:
        dialect: ``postgresql`` or ``sqlite``.
        table: The table, for people.
        steps: What to run, in order. Stopped after any of them, the doctor finds what is left.
        by_hand: What no migration can decide, and what to do about it.
    """

    dialect: str
    table: str
    steps: tuple[Step, ...] = ()
    by_hand: tuple[str, ...] = ()
