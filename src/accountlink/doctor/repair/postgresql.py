"""The operations on the unique keys of a PostgreSQL table: what each says, what it locks, what takes it back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from accountlink.doctor.case import Case
from accountlink.doctor.repair.keys import IN_THE_WAY, Keys, NewKey
from accountlink.doctor.repair.names import Names, literal
from accountlink.doctor.repair.operations import Step
from accountlink.doctor.schema import Index, Owner, Relation

_CREATE_INDEX: Final = re.compile(r"CREATE (UNIQUE )?INDEX ")
_CONCURRENTLY: Final = (
    "Neither readers nor writers wait (SHARE UPDATE EXCLUSIVE), but it waits itself for all older transactions."
)
_A_MOMENT: Final = "All access to the table waits for a moment (ACCESS EXCLUSIVE)."


class KeyWriter:
    """Write the statements that make and drop the unique keys of one table."""

    def __init__(self, case: Case, names: Names, keys: Keys) -> None:
        self._keys = keys
        self._names = names
        self._spans = case.table.relation is Relation.PARTITIONED

    def cleared(self) -> Iterator[Step]:
        """Drop what failed builds left behind."""
        yield from map(self._drop_invalid, self._keys.invalid)

    def exchanged(self, new: Sequence[NewKey], old: Sequence[Index]) -> Iterator[Step]:
        """Make keys, then drop those in whose place they are."""
        yield from (self._create(key) for key in new if not key.stands)
        yield from self._guard([key for key in self._keys.new if key.first or key in new], old)
        for index in sorted(old, key=lambda index: index.owner is not Owner.NOTHING):
            yield self._drop(index)  # what waits politely comes first

    # -- new keys -----------------------------------------------------------------------------------------------------

    def _create(self, key: NewKey) -> Step:
        q, table = self._names.quote, self._names.table
        where = f" WHERE {key.where}" if key.where else ""
        distinct = " NULLS NOT DISTINCT" if key.instead_of is not None and not key.instead_of.nulls_distinct else ""
        definition = f"{q(key.name)} ON {table} ({self._names.listed(key.columns)}){key.included}{distinct}{where}"
        if self._spans:
            return Step(
                sql=f"CREATE UNIQUE INDEX {definition}",
                why=f"The right key: {key.reason}. ALL WRITERS WAIT (SHARE) while it is built in every partition: "
                "PostgreSQL builds no index of a partitioned table concurrently. For a large table, build it in each "
                "partition concurrently first and attach the parts to one that is made ON ONLY the parent.",
                undo=(f"DROP INDEX {self._names.qualified(key.name)}",),
                alone=True,
                names=(key.name,),
            )
        return Step(
            sql=f"CREATE UNIQUE INDEX CONCURRENTLY {definition}",
            why=f"The right key: {key.reason}. {_CONCURRENTLY} Where duplicates came in meanwhile it fails and leaves "
            "an invalid index behind; the doctor then begins with that.",
            undo=self._undo_create(key),
            alone=True,
            names=(key.name,),
        )

    def _undo_create(self, key: NewKey) -> tuple[str, ...]:
        if key.instead_of is not None:
            return ()  # it goes when the old constraint comes back
        if key.constraint:  # it has become one
            return (f"ALTER TABLE {self._names.table} DROP CONSTRAINT {self._names.quote(key.name)}",)
        return (f"DROP INDEX CONCURRENTLY {self._names.qualified(key.name)}",)

    def finished(self) -> Iterator[Step]:
        """Give each new key the form and the name that it has in the end."""
        for key in self._keys.new:
            if key.instead_of is not None:
                yield self._swap(key, key.instead_of)
            elif key.constraint and not self._spans:
                yield self._constrain(key)
            elif key.wanted != key.name:
                yield self._rename(key)

    def _constrain(self, key: NewKey) -> Step:
        name, wanted = self._names.quote(key.name), self._names.quote(key.wanted)
        table = self._names.table
        renamed = () if name == wanted else (f"ALTER TABLE {table} RENAME CONSTRAINT {wanted} TO {name}",)
        return Step(
            sql=f"ALTER TABLE {table} ADD CONSTRAINT {wanted} UNIQUE USING INDEX {name}",
            why=f"The model declares the key as a constraint: the index becomes one, and takes its name. {_A_MOMENT}",
            undo=renamed,
            alone=True,
            names=(key.name, key.wanted),
        )

    def _swap(self, key: NewKey, index: Index) -> Step:
        q, table = self._names.quote, self._names.table
        kind = "PRIMARY KEY" if index.owner is Owner.PRIMARY else "UNIQUE"
        replaced = f"ALTER TABLE {table} DROP CONSTRAINT {q(key.wanted)}, ADD CONSTRAINT {q(key.wanted)}"
        return Step(
            sql=f"{replaced} {kind} USING INDEX {q(key.name)}",
            why="The deferrable constraint gives its name to the same one that is checked at once, which stands "
            f"already. {_A_MOMENT} The downgrade builds the old one under that lock.",
            undo=() if index.definition is None else (f"{replaced} {index.definition}",),
            alone=True,
            names=(key.name, key.wanted),
        )

    def _rename(self, key: NewKey) -> Step:
        made, wanted = self._names.qualified(key.name), self._names.qualified(key.wanted)
        return Step(
            sql=f"ALTER INDEX {made} RENAME TO {self._names.quote(key.wanted)}",
            why="The name that the model declares is free now. Nobody waits (SHARE UPDATE EXCLUSIVE).",
            undo=(f"ALTER INDEX {wanted} RENAME TO {self._names.quote(key.name)}",),
            alone=True,
            names=(key.name, key.wanted),
        )

    # -- what goes ----------------------------------------------------------------------------------------------------

    def _guard(self, new: Sequence[NewKey], old: Sequence[Index]) -> Iterator[Step]:
        """Keep what follows from running where the new keys are not there, whatever runs the script.

        A statement in a read-only transaction fails, in every client; dropping concurrently can be part of no other.
        """
        made = [key.name for key in new if key.instead_of is None]
        back = [index.true_name for index in old if index.definition and index.valid]
        if made and old:
            yield Step(
                sql=self._stop_without(made),
                why="What comes next takes protection away. Should a new key not be there, or not be valid, because a "
                "statement above has failed and its error was passed over, then nothing more can be written in this "
                "session: all that follows fails, and the old keys stay. Otherwise it does nothing.",
                undo=(self._stop_without(back),) if back else (),
                alone=True,
            )

    def _stop_without(self, indexes: Sequence[str]) -> str:
        told = ", ".join(f"pg_catalog.to_regclass({literal(self._names.qualified(name))})" for name in indexes)
        table = f"pg_catalog.to_regclass({literal(self._names.table)})"
        valid = f"SELECT count(*) FROM pg_catalog.pg_index\n         WHERE indisvalid AND indrelid = {table}"  # noqa: S608  # quoted
        return (
            "SELECT pg_catalog.set_config('default_transaction_read_only', 'on', false)\n"
            f" WHERE ({valid}\n           AND indexrelid IN ({told})) < {len(indexes)}"
        )

    def _drop_invalid(self, index: Index) -> Step:
        if index.owner is not Owner.NOTHING:
            return self._drop_constraint(index, "Left invalid: it promises nothing, and may refuse rows all the same.")
        return self._drop_index(
            index,
            "Left behind by a failed build: it promises nothing, and may refuse rows all the same. Make sure that "
            "nobody is building it at this moment.",
        )

    def _drop(self, index: Index) -> Step:
        why = (
            f"The unique key on ({', '.join(index.columns)}) is not what the policy says. This is its own name, and "
            "without IF EXISTS a wrong one is an error."
        )
        if index in self._keys.in_the_way:
            why += IN_THE_WAY
        if index.owner is not Owner.NOTHING:
            return self._drop_constraint(index, why)
        again = index.definition or ""
        return self._drop_index(index, why, again if self._spans else _CREATE_INDEX.sub(_concurrent, again, 1))

    def _drop_index(self, index: Index, why: str, again: str = "") -> Step:
        how, locks = ("", _A_MOMENT) if self._spans else ("CONCURRENTLY ", _CONCURRENTLY)
        back = " The downgrade makes it again, and fails where rows use the freedom by then." if again else ""
        return Step(
            sql=f"DROP INDEX {how}{self._names.qualified(index.name)}",
            why=f"{why} {locks}{back}",
            undo=(again,) if again else (),
            alone=True,
            names=(index.name,),
        )

    def _drop_constraint(self, index: Index, why: str) -> Step:
        table, name = self._names.table, self._names.quote(index.true_name)
        again = f"ALTER TABLE {table} ADD CONSTRAINT {name} {index.definition}"
        if index.owner is Owner.PRIMARY:
            why += (
                "\nTHE TABLE HAS NO PRIMARY KEY AFTER THIS. Logical replication, if the table is published, refuses "
                "updates and deletes until it has a replica identity."
            )
        return Step(
            sql=f"ALTER TABLE {table} DROP CONSTRAINT {name}",
            why=f"{why} {_A_MOMENT} The downgrade builds it again under that lock, and fails where rows use the "
            "freedom by then.",
            undo=(again,) if index.definition and index.valid else (),
            alone=True,
            names=(index.true_name,),
        )


def _concurrent(match: re.Match[str]) -> str:
    return f"{match.group()}CONCURRENTLY "
