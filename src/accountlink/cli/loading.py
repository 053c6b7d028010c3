"""Finds what ``--app`` and ``--engine`` name in the application's code."""

import inspect
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache, reduce
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink.doctor.subjects import Target, targets_of
from accountlink.errors import AccountLinkError, ConfigurationError
from accountlink.extras import how_to_install
from accountlink.linker import AccountLinker
from accountlink.tables.arguments import mapping_of as mapping_of_model
from accountlink.tables.mixin import LinkedAccountMixin

_FUNCTIONS: Final = (FunctionType, MethodType, type(cache(lambda: None)))
"""The types that are called for the value that they return; an engine made once is often behind ``functools.cache``."""
_DONE: Final = {"Import": "imported", "Read": "read", "Call": "called"}


class CannotRun(Exception):
    """The command cannot do what it was asked for; the message says why, and what to do about it."""


def load_target(name: str) -> tuple[Target, ...]:
    """Return the tables of what ``--app`` names: a linker, a mapping itself, a model, or a function that returns one.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is nothing that the doctor looks at.
    """
    found = _load("--app", name)
    with _application(f"--app: {name}", "Read"):  # what is found may be a proxy, which runs code at every question
        try:
            if isinstance(found, type) and issubclass(found, LinkedAccountMixin):
                return targets_of(mapping_of_model(found))
            return targets_of(found)
        except ConfigurationError as error:
            raise CannotRun(f"--app {name} names no linker. {error}") from None


def load_linker(name: str) -> AccountLinker[Any, Any]:
    """Return the linker that ``--app`` names, itself or by a function that returns it.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is no linker with a vault.
    """
    found = _load("--app", name)
    with _application(f"--app: {name}", "Read"):
        if not isinstance(found, AccountLinker):
            raise CannotRun(
                f"--app {name} is {type(found).__name__}. Name an AccountLinker, or a function without arguments that "
                "returns one."
            )
        if found.vault is None:
            raise CannotRun(f"--app {name} has no vault. Make the linker with AccountLinker(..., vault=...).")
        return found


def load_renewing_linker(name: str) -> AccountLinker[Any, Any]:
    """Return the linker that ``--app`` names, which renews tokens.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is no linker that renews tokens.
    """
    linker = load_linker(name)
    if not linker.renews_tokens:
        raise CannotRun(
            f"--app {name} renews no tokens. Make the linker with AccountLinker(..., refresher=..., refreshes=...)."
        )
    return linker


def load_engine(name: str) -> AsyncEngine:
    """Return the application's engine, which ``--engine`` names itself or by a function that returns it.

    Args:
        name: ``module:attribute``.

    Raises:
        CannotRun: There is no such thing, it cannot be imported, or it is no asynchronous engine.
    """
    found = _load("--engine", name)
    with _application(f"--engine: {name}", "Read"):
        if isinstance(found, AsyncEngine):
            return found
    raise CannotRun(
        f"--engine {name} is {type(found).__name__}. Name an AsyncEngine, or a function without arguments (no "
        "coroutine function) that returns one; or give --database-url."
    )


def _load(option: str, name: str) -> object:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute and all(attribute.split("."))):
        raise CannotRun(f"{option} takes module:attribute, such as myapp.accounts:linker, not {name!r}.")
    found: object = _imported(option, module_name)
    with _application(f"{option}: {name}", "Read"):
        try:
            found = reduce(getattr, attribute.split("."), found)
        except AttributeError:
            raise CannotRun(
                f"{option}: the module {module_name} has no {attribute}. Check the name's spelling."
            ) from None
        if not isinstance(found, _FUNCTIONS) or inspect.iscoroutinefunction(found):
            return found
    with _application(f"{option}: the function {name}", "Call"):
        returned: object = found()
        return returned


def _imported(option: str, name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _application(f"{option}: the module {name}", "Import"):
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise CannotRun(
                f"{option}: there is no module {error.name}. Run the command where python -c 'import {name}' works: in "
                "the project's folder, and in the environment that the application is installed in."
            ) from None


@contextmanager
def _application(what: str, verb: str) -> Iterator[None]:
    """Run the application's own code: what it prints is no part of a report, and what it raises is told, not shown."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except CannotRun:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the application's own code may raise anything
        raise CannotRun(_failed(what, verb, error)) from None


def _failed(what: str, verb: str, error: BaseException) -> str:
    """Say where an application's own code failed, but not with what text, unless it is ours: it may quote a setting."""
    text = ""
    if isinstance(error, AccountLinkError):
        text = f": {error}".rstrip(".")
    elif isinstance(error, ModuleNotFoundError):
        text = f": there is no module {error.name}"
        if (command := how_to_install(error.name)) is not None:
            text += f", which {command} installs"
    return (
        f"{what} cannot be {_DONE[verb]}: {type(error).__name__}{where_of(error)}{text}. {verb} it in Python to see "
        "the traceback."
    )


def where_of(error: BaseException) -> str:
    """Say where in the application's own code an error came up, if it did: `` at file.py:7``."""
    own = [frame for frame in extract_tb(error.__traceback__) if _is_applications(frame.filename)]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def _is_applications(file: str) -> bool:
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = Path(file)
    return path.is_absolute() and not any(path.is_relative_to(each) for each in (*folders, Path(__file__).parents[1]))
