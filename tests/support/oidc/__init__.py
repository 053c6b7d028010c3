"""A real OpenID provider that nobody here wrote: the certified npm package ``oidc-provider``, on loopback.

One Node process serves every issuer that the tests of a worker open, each on its own port. The user's browser is an
HTTP client (``sign_in`` and ``cancel`` answer the provider's page), or Chromium, in which the page shows a button
"Continue as ..." for each account, and "Cancel".
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, BinaryIO, Final, Literal

import httpx2
import pytest

VARIABLE: Final = "ACCOUNTLINK_TEST_OIDC"
REMEDY: Final = "Install Node.js 20 or newer, and run: npm ci --prefix tests/support/oidc"
ACCOUNTS: Final = {
    "ada": {"email": "ada@example.org", "email_verified": True, "name": "Ada"},
    "ben": {"email": "ben@example.org", "email_verified": True, "name": "Ben"},
}
"""The accounts at an issuer: the stable id (``sub``) of each, and its other claims."""
_FOLDER: Final = Path(__file__).parent
_ANSWER_SECONDS: Final = 30.0

Endpoint = Literal["discovery", "jwks", "authorization", "interaction", "token", "userinfo", "revocation"]


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """An issuer on a port of its own: with its own keys, accounts, sessions and tokens, and one client.

    Attributes:
        url: The issuer's identifier, below which its endpoints are.
        client_id: The client's id.
        client_secret: The client's secret.
    """

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    _provider: OidcProvider = field(repr=False)

    @property
    def metadata_url(self) -> str:
        """The address of the discovery document."""
        return f"{self.url}/.well-known/openid-configuration"

    def requests(self, endpoint: Endpoint) -> int:
        """Count the requests that an endpoint has got so far, whatever came of them."""
        counts: dict[str, int] = self._provider.ask("requests", issuer=self.url)
        return counts.get(endpoint, 0)

    def delay(self, endpoint: Endpoint, *, seconds: float) -> None:
        """Let an endpoint answer each request later than it could, from now on."""
        self._provider.ask("delay", issuer=self.url, endpoint=endpoint, milliseconds=round(1_000 * seconds))

    def set_account(self, account: str, claims: Mapping[str, object]) -> None:
        """Add an account, or change its claims from now on."""
        self._provider.ask("setAccount", issuer=self.url, account=account, claims=claims)

    async def sign_in(self, browser: httpx2.AsyncClient, url: str, *, account: str) -> str:
        """Sign in and consent.

        Args:
            browser: The user's browser, which keeps its cookies.
            url: The authorization request.
            account: The id of an account.

        Returns:
            The address to which the issuer sends the browser back.
        """
        return await self._answer(browser, url, {"account": account})

    async def cancel(self, browser: httpx2.AsyncClient, url: str) -> str:
        """Press "Cancel"; the arguments and the answer are those of ``sign_in``."""
        return await self._answer(browser, url, {"cancel": "yes"})

    async def _answer(self, browser: httpx2.AsyncClient, url: str, form: dict[str, str]) -> str:
        response = await self._follow(browser, await browser.get(url, follow_redirects=False))
        if not response.has_redirect_location:  # the page, unless the issuer knows the user and the consent already
            assert response.status_code == 200, response.text
            answered = await browser.post(response.url, data=form, follow_redirects=False)
            response = await self._follow(browser, answered)
        assert response.next_request is not None, response.text
        return str(response.next_request.url)

    async def _follow(self, browser: httpx2.AsyncClient, response: httpx2.Response) -> httpx2.Response:
        """Follow redirects up to the first that leads away from the issuer."""
        while (following := response.next_request) and str(following.url).startswith(f"{self.url}/"):
            response = await browser.send(following, follow_redirects=False)
        return response


class OidcProvider:
    """The provider's process, which serves the issuers of a worker."""

    def __init__(self, process: subprocess.Popen[bytes], log: BinaryIO) -> None:
        self._process = process
        self._log = log

    def ask(self, order: str, **details: object) -> Any:
        """Give the process an order, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"order": order, **details}).encode() + b"\n")
            if select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
                line = self._process.stdout.readline()
        if not line:
            self._process.kill()  # a late answer would pass for that to the next order
        answer = json.loads(line or '{"error": "no answer"}')
        if "error" in answer:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace")
            pytest.fail(f"oidc-provider, asked to {order}: {answer['error']}. Its log ends:\n{said}")
        return answer["result"]

    @contextmanager
    def issuer(
        self,
        *,
        redirect_uris: Sequence[str],
        accounts: Mapping[str, Mapping[str, object]] = ACCOUNTS,
        **client: object,
    ) -> Iterator[Issuer]:
        """Open an issuer for the length of a ``with`` block.

        Args:
            redirect_uris: Where the client may have a browser sent back to.
            accounts: Who can sign in: the claims of each account, by its id.
            client: More of the client's metadata, as OpenID Connect registration names it.
        """
        client_id, client_secret = "accountlink", token_urlsafe(32)
        registered = {
            "client_id": client_id,
            "client_secret": client_secret,
            "grant_types": ["authorization_code", "refresh_token"],
            "redirect_uris": list(redirect_uris),
            **client,
        }
        url: str = self.ask("open", client=registered, accounts=accounts)
        try:
            yield Issuer(url=url, client_id=client_id, client_secret=client_secret, _provider=self)
        finally:
            self.ask("close", issuer=url)


def required_node() -> str:
    """Find Node; without it or the package the test is skipped, or fails where both were promised."""
    node = shutil.which("node")
    if node is not None and (_FOLDER / "node_modules" / "oidc-provider").is_dir():
        return node
    missing = "there is no node on PATH" if node is None else "the npm package oidc-provider is not installed"
    if os.environ.get(VARIABLE) == "required":
        pytest.fail(f"{VARIABLE} is 'required', and {missing}. {REMEDY}")
    pytest.skip(f"{missing}. {REMEDY}")


@contextmanager
def run_oidc_provider() -> Iterator[OidcProvider]:
    """Run the process for the length of a ``with`` block. It ends when the test run does, even one that is killed."""
    command = [required_node(), str(_FOLDER / "server.mjs")]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the test run, which then closes stdin
        ) as process,
    ):
        try:
            yield OidcProvider(process, log)
        finally:
            process.kill()
