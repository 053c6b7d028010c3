"""Build the statements of grants, each of them once.

On PostgreSQL a redemption is one statement. *seen* reads the token's row in the statement's snapshot, if the token is
open to this user. *held* locks the row, and reads what concurrent transactions have committed since. *taken* writes it.
The arm that answers is one of three. *granted*: this statement redeemed the token. *already*: the user had redeemed it
before, and their row is unchanged. *again*: the token was open in the snapshot, but a concurrent transaction came
between. No answer is a refusal. The statement does not say why it refuses.

Two conditions decide. *open* says that a token can be redeemed, and *counts* that a grant gives access. Both check the
expiry, the state of the linked account and its owner at every use, even if no call has marked the row as ended.

Source: PostgreSQL 15 documentation, sections 7.8.4 (data-modifying CTEs share one snapshot), 13.2.1 (a locked row is
looked at again) and 13.3.5 (advisory locks).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from accountlink.grants.events import GrantEvents
from accountlink.grants.mapping import GrantMapping
from accountlink.linking.live_links import LiveLinks
from accountlink.linking.statements import Columns, Condition, bounded
from accountlink.tables.defaults import fixed_updates
from accountlink.tables.exact import exactly
from accountlink.tables.fragments import ONE, ZERO, named_arm, select, word
from accountlink.tables.naming import Names
from accountlink.tables.type_layers import plain_type
from accountlink.values.events import EventType

GRANT_ROW: Final = (
    "id", "grantor_id", "grantee_id", "link_id", "expires_at", "created_at", "redeemed_at", "ended_at",
)  # fmt: skip
"""The roles that are read back of a row, in this order, if they have a column."""
_COPIED: Final = ("grantor_id", "link_id", "link_version", "expires_at")
"""The roles that the row of one use copies from the row of its token."""
_ISSUED: Final = ("grantor_id", "token_hash", "token", "expires_at", "active", "created_at", "updated_at")
"""The roles that every issue writes, so that no default of the application fills their columns."""


class GrantStatements:
    """Build the statements of one table of grants.

    Args:
        mapping: The table of grants.
        links: The linked accounts, if grants are about any.
        outbox: The outbox, if there is one.
        database_clock: Whether the database's clock decides; else the parameters bring the present moment.
        pairs: Whether a pair has one active grant at most.
    """

    def __init__(
        self,
        mapping: GrantMapping,
        links: LiveLinks | None,
        outbox: sa.Table | None = None,
        *,
        database_clock: bool,
        pairs: bool,
    ) -> None:
        self._mapping = mapping
        self._links = links
        self._database_clock = database_clock
        self._pairs = pairs
        self._t = mapping.table
        self._c = mapping.columns
        self._names: Final = Names(mapping.table, outbox, *(() if links is None else links.tables))
        self._token = mapping.token_role
        self.row_roles: Final = tuple(role for role in GRANT_ROW if role in mapping.columns)
        onupdate = [c for c in mapping.table.columns if c.onupdate is not None and c.onupdate.is_callable]
        self.onupdate: Final = [column for column in onupdate if column not in mapping.columns.values()]
        ours = mapping.columns.values()
        self._fixed: Final = {c: value for c, value in fixed_updates(mapping.table).items() if c not in ours}
        filled = [mapping.columns[role] for role in _ISSUED if role in mapping.columns]
        defaults = [c for c in mapping.table.columns if c.default is not None and c.default.is_callable]
        self.defaults: Final = [column for column in defaults if column not in filled]
        moment = _statement_began() if database_clock else None
        self.events: Final = None if outbox is None else GrantEvents(outbox, mapping, self._names, moment=moment)
        """The part that writes the events of grants."""

    # -- time ---------------------------------------------------------------------------------------------------------

    def _now(self, role: str, *, later: bool = False) -> sa.ColumnElement[Any]:
        """Return the present moment, or the end of a new grant, as the role's column takes it."""
        column = self._c[role]
        if not self._database_clock:
            return _bind(f"{'ends' if later else 'now'}_{role}", column)
        moment = _statement_began()
        if later:
            moment = moment + sa.bindparam("al_expires_in", type_=sa.Interval)
        kind = plain_type(column.type)
        if isinstance(kind, sa.Integer):
            return sa.cast(sa.func.floor(sa.extract("epoch", moment)), sa.BigInteger)
        if isinstance(kind, sa.DateTime) and not kind.timezone:
            return sa.func.timezone(sa.literal_column("'UTC'"), moment, type_=sa.DateTime())
        return moment

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _alive(self, c: Columns) -> list[Condition]:
        """Build the conditions that a grant has not ended or expired, and that its link is unchanged."""
        alive = [c["active"].is_(sa.true()), c["expires_at"] > self._now("expires_at")]
        return alive if self._links is None else [*alive, self._links.still(c)]

    def _open(self) -> list[Condition]:
        """Build the conditions under which this user can redeem a token.

        It is alive, from another user, not used up, and not redeemed by this user before.
        """
        c = self._c
        conditions = [self._is_token(), c["grantor_id"] != self._user("grantee_id", "grantor_id")]
        conditions += [*self._alive(c), c["grantee_id"].is_(None)]
        if not self._mapping.is_own:
            return conditions
        use = self._t.alias(self._names("use"))
        used = select(ONE).select_from(use).where(_is(use.c.token_hash, self._use())).correlate_except(use)
        return [*conditions, c["uses"] < c["max_uses"], sa.not_(sa.exists(used))]

    def _counts(self) -> list[Condition]:
        """Build the conditions that a grant gives access now: it is redeemed and alive, and so is its token."""
        c = self._c
        conditions = [c["grantee_id"].is_not(None), *self._alive(c)]
        if not self._mapping.is_own:
            return conditions
        of = self._t.alias(self._names("of"))
        alive = select(ONE).select_from(of).where(of.c.id == c["issued_id"], of.c.active).correlate_except(of)
        return [*conditions, sa.or_(c["issued_id"].is_(None), sa.exists(alive))]

    def _already(self) -> list[Condition]:
        """Build the conditions for the grant that the user already has by this token."""
        c = self._c
        token = (
            sa.or_(self._is_token(), _is(c["token_hash"], self._use())) if self._mapping.is_own else self._is_token()
        )
        others = c["grantor_id"] != self._user("grantee_id", "grantor_id")
        return [token, c["grantee_id"] == self._user("grantee_id"), others, *self._counts()]

    def _is_token(self) -> Condition:
        return _is(self._c[self._token], _bind(self._token, self._c[self._token]))

    def _use(self) -> sa.BindParameter[Any]:
        return sa.bindparam("al_use_hash", type_=self._c["token_hash"].type)

    def _user(self, role: str, compared: str | None = None) -> sa.BindParameter[Any]:
        """Return the parameter for the calling user's id, with the type of the compared column."""
        name = role if compared is None else f"{role}_as_{compared}"
        return _bind(name, self._c[compared or role])

    # -- parts --------------------------------------------------------------------------------------------------------

    def row(self, source: Any = None) -> list[sa.ColumnElement[Any]]:
        """Return the columns that are read back of a row, from the table or from a part of a statement."""
        return [(self._c if source is None else source)[role].label(role) for role in self.row_roles]

    def _with_onupdate(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Add the ``onupdate`` values of the application's columns, also where a statement has two updates."""
        fixed = {c: value for c, value in self._fixed.items() if c not in values}
        return values | fixed | {c: sa.bindparam(f"al_onupdate_{c.key}", type_=c.type) for c in self.onupdate}

    def _stamps(self, *roles: str) -> dict[Any, Any]:
        return {self._c[role]: self._now(role) for role in roles if role in self._c}

    def _ended(self) -> dict[Any, Any]:
        """Return the values that mark a grant as ended."""
        return self._with_onupdate({self._c["active"]: sa.false()} | self._stamps("ended_at", "updated_at"))

    def _taken(self) -> dict[Any, Any]:
        """Return the values that a redemption writes into the token's row."""
        c = self._c
        values = {c["grantee_id"]: self._user("grantee_id")} | self._stamps("redeemed_at", "updated_at")
        if self._mapping.is_own:  # a token for several users has no grantee: each use of it has its own row
            single = c["max_uses"] == ONE
            values = {column: sa.case((single, value), else_=column) for column, value in values.items()}
            values[c["uses"]] = c["uses"] + ONE
        return self._with_onupdate(values)

    def _used(self, taken: Any) -> dict[str, Any]:
        """Return the values of a new row for one use, from the row of its token."""
        copied = {role: taken[role] for role in _COPIED if role in self._c}
        of_use = {
            "id": sa.bindparam("al_use_id", type_=self._c["id"].type),
            "issued_id": taken["id"],
            "grantee_id": self._user("grantee_id"),
            "token_hash": self._use(),
            "max_uses": ONE,
            "uses": ONE,
            "active": sa.true(),
        }
        return copied | of_use | {role: self._now(role) for role in ("created_at", "redeemed_at")}

    def _widened(self) -> list[sa.ColumnElement[Any]]:
        """Return the token row's columns that the row of a use needs and that are not read back anyway."""
        return [self._c[role].label(role) for role in ("link_version", "max_uses") if role in self._c]

    def _earlier(self, grantor: Any, but: Any) -> list[Condition]:
        """Build the conditions for the pair's other active grants, without the one that is being redeemed."""
        c = self._c
        pair = [c["grantor_id"] == grantor, c["grantee_id"] == self._user("grantee_id")]
        return [*pair, c["active"].is_(sa.true()), c["id"] != but]

    # -- issuing ------------------------------------------------------------------------------------------------------

    def issue_and_tell(self, *, linked: bool, limited: bool) -> sa.Executable:
        """Build one statement that makes a row and writes its event, where there is an outbox (PostgreSQL)."""
        if self.events is None:
            return self.issue(linked=linked, limited=limited)
        issued = self.issue(linked=linked, limited=limited, within=True).cte(self._names("issued"))
        return select(*self.row(issued.c)).add_cte(self.events.of_rows(issued, EventType.GRANT_ISSUED))

    def issue(self, *, linked: bool, limited: bool, within: bool = False) -> sa.sql.dml.ReturningInsert[Any]:
        """Build the INSERT of a grant; if the grant is about a link, only if that is live and the grantor's own.

        Args:
            linked: Whether it is about a link.
            limited: Whether the statement bounds its own waiting.
            within: Whether it is a part of another statement, where SQLAlchemy would ask no Python-side default.
        """
        c = self._c
        values: dict[str, Any] = {role: _bind(role, c[role]) for role in ("grantor_id", self._token)}
        values |= {"expires_at": self._now("expires_at", later=True), "active": sa.true()}
        values |= {role: self._now(role) for role in ("created_at", "updated_at") if role in c}
        if self._mapping.is_own:
            values |= {"max_uses": _bind("max_uses", c["max_uses"]), "uses": ZERO}
        source = select()
        if linked and self._links is not None:
            shared = self._links.of_grantor().subquery(self._names("shared"))
            values |= {"link_id": _bind("link_id", c["link_id"])}
            if "link_version" in c:
                values |= {"link_version": sa.cast(shared.c.state, c["link_version"].type)}
            source = source.select_from(shared)
        filled = {c[role]: value for role, value in values.items()}
        if within:
            missing = [column for column in self.defaults if column not in filled]
            filled |= {column: _bind(f"default_{column.key}", column) for column in missing}
        source = source.add_columns(*filled.values())
        if limited:
            source = source.where(bounded())
        made = sa.insert(self._t).from_select([column.key for column in filled], source)
        return made.returning(*self.row())

    def issued(self) -> sa.Select[Any]:
        """Build the query for a row that an earlier attempt may have made, whose answer was lost."""
        c = self._c
        return select(*self.row()).where(self._is_token(), c["grantor_id"] == _bind("grantor_id", c["grantor_id"]))

    # -- redeeming ----------------------------------------------------------------------------------------------------

    def turn(self, *, limited: bool) -> sa.Select[Any]:
        """Build the statement that makes one grantee's redemptions wait for each other, and reads the isolation level.

        It is a separate statement (PostgreSQL), so that the next one's snapshot contains the redemptions that were
        committed before.
        """
        name = word("accountlink:") + sa.bindparam("al_source", type_=sa.Text)
        key = sa.func.hashtextextended(name + word(":") + sa.cast(self._user("grantee_id"), sa.Text), ZERO)
        level = sa.func.current_setting(word("transaction_isolation"))
        return select(level, sa.func.pg_advisory_xact_lock(key)).where(*([bounded()] if limited else []))

    # For a table of one row per token, by the database's clock; the short form is that of the link's statement.
    # SQL: WITH al_held AS (
    #        SELECT grants.* FROM grants
    #        WHERE grants.token_hash IS EXACTLY :token_hash AND grants.grantor_id != :grantee_id_as_grantor_id
    #          AND grants.active IS true AND grants.expires_at > statement_timestamp() AND grants.grantee_id IS NULL
    #        LIMIT 1 FOR UPDATE OF grants),
    #      al_taken AS (
    #        UPDATE grants SET grantee_id=:grantee_id FROM al_held WHERE grants.id = al_held.id RETURNING grants.*),
    #      al_seen AS (
    #        SELECT grants.* FROM grants
    #        WHERE grants.token_hash IS EXACTLY :token_hash AND grants.grantor_id != :grantee_id_as_grantor_id
    #          AND grants.active IS true AND grants.expires_at > statement_timestamp() AND grants.grantee_id IS NULL
    #        LIMIT 1)
    #      SELECT 'granted' AS arm, al_taken.* FROM al_taken UNION ALL
    #      SELECT 'already' AS arm, grants.* FROM grants
    #      WHERE grants.token_hash IS EXACTLY :token_hash AND grants.grantee_id = :grantee_id
    #        AND grants.grantor_id != :grantee_id_as_grantor_id AND grants.grantee_id IS NOT NULL
    #        AND grants.active IS true AND grants.expires_at > statement_timestamp() UNION ALL
    #      SELECT 'again' AS arm, al_seen.* FROM al_seen WHERE NOT (EXISTS (SELECT 1 FROM al_held))
    def redeem(self, *, limited: bool) -> sa.Executable:
        """Build the one statement that redeems a token, with its event where there is an outbox (PostgreSQL)."""
        # The token's row, as the snapshot has it and as it is once it is locked.
        bound = [bounded()] if limited else []
        seen = select(*self.row()).where(*bound, *self._open()).limit(ONE).cte(self._names("seen"))
        held = (
            select(*self.row(), *self._widened())
            .where(*bound, *self._open())
            .limit(ONE)
            .with_for_update(of=self._t)
            .cte(self._names("held"))
        )
        answers: list[sa.Select[Any]] = []
        endings: list[sa.Select[Any]] = []
        ready: list[Condition] = []
        # The end of the pair's earlier grants.
        if self._pairs:
            earlier = sa.update(self._t).where(*self._earlier(held.c.grantor_id, held.c.id))
            ended = earlier.values(self._ended()).returning(*self.row()).cte(self._names("ended"))
            endings.append(select(named_arm("ended"), *self.row(ended.c)))
            # Counting them makes PostgreSQL end them before a unique index on the pair checks the new grant.
            ready = [select(sa.func.count()).select_from(ended).scalar_subquery() >= ZERO]
        # The redemption: of a token for one user in its own row, of a token for several in a new row.
        taken = (
            sa.update(self._t)
            .where(self._c["id"] == held.c.id, *ready)
            .values(self._taken())
            .returning(*self.row(), *self._widened())
            .cte(self._names("taken"))
        )
        single = select(named_arm("granted"), *self.row(taken.c))
        answers.append(single.where(taken.c.max_uses == ONE) if self._mapping.is_own else single)
        if self._mapping.is_own:
            values = self._used(taken.c)
            source = select(*values.values()).where(taken.c.max_uses > ONE)
            names = [self._c[role].key for role in values]
            used = sa.insert(self._t).from_select(names, source, include_defaults=False)
            answers.append(
                select(named_arm("granted"), *self.row(used.returning(*self.row()).cte(self._names("used")).c))
            )
        # The answers where nothing was written.
        answers.append(select(named_arm("already"), *self.row()).where(*self._already()))
        nobody = ~sa.exists(select(ONE).select_from(held))
        answers.append(select(named_arm("again"), *self.row(seen.c)).where(nobody))
        return self._with_events(sa.union_all(*answers, *endings), EventType.GRANT_REDEEMED, ["granted"])

    def _with_events(self, answers: sa.CompoundSelect[Any], kind: EventType, arms: Iterable[str]) -> sa.Executable:
        """Add an event for each answer of these arms to a statement, where there is an outbox."""
        if self.events is None:
            return answers
        answer = answers.cte(self._names("answer"))
        event = self.events.of_rows(answer, kind, answer.c.arm.in_([word(arm) for arm in arms]))
        return select(*answer.c).add_cte(event)

    def found(self) -> sa.Select[Any]:
        """Build the query for the rows of a token, and for whether this user can redeem or has redeemed it (SQLite)."""
        token = self._c[self._token]
        either = token.in_([_bind(self._token, token), self._use()]) if self._mapping.is_own else self._is_token()
        facts = [sa.and_(*self._open()).label("open"), sa.and_(*self._already()).label("already")]
        return select(*self.row(), *self._widened(), *facts).where(either)

    def take(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE of the token's row by a redemption (SQLite)."""
        update = sa.update(self._t).where(self._c["id"] == _bind("id", self._c["id"]), *self._open())
        return update.values(self._taken()).returning(*self.row(), *self._widened())

    def use(self) -> sa.sql.dml.ReturningInsert[Any]:
        """Build the INSERT of the row for one use (SQLite)."""
        held = {role: _bind(f"held_{role}", self._c[role]) for role in (*_COPIED, "id") if role in self._c}
        return sa.insert(self._t).values(self._used(held)).returning(*self.row())

    def end_earlier(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that ends the other active grants of the pair (SQLite)."""
        c = self._c
        earlier = self._earlier(_bind("held_grantor_id", c["grantor_id"]), _bind("id", c["id"]))
        return sa.update(self._t).where(*earlier).values(self._ended()).returning(*self.row())

    # -- revoking, expiring, reading ----------------------------------------------------------------------------------

    def _named(self, role: str) -> list[Condition]:
        """Build the conditions for the grantor's own grant, by its id or its token; a token never names a use's row."""
        c = self._c
        named = self._is_token() if role == self._token else c[role] == _bind(role, c[role])
        return [named, c["grantor_id"] == _bind("grantor_id", c["grantor_id"])]

    def revoke(self, role: str, *, limited: bool) -> sa.Executable:
        """Build one statement that ends a grant, or reads one that has ended already, with its events (PostgreSQL)."""
        bound = [bounded()] if limited else []
        active = self._c["active"].is_(sa.true()).label("active")
        held = select(*self.row(), active).where(*bound, *self._named(role)).with_for_update().cte(self._names("held"))
        named = self._c["id"] == held.c.id
        mine = sa.or_(named, self._c["issued_id"] == held.c.id) if self._mapping.is_own else named
        ending = sa.update(self._t).where(mine, self._c["active"].is_(sa.true())).values(self._ended())
        ended = ending.returning(*self.row(), named.label("named")).cte(self._names("ended"))
        arm = sa.case((ended.c.named, word("revoked")), else_=word("ended")).label("arm")
        was = select(named_arm("was"), *self.row(held.c)).where(sa.not_(held.c.active))
        either = sa.union_all(select(arm, *self.row(ended.c)), was)
        return self._with_events(either, EventType.GRANT_REVOKED, ["revoked", "ended"])

    def named(self, role: str) -> sa.Select[Any]:
        """Build the query for the grantor's own grant, and for whether it is active (SQLite)."""
        return select(*self.row(), self._c["active"].is_(sa.true()).label("active")).where(*self._named(role))

    def end(self) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that ends a grant and every use of it (SQLite)."""
        c, named = self._c, self._c["id"] == _bind("id", self._c["id"])
        mine = sa.or_(named, c["issued_id"] == _bind("id", c["id"])) if self._mapping.is_own else named
        ending = sa.update(self._t).where(mine, c["active"].is_(sa.true())).values(self._ended())
        return ending.returning(*self.row())

    def expire(self, *, waits: bool) -> sa.sql.dml.ReturningUpdate[Any]:
        """Build the UPDATE that ends the expired grants.

        Without waiting, it leaves a row that a concurrent transaction has locked for the next call.
        """
        due = [self._c["active"].is_(sa.true()), self._c["expires_at"] <= self._now("expires_at")]
        if not waits:
            free = (
                select(self._c["id"].label("id")).where(*due).with_for_update(skip_locked=True).cte(self._names("due"))
            )
            due = [*due, self._c["id"] == free.c.id]
        return sa.update(self._t).where(*due).values(self._ended()).returning(self._c["id"])

    def active(self, roles: Sequence[str]) -> sa.Select[Any]:
        """Build the query for the grants that give access now, the earliest first."""
        narrowed: Iterable[Condition] = (self._c[role] == _bind(role, self._c[role]) for role in roles)
        order = [self._c[role] for role in ("created_at", "id") if role in self._c]
        return select(*self.row()).where(*narrowed, *self._counts()).order_by(*order)


def _statement_began() -> sa.ColumnElement[Any]:
    return sa.func.statement_timestamp(type_=sa.DateTime(timezone=True))


def _bind(name: str, column: Any) -> sa.BindParameter[Any]:
    """Return a parameter with the type of a column."""
    return sa.bindparam(f"al_{name}", type_=column.type)


def _is(column: sa.ColumnElement[Any], token: sa.BindParameter[Any]) -> Condition:
    """Build the condition that a column holds this token or hash, byte by byte.

    The column's own comparison lets the database use an index.
    """
    return sa.and_(column == token, exactly(column, token))
