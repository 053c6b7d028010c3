"""Keep the flows that are under way: one record for each, until the user comes back or ten minutes have passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.transactions import place_on, read, run
from accountlink.errors import OutcomeUnknown
from accountlink.tables.own_tables import own_table, with_columns
from accountlink.values.secrecy import Parameters

FLOW_STATES_NAME: Final = "accountlink_flow_states"
LIFETIME: Final = timedelta(minutes=10)
"""The time that a user may take at the provider (threats A09)."""
AT_MOST: Final = 200
"""The number of records that one user has at most; one more ends the oldest."""
_SWEPT: Final = 100
"""The number of expired records of anybody's that each new record removes at most."""


_COLUMNS: Final = (
    "digest", "kind", "user_id", "browser", "provider", "key", "expect", "return_to", "scopes", "expires_at",
)  # fmt: skip


class Kind(Enum):
    """Say what a record is for."""

    FLOW = "flow"
    TICKET = "ticket"
    SIGN_IN = "sign_in"


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowRecord:
    """Hold what the application knew when a flow began.

    Attributes:
        digest: The digest of the state, or of the ticket. Neither is stored.
        kind: Whether it is a flow, a ticket from which one can begin, or a visitor's sign-in.
        user_id: The user who began it, as text with its type. A visitor is nobody yet: their browser's digest.
        browser: The digest of the browser's cookie, or of ``"bearer"`` for a user who proves themselves by a bearer
            token: no cookie has that value. ``None`` for a ticket, and for a sign-in, whose ``user_id`` is the browser.
        provider: The provider's slug.
        key: The name of the secret from which verifier and nonce are derived.
        expect: The link to reconnect, as text with its type.
        return_to: The complete URL that the browser goes to afterwards.
        scopes: The scopes that were asked for.
        expires_at: When it ends, aware.
    """

    digest: str
    kind: Kind
    user_id: str = field(repr=False)
    browser: str | None = field(default=None, repr=False)
    provider: str
    key: str
    expect: str | None = None
    return_to: str | None = None
    scopes: tuple[str, ...] = ()
    expires_at: datetime


class Absence(Enum):
    """Say why there is no record for this user and this browser."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"


class FlowStates(Protocol):
    """Keep records of flows. Each method works on the flow's engine."""

    async def add(self, engine: AsyncEngine, record: FlowRecord, *, now: datetime) -> None:
        """Store a record, and remove expired ones and the user's oldest beyond the cap."""

    async def consume(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, browser: str | None, now: datetime
    ) -> FlowRecord | Absence:
        """Return the record and mark it as used, in one step, if it is this user's and this browser's and unused.

        A record with a browser is given to that browser only; one without is given to its user.
        """

    async def look(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, now: datetime
    ) -> FlowRecord | Absence:
        """Return a record of this user without using it."""


def flow_states(metadata: sa.MetaData, *, name: str = FLOW_STATES_NAME, schema: str | None = None) -> sa.Table:
    """Make the table of flows on your metadata, so that ``create_all`` and Alembic's autogenerate see it.

    It holds digests, user ids, slugs and return targets; no state, no verifier, no token and no e-mail address. A
    record is of use for ten minutes. Each new one removes expired ones.

    Args:
        metadata: The metadata of your tables.
        name: The table's name.
        schema: The table's schema; the metadata's own without it.

    Returns:
        The table, for ``LinkFlow(states=...)``. Called again, the same table.

    Raises:
        ConfigurationError: The metadata has another table of that name, or the name is longer than the 63 bytes that
            PostgreSQL keeps.
    """
    return own_table(
        "flow_states",
        metadata,
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("browser", sa.Text),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("expect", sa.Text),
        sa.Column("return_to", sa.Text),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.Index(None, "user_id", "expires_at"),
        sa.Index(None, "expires_at"),
        name=name,
        schema=schema,
        check=checked_states,
    )


def checked_states(table: object) -> sa.Table:
    """Return a table of flows, or refuse another one.

    Raises:
        ConfigurationError: The table is not one of flows.
    """
    return with_columns(
        table,
        _COLUMNS,
        "states=... takes the table that flow_states(Base.metadata) makes, or MemoryFlowStates() in tests",
    )


