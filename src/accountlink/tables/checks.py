"""Check that a mapping can serve its policy, and say in each refusal what to add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from accountlink.errors import ConfigurationError
from accountlink.tables.column_types import LINK_PARTS, REMEDIES, Part, form_of
from accountlink.tables.naming import check_keys
from accountlink.tables.targets import TableMapping
from accountlink.tables.type_layers import plain_type, works_on_values
from accountlink.values.policy import Key, Ownership, Removal

if TYPE_CHECKING:
    from accountlink.tables.mapping import AccountMapping

EMAIL_LENGTH: Final = 254
"""The longest address that mail can be sent to (RFC 3696, erratum 1690)."""


def check(mapping: AccountMapping[Any, Any]) -> None:
    """Refuse a mapping that cannot serve its policy, and say what to add."""
    policy, columns, name = mapping.policy, mapping.columns, mapping.name

    def need(role: str, why: str) -> None:
        if role not in columns:
            raise ConfigurationError(f"{name!r} has no {role!r} column mapped, and {why}. Map {role}=... or add it.")

    for role in ("id", "user_id", "provider"):
        need(role, "every table of links needs it")
    if policy.key is Key.ACCOUNT_ID or policy.ownership is Ownership.EXCLUSIVE:
        need("account_id", f"{policy.key} with {policy.ownership} compares it")
    if policy.key is Key.EMAIL:
        need(mapping.email_key_role, "Key.EMAIL compares it")
    if policy.blocked_reasons:
        need("reason", "blocked_reasons are compared with it")
    check_parts(mapping)
    _check_removal(mapping)
    _check_computed(mapping)
    _check_types(mapping)
    link_id = columns["id"]
    if not is_unique(mapping.table, link_id):
        raise ConfigurationError(
            f"{link_id.name!r} alone does not identify a row of {name!r}. Map one unique column as the link's id: "
            "composite keys are not supported."
        )


def _check_removal(mapping: AccountMapping[Any, Any]) -> None:
    markers = [role for role in ("deleted_at", "active") if role in mapping.columns]
    if mapping.policy.removal is Removal.SOFT and not markers:
        raise ConfigurationError(
            f"Removal.SOFT needs a 'deleted_at' or an 'active' column in {mapping.name!r} to mark dead rows. "
            "Map one, or use Removal.DELETE."
        )
    marker = mapping.columns.get("deleted_at")
    if marker is not None and not marker.nullable:
        raise ConfigurationError(
            f"{marker.name!r} of {mapping.name!r} takes no NULL, and 'deleted_at' is NULL in a live row. Make it "
            "nullable and its live rows NULL, or map deleted_at=None and an 'active' flag."
        )
    if mapping.policy.removal is Removal.DELETE and markers:
        raise ConfigurationError(
            f"{mapping.name!r} has {markers[0]!r}, which Removal.DELETE would ignore: dead rows would count as links. "
            f"Use Removal.SOFT, or map {markers[0]}=None to leave it alone."
        )


def is_unique(table: sa.Table, column: sa.Column[Any]) -> bool:
    """Say whether the declared table makes a column unique by itself."""
    uniques = [table.primary_key, *(c for c in table.constraints if isinstance(c, sa.UniqueConstraint))]
    if column.unique or any(tuple(unique.columns) == (column,) for unique in uniques):
        return True
    partial = ("postgresql", "sqlite")
    return any(
        index.unique
        and tuple(index.expressions) == (column,)
        and not any(index.dialect_options[name].get("where") is not None for name in partial)
        for index in table.indexes
    )


def check_parts(mapping: TableMapping) -> None:
    """Refuse a column that plays two parts, or has the name of a parameter of accountlink."""
    check_keys(mapping.table)
    played: dict[sa.Column[Any], str] = {}
    for role, column in mapping.columns.items():
        if column in played:
            raise ConfigurationError(
                f"{column.name!r} of {mapping.name!r} is mapped as both {played[column]!r} and {role!r}. "
                "Map each part to a column of its own, or one of them to None."
            )
        played[column] = role


def _check_types(mapping: AccountMapping[Any, Any]) -> None:
    """Check the type of each column, and the length of the columns for e-mail addresses."""
    parts = dict(LINK_PARTS)
    if mapping.policy.key is Key.EMAIL:
        parts[mapping.email_key_role] = Part.COMPARED
    check_types(mapping, parts)
    for role in ("email", "email_key"):
        column = mapping.columns.get(role)
        kind = None if column is None or works_on_values(column.type) else plain_type(column.type)
        if column is not None and isinstance(kind, sa.String) and (kind.length or EMAIL_LENGTH) < EMAIL_LENGTH:
            raise ConfigurationError(
                f"{column.name!r} of {mapping.name!r} takes {kind.length} characters, and an e-mail address has up to "
                f"{EMAIL_LENGTH}. Widen the column, or map {role}=... to another one."
            )


def check_types(mapping: TableMapping, parts: Mapping[str, Part]) -> None:
    """Refuse a column whose type cannot play its part, and name one that can."""
    for role, column in mapping.columns.items():
        part = parts[role]
        if form_of(part, column.type) is None:
            problem = (
                "a type of the application's own, which does not give back each value as it was given"
                if works_on_values(column.type)
                else "which cannot do that"
            )
            raise ConfigurationError(
                f"{column.name!r} of {mapping.name!r} {part.value} ({role!r}), and its type is {column.type!r}, "
                f"{problem}. Make it {REMEDIES[part]}, or map {role}=... to another column."
            )


def _check_computed(mapping: AccountMapping[Any, Any]) -> None:
    """Refuse a generated column in a role that accountlink has to write."""
    may_follow = {"id", "created_at", "updated_at", "version"} | (
        {"active"} if mapping.written("deleted_at") else set()
    )
    for role, column in mapping.columns.items():
        if column.computed is not None and role not in may_follow:
            raise ConfigurationError(
                f"{column.name!r} of {mapping.name!r} is a generated column, and accountlink has to write {role!r}. "
                f"Map {role}=... to an ordinary column, or {role}=None where it may be left out."
            )
