"""Names the doctor's rule behind a unique index that refused a write."""

from __future__ import annotations

import sqlalchemy as sa

from accountlink.core.facts import UniqueIndex
from accountlink.core.uniqueness import judge
from accountlink.storage.schema import read_catalogue
from accountlink.storage.subject import Mapping, subject_of


def blocking_rule(connection: sa.Connection, mapping: Mapping, index: UniqueIndex) -> str | None:
    """The doctor's rule by which an index blocks what is allowed; ``None``: nothing can be told."""
    schema = connection.schema_for_object(mapping.table)
    table = read_catalogue(connection, mapping.table.name, schema=schema).table
    subject = subject_of(mapping, schema=schema)
    if table is None or any(table.column(name) is None for name in subject.roles.values()):
        return None
    found = next((known for known in table.indexes if known.unique and known.name == index.name), None)
    return None if found is None else judge(subject, table, found, dialect=connection.dialect.name).rule
