"""Run the statements of grants, and report the database's answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from accountlink.database.catalogue import keeps_snapshot, unique_index
from accountlink.errors import ConfigurationError
from accountlink.grants.call import GrantCall
from accountlink.grants.events import event_parameters
from accountlink.grants.mapping import GrantMapping
from accountlink.grants.statements import GrantStatements
from accountlink.linking.call import Occasion
from accountlink.linking.live_links import LiveLinks
from accountlink.tables.column_types import GRANT_PARTS, moment_forms
from accountlink.tables.rows import MappedTable, present
from accountlink.values.blocking import rule_of_grants
from accountlink.values.events import EventType
from accountlink.values.facts import Failure, Obstacle, UniqueIndex
from accountlink.values.grants import AlreadyGranted, Grant, Granted
from accountlink.values.secrecy import Parameters

_SHARED_SNAPSHOT: Final = ("repeatable read", "serializable")
_COPIED: Final = ("grantor_id", "link_id", "link_version", "expires_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """Hold the grants that a call has ended.

    Attributes:
        grant: The grant that the call named, as it is now.
        others: The ids of the other grants that ended with it.
    """

    grant: Grant
    others: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Redeemed:
    """Hold the outcome of a redemption, and the grants that it ended.

    Attributes:
        outcome: The outcome, or ``None`` if the redemption was refused.
        ended: The ids of the pair's earlier grants, which the redemption ended.
    """

    outcome: Granted | AlreadyGranted | None = None
    ended: list[Any] = field(default_factory=list)


class GrantStore(MappedTable):
    """Run the statements of one table of grants. Each method is synchronous work for a :class:`~.transactions.Place`.

    Args:
        mapping: The table.
        links: The linked accounts that grants are about, if any.
        outbox: The outbox, if there is one.
        clock: Returns the present moment, aware; without it PostgreSQL's clock decides, or on SQLite this machine's.
    """

    def __init__(
        self,
        mapping: GrantMapping,
        links: LiveLinks | None,
        outbox: sa.Table | None = None,
        *,
        clock: Callable[[], datetime] | None,
    ) -> None:
        self.mapping: Final = mapping
        self.outbox: Final = outbox
        self._has_clock: Final = clock is not None
        statements = [
            GrantStatements(mapping, links, outbox, database_clock=by_database, pairs=mapping.one_active_per_pair)
            for by_database in (False, True)
        ]
        self._by_call, self._by_database = statements
        super().__init__(
            mapping,
            row=self._by_call.row_roles,
            moments=moment_forms(GRANT_PARTS, mapping.columns),
            ids=("id", "grantor_id", "grantee_id", "link_id"),
            named={"al_source": mapping.table} | ({} if links is None else links.named),
            defaults=self._by_call.defaults,
            onupdate=self._by_call.onupdate,
            clock=present if clock is None else clock,
        )

    def timed(self, call: GrantCall, expires_in: timedelta | None = None) -> GrantCall:
        """Return a call with its moment, and with the values of the application's onupdate functions.

        Args:
            call: The call.
            expires_in: How long the new grant lasts; ``None`` for a call that makes no grant.
        """
        now = self.now()
        return call.changed(
            functions=self.onupdate(),
            occasion=None if self.outbox is None else Occasion.of(now),
            now=self.stamped(tuple(GRANT_PARTS), now),
            ends={} if expires_in is None else self.stamped(("expires_at",), now + expires_in),
            expires_in=expires_in,
            defaults=cache(self.defaults),
        )

    def _asks_database(self, dialect: str) -> bool:
        return dialect == "postgresql" and not self._has_clock

    def _tell(self, connection: sa.Connection, kind: EventType, grants: Sequence[Grant], call: GrantCall) -> None:
        """Write the events of a step by a statement of its own, where there is an outbox (SQLite)."""
        events = self._by_call.events
        if events is None or not grants:
            return
        written = [event_parameters(kind, grant, call) for grant in grants]
        self.run(connection, written, ("tell", kind), lambda: events.of_one(kind))

    def _grant(self, row: Sequence[Any], offset: int = 0) -> Grant:
        return Grant(**self.values(row, offset))

    def _ask(
        self,
        connection: sa.Connection,
        call: GrantCall | Parameters,
        key: tuple[Hashable, ...],
        build: Callable[[GrantStatements], sa.Executable],
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one of the statements, in its form for the clock that decides."""
        statements = self._by_database if self._asks_database(connection.dialect.name) else self._by_call
        parameters = call.parameters if isinstance(call, GrantCall) else call
        return self.run(connection, parameters, (statements is self._by_database, *key), lambda: build(statements))

    # -- issuing ------------------------------------------------------------------------------------------------------

    def issue(self, connection: sa.Connection, call: GrantCall) -> Grant | None:
        """Make a grant, or return ``None`` if the grantor has no such live link."""
        linked, limited = call.link_id is not None, call.lock_timeout is not None
        in_steps = connection.dialect.name == "sqlite"
        whole = not in_steps and self.outbox is not None  # the INSERT is a part of a statement, and asks no default
        row = self._ask(
            connection,
            Parameters(call.parameters, **call.defaults()) if whole else call,
            ("issue", in_steps, linked, limited),
            lambda s: (s.issue if in_steps else s.issue_and_tell)(linked=linked, limited=limited),
        ).first()
        if row is None:
            return None
        grant = self._grant(row)
        if in_steps:
            self._tell(connection, EventType.GRANT_ISSUED, [grant], call)
        return grant

    def issued(self, connection: sa.Connection, call: GrantCall) -> Grant | None:
        """Read the grant that an earlier attempt may have made, whose answer was lost."""
        row = self._ask(connection, call, ("issued",), lambda s: s.issued()).first()
        return None if row is None else self._grant(row)

    # -- redeeming ----------------------------------------------------------------------------------------------------

    def redeem(self, connection: sa.Connection, call: GrantCall) -> Redeemed | None:
        """Redeem a token, or return ``None`` if a concurrent transaction came between."""
        parameters = Parameters(call.parameters, al_use_id=uuid4()) if self.mapping.is_own else call.parameters
        if connection.dialect.name == "sqlite":
            return self._redeem_in_steps(connection, parameters, call)
        limited = call.lock_timeout is not None
        if self.mapping.one_active_per_pair:
            turn = self._ask(connection, parameters, ("turn", limited), lambda s: s.turn(limited=limited))
            level = turn.one()[0]
            if level in _SHARED_SNAPSHOT and not self.mapping.declares_pair_key:
                raise ConfigurationError(
                    f"In {level.upper()} what others redeem meanwhile cannot be seen, so one_active_per_pair needs a "
                    "unique index on grantor and grantee where active, declared in the model. Make it, redeem in a "
                    "READ COMMITTED transaction, or pass the engine."
                )
        rows = self._ask(connection, parameters, ("redeem", limited), lambda s: s.redeem(limited=limited)).all()
        ended = [row[1] for row in rows if row[0] == "ended"]
        for row in rows:
            if row[0] == "granted":
                return Redeemed(outcome=Granted(grant=self._grant(row, 1)), ended=ended)
            if row[0] == "already":
                return Redeemed(outcome=AlreadyGranted(grant=self._grant(row, 1)))
        return None if rows else Redeemed()

    def _redeem_in_steps(self, connection: sa.Connection, parameters: Parameters, call: GrantCall) -> Redeemed:
        """Redeem by several statements in one transaction that holds the write lock (SQLite)."""
        found = self._ask(connection, parameters, ("found",), lambda s: s.found()).all()
        for row in found:
            if row.already:
                return Redeemed(outcome=AlreadyGranted(grant=self._grant(row)))
        token_row = next((row for row in found if row.open), None)
        if token_row is None:
            return Redeemed()
        copied = {f"al_held_{role}": getattr(token_row, role) for role in _COPIED if role in self.mapping.columns}
        parameters = Parameters(parameters | copied, al_id=token_row.id, al_held_id=token_row.id)
        ended: list[Any] = []
        if self.mapping.one_active_per_pair:
            earlier = self._ask(connection, parameters, ("end earlier",), lambda s: s.end_earlier())
            ended = [row[0] for row in earlier]
        row = self._ask(connection, parameters, ("take",), lambda s: s.take()).one()
        if self.mapping.is_own and row.max_uses > 1:
            row = self._ask(connection, parameters, ("use",), lambda s: s.use()).one()
        grant = self._grant(row)
        self._tell(connection, EventType.GRANT_REDEEMED, [grant], call)
        return Redeemed(outcome=Granted(grant=grant), ended=ended)

    # -- revoking and expiring ----------------------------------------------------------------------------------------

    def revoke(self, connection: sa.Connection, call: GrantCall) -> Ended | None:
        """End a grant of the grantor, or return ``None`` if the grantor has no such grant."""
        role = self.mapping.token_role if call.token else "id"
        if connection.dialect.name == "sqlite":
            return self._revoke_in_steps(connection, call, role)
        limited = call.lock_timeout is not None
        rows = self._ask(connection, call, ("revoke", role, limited), lambda s: s.revoke(role, limited=limited)).all()
        others = [row[1] for row in rows if row[0] == "ended"]
        grants = [self._grant(row, 1) for row in rows if row[0] != "ended"]
        return Ended(grant=grants[0], others=others) if grants else None

    def _revoke_in_steps(self, connection: sa.Connection, call: GrantCall, role: str) -> Ended | None:
        named = self._ask(connection, call, ("named", role), lambda s: s.named(role)).first()
        if named is None or not named.active:
            return None if named is None else Ended(grant=self._grant(named))
        parameters = Parameters(call.parameters, al_id=named.id)
        ended = [self._grant(row) for row in self._ask(connection, parameters, ("end",), lambda s: s.end())]
        grant = next(grant for grant in ended if grant.id == named.id)
        self._tell(connection, EventType.GRANT_REVOKED, ended, call)
        return Ended(grant=grant, others=[other.id for other in ended if other.id != named.id])

    def expire(self, connection: sa.Connection, call: GrantCall) -> list[Any]:
        """End the expired grants, and return their ids."""
        waits = connection.dialect.name == "sqlite"
        return [row[0] for row in self._ask(connection, call, ("expire",), lambda s: s.expire(waits=waits))]

    # -- reading ------------------------------------------------------------------------------------------------------

    def active(self, connection: sa.Connection, call: GrantCall) -> list[Grant]:
        """List the grants that give access now, the earliest first."""
        given = {"grantor_id": call.grantor_id, "grantee_id": call.grantee_id, "link_id": call.link_id}
        roles = tuple(role for role, value in given.items() if value is not None)
        return [self._grant(row) for row in self._ask(connection, call, ("active", roles), lambda s: s.active(roles))]

    def obstacle(self, connection: sa.Connection, failure: Failure) -> Obstacle[Any, Any]:
        """Collect the facts behind a unique violation: the index that refused the write."""
        index = unique_index(connection, failure)
        table = failure.table if index is None else index.table
        rule = None if index is None else self._rule(index)
        return Obstacle(
            index=index,
            ours=self.is_this_table(connection, table, None if index is None else index.schema),
            is_key=rule is None,
            snapshot=keeps_snapshot(connection),
            rule=rule,
        )

    def _rule(self, index: UniqueIndex) -> str | None:
        names = {role: column.name for role, column in self.mapping.columns.items()}
        return rule_of_grants(
            index,
            row_id=names["id"],
            token=names[self.mapping.token_role],
            pair=(names["grantor_id"], names["grantee_id"]) if self.mapping.one_active_per_pair else None,
            mark=names["active"],
        )
