"""Hold the application's own addresses, and say where a browser may be sent."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from accountlink.errors import ConfigurationError, ReturnTargetRejected

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""The hosts on which a browser accepts http as safe enough for development."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SEGMENT: Final = r"[A-Za-z0-9._~!$&'()*+,;=:@%-]+"
_PATH: Final = re.compile(rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
"""A path and query of RFC 3986 without an empty segment, a backslash, a fragment or white space."""
_LONGEST: Final = 2_000
"""Characters of a return target."""
_DECODINGS: Final = 3
"""The number of times that a return target is decoded to look for what is hidden in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Hold the addresses of the application, from its configuration and never from a request.

    Attributes:
        callback_url: The address under which providers send browsers back, without the provider's slug.
        page: The page that browsers are sent to without a return target.
        allowed: Complete URLs that may be return targets as well.
        trusted: Origins, beside the page's, whose pages may call the routes.
    """

    callback_url: str
    page: str
    allowed: frozenset[str] = frozenset()
    trusted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *, callback_url: str, page: str, allowed: Collection[str] = (), trusted: Collection[str] = ()) -> Site:
        """Check the addresses.

        Raises:
            ConfigurationError: An address is neither https nor http on this machine, or has a query or fragment where
                that cannot be.
        """
        callback = _address("callback_url", callback_url)
        if callback.query:
            raise ConfigurationError("callback_url=... must not have a query: providers compare it as it is.")
        _address("page", page)
        if isinstance(allowed, str):
            raise ConfigurationError("allowed_return_urls=... takes a list of complete URLs.")
        for url in allowed:
            _address("allowed_return_urls", url)
        if isinstance(trusted, str):
            raise ConfigurationError("trusted_origins=... takes a list of origins.")
        for origin in trusted:
            _address("trusted_origins", origin)
            if origin_of(origin) != origin:
                raise ConfigurationError(
                    "trusted_origins=... takes origins: scheme, host and port as a browser writes them, without a path."
                )
        return cls(
            callback_url=callback_url.rstrip("/"), page=page, allowed=frozenset(allowed), trusted=frozenset(trusted)
        )

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach the application by https."""
        return self.callback_url.startswith("https:")

    @property
    def origin(self) -> str:
        """The origin of the application's page."""
        return origin_of(self.page)

    def redirect_uri(self, slug: str) -> str:
        """Return the redirect URI of a provider. Each provider has one of its own (RFC 9700, section 4.4.2)."""
        return f"{self.callback_url}/{slug}"

    def beside_callback(self, path: str) -> str:
        """Return the address of another route of the router that has the callback."""
        return f"{self.callback_url.rpartition('/')[0]}/{path}"

    def checked(self, return_to: object) -> str | None:
        """Return a return target as a complete URL, or ``None`` where none is given.

        Raises:
            ReturnTargetRejected: Neither a plain path nor one of the allowed URLs.

        Source: RFC 9700, section 4.11 (open redirection).
        """
        if return_to is None:
            return None
        if not isinstance(return_to, str) or len(return_to) > _LONGEST:
            raise ReturnTargetRejected
        if not return_to:
            return None
        if return_to in self.allowed:
            return return_to
        if not _PATH.fullmatch(return_to) or _hides_something(return_to):
            raise ReturnTargetRejected
        return f"{self.origin}{return_to}"

    def for_token(self, return_to: str | None) -> str:
        """Return where a browser goes with a transfer token: the return target on the page's origin, or the page."""
        return return_to if return_to is not None and origin_of(return_to) == self.origin else self.page


def origin_of(url: str) -> str:
    """Return the origin of a URL as a browser writes it: without a default port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = parts.port
    return f"{parts.scheme}://{host}" + ("" if port in {None, _DEFAULT_PORTS.get(parts.scheme)} else f":{port}")


def _hides_something(target: str) -> bool:
    """Say whether a target, decoded as a careless server would, has a part that leads elsewhere."""
    for _ in range(_DECODINGS):
        decoded = unquote(target)
        if "\\" in decoded or "//" in decoded.partition("?")[0] or any(c < " " or c == "\x7f" for c in decoded):
            return True
        if decoded == target:
            return False
        target = decoded
    return True


def _address(name: str, url: object) -> SplitResult:
    text = url if isinstance(url, str) and url.isascii() and not any(c <= " " for c in url) else ""
    try:
        parts = urlsplit(text)
        known = bool(parts.hostname) and parts.port != 0  # reading the port raises an error for one that is no number
    except ValueError:
        parts, known = urlsplit(""), False
    if not known or parts.username is not None or parts.fragment:
        raise ConfigurationError(f"{name}=... is a complete URL without a user name and without a fragment.")
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return parts
    raise ConfigurationError(
        f"{name}=... must begin with https://, or with http://localhost for development: other browsers' connections "
        "can be read and changed by anybody on the way."
    )
