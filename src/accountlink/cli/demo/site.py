"""Serves the demo on this machine: the page on one host, the providers on another, both in this process."""

import asyncio
import hmac
import os
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from accountlink import AccountLinker, CredentialVault, OAuthRefresher, Plaintext, ShareGrants
from accountlink.cli.demo.backend import ACCOUNTS, CALLBACK, create_app
from accountlink.cli.demo.models import Connection, outbox, pending, refreshes, shares
from accountlink.cli.demo.panels import PREFIX, Panels
from accountlink.cli.demo.place import lasting_secret
from accountlink.cli.demo.providers import Providers
from accountlink.cli.demo.sealed import Sealed
from accountlink.cli.demo.stage import CannotStart, file_url, open_engine, prepare_tables
from accountlink.cli.demo.statements import Statements
from accountlink.cli.demo.story import PEOPLE
from accountlink.cli.demo.tokens import Distant, Tokens
from accountlink.cli.demo.worker import work
from accountlink.cli.output import Output

PORT = 8750
"""The port that is tried first, so that a restarted demo is found again by a browser that is still open."""
_LOOPBACK = "127.0.0.1"
_HTTP = 80
"""The port that browsers leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Hold what the command line asked for.

    Attributes:
        folder: Where the secret is kept, and the SQLite file.
        database_url: An async SQLAlchemy URL; ``None`` for the SQLite file.
        port: The port; ``None`` for the usual one, or a free one if that is taken.
        fresh: Whether the tables are dropped first.
        browser: Whether a browser is opened, where there is one.
    """

    folder: Path
    database_url: str | None = field(default=None, repr=False)
    port: int | None = None
    fresh: bool = False
    browser: bool = True


async def serve(output: Output, order: Order) -> None:
    """Serve until the process is asked to end.

    Raises:
        CannotStart: The folder, the port or the database cannot be used.
    """
    secret = lasting_secret(order.folder)
    with _listening(order.port) as listener:
        port = listener.getsockname()[1]
        engine = open_engine(file_url(order.folder) if order.database_url is None else order.database_url)
        try:
            await prepare_tables(engine, PEOPLE, fresh=order.fresh)
            app = build(engine=engine, secret=secret, port=port)
            config = uvicorn.Config(app, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=2)
            await _run(uvicorn.Server(config), listener, output=output, order=order)
        finally:
            await engine.dispose()


def build(*, engine: AsyncEngine, secret: str, port: int) -> ASGIApp:
    """Return everything that answers on the port.

    Args:
        engine: An engine on a database that has the tables.
        secret: Outlasts a restart, and so do sessions, flows, transfer tokens and what the vault has sealed.
        port: The port on which browsers arrive.
    """
    # The application at one address, the providers at the other.
    origin, address = (f"http://{host}{'' if port == _HTTP else f':{port}'}" for host in ("localhost", _LOOPBACK))
    providers = Providers(
        address=address,
        callback=f"{origin}{CALLBACK}",
        secret=_derived(secret, "codes of the providers"),
    )

    # What each process of the application makes for itself: this one, and the workers of the token panel.
    def new_linker() -> AccountLinker[int, int]:
        return AccountLinker(
            Connection,
            secrets=[_derived(secret, "transfer tokens")],
            outbox=outbox,
            vault=vault_of(secret),
            pending=pending,
            refresher=OAuthRefresher.of(providers.registered(), transport=Distant(providers.transport())),
            refreshes=refreshes,
        )

    statements = Statements(engine)

    def new_engine() -> AsyncEngine:
        opened = open_engine(engine.url)
        statements.listen(opened)
        return opened

    # What the page shows.
    linker = new_linker()
    grants = ShareGrants(shares, accounts=linker, outbox=outbox)
    tokens = Tokens(engine=engine, linker=linker, providers=providers, new_engine=new_engine, new_linker=new_linker)
    panels = Panels(engine=engine, grants=grants, sealed=Sealed(engine, linker), tokens=tokens, statements=statements)

    # The application, with its worker behind the outbox.
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(work(engine, linker, grants))
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker
        await linker.aclose()

    application = create_app(
        engine=engine,
        linker=linker,
        providers=providers.registered(),
        origin=origin,
        secret=_derived(secret, "sessions and flows"),
        transport=providers.transport(),
        more=panels.routes(),
        lifespan=lifespan,
    )
    return Hosts({origin: recorded(application, statements), address: providers})


def vault_of(secret: str) -> CredentialVault:
    """Return the vault of a demo, whose key is the demo's as long as its secret is.

    A demo that ran before there was a vault has stored tokens in plain text. They are still read; connecting the
    account again seals them. An application would seal them all by a backfill, and then refuse plain text.

    Args:
        secret: The demo's secret.
    """
    key = bytes.fromhex(_derived(secret, "sealed tokens"))
    return CredentialVault(keys=[key], plaintext=Plaintext.READ)


class Hosts:
    """Answer by the host that a browser asked for.

    The two are two sites to a browser, as an application and a provider are. A page of another site that points its own
    name at this machine (DNS rebinding) is refused, since its name is neither.

    Args:
        apps: The application at each address; the first also begins and ends with the server.
    """

    def __init__(self, apps: dict[str, ASGIApp]) -> None:
        self._apps = apps
        self._own = next(iter(apps.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "lifespan":
            await self._own(scope, receive, send)
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        app = self._apps.get(f"http://{host.decode('latin-1').lower()}")
        if app is None:
            app = Response(f"This demo answers at {' and '.join(self._apps)}.\n", 421, media_type="text/plain")
        await app(scope, receive, send)


def recorded(app: ASGIApp, statements: Statements) -> ASGIApp:
    """Return the application, with the statements of what users do recorded, but not those of the page's own looks."""

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if not (scope.get("method") == "POST" and path.startswith((ACCOUNTS, PREFIX))) and not path.startswith(
            CALLBACK
        ):
            await app(scope, receive, send)
            return
        with statements.caused_by(f"{scope['method']} {path}"):
            await app(scope, receive, send)

    return recording


def _derived(secret: str, purpose: str) -> str:
    """Return a secret for one purpose, so that what is signed for one is worth nothing for another."""
    return hmac.digest(secret.encode(), purpose.encode(), "sha256").hex()


def _listening(port: int | None) -> socket.socket:
    """Return a socket on the port, which only this machine can reach."""
    try:
        listener = socket.create_server((_LOOPBACK, PORT if port is None else port))
        if not _is_taken_by_another(listener.getsockname()[1]):
            return listener
        listener.close()
        problem: OSError = OSError("another program has it on ::1, where browsers look for localhost first")
    except OSError as error:
        problem = error
    if port is None:
        return socket.create_server((_LOOPBACK, 0))
    why = os.strerror(problem.errno) if problem.errno else problem
    raise CannotStart(f"port {port} cannot be used ({why}): name another one")


def _is_taken_by_another(port: int) -> bool:
    try:
        with socket.create_connection(("::1", port), timeout=0.5):
            return True
    except OSError:
        return False


async def _run(server: uvicorn.Server, listener: socket.socket, *, output: Output, order: Order) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn tells it in no other way
        await asyncio.sleep(0.005)
    if server.started:
        url = f"http://localhost:{listener.getsockname()[1]}/"
        output.line(f"The demo is at {url}")
        output.line("End it with Ctrl-C. It keeps its data; --fresh begins anew.")
        if order.browser and _has_browser():
            await asyncio.to_thread(webbrowser.open, url)
    await serving


def _has_browser() -> bool:
    """Say whether a window can be opened. A server's text browser would take over the terminal."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in {"darwin", "win32"} or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
