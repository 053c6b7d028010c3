"""Convert between providers' slugs and the values of an enumerated column."""

from __future__ import annotations

from enum import Enum
from typing import Any

import sqlalchemy as sa

from accountlink.tables.type_layers import plain_types, works_on_values


def slugs_of(kind: sa.types.TypeEngine[Any]) -> dict[str, Any]:
    """Return the values that an enumerated column takes, by slug: members of a Python enumeration, or texts."""
    enums = [] if works_on_values(kind) else [plain for plain in plain_types(kind) if isinstance(plain, sa.Enum)]
    if not enums:
        return {}
    kind = enums[0]
    members: list[Any] = list(kind.enum_class) if kind.enum_class is not None else list(kind.enums)
    slugs: dict[str, Any] = {}
    for member in members:
        text = member if isinstance(member, str) and not isinstance(member, Enum) else member.value
        slugs[(text if isinstance(text, str) else member.name).lower()] = member
    return slugs


def slug_in(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Build the expression for a provider's slug from what its column holds."""
    slugs = slugs_of(column.type)
    if not slugs:
        return sa.cast(column, sa.Text)
    words = {slug: sa.literal(slug, sa.Text) for slug in slugs}
    return sa.case(*((column == sa.literal(member, column.type), words[slug]) for slug, member in slugs.items()))
