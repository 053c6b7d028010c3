"""Check the addresses of a provider."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from accountlink.errors import ConfigurationError

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PRINTED: Final = re.compile(r"[\x21-\x7e]+")
"""ASCII without blanks and control characters."""


def check_address(address: object, *, field: str) -> None:
    """Refuse an address of a provider that is neither https nor on this machine, or that no header can hold.

    Raises:
        ConfigurationError: The address is another one. It names the field, and not the address.

    Source: RFC 6749, section 3.1.2.1; RFC 8252, section 8.3 (loopback); RFC 3986, section 2 (its characters).
    """
    if address is None:
        return
    try:
        parts = urlsplit(address if isinstance(address, str) and _PRINTED.fullmatch(address) else "")
        known = bool(parts.hostname) and parts.port != 0  # reading the port raises an error for one that is no number
    except ValueError:  # likewise a bracket that no IPv6 address closes
        parts, known = urlsplit(""), False
    if not known or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise ConfigurationError(
            f"{field}=... must be an https address in ASCII without blanks (or http on this machine, for tests)."
        )
