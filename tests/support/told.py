"""Tables with an outbox beside them, and what stands in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import AccountLinker, LinkEvent, LinkPolicy, link_outbox
from tests.support.claims import CLAIMED, Case
from tests.support.databases import create, rows
from tests.support.mapped import MADE, Links, mixin
from tests.support.models import EXCLUSIVE_SOFT


@dataclass(frozen=True)
class Outboxed(Links):
    """A table of links, whatever it is, with an outbox."""

    inner: Links = field(kw_only=True)
    outbox: sa.Table = field(kw_only=True)

    def linker(self, **options: Any) -> AccountLinker[Any, Any]:
        return self.inner.linker(**({"outbox": self.outbox} | options))


def outboxed(make: Callable[[str], Links]) -> Callable[[str], Outboxed]:
    @cache
    def made(kind: str) -> Outboxed:
        links = make(kind)
        outbox = link_outbox(links.metadata)
        return Outboxed(metadata=links.metadata, mapping=links.mapping, schema=links.schema, inner=links, outbox=outbox)

    return made


TOLD: dict[str, Callable[[str], Outboxed]] = {name: outboxed(make) for name, make in (CLAIMED | MADE).items()}
"""Every table that tests link in, with an outbox."""
RAW = "SELECT type, user_id, other_user_id, provider, link_id FROM accountlink_events ORDER BY id"


@cache
def told_links(policy: LinkPolicy) -> Outboxed:
    """Declare the mixin's table with an outbox, once for all tests, so that it is compiled once."""
    return outboxed(mixin(policy))("any")


async def told(engine: AsyncEngine, policy: LinkPolicy = EXCLUSIVE_SOFT, **options: Any) -> Case:
    """The mixin's table alone, with an outbox, made in the database."""
    links = told_links(policy)
    await create(engine, links.metadata)
    return Case(links, engine, options=options)


async def types(engine: AsyncEngine) -> list[str]:
    """Return the outbox's events by type, read without the library."""
    return [kind for kind, *_ in await rows(engine, RAW)]


async def read(case: Case, **options: Any) -> list[LinkEvent[Any, Any]]:
    """Read and acknowledge all that there is."""
    events = []
    async for delivery in case.linker.events(case.engine, **options):
        events.append(delivery.event)
        await delivery.acknowledge()
    return events
