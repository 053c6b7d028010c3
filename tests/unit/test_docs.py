"""The documentation: complete, linked, and true where a program can tell."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest

import accountlink
from accountlink import AccountLinker, AccountLinkError, InvalidIdentity, errors, normalize_email
from accountlink.doctor.rules import RULES
from tests.support.pages import (
    DOCS,
    EVERY_PAGE,
    FENCE,
    PAGES,
    README,
    ROOT,
    SPAN,
    Block,
    blocks_in,
    name_of,
    prose_of,
    text_of,
)

SECTIONS: Final = [
    "Meaning", "Typical causes", "What to do", "What is guaranteed about the data", "Fields",
]  # fmt: skip

_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_ROW: Final = re.compile(r"^\| \[`(\w+)`\]\((\S+)\) \| `(\w+)` \|", re.MULTILINE)
_ADDRESS_ROW: Final = re.compile(r"^\| `([^`]+)` \| (?:`([^`]+)`|refused) \|", re.MULTILINE)
_ROOTS: Final = "bin|dev|etc|home|mnt|opt|private|root|srv|tmp|Users|usr|var|work"
_ABSOLUTE: Final = re.compile(rf"(?<![\w.:/>])(?:/(?:{_ROOTS})\b|~/)|\bfile://|sqlite\S*:////|\b[A-Za-z]:\\")

ERROR_PAGES: Final = sorted((DOCS / "errors").glob("*.md"))
CLASSES: Final = {
    kind.code: kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AccountLinkError) and kind is not AccountLinkError
}
"""Each error by its code, the root aside."""
each_of_all = pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
each_block = pytest.mark.parametrize("block", blocks_in("python"), ids=str)
each_code = pytest.mark.parametrize("code", sorted(CLASSES))


# -- errors ---------------------------------------------------------------------------------------------------------


def test_every_error_has_a_page_and_no_page_is_left_over() -> None:
    """An error's code is the name of its page, and no page describes an error that does not exist."""
    assert sorted(CLASSES) == [page.stem for page in ERROR_PAGES]


def test_every_error_has_a_row() -> None:
    """The table of errors names each code once, with its class and its page."""
    rows = _ROW.findall(text_of(DOCS / "errors.md"))
    expected = sorted((code, f"errors/{code}.md", kind.__name__) for code, kind in CLASSES.items())
    assert expected == sorted(rows)


@each_code
def test_a_page_of_an_error_has_every_section(code: str) -> None:
    """The page of an error has meaning, cause, remedy, guarantee and fields, in this order."""
    text = text_of(DOCS / "errors" / f"{code}.md")
    assert text.startswith(f"# `{code}`\n")
    assert f"`{CLASSES[code].__name__}`" in text
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert all(re.split(r"^## .+$", text, flags=re.MULTILINE)[n].strip() for n in range(1, len(SECTIONS) + 1))


@each_code
def test_a_page_of_an_error_lists_its_fields(code: str) -> None:
    """The page lists the fields that the class documents, and no others."""
    attributes = (inspect.getdoc(CLASSES[code]) or "").partition("Attributes:")[2]
    documented = re.findall(r"^ {4}(\w+): ", attributes, re.MULTILINE)
    fields = text_of(DOCS / "errors" / f"{code}.md").partition("## Fields")[2]
    assert sorted(documented) == sorted(re.findall(r"^- `(\w+)`: ", fields, re.MULTILINE))


# -- the doctor -------------------------------------------------------------------------------------------------------

RULE_SECTIONS: Final = ["Meaning", "How it is found", "What the emitted migration does", "What is not seen"]
RULE_NAMES: Final = sorted({*RULES, "unsafe-pooling"})


def test_every_rule_has_a_page_and_no_page_is_left_over() -> None:
    """A rule's name is the name of its page, and no page describes a rule that does not exist."""
    assert sorted(page.stem for page in (DOCS / "doctor").glob("*.md")) == RULE_NAMES


