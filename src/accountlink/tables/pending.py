"""Keep a claimant's sealed tokens between a conflict and the transfer that follows it.

A conflict writes no row of the links table. The tokens that the claimant has just brought would be lost, and with them
a refresh token that a provider may give only once. So the conflict writes the envelopes, which are sealed for the
claimant's own link already, into a row here. The transfer copies them into the link, and deletes the row.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from accountlink.tables.fragments import ONE, ZERO, select
from accountlink.tables.naming import Names
from accountlink.tables.own_tables import own_table, with_columns
from accountlink.tables.rows import read_moment
from accountlink.tables.slugs import slug_in
from accountlink.tables.upserts import insert_or_update
from accountlink.values.credentials import TokenSet, join_scopes, split_scopes
from accountlink.values.secrecy import ConcealedText

PENDING_NAME: Final = "accountlink_pending_credentials"
PENDING_KEY: Final = ("table_name", "user_id", "provider", "account_id")
"""The columns of the primary key: a user's tokens for an account of one table of links are kept once."""
_VALUES: Final = ("access_token", "refresh_token", "expires_at", "scopes", "kept_until")
_LEFT_ALONE: Final = ("refresh_token", "scopes")
"""The values that a row keeps if a later conflict brings none, as a link does."""
_SWEPT: Final = 100
"""The most rows that one write deletes because their time is over, so that no call takes long."""


def pending_credentials(metadata: sa.MetaData, *, name: str = PENDING_NAME, schema: str | None = None) -> sa.Table:
    """Make the table for the tokens of claimants, so that ``create_all`` and Alembic's autogenerate see it.

    One table serves any number of linkers. A row has the claimant's id, the provider and the account, sealed tokens,
    their scopes and their end, and the moment until which a transfer may use them. A row whose time is over is never
    used, and the next write deletes it, at most a hundred at once. The newest tokens replace earlier ones; tokens
    without a refresh token or scopes leave the earlier ones of these, as a relink does.

    Args:
        metadata: The metadata of your tables.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``AccountLinker(pending=...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, or the name is longer than the 63 bytes that
            PostgreSQL keeps.
    """
    moment = sa.DateTime(timezone=True)
    return own_table(
        "pending_credentials",
        metadata,
        *(sa.Column(key, sa.Text, primary_key=True) for key in PENDING_KEY),
        sa.Column("access_token", sa.Text, nullable=False),
        sa.Column("refresh_token", sa.Text),
        sa.Column("expires_at", moment),
        sa.Column("scopes", sa.Text),
        sa.Column("kept_until", moment, nullable=False),
        sa.Index(None, "kept_until"),
        name=name,
        schema=schema,
        check=checked_pending,
    )


def checked_pending(table: object) -> sa.Table:
    """Return a table that can keep pending credentials, or refuse it.

    Raises:
        ConfigurationError: It is another table.
    """
    return with_columns(
        table, (*PENDING_KEY, *_VALUES), "pending=... takes the table that pending_credentials(Base.metadata) makes"
    )


