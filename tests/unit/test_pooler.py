"""The options that an engine needs behind a transaction pooler."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from accountlink import ConfigurationError
from accountlink.database.pooler import pooler_options

SECRET = "do-not-tell"


def test_asyncpg_gets_no_cache_and_no_names() -> None:
    """Both caches are off, and each statement is the unnamed one."""
    arguments = pooler_options("postgresql+asyncpg://host/db")["connect_args"]
    assert (0, 0) == (arguments["statement_cache_size"], arguments["prepared_statement_cache_size"])
    assert "" == arguments["prepared_statement_name_func"]()


def test_psycopg_never_prepares() -> None:
    """Psycopg's threshold is off."""
    assert {"connect_args": {"prepare_threshold": None}} == pooler_options("postgresql+psycopg://host/db")


@pytest.mark.parametrize("url", ["postgresql+psycopg://host/db", sa.make_url("postgresql+asyncpg://host/db")])
def test_own_arguments_stay(url: str | sa.URL) -> None:
    """The application's own arguments for its driver are kept, and its dictionary is not changed."""
    own: dict[str, Any] = {"ssl": "require"}
    assert "require" == pooler_options(url, connect_args=own)["connect_args"]["ssl"]
    assert {"ssl": "require"} == own


def test_an_argument_to_the_contrary_is_refused() -> None:
    """An engine that would prepare after all is not made in silence."""
    with pytest.raises(ConfigurationError, match="statement_cache_size"):
        pooler_options("postgresql+asyncpg://host/db", connect_args={"statement_cache_size": 100})


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite://", f"postgresql://u:{SECRET}@host/db", f"postgresql+psycopg2://u:{SECRET}@h/db", SECRET]
)
def test_another_driver_is_refused(url: str) -> None:
    """A driver that is not supported is named, and nothing else of the URL."""
    with pytest.raises(ConfigurationError) as raised:
        pooler_options(url)
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
