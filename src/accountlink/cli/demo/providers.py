"""The demo's providers: pretend ones in this process, which show a page of their own like real ones."""

from collections.abc import Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from urllib.parse import urlencode

import httpx2
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from accountlink.providers import Provider, oidc
from accountlink.testing.fake_provider import FakeProvider

NAMES = {"orbit": "Orbit Calendar", "harbor": "Harbor Drive", "quill": "Quill Code"}
"""The providers, by slug. None of them exists outside the demo."""
ACCOUNTS = {"team": "The team", "alice": "Alice", "bob": "Bob"}
"""The accounts at each provider. Alice and Bob both know the password of the team's."""
_STATIC = Path(__file__).parent / "page" / "static"
_FILES = {"/provider.css": _STATIC / "provider.css", "/icon.svg": _STATIC / "icon.svg"}
TOKEN_LIFETIME = timedelta(minutes=5)
"""The lifetime of an access token, so short that it can be watched."""
_ANSWER = "answer"
_NO = "no"


class Providers:
    """Serve every provider, each under its slug, on one host, which is not the application's.

    Args:
        address: Where browsers reach the host, such as ``"http://127.0.0.1:8750"``.
        callback: The application's redirect URI without the slug at its end.
        secret: Outlasts a restart, and so do the grants, and the codes that were on their way to the application.
    """

    def __init__(self, *, address: str, callback: str, secret: str) -> None:
        self.fakes = {
            slug: FakeProvider(
                issuer=f"{address}/{slug}",
                redirect_uris=[f"{callback}/{slug}"],
                token_lifetime=TOKEN_LIFETIME,
                secret=f"{slug} {secret}",
            )
            for slug in NAMES
        }
        for slug, fake in self.fakes.items():
            for account, name in ACCOUNTS.items():
                fake.add_account(f"{slug}-{account}", email=f"{account}@{slug}.example", name=name)

    def registered(self) -> Sequence[Provider]:
        """Return what the application knows of them."""
        return [registered_at(fake, slug=slug, name=NAMES[slug]) for slug, fake in self.fakes.items()]

    def transport(self) -> httpx2.AsyncBaseTransport:
        """Return the application's own way to them, which needs no network."""
        return httpx2.ASGITransport(app=self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the provider that the path names."""
        slug, _, endpoint = scope["path"].removeprefix("/").partition("/")
        if slug not in self.fakes:
            await self._other(scope["path"])(scope, receive, send)
        elif endpoint == "authorize" and scope["method"] == "GET":
            await self._authorize(slug, scope, receive, send)
        else:
            await self.fakes[slug](scope, receive, send)

    def _other(self, path: str) -> Response:
        return FileResponse(_FILES[path]) if path in _FILES else Response("There is no such page.", status_code=404)

    async def _authorize(self, slug: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the user which account it is, and then let the provider answer the application for that account."""
        asked = dict(Request(scope).query_params)
        answer = asked.pop(_ANSWER, None)
        if answer is None:
            await question(slug, asked)(scope, receive, send)
            return
        if answer == _NO:  # the failure is taken by this very request: nothing is awaited before
            self.fakes[slug].fail_next("authorize", error="access_denied", description="The user did not agree.")
        chosen = asked | {"login_hint": answer}
        await self.fakes[slug]({**scope, "query_string": urlencode(chosen).encode()}, receive, send)


def registered_at(provider: FakeProvider, *, slug: str, name: str | None = None) -> Provider:
    """Return what an application knows of a provider: its issuer, and the client that it has there."""
    return oidc(
        slug,
        name=name,
        issuer=provider.issuer,
        client_id=provider.client_id,
        client_secret=provider.client_secret,
        scopes=("email", "profile", "offline_access"),
    )


def question(slug: str, asked: dict[str, str]) -> Response:
    """Return the page on which the user picks an account, or declines.

    Args:
        slug: The provider.
        asked: The parameters of the application's request, which the answer repeats.
    """
    name = escape(NAMES[slug])
    repeated = "".join(
        f'<input type="hidden" name="{escape(key)}" value="{escape(value)}">\n' for key, value in asked.items()
    )
    buttons = "".join(
        f'<button name="{_ANSWER}" value="{slug}-{account}"><strong>{escape(called)}</strong> '
        f"<span>{account}@{slug}.example</span></button>\n"
        for account, called in ACCOUNTS.items()
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: choose an account</title>
<link rel="stylesheet" href="/provider.css">
<link rel="icon" href="/icon.svg" type="image/svg+xml">
</head>
<body>
<main>
<p class="brand">{name}</p>
<h1>Choose an account</h1>
<p>The accountlink demo asks to see your address and to use your account while you are away.</p>
<form>
{repeated}{buttons}<button name="{_ANSWER}" value="{_NO}" class="quiet">Cancel</button>
</form>
<p class="note">A pretend provider, part of the demo. Real ones ask for a password here.</p>
</main>
</body>
</html>
"""
    policy = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
