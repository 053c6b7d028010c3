"""Bind a flow to the browser that began it, by a cookie."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

_VALUE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""The form of a value that :func:`new_browser` makes: 256 bits."""


def new_browser() -> str:
    """Return a random value for the cookie of a browser that has none."""
    return secrets.token_urlsafe(32)


def known_browser(value: object) -> str | None:
    """Return a cookie's value if it has the form of one of ours, else ``None``."""
    return value if isinstance(value, str) and _VALUE.fullmatch(value) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class BrowserCookie:
    """Describe the cookie that binds flows to a browser.

    Attributes:
        name: On https the name begins with ``__Host-``, so that no other host and no http page can set it.
        secure: Whether it is sent over https only.

    Source: RFC 6265bis, section 4.1.3.2; draft-ietf-oauth-security-topics-update (binding of the session).
    """

    name: str
    secure: bool

    @classmethod
    def on(cls, *, https: bool) -> BrowserCookie:
        """Return the cookie of an application that browsers reach by https, or by http on their own machine."""
        return cls(name="__Host-accountlink" if https else "accountlink", secure=https)

    def header(self, value: str) -> str:
        """Return the ``Set-Cookie`` header that gives a browser its value, until it is closed."""
        secure = "; Secure" if self.secure else ""
        return f"{self.name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"
