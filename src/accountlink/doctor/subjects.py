"""State what a mapping and its policy need of their table, in the database's own names."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from accountlink.doctor.judge.subject import Declared, Need, Subject
from accountlink.errors import ConfigurationError
from accountlink.grants.mapping import GrantMapping
from accountlink.linking.statements import empty_in
from accountlink.tables.checks import EMAIL_LENGTH
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.tables.type_layers import plain_type
from accountlink.values.policy import Ownership, Removal
from accountlink.values.text import MAX_LENGTH

TOKEN_LENGTH: Final = 8192
"""The length of a token: no standard bounds it, but a value in a header rarely passes the 8 KB that servers take."""
HASH_LENGTH: Final = 43
"""The length of a SHA-256 in base64 without padding."""

_LENGTHS: Final = {
    "account_id": MAX_LENGTH,
    "email": EMAIL_LENGTH,
    "email_key": EMAIL_LENGTH,
    "access_token": TOKEN_LENGTH,
    "refresh_token": TOKEN_LENGTH,
}
Mapping = AccountMapping[Any, Any] | GrantMapping


def mapping_of(target: object) -> Mapping:
    """Return the mapping behind what the doctor is asked about.

    Raises:
        ConfigurationError: The object has no mapping.
    """
    mapping = getattr(target, "mapping", target)
    if not isinstance(mapping, (AccountMapping, GrantMapping)):
        given = type(target).__name__
        raise ConfigurationError(f"The doctor takes an AccountLinker, AccountMapping or GrantMapping, not {given}.")
    return mapping


def subject_of(mapping: Mapping, *, schema: str | None) -> Subject:
    """Return what a mapping needs of its table.

    Args:
        mapping: The mapping.
        schema: The schema in which the connection has its table.
    """
    return _links(mapping, schema) if isinstance(mapping, AccountMapping) else _grants(mapping, schema)


def _links(mapping: AccountMapping[Any, Any], schema: str | None) -> Subject:
    policy, names = mapping.policy, {role: column.name for role, column in mapping.columns.items()}
    soft, exclusive = policy.removal is Removal.SOFT, policy.ownership is Ownership.EXCLUSIVE
    key = tuple(names[role] for role in mapping.key_roles)
    link_key = (
        Need(columns=key[1:], live=soft, reason="a provider account has one live owner")
        if exclusive
        else Need(columns=key, live=soft, reason="a user has a provider account once")
    )
    by_email = "account_id" not in mapping.key_roles
    return Subject(
        schema=schema,
        table=mapping.table.name,
        needs=(link_key, Need(columns=(names["id"],), live=False, reason="a link's id names one row", key=False)),
        roles=names,
        identifiers=frozenset({names["account_id"]} if "account_id" in names else ()),
        normal=names[mapping.email_key_role] if by_email else None,
        lengths=_lengths(mapping),
        bits=_bits(mapping),
        exclusive=exclusive,
        soft=soft,
        blocked_reasons=frozenset(policy.blocked_reasons),
        declared=_declared(mapping.table),
        newest_by=tuple(names[role] for role in ("updated_at", "created_at") if role in names),
        empty={role: empty_in(role, mapping.columns[role]) for role in CREDENTIAL_ROLES if role in names},
    )


def _grants(mapping: GrantMapping, schema: str | None) -> Subject:
    names = {role: column.name for role, column in mapping.columns.items()}
    token, pair = names[mapping.token_role], (names["grantor_id"], names["grantee_id"])
    needs = [
        Need(columns=(token,), live=False, reason="a token is one grant's"),
        Need(columns=(names["id"],), live=False, reason="a grant's id names one row", key=False),
    ]
    if mapping.one_active_per_pair:
        absent = frozenset({names["grantee_id"]})
        reason = "a pair has one active grant"
        needs.append(Need(columns=pair, live=True, reason=reason, key=False, absent=absent))
    return Subject(
        schema=schema,
        table=mapping.table.name,
        needs=tuple(needs),
        roles=names,
        identifiers=frozenset({token}),
        lengths={names["token_hash"]: HASH_LENGTH} if "token_hash" in names else {},
        bits=_bits(mapping),
        soft=True,
        declared=_declared(mapping.table),
        newest_by=tuple(names[role] for role in ("updated_at", "created_at") if role in names),
    )


def _lengths(mapping: AccountMapping[Any, Any]) -> dict[str, int]:
    lengths = {mapping.columns[role].name: least for role, least in _LENGTHS.items() if role in mapping.columns}
    for role in ("id", "user_id"):
        kind = plain_type(mapping.columns[role].type)
        if isinstance(kind, sa.String) and kind.length is not None:
            lengths[mapping.columns[role].name] = kind.length
    return lengths


def _bits(mapping: Mapping) -> dict[str, int]:
    bits: dict[str, int] = {}
    for role in ("id", "user_id", "grantor_id", "grantee_id"):
        column = mapping.columns.get(role)
        if column is not None and (high := IdType.of(column).high) is not None:
            bits[column.name] = high.bit_length() + 1
    return bits


def _declared(table: sa.Table) -> tuple[Declared, ...]:
    """Return the unique keys that the model declares with names and over plain columns."""
    declared: list[Declared] = []
    for index in table.indexes:
        columns = [part for part in index.expressions if isinstance(part, sa.Column)]
        if index.unique and index.name is not None and len(columns) == len(index.expressions):
            conditions = (index.dialect_options[name].get("where") for name in ("postgresql", "sqlite"))
            live = any(condition is not None for condition in conditions)
            names = tuple(column.name for column in columns)
            declared.append(Declared(name=str(index.name), columns=names, live=live, constraint=False))
    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint) and isinstance(constraint.name, str):
            names = tuple(column.name for column in constraint.columns)
            declared.append(Declared(name=constraint.name, columns=names, live=False, constraint=True))
    return tuple(sorted(declared, key=lambda each: each.name))