class TableFlowStates:
    """Keep records of flows in the table that :func:`flow_states` makes.

    Args:
        table: That table.
    """

    def __init__(self, table: sa.Table) -> None:
        self.table: Final = checked_states(table)
        c = table.c
        now = sa.bindparam("al_now", type_=c.expires_at.type)
        mine = sa.and_(
            c.digest == sa.bindparam("al_digest", type_=sa.Text),
            c.kind == sa.bindparam("al_kind", type_=sa.Text),
            c.user_id == sa.bindparam("al_user", type_=sa.Text),
            sa.or_(c.browser.is_(None), c.browser == sa.bindparam("al_browser", type_=sa.Text)),
        )
        whole = [c[name] for name in _COLUMNS]
        self._use = (
            sa.update(table).values(used_at=now).where(mine, c.used_at.is_(None), c.expires_at > now).returning(*whole)
        )
        self._seen = sa.select(*whole, c.used_at.is_not(None).label("used"), (c.expires_at <= now).label("over")).where(
            mine
        )
        self._add = sa.insert(table).from_select(
            _COLUMNS,
            sa.select(*(sa.bindparam(f"al_{name}", type_=c[name].type) for name in _COLUMNS)).where(
                ~sa.exists(sa.select(sa.literal_column("1")).where(c.digest == sa.bindparam("al_digest")))
            ),
            include_defaults=False,
        )
        self._trim = sa.delete(table).where(
            c.digest.in_(
                sa.select(c.digest)
                .where(c.user_id == sa.bindparam("al_user_id", type_=sa.Text))
                .order_by(c.expires_at.desc(), c.digest)
                .offset(sa.literal_column(str(AT_MOST)))
            )
        )
        expired = sa.select(c.digest).where(c.expires_at <= now).limit(sa.literal_column(str(_SWEPT)))
        # Two starts at once share the work; neither waits for the other.
        self._sweep = sa.delete(table).where(c.digest.in_(expired.with_for_update(skip_locked=True)))

    async def add(self, engine: AsyncEngine, record: FlowRecord, *, now: datetime) -> None:
        """Store a record, and remove expired ones and the user's oldest beyond the cap."""
        values = {f"al_{name}": value for name, value in _row(record).items()}

        def work(connection: sa.Connection) -> None:
            connection.execute(self._sweep, {"al_now": now.astimezone(UTC)})
            connection.execute(self._add, Parameters(values))
            connection.execute(self._trim, Parameters(al_user_id=record.user_id))

        await run(place_on(engine, tables=[self.table]), work, Patience())

    async def consume(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, browser: str | None, now: datetime
    ) -> FlowRecord | Absence:
        """Return the record and mark it as used, by one statement, if it is this user's and this browser's."""
        values = Parameters(
            al_digest=digest, al_kind=kind.value, al_user=user_id, al_browser=browser, al_now=now.astimezone(UTC)
        )

        def work(connection: sa.Connection) -> FlowRecord | Absence:
            row = connection.execute(self._use, values).one_or_none()
            return _record(row) if row is not None else self._absence(connection.execute(self._seen, values).first())

        patience = Patience()
        found: FlowRecord | Absence = await run(place_on(engine, tables=[self.table]), work, patience)
        if found is Absence.USED and patience.ambiguous:  # perhaps by the attempt whose answer was lost
            raise OutcomeUnknown
        return found

    async def look(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, now: datetime
    ) -> FlowRecord | Absence:
        """Return an unused record of this user, and change nothing."""
        values = Parameters(
            al_digest=digest, al_kind=kind.value, al_user=user_id, al_browser=None, al_now=now.astimezone(UTC)
        )

        def work(connection: sa.Connection) -> FlowRecord | Absence:
            row = connection.execute(self._seen, values).first()
            return self._absence(row) if row is None or row.used or row.over else _record(row)

        return await read(place_on(engine, tables=[self.table]), work)

    @staticmethod
    def _absence(row: Any) -> Absence:
        if row is None:
            return Absence.UNKNOWN
        return Absence.USED if row.used else Absence.EXPIRED


class MemoryFlowStates:
    """Keep records of flows in this process, for tests: another process, or a restart, knows none of them."""

    def __init__(self) -> None:
        self._records: dict[str, FlowRecord] = {}
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._records)

    async def add(self, engine: AsyncEngine, record: FlowRecord, *, now: datetime) -> None:
        """Store a record, and remove expired ones and the user's oldest beyond the cap."""
        kept = [each for each in self._records.values() if each.expires_at > now]
        own = sorted((each for each in kept if each.user_id == record.user_id), key=lambda each: each.expires_at)
        gone = {each.digest for each in own[: max(0, len(own) + 1 - AT_MOST)]}
        self._records = {each.digest: each for each in (*kept, record) if each.digest not in gone}
        self._used &= self._records.keys()

    async def consume(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, browser: str | None, now: datetime
    ) -> FlowRecord | Absence:
        """Return the record and mark it as used, in one step, if it is this user's and this browser's."""
        record = self._records.get(digest)
        if record is None or (record.kind, record.user_id) != (kind, user_id):
            return Absence.UNKNOWN
        if record.browser is not None and record.browser != browser:
            return Absence.UNKNOWN
        if digest in self._used:
            return Absence.USED
        if record.expires_at <= now:
            return Absence.EXPIRED
        self._used.add(digest)
        return record

    async def look(
        self, engine: AsyncEngine, *, digest: str, kind: Kind, user_id: str, now: datetime
    ) -> FlowRecord | Absence:
        """Return an unused record of this user, and change nothing."""
        record = self._records.get(digest)
        if record is None or (record.kind, record.user_id) != (kind, user_id):
            return Absence.UNKNOWN
        if digest in self._used:
            return Absence.USED
        return record if record.expires_at > now else Absence.EXPIRED


def _row(record: FlowRecord) -> dict[str, object]:
    values = {name: getattr(record, name) for name in _COLUMNS}
    ends = record.expires_at.astimezone(UTC)
    return values | {"kind": record.kind.value, "scopes": " ".join(record.scopes), "expires_at": ends}


def _record(row: Any) -> FlowRecord:
    values = {name: row._mapping[name] for name in _COLUMNS}  # noqa: SLF001  # SQLAlchemy's documented attribute
    ends: datetime = values["expires_at"]
    return FlowRecord(
        **values
        | {
            "kind": Kind(values["kind"]),
            "scopes": tuple(values["scopes"].split()),
            "expires_at": ends if ends.tzinfo is not None else ends.replace(tzinfo=UTC),
        }
    )
