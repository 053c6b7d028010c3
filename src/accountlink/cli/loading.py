"""Finds what ``--app`` and ``--engine`` name in the application's code."""

import inspect
import sys
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import reduce
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.errors import AccountLinkError, ConfigurationError
from accountlink.storage.subject import Mapping as TableMapping
from accountlink.storage.subject import mapping_of


class CannotRun(Exception):
    """The command cannot do what it was asked for; the message says why, and what to do about it."""


def load_target(name: str) -> TableMapping:
    """Return the mapping of what ``--app`` names: a linker, or a mapping itself.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is nothing that the doctor looks at.
    """
    target = _load("--app", name)
    try:
        return mapping_of(target)
    except ConfigurationError as error:
        raise CannotRun(f"--app {name} names no linker. {error}") from None


def load_engine(name: str) -> AsyncEngine:
    """Return the application's engine, which ``--engine`` names itself or by a function that returns it.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is no asynchronous engine.
    """
    found = _load("--engine", name)
    if inspect.isfunction(found) and not inspect.iscoroutinefunction(found):
        found = _called(name, found)
    if not isinstance(found, AsyncEngine):
        raise CannotRun(
            f"--engine {name} is {type(found).__name__}. Name an AsyncEngine, or a function without arguments (no "
            "coroutine function) that returns one; or give --database-url."
        )
    return found


def _load(option: str, name: str) -> object:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute and all(attribute.split("."))):
        raise CannotRun(f"{option} takes module:attribute, such as myapp.accounts:linker, not {name!r}.")
    module = _imported(option, module_name)
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise CannotRun(f"{option}: the module {module_name} has no {attribute}. Check the name's spelling.") from None


def _imported(option: str, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):  # what an application prints is no part of a report
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise CannotRun(_failed(f"{option}: the module {name}", "imported", error)) from None
        raise CannotRun(
            f"{option}: there is no module {error.name}. Run the command where python -c 'import {name}' works: in the "
            "project's folder, and in the environment that the application is installed in."
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the application's own code may raise anything
        raise CannotRun(_failed(f"{option}: the module {name}", "imported", error)) from None


def _called(name: str, function: Callable[[], object]) -> object:
    try:
        with redirect_stdout(sys.stderr):
            return function()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the application's own code may raise anything
        raise CannotRun(_failed(f"--engine: the function {name}", "called", error)) from None


def _failed(what: str, done: str, error: BaseException) -> str:
    """Say where an application's own code failed, but not with what text, unless it is ours: it may quote a setting."""
    own = [frame for frame in extract_tb(error.__traceback__) if _is_applications(frame.filename)]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    text = ""
    if isinstance(error, AccountLinkError):
        text = f": {error}".rstrip(".")
    elif isinstance(error, ModuleNotFoundError):
        text = f": there is no module {error.name}"
    return f"{what} cannot be {done}: {type(error).__name__}{where}{text}. Import it in Python to see the traceback."


def _is_applications(file: str) -> bool:
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = Path(file)
    return path.is_absolute() and not any(path.is_relative_to(each) for each in (*folders, Path(__file__).parents[1]))
