"""Columns that are read so that no log of rows shows them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from accountlink.tables.concealing import concealed


class Turned(sa.types.TypeDecorator[str]):
    """A type of the application's own, which stores a text backwards."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value[::-1]

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value[::-1]


class Marked(sa.types.UserDefinedType[str]):
    """A type of the application's own, which the database works on."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.func.upper(column, type_=self)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(sa.Text(), "canary"), (sa.String(99), "canary"), (Turned(), "canary"), (Marked(), "CANARY")],
    ids=["text", "string", "turned", "marked"],
)
def test_a_concealed_column_reads_what_it_reads_without(
    kind: sa.types.TypeEngine[Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A28: the type's own code still runs, also in SQL; the value is equal, and no echo of rows shows it."""
    table = sa.Table("t", sa.MetaData(), sa.Column("token", kind), sa.Column("none", kind))
    engine = sa.create_engine("sqlite://", echo="debug", hide_parameters=True)
    query = sa.select(concealed(table.c.token).label("token"), concealed(table.c.none).label("none"))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"token": "canary"})
        row = connection.execute(query).one()
    engine.dispose()
    assert (expected, None) == tuple(row)
    assert expected not in repr(row)
    assert [] == [text for text in caplog.messages if expected in text]
    assert "Row ('**********', None)" in caplog.messages
