"""Describe, as plain values, what a mapping and its policy demand of a table's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import sqlalchemy as sa

Value: TypeAlias = bool | int | str | None
"""The type of a value of a column; ``None`` is ``NULL``."""
Row: TypeAlias = Mapping[str, Value]
"""The type of a model row: values by column."""


class Tokens(Enum):
    """Name the form in which a linker stores tokens."""

    PLAIN = "plain text"
    """The linker has no vault."""
    SEALED = "envelopes"
    """The linker has a vault, which refuses plain text."""
    MIXED = "envelopes, and plain text until a backfill has ended"
    """The linker has a vault, which still reads plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Require that no two rows are equal in these columns.

    Attributes:
        columns: The columns, in the order of the index that the library would make.
        live: Whether dead rows do not count.
        reason: What it protects, for people.
        key: Whether it is the policy's key or its ownership: an index that has it and more is a form of it.
        absent: Columns whose ``NULL`` takes a row out: a grant that has not been redeemed.
        without: What happens if no index enforces it, for people.
    """

    columns: tuple[str, ...]
    live: bool
    reason: str
    key: bool = True
    absent: frozenset[str] = frozenset()
    without: str = "parallel callbacks can store two rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """Describe a unique key as the application's model declares it: a repair takes its name.

    Attributes:
        name: Its name.
        columns: Its columns, in order.
        live: Whether it has a condition.
        constraint: Whether it is a constraint, not a bare index.
    """

    name: str
    columns: tuple[str, ...]
    live: bool
    constraint: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Describe a table that the doctor is asked about, in the database's own names.

    Attributes:
        schema: Its schema; ``None`` where the search path finds it.
        table: Its name.
        needs: What must be unique in it.
        roles: The columns that accountlink reads or writes, by role.
        identifiers: Those that hold identifiers of others, which differ when one byte does. How the application tells
            its own users apart is its own affair.
        normal: The column that holds e-mail addresses in normal form, if the key compares one.
        lengths: How many characters a column must take at least.
        bits: How wide an integer column must be at least.
        exclusive: Whether the look-up of another user's row is part of the policy.
        soft: Whether rows are marked dead instead of deleted.
        blocked_reasons: Reasons of unlinking that mean something to the policy.
        declared: Unique keys that the application's model declares.
        newest_by: Columns by which the newest of several rows is found, the first that decides.
        empty: What stands for no credential where ``NULL`` cannot, by the role of the credential's column.
        tokens: The form in which the linker of the table stores tokens; ``None``: no linker was given.
        token_columns: The columns of tokens in which the form of a token can be seen, because no type of the
            application's converts it.
    """

    schema: str | None
    table: str
    needs: tuple[Need, ...]
    roles: Mapping[str, str]
    identifiers: frozenset[str] = frozenset()
    normal: str | None = None
    lengths: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    exclusive: bool = False
    soft: bool = False
    blocked_reasons: frozenset[str] = frozenset()
    declared: tuple[Declared, ...] = ()
    newest_by: tuple[str, ...] = ()
    empty: Mapping[str, sa.ColumnElement[Any]] = field(default_factory=dict, compare=False)
    tokens: Tokens | None = None
    token_columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The table's name for people."""
        return self.table if self.schema is None else f"{self.schema}.{self.table}"

    @property
    def marks(self) -> frozenset[str]:
        """The columns that mark a row live or dead."""
        return frozenset(self.roles[role] for role in ("deleted_at", "active") if role in self.roles)

    @property
    def sealed(self) -> frozenset[str]:
        """The columns that have to have room for envelopes."""
        if self.tokens not in (Tokens.SEALED, Tokens.MIXED):
            return frozenset()
        return frozenset(self.roles[role] for role in ("access_token", "refresh_token") if role in self.roles)

    @property
    def live_sql(self) -> str:
        """The condition of a live row, for people; empty where every row is live."""
        marks = [f"{self.roles['deleted_at']} IS NULL"] if "deleted_at" in self.roles else []
        return " AND ".join([*marks, *([self.roles["active"]] if "active" in self.roles else [])])

    def is_live(self, row: Row) -> bool:
        """Say whether a row counts as a live link."""
        deleted_at, active = self.roles.get("deleted_at"), self.roles.get("active")
        if deleted_at is not None and row[deleted_at] is not None:
            return False
        return active is None or bool(row[active])
