"""Lines that are lost in a renewal: the provider is asked once, its answer is stored, and its refusal is told once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.engine import make_url

from accountlink import NeedsConsent
from accountlink.vault.refresher import GrantEnded
from tests.contract.test_renewal_rules import Case, told
from tests.contract.test_renewing import OVER
from tests.support.databases import Database
from tests.support.wire import WireProxy

pytestmark = pytest.mark.parametrize("kind", ["asyncpg", pytest.param("psycopg", marks=pytest.mark.stress)])
ENOUGH = 60
"""More requests and replies than any renewal has; a sweep that gets here does not end."""


@pytest.fixture
async def line(database: Database) -> AsyncIterator[WireProxy]:
    """A line to the server."""
    assert database.server is not None
    async with WireProxy(database.server.host, database.server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("ends", [False, True])
async def test_a_line_cut_anywhere_in_a_renewal(database: Database, line: WireProxy, ends: bool) -> None:
    """Whichever message is lost: one call, the rotation stored; or the end of the grant, as the provider told it."""
    direct = database.engine()
    case = await Case(outbox=True).create(direct)
    engine = database.engine(url=make_url(database.url).set(port=line.port), pool_size=1, max_overflow=0)
    for passed in range(ENOUGH):
        await case.link(direct, ends_in=OVER, refresh=f"refresh-at-{passed}")
        case.provider.calls.clear()
        case.provider.fails = [GrantEnded("invalid_grant")] if ends else []
        await told(case, direct)
        line.cut_after(passed)
        if ends:
            with pytest.raises(NeedsConsent) as raised:
                await case.get(engine)
            assert "invalid_grant" == raised.value.provider_code
            assert ["consent_needed"] == await told(case, direct)
        else:
            got = await case.get(engine)
            assert got != "access-0"
            assert got == (await case.stored(direct))[0]
            state = await case.state(direct)
            assert (None, "ok") == (state["lease_by"], state["state"])
        assert [f"refresh-at-{passed}"] == case.provider.calls
        if line._until_cut is not None:
            assert passed >= 6  # three statements: the lease, the storing, and a look before or after
            return
    raise AssertionError("the sweep does not end")
