"""Plan the answers to the next requests: failures, lost answers, forgeries and waits."""

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, get_args

Endpoint = Literal["configuration", "jwks", "authorize", "token", "userinfo", "revoke", "introspect"]
Forgeable = Literal["configuration", "jwks", "authorize", "token", "userinfo"]
Forge = Callable[[dict[str, Any]], dict[str, Any]]
ForgeIdToken = Callable[[dict[str, Any]], dict[str, Any] | str]


class Lost(Enum):
    """Name the moments when the connection breaks. The client sees the same error in both cases."""

    REQUEST = "request"
    """Before the provider has done anything."""
    REPLY = "reply"
    """After the provider has done everything, tokens rotated and all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Describe one planned failure: a broken connection, or else a status, an OAuth error, or both."""

    status: int | None = None
    error: str | None = None
    description: str = "planned by the test"
    lost: Lost | None = None
    retry_after: str | None = None

    def __post_init__(self) -> None:
        says_something = self.status is not None or self.error is not None
        if says_something == (self.lost is not None):
            raise ValueError("plan either lost=, or status= and/or error=")


class Script:
    """Keep the plans of each endpoint in order, and use each once."""

    def __init__(self) -> None:
        self._failures: defaultdict[str, deque[Failure]] = defaultdict(deque)
        self._waits: defaultdict[str, deque[Callable[[], Awaitable[object]]]] = defaultdict(deque)
        self._forges: defaultdict[str, deque[Forge]] = defaultdict(deque)
        self._id_token_forges: deque[ForgeIdToken] = deque()

    def plan_failure(self, endpoint: Endpoint, failure: Failure, *, times: int) -> None:
        """Let the next requests to the endpoint fail."""
        _require_known(endpoint, get_args(Endpoint))
        self._failures[endpoint].extend([failure] * times)

    def plan_wait(self, endpoint: Endpoint, until: Callable[[], Awaitable[object]]) -> None:
        """Let the next request to the endpoint wait before it is looked at."""
        _require_known(endpoint, get_args(Endpoint))
        self._waits[endpoint].append(until)

    def plan_forgery(self, answer: Forgeable, forge: Forge) -> None:
        """Let the next good answer of the endpoint be rewritten."""
        _require_known(answer, get_args(Forgeable))
        self._forges[answer].append(forge)

    def plan_id_token_forgery(self, forge: ForgeIdToken) -> None:
        """Let the claims of the next ID token be rewritten before they are signed."""
        self._id_token_forges.append(forge)

    async def wait(self, endpoint: Endpoint) -> None:
        """Wait as planned."""
        if self._waits[endpoint]:
            await self._waits[endpoint].popleft()()

    def next_failure(self, endpoint: Endpoint) -> Failure | None:
        """Return the failure planned for this request, if any."""
        return self._failures[endpoint].popleft() if self._failures[endpoint] else None

    def forged(self, answer: Forgeable, genuine: dict[str, Any]) -> dict[str, Any]:
        """Return the answer, rewritten if that is planned."""
        return self._forges[answer].popleft()(genuine) if self._forges[answer] else genuine

    def forged_id_token(self, genuine: dict[str, Any]) -> dict[str, Any] | str:
        """Return the claims, rewritten if that is planned, or a whole token that replaces them."""
        return self._id_token_forges.popleft()(genuine) if self._id_token_forges else genuine


def _require_known(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown endpoint {name!r}; one of {', '.join(known)}")
