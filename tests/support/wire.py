"""A TCP proxy in front of PostgreSQL that counts round trips, and loses messages when a test asks for it.

A round trip is one wait of the client: it asked for an answer while nothing that it had asked for was
outstanding. The proxy reads whole protocol messages, so the count does not depend on how TCP cuts or joins
them. A request ends with the message that solicits an answer, a reply with the one that the client awaits.

Source: PostgreSQL documentation, "Frontend/Backend Protocol", version 3: message flow, message formats.
"""

import asyncio
import enum
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NoReturn, Self

_KINDS = (
    {b"P": "Parse", b"B": "Bind", b"D": "Describe", b"E": "Execute", b"C": "Close", b"S": "Sync"}
    | {b"H": "Flush", b"Q": "Query", b"X": "Terminate", b"p": "Password"}
    | {b"d": "CopyData", b"c": "CopyDone", b"f": "CopyFail"}
)
_SOLICITING = {"Startup", "Query", "Sync", "Flush", "CopyDone", "CopyFail", "Password"}
_NEVER_ANSWERED = {"CopyData", "Terminate"}
# The server messages that end the answer to a client message. A Flush asks for the answers due so far.
_ANSWERS = {"Parse": b"1", "Bind": b"2", "Close": b"3", "Describe": b"Tn", "Execute": b"CIs"} | dict.fromkeys(
    ("Startup", "Query", "Sync"), b"Z"
)
_COPY_BEGINS = {b"G", b"W"}  # the client sends next
_CANCEL_REQUEST = 80877102
_ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS, GSSAPI
_AUTHENTICATION_CHALLENGES = {3, 5, 7, 8, 10, 11}  # those after which the client has to send something

