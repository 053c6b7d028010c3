"""Keeps the objects that the caller's session already holds in step with the rows that were written beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstanceState, Mapper, object_mapper

from accountlink.core.facts import Failure
from accountlink.storage import violations
from accountlink.storage.cancellation import sheltered
from accountlink.storage.targets import TableMapping


async def refresh_held(session: AsyncSession, mapping: TableMapping, row_id: object) -> Failure | None:
    """Load the new values of a row into the object that the session holds of it, if it holds one."""
    try:
        await sheltered(_refresh(session, mapping, row_id))
    except violations.FAILURES as error:
        return violations.read(error)
    return None


async def hand_over_held(session: AsyncSession, mapping: TableMapping, row_id: object) -> Failure | None:
    """The same for a row that has another user now: what the object holds of the former one is read anew, too."""
    try:
        await sheltered(_refresh(session, mapping, row_id, attributes=_columns_and_user))
    except violations.FAILURES as error:
        return violations.read(error)
    return None


async def forget_held(session: AsyncSession, mapping: TableMapping, row_id: object) -> Failure | None:
    """Let the session know that a row it holds is deleted; a rollback brings the object back with the row."""
    try:
        await sheltered(_forget(session, mapping, row_id))
    except violations.FAILURES as error:
        return violations.read(error)
    return None


def _columns(mapper: Mapper[Any], _: TableMapping) -> Iterable[str]:
    return mapper.column_attrs.keys()


def _columns_and_user(mapper: Mapper[Any], mapping: TableMapping) -> Iterable[str]:
    owners = {mapping.columns[role] for role in ("user_id", "grantee_id") if role in mapping.columns}
    return [*mapper.column_attrs.keys(), *(r.key for r in mapper.relationships if owners & r.local_columns)]


async def _refresh(
    session: AsyncSession,
    mapping: TableMapping,
    row_id: object,
    *,
    attributes: Callable[[Mapper[Any], TableMapping], Iterable[str]] = _columns,
) -> None:
    for held in _held(session, mapping, row_id):
        state: InstanceState[Any] = sa.inspect(held)
        loaded = [key for key in attributes(object_mapper(held), mapping) if key not in state.unloaded]
        if loaded:
            await session.refresh(held, attribute_names=loaded)


async def _forget(session: AsyncSession, mapping: TableMapping, row_id: object) -> None:
    if mapping.mapper is not None and _held(session, mapping, row_id):
        model = mapping.mapper.class_
        link_attribute = getattr(model, mapping.mapper.get_property_by_column(mapping.columns["id"]).key)
        gone = sa.delete(model).where(link_attribute == row_id)
        await session.execute(gone, execution_options={"synchronize_session": "evaluate"})


def _held(session: AsyncSession, mapping: TableMapping, row_id: object) -> list[Any]:
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