def test_every_rule_has_a_row() -> None:
    """The doctor's table names each rule once, with its page."""
    rows = re.findall(r"^\| \[`([\w-]+)`\]\((\S+)\) \|", text_of(DOCS / "doctor.md"), re.MULTILINE)
    assert [(name, f"doctor/{name}.md") for name in RULE_NAMES] == sorted(rows)


@pytest.mark.parametrize("name", RULE_NAMES)
def test_a_page_of_a_rule_has_every_section(name: str) -> None:
    """The page of a rule has its meaning, how it is found, its migration and its limits, in this order."""
    text = text_of(DOCS / "doctor" / f"{name}.md")
    assert text.startswith(f"# `{name}`\n")
    found = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if name == "unsafe-pooling":  # no migration can repair the way to the table
        found = ["What the emitted migration does" if section == "What to do" else section for section in found]
    assert RULE_SECTIONS == found


# -- links and names --------------------------------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_of_all
def test_every_relative_link_resolves(page: Path) -> None:
    """A link to a file of the repository leads to one, and its anchor to a heading there."""
    prose = SPAN.sub("", prose_of(page))
    broken = []
    for target in (inline or reference for inline, reference in _LINK.findall(prose)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not (file.is_relative_to(ROOT) and file.exists()) or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked() -> None:
    """From the README a reader reaches each page of the documentation."""
    reached = {README}
    pending = list(reached)
    while pending:
        page = pending.pop()
        for inline, reference in _LINK.findall(prose_of(page)):
            file = (page.parent / (inline or reference).partition("#")[0]).resolve()
            if file in PAGES and file not in reached:
                reached.add(file)
                pending.append(file)
    assert [name_of(page) for page in PAGES if page not in reached] == []


def test_every_public_name_is_mentioned() -> None:
    """Each public name occurs in the documentation, as code."""
    code = " ".join(
        piece
        for page in PAGES
        for piece in (
            *(found["source"] for found in FENCE.finditer(text_of(page))),
            *SPAN.findall(prose_of(page)),
        )
    )
    mentioned = set(re.findall(r"\w+", code))
    assert [name for name in accountlink.__all__ if name not in mentioned] == []


@each_of_all
def test_no_page_names_an_absolute_path(page: Path) -> None:
    """A path of one machine means nothing on another."""
    assert [line for line in text_of(page).splitlines() if _ABSOLUTE.search(line)] == []


# -- code -------------------------------------------------------------------------------------------------------------


@each_block
def test_every_block_is_python(block: Block) -> None:
    """A Python block of a page is valid Python."""
    assert block.tree().body


@each_block
def test_every_block_uses_what_exists(block: Block) -> None:
    """Every name that a block imports from accountlink, or calls on a linker, exists."""
    missing = []
    for node in ast.walk(block.tree()):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "accountlink":
            module = __import__(str(node.module), fromlist=[alias.name for alias in node.names])  # and its modules
            missing += [alias.name for alias in node.names if not hasattr(module, alias.name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "linker":
            missing += [] if hasattr(AccountLinker, node.attr) else [node.attr]
    assert missing == []


def test_prose_calls_methods_that_exist() -> None:
    """Beside blocks, too, no page calls a method of the linker that is not there."""
    called = {
        name
        for page in PAGES
        for span in SPAN.findall(prose_of(page))
        for name in re.findall(r"\b(?:linker|AccountLinker)\.(\w+)", span)
    }
    assert [name for name in sorted(called) if not hasattr(AccountLinker, name)] == []


def test_the_table_of_addresses_is_computed() -> None:
    """Each row of the table of normal forms is what the function says."""
    rows = _ADDRESS_ROW.findall(text_of(DOCS / "email-keys.md"))
    assert len(rows) >= 15
    for written, normal in rows:
        address = unescaped(written)
        if normal:
            assert unescaped(normal) == normalize_email(address)
        else:
            with pytest.raises(InvalidIdentity):
                normalize_email(address)


def unescaped(text: str) -> str:
    return re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)
