"""Build the conditions by which statements of grants check the linked accounts that the grants are about."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.linking.statements import Columns, Condition, Statements
from accountlink.tables.fragments import ONE, ZERO, select
from accountlink.tables.ledger import Ledger
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.naming import Names

_SHARED: Final = {"id": "al_shared_link", "user_id": "al_shared_owner"}
"""The parameters of an issue, as the table of links takes them."""


class LiveLinks:
    """Build the conditions under which a linked account is still as it was when its grant was issued."""

    def __init__(self, accounts: AccountMapping[Any, Any], ledger: sa.Table | None, *, grants: sa.Table) -> None:
        self._statements: Final = Statements(accounts, ledger)
        self._mapping: Final = accounts
        self.tables: Final = (accounts.table, ledger)
        """The tables that the statements of grants read beside their own."""
        twin = accounts.table.alias(Names(*self.tables, grants)("linked"))
        self._twin: Final = twin
        self._c: Final = {role: twin.c[column.key] for role, column in accounts.columns.items()}

    def state(self) -> sa.ColumnElement[Any] | None:
        """Return the number that rises when a link is removed, restored or transferred, or ``None`` if there is none.

        The ORM's own counter is not used. It rises at every write, so a grant would end when its account is relinked.
        """
        ledger: Ledger | None = self._statements.ledger
        if ledger is not None:
            return ledger.epoch(self._c["id"])
        if self._mapping.written("version") and not self._mapping.counts_writes:
            return sa.func.coalesce(self._c["version"], ZERO)
        return None

    @property
    def named(self) -> dict[str, sa.Table]:
        """The parameter that brings the ledger's name for the table of links, by the table; empty without a ledger."""
        return {} if self._statements.ledger is None else {"al_links": self._mapping.table}

    def of_grantor(self) -> sa.Select[Any]:
        """Build the query for the state of a link to be shared, if the link is live and belongs to the grantor."""
        c, state = self._c, self.state()
        named = [c[role] == sa.bindparam(name, type_=c[role].type) for role, name in _SHARED.items()]
        selected = sa.null() if state is None else state
        return select(selected.label("state")).where(*named, self._statements.live(c))

    def still(self, grant: Columns) -> Condition:
        """Build the condition that a grant has no link, or one that is live, still the grantor's, and unchanged."""
        c, state = self._c, self.state()
        same = [c["id"] == grant["link_id"], c["user_id"] == grant["grantor_id"], self._statements.live(c)]
        if state is not None and "link_version" in grant:
            same.append(state == grant["link_version"])
        found = select(ONE).select_from(self._twin).where(*same).correlate_except(self._twin)
        return sa.or_(grant["link_id"].is_(None), sa.exists(found))
