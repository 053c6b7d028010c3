"""Ids that are read from text, as each driver would have returned them from their own column."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.dialects.sqlite import aiosqlite

from accountlink.tables.id_text import reader

UUID_TEXT = "0f8fad5b-d9cb-469f-a165-70867728950e"
DIALECTS: dict[str, Any] = {
    "asyncpg": asyncpg.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy's
    "psycopg": psycopg.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy's
    "sqlite": aiosqlite.dialect(),
}
EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@EACH
@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (sa.Integer(), "-7", -7),
        (sa.BigInteger().with_variant(sa.Integer(), "sqlite"), "7", 7),
        (postgresql.DOMAIN("number", sa.Integer()), "7", 7),
        (sa.Numeric(20, 0), "12345678901", Decimal(12345678901)),
        (sa.Text(), " as it is ", " as it is "),
        (sa.Uuid(), UUID_TEXT, UUID(UUID_TEXT)),
        (sa.Uuid(), UUID(UUID_TEXT).hex, UUID(UUID_TEXT)),
        (sa.Uuid(native_uuid=False), UUID_TEXT, UUID(UUID_TEXT)),
        (sa.Uuid(as_uuid=False), UUID_TEXT, UUID_TEXT),
    ],
)
def test_a_text_is_read_as_its_columns_value(dialect: sa.Dialect, kind: Any, text: str, expected: object) -> None:
    """The value and its type are those of the column, whatever the driver."""
    read = reader(kind, dialect)(text)
    assert expected == read
    assert type(expected) is type(read)


@EACH
def test_a_padded_column_is_padded_where_the_database_does_it(dialect: sa.Dialect) -> None:
    """PostgreSQL returns CHAR(5) with blanks, which the text of the id does not have."""
    assert ("ab" if dialect.name == "sqlite" else "ab   ") == reader(sa.CHAR(5), dialect)("ab")


@EACH
@pytest.mark.parametrize(
    ("kind", "text"),
    [*((sa.Integer(), text) for text in ("1_0", " 1", "+1", "01", "1.0", "", "alice")), (sa.Uuid(), "7")],
)
def test_a_text_of_another_kind_is_no_id(dialect: sa.Dialect, kind: Any, text: str) -> None:
    """A text that Python reads as a number, but that no number is written as, is refused."""
    with pytest.raises(ValueError, match=r"."):
        reader(kind, dialect)(text)
