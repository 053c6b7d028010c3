"""Hold what the database answered as plain values, by which pure functions decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic

from accountlink.values.outcomes import LinkedAccount, LinkId, UserId

EXPRESSION: Final = "(expression)"
"""The word for an expression among the columns of an index."""


class Step(Enum):
    """Name the next step of a call after a decision."""

    AGAIN = "run the statement again"
    CONFLICT = "answer that another user is the owner"
    OWNED = "answer that the claimant has the account already"
    MOVE = "let the link change hands"


@dataclass(frozen=True, kw_only=True)
class Claimed(Generic[UserId, LinkId]):
    """Hold the database's state of the link that a transfer token names.

    Attributes:
        named: The row of that id, live or dead, whoever has it.
        live: Whether that row is live.
        version: Its version, or its epoch in the ledger.
        table: The name of the table, with the schema in which it was read.
        own: A live row of the claimant's own for the account that the token is about, whatever its id.
        why: The reason, one of the policy's ``blocked_reasons``, for which their own dead row was removed.
    """

    named: LinkedAccount[UserId, LinkId] | None = field(default=None, repr=False)
    live: bool = False
    version: int | None = None
    table: str = ""
    own: LinkedAccount[UserId, LinkId] | None = field(default=None, repr=False)
    why: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept(Generic[UserId, LinkId]):
    """Hold one row of a user, live or dead, with the facts that decide whether a link restores it.

    Attributes:
        account: The row.
        key: The value on which a link of this user is unique.
        live: Whether it is live.
        blocked: Whether the reason of its removal forbids restoring it.
    """

    account: LinkedAccount[UserId, LinkId] = field(repr=False)
    key: object = field(repr=False)
    live: bool
    blocked: bool


class Trouble(Enum):
    """Name the meaning of a database error for the caller."""

    UNIQUE = "a unique constraint or index refused the write"
    DEFERRABLE = "a deferrable constraint cannot take part"
    SERIALIZATION = "a concurrent transaction won"
    STALE_PLAN = "the schema changed under a prepared statement"
    BUSY = "a time limit was reached"
    TIMEOUT = "the driver gave up waiting for an answer"
    LOST = "the connection failed"
    READ_ONLY = "the database takes no writes"
    VALUE = "a value cannot be sent to the database"
    NO_TABLE = "a table is missing, or something else that has no code of its own"
    OTHER = "none of the above"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Hold the facts of a database error: its meaning, and the objects that it names.

    Attributes:
        trouble: The meaning of the error.
        sqlstate: The database's code, if it gave one.
        schema: The schema of the table that a violation names, if it names one.
        table: That table.
        constraint: The constraint or index that a violation names.
        columns: The columns that a violation names (SQLite).
        error: The error itself, without parameters, details and tracebacks.
    """

    trouble: Trouble
    sqlstate: str | None = None
    schema: str | None = None
    table: str | None = None
    constraint: str | None = None
    columns: tuple[str, ...] = ()
    error: BaseException = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class UniqueIndex:
    """Describe a unique index by the facts that the catalogue has about it.

    Attributes:
        name: Its name, or ``None`` where the database gave it none.
        schema: The schema of its table; for a partition, of the partitioned table.
        table: Its table; for a partition, the partitioned table.
        columns: Its columns in order; an expression stands as ``(expression)``.
        row_security: Whether row-level security is on for the table.
        loose: Those of its columns of which two different texts may count as equal.
        reads: All columns that it is computed from, its expressions and its condition included.
        where: The condition of a partial index, as SQL over its table's columns.
    """

    name: str | None
    schema: str | None
    table: str
    columns: tuple[str, ...]
    row_security: bool = False
    loose: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    where: str | None = None


@dataclass(frozen=True, kw_only=True)
class Obstacle(Generic[UserId, LinkId]):
    """Hold the facts that explain a unique violation.

    Attributes:
        index: The violated index, if the catalogue still has it.
        ours: Whether it is on the table of links, and not on another that a trigger writes.
        is_key: Whether it enforces the policy's key or its ownership.
        owner: The row of the live owner, if that is another user.
        version: The version of the owner's row.
        table: The name of the table, with the schema in which it was read.
        own_live: Whether a live row of the user's own can be seen.
        dead: Whether a dead row of the account can be seen that the index counts.
        misspelt: Whether a row can be seen that the index counts, with another key that the index treats as equal.
        snapshot: Whether the transaction keeps one snapshot, so that it may not see the row that refused the write.
        rule: The doctor's rule for an index that forbids what the policy allows, or ``None`` if it forbids nothing.
    """

    index: UniqueIndex | None
    ours: bool
    is_key: bool
    owner: LinkedAccount[UserId, LinkId] | None = field(default=None, repr=False)
    version: int | None = None
    table: str = ""
    own_live: bool = False
    dead: bool = False
    misspelt: bool = False
    snapshot: bool = False
    rule: str | None = None