class Pending:
    """Build the parts of statements that keep a claimant's tokens, and take them out again.

    The parameter ``al_links`` brings the name under which a row stores the table of the links. The other parameters are
    named ``al_kept_`` and the name of the column; ``al_kept_now`` is the present moment.

    Args:
        table: The table.
        names: Names the parts.
    """

    def __init__(self, table: sa.Table, names: Names) -> None:
        self._table = table
        self._c = table.c
        self._names = names
        self._source = sa.bindparam("al_links", type_=sa.Text)

    # -- at a conflict ------------------------------------------------------------------------------------------------

    # As a statement by itself, for a call whose conflict is known already; the short form is that of the link's
    # statement. In a link it reads FROM al_other, so that nothing is kept where there is no conflict.
    # SQL: WITH al_kept AS (
    #        INSERT INTO pending (table_name, user_id, provider, account_id, access_token, refresh_token, expires_at,
    #                             scopes, kept_until)
    #        SELECT :links, :kept_user_id, :kept_provider, :kept_account_id, :kept_access_token, :kept_refresh_token,
    #               :kept_expires_at, :kept_scopes, :kept_kept_until
    #        ON CONFLICT (table_name, user_id, provider, account_id) DO UPDATE
    #        SET access_token = excluded.access_token,
    #            refresh_token = coalesce(excluded.refresh_token,
    #              CASE WHEN (pending.kept_until >= :kept_now) THEN pending.refresh_token END), expires_at
    #              = excluded.expires_at, scopes = coalesce(excluded.scopes,
    #              CASE WHEN (pending.kept_until >= :kept_now) THEN pending.scopes END), kept_until
    #              = excluded.kept_until
    #        RETURNING pending.table_name),
    #      al_swept AS (
    #        DELETE FROM pending WHERE ctid = ANY (array((
    #          SELECT ctid FROM pending AS al_over
    #          WHERE (EXISTS (SELECT 1 FROM al_kept)) AND al_over.kept_until < :kept_now
    #          ORDER BY al_over.kept_until LIMIT 100 FOR UPDATE OF al_over SKIP LOCKED))))
    #      SELECT 1
    def keeping(self, conflict: sa.CTE | None = None, *conditions: sa.ColumnElement[bool]) -> list[sa.CTE]:
        """Return the parts that keep the call's tokens, and delete rows whose time is over (PostgreSQL).

        The rows are deleted after the row was written, and none that another transaction has locked: so a conflict
        never waits for one lock of this table while it has another. Their order makes PostgreSQL read them from the
        index on ``kept_until``, also before it has analysed the table: no other plan stops after so few rows. They are
        deleted by their ``ctid``, which takes least to plan: a link that meets no conflict has these parts in its
        statement too.

        Args:
            conflict: The part that has a row if there is a conflict; without it there is one.
            conditions: Conditions that hold, and that are evaluated before anything waits for a lock.
        """
        values = [self._bind(name) for name in (*PENDING_KEY, *_VALUES)]
        rows = select(*values) if conflict is None else select(*values).select_from(conflict)
        rows = rows.where(*conditions)
        made = self._upsert().from_select([*PENDING_KEY, *_VALUES], rows, include_defaults=False)
        kept = made.returning(self._c.table_name).cte(self._names("kept"))
        has_kept = sa.exists(select(ONE).select_from(kept))
        over = self._table.alias(self._names("over"))
        ctid: sa.ColumnElement[Any] = sa.column("ctid")  # where a row stands: no row moves while it is locked
        old = (
            select(ctid)
            .select_from(over)
            .where(has_kept, self._is_over(over))
            .order_by(over.c.kept_until)
            .limit(sa.literal_column(str(_SWEPT), sa.Integer))
            .with_for_update(of=over, skip_locked=True)
        )
        found = sa.any_(sa.func.array(old.scalar_subquery()))
        return [kept, sa.delete(self._table).where(ctid == found).cte(self._names("swept"))]

    def keep(self, *conditions: sa.ColumnElement[bool]) -> sa.Executable:
        """Build one statement that does what :meth:`keeping` does (PostgreSQL)."""
        return select(ONE).add_cte(*self.keeping(None, *conditions))

    def keep_one(self) -> sa.Insert:
        """Build the statement that keeps the call's tokens (SQLite)."""
        return self._upsert().values({name: self._bind(name) for name in (*PENDING_KEY, *_VALUES)})

    def sweep(self) -> sa.Delete:
        """Build the statement that deletes rows whose time is over (SQLite)."""
        key = [self._c[name] for name in PENDING_KEY]
        old = select(*key).where(self._is_over()).limit(sa.literal_column(str(_SWEPT), sa.Integer))
        return sa.delete(self._table).where(sa.tuple_(*key).in_(old))

    def _upsert(self) -> sa.Insert:
        """Build the INSERT of the call's tokens, which replaces the claimant's earlier ones.

        A provider may give a refresh token only once. So a later conflict without one keeps that of an earlier one
        whose time is not over, as a relink does.
        """
        values: dict[str, sa.ColumnElement[Any]] = {
            name: sa.literal_column(f"excluded.{name}", self._c[name].type) for name in _VALUES
        }
        for name in _LEFT_ALONE:
            earlier = sa.case((sa.not_(self._is_over()), self._c[name]))
            values[name] = sa.func.coalesce(values[name], earlier)
        return insert_or_update(self._table, key=PENDING_KEY, values=values)

    # -- at a transfer ------------------------------------------------------------------------------------------------

    def read(self) -> sa.Select[Any]:
        """Build the query for the tokens that are kept for the call's user and account."""
        return select(*(self._c[name] for name in _VALUES)).where(self._is_named(), sa.not_(self._is_over()))

    def locked(self) -> sa.CTE:
        """Return the part that locks the row, and that has its access token unless its time is over (PostgreSQL)."""
        usable = sa.case((sa.not_(self._is_over()), self._c.access_token)).label("access_token")
        return select(usable).where(self._is_named()).with_for_update().cte(self._names("kept"))

    def is_unchanged(self) -> sa.ColumnElement[bool]:
        """Build the condition that the tokens which were read are the newest ones, or that there are still none.

        It locks the row before the statement locks anything else (PostgreSQL).
        """
        newest = select(self.locked().c.access_token).scalar_subquery()
        return newest.is_not_distinct_from(self._bind("access_token"))

    def is_locked(self) -> sa.ColumnElement[bool]:
        """Build a condition that is always true, and locks the row before anything else (PostgreSQL)."""
        return select(sa.func.count()).select_from(self.locked()).scalar_subquery() >= ZERO

    def drop(self, moved: sa.CTE | None = None) -> sa.Delete:
        """Build the statement, or the part of one, that deletes the row.

        Args:
            moved: The part that has a row if the link was transferred; without it it was.
        """
        conditions = [] if moved is None else [sa.exists(select(ONE).select_from(moved))]
        return sa.delete(self._table).where(self._is_named(), *conditions)

    def drop_with(self, removed: sa.CTE) -> sa.CTE:
        """Return the part that deletes what the user of a removed link has left for the same account (PostgreSQL).

        Args:
            removed: The part that returns the link.
        """
        account = select(ONE).where(
            self._c.provider == slug_in(removed.c.provider),
            self._c.account_id == sa.cast(removed.c.account_id, sa.Text),
        )
        mine = [self._c[name] == self._bind(name) for name in ("table_name", "user_id")]
        return sa.delete(self._table).where(*mine, sa.exists(account)).cte(self._names("dropped"))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _is_named(self) -> sa.ColumnElement[bool]:
        return sa.and_(*(self._c[name] == self._bind(name) for name in PENDING_KEY))

    def _is_over(self, table: sa.FromClause | None = None) -> sa.ColumnElement[bool]:
        kept_until = (self._table if table is None else table).c.kept_until
        return kept_until < sa.bindparam("al_kept_now", type_=kept_until.type)

    def _bind(self, name: str) -> sa.ColumnElement[Any]:
        if name == "table_name":
            return self._source
        return sa.bindparam(f"al_kept_{name}", type_=self._c[name].type)


def kept_values(tokens: TokenSet, *, sealed: dict[str, Any], until: datetime) -> dict[str, Any]:
    """Return the parameters of a row's values.

    Args:
        tokens: The tokens, of which only the scopes and the end are stored in clear.
        sealed: Their envelopes, by role.
        until: The moment until which a transfer may use them, aware.
    """
    return {
        "al_kept_access_token": sealed["access_token"],
        "al_kept_refresh_token": sealed.get("refresh_token"),
        "al_kept_expires_at": None if tokens.expires_at is None else tokens.expires_at.astimezone(UTC),
        "al_kept_scopes": join_scopes(tokens.scopes) if tokens.scopes else None,
        "al_kept_kept_until": until,
    }


def read_kept(row: sa.Row[Any]) -> dict[str, Any]:
    """Return the credentials in a row that :meth:`Pending.read` returned, by role, without those that are missing."""
    found = {
        "access_token": ConcealedText(row.access_token),
        "refresh_token": None if row.refresh_token is None else ConcealedText(row.refresh_token),
        "expires_at": read_moment(row.expires_at),  # SQLite has it without its zone
        "scopes": None if row.scopes is None else split_scopes(row.scopes),
    }
    return {role: value for role, value in found.items() if value is not None}
