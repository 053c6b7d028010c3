"""Moves a link from its owner to another user: one statement reads, one decides.

What a token vouches for is a keyed digest, and the key does not travel to the database. So the row is read first, is
compared in Python, and is then written on the condition that it still is as it was read: the same owner, account and
version, and live. The second statement alone decides; what happens between the two makes it write nothing.

Source: PostgreSQL 15 documentation, sections 13.2.1 (an UPDATE that waited looks at its condition again) and 7.8.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Generic, cast

import sqlalchemy as sa

from accountlink.linking.statements import Columns, Condition, Shape, Statements, nothing_in
from accountlink.linking.store import AccountStore
from accountlink.tables.ledger import Ledger
from accountlink.tables.mapping import CREDENTIAL_ROLES
from accountlink.tables.naming import stored_name
from accountlink.values.events import EventType
from accountlink.values.facts import Claimed
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId
from accountlink.values.secrecy import Parameters

_select: Final[Callable[..., sa.Select[Any]]] = cast("Any", sa.select)
"""Columns are chosen by the mapping, at run time: their types are not known here."""
_NO_REASON: Final[sa.ColumnElement[Any]] = sa.cast(sa.null(), sa.Text).label("why")
IsOfAccount = Callable[[LinkedAccount[Any, Any]], bool]
"""Whether a row is a link to the provider account that a token is about."""


class TransferStatements(Statements):
    """Builds the statements of a transfer."""

    def claimed(self) -> sa.CompoundSelect[Any]:
        """The row of an id, live or dead, whoever has it; and the claimant's own rows of this account.

        The claimant's rows are a live one, and a dead one that the policy forbids to restore.
        """
        twin = self._t.alias(self._names("twin"))
        c = {role: twin.c[column.key] for role, column in self._c.items()}
        facts = (self.live().label("live"), self.is_mine().label("mine"), sa.true().label("named"))
        named = _select(*self.row(), *self.epoch(), *facts, _NO_REASON)
        told: Condition = sa.false()
        why = _NO_REASON
        if self._policy.blocked_reasons:
            told = sa.and_(sa.not_(self.live(c)), c["reason"].in_(sorted(self._policy.blocked_reasons)))
            why = sa.case((told, c["reason"]), else_=sa.null())
        own = (
            _select(*self.row(c), *self.no_epoch(), self.live(c), sa.true(), sa.false(), why)
            .join_from(self._t, twin, self._of_one_account(c))
            .where(self._is_the_link(), self.is_mine(c), sa.or_(self.live(c), told), c["id"] != self._c["id"])
        )
        return sa.union_all(named.where(self._is_the_link()), own)

    def move(self, shape: Shape) -> sa.sql.dml.ReturningUpdate[Any]:
        """Give the row to the claimant, if it still is as it was read."""
        bound = [self._bounded()] if shape.bounded else []
        return self._move(shape, *bound, *self._still())

    def move_and_raise(self, shape: Shape, ledger: Ledger) -> sa.sql.dml.ReturningUpdate[Any]:
        """Give the row to the claimant and raise its epoch in the ledger (PostgreSQL).

        The row is locked first, then its epoch is raised on the condition that it is the one that was read: that sees
        what others have committed since this statement began, which a plain reading of the ledger would not. Rows are
        locked before epochs here as in every other statement.
        """
        bound = [self._bounded()] if shape.bounded else []
        still = self._still()
        locked = _select(self._c["id"].label("id")).where(*bound, *still).with_for_update().cte(self._names("locked"))
        raised = ledger.raised_by(locked, read=sa.bindparam("al_version_read", type_=sa.BigInteger))
        return self._move(shape, *still, sa.exists(_select(sa.literal_column("1")).select_from(raised)))

    def told(self, move: sa.sql.dml.ReturningUpdate[Any]) -> sa.Executable:
        """Give the row to the claimant in one statement with its event, where there is an outbox (PostgreSQL)."""
        if self.outbox is None:
            return move
        moved = move.cte(self._names("moved"))
        event = self.outbox.of_row(moved, EventType.TRANSFERRED, other_user_id=self._owner())
        return _select(*self.row(moved.c)).add_cte(event)

    def _move(self, shape: Shape, *conditions: Condition) -> sa.sql.dml.ReturningUpdate[Any]:
        return sa.update(self._t).where(*conditions).values(self._moved(shape)).returning(*self.row())

    def _still(self) -> list[Condition]:
        still = [self._is_the_link(), self._c["user_id"] == self._owner(), self.same_account(), self.live()]
        if self._mapping.written("version"):
            still.append(self._c["version"] == sa.bindparam("al_version_read", type_=self._c["version"].type))
        return still

    def _owner(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_owner", type_=self._c["user_id"].type)

    def _moved(self, shape: Shape) -> dict[sa.Column[Any], Any]:
        """What a transfer sets. The account's own columns stay as they are, its e-mail address among them."""
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
        """The claimant's credentials, and nothing of the former owner's: every column that holds any is written.

        This is the one place where a transfer writes credentials: whatever comes to encrypt them, encrypts these.
        """
        columns = {role: self._c[role] for role in CREDENTIAL_ROLES if role in self._c}
        return {
            column: self.bind(role) if role in shape.credentials else nothing_in(role, column)
            for role, column in columns.items()
        }

    def _is_the_link(self) -> Condition:
        return self._c["id"] == self.bind("id")

    def _of_one_account(self, c: Columns) -> Condition:
        """Whether a row is of the named one's account, or of one that its column takes for the same: Python decides."""
        return sa.and_(*(c[role] == self._c[role] for role in ("provider", "account_id")))


