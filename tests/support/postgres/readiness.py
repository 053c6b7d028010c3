"""Telling whether a server is ready: by its own word, and by its answer to a client."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from tests.support.postgres.settings import HOST


def says_ready(data: Path, pid: bytes) -> bool:
    """Tell whether the server of this process number has written that it is ready."""
    # Source: PostgreSQL's miscadmin.h, LOCK_FILE_LINE_PM_STATUS; pg_ctl --wait reads the same line.
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()
    except OSError:
        return False
    return len(lines) > 7 and lines[0].strip() == pid and lines[7].strip() == b"ready"


def answers(port: int, user: str) -> bool:
    """Tell whether a server on this machine lets a client in."""
    # Source: PostgreSQL's frontend/backend protocol 3.0: StartupMessage; R answers it, X ends the connection.
    names = f"user\0{user}\0database\0postgres\0\0".encode()
    try:
        with socket.create_connection((HOST, port), timeout=1) as probe:
            probe.sendall(struct.pack("!ii", len(names) + 8, 3 << 16) + names)
            answered = probe.recv(1) == b"R"
            probe.sendall(struct.pack("!ci", b"X", 4))
            return answered
    except OSError:
        return False
