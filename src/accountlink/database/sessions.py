"""Update the objects of the caller's session after accountlink has written their rows without the ORM."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, Session, SessionTransaction, object_mapper
from sqlalchemy.orm.attributes import set_committed_value

from accountlink.database.transactions import Place, done
from accountlink.tables.targets import TableMapping

_Written = WeakKeyDictionary[SessionTransaction, set[tuple[TableMapping, object]]]
_WRITTEN: Final = WeakKeyDictionary[Session, _Written]()
"""The rows that were written in each savepoint of a session, whose objects expire if it is rolled back."""


async def refresh_held(place: Place, session: AsyncSession, mapping: TableMapping, row_id: object) -> None:
    """Load the new values of a row into its object, if the session has one."""
    await _in_step(place, session.sync_session, mapping, row_id, owners=frozenset())


async def hand_over_held(place: Place, session: AsyncSession, mapping: TableMapping, row_id: object) -> None:
    """Load the new values of a row that has another user now, and its relationships to the former user again."""
    owners = frozenset(mapping.columns[role] for role in ("user_id", "grantee_id") if role in mapping.columns)
    await _in_step(place, session.sync_session, mapping, row_id, owners=owners)


async def forget_held(place: Place, session: AsyncSession, mapping: TableMapping, row_id: object) -> None:
    """Mark the object of a deleted row as deleted in the session; a rollback restores the object with the row."""
    if _held(session.sync_session, mapping, row_id):
        forget = partial(_forget, session=session.sync_session, mapping=mapping, row_id=row_id)
        done(place, await place.attempt(forget))


async def _in_step(
    place: Place, session: Session, mapping: TableMapping, row_id: object, *, owners: frozenset[sa.Column[Any]]
) -> None:
    _end_with_savepoint(session, mapping, row_id)
    if _held(session, mapping, row_id):  # or it costs no task and no greenlet
        refresh = partial(_refresh, session=session, mapping=mapping, row_id=row_id, owners=owners)
        done(place, await place.attempt(refresh))  # which leaves the transaction usable if it fails


def _refresh(
    connection: sa.Connection,
    *,
    session: Session,
    mapping: TableMapping,
    row_id: object,
    owners: frozenset[sa.Column[Any]],
) -> None:
    """Read the row on the connection that wrote it, because ``Session.refresh`` may be routed to a follower."""
    for held in _held(session, mapping, row_id):
        state: InstanceState[Any] = sa.inspect(held)
        mapper: Mapper[Any] = object_mapper(held)
        chosen = {p.key: p.columns[0] for p in mapper.column_attrs if _is_loaded(state, p)}
        chosen = {key: column for key, column in chosen.items() if not isinstance(column, sa.Null)}
        query = sa.select(sa.true(), *(column.label(None) for column in chosen.values())).select_from(mapping.table)
        row = connection.execute(query.where(mapping.columns["id"] == row_id)).first()
        if row is None:  # another transaction has deleted it since
            session.expire(held)
            continue
        for key, value in zip(chosen, row[1:], strict=True):
            set_committed_value(held, key, value)
        state.manager.dispatch.refresh(state, None, set(chosen))  # updates mutable and composite attributes
        loaded = [r.key for r in mapper.relationships if owners & r.local_columns and r.key not in state.unloaded]
        if loaded:
            session.expire(held, loaded)  # an empty list would expire all attributes
        for key in loaded:
            with suppress(sa.exc.InvalidRequestError):  # lazy="raise" forbids the load, and the attribute stays expired
                _ = state.attrs[key].value  # by the new user's id; Session.refresh would read the row itself


def _is_loaded(state: InstanceState[Any], attribute: ColumnProperty[Any]) -> bool:
    """Say whether an object gives a value for an attribute without asking the database.

    An object that was added and flushed gives ``None`` for an attribute that was never set, and loads nothing.
    """
    key = attribute.key
    if key not in state.unloaded:
        return True
    return not (attribute.deferred or key in state.expired_attributes or key in state.callables)


def _forget(_: sa.Connection, *, session: Session, mapping: TableMapping, row_id: object) -> None:
    if mapping.mapper is not None:
        model = mapping.mapper.class_
        link_attribute = getattr(model, mapping.mapper.get_property_by_column(mapping.columns["id"]).key)
        gone = sa.delete(model).where(link_attribute == row_id)
        session.execute(gone, execution_options={"synchronize_session": "evaluate"})


def _end_with_savepoint(session: Session, mapping: TableMapping, row_id: object) -> None:
    """Expire a row's objects when a savepoint is rolled back in which the row was written.

    The rollback of a whole transaction expires every object of the session. The rollback of a savepoint expires only
    the objects that the session has written itself. It misses a row that accountlink wrote without the session.

    Source: SQLAlchemy documentation, ``Session.begin_nested`` and ``SessionEvents.after_soft_rollback``.
    """
    transaction = session.get_nested_transaction()
    while transaction is not None:
        if transaction.nested:
            if session not in _WRITTEN:
                sa.event.listen(session, "after_soft_rollback", _expire_what_is_undone)
                _WRITTEN[session] = _Written()
            _WRITTEN[session].setdefault(transaction, set()).add((mapping, row_id))
        transaction = transaction.parent


def _expire_what_is_undone(session: Session, ended: SessionTransaction) -> None:
    for mapping, row_id in _WRITTEN[session].pop(ended, ()):
        for held in _held(session, mapping, row_id):
            session.expire(held)


def _held(session: Session, mapping: TableMapping, row_id: object) -> list[Any]:
    mapper = mapping.mapper
    if mapper is None:
        return []
    column = mapping.columns["id"]
    if tuple(mapper.primary_key) == (column,):
        held = session.identity_map.get(mapper.identity_key_from_primary_key((row_id,)))
        return [] if held is None else [held]
    key = mapper.get_property_by_column(column).key
    return [
        held
        for held in session.identity_map.values()
        if isinstance(held, mapper.class_) and sa.inspect(held).dict.get(key) == row_id
    ]