_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of the client, with the SQL of the statement or portal that it names."""

    kind: str
    sql: str | None = None

    @property
    def runs(self) -> str | None:
        """The SQL that this message has the server execute."""
        return self.sql if self.kind in {"Query", "Execute"} else None

    def __str__(self) -> str:
        return self.kind if self.sql is None else f"{self.kind}: {' '.join(self.sql.split())}"


@dataclass(frozen=True, kw_only=True)
class Trip:
    """One round trip: the messages that the client sent before it waited."""

    connection: int
    messages: list[Message]

    def __str__(self) -> str:
        return f"[{self.connection}] " + " | ".join(map(str, self.messages))


class Lose(enum.Enum):
    """Choose which data a cut loses."""

    REQUEST = "the server never sees it"
    REPLY = "the server has answered in full, and the client never hears of it"


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A request kept in the proxy: `reached` is set when it has come; setting `released` sends it on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


def executes(prefix: str) -> Callable[[Message], bool]:
    """Match a message that runs a statement beginning with `prefix`, in any letter case."""
    return lambda message: message.runs is not None and message.runs.upper().startswith(prefix.upper())


class WireProxy:
    """Forward connections on 127.0.0.1 to a PostgreSQL server, count, and cut where the test says.

    Encryption is declined for the server, requests to cancel pass uncounted, and a fault strikes once only.
    """

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self.log: list[Trip] = []
        self.port = 0
        self._upstream = (upstream_host, upstream_port)
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._defects: list[BaseException] = []
        self._until_cut: int | None = None
        self._armed: list[tuple[Callable[[Message], bool], Hold | Lose]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()
        if self._defects:
            raise BaseExceptionGroup("the proxy failed, and its count is worth nothing", self._defects)

    @property
    def trips(self) -> int:
        """The round trips since the start or the last `reset`."""
        return len(self.log)

    @property
    def statements(self) -> list[str]:
        """The SQL of every execution in order, that of prepared statements included."""
        return [message.runs for trip in self.log for message in trip.messages if message.runs is not None]

    def reset(self) -> None:
        """Forget what was counted; armed faults stay armed."""
        self.log.clear()

    def cut_after(self, passed: int) -> None:
        """Let so many requests and replies pass, over all connections, then lose the next one and cut.

        While nothing is under way, an even number loses a request and an odd one the reply to it.
        """
        self._until_cut = passed

    def cut_when(self, predicate: Callable[[Message], bool], *, lose: Lose) -> None:
        """Cut at the next request that has a message for which `predicate` holds."""
        self._armed.append((predicate, lose))

    def hold(self, predicate: Callable[[Message], bool]) -> Hold:
        """Keep the next request that has a message for which `predicate` holds."""
        self._armed.append((predicate, hold := Hold()))
        return hold

    def strike(self, request: list[Message]) -> Hold | Lose | None:
        """Disarm and return the fault that is armed for this request."""
        for armed in self._armed:
            if any(map(armed[0], request)):
                self._armed.remove(armed)
                return armed[1]
        return None

    def count_down(self) -> bool:
        """Count one request or reply for `cut_after`; true when it is the one to lose."""
        if self._until_cut is None:
            return False
        self._until_cut = self._until_cut - 1 if self._until_cut else None
        return self._until_cut is None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        try:
            upstream = await asyncio.open_connection(*self._upstream)
            self._defects += await _Connection(self, self._connections, (reader, writer), upstream).run()
        except (OSError, asyncio.CancelledError):  # no server, or the proxy ends; asyncio would log either
            writer.transport.abort()
        finally:
            self._tasks.discard(task)


class _Connection:
    """One client connection: its two directions, what it has prepared, and what it waits for."""

    def __init__(self, proxy: WireProxy, number: int, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._sql: dict[tuple[bytes, bytes], str] = {}  # by "S" for a statement or "P" for a portal, and name
        self._request: list[Message] = []
        self._unsent = bytearray()
        self._trip = Trip(connection=number, messages=[])
        self._due: deque[bytes] = deque()
        self._waiting = self._reply_begun = self._reply_lost = False

    async def run(self) -> list[BaseException]:
        """Forward until one side ends or the proxy cuts; return what no connection should end with."""
        pumps = [asyncio.create_task(self._pump_requests()), asyncio.create_task(self._pump_replies())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            ends = await asyncio.gather(*pumps, return_exceptions=True)
            self._to_client.close()
            self._to_server.close()
        usual = (EOFError, OSError, asyncio.CancelledError)
        return [end for end in ends if end is not None and not isinstance(end, usual)]

    async def _pump_requests(self) -> None:
        message, packet = Message(kind="Startup"), await self._startup()
        while packet:
            self._request.append(message)
            self._unsent += packet
            if message.kind in _SOLICITING:
                await self._ask()
            if message.kind in _SOLICITING | _NEVER_ANSWERED:
                self._to_server.write(bytes(self._unsent))
                self._unsent.clear()
                await self._to_server.drain()
            header = await self._from_client.readexactly(5)
            body = await self._from_client.readexactly(int.from_bytes(header[1:]) - 4)
            message, packet = self._decode(_KINDS.get(header[:1], "Unknown"), body), header + body

    async def _startup(self) -> bytes:
        """Return the startup message; nothing when the connection is there to cancel."""
        declined: list[Trip] = []
        while True:
            head = await self._from_client.readexactly(8)
            length, code = struct.unpack("!II", head)
            packet = head + await self._from_client.readexactly(length - 8)
            if code == _CANCEL_REQUEST:
                self._to_server.write(packet)
                return await self._from_client.read()  # until the server has passed it on, and closes
            if code not in _ENCRYPTION_REQUESTS:
                self._proxy.log.extend(declined)
                return packet
            declined.append(replace(self._trip, messages=[Message(kind="EncryptionRequest")]))
            self._to_client.write(b"N")

    def _decode(self, kind: str, body: bytes) -> Message:
        """Name the SQL that a message is about, and remember what it prepares or binds."""
        first, _, rest = body.partition(b"\0")
        second = rest.partition(b"\0")[0]
        match kind:
            case "Query":
                return Message(kind=kind, sql=first.decode())
            case "Parse":
                self._sql[b"S", first] = second.decode()
                return Message(kind=kind, sql=second.decode())
            case "Bind":
                self._sql[b"P", first] = self._sql[b"S", second]
                return Message(kind=kind, sql=self._sql[b"S", second])
            case "Execute":
                return Message(kind=kind, sql=self._sql[b"P", first])
            case "Describe" | "Close":
                return Message(kind=kind, sql=self._sql.get((first[:1], first[1:])))
            case _:
                return Message(kind=kind)

    async def _ask(self) -> None:
        """Account for a complete request, and strike it with what is armed for it."""
        request, self._request = self._request, []
        self._due.extend(_ANSWERS[message.kind] for message in request if message.kind in _ANSWERS)
        fault = self._proxy.strike(request)
        if isinstance(fault, Hold):
            fault.reached.set()
            await fault.released.wait()
        if self._waiting:  # sent before the last answer had come: no wait of its own
            self._trip.messages.extend(request)
        else:
            self._trip = replace(self._trip, messages=request)
            self._proxy.log.append(self._trip)
            self._waiting, self._reply_begun = True, False
            fault = Lose.REQUEST if self._proxy.count_down() else fault
        if fault is Lose.REQUEST:
            self._cut()
        self._reply_lost = self._reply_lost or fault is Lose.REPLY

    def _cut(self) -> NoReturn:
        self._to_client.transport.abort()
        self._to_server.transport.abort()
        raise ConnectionAbortedError

    async def _pump_replies(self) -> None:
        while True:
            header = await self._from_server.readexactly(5)
            body = await self._from_server.readexactly(int.from_bytes(header[1:]) - 4)
            if self._waiting and not self._reply_begun:
                self._reply_begun = True
                self._reply_lost = self._proxy.count_down() or self._reply_lost
            self._waiting = self._waiting and not self._ends_reply(header[:1], body)
            if self._reply_lost and not self._waiting:
                self._cut()
            if not self._reply_lost:
                self._to_client.write(header + body)
                await self._to_client.drain()

    def _ends_reply(self, kind: bytes, body: bytes) -> bool:
        """Strike off the answer that has come; true when the client has all that it waits for."""
        if kind == b"E":  # the server skips everything up to the next Sync
            while self._due and self._due[0] != b"Z":
                self._due.popleft()
        elif self._due and kind in self._due[0]:
            self._due.popleft()
        challenged = kind == b"R" and int.from_bytes(body[:4]) in _AUTHENTICATION_CHALLENGES
        return challenged or kind in _COPY_BEGINS or not self._due
