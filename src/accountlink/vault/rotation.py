"""Seal the tokens of a whole table anew: those in plain text, and those that an older key has sealed.

Both run while the application does. They read a batch of rows, seal it, and write the rows that nothing has changed in
between. They scan the table until a scan finds nothing to seal. So they need no state: a run that was stopped half-way
is simply started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.database.patience import Patience
from accountlink.database.transactions import Needs, OwnStatements, place_on, read, run
from accountlink.errors import ConfigurationError, StoreBusy
from accountlink.tables.arguments import check_kind
from accountlink.tables.mapping import AccountMapping
from accountlink.vault.keys import VaultKey, current_key, key_of
from accountlink.vault.resealing import OLDER_KEY, PLAIN_TEXT, Resealed, Task
from accountlink.vault.sealed_rows import Key, SealedRow, SealedRows, rows_of_links, rows_of_pending
from accountlink.vault.sealing import Sealing, TableVault
from accountlink.vault.vault import CredentialVault

BATCH_SIZE: Final = 500
"""The number of rows that are read, sealed and written together."""
LARGEST_BATCH: Final = 10_000
_SCANS: Final = 5
"""The number of scans that seal rows, before a last one only counts what other processes keep writing."""
_PAUSE: Final = 0.1
"""Seconds before the table is scanned again because other transactions had locked or changed its rows; doubled."""


class Mode(Enum):
    """Say whether rows are sealed or only counted."""

    SEAL = "seal"
    """The rows are sealed."""
    COUNT = "count"
    """Nothing is written. Each row is opened, so that those that cannot be read are known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreadable:
    """Name a row that cannot be sealed anew.

    Attributes:
        table: The table.
        link_id: The id of the link; ``None`` for a row of pending credentials, which has none.
        reason: Why: a reason of ``CredentialsUnreadable``; ``"no_account"`` for a row without a user, a provider or an
            account, to which an envelope could be bound; or ``"too_long"`` for a column that is too narrow.
    """

    table: str
    link_id: Any
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Say how far a backfill or a rotation is. The last value says how it ended.

    Attributes:
        scanned: The rows that the tables had at the beginning.
        due: Those of them that looked as if they were to be sealed.
        sealed: The rows that were sealed so far.
        waiting: The rows of the present scan that can be sealed and were not: other transactions had locked or changed
            them, or they are only counted.
        unreadable: The rows of the present scan that cannot be sealed.
    """

    scanned: int
    due: int
    sealed: int = 0
    waiting: int = 0
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def left(self) -> int:
        """The number of rows that are left, once this is the last value."""
        return self.waiting + len(self.unreadable)


class LinkerWithVault(Protocol):
    """Require what a backfill and a rotation need of a linker: ``AccountLinker`` has it."""

    @property
    def mapping(self) -> AccountMapping[Any, Any]:
        """The table of links."""
        ...

    @property
    def vault(self) -> CredentialVault | None:
        """The vault."""
        ...

    @property
    def pending(self) -> sa.Table | None:
        """The table of pending credentials."""
        ...


async def backfill(
    engine: AsyncEngine, linker: LinkerWithVault, *, mode: Mode = Mode.SEAL, batch_size: int = BATCH_SIZE
) -> AsyncGenerator[Progress, None]:
    """Seal the tokens that the table of links contains in plain text, also in dead rows.

    It can run while the application links, reads and unlinks, if every process of the application has the vault and
    ``Plaintext.READ``. Columns other than ``access_token`` and ``refresh_token`` stay as they are. A sealed token has
    no ``issued_at``, since nobody knows when it was obtained. Text that begins as envelopes do is never sealed again.

    Args:
        engine: The engine of the application's database. Each batch has a short transaction of its own.
        linker: The linker with the vault; whether that refuses plain text makes no difference here.
        mode: Whether rows are sealed or only counted.
        batch_size: The most rows that are read, sealed and written together, from 1 to 10,000.

    Yields:
        The progress at the beginning and after each batch. The last value says how it ended: with ``left == 0`` the
        last scan has found no plain text.

    Raises:
        ConfigurationError: The linker has no vault, the engine is unsuitable, or the batch size is out of range.
        StoreUnavailable: The connection failed.
        StoreBusy: A row could not be read within the database's time limit.
        Exception: What the source of the keys raised, unchanged; database errors, as SQLAlchemy raises them.
    """
    async for progress in _Scans(engine, linker, PLAIN_TEXT, batch_size=batch_size).run(mode):
        yield progress


async def rotate_keys(
    engine: AsyncEngine, linker: LinkerWithVault, *, mode: Mode = Mode.SEAL, batch_size: int = BATCH_SIZE
) -> AsyncGenerator[Progress, None]:
    """Seal each envelope with the newest key that is not sealed with it, also in dead rows and pending credentials.

    It can run while the application links, reads and unlinks, if every process of the application has the newest key.
    Grant ids, and columns other than ``access_token`` and ``refresh_token``, stay as they are. Plain text is left
    alone.

    Args:
        engine: The engine of the application's database. Each batch has a short transaction of its own.
        linker: The linker with the vault. Its newest key seals, and the older ones open.
        mode: Whether rows are sealed or only counted.
        batch_size: The most rows that are read, sealed and written together, from 1 to 10,000.

    Yields:
        The progress at the beginning and after each batch. The last value says how it ended: with ``left == 0`` the
        last scan has found no envelope of another key, so that the older keys can be removed.

    Raises:
        ConfigurationError: The linker has no vault, the engine is unsuitable, or the batch size is out of range.
        StoreUnavailable: The connection failed.
        StoreBusy: A row could not be read within the database's time limit.
        Exception: What the source of the keys raised, unchanged; database errors, as SQLAlchemy raises them.
    """
    async for progress in _Scans(engine, linker, OLDER_KEY, batch_size=batch_size).run(mode):
        yield progress


# -- scans ------------------------------------------------------------------------------------------------------------


class _Scans:
    """Scan the tables of one linker, and seal what is found.

    Raises:
        ConfigurationError: The linker has no vault, the engine is unsuitable, or the batch size is out of range.
    """

    def __init__(self, engine: AsyncEngine, linker: LinkerWithVault, task: Task, *, batch_size: int) -> None:
        check_kind("engine", engine, AsyncEngine)
        size: object = batch_size
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST_BATCH:
            raise ConfigurationError(f"batch_size= is a whole number from 1 to {LARGEST_BATCH:,}.")
        if linker.vault is None:
            raise ConfigurationError("The linker has no vault. Make it with AccountLinker(..., vault=...).")
        self._mapping = linker.mapping
        self._pending = linker.pending if task.with_pending else None
        self._vault: TableVault = linker.vault.of(linker.mapping)
        self._task = task
        self._batch_size = batch_size
        tables = [self._mapping.table, *([] if self._pending is None else [self._pending])]
        self._writing = place_on(engine, tables=tables, needs=Needs.SNAPSHOTS)
        # One statement that commits by itself: on a tuned SQLite engine a transaction would take the write lock.
        self._reading = OwnStatements(engine=engine, tables=tables, on_sqlite=engine.dialect.name == "sqlite")

    async def run(self, mode: Mode) -> AsyncGenerator[Progress, None]:
        """Scan until a scan has nothing to seal, and yield the progress."""
        check_kind("mode", mode, Mode)
        progress = await self._counted()
        yield progress
        for number in range(_SCANS if mode is Mode.SEAL else 0):
            begun = progress
            async for reached in self._scan(begun, Mode.SEAL):
                yield (progress := reached)
            if progress.sealed == begun.sealed and not progress.waiting:
                return
            if progress.waiting:
                await asyncio.sleep(_PAUSE * 2**number)
        async for reached in self._scan(progress, Mode.COUNT):
            yield reached

    async def _counted(self) -> Progress:
        newest = await current_key(self._vault.vault.source)
        counts = [await read(self._reading, rows.count) for rows in self._tables(newest.id)]
        return Progress(scanned=sum(rows for rows, _ in counts), due=sum(due for _, due in counts))

    def _tables(self, newest: str) -> list[SealedRows]:
        """Return the tables, with the condition for rows that the key of this id has not sealed."""
        begins = self._task.begins(newest)
        links = rows_of_links(self._mapping, self._vault, begins)
        if self._pending is None:
            return [links]
        return [links, rows_of_pending(self._pending, self._mapping, self._vault, begins)]

    async def _scan(self, progress: Progress, mode: Mode) -> AsyncGenerator[Progress, None]:
        """Scan each table once from its beginning, with the key that is the newest one now."""
        progress = replace(progress, waiting=0, unreadable=())
        yield progress
        sealing = await self._vault.ready()
        keys: dict[str, VaultKey | None] = {sealing.key.id: sealing.key}
        for table in self._tables(sealing.key.id):
            after: Key | None = None
            while batch := await read(self._reading, partial(table.read, after=after, limit=self._batch_size)):
                sealed = await self._sealed(batch, sealing, keys, table)
                written, waiting = 0, sum(bool(each.texts) and each.reason is None for each in sealed)
                if mode is Mode.SEAL:
                    written, waiting = await self._written(table, sealed, after)
                progress = replace(
                    progress,
                    sealed=progress.sealed + written,
                    waiting=progress.waiting + waiting,
                    unreadable=(*progress.unreadable, *self._unreadable(table.table, sealed)),
                )
                yield progress
                if len(batch) < self._batch_size or batch[-1].key == after:  # of a type that changes it
                    break
                after = batch[-1].key

    async def _written(self, table: SealedRows, sealed: Sequence[Resealed], after: Key | None) -> tuple[int, int]:
        """Write a batch in a transaction, and return how many rows were written, and how many have to wait."""
        ready = [(each.row, each.texts) for each in sealed if each.texts]
        if not ready:
            return 0, 0
        work = partial(table.write, after=after, until=sealed[-1].row.key, sealed=ready)
        try:
            written = await run(self._writing, work, Patience())
        except StoreBusy:  # the next scan finds the rows again
            written = 0
        return written, len(ready) - written

    def _unreadable(self, table: sa.Table, sealed: Sequence[Resealed]) -> list[Unreadable]:
        has_id = table is self._mapping.table
        return [
            Unreadable(table=table.fullname, link_id=each.row.key[0] if has_id else None, reason=each.reason)
            for each in sealed
            if each.reason is not None
        ]

    async def _sealed(
        self, batch: Sequence[SealedRow], sealing: Sealing, keys: dict[str, VaultKey | None], table: SealedRows
    ) -> list[Resealed]:
        """Return the rows of a batch with their new texts.

        Args:
            batch: The rows as they were read.
            sealing: Seals with the newest key.
            keys: The keys by their ids, to which those are added that the batch needs.
            table: The table of the rows.
        """
        found = [self._task.found_in(row, newest=sealing.key.id) for row in batch]
        for key_id in {key_id for each in found for key_id in each.key_ids} - keys.keys():
            keys[key_id] = await key_of(self._vault.vault.source, key_id)
        # Ciphers take time, and the event loop is the application's.
        return await asyncio.to_thread(lambda: [each.sealed(sealing, keys, table.limits) for each in found])
