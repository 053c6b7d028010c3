"""Runs the statements of grants and reports what the database answered; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import sqlalchemy as sa

from accountlink.database.catalogue import keeps_snapshot, unique_index
from accountlink.errors import ConfigurationError
from accountlink.grants.events import told
from accountlink.grants.mapping import GrantMapping
from accountlink.grants.statements import GrantStatements
from accountlink.linking.codec import caller, moment_writer
from accountlink.linking.live_links import LiveLinks
from accountlink.tables.column_types import Part, read_moment
from accountlink.tables.naming import stored_name
from accountlink.values.blocking import rule_of_grants
from accountlink.values.events import EventType
from accountlink.values.facts import Failure, Obstacle, UniqueIndex
from accountlink.values.grants import AlreadyGranted, Grant, Granted
from accountlink.values.secrecy import Parameters

_MOMENTS: Final = ("expires_at", "created_at", "updated_at", "redeemed_at", "ended_at")
_SHARED_SNAPSHOT: Final = ("repeatable read", "serializable")
_KEPT: Final = ("grantor_id", "link_id", "link_version", "expires_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What a call that ends grants did.

    Attributes:
        grant: The grant that it was about, as it is now.
        others: The ids of what ended with it.
    """

    grant: Grant
    others: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Redeemed:
    """What a redemption came to.

    Attributes:
        outcome: The outcome; ``None``: refused.
        ended: The ids of the earlier grants of the pair that it ended.
    """

    outcome: Granted | AlreadyGranted | None = None
    ended: list[Any] = field(default_factory=list)


