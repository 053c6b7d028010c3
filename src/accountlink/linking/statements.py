"""Build the statements of links, once per shape of a call.

On PostgreSQL linking is one statement whose parts share one snapshot. *other* reads a live row of another user. *own*
reads the user's row: the live one, or else their newest dead one. The update arm writes *own*, and the insert arm
writes a new row. Each does so only when *other* found no row. The arm that answers names the change. No answer means
that a concurrent transaction came between, and the statement is run again. No arm can write another user's row, and no
arm depends on an index.

Source: measured designs of upserts with data-modifying CTEs; PostgreSQL 15 documentation, sections 7.8.4 and 13.2.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import sqlalchemy as sa

from accountlink.linking.events import LinkEvents
from accountlink.tables.column_types import Part, form_of
from accountlink.tables.defaults import fixed_defaults, fixed_updates
from accountlink.tables.exact import exactly
from accountlink.tables.fragments import ONE, ZERO, named_arm, select, word
from accountlink.tables.ledger import Ledger
from accountlink.tables.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.tables.naming import Names
from accountlink.tables.pending import Pending
from accountlink.tables.rows import aware
from accountlink.tables.upserts import insert_or_nothing
from accountlink.values.credentials import join_scopes
from accountlink.values.events import EventType
from accountlink.values.policy import Key, Ownership, Removal

Condition = sa.ColumnElement[bool]


class Columns(Protocol):
    """Map roles to the columns of a table, or of a part of a statement."""

    def __getitem__(self, role: str, /) -> sa.ColumnElement[Any]:
        """Return the column that plays a role."""
        ...

    def __contains__(self, role: str, /) -> bool:
        """Say whether a column plays the role."""
        ...


ROW_ROLES: Final = (
    "id", "user_id", "provider", "account_id", "email", "scopes", "created_at", "updated_at", "deleted_at", "version",
)  # fmt: skip
"""The roles that are read back of a row, in this order, if they have a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Hold the properties of a call that decide which statement it needs, without its values.

    Attributes:
        email: Whether the provider sent an e-mail address; without one, the stored address stays.
        credentials: The roles of the credentials that the call brings.
        insert: Application columns to fill in a new row.
        update: Application columns to fill on update and restore too.
        expect: Whether one given link is to be reconnected.
        bounded: Whether the statement bounds its own waiting for locks.
        again: Whether an attempt whose answer was lost may have left the call's event in the outbox.
        keeps: Whether a conflict is to keep the call's credentials.
        takes: Whether a transfer takes its credentials from those that a conflict has kept.
        spelt: Whether the credentials are sealed for the user's id as the call spells it, so that a row with another
            spelling of the id is not to be written.
    """

    email: bool = False
    credentials: tuple[str, ...] = ()
    insert: tuple[sa.Column[Any], ...] = ()
    update: tuple[sa.Column[Any], ...] = ()
    expect: bool = False
    bounded: bool = False
    again: bool = False
    keeps: bool = False
    takes: bool = False
    spelt: bool = False


class Statements:
    """Build the statements of one table of links."""

    def __init__(
        self,
        mapping: AccountMapping[Any, Any],
        ledger: sa.Table | None = None,
        outbox: sa.Table | None = None,
        pending: sa.Table | None = None,
    ) -> None:
        self._mapping = mapping
        self._names: Final = Names(mapping.table, ledger, outbox, pending)
        self.ledger: Final = None if ledger is None or mapping.written("version") else Ledger(ledger, self._names)
        """The ledger, if the table has no version column that accountlink writes."""
        self.outbox: Final = None if outbox is None else LinkEvents(outbox, self._names)
        """The part that writes the events of links."""
        self.pending: Final = None if pending is None else Pending(pending, self._names)
        """The part that keeps the credentials of a claimant."""
        self._t = mapping.table
        self._c = mapping.columns
        self._policy = mapping.policy
        self.row_roles: Final = tuple(role for role in ROW_ROLES if role in mapping.columns)
        columns = mapping.table.columns
        self.defaults: Final = tuple(c for c in columns if c.default is not None and c.default.is_callable)
        self.onupdate: Final = tuple(c for c in columns if c.onupdate is not None and c.onupdate.is_callable)

    # -- conditions ---------------------------------------------------------------------------------------------------

    def live(self, c: Columns | None = None) -> Condition:
        """Build the condition that a row is live."""
        c = c or self._c
        if self._policy.removal is Removal.DELETE:
            return sa.true()
        marks: list[Condition] = []
        if "deleted_at" in c:
            marks.append(c["deleted_at"].is_(None))
        if "active" in c:
            marks.append(c["active"].is_(sa.true()))
        return sa.and_(*marks)

    def is_mine(self, c: Columns | None = None) -> Condition:
        """Build the condition that a row belongs to the calling user."""
        return (c or self._c)["user_id"] == self.bind("user_id")

    def same(self, role: str, c: Columns | None = None) -> Condition:
        """Build the condition that a row has the call's value in this role, byte by byte.

        The column's own comparison lets the database use an index. Some columns treat two spellings as equal, so the
        exact comparison follows.
        """
        column = (c or self._c)[role]
        return sa.and_(column == self.bind(role), exactly(column, self.bind(role)))

    def same_account(self, c: Columns | None = None) -> Condition:
        """Build the condition that a row is of the identity's provider account."""
        return sa.and_(self.same("provider", c), self.same("account_id", c))

    def same_key(self, c: Columns | None = None) -> Condition:
        """Build the condition that a row has the key of the identity, under the policy, of whatever user."""
        return sa.and_(*(self.same(role, c) for role in self._mapping.key_roles[1:]))

    def _fits(self) -> Condition:
        """Build the condition that a row with the right e-mail key may hold this account id.

        With a key on the account id it is always true.
        """
        if self._policy.key is Key.ACCOUNT_ID or "account_id" not in self._c:
            return sa.true()
        return sa.or_(self._c["account_id"].is_(None), self.same("account_id"))

    def _blocked(self) -> Condition:
        reasons = [self._c["reason"] == reason for reason in sorted(self._policy.blocked_reasons)]
        return sa.and_(sa.not_(self.live()), sa.func.coalesce(sa.or_(*reasons), sa.false())) if reasons else sa.false()

    def _bounded(self) -> Condition:
        return bounded()

    # -- parts --------------------------------------------------------------------------------------------------------

    def bind(self, role: str) -> sa.BindParameter[Any]:
        """Return the parameter for a role's value, with the type of the role's column."""
        return sa.bindparam(f"al_{role}", type_=self._c[role].type)

    def row(self, source: Columns | None = None) -> list[sa.ColumnElement[Any]]:
        """Return the columns that are read back of a row."""
        c: Columns = self._c if source is None else source
        return [c[role].label(role) for role in self.row_roles]

    def epoch(self, c: Columns | None = None) -> list[sa.ColumnElement[Any]]:
        """Return the column for the epoch of a row, if a ledger keeps epochs."""
        return [] if self.ledger is None else [self.ledger.epoch((c or self._c)["id"]).label("epoch")]

    def no_epoch(self) -> list[sa.ColumnElement[Any]]:
        """Return a NULL in the place of the epoch, if a ledger keeps epochs."""
        return [] if self.ledger is None else [sa.cast(sa.null(), sa.BigInteger).label("epoch")]

    def _nothing(self, **known: sa.ColumnElement[Any]) -> list[sa.ColumnElement[Any]]:
        return [known.get(role, sa.null()).label(role) for role in self.row_roles]

    def _newest_first(self) -> Iterable[sa.ColumnElement[Any]]:
        if self._policy.removal is Removal.SOFT:
            yield self.live().desc()
        for role in ("deleted_at", "updated_at", "created_at"):
            if role in self._c:
                yield self._c[role].desc().nulls_last()
        yield self._c["id"].desc()

    def other(self) -> sa.Select[Any]:
        """Build the query for another user's live row of an exclusive account, with the row's epoch at the end."""
        return (
            select(*self.row(), *self.epoch())
            .where(self.same_account(), self._c["user_id"] != self.bind("user_id"), self.live())
            .limit(ONE)
        )

    def own(self, shape: Shape) -> sa.Select[Any]:
        """Build the query for the user's own row, live or else the newest dead one, and whether it may be written."""
        fits = self._fits()
        if shape.expect:
            scope = self._c["id"] == self.bind("id")
            fits = sa.and_(self.same_key(), fits, sa.or_(self.live(), ~self._live_twin()))
        else:
            scope = sa.and_(self.same_key(), sa.or_(self.live(), fits))
        facts = [self.live().label("was_live"), fits.label("fits"), self._blocked().label("blocked")]
        if self._policy.blocked_reasons:
            facts.append(self._c["reason"].label("why"))
        if shape.spelt:
            # The column's own comparison comes first here too: PostgreSQL gives a parameter the type of its first use.
            facts += [self.same("user_id").label("as_spelt"), self._c["user_id"].label("user_id")]
        bound = [self._bounded()] if shape.bounded else []
        return (
            select(self._c["id"].label("id"), *facts)
            .where(*bound, self.is_mine(), scope)
            .order_by(*self._newest_first())
            .limit(ONE)
        )

    def _live_twin(self) -> Condition:
        """Build the condition that the user has another live row of the key than the expected one."""
        twin = self._t.alias(self._names("twin"))
        c = {role: twin.c[column.key] for role, column in self._c.items()}
        return sa.exists(select(ONE).select_from(twin).where(self.is_mine(c), self.same_key(c), self.live(c)))

    def _written(self, shape: Shape, was_live: Condition) -> dict[sa.Column[Any], Any]:
        """Return the values that the update arm writes. A restored row gets none of its old credentials back."""
        c, writes = self._c, self._mapping.written
        values: dict[sa.Column[Any], Any] = {column: _value("update", column) for column in shape.update}
        roles = [role for role in ("updated_at",) if writes(role)]
        roles += [role for role in ("email", "email_key") if writes(role) and shape.email]
        if self._policy.key is Key.EMAIL and "account_id" in c:
            roles.append("account_id")
        values |= {c[role]: self.bind(role) for role in (*roles, *shape.credentials)}
        if self._policy.removal is Removal.SOFT:
            for role in CREDENTIAL_ROLES:
                if role in c and role not in shape.credentials:
                    values[c[role]] = sa.case((was_live, c[role]), else_=nothing_in(role, c[role]))
            values |= {c[role]: sa.null() for role in ("deleted_at", "reason") if role in c and c[role].nullable}
            if writes("active"):
                values[c["active"]] = sa.true()
        if writes("version"):
            risen = self._risen()
            if self._mapping.counts_writes:
                values[c["version"]] = risen
            elif self._policy.removal is Removal.SOFT:
                values[c["version"]] = sa.case((was_live, c["version"]), else_=risen)
        values = self._with_onupdate(values)
        return values or {c["provider"]: c["provider"]}  # a row of bare keys still has to be written to be answered

    def _risen(self) -> sa.ColumnElement[Any]:
        """Return the next version; a row from before the version column was added counts as version 0."""
        return sa.func.coalesce(self._c["version"], ZERO) + ONE

    def _with_onupdate(self, values: dict[sa.Column[Any], Any]) -> dict[sa.Column[Any], Any]:
        """Add the values of Python ``onupdate`` functions, because SQLAlchemy would write NULL for them in a CTE."""
        for column in self.onupdate:
            if column not in values:
                values[column] = _value("onupdate", column)
        return fixed_updates(self._t) | values

    def _inserted(self, shape: Shape) -> dict[sa.Column[Any], sa.ColumnElement[Any]]:
        c, writes = self._c, self._mapping.written
        values: dict[sa.Column[Any], sa.ColumnElement[Any]] = {
            column: _value("insert", column) for column in shape.insert
        }
        values |= {column: _value("update", column) for column in shape.update if column not in values}
        roles = ["user_id", "provider", *(r for r in ("account_id", "created_at", "updated_at") if writes(r))]
        roles += [role for role in ("email", "email_key") if writes(role) and shape.email]
        values |= {c[role]: self.bind(role) for role in (*roles, *shape.credentials)}
        if writes("active"):
            values[c["active"]] = sa.true()
        if writes("version"):
            values[c["version"]] = self.bind("version") if self._mapping.reuses_ids else ONE
        for column in self.defaults:
            if column not in values:
                values[column] = _value("default", column)
        return self._without_credentials() | fixed_defaults(self._t) | values

    def _without_credentials(self) -> dict[sa.Column[Any], sa.ColumnElement[Any]]:
        """Return empty values for the credentials that a call does not bring, in columns that need a value."""
        columns = {role: self._c[role] for role in CREDENTIAL_ROLES if role in self._c}
        return {c: nothing_in(role, c) for role, c in columns.items() if not c.nullable and c.server_default is None}

    # -- whole statements ---------------------------------------------------------------------------------------------

    def update(self, shape: Shape, *, was_live: bool) -> sa.Update:
        """Build the UPDATE of the user's own row, if that is still as it was read."""
        before = self.live() if was_live else sa.not_(self.live())
        return (
            sa.update(self._t)
            .where(self._c["id"] == self.bind("id"), self.is_mine(), self.same_key(), before)
            .values(self._written(shape, sa.true() if was_live else sa.false()))
            .returning(*self.row())
        )

    def insert(self, shape: Shape) -> sa.Insert:
        """Build the INSERT of a new row, which the database may refuse."""
        return sa.insert(self._t).values(self._inserted(shape)).returning(*self.row())

    def probe(self, shape: Shape) -> sa.sql.dml.ReturningInsert[Any]:
        """Build the insert arm as a statement by itself, which a unique index may refuse."""
        nobody = [~sa.exists(self.own(shape))]
        if self._policy.ownership is Ownership.EXCLUSIVE:
            nobody.append(~sa.exists(self.other()))
        values = self._inserted(shape)
        source = select(*values.values()).where(*nobody)
        return sa.insert(self._t).from_select([c.key for c in values], source).returning(*self.row())

    def probe_and_tell(self, shape: Shape) -> sa.Executable:
        """Build the insert arm and its event as one statement, where there is an outbox (PostgreSQL)."""
        probe = self.probe(shape)
        if self.outbox is None:
            return probe
        inserted = probe.cte(self._names("inserted"))
        return select(*self.row(inserted.c)).add_cte(self.outbox.of_row(inserted, EventType.LINKED))

    # For a table of EXCLUSIVE links with SOFT removal, and a call without credentials. `:x` is the parameter al_x, and
    # `a IS EXACTLY :x` compares by the index and byte by byte; `links.*` are the columns that are read back. A test
    # keeps it true.
    # SQL: WITH al_other AS (
    #        SELECT links.* FROM links
    #        WHERE links.provider IS EXACTLY :provider AND links.account_id IS EXACTLY :account_id
    #          AND links.user_id != :user_id AND links.deleted_at IS NULL LIMIT 1),
    #      al_own AS MATERIALIZED (
    #        SELECT links.id AS id, links.deleted_at IS NULL AS was_live, true AS fits, false AS blocked FROM links
    #        WHERE links.user_id = :user_id AND links.provider IS EXACTLY :provider
    #          AND links.account_id IS EXACTLY :account_id AND true
    #        ORDER BY links.deleted_at IS NULL DESC, links.deleted_at DESC NULLS LAST, links.id DESC LIMIT 1),
    #      al_updated AS (
    #        UPDATE links SET deleted_at=NULL FROM al_own
    #        WHERE links.id = al_own.id AND links.user_id = :user_id AND links.provider IS EXACTLY :provider
    #          AND links.account_id IS EXACTLY :account_id AND (links.deleted_at IS NULL) = al_own.was_live
    #          AND al_own.fits AND NOT al_own.blocked AND NOT (EXISTS (SELECT 1 FROM al_other))
    #        RETURNING links.*, al_own.was_live),
    #      al_inserted AS (
    #        INSERT INTO links (user_id, provider, account_id) SELECT :user_id, :provider, :account_id
    #        WHERE NOT (EXISTS (SELECT 1 FROM al_own)) AND NOT (EXISTS (SELECT 1 FROM al_other))
    #        ON CONFLICT DO NOTHING RETURNING links.*)
    #      SELECT 'conflict' AS arm, al_other.*, CAST(NULL AS TEXT) AS why FROM al_other UNION ALL
    #      SELECT CASE WHEN al_updated.was_live THEN 'updated' ELSE 'restored' END AS arm, al_updated.*,
    #             CAST(NULL AS TEXT) AS why FROM al_updated UNION ALL
    #      SELECT 'created' AS arm, al_inserted.*, CAST(NULL AS TEXT) AS why FROM al_inserted
    def arms(self, shape: Shape) -> sa.Select[Any] | sa.CompoundSelect[Any]:
        """Build the one statement that links (PostgreSQL)."""
        # The rows that the link finds: the user's own, and for an exclusive account that of another user.
        own = self.own(shape).cte(self._names("own")).prefix_with("MATERIALIZED", dialect="postgresql")
        has_own = sa.exists(select(ONE).select_from(own))
        answers: list[sa.Select[Any]] = []
        nobody_else: list[Condition] = []
        beside: list[sa.CTE] = []
        if self._policy.ownership is Ownership.EXCLUSIVE:
            reading = self.other()
            if shape.expect:
                reading = reading.where(sa.exists(select(ONE).select_from(own).where(own.c.fits)))
            other = reading.cte(self._names("other"))
            nobody_else = [~sa.exists(select(ONE).select_from(other))]
            epoch = [] if self.ledger is None else [other.c.epoch]
            answers.append(select(named_arm("conflict"), *self.row(other.c), _why(), *epoch))
            if shape.keeps and self.pending is not None:
                beside += self.pending.keeping(other)
        # The update arm, and its answer: "updated" or "restored".
        allowed = [own.c.fits, sa.not_(own.c.blocked), *nobody_else]
        if shape.spelt:
            allowed.append(own.c.as_spelt)
        updated = (
            sa.update(self._t)
            .where(
                self._c["id"] == own.c.id,
                self.is_mine(),
                self.same_key(),
                self.live() == own.c.was_live if self._policy.removal is Removal.SOFT else sa.true(),
                *allowed,
            )
            .values(self._written(shape, own.c.was_live))
            .returning(*self.row(), own.c.was_live)
            .cte(self._names("updated"))
        )
        change = sa.case((updated.c.was_live, word("updated")), else_=word("restored"))
        no_epoch = self.no_epoch()
        answers.append(select(change.label("arm"), *self.row(updated.c), _why(), *no_epoch))
        # The insert arm, unless the call names a link to reconnect.
        if not shape.expect:
            inserted = self._insert_arm(shape, [sa.not_(has_own), *nobody_else])
            answers.append(select(named_arm("created"), *self.row(inserted.c), _why(), *no_epoch))
        # The answers that refuse the link and write nothing. The first answer's columns tell the types of all.
        answers += self._refusals(shape, own, nobody_else)
        answer: sa.Select[Any] | sa.CompoundSelect[Any] = sa.union_all(*answers)
        # The other parts beside the answer: a restored link's new epoch, and the event.
        if self.ledger is not None and self._policy.removal is Removal.SOFT:
            beside.append(self.ledger.raised_by(updated, sa.not_(updated.c.was_live)))
        if self.outbox is not None:
            answered = answer.cte(self._names("answer"))
            answer = select(*answered.c)
            beside.append(self.outbox.of_answer(answered, user_id=self.bind("user_id"), again=shape.again))
        return answer.add_cte(*beside) if beside else answer

    def _refusals(self, shape: Shape, own: sa.CTE, nobody_else: list[Condition]) -> Iterable[sa.Select[Any]]:
        """Return the answers for a row of the user's that the link may not write, or not as it is sealed."""
        no_epoch = self.no_epoch()
        if self._policy.blocked_reasons:
            blocked = select(named_arm("blocked"), *self._nothing(), own.c.why, *no_epoch)
            yield blocked.where(own.c.fits, own.c.blocked, *nobody_else)
        if shape.spelt:
            respelt = select(named_arm("respelt"), *self._nothing(user_id=own.c.user_id), _why(), *no_epoch)
            yield respelt.where(own.c.fits, sa.not_(own.c.blocked), *nobody_else, sa.not_(own.c.as_spelt))
        if shape.expect or self._policy.key is Key.EMAIL:
            mismatch = select(named_arm("mismatch"), *self._nothing(), _why(), *no_epoch)
            yield mismatch.where(sa.not_(own.c.fits))

    def _insert_arm(self, shape: Shape, conditions: list[Condition]) -> sa.CTE:
        values = self._inserted(shape)
        source = select(*values.values()).where(*conditions)
        return (
            insert_or_nothing(self._t)
            .from_select([column.key for column in values], source)
            .returning(*self.row())
            .cte(self._names("inserted"))
        )

    # -- reading and removing -----------------------------------------------------------------------------------------

    def seen(self, where: str | None = None) -> sa.Select[Any]:
        """Build the query for the rows of a key, and for rows that their columns treat as equal to it.

        Each row says whether it has exactly this key, whether it is live, whether it belongs to the user, and whether
        it counts, which means that the index covers it.

        Args:
            where: The condition of a partial index, as the catalogue has it; without one the index covers every row.
        """
        # On a line of its own: SQLite keeps a comment at the end of an index, which would hide the parenthesis.
        counts: sa.ColumnElement[Any] = sa.true() if where is None else sa.literal_column(f"({where}\n)", sa.Boolean)
        alike = sa.and_(*(self._c[role] == self.bind(role) for role in self._mapping.key_roles[1:]))
        facts = {"exact": self.same_key(), "live": self.live(), "mine": self.is_mine(), "counts": counts}
        whose = [] if self._policy.ownership is Ownership.EXCLUSIVE else [self.is_mine()]
        return select(*(fact.label(name) for name, fact in facts.items())).where(alike, *whose)

    def holder(self) -> sa.Select[Any]:
        """Build the query for the live row of an account, whoever owns it."""
        return select(*self.row()).where(self.same_account(), self.live()).limit(ONE)

    def listing(self, roles: tuple[str, ...]) -> sa.Select[Any]:
        """Build the query for the user's live rows, oldest first, narrowed down by further roles.

        A user has few links, and a provider has many. Before PostgreSQL has analysed the table, it would use an index
        on the provider. The CASE around the provider prevents that, because no index can serve it.
        """
        order = [self._c[role] for role in ("created_at", "id") if role in self._c]
        narrowed: list[Condition] = [self._c[role] == self.bind(role) for role in roles if role != "provider"]
        if "provider" in roles:
            narrowed.append(sa.case((self.same("provider"), sa.true()), else_=sa.false()))
        return select(*self.row()).where(self.is_mine(), self.live(), *narrowed).order_by(*order)

    def kept(self, roles: tuple[str, ...]) -> sa.Select[Any]:
        """Build the query for the user's live and dead rows, in the order in which a link prefers them.

        A row without a key, from before the table had the key's column, is left out, because no link can find it.
        """
        narrowed = [self.same(role) for role in roles]
        facts = [self.live().label("live"), self._blocked().label("blocked")]
        key = self._c[self._mapping.key_roles[-1]]
        query = select(*self.row(), *facts, key.label("key")).where(self.is_mine(), key.is_not(None), *narrowed)
        return query.order_by(*self._newest_first())

    def named(self) -> sa.Select[Any]:
        """Build the query for the user's row with this id, live or dead."""
        return select(*self.row()).where(self._is_named())

    def _is_named(self) -> Condition:
        return sa.and_(self._c["id"] == self.bind("id"), self.is_mine())

    def lock_live(self, *, bounded: bool) -> sa.Select[Any]:
        """Build the query that locks the user's live rows by id, and says for each whether the call names it."""
        bound = [self._bounded()] if bounded else []
        query = select(self._c["id"] == self.bind("id")).where(*bound, self.is_mine(), self.live())
        return query.order_by(self._c["id"]).with_for_update()

    def delete(self, *, bounded: bool) -> sa.sql.dml.ReturningDelete[Any]:
        """Build the DELETE of the user's row."""
        bound = [self._bounded()] if bounded else []
        return sa.delete(self._t).where(*bound, self._is_named()).returning(*self.row())

    def delete_and_raise(self, *, bounded: bool) -> sa.Executable:
        """Build one statement that deletes the user's row, raises its epoch and writes its event (PostgreSQL)."""
        deletion = self.delete(bounded=bounded)
        if self.ledger is None and self.outbox is None:
            return deletion
        removed = deletion.cte(self._names("removed"))
        return select(*self.row(removed.c)).add_cte(*self._follows(removed))

    def _follows(self, removed: sa.CTE, *, with_data: bool = False) -> list[sa.CTE]:
        """Return the parts that raise the epoch of a removed link and write its event."""
        raised = [] if self.ledger is None else [self.ledger.raised_by(removed)]
        if self.outbox is None:
            return raised
        return [*raised, self.outbox.of_row(removed, EventType.UNLINKED, with_data=with_data)]

    def raise_epoch(self, ledger: Ledger) -> sa.Insert:
        """Build the statement that raises the epoch of the named link (SQLite)."""
        return ledger.raise_one(self.bind("id"))

    def remove(self, *, reason: bool, bounded: bool = False) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that marks the user's live row as dead and wipes its credentials."""
        c = self._c
        values: dict[sa.Column[Any], Any] = {
            c[role]: nothing_in(role, c[role]) for role in CREDENTIAL_ROLES if role in c
        }
        roles = [role for role in ("deleted_at", "updated_at") if self._mapping.written(role)]
        roles += ["reason"] if reason else []
        values |= {c[role]: self.bind(role) for role in roles}
        if self._mapping.written("active"):
            values[c["active"]] = sa.false()
        if self._mapping.written("version"):
            values[c["version"]] = self._risen()
        bound = [self._bounded()] if bounded else []
        removal = sa.update(self._t).where(*bound, self._is_named(), self.live())
        return removal.values(self._with_onupdate(values)).returning(*self.row())

    def remove_or_read(self, *, reason: bool, bounded: bool) -> sa.CompoundSelect[Any]:
        """Build one statement that removes the user's row, or reads it if it is dead already (PostgreSQL)."""
        removed = self.remove(reason=reason, bounded=bounded).cte(self._names("removed"))
        dead = select(*self.row()).where(self._is_named(), sa.not_(self.live()))
        either = sa.union_all(select(*self.row(removed.c)), dead)
        follows = self._follows(removed, with_data=reason)
        return either.add_cte(*follows) if follows else either


