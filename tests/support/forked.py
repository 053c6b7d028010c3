"""Runs code as in a fresh interpreter, by forks of one that has loaded what accountlink stands on, and no accountlink.

To start an interpreter and to load SQLAlchemy takes longer than what is under test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FORKS: Final = """
import gc, json, os, sys
import asyncpg, sqlalchemy.dialects.postgresql, sqlalchemy.dialects.sqlite, sqlalchemy.ext.asyncio, sqlalchemy.orm

gc.collect()
gc.freeze()
for line in sys.stdin:
    told = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for number, name in enumerate(told["files"]):
        os.dup2(os.open(name, os.O_RDWR), number)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv[1:] = told["arguments"]
    sys.modules.update(dict.fromkeys(told["missing"]))
    exec(told["code"], {"__name__": "__main__"})
    break
"""
"""A fork leaves the loop, so that it ends as an interpreter does that was given the code alone.

Its garbage collector passes over what was loaded before the fork, which would all be copied for it.
"""

_PROGRAM: Final = """
import os, runpy, sys, warnings
warnings.simplefilter("error")
os.environ.pop("COLUMNS", None)
program = sys.argv.pop(1)
sys.path.insert(0, os.path.dirname(program))
runpy.run_path(program, run_name="__main__")
"""


class Forks:
    """An interpreter that forks whenever it is told to."""

    def __init__(self, forking: subprocess.Popen[str]) -> None:
        self._forking = forking

    def program(self, path: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder, with every warning as an error."""
        return self.run(_PROGRAM, str(path), *arguments, folder=folder)

    def run(
        self,
        code: str,
        *arguments: str,
        missing: Iterable[str] = (),
        folder: Path | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> subprocess.CompletedProcess[str]:
        """Run code in a folder, or the current one, where some libraries cannot be imported."""
        with tempfile.NamedTemporaryFile("r+") as out, tempfile.NamedTemporaryFile("r+") as error:
            told = {
                "code": code,
                "arguments": arguments,
                "missing": list(missing),
                "files": [os.devnull, out.name, error.name],
                "folder": str(folder or Path.cwd()),
                "environment": dict(environment),
            }
            assert self._forking.stdin is not None
            assert self._forking.stdout is not None
            self._forking.stdin.write(json.dumps(told) + "\n")
            self._forking.stdin.flush()
            status = int(self._forking.stdout.readline())
            return subprocess.CompletedProcess(("-c", code, *arguments), status, out.read(), error.read())


@contextmanager
def forking() -> Iterator[Forks]:
    """Start the interpreter that forks; it ends when its input does."""
    command = [sys.executable, "-c", _FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield Forks(started)
