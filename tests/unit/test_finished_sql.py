"""The finished SQL that stands above the code that builds it is what that code builds."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from accountlink import AccountMapping, GrantMapping, LinkPolicy, Removal, link_outbox, pending_credentials
from accountlink.grants.statements import GrantStatements
from accountlink.linking.events import link_events
from accountlink.linking.statements import Shape, Statements
from accountlink.tables.naming import Names
from accountlink.tables.pending import Pending
from accountlink.transfers.statements import TransferStatements
from accountlink.vault.statements import VaultStatements

DIALECT: Final[Any] = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]  # SQLAlchemy's
METADATA: Final = sa.MetaData()
LINKS: Final = sa.Table(
    "links",
    METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("user_id", sa.BigInteger),
    sa.Column("provider", sa.Text),
    sa.Column("account_id", sa.Text),
    sa.Column("deleted_at", sa.DateTime(timezone=True)),
    sa.Column("version", sa.BigInteger),
)
SOFT: Final = LinkPolicy(removal=Removal.SOFT)
MAPPING: Final[AccountMapping[Any, Any]] = AccountMapping(LINKS, policy=SOFT, version=None)
VERSIONED: Final[AccountMapping[Any, Any]] = AccountMapping(LINKS, policy=SOFT)
SEALED: Final[AccountMapping[Any, Any]] = AccountMapping(
    sa.Table(
        "links",
        sa.MetaData(),
        *(column._copy() for column in LINKS.columns),
        sa.Column("access_token", sa.Text),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True)),
    ),
    policy=SOFT,
)
PENDING: Final = pending_credentials(METADATA, name="pending")
OUTBOX: Final = link_outbox(METADATA, name="events")
GRANTS: Final = GrantMapping(
    sa.Table(
        "grants",
        METADATA,
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("grantor_id", sa.BigInteger),
        sa.Column("grantee_id", sa.BigInteger),
        sa.Column("token_hash", sa.Text, unique=True),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("active", sa.Boolean),
    )
)


def built() -> dict[str, tuple[Any, Any]]:
    """Each method that has its finished SQL above it, and the statement that it builds for one policy."""
    reading = link_events(MAPPING, OUTBOX, DIALECT)
    return {
        "arms": (Statements.arms, Statements(MAPPING).arms(Shape())),
        "move": (TransferStatements.move, TransferStatements(VERSIONED).move(Shape())),
        "redeem": (
            GrantStatements.redeem,
            GrantStatements(GRANTS, None, database_clock=True, pairs=False).redeem(limited=False),
        ),
        "tokens": (
            VaultStatements.tokens,
            VaultStatements(SEALED).tokens(("id",), "account_id", on_sqlite=False),
        ),
        "keeping": (Pending.keeping, Pending(PENDING, Names(LINKS, PENDING)).keep()),
        "locked": (type(reading).locked, reading.locked),
    }


EXACTLY: Final = re.compile(r"(\w+\.\w+) = (:\w+) AND CAST\(\1 AS TEXT\) COLLATE \"C\" = CAST\(\2 AS TEXT\)")
ROW: Final = re.compile(r"(\w+)\.(id|type) AS \2(?:, \1\.(\w+) AS \3)+")
"""The columns that are read back of a link begin with its id, those of an event with its type."""


def finished(statement: Any) -> str:
    """A statement as PostgreSQL gets it, in one line and in the short form of the comments.

    ``:x`` is the parameter ``al_x``. ``a IS EXACTLY :x`` is the comparison with it, by the index and byte by byte.
    ``links.*`` are the columns that are read back, each under its role's name.
    """
    text = " ".join(str(statement.compile(dialect=DIALECT)).split())
    text = re.sub(r":al_(\w+?)(?:::\w+( WITH TIME ZONE)?)?\b", r":\1", text)
    text = EXACTLY.sub(r"\1 IS EXACTLY \2", text)
    return ROW.sub(r"\1.*", re.sub(r" AS anon_\d+", "", text)).replace("( ", "(")


def above(method: Any) -> str:
    """The comment that stands above a method, in one line."""
    function = inspect.unwrap(getattr(method, "func", method))
    lines = Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8").splitlines()
    first = inspect.getsourcelines(function)[1] - 1
    comment: list[str] = []
    for line in reversed(lines[:first]):
        if not (found := re.fullmatch(r"\s*# ?(.*)", line)):
            break
        comment.insert(0, found[1])
    return " ".join(" ".join(comment).split()).replace("( ", "(")


@pytest.mark.parametrize("name", built())
def test_the_finished_sql_is_what_is_built(name: str) -> None:
    """A reader sees the statement that the database gets: the comment above the method is kept true."""
    method, statement = built()[name]
    assert finished(statement) == above(method).partition("SQL: ")[2]
