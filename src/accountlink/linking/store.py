"""Runs the statements and reports what the database answered, as facts; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from accountlink.database.catalogue import keeps_snapshot, unique_index
from accountlink.database.violations import REFUSALS, refusal
from accountlink.linking.codec import Codec
from accountlink.linking.statements import Shape, Statements
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.naming import stored_name
from accountlink.values.blocking import rule_of_links
from accountlink.values.decide import restorable
from accountlink.values.events import EventType
from accountlink.values.facts import Answer, Arm, Failure, Kept, Obstacle, UniqueIndex
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId
from accountlink.values.policy import Ownership, Removal
from accountlink.values.secrecy import Parameters, concealed_id

_REMEMBERED: Final = 256
"""How many statements are remembered; an application's calls have a handful of shapes."""
_SEEN: Final = 100
"""How many rows are looked at behind a unique violation."""
S = TypeVar("S")


class AccountStore(Generic[UserId, LinkId]):
    """The table of links of one mapping. Its methods are synchronous work for a :class:`~.transactions.Place`."""

    def __init__(
        self,
        mapping: AccountMapping[UserId, LinkId],
        ledger: sa.Table | None = None,
        outbox: sa.Table | None = None,
    ) -> None:
        self.mapping: Final = mapping
        self.outbox: Final = outbox
        self.statements: Final = Statements(mapping, ledger, outbox)
        self.codec: Final[Codec[UserId, LinkId]] = Codec(
            mapping,
            self.statements.row_roles,
            defaults=self.statements.defaults,
            onupdate=self.statements.onupdate,
        )
        self.is_told: Final = outbox is not None or self.statements.ledger is not None
        """Whether a ledger or an outbox hears of the table, and so has to know its name."""
        self._built: dict[Hashable, Any] = {}
        self._width = len(self.statements.row_roles)

    def _once(self, key: Hashable, build: Callable[[], S]) -> S:
        """Build a statement the first time that it is needed, and keep it."""
        found: S | None = self._built.get(key)
        if found is None:
            if len(self._built) >= _REMEMBERED:
                self._built.clear()
            found = self._built[key] = build()
        return found

    @property
    def tells_states(self) -> bool:
        """Whether one state of a row can be told from another: by its version, or by the ledger."""
        return self.mapping.written("version") or self.statements.ledger is not None

    def version_of(self, row: sa.Row[Any], at: int = 0, *, epoch: int) -> int | None:
        """The version of a row, or its epoch in the ledger; ``None`` where nothing tells its states apart.

        Args:
            row: What was read.
            at: Where the row begins in it.
            epoch: Where the epoch is, if there is one.
        """
        if self.statements.ledger is not None:
            found: int | None = row[epoch]
            return found
        return self.codec.version(row, at) if self.tells_states else None

    def run(
        self, connection: sa.Connection, statement: sa.Executable, parameters: Parameters
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run a statement of the table's."""
        bound = self.named(connection, parameters) if self.is_told else parameters
        try:
            return connection.execute(statement, bound)
        except REFUSALS as error:
            raise refusal(error) from None

    def named(self, connection: sa.Connection, parameters: Parameters) -> Parameters:
        """Add the names under which a ledger and an outbox know the table."""
        name = stored_name(connection, self.mapping.table)
        return Parameters(parameters, al_links=name, al_source=name)

    # -- linking ------------------------------------------------------------------------------------------------------

    def link(self, connection: sa.Connection, shape: Shape, parameters: Parameters) -> Answer[UserId, LinkId] | None:
        """Link, or report who or what stands in the way; ``None`` when a concurrent transaction came between."""
        if connection.dialect.name == "sqlite":
            return self._link_in_steps(connection, shape, parameters)
        row = self.run(connection, self._once(("arms", shape), lambda: self.statements.arms(shape)), parameters).first()
        if row is None:
            if shape.expect and self._own(connection, shape, parameters) is None:
                return Answer(arm=Arm.MISSING)
            return None
        return Answer(
            arm=Arm(row[0]),
            account=None if row[1] is None else self.codec.asked_for(row, parameters, 1),
            version=self.version_of(row, 1, epoch=self._width + 2),
            table=stored_name(connection, self.mapping.table),
            why=row[self._width + 1],
        )

    def _own(self, connection: sa.Connection, shape: Shape, parameters: Parameters) -> sa.Row[Any] | None:
        return self.run(connection, self._once(("own", shape), lambda: self.statements.own(shape)), parameters).first()

    def _owner(self, connection: sa.Connection, parameters: Parameters) -> sa.Row[Any] | None:
        if self.mapping.policy.ownership is Ownership.PER_USER:
            return None
        return self.run(connection, self._once("other", self.statements.other), parameters).first()

    def _link_in_steps(
        self, connection: sa.Connection, shape: Shape, parameters: Parameters
    ) -> Answer[UserId, LinkId] | None:
        """Link on a database whose statements cannot have several arms: in one transaction with the write lock."""
        own = self._own(connection, shape, parameters)
        if shape.expect and own is None:
            return Answer(arm=Arm.MISSING)
        if own is not None and not own.fits:
            return Answer(arm=Arm.MISMATCH)
        if (owner := self._owner(connection, parameters)) is not None:
            version = self.version_of(owner, epoch=self._width)
            owned = self.codec.asked_for(owner, parameters)
            self.tell_conflict(connection, owned, parameters)
            table = stored_name(connection, self.mapping.table)
            return Answer(arm=Arm.CONFLICT, account=owned, version=version, table=table)
        if own is None:
            return self.insert(connection, shape, parameters)
        if own.blocked:
            return Answer(arm=Arm.BLOCKED, why=own.why)
        was_live = bool(own.was_live)
        update = self._once(("update", was_live, shape), lambda: self.statements.update(shape, was_live=was_live))
        parameters = Parameters(parameters, al_id=own[0])
        account = self.codec.asked_for(self.run(connection, update, parameters).one(), parameters)
        if not was_live:
            self.raise_epoch(connection, parameters)
        self.tell(connection, EventType.UPDATED if was_live else EventType.RESTORED, account, parameters)
        return Answer(arm=Arm.UPDATED if was_live else Arm.RESTORED, account=account)

    def insert(self, connection: sa.Connection, shape: Shape, parameters: Parameters) -> Answer[UserId, LinkId]:
        """Insert a row, and let a unique index say what forbids it."""
        insert = self._once(("insert", shape), lambda: self.statements.insert(shape))
        account = self.codec.asked_for(self.run(connection, insert, parameters).one(), parameters)
        self.tell(connection, EventType.LINKED, account, parameters)
        return Answer(arm=Arm.CREATED, account=account)

    def probe(self, connection: sa.Connection, shape: Shape, parameters: Parameters) -> Answer[UserId, LinkId] | None:
        """Insert only if nobody has the account, as a link does, but let the database say what forbids it (PostgreSQL).

        In steps, under SQLite's write lock, nobody comes between, and a link is never without an answer.
        """
        probe = self._once(("probe", shape), lambda: self.statements.probe_and_tell(shape))
        row = self.run(connection, probe, parameters).first()
        return None if row is None else Answer(arm=Arm.CREATED, account=self.codec.asked_for(row, parameters))

    def obstacle(self, connection: sa.Connection, parameters: Parameters, failure: Failure) -> Obstacle[UserId, LinkId]:
        """Look behind a unique violation: which index it was, and whose row."""
        index = unique_index(connection, failure)
        owner = self._owner(connection, parameters)
        ours = self._is_ours(connection, failure, index)
        where = None if index is None or not ours else index.where
        seen = self._once(("seen", where), lambda: self.statements.seen(where).limit(_SEEN))
        rows = self.run(connection, seen, parameters).all()
        dead = any(row.exact and row.counts and not row.live for row in rows)
        return Obstacle(
            index=index,
            ours=ours,
            is_key=index is not None and self._is_key(index.columns),
            owner=None if owner is None else self.codec.asked_for(owner, parameters),
            version=None if owner is None else self.version_of(owner, epoch=self._width),
            table=stored_name(connection, self.mapping.table),
            own_live=any(row.exact and row.live and row.mine for row in rows),
            dead=dead,
            misspelt=any(row.counts and not row.exact for row in rows),
            snapshot=keeps_snapshot(connection),
            rule=None if index is None else self._rule(index, dead=dead),
        )

    def _rule(self, index: UniqueIndex, *, dead: bool) -> str | None:
        exclusive = self.mapping.policy.ownership is Ownership.EXCLUSIVE
        names = {role: self.mapping.columns[role].name for role in self.mapping.key_roles}
        key = [name for role, name in names.items() if not (exclusive and role == "user_id")]
        return rule_of_links(index, key=key, identifier=names.get("account_id"), dead=dead)

    def _is_ours(self, connection: sa.Connection, failure: Failure, index: UniqueIndex | None) -> bool:
        table = failure.table if index is None else index.table
        schema = None if index is None else index.schema
        mine = connection.schema_for_object(self.mapping.table)
        return table == self.mapping.table.name and (mine is None or schema is None or schema == mine)

    def _is_key(self, columns: tuple[str, ...]) -> bool:
        names = {self.mapping.columns[role].name for role in self.mapping.key_roles}
        if set(columns) == names:
            return True
        exclusive = self.mapping.policy.ownership is Ownership.EXCLUSIVE
        return exclusive and set(columns) == names - {self.mapping.columns["user_id"].name}

    # -- telling ------------------------------------------------------------------------------------------------------

    def occasion(self, now: datetime, data: Mapping[str, object] | None = None) -> Parameters:
        """What the event of a call needs beside the row, where there is an outbox.

        Args:
            now: The present moment, aware.
            data: More about it, as JSON has it.
        """
        if self.outbox is None:
            return Parameters()
        told = Parameters() if data is None else Parameters(al_event_data=data)
        return Parameters(told, al_event_at=now.astimezone(UTC), al_call_id=uuid4())

    def tell(
        self,
        connection: sa.Connection,
        kind: EventType,
        account: LinkedAccount[UserId, LinkId],
        parameters: Parameters,
        *,
        other: Any = None,
        again: bool = False,
    ) -> None:
        """Write the event of a step by a statement of its own, where there is an outbox.

        Args:
            connection: The connection that took the step.
            kind: What happened.
            account: The row that it happened to.
            parameters: Those of the call.
            other: The other user's id.
            again: Whether an attempt whose answer was lost may have written the same event.
        """
        outbox = self.statements.outbox
        if outbox is None:
            return
        c = self.mapping.columns
        tell = self._once(
            ("tell", kind, again), lambda: outbox.one(kind, user=c["user_id"].type, link=c["id"].type, again=again)
        )
        told = Parameters(
            al_event_at=parameters["al_event_at"],
            al_call_id=parameters["al_call_id"],
            al_event_user_id=parameters["al_user_id"],
            al_event_other_user_id=concealed_id(other),
            al_event_provider=account.provider,
            al_event_link_id=account.id,
            al_event_data=parameters.get("al_event_data", {}),
        )
        self.run(connection, tell, told)

    def tell_conflict(
        self,
        connection: sa.Connection,
        owned: LinkedAccount[UserId, LinkId],
        parameters: Parameters,
        *,
        again: bool = False,
    ) -> None:
        """Write the event of a conflict by a statement of its own, where there is an outbox."""
        self.tell(connection, EventType.CONFLICT, owned, parameters, other=owned.user_id, again=again)

    # -- reading ------------------------------------------------------------------------------------------------------

    def accounts(self, connection: sa.Connection, parameters: Parameters) -> list[LinkedAccount[UserId, LinkId]]:
        """The user's live links, oldest first; of one provider or with one id if the parameters name it."""
        roles = tuple(role for role in ("provider", "id") if f"al_{role}" in parameters)
        query = self._once(("accounts", roles), lambda: self.statements.listing(roles))
        found = [self.codec.account(row) for row in self.run(connection, query, parameters)]
        return [account for account in found if self.codec.is_about(account, parameters)]

    def unlinked(self, connection: sa.Connection, parameters: Parameters) -> list[LinkedAccount[UserId, LinkId]]:
        """The user's dead links that a link would restore, newest first; of one provider if the parameters name it."""
        roles = tuple(role for role in ("provider",) if f"al_{role}" in parameters)
        query = self._once(("kept", roles), lambda: self.statements.kept(roles))
        return restorable(
            Kept(
                account=(account := self.codec.account(row)),
                key=(account.provider, row.key),
                live=bool(row.live),
                blocked=bool(row.blocked),
            )
            for row in self.run(connection, query, parameters)
        )

    def find_owner(self, connection: sa.Connection, parameters: Parameters) -> LinkedAccount[UserId, LinkId] | None:
        """The live link of a provider account, whoever owns it."""
        row = self.run(connection, self._once("holder", self.statements.holder), parameters).first()
        account = None if row is None else self.codec.account(row)
        return account if account is not None and self.codec.is_about(account, parameters) else None

    # -- unlinking ----------------------------------------------------------------------------------------------------

    def unlink(self, connection: sa.Connection, parameters: Parameters) -> LinkedAccount[UserId, LinkId] | None:
        """Remove the user's link, or read it when it is dead already; ``None``: neither, or a race came between."""
        if connection.dialect.name == "sqlite":
            return self._unlink_in_steps(connection, parameters)
        reason, bounded = "al_reason" in parameters, "al_lock_timeout" in parameters
        if self.mapping.policy.removal is Removal.DELETE:
            unlink = self._once(("delete", bounded), lambda: self.statements.delete_and_raise(bounded=bounded))
        else:
            unlink = self._once(
                ("remove or read", reason, bounded),
                lambda: self.statements.remove_or_read(reason=reason, bounded=bounded),
            )
        row = self.run(connection, unlink, parameters).first()
        return None if row is None else self.codec.account(row)

    def _unlink_in_steps(
        self, connection: sa.Connection, parameters: Parameters
    ) -> LinkedAccount[UserId, LinkId] | None:
        reason = "al_reason" in parameters
        if self.mapping.policy.removal is Removal.DELETE:
            remove: Any = self._once("delete", lambda: self.statements.delete(bounded=False))
        else:
            remove = self._once(("remove", reason), lambda: self.statements.remove(reason=reason))
        row = self.run(connection, remove, parameters).first()
        if row is not None:
            self.raise_epoch(connection, parameters)
            self.tell(connection, EventType.UNLINKED, self.codec.account(row), parameters)
        elif self.mapping.policy.removal is Removal.SOFT:
            row = self._named(connection, parameters)
        return None if row is None else self.codec.account(row)

    def raise_epoch(self, connection: sa.Connection, parameters: Parameters) -> None:
        """Raise the epoch of the named link where a ledger keeps it (SQLite)."""
        ledger = self.statements.ledger
        if ledger is not None:
            self.run(connection, self._once("raise", lambda: self.statements.raise_epoch(ledger)), parameters)

    def exists(self, connection: sa.Connection, parameters: Parameters) -> bool:
        """Whether the user has this link, live or dead."""
        return self._named(connection, parameters) is not None

    def _named(self, connection: sa.Connection, parameters: Parameters) -> sa.Row[Any] | None:
        return self.run(connection, self._once("named", self.statements.named), parameters).first()

    def locks_last(self, connection: sa.Connection, parameters: Parameters) -> bool:
        """Lock the user's live links, in one order for all, and say whether the named one is the only one.

        The database compares the ids: it may hold one in another form than the call brings it in.
        """
        bounded = "al_lock_timeout" in parameters
        lock = self._once(("lock", bounded), lambda: self.statements.lock_live(bounded=bounded))
        return [bool(named) for named in self.run(connection, lock, parameters).scalars()] == [True]
