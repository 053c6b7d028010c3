"""Lets the processes of a run share what one of them has compiled, also where Python is told to write no such files.

With ``PYTHONDONTWRITEBYTECODE`` each worker compiles the library and all tests anew, and so does each program that a
test starts: a twentieth of the suite's time went there. They write into a folder of the run's own instead, and nothing
appears beside the sources. What is compiled already, of Python's own library and of the installed packages, is there
from the beginning.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_NOT_WANTED: Final = frozenset({"idlelib", "lib2to3", "pip", "setuptools", "site-packages", "test"})
"""Folders of many files that no test imports. Where they are below another, ``site-packages`` are not this Python's."""


def share() -> None:
    """Write compiled files into a folder that this process removes when it ends, and tell its children of it."""
    if not sys.dont_write_bytecode:
        return
    folder = tempfile.mkdtemp(prefix="accountlink-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for place in ("stdlib", "purelib"):
        _find_again(Path(sysconfig.get_path(place)), folder)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _find_again(place: Path, folder: str) -> None:
    """Let Python find in the folder what stands compiled beside the sources of a place: it looks nowhere else then."""
    for path, folders, files in os.walk(place):
        folders[:] = [each for each in folders if each not in _NOT_WANTED]
        parent, name = os.path.split(path)
        if name == "__pycache__":
            there = Path(folder + parent)
            there.mkdir(parents=True, exist_ok=True)
            for each in files:
                (there / each).symlink_to(f"{path}/{each}")


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
