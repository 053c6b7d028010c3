"""Describe one table of a database's catalogue, as plain values that the rules judge."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """Name the kind of value in a column, as far as it matters to comparison by keys."""

    TEXT = "text"
    """Of any length, or of at most :attr:`Column.length` characters."""
    PADDED = "padded text"
    """``char(n)``: filled up with blanks, which a comparison ignores."""
    INTEGER = "integer"
    BOOLEAN = "boolean"
    MOMENT = "moment"
    UUID = "uuid"
    ENUM = "enumeration"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """Describe a column, as the database has it.

    Attributes:
        name: Its name.
        type: Its type as the database writes it (``character varying(50)``).
        kind: What that holds; a domain's is that of the type below it.
        length: How many characters it takes at most, if it is bounded.
        bits: How wide an integer is, the sign included: 16, 32 or 64.
        nullable: Whether it takes ``NULL``; a validated ``CHECK (column IS NOT NULL)`` or a domain forbids it too.
        exact: Whether two different texts always compare as different: not so under a case-insensitive or
            non-deterministic collation, or for ``citext``.
        collation: The name of its collation, if it has one of its own.
        default: The expression that fills it when a row does not say, as the database writes it.
        generated: The expression of a generated column.
        identity: Whether the database numbers it (identity, ``serial``, SQLite's rowid).
        labels: What an enumeration consists of.
        any_length: The type below any domain, without a length, and its collation if that is not the type's own, as
            PostgreSQL writes them: every model value fits.
    """

    name: str
    type: str
    kind: Kind
    length: int | None = None
    bits: int | None = None
    nullable: bool = True
    exact: bool = True
    collation: str | None = None
    default: str | None = None
    generated: str | None = None
    identity: bool = False
    labels: tuple[str, ...] = ()
    any_length: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPart:
    """Describe one part of an index's key: a column, or an expression.

    Attributes:
        sql: The expression as the database writes it; for a column, its name, unquoted.
        column: The column's name, or ``None`` for an expression.
        exact: Whether two different texts always compare as different in this part.
        type: The type as which the index compares it, where that can be said (PostgreSQL).
        order: What follows ``ORDER BY`` and the value to put it in the index's own order: collation and operator.
    """

    sql: str
    column: str | None
    exact: bool = True
    type: str | None = field(default=None, compare=False)
    order: str = field(default="", compare=False)


class Owner(Enum):
    """Name the kind of object that an index belongs to, which decides how it is dropped."""

    NOTHING = "index"
    UNIQUE = "unique constraint"
    PRIMARY = "primary key"
    EXCLUSION = "exclusion constraint"


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignKey:
    """Describe a foreign key of another table that points to this one.

    Attributes:
        name: Its name, if it has one.
        schema: The schema of the table that it is on.
        table: That table.
        columns: Its columns there.
        targets: The columns of this table that it points to, in the same order.
        index: The unique index that it stands on, if the database tells.
        on_delete: What deleting the row does there: ``NO ACTION``, ``RESTRICT``, ``CASCADE``, ``SET NULL`` or
            ``SET DEFAULT``.
    """

    name: str | None
    schema: str | None
    table: str
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    index: str | None = None
    on_delete: str = "NO ACTION"


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """Describe an index of the table.

    Attributes:
        name: Its name.
        parts: Its key, in order; columns that are only included are left out.
        unique: Whether it forbids equal keys. An exclusion constraint of equalities alone does so too.
        where: The condition of a partial index as the database writes it, without ``WHERE``.
        valid: Whether it was built to its end; an invalid one may still refuse rows.
        deferrable: Whether its constraint may be checked at the end of a transaction.
        nulls_distinct: Whether two ``NULL`` count as different.
        owner: What it belongs to.
        constraint: The name of the constraint that it belongs to. SQLite does not tell it.
        definition: SQL that makes it again: all of ``CREATE INDEX …``, or what follows ``ADD CONSTRAINT name`` for one
            that belongs to a constraint; ``None`` for SQLite's automatic indexes, which only the table's own SQL makes.
        replica_identity: Whether logical replication identifies rows by it.
    """

    name: str
    parts: tuple[IndexPart, ...]
    unique: bool
    where: str | None = None
    valid: bool = True
    deferrable: bool = False
    nulls_distinct: bool = True
    owner: Owner = Owner.NOTHING
    constraint: str | None = None
    definition: str | None = None
    replica_identity: bool = False

    @property
    def true_name(self) -> str:
        """The name by which people and migrations know it: its constraint's, or its own."""
        return self.constraint or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The key of the index for people: columns by name, expressions as they are written."""
        return tuple(part.sql for part in self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPolicy:
    """Describe a policy of row-level security that applies to the role that reads the catalogue.

    Attributes:
        name: Its name.
        permissive: Whether it lets rows through; otherwise it takes rows away.
        command: ``ALL``, ``SELECT``, ``INSERT``, ``UPDATE`` or ``DELETE``.
        using: The condition on rows that are read, as the database writes it; ``None``: every row.
    """

    name: str
    permissive: bool
    command: str
    using: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSecurity:
    """Describe the row-level security of a table.

    Attributes:
        enabled: Whether it is on.
        active: Whether it applies to the role that reads the catalogue.
        policies: All policies of the table whose roles include the reading role; all of them for a role that passes
            row-level security by.
    """

    enabled: bool = False
    active: bool = False
    policies: tuple[RowPolicy, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Partitioning:
    """Describe the partitioning of a table.

    Attributes:
        columns: The columns of the partition key.
        expressions: Whether the partition key has expressions too: no unique index can span those.
        inherited: Whether it is not partitioned, but has children by inheritance, which no index of it spans.
    """

    columns: tuple[str, ...] = ()
    expressions: bool = False
    inherited: bool = False

    def spans(self, columns: Collection[str]) -> bool:
        """Say whether one unique index on these columns can span all partitions."""
        return not self.inherited and not self.expressions and set(self.columns) <= set(columns)


class Relation(Enum):
    """Name the kind of relation that a name stands for."""

    TABLE = "table"
    PARTITIONED = "partitioned table"
    PARTITION = "partition"
    VIEW = "view"
    FOREIGN = "foreign table"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Describe a table, as the catalogue has it.

    Attributes:
        schema: Its schema; ``None`` in SQLite's main database.
        name: Its name.
        relation: What it is.
        columns: Its columns, in order.
        indexes: All its indexes, those of constraints included.
        row_security: Its row-level security.
        partitioning: How it is split, if it is.
        referenced_by: Foreign keys that point to it.
        checks: Conditions that every row meets (PostgreSQL: the validated ones).
        rewritten: Whether a trigger may change rows as they are written.
        sql: The statement that made it (SQLite).
        triggers: The statements that made its triggers (SQLite).
        without_rowid: Whether it has no rowid (SQLite).
    """

    schema: str | None
    name: str
    relation: Relation = Relation.TABLE
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    row_security: RowSecurity = RowSecurity()
    partitioning: Partitioning | None = None
    referenced_by: tuple[ForeignKey, ...] = ()
    checks: tuple[str, ...] = ()
    rewritten: bool = False
    sql: str | None = None
    triggers: tuple[str, ...] = ()
    without_rowid: bool = False

    def column(self, name: str) -> Column | None:
        """Return the column of this name, or ``None`` if there is none."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """Hold the facts read from a database's catalogue.

    Attributes:
        dialect: ``postgresql`` or ``sqlite``.
        version: The server's version: 150018 for 15.18, 3040001 for 3.40.1.
        role: The role that read it (PostgreSQL).
        may: Which of ``SELECT``, ``INSERT``, ``UPDATE``, ``DELETE`` that role may do on the table.
        table: The table, or ``None`` where there is none of that name.
        taken: Which of the names asked about are taken in the table's schema.
    """

    dialect: str
    version: int
    role: str | None = None
    may: frozenset[str] = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
    table: Table | None
    taken: frozenset[str] = frozenset()
