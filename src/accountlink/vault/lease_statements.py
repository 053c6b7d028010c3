"""Build the statements that let one caller at a time renew the tokens of a link, and that store what came of it.

A row of ``refresh_states`` has the lease. Its other columns belong to one grant, by the grant id of the access token:
for another grant they count as empty, so that a link never has to write them. A lease counts for every grant.

Each statement first looks at the link's row, and locks it: who takes a lease has seen the newest tokens, and who stores
something does so only where the row still has the tokens that were presented.

Source: PostgreSQL 15 documentation, sections 13.2.1 (a statement that waited looks at its condition again), 13.3.2 and
9.9.5 (``clock_timestamp``, which is not the start of the transaction).
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.linking.statements import Condition, Shape
from accountlink.tables.fragments import ONE, ZERO, select, word
from accountlink.tables.id_text import id_text
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.refreshes import STATE_KEY
from accountlink.tables.type_layers import works_on_values
from accountlink.tables.upserts import insert_or_update
from accountlink.values.events import EventType
from accountlink.values.health import HealthState
from accountlink.vault.statements import VaultStatements

STATE_COLUMNS: Final = (
    "grant_id", "lease_by", "lease_until", "retry_at", "failures", "opaque", "uncertain", "state", "provider_code",
    "since", "refused", "refreshed_at",
)  # fmt: skip
"""The columns of a state that are read beside a link's tokens, in this order."""
_OK: Final = word(HealthState.OK.value)
_ENDED: Final = word(HealthState.NEEDS_CONSENT.value)


