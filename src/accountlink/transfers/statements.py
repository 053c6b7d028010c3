"""Build the statements of a transfer: one reads the rows, and one decides and writes.

A token vouches for a keyed digest of the row, and the database does not get the key. So the first statement reads the
row, and Python compares it with the token. The second writes the row if it is still live, with the same owner, account
and version. The second alone decides: after any change between the two it writes nothing.

Source: PostgreSQL 15 documentation, sections 13.2.1 (an UPDATE that waited looks at its condition again) and 7.8.4.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.linking.statements import Columns, Condition, Shape, Statements, nothing_in
from accountlink.tables.fragments import ONE, select
from accountlink.tables.ledger import Ledger
from accountlink.tables.mapping import CREDENTIAL_ROLES
from accountlink.values.events import EventType

_NO_REASON: Final[sa.ColumnElement[Any]] = sa.cast(sa.null(), sa.Text).label("why")


class TransferStatements(Statements):
    """Build the statements of a transfer for one table of links."""

    def claimed(self) -> sa.CompoundSelect[Any]:
        """Build the query for the named row, whoever has it, and for the claimant's own rows of that account.

        The claimant's own rows are a live one, and a dead one that the policy forbids to restore.
        """
        twin = self._t.alias(self._names("twin"))
        c = {role: twin.c[column.key] for role, column in self._c.items()}
        facts = (self.live().label("live"), self.is_mine().label("mine"), sa.true().label("named"))
        named = select(*self.row(), *self.epoch(), *facts, _NO_REASON)
        forbidden: Condition = sa.false()
        why = _NO_REASON
        if self._policy.blocked_reasons:
            forbidden = sa.and_(sa.not_(self.live(c)), c["reason"].in_(sorted(self._policy.blocked_reasons)))
            why = sa.case((forbidden, c["reason"]), else_=sa.null())
        own = (
            select(*self.row(c), *self.no_epoch(), self.live(c), sa.true(), sa.false(), why)
            .join_from(self._t, twin, self._of_one_account(c))
            .where(self._is_the_link(), self.is_mine(c), sa.or_(self.live(c), forbidden), c["id"] != self._c["id"])
        )
        return sa.union_all(named.where(self._is_the_link()), own)

    # For a table with a version, and a claimant without credentials; the short form is that of the link's statement.
    # SQL: UPDATE links SET user_id=:user_id, version=(coalesce(links.version, 0) + 1)
    #      WHERE links.id = :id AND links.user_id = :owner AND links.provider IS EXACTLY :provider
    #        AND links.account_id IS EXACTLY :account_id AND links.deleted_at IS NULL
    #        AND links.version = :version_read
    #      RETURNING links.*
    def move(self, shape: Shape, *conditions: Condition) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that gives the row to the claimant, if the row is unchanged since it was read.

        Args:
            shape: The shape of the claimant's call.
            conditions: Further conditions, which are evaluated before the row is locked.
        """
        bound = [self._bounded()] if shape.bounded else []
        return self._move(shape, *bound, *conditions, *self._still())

    def move_and_raise(self, shape: Shape, ledger: Ledger, *conditions: Condition) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that gives the row to the claimant where a ledger keeps the epochs (PostgreSQL).

        The statement locks the row, and then raises its epoch if that is the one that was read. Raising sees what other
        transactions have committed since the statement began; a plain read of the ledger would not. Every statement
        locks rows before epochs.

        Args:
            shape: The shape of the claimant's call.
            ledger: The ledger.
            conditions: Further conditions, which are evaluated before the row is locked.
        """
        bound = [self._bounded()] if shape.bounded else []
        still = self._still()
        locked = (
            select(self._c["id"].label("id"))
            .where(*bound, *conditions, *still)
            .with_for_update()
            .cte(self._names("locked"))
        )
        raised = ledger.raised_by(locked, read=sa.bindparam("al_version_read", type_=sa.BigInteger))
        has_raised = sa.exists(select(ONE).select_from(raised))
        return self._move(shape, *still, has_raised)

    def move_and_tell(self, shape: Shape) -> sa.Executable:
        """Build one statement that gives the row to the claimant, with its epoch and its event (PostgreSQL)."""
        kept = self._still_kept(shape)
        move = self.move(shape, *kept) if self.ledger is None else self.move_and_raise(shape, self.ledger, *kept)
        if self.outbox is None and self.pending is None:
            return move
        moved = move.cte(self._names("moved"))
        beside: list[sa.CTE] = []
        if self.outbox is not None:
            beside.append(self.outbox.of_row(moved, EventType.TRANSFERRED, other_user_id=self._owner()))
        if self.pending is not None:
            beside.append(self.pending.drop(moved).cte(self._names("dropped")))
        return select(*self.row(moved.c)).add_cte(*beside)

    def _move(self, shape: Shape, *conditions: Condition) -> sa.sql.dml.ReturningUpdate[Any]:
        return sa.update(self._t).where(*conditions).values(self._moved(shape)).returning(*self.row())

    def _still(self) -> list[Condition]:
        still = [self._is_the_link(), self._c["user_id"] == self._owner(), self.same_account(), self.live()]
        if self._mapping.written("version"):
            still.append(self._c["version"] == sa.bindparam("al_version_read", type_=self._c["version"].type))
        return still

    def _still_kept(self, shape: Shape) -> list[Condition]:
        """Build the condition on the credentials that the claimant's conflicts have kept, whose row is locked first.

        Those that the transfer takes have to be the newest. A transfer that found none, and brings none, takes none
        only if there are still none. Each transfer locks the kept row before the link's: so no two wait for each other.
        """
        if self.pending is None:
            return []
        if shape.takes or not shape.credentials:
            return [self.pending.is_unchanged()]
        return [self.pending.is_locked()]

    def _owner(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_owner", type_=self._c["user_id"].type)

    def _moved(self, shape: Shape) -> dict[sa.Column[Any], Any]:
        """Return the values that a transfer writes. The account's own columns, such as its e-mail address, stay."""
        c, writes = self._c, self._mapping.written
        values: dict[sa.Column[Any], Any] = {c["user_id"]: self.bind("user_id")}
        values |= self._credentials(shape)
        if writes("updated_at"):
            values[c["updated_at"]] = self.bind("updated_at")
        if "reason" in c and c["reason"].nullable:
            values[c["reason"]] = sa.null()
        if writes("version"):
            values[c["version"]] = self._risen()
        return self._with_onupdate(values)

    def _credentials(self, shape: Shape) -> dict[sa.Column[Any], Any]:
        """Return the claimant's credentials for every credential column, so that none of the former owner's stay.

        No other function writes credentials in a transfer, so an encryption of credentials has to be added here.
        """
        columns = {role: self._c[role] for role in CREDENTIAL_ROLES if role in self._c}
        return {
            column: self.bind(role) if role in shape.credentials else nothing_in(role, column)
            for role, column in columns.items()
        }

    def _is_the_link(self) -> Condition:
        return self._c["id"] == self.bind("id")

    def _of_one_account(self, c: Columns) -> Condition:
        """Build the condition that two rows have equal accounts for the database; Python compares them exactly."""
        return sa.and_(*(c[role] == self._c[role] for role in ("provider", "account_id")))