class TransferStore(Generic[UserId, LinkId]):
    """Runs the statements of a transfer. Its methods are synchronous work for a :class:`~.transactions.Place`."""

    def __init__(self, accounts: AccountStore[UserId, LinkId], ledger: sa.Table | None) -> None:
        self._accounts: Final = accounts
        self._codec: Final = accounts.codec
        self._statements: Final = TransferStatements(accounts.mapping, ledger, accounts.outbox)
        self._claimed: Final = self._statements.claimed()
        self._moves: dict[tuple[str, Shape], sa.Executable] = {}

    def claimed(
        self, connection: sa.Connection, parameters: Parameters, is_of_account: IsOfAccount
    ) -> Claimed[UserId, LinkId]:
        """Read the link that a token names, and whether its account is the claimant's already."""
        width = len(self._statements.row_roles)
        found: Claimed[UserId, LinkId] = Claimed()
        bound = self._accounts.named(connection, parameters) if self._accounts.is_told else parameters
        for row in connection.execute(self._claimed, bound):
            account = self._codec.account(row)
            if not is_of_account(account):
                continue  # of another account, under the id of a row that is gone
            live, mine, named = map(bool, row[-4:-1])
            found = replace(found, why=row[-1] or found.why)
            if live and mine:
                found = replace(found, own=account)
            if named:
                version = self._accounts.version_of(row, epoch=width)
                table = stored_name(connection, self._accounts.mapping.table)
                found = replace(found, named=account, live=live, version=version, table=table)
        if found.named is None and found.own is None:  # only a token whose row is gone costs this
            listed = self._accounts.accounts(connection, Parameters(al_user_id=parameters["al_user_id"]))
            return Claimed(own=next((account for account in listed if is_of_account(account)), None))
        return found

    def move(
        self, connection: sa.Connection, shape: Shape, parameters: Parameters
    ) -> LinkedAccount[UserId, LinkId] | None:
        """Give the row to the claimant; ``None`` when it is not as it was read any more."""
        key = (connection.dialect.name, shape)
        if key not in self._moves:
            self._moves[key] = self._built(*key)
        bound = self._accounts.named(connection, parameters) if self._accounts.is_told else parameters
        row = connection.execute(self._moves[key], bound).first()
        if row is None:
            return None
        account = self._codec.account(row)
        if connection.dialect.name == "sqlite":
            self._accounts.raise_epoch(connection, parameters)
            self._accounts.tell(connection, EventType.TRANSFERRED, account, parameters, other=parameters["al_owner"])
        return account

    def _built(self, dialect: str, shape: Shape) -> sa.Executable:
        ledger = self._statements.ledger
        if dialect == "sqlite":  # whose epochs nobody else can raise meanwhile
            return self._statements.move(shape)
        if ledger is None:
            return self._statements.told(self._statements.move(shape))
        return self._statements.told(self._statements.move_and_raise(shape, ledger))