class LeaseStatements(VaultStatements):
    """Build the statements of renewals for one table of links.

    The parameter ``al_links`` brings the name under which a state stores the table of the links. On SQLite ``al_now``
    and ``al_until`` bring the moments; PostgreSQL's own clock gives them otherwise.

    Args:
        mapping: The table of links.
        states: The table of renewals.
        outbox: The outbox, if there is one.
    """

    def __init__(self, mapping: AccountMapping[Any, Any], states: sa.Table, outbox: sa.Table | None = None) -> None:
        super().__init__(mapping, outbox=outbox)
        self._states = states
        self._s = states.c
        self._links = sa.bindparam("al_links", type_=sa.Text)

    # -- moments ------------------------------------------------------------------------------------------------------

    def _now(self, *, on_sqlite: bool) -> sa.ColumnElement[Any]:
        moment = sa.DateTime(timezone=True)
        return sa.bindparam("al_now", type_=moment) if on_sqlite else sa.func.clock_timestamp(type_=moment)

    def _later(self, name: str, *, on_sqlite: bool) -> sa.ColumnElement[Any]:
        """Return a moment in the future: on PostgreSQL the parameter brings the time until then."""
        if on_sqlite:
            return sa.bindparam(f"al_{name}", type_=sa.DateTime(timezone=True))
        return self._now(on_sqlite=False) + sa.bindparam(f"al_{name}", type_=sa.Interval)

    # -- reading ------------------------------------------------------------------------------------------------------

    def tokens_and_state(self, roles: tuple[str, ...], account_role: str, *, on_sqlite: bool) -> sa.Select[Any]:
        """Build the query for the user's live rows with their tokens and the states of their renewals.

        Args:
            roles: The roles that narrow the rows down: the id, the provider, or both.
            account_role: The role to whose text the tokens are bound.
            on_sqlite: Whether the database is SQLite.
        """
        return self._with_state(self.tokens(roles, account_role, on_sqlite=on_sqlite))

    def _with_state(self, rows: sa.Select[Any]) -> sa.Select[Any]:
        """Add to a query of links the states of their renewals, which a link may not have."""
        s = self._s
        joined = self._t.outerjoin(
            self._states, sa.and_(s.table_name == self._links, s.link_id == id_text(self._c["id"]))
        )
        return rows.select_from(joined).add_columns(*(s[name].label(f"state_{name}") for name in STATE_COLUMNS))

    # -- the lease ----------------------------------------------------------------------------------------------------

    # On PostgreSQL, for a link that is live with SOFT removal; `seen` stands for the comparisons with the tokens that
    # were read, and `same` for `states.grant_id = excluded.grant_id`.
    # SQL: WITH al_link AS (
    #        SELECT links.id AS id FROM links
    #        WHERE links.id = :id AND links.user_id = :user_id AND links.deleted_at IS NULL AND seen
    #        FOR NO KEY UPDATE)
    #      INSERT INTO accountlink_refresh_states AS states (table_name, link_id, grant_id, lease_by, lease_until)
    #      SELECT :links, al_link.id::text, :grant_id, :lease_by, clock_timestamp() + :until FROM al_link
    #      ON CONFLICT (table_name, link_id) DO UPDATE SET grant_id = excluded.grant_id, …
    #      WHERE (states.lease_until IS NULL OR states.lease_until < clock_timestamp()
    #             OR states.lease_by = excluded.lease_by)
    #        AND (NOT same OR (states.state <> 'needs_consent'
    #                          AND (states.retry_at IS NULL OR states.retry_at <= clock_timestamp())))
    #      RETURNING states.*, clock_timestamp()
    def lease(self, *, on_sqlite: bool, bounded: bool = False) -> sa.Executable:
        """Build the statement that takes the lease, if the row has the tokens that were read and nobody has it.

        Whoever has the lease already takes it again: the answer to an earlier attempt was lost.

        Args:
            on_sqlite: Whether the database is SQLite.
            bounded: Whether the wait for the link's row is bounded.
        """
        s, now = self._s, self._now(on_sqlite=on_sqlite)
        excluded = {name: sa.literal_column(f"excluded.{name}", s[name].type) for name in (column.name for column in s)}
        same = s.grant_id == excluded["grant_id"]
        bound = [self._bounded()] if bounded else []
        link = select(self._c["id"].label("id")).where(*bound, *self._presented())
        if not on_sqlite:
            link = link.with_for_update(key_share=True)
        found = link.cte(self._names("link"))
        mine = sa.func.coalesce(s.lease_by == excluded["lease_by"], sa.false())
        free = sa.or_(s.lease_until.is_(None), s.lease_until < now, mine)
        may_try = sa.and_(s.state != _ENDED, sa.or_(s.retry_at.is_(None), s.retry_at <= now))
        values: dict[str, sa.ColumnElement[Any]] = {
            "grant_id": excluded["grant_id"],
            "lease_by": excluded["lease_by"],
            "lease_until": excluded["lease_until"],
            "retry_at": sa.case((same, s.retry_at), else_=sa.null()),
            "failures": sa.case((same, s.failures), else_=ZERO),
            "opaque": sa.case((same, s.opaque), else_=ZERO),
            # A lease that nobody gave back belonged to a caller who died, perhaps after the provider had answered.
            "uncertain": sa.and_(same, sa.or_(s.uncertain, sa.and_(s.lease_by.is_not(None), sa.not_(mine)))),
            "state": sa.case((same, s.state), else_=_OK),
            "provider_code": sa.case((same, s.provider_code), else_=sa.null()),
            "since": sa.case((same, s.since), else_=sa.null()),
            "refused": sa.case((same, s.refused), else_=sa.null()),
        }
        made = insert_or_update(
            self._states, key=STATE_KEY, values=values, where=sa.and_(free, sa.or_(sa.not_(same), may_try))
        )
        rows = select(
            self._links,
            id_text(found.c.id),
            sa.bindparam("al_grant_id", type_=sa.Text),
            sa.bindparam("al_lease_by", type_=sa.Text),
            self._later("until", on_sqlite=on_sqlite),
        )
        taken = made.from_select(
            [*STATE_KEY, "grant_id", "lease_by", "lease_until"],
            rows.select_from(found).where(sa.true()),  # or SQLite takes ON for the beginning of a join
            include_defaults=False,
        )
        return taken.returning(s.failures, s.opaque, s.uncertain, s.lease_until, now.label("now"))

    def _presented(self) -> list[Condition]:
        """Build the conditions that the user's live row has the tokens that were read."""
        return [self._is_named(), self.live(), *self._still_sealed()]

    # -- what came of it ----------------------------------------------------------------------------------------------

    def store(self, shape: Shape, *, is_over: bool) -> sa.Executable:
        """Build one statement that stores the new tokens, and records that they are new (PostgreSQL).

        It gives the lease back, too, if the caller still has it.

        Args:
            shape: The shape of the call, with the roles that it writes.
            is_over: Whether the new access token is over already.
        """
        written = self.replace(shape).cte(self._names("written"))
        done = self._recorded(
            self._renewed(on_sqlite=False, is_over=is_over), sa.exists(select(ONE).select_from(written))
        )
        return select(written.c.id).add_cte(done.cte(self._names("gave_back")))

    def renewed_on_sqlite(self, *, is_over: bool) -> sa.Update:
        """Build the statement that records a renewal and gives the lease back (SQLite).

        Args:
            is_over: Whether the new access token is over already.
        """
        return self._recorded(self._renewed(on_sqlite=True, is_over=is_over))

    def give_back(self) -> sa.Update:
        """Build the statement that gives the lease back; nothing else of the state changes."""
        return self._gave_back({})

    def _renewed(self, *, on_sqlite: bool, is_over: bool) -> dict[str, Any]:
        """Return the state after a renewal. A token that is over on arrival counts as a failure."""
        s, now = self._s, self._now(on_sqlite=on_sqlite)
        return {
            "grant_id": sa.bindparam("al_grant_id", type_=sa.Text),
            "retry_at": self._later("wait", on_sqlite=on_sqlite) if is_over else sa.null(),
            "failures": s.failures + ONE if is_over else ZERO,
            "opaque": ZERO,
            "uncertain": sa.false(),
            "state": word(HealthState.FAILING.value) if is_over else _OK,
            "provider_code": sa.null(),
            "since": now if is_over else sa.null(),
            "refused": sa.null(),
            "refreshed_at": now,
        }

    def _gave_back(self, values: dict[str, Any], *conditions: Condition) -> sa.Update:
        freed = {"lease_by": sa.null(), "lease_until": sa.null()}
        return sa.update(self._states).where(*self._has_lease(), *conditions).values(values | freed)

    def _recorded(self, values: dict[str, Any], *conditions: Condition) -> sa.Update:
        """Build the update of the link's state, whoever has the lease: it is given back if it is the caller's own."""
        s = self._s
        freed = {
            column.name: sa.case((self._is_mine(), sa.null()), else_=column) for column in (s.lease_by, s.lease_until)
        }
        return sa.update(self._states).where(*self._is_its_state(), *conditions).values(values | freed)

    def _has_lease(self) -> list[Condition]:
        return [*self._is_its_state(), self._is_mine()]

    def _is_its_state(self) -> list[Condition]:
        return [self._s.table_name == self._links, self._s.link_id == id_text(self.bind("id"))]

    def _is_mine(self) -> Condition:
        return self._s.lease_by == sa.bindparam("al_lease_by", type_=sa.Text)

    def fail(self, state: HealthState, *, on_sqlite: bool) -> sa.Executable:
        """Build the statement that records a failed renewal and gives the lease back.

        It does so only if the link still has the tokens that were presented. It returns when to try again.

        Args:
            state: The state of the grant from now on.
            on_sqlite: Whether the database is SQLite.
        """
        s, now = self._s, self._now(on_sqlite=on_sqlite)
        link = select(self._c["id"].label("id")).where(*self._presented())
        if not on_sqlite:
            link = link.with_for_update(key_share=True)
        found = link.cte(self._names("link"))
        became = word(state.value)
        flag = sa.bindparam("al_uncertain", type_=sa.Boolean)
        values: dict[str, Any] = {
            "grant_id": sa.bindparam("al_grant_id", type_=sa.Text),
            "retry_at": sa.null() if state is HealthState.NEEDS_CONSENT else self._later("wait", on_sqlite=on_sqlite),
            "failures": s.failures + ONE,
            "opaque": sa.bindparam("al_opaque", type_=sa.Integer),
            "uncertain": sa.or_(s.uncertain, flag),
            "state": became,
            "provider_code": sa.bindparam("al_provider_code", type_=sa.Text),
            "since": sa.case((s.state == became, sa.func.coalesce(s.since, now)), else_=now),
            "refused": sa.null(),
        }
        failed = self._gave_back(values, sa.exists(select(ONE).select_from(found))).returning(s.retry_at, s.since)
        if self.outbox is None or state is not HealthState.NEEDS_CONSENT or on_sqlite:
            return failed
        recorded = failed.cte(self._names("failed"))
        of_link = (
            select(*self.row())
            .where(self._is_named(), sa.exists(select(ONE).select_from(recorded)))
            .cte(self._names("dead"))
        )
        event = self.outbox.of_row(of_link, EventType.CONSENT_NEEDED, with_data=True)
        return select(recorded.c.retry_at, recorded.c.since).add_cte(event)

    def refuse(self, *, on_sqlite: bool) -> sa.Update:
        """Build the statement that gives the lease back after the provider refused the application's client."""
        code = sa.bindparam("al_provider_code", type_=sa.Text)
        return self._gave_back({"retry_at": self._later("wait", on_sqlite=on_sqlite), "refused": code})


