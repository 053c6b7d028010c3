"""Lets the processes of a run share what one of them has compiled, also where Python is told to write no such files.

With ``PYTHONDONTWRITEBYTECODE`` each worker compiles the library and all tests anew, and so does each program that a
test starts: a twentieth of the suite's time went there. They write into a folder of the run's own instead, and nothing
appears beside the sources.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def share() -> None:
    """Write compiled files into a folder that this process removes when it ends, and tell its children of it."""
    if not sys.dont_write_bytecode:
        return
    folder = tempfile.mkdtemp(prefix="accountlink-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def import_tests(*, begin: float) -> None:
    """Import all tests, so that workers that begin at different places do not compile the same ones at the same time.

    Args:
        begin: Where to begin, from 0 for the first file to 1 for the last; those before come at the end.
    """
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.glob("tests/*/test_*.py"))]
    at = int(begin * len(names))
    for name in names[at:] + names[:at]:
        with suppress(Exception):  # pytest imports it again, and says what is wrong
            importlib.import_module(name)


share()
