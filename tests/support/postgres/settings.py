"""The settings that a server for tests is configured with."""

from __future__ import annotations

import re
from collections.abc import Mapping

HOST = "127.0.0.1"

_FIXED_SETTINGS = {"listen_addresses": HOST, "unix_socket_directories": ""}
_DEFAULT_SETTINGS = {
    # The data die with the server, so nothing needs to outlive a crash of the machine.
    # synchronous_commit stays on: the order of commits and their visibility are under test.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def configuration(settings: Mapping[str, str]) -> str:
    """Write the lines of postgresql.conf: the caller's settings, over the defaults and under the fixed ones."""
    for name in settings:
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) is None:
            raise ValueError(f"{name!r} is not the name of a PostgreSQL setting.")
        if name.lower() in {*_FIXED_SETTINGS, "port", "data_directory"}:
            raise ValueError(f"{name} belongs to run_server, which gives each server an address of its own.")
    lines = []
    for name, value in {**_DEFAULT_SETTINGS, **settings, **_FIXED_SETTINGS}.items():
        quoted = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
        lines.append(f"{name} = '{quoted}'\n")
    return "".join(lines)
