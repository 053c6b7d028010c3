"""Plain words, as far as a search can find them: people are named by their part, and a docstring stands alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.pages import ROOT, name_of, text_of

_FOLDERS: Final = ("src", "docs", "examples", "tests", "benchmarks", ".ci")
_SUFFIXES: Final = frozenset({".py", ".md", ".toml", ".html", ".sql", ".txt", ".yml", ".ini", ".cfg", ""})
_PERSON: Final = re.compile(r"\b(?:he|him|his|himself)\b", re.IGNORECASE)
_LEANING: Final = ("The same",)
"""The first words of a docstring that can be understood only after another one."""
_QUESTIONS: Final = (*_LEANING, "What ", "How ")
"""The first words of a docstring that asks a question, or names a thing without a verb."""


def files() -> Iterator[Path]:
    """Give each file of the project that people read; the licence is a quotation and is left out."""
    yield from (path for path in sorted(ROOT.iterdir()) if path.suffix in {".md", ".toml"})
    for folder in _FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if (
                path.is_file()
                and path.suffix in _SUFFIXES
                and not {"__pycache__", ".venv", "node_modules"} & set(path.parts)
            ):
                yield path


def lines_about_people(text: str) -> list[int]:
    """Return the numbers of the lines that name a person by "he", "him", "his" or "himself"."""
    return [number for number, line in enumerate(text.splitlines(), start=1) if _PERSON.search(line)]


def modules_without_questions() -> Iterator[Path]:
    """Give each module of the library and of the benchmarks: their docstrings may not begin with a question."""
    for folder in ("src", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def docstrings_that_begin(source: str, openings: tuple[str, ...] = _LEANING) -> list[int]:
    """Return the lines of the docstrings that begin with one of these openings.

    A text that stands alone in a body counts too: below an attribute it describes the attribute.
    """
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    return [
        text.lineno
        for text in texts
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.startswith(openings)
    ]


def test_people_are_named_by_their_part() -> None:
    """A user, a caller, an owner, a claimant is named so, or "they", in every file of the project."""
    searched = [path for path in files() if path != Path(__file__)]
    found = [f"{name_of(path)}:{line}" for path in searched for line in lines_about_people(text_of(path))]
    assert [] == found, "\n".join(found)


def test_every_docstring_stands_alone() -> None:
    """A docstring can be understood without the one before it."""
    modules = [path for path in files() if path.suffix == ".py"]
    found = [f"{name_of(path)}:{line}" for path in modules for line in docstrings_that_begin(text_of(path))]
    assert [] == found, "\n".join(found)


def test_no_docstring_begins_with_a_question() -> None:
    """A docstring of the library or the benchmarks begins with a verb, or at least not with "What" or "How"."""
    found = [
        f"{name_of(path)}:{line}"
        for path in modules_without_questions()
        for line in docstrings_that_begin(text_of(path), _QUESTIONS)
    ]
    assert [] == found, "\n".join(found)


def test_the_search_reaches_every_folder() -> None:
    """The search reads code, pages, tests and the files of the repository's root."""
    searched = {name_of(path) for path in files()}
    expected = {
        "README.md", "SECURITY.md", "CHANGELOG.md", "pyproject.toml", "docs/linking.md", "docs/errors/store_busy.md",
        "src/accountlink/errors.py", "tests/unit/test_plain_words.py", "examples/calendar/main.py", ".ci/run",
    }  # fmt: skip
    assert set() == expected - searched


@pytest.mark.parametrize("line", ["what he does", "It is his.", "Himself!", "for him"])
def test_a_person_is_found(line: str) -> None:
    """The search finds each of the words, in any case, and tells its line."""
    assert [2] == lines_about_people(f"the user\n{line}\n")


@pytest.mark.parametrize("line", ["the history", "she, her", "this", "theirs"])
def test_another_word_is_not_found(line: str) -> None:
    """A word that only contains one of the words is not found."""
    assert [] == lines_about_people(line)


def test_a_question_is_found() -> None:
    """The search finds a docstring that begins with a question, and passes one that only contains the word."""
    source = 'def one():\n    """What it does."""\n\ndef two():\n    """Say how."""\n\ndef three():\n    """How."""\n'
    assert [2] == docstrings_that_begin(source, _QUESTIONS)


def test_the_search_for_questions_reads_every_folder() -> None:
    """The search for questions reads every folder, and the modules that users read first."""
    searched = {name_of(path) for path in modules_without_questions()}
    expected = {
        "src/accountlink/linker.py", "src/accountlink/values/outcomes.py", "src/accountlink/doctor/repair/sqlite.py",
        "src/accountlink/cli/doctor.py", "src/accountlink/testing/__init__.py", "benchmarks/link.py",
    }  # fmt: skip
    assert set() == expected - searched


def test_a_leaning_docstring_is_found() -> None:
    """The search finds the docstring of a function and of an attribute, and passes one that stands alone."""
    source = (
        'def one():\n    """Link."""\n\ndef two():\n    """The same for an unlink."""\n\nTHREE = 3\n"""The same."""\n'
    )
    assert [5, 8] == sorted(docstrings_that_begin(source))