def bounded() -> Condition:
    """Build a condition that sets the transaction's ``lock_timeout`` where none is set, before anything waits.

    The condition is always true.

    Source: PostgreSQL documentation, sections 9.27.1 (``set_config``, local to the transaction) and 20.11.1.
    """
    unset = sa.func.current_setting(word("lock_timeout")) == word("0")
    wanted = sa.bindparam("al_lock_timeout", type_=sa.Text)
    set_it = sa.case((unset, sa.func.set_config(word("lock_timeout"), wanted, sa.true())), else_=word(""))
    return select(set_it).scalar_subquery().is_not(None)


def nothing_in(role: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Return the SQL value for a missing credential: NULL, or an empty value if the column takes no NULL."""
    return sa.null() if column.nullable else empty_in(role, column)


def empty_in(role: str, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Return the empty value for a missing credential in a column that takes no NULL; for an expiry it is 1970."""
    empty: Any = ""
    if role == "expires_at":
        empty = (form_of(Part.MOMENT, column.type) or aware)(datetime(1970, 1, 1, tzinfo=UTC))
    elif role == "scopes":
        empty = (form_of(Part.SCOPES, column.type) or join_scopes)(frozenset())
    return sa.literal(empty, column.type)


def _why() -> sa.Label[str]:
    return sa.cast(sa.null(), sa.Text).label("why")


def _value(kind: str, column: sa.Column[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(f"al_{kind}_{column.key}", type_=column.type)