class GrantStore:
    """The table of grants of one mapping. Its methods are synchronous work for a :class:`~.transactions.Place`.

    Args:
        mapping: The table.
        links: The linked accounts that grants are about, if any.
        outbox: The outbox, if there is one.
        clock: Whether calls bring the present moment; else it is PostgreSQL's own.
    """

    def __init__(
        self, mapping: GrantMapping, links: LiveLinks | None, outbox: sa.Table | None = None, *, clock: bool
    ) -> None:
        self.mapping: Final = mapping
        self.outbox: Final = outbox
        self._clock: Final = clock
        self._links: Final = links
        self._statements: Final = {
            own: GrantStatements(mapping, links, outbox, database_clock=own, pairs=mapping.one_active_per_pair)
            for own in (True, False)
        }
        self._built: dict[Hashable, Any] = {}
        self._roles: Final = self._statements[False].row_roles
        onupdate = self._statements[False].onupdate
        self._onupdate: Final = {f"al_onupdate_{c.key}": caller(mapping, c, c.onupdate) for c in onupdate}
        defaults = self._statements[False].defaults
        self._defaults: Final = {f"al_default_{c.key}": caller(mapping, c, c.default) for c in defaults}
        self._moments: Final = {
            role: moment_writer(Part.CLOCKED, c) for role, c in mapping.columns.items() if role in _MOMENTS
        }

    # -- parameters ---------------------------------------------------------------------------------------------------

    def moments(self, dialect: str, now: datetime, expires_in: timedelta | None = None) -> Parameters:
        """The parameters that the clock fills, and the functions of the application's own columns."""
        filled = Parameters((name, call()) for name, call in self._onupdate.items())
        if self._by_database(dialect):
            if expires_in is not None:
                filled["al_expires_in"] = expires_in
            return filled
        filled.update((f"al_now_{role}", write(now)) for role, write in self._moments.items())
        if expires_in is not None:
            filled["al_ends_expires_at"] = self._moments["expires_at"](now + expires_in)
        return filled

    def occasion(self, dialect: str, now: datetime, *, issues: bool) -> Parameters:
        """What the event of a call needs beside the row, where there is an outbox.

        Args:
            dialect: The database's name.
            now: The present moment, aware.
            issues: Whether the call makes a row. As a part of a statement that takes the defaults of the application's
                own columns from here.
        """
        if self.outbox is None:
            return Parameters()
        filled = Parameters(al_event_at=now.astimezone(UTC), al_call_id=uuid4())
        if issues and dialect == "postgresql":
            filled.update((name, call()) for name, call in self._defaults.items())
        return filled

    def _by_database(self, dialect: str) -> bool:
        return dialect == "postgresql" and not self._clock

    # -- running ------------------------------------------------------------------------------------------------------

    def _run(
        self, connection: sa.Connection, name: str, parameters: Parameters, *arguments: Any, **options: Any
    ) -> Any:  # a result, whose columns are the mapping's
        """Run a statement, built the first time that it is needed."""
        own = self._by_database(connection.dialect.name)
        key = (name, own, arguments, tuple(options.items()))
        if key not in self._built:
            build: Callable[..., Any] = getattr(self._statements[own], name)
            self._built[key] = build(*arguments, **options)
        return connection.execute(self._built[key], self._named(connection, parameters))

    def _named(self, connection: sa.Connection, parameters: Parameters) -> Parameters:
        """Add the names under which an outbox and a ledger know the tables."""
        named = Parameters(parameters, al_source=stored_name(connection, self.mapping.table))
        return named if self._links is None else Parameters(named | self._links.names(connection))

    def _tell(
        self, connection: sa.Connection, kind: EventType, grants: Sequence[Grant], parameters: Parameters
    ) -> None:
        """Write the events of a step by a statement of its own, where there is an outbox (SQLite)."""
        events = self._statements[False].events
        if events is None:
            return
        if kind not in self._built:
            self._built[kind] = events.of_one(kind)
        events_told = [self._named(connection, told(kind, grant, parameters)) for grant in grants]
        connection.execute(self._built[kind], events_told)

    def _grant(self, row: Sequence[Any], offset: int = 0) -> Grant:
        read: dict[str, Any] = dict(zip(self._roles, row[offset:], strict=False))
        moments: dict[str, Any] = {role: read_moment(value) for role, value in read.items() if role in _MOMENTS}
        return Grant(**(read | moments))

    # -- issuing ------------------------------------------------------------------------------------------------------

    def issue(self, connection: sa.Connection, parameters: Parameters) -> Grant | None:
        """Make a grant; ``None``: its grantor has no such live link."""
        linked, limited = "al_shared_link" in parameters, "al_lock_timeout" in parameters
        in_steps = connection.dialect.name == "sqlite"
        name = "issue" if in_steps else "issue_and_tell"
        row = self._run(connection, name, parameters, linked=linked, limited=limited).first()
        if row is None:
            return None
        grant = self._grant(row)
        if in_steps:
            self._tell(connection, EventType.GRANT_ISSUED, [grant], parameters)
        return grant

    def issued(self, connection: sa.Connection, parameters: Parameters) -> Grant | None:
        """The grant of a token that an issue whose answer was lost may have made."""
        row = self._run(connection, "issued", parameters).first()
        return None if row is None else self._grant(row)

    # -- redeeming ----------------------------------------------------------------------------------------------------

    def redeem(self, connection: sa.Connection, parameters: Parameters) -> Redeemed | None:
        """Redeem a token; ``None`` when somebody came between."""
        if self.mapping.is_own:
            parameters = Parameters(parameters, al_use_id=uuid4())
        if connection.dialect.name == "sqlite":
            return self._redeem_in_steps(connection, parameters)
        limited = "al_lock_timeout" in parameters
        if self.mapping.one_active_per_pair:
            level = self._run(connection, "turn", parameters, limited=limited).one()[0]
            if level in _SHARED_SNAPSHOT and not self.mapping.declares_pair_key:
                raise ConfigurationError(
                    f"In {level.upper()} what others redeem meanwhile cannot be seen, so one_active_per_pair needs a "
                    "unique index on grantor and grantee where active, declared in the model. Make it, redeem in a "
                    "READ COMMITTED transaction, or pass the engine."
                )
        rows = self._run(connection, "redeem", parameters, limited=limited).all()
        ended = [row[1] for row in rows if row[0] == "ended"]
        for row in rows:
            if row[0] == "granted":
                return Redeemed(outcome=Granted(grant=self._grant(row, 1)), ended=ended)
            if row[0] == "already":
                return Redeemed(outcome=AlreadyGranted(grant=self._grant(row, 1)))
        return None if rows else Redeemed()

    def _redeem_in_steps(self, connection: sa.Connection, parameters: Parameters) -> Redeemed:
        """Redeem on a database whose statements cannot have several parts: in one transaction with the write lock."""
        found = self._run(connection, "found", parameters).all()
        for row in found:
            if row.already:
                return Redeemed(outcome=AlreadyGranted(grant=self._grant(row)))
        held = next((row for row in found if row.open), None)
        if held is None:
            return Redeemed()
        kept = {f"al_held_{role}": getattr(held, role) for role in _KEPT if role in self.mapping.columns}
        parameters = Parameters(parameters | kept, al_id=held.id, al_held_id=held.id)
        ended: list[Any] = []
        if self.mapping.one_active_per_pair:
            ended = [row[0] for row in self._run(connection, "end_earlier", parameters)]
        row = self._run(connection, "take", parameters).one()
        if self.mapping.is_own and row.max_uses > 1:
            row = self._run(connection, "use", parameters).one()
        grant = self._grant(row)
        self._tell(connection, EventType.GRANT_REDEEMED, [grant], parameters)
        return Redeemed(outcome=Granted(grant=grant), ended=ended)

    # -- revoking and expiring ----------------------------------------------------------------------------------------

    def revoke(self, connection: sa.Connection, parameters: Parameters, role: str) -> Ended | None:
        """End a grant of the grantor's; ``None`` if there is no such grant."""
        if connection.dialect.name == "sqlite":
            return self._revoke_in_steps(connection, parameters, role)
        limited = "al_lock_timeout" in parameters
        rows = self._run(connection, "revoke", parameters, role, limited=limited).all()
        others = [row[1] for row in rows if row[0] == "ended"]
        grants = [self._grant(row, 1) for row in rows if row[0] != "ended"]
        return Ended(grant=grants[0], others=others) if grants else None

    def _revoke_in_steps(self, connection: sa.Connection, parameters: Parameters, role: str) -> Ended | None:
        named = self._run(connection, "named", parameters, role).first()
        if named is None or not named.active:
            return None if named is None else Ended(grant=self._grant(named))
        ended = [self._grant(row) for row in self._run(connection, "end", Parameters(parameters, al_id=named.id))]
        grant = next(grant for grant in ended if grant.id == named.id)
        self._tell(connection, EventType.GRANT_REVOKED, ended, parameters)
        return Ended(grant=grant, others=[other.id for other in ended if other.id != named.id])

    def expire(self, connection: sa.Connection, parameters: Parameters) -> list[Any]:
        """End what has expired, and return the ids."""
        waits = connection.dialect.name == "sqlite"
        return [row[0] for row in self._run(connection, "expire", parameters, waits=waits)]

    # -- reading ------------------------------------------------------------------------------------------------------

    def active(self, connection: sa.Connection, parameters: Parameters, roles: tuple[str, ...]) -> list[Grant]:
        """The grants that give access now, the earliest first."""
        return [self._grant(row) for row in self._run(connection, "active", parameters, roles)]

    def obstacle(self, connection: sa.Connection, failure: Failure) -> Obstacle[Any, Any]:
        """Look behind a unique violation: which index it was."""
        index = unique_index(connection, failure)
        table = failure.table if index is None else index.table
        schema = connection.schema_for_object(self.mapping.table)
        rule = None if index is None else self._rule(index)
        return Obstacle(
            index=index,
            ours=table == self.mapping.table.name
            and (index is None or schema is None or index.schema is None or index.schema == schema),
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
