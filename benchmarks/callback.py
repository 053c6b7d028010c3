"""Measure the cost of a whole callback, beside that of `link` alone, on the same server.

    python -m benchmarks.callback

A callback is what happens between the browser's coming back and the redirect: the record of the flow is used, the code
is exchanged, the ID token is checked, the account is linked. The provider is the built-in one, in the same process; its
own work is measured alone, and taken off. Ratios are taken within a round, and rounds go in turns.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accountlink import ProviderIdentity, TokenSet
from accountlink.web import LinkFlow, Started, flow_states
from accountlink.web.derived import flow_keys
from benchmarks.ground import LINKER, Base, database, tables
from benchmarks.measured import Batch
from tests.support.compilations import Compilations
from tests.support.flows import CALLBACK, PAGE, Hosts, fake, preset
from tests.support.wire import WireProxy

WARM = 10
SECRETS = ["benchmark-of-flows".ljust(32, "-")]
STATES = flow_states(Base.metadata, name="accountlink_benchmark_flows")


@dataclass
class Contestant:
    """Hold one kind of call, and its cost in each round."""

    name: str
    prepare: Callable[[], Awaitable[Any]]
    call: Callable[[Any], Awaitable[object]]
    rounds: list[Batch] = field(default_factory=list)

    async def round(self, calls: int) -> None:
        """Make calls one after another, with what they need made before."""
        prepared = [await self.prepare() for _ in range(calls)]
        wall, cpu = time.perf_counter(), time.process_time()
        for each in prepared:
            await self.call(each)
        self.rounds.append(Batch(wall=(time.perf_counter() - wall) / calls, cpu=(time.process_time() - cpu) / calls))


def contestants(engine: AsyncEngine) -> list[Contestant]:
    """Make the calls: linking alone, a start, a callback, and the provider's own part of it."""
    provider = fake("acme")
    network = Hosts({"acme.example": provider})
    flow = LinkFlow(
        LINKER,
        engine,
        providers=[preset("acme", provider)],
        callback_url=CALLBACK,
        page=PAGE,
        states=STATES,
        secrets=SECRETS,
        transport=network,
    )
    [key] = flow_keys(SECRETS).values()
    identity = ProviderIdentity(provider="acme", account_id="248289761001", email="ada@example.org")
    tokens = TokenSet(access_token="a" * 32, scopes={"openid", "email", "profile"})  # made up

    async def nothing() -> None:
        return None

    async def came_back() -> tuple[Started, dict[str, str]]:
        started = await flow.start(user_id=1, provider="acme", browser=None)
        async with httpx2.AsyncClient(transport=network) as browser:
            answer = await browser.get(started.url)
        return started, dict(parse_qsl(urlsplit(answer.headers["location"]).query))

    async def link(_: None) -> object:
        return await LINKER.link(engine, user_id=1, identity=identity, credentials=tokens)

    async def start(_: None) -> object:
        return await flow.start(user_id=1, provider="acme", browser=None)

    async def callback(back: tuple[Started, dict[str, str]]) -> object:
        started, parameters = back
        return await flow.finish(user_id=1, provider="acme", browser=started.browser, parameters=parameters)

    async def provider_alone(back: tuple[Started, dict[str, str]]) -> object:
        _, parameters = back
        form = {
            "grant_type": "authorization_code",
            "code": parameters["code"],
            "redirect_uri": f"{CALLBACK}/acme",
            "code_verifier": key.verifier(parameters["state"]),
        }
        async with httpx2.AsyncClient(transport=network, auth=(provider.client_id, provider.client_secret)) as client:
            answer = await client.post(f"{provider.issuer}/token", data=form)
        assert answer.status_code == httpx2.codes.OK
        return answer

    return [
        Contestant("link", nothing, link),
        Contestant("start", nothing, start),
        Contestant("callback", came_back, callback),
        Contestant("the provider's part", came_back, provider_alone),
    ]


async def counted(url: sa.URL) -> dict[str, tuple[float, float]]:
    """Count round trips and compilations of each call, once every kind has been made before."""
    assert url.host is not None
    counts: dict[str, tuple[float, float]] = {}
    async with WireProxy(url.host, url.port or 5432) as proxy:
        engine = create_async_engine(url.set(host="127.0.0.1", port=proxy.port), pool_size=1, max_overflow=0)
        compilations = Compilations(engine)
        every = contestants(engine)
        for each in every:
            await each.round(WARM)
        for each in every:
            prepared = [await each.prepare() for _ in range(WARM)]
            proxy.reset()
            compilations.reset()
            for one in prepared:
                await each.call(one)
            counts[each.name] = proxy.trips / WARM, len(compilations.anew) / WARM
        await engine.dispose()
    return counts


async def main(url: sa.URL, rounds: int, calls: int) -> None:
    """Count, measure, and print."""
    async with tables(url) as ground:
        print(ground)
        counts = await counted(url)
        engine = create_async_engine(url, pool_size=1, max_overflow=0)
        every = contestants(engine)
        for each in every:
            await each.round(WARM)
            each.rounds.clear()
        for number in range(rounds):
            for each in every if number % 2 else reversed(every):
                await each.round(calls)
        await engine.dispose()
    link, _, callback, provider = every
    print(f"{'':<22}{'wall, us':>10}{'CPU, us':>10}{'x link, CPU':>13}{'trips':>8}{'compiled':>10}")
    for each in every:
        ratio = median(mine.cpu / theirs.cpu for mine, theirs in zip(each.rounds, link.rounds, strict=True))
        wall, cpu = (median(getattr(batch, cost) for batch in each.rounds) * 1e6 for cost in ("wall", "cpu"))
        trips, compiled = counts[each.name]
        print(f"{each.name:<22}{wall:>10.0f}{cpu:>10.0f}{ratio:>13.2f}{trips:>8.1f}{compiled:>10.1f}")
    own = median(
        (whole.cpu - part.cpu) / alone.cpu
        for whole, part, alone in zip(callback.rounds, provider.rounds, link.rounds, strict=True)
    )
    print(f"a callback without the provider's part: {own:.2f} x link, CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url", help="a PostgreSQL; without it one of the run's own")
    parser.add_argument("--fsync", choices=["on", "off"], default="on", help="whether a commit waits for the disk")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=20, help="calls in a round")
    arguments = parser.parse_args()
    with database(arguments.database_url, arguments.fsync) as at:
        asyncio.run(main(at, arguments.rounds, arguments.calls))
