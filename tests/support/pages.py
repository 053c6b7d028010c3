"""The pages of the documentation and the blocks in them, for the tests that hold both to the truth.

A comment right above a block says how it is run. Without one a Python block runs after the Python blocks before it, on
SQLite, and prints what the comments behind its ``print`` calls say.

``<!-- set up: CODE -->``: CODE, in the block's own language, runs before it and is not shown: it stands for the
application around the block.

``<!-- file: NAME -->``: the block is a file. The files of a page make one project, whose tests pytest runs.

``<!-- not run: WHY -->``: the block is not run, for the reason given.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
README: Final = ROOT / "README.md"
PAGES: Final = [README, *sorted(DOCS.rglob("*.md"))]
"""Pages that a user of the library reads."""
EVERY_PAGE: Final = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "examples").rglob("*.md")),
]

FENCE: Final = re.compile(
    r"""
    (?: ^<!--\ *(?P<how>[a-z\ ]+):\s*(?P<what>(?:(?!-->).)*?)\s*-->\n )?
    ^\ *```(?P<language>\w*)\n
    (?P<source>.*?)
    ^\ *```$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
SPAN: Final = re.compile(r"`[^`]+`")
HOW: Final = frozenset({"", "set up", "file", "not run"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Where it stands.
        line: The line of its first line of code.
        language: What stands behind the fence.
        source: The code.
        how: How it is run: one of ``HOW``.
        what: What the comment above it brings: the code of a set-up, a file's name, a reason.
    """

    page: Path
    line: int
    language: str
    source: str
    how: str
    what: str

    def tree(self) -> ast.Module:
        """Parse the block at its own line numbers; ``await`` may stand outside of a function."""
        return ast.increment_lineno(parsed(self.source, str(self.page)), self.line - 1)

    def set_up(self) -> ast.Module:
        """Parse what runs before the block."""
        return parsed(self.what if self.how == "set up" else "", f"{self.page} (set up)")

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def parsed(source: str, name: str) -> ast.Module:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, name, "exec", flags=flags, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text_of(page))


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    text = text_of(page)
    return tuple(
        Block(
            page=page,
            line=text.count("\n", 0, found.start("source")) + 1,
            language=found["language"],
            source=textwrap.dedent(found["source"]),
            how=found["how"] or "",
            what=found["what"] or "",
        )
        for found in FENCE.finditer(text)
    )


def blocks_in(language: str) -> list[Block]:
    """Every block in a language that is run, of every page."""
    found = [block for page in EVERY_PAGE for block in blocks_of(page)]
    return [block for block in found if block.language == language and block.how != "not run"]
