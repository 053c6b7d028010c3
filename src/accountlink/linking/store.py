"""Run the statements of links, and report the database's answers as facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic

import sqlalchemy as sa

from accountlink.database.catalogue import keeps_snapshot, unique_index
from accountlink.errors import ConfigurationError
from accountlink.linking.call import Call, Calls
from accountlink.linking.decide import DECISIONS, Answer, Arm, Others, Own, Wanted, restorable
from accountlink.linking.statements import Statements
from accountlink.tables.column_types import LINK_PARTS, moment_forms
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.rows import MappedTable, holds_texts, present
from accountlink.values.blocking import rule_of_links
from accountlink.values.events import EventType
from accountlink.values.facts import Failure, Kept, Obstacle, UniqueIndex
from accountlink.values.outcomes import LinkedAccount, LinkId, UserId
from accountlink.values.policy import Ownership, Removal
from accountlink.values.secrecy import Parameters, concealed_id

_SEEN: Final = 100
"""The most rows that are read to explain a unique violation."""


class AccountStore(MappedTable, Generic[UserId, LinkId]):
    """Run the statements of one table of links. Each method is synchronous work for a :class:`~.transactions.Place`."""

    def __init__(
        self,
        mapping: AccountMapping[UserId, LinkId],
        ledger: sa.Table | None = None,
        outbox: sa.Table | None = None,
        pending: sa.Table | None = None,
        *,
        keeps_for: timedelta = timedelta(0),
        clock: Callable[[], datetime] = present,
    ) -> None:
        self.mapping: Final = mapping
        self.outbox: Final = outbox
        self.pending: Final = pending
        self.statements: Final = Statements(mapping, ledger, outbox, pending)
        self.keeps_epochs: Final = self.statements.ledger is not None
        """Says whether a ledger tells the states of a row apart."""
        self.tells_states: Final = mapping.written("version") or self.keeps_epochs
        """Says whether the states of a row can be told apart, by its version or by the ledger."""
        has_tables = outbox is not None or pending is not None or self.keeps_epochs
        heard = ("al_links", "al_source") if has_tables else ()
        super().__init__(
            mapping,
            row=self.statements.row_roles,
            moments=moment_forms(LINK_PARTS, mapping.columns),
            ids=("id", "user_id"),
            named=dict.fromkeys(heard, mapping.table),
            defaults=self.statements.defaults,
            onupdate=self.statements.onupdate,
            clock=clock,
        )
        self.calls: Final = Calls(
            mapping, self, tells=outbox is not None, keeps_for=None if pending is None else keeps_for
        )
        self._slugs: Final = {value: slug for slug, value in self.calls.slugs.items()}
        compared = [role for role in mapping.compared_roles if role in self.row_roles]
        self.is_about: Final = partial(holds_texts, roles=compared, slugs=self._slugs)
        """Says whether a row holds the identity that a call names, byte by byte."""
        self._width: Final = len(self.row_roles)
        self._exclusive: Final = mapping.policy.ownership is Ownership.EXCLUSIVE

    # -- rows ---------------------------------------------------------------------------------------------------------

    def account(self, row: Sequence[Any], offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """Return a snapshot of a row that was read back."""
        read = self.values(row, offset)
        provider = read["provider"]
        return LinkedAccount(
            id=read["id"],
            user_id=read["user_id"],
            provider=self._slugs.get(provider, provider) if self._slugs else provider,
            account_id=read.get("account_id"),
            email=read.get("email"),
            scopes=read.get("scopes"),
            created_at=read.get("created_at"),
            updated_at=read.get("updated_at"),
            deleted_at=read.get("deleted_at"),
        )

    def asked_for(self, row: Sequence[Any], call: Call, offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """Return a snapshot of a row, after checking that the row holds the identity which the call names.

        Raises:
            ConfigurationError: The row holds another identity than the one that was written.
        """
        account = self.account(row, offset)
        if not self.is_about(account, call.identity):
            raise ConfigurationError(
                f"{self.mapping.name!r} does not hold the provider, the account id or the e-mail key that was given "
                "to it: a trigger, or the column's own type, has changed it. Make the table keep them as they are."
            )
        return account

    def written(self, row: Sequence[Any], call: Call, offset: int = 0) -> LinkedAccount[UserId, LinkId]:
        """Return a snapshot of the user's own row that a link has written, after checking what it holds.

        Raises:
            ConfigurationError: The row holds another identity than the one that was written, or another user's id than
                the one that its tokens are sealed for.
        """
        account = self.asked_for(row, call, offset)
        one_form = self.id_type("user_id").one_form
        if call.spelt and str(one_form(account.user_id)) != str(one_form(call.user_id)):
            raise ConfigurationError(
                f"{self.mapping.name!r} does not hold the user's id that was given to it: a trigger, or a type that "
                "the model does not declare, such as CHAR(n), has changed it. Tokens are sealed for an id as it is "
                "given. Declare the column as it is, or make the table keep the id."
            )
        return account

    def version_of(self, row: sa.Row[Any], offset: int = 0, *, epoch: int) -> int | None:
        """Return the version of a row, or its epoch in the ledger, or ``None`` if the table has neither.

        Args:
            row: The row that a statement returned.
            offset: The index of the link's first column in it.
            epoch: The index of the epoch in it, if a ledger keeps epochs.
        """
        found: int | None = None
        if self.keeps_epochs:
            found = row[epoch]
        elif self.tells_states:
            found = row[offset + self.row_roles.index("version")]
        return found

    # -- linking ------------------------------------------------------------------------------------------------------

    def link(self, connection: sa.Connection, call: Call) -> Answer[UserId, LinkId] | None:
        """Link, or report the row that forbids it; return ``None`` if a concurrent transaction came between."""
        if connection.dialect.name == "sqlite":
            return self._link_in_steps(connection, call)
        shape = call.shape
        row = self.run(connection, call.parameters, ("arms", shape), lambda: self.statements.arms(shape)).first()
        if row is None:
            if shape.expect and self._own(connection, call) is None:
                return Answer(arm=Arm.MISSING)
            return None
        arm = Arm(row[0])
        if arm is Arm.RESPELT:
            return Answer(arm=arm, user_id=row[1 + self.row_roles.index("user_id")])
        if arm is not Arm.CONFLICT:
            account = None if row[1] is None else self.written(row, call, 1)
            return Answer(arm=arm, account=account, why=row[self._width + 1])
        version = self.version_of(row, 1, epoch=self._width + 2)
        owned = self.asked_for(row, call, 1)
        return Answer(arm=arm, account=owned, version=version, table=self.name_on(connection))

    def _link_in_steps(self, connection: sa.Connection, call: Call) -> Answer[UserId, LinkId]:
        """Link by several statements in one transaction that holds the write lock (SQLite)."""
        # Read the rows, and decide by them.
        shape, bound, statements = call.shape, call.parameters, self.statements
        own, owner = self._own(connection, call), self._owner(connection, call)
        arm = DECISIONS[
            _of_own(own),
            Others.NONE if owner is None else Others.OWNER,
            Wanted.ONE if shape.expect else Wanted.ANY,
        ]
        # Answer without the user's own row: a new row, a conflict, or a refusal.
        if arm is Arm.CREATED:
            return self.insert(connection, call)
        if arm is Arm.CONFLICT and owner is not None:
            owned = self.asked_for(owner, call)
            self.note_conflict(connection, call, owned)
            version = self.version_of(owner, epoch=self._width)
            return Answer(arm=arm, account=owned, version=version, table=self.name_on(connection))
        if own is None or arm not in (Arm.UPDATED, Arm.RESTORED):
            return Answer(arm=arm, why=own.why if own is not None and arm is Arm.BLOCKED else None)
        if shape.spelt and not own.as_spelt:
            return Answer(arm=Arm.RESPELT, user_id=own.user_id)
        # Write the user's own row, its epoch and its event.
        was_live = arm is Arm.UPDATED
        found = Parameters(bound, al_id=own.id)
        key = ("update", was_live, shape)
        row = self.run(connection, found, key, lambda: statements.update(shape, was_live=was_live)).one()
        account = self.written(row, call)
        if not was_live:
            self.raise_epoch(connection, found)
        if self.outbox is not None:
            self.tell(connection, EventType.UPDATED if was_live else EventType.RESTORED, account, call)
        return Answer(arm=arm, account=account)

    def _own(self, connection: sa.Connection, call: Call) -> sa.Row[Any] | None:
        shape = call.shape
        return self.run(connection, call.parameters, ("own", shape), lambda: self.statements.own(shape)).first()

    def _owner(self, connection: sa.Connection, call: Call) -> sa.Row[Any] | None:
        if not self._exclusive:
            return None
        return self.run(connection, call.parameters, "other", self.statements.other).first()

    def insert(self, connection: sa.Connection, call: Call) -> Answer[UserId, LinkId]:
        """Insert a row, and let a unique index refuse it."""
        shape = call.shape
        row = self.run(connection, call.parameters, ("insert", shape), lambda: self.statements.insert(shape)).one()
        account = self.written(row, call)
        if self.outbox is not None:
            self.tell(connection, EventType.LINKED, account, call)
        return Answer(arm=Arm.CREATED, account=account)

    def probe(self, connection: sa.Connection, call: Call) -> Answer[UserId, LinkId] | None:
        """Insert if no other user has the account, and let a unique index refuse the row (PostgreSQL).

        SQLite needs no such statement: no transaction can come between under its write lock, so a link always answers.
        """
        shape, build = call.shape, self.statements.probe_and_tell
        row = self.run(connection, call.parameters, ("probe", shape), lambda: build(shape)).first()
        return None if row is None else Answer(arm=Arm.CREATED, account=self.written(row, call))

    # -- behind a unique violation ------------------------------------------------------------------------------------

    def obstacle(self, connection: sa.Connection, call: Call, failure: Failure) -> Obstacle[UserId, LinkId]:
        """Collect the facts behind a unique violation: the index that refused, and the rows in its way."""
        index = unique_index(connection, failure)
        owner = self._owner(connection, call)
        table = failure.table if index is None else index.table
        ours = self.is_this_table(connection, table, None if index is None else index.schema)
        where = None if index is None or not ours else index.where
        seen = self.run(
            connection, call.parameters, ("seen", where), lambda: self.statements.seen(where).limit(_SEEN)
        ).all()
        dead = any(row.exact and row.counts and not row.live for row in seen)
        return Obstacle(
            index=index,
            ours=ours,
            is_key=index is not None and self.is_key(index.columns),
            owner=None if owner is None else self.asked_for(owner, call),
            version=None if owner is None else self.version_of(owner, epoch=self._width),
            table=self.name_on(connection),
            own_live=any(row.exact and row.live and row.mine for row in seen),
            dead=dead,
            misspelt=any(row.counts and not row.exact for row in seen),
            snapshot=keeps_snapshot(connection),
            rule=None if index is None else self.rule_of(index, dead=dead),
        )

    def is_key(self, columns: Sequence[str]) -> bool:
        """Say whether a unique index on these columns enforces the policy's key or its ownership."""
        key = self.mapping.key_roles
        wanted = [key, key[1:]] if self._exclusive else [key]
        return set(columns) in ({self.mapping.columns[role].name for role in roles} for roles in wanted)

    def rule_of(self, index: UniqueIndex, *, dead: bool) -> str | None:
        """Return the doctor's rule for an index that forbids what the policy allows, or ``None`` if it forbids nothing.

        Args:
            index: The index.
            dead: Whether the index covers a dead row that was found.
        """
        roles = self.mapping.key_roles[1:] if self._exclusive else self.mapping.key_roles
        names = {role: self.mapping.columns[role].name for role in roles}
        return rule_of_links(index, key=[*names.values()], identifier=names.get("account_id"), dead=dead)

    # -- events and epochs, each by a statement of its own ------------------------------------------------------------

    def tell(
        self,
        connection: sa.Connection,
        kind: EventType,
        account: LinkedAccount[UserId, LinkId],
        call: Call,
        *,
        other: Any = None,
    ) -> None:
        """Write the event of a change, where there is an outbox.

        Args:
            connection: The connection that made the change.
            kind: The type of the event.
            account: The row of the event.
            call: The call.
            other: The other user's id.
        """
        outbox, occasion = self.statements.outbox, call.occasion
        if outbox is None or occasion is None:
            return
        event = Parameters(
            occasion.parameters(),
            al_event_user_id=call.user_id,
            al_event_other_user_id=concealed_id(other),
            al_event_provider=account.provider,
            al_event_link_id=account.id,
            al_event_data=occasion.data or {},
        )
        again, user, link = call.is_repeated, self.mapping.columns["user_id"].type, self.mapping.columns["id"].type
        self.run(connection, event, ("tell", kind, again), lambda: outbox.one(kind, user=user, link=link, again=again))

    def note_conflict(self, connection: sa.Connection, call: Call, owned: LinkedAccount[UserId, LinkId]) -> None:
        """Write what belongs to a conflict: the event, and the claimant's credentials, where there are tables for them.

        Args:
            connection: The connection that found the conflict.
            call: The claimant's call.
            owned: The owner's row.
        """
        self.tell(connection, EventType.CONFLICT, owned, call, other=owned.user_id)
        pending = self.statements.pending
        if pending is None or not call.keeps:
            return
        if connection.dialect.name == "sqlite":
            self.run(connection, call.parameters, "keep one", pending.keep_one)
            self.run(connection, call.parameters, "sweep", pending.sweep)
        else:
            self.run(connection, call.parameters, "keep", pending.keep)

    def raise_epoch(self, connection: sa.Connection, parameters: Parameters) -> None:
        """Raise the epoch of the named link where a ledger keeps it (SQLite)."""
        ledger = self.statements.ledger
        if ledger is not None:
            self.run(connection, parameters, "raise", lambda: self.statements.raise_epoch(ledger))

    # -- reading ------------------------------------------------------------------------------------------------------

    def accounts(self, connection: sa.Connection, call: Call) -> list[LinkedAccount[UserId, LinkId]]:
        """List the user's live links, oldest first: all, those of a provider, or the one with an id."""
        roles = (*call.identity, *(("id",) if call.link_id is not None else ()))
        rows = self.run(connection, call.parameters, ("accounts", roles), lambda: self.statements.listing(roles))
        found = [self.account(row) for row in rows]
        return [account for account in found if self.is_about(account, call.identity)]

    def unlinked(self, connection: sa.Connection, call: Call) -> list[LinkedAccount[UserId, LinkId]]:
        """List the user's dead links that a link would restore, newest first: all, or those of a provider."""
        roles = tuple(call.identity)
        rows = self.run(connection, call.parameters, ("kept", roles), lambda: self.statements.kept(roles))
        return restorable(
            Kept(
                account=(account := self.account(row)),
                key=(account.provider, row.key),
                live=bool(row.live),
                blocked=bool(row.blocked),
            )
            for row in rows
        )

    def find_owner(self, connection: sa.Connection, call: Call) -> LinkedAccount[UserId, LinkId] | None:
        """Find the live link of a provider account, whoever owns it."""
        row = self.run(connection, call.parameters, "holder", self.statements.holder).first()
        account = None if row is None else self.account(row)
        return account if account is not None and self.is_about(account, call.identity) else None

    # -- unlinking ----------------------------------------------------------------------------------------------------

    def unlink(self, connection: sa.Connection, call: Call) -> LinkedAccount[UserId, LinkId] | None:
        """Remove the user's link, or read it if it is dead already; return ``None`` for no link, or after a race."""
        statements, reason = self.statements, call.reason is not None
        deletes = self.mapping.policy.removal is Removal.DELETE
        if connection.dialect.name == "sqlite":
            return self._unlink_in_steps(connection, call, deletes=deletes)
        bounded = call.lock_timeout is not None
        row = self.run(
            connection,
            call.parameters,
            ("unlink", reason, bounded),
            lambda: (
                statements.delete_and_raise(bounded=bounded)
                if deletes
                else statements.remove_or_read(reason=reason, bounded=bounded)
            ),
        ).first()
        return None if row is None else self.account(row)

    def _unlink_in_steps(
        self, connection: sa.Connection, call: Call, *, deletes: bool
    ) -> LinkedAccount[UserId, LinkId] | None:
        statements, reason = self.statements, call.reason is not None
        row = self.run(
            connection,
            call.parameters,
            ("remove", reason),
            lambda: statements.delete(bounded=False) if deletes else statements.remove(reason=reason),
        ).first()
        if row is not None:
            self.raise_epoch(connection, call.parameters)
            self.tell(connection, EventType.UNLINKED, self.account(row), call)
        elif not deletes:
            row = self._named_row(connection, call)
        return None if row is None else self.account(row)

    def exists(self, connection: sa.Connection, call: Call) -> bool:
        """Say whether the user has this link, live or dead."""
        return self._named_row(connection, call) is not None

    def _named_row(self, connection: sa.Connection, call: Call) -> sa.Row[Any] | None:
        return self.run(connection, call.parameters, "named", self.statements.named).first()

    def locks_last(self, connection: sa.Connection, call: Call) -> bool:
        """Lock the user's live links in order of id, and say whether the named one is the only one.

        The database compares the ids, because it may store an id in another form than the call's.
        """
        bounded = call.lock_timeout is not None
        rows = self.run(
            connection, call.parameters, ("lock", bounded), lambda: self.statements.lock_live(bounded=bounded)
        )
        return [bool(named) for named in rows.scalars()] == [True]


def _of_own(row: sa.Row[Any] | None) -> Own:
    """Name the state of the user's own row, by the facts that were read of it."""
    if row is None:
        return Own.NONE
    if not row.fits:
        return Own.OTHER
    if row.blocked:
        return Own.BLOCKED
    return Own.LIVE if row.was_live else Own.DEAD
