"""Name the extra that brings a library which is not installed."""

from __future__ import annotations

from typing import Final

_EXTRAS: Final = {
    "aiosqlite": "[sqlite]",
    "alembic": "[alembic]",
    "asyncpg": "",
    "click": "[cli]",
    "cryptography": "[vault]",
    "fastapi": "[fastapi]",
    "httpx2": "[web]",
    "joserfc": "[web]",
    "psycopg": "[psycopg]",
    "rich": "[cli]",
    "starlette": "[starlette]",
    "uvicorn": "[demo]",
}
"""The extra that brings each library; ``asyncpg`` comes without one."""


def how_to_install(library: str | None) -> str | None:
    """Return the command that installs a library with accountlink, or ``None`` if no extra brings the library.

    Args:
        library: The name that ``import`` did not find.
    """
    extra = _EXTRAS.get((library or "").partition(".")[0])
    return None if extra is None else f'pip install "accountlink{extra}"'


def explained(what: str, error: ModuleNotFoundError, *, extra: str | None = None) -> ModuleNotFoundError:
    """Return an import error that says how to install the missing library.

    Args:
        what: What needs the library, for people.
        error: What ``import`` raised; one about a library that no extra brings is returned as it is.
        extra: The extra that brings everything that is needed, such as ``"demo"``; without it that of the library.
    """
    command = how_to_install(error.name)
    if command is None:
        return error
    if extra is not None:
        command = f'pip install "accountlink[{extra}]"'
    library = str(error.name).partition(".")[0]
    return ModuleNotFoundError(f"{what} needs {library}, which is not installed: {command}", name=library)