class UpkeepStatements(LeaseStatements):
    """Build the statements that look after the grants of all users of one table.

    Links are read in pages, each of which is a range of ids. So the database reads one page of links whatever else the
    statement asks for, and a link that changes meanwhile is neither left out nor read twice. The parameter ``al_after``
    brings the last id of the page before, and ``al_last`` that of the page.
    """

    # -- listing ------------------------------------------------------------------------------------------------------

    def in_state(self, size: int, *, begins: bool) -> sa.Select[Any]:
        """Build the query for a page of the ids of links, as text, by the state of their renewals.

        Args:
            size: The most rows.
            begins: Whether it is the first page.
        """
        s = self._s
        wanted = s.state == sa.bindparam("al_state", type_=sa.Text)
        later = [] if begins else [s.link_id > sa.bindparam("al_after", type_=sa.Text)]
        ids = select(s.link_id).where(s.table_name == self._links, wanted, *later)
        return ids.order_by(s.link_id).limit(_number(size))

    def of_ids(self, account_role: str, *, on_sqlite: bool) -> sa.Select[Any]:
        """Build the query for live links by their ids, with their tokens and states.

        Args:
            account_role: The role to whose text the tokens are bound.
            on_sqlite: Whether the database is SQLite.
        """
        ids = self._c["id"].in_(sa.bindparam("al_ids", type_=self._c["id"].type, expanding=True))
        return self._links_of_all([ids], account_role, on_sqlite=on_sqlite)

    # On PostgreSQL, for a page in the middle of the table; the short form is that of the link's statement.
    # SQL: SELECT links.*, links.access_token, …, states.*
    #      FROM links LEFT JOIN accountlink_refresh_states AS states
    #        ON states.table_name = :links AND states.link_id = links.id::text
    #      WHERE links.id > :after AND links.id <= :last AND links.deleted_at IS NULL
    #        AND (states.state <> 'ok' OR links.access_token IS NULL OR links.access_token = ''
    #             OR (links.refresh_token IS NULL OR links.refresh_token = '') AND links.expires_at <= :expires_at)
    def may_be_ill(self, account_role: str, *, begins: bool, ends: bool, on_sqlite: bool) -> sa.Select[Any]:
        """Build the query for the links of a page whose tokens may not work, with their tokens and states.

        The parameter ``al_expires_at`` brings a moment after the present one, whatever the clocks say.

        Args:
            account_role: The role to whose text the tokens are bound.
            begins: Whether it is the first page.
            ends: Whether it is the last page.
            on_sqlite: Whether the database is SQLite.
        """
        c = self._c
        ill = [self._s.state != _OK, self._lacks("access_token")]
        if "expires_at" in c:
            ill.append(sa.and_(self._lacks("refresh_token"), c["expires_at"] <= self.bind("expires_at")))
        page = self._page(begins=begins, ends=ends)
        return self._links_of_all([*page, sa.or_(*ill)], account_role, on_sqlite=on_sqlite)

    def _lacks(self, role: str) -> Condition:
        """Build the condition that a link may have no token in a role's column.

        What an application's own type stores for an empty text is its own affair.
        """
        if role not in self._c or works_on_values(self._c[role].type):
            return sa.true()
        return sa.or_(self._c[role].is_(None), self._c[role] == word(""))

    # -- keeping alive ------------------------------------------------------------------------------------------------

    def page_end(self, size: int, *, begins: bool) -> sa.Select[Any]:
        """Build the query for the last id of a page of links; there is none where fewer links are left.

        Args:
            size: The number of links of the page.
            begins: Whether it is the first page.
        """
        key = self._c["id"]
        later = [] if begins else [key > self._bound_id("after")]
        return select(key.label("id")).where(*later).order_by(key).offset(_number(size - 1)).limit(ONE)

    # On PostgreSQL, for a page in the middle of the table; the short form is that of the link's statement.
    # SQL: SELECT links.*, links.access_token, …, states.*
    #      FROM links LEFT JOIN accountlink_refresh_states AS states
    #        ON states.table_name = :links AND states.link_id = links.id::text
    #      WHERE links.id > :after AND links.id <= :last AND links.deleted_at IS NULL
    #        AND links.access_token IS NOT NULL AND links.access_token <> ''
    #        AND (states.refreshed_at < :before OR (states.refreshed_at IS NULL AND links.created_at < :created_at))
    #        AND (states.lease_until IS NULL OR states.lease_until < clock_timestamp())
    def idle(self, account_role: str, *, begins: bool, ends: bool, on_sqlite: bool) -> sa.Select[Any]:
        """Build the query for the links of a page that nobody has renewed for some time, with their tokens and states.

        A link without a state was never renewed. When its tokens were obtained stands in the envelope; the moment of
        the row's making bounds it. Whether a link without a refresh token can be renewed, the refresher knows.

        Args:
            account_role: The role to whose text the tokens are bound.
            begins: Whether it is the first page.
            ends: Whether it is the last page.
            on_sqlite: Whether the database is SQLite.
        """
        s, c = self._s, self._c
        has_tokens = [c["access_token"].is_not(None), c["access_token"] != word("")]
        never: Condition = s.refreshed_at.is_(None)
        if "created_at" in c:
            never = sa.and_(never, sa.func.coalesce(c["created_at"] < self.bind("created_at"), sa.true()))
        is_idle = sa.or_(s.refreshed_at < sa.bindparam("al_before", type_=s.refreshed_at.type), never)
        is_free = sa.or_(s.lease_until.is_(None), s.lease_until < self._now(on_sqlite=on_sqlite))
        page = self._page(begins=begins, ends=ends)
        return self._links_of_all([*page, *has_tokens, is_idle, is_free], account_role, on_sqlite=on_sqlite)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _links_of_all(self, conditions: list[Condition], account_role: str, *, on_sqlite: bool) -> sa.Select[Any]:
        """Build a query for live links of all users, with their tokens and states.

        A row without a user, a provider or an account is no link that can be found.
        """
        is_whole = [self._c[role].is_not(None) for role in ("user_id", "provider", account_role)]
        links = select(*self.row()).where(*conditions, self.live(), *is_whole)
        return self._with_state(self._with_tokens(links, account_role, on_sqlite=on_sqlite))

    def _page(self, *, begins: bool, ends: bool) -> list[Condition]:
        """Build the conditions that a link belongs to a page."""
        key = self._c["id"]
        return [
            *([] if begins else [key > self._bound_id("after")]),
            *([] if ends else [key <= self._bound_id("last")]),
        ]

    def _bound_id(self, name: str) -> sa.BindParameter[Any]:
        return sa.bindparam(f"al_{name}", type_=self._c["id"].type)


def _number(value: int) -> sa.ColumnElement[int]:
    """Return a number as a part of the statement, by which the database plans it."""
    return sa.literal_column(str(value), sa.Integer)
