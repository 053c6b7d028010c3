"""The tables of the documentation list what the code has, all of it and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from accountlink import EventType, grants_table, link_outbox, pending_credentials, transfer_ledger
from accountlink.cli.commands import doctor
from accountlink.grants.mapping import GRANT_ROLES
from accountlink.tables.mapping import ROLES
from tests.support.pages import DOCS, ROOT, SPAN, text_of

_PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_REQUIREMENT: Final = re.compile(r"([\w.-]+(?:\[\w+\])?)(?:>=([\d.]+))?(?:,<([\d.]+))?")


def first_cells(page: Path, heading: str) -> list[str]:
    """Return the code in the first cell of each row of the first table below a heading."""
    below = text_of(page).partition(f"\n{heading}\n")[2]
    assert below, f"{page.name} has no heading {heading}"
    [table, *_] = re.findall(r"(?:^\|.*\n)+", below, re.MULTILINE)
    cells = [row.split(" | ")[0] for row in table.splitlines()[2:]]
    return [span.strip("`") for cell in cells for span in SPAN.findall(cell)]


def requirements() -> set[tuple[str, str]]:
    """Each requirement and its bounds, as the page writes them."""
    lists = [_PROJECT["project"]["dependencies"], _PROJECT["build-system"]["requires"]]
    lists += _PROJECT["project"]["optional-dependencies"].values()
    found = set()
    for requirement in (one for each in lists for one in each if not one.startswith("accountlink[")):
        matched = _REQUIREMENT.fullmatch(requirement)
        assert matched is not None, requirement
        found.add((matched[1], f"≥ {matched[2]}, < {matched[3]}"))
    return found


def test_every_requirement_is_justified() -> None:
    """Each requirement has its line, with the bounds that it has."""
    rows = set(re.findall(r"^\| `([^`]+)` (≥ [\d.]+, < [\d.]+) \|", text_of(DOCS / "dependencies.md"), re.MULTILINE))
    assert requirements() == rows


def test_the_doctor_s_options_are_listed() -> None:
    """The page has each option of the command."""
    listed = {cell.split()[0] for cell in first_cells(DOCS / "doctor.md", "## Run it") if cell.startswith("--")}
    assert {name for option in doctor.params for name in option.opts} == listed


def test_every_event_is_listed() -> None:
    """The page has each type of event, in one of its two tables."""
    page = DOCS / "events.md"
    links, grants = first_cells(page, "## The events of links"), first_cells(page, "## Sharing grants")
    assert sorted(each.value for each in EventType) == sorted([*links, *grants])


@pytest.mark.parametrize(
    ("page", "heading", "table"),
    [
        ("transfer.md", "### The ledger: for a table without a version", transfer_ledger(sa.MetaData())),
        ("vault.md", "## Tokens of a conflict: `pending_credentials`", pending_credentials(sa.MetaData())),
        ("events.md", "## The table", link_outbox(sa.MetaData())),
        ("sharing.md", "## The table", grants_table(sa.MetaData(), link_id=sa.BigInteger())),
    ],
    ids=["ledger", "pending", "outbox", "grants"],
)
def test_every_column_is_listed(page: str, heading: str, table: sa.Table) -> None:
    """The page of one of the library's tables has each of its columns."""
    assert sorted(column.name for column in table.columns) == sorted(first_cells(DOCS / page, heading))


def test_every_role_is_listed() -> None:
    """The pages about an application's own tables list each role that a column can have."""
    assert set(ROLES) == set(first_cells(DOCS / "your-own-table.md", "## The roles"))
    grants = text_of(DOCS / "sharing.md").partition("\n## A table of your own\n")[2].partition("\n## ")[0]
    assert [] == [role for role in GRANT_ROLES if f"`{role}`" not in grants]
