"""State what a mapping and its policy need of their table, in the database's own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, assert_never

import sqlalchemy as sa

from accountlink.doctor.judge.subject import Declared, Need, Subject, Tokens
from accountlink.errors import ConfigurationError
from accountlink.grants.mapping import GrantMapping
from accountlink.linker import AccountLinker
from accountlink.linking.statements import empty_in
from accountlink.tables.checks import EMAIL_LENGTH
from accountlink.tables.idtype import IdType
from accountlink.tables.mapping import CREDENTIAL_ROLES, AccountMapping
from accountlink.tables.pending import PENDING_KEY
from accountlink.tables.type_layers import plain_type, works_on_values
from accountlink.values.policy import Ownership, Removal
from accountlink.values.text import MAX_LENGTH
from accountlink.vault.vault import CredentialVault, Plaintext

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
_CLAIMANT: Final = "claimant"
"""The role of the column with the user's id in the table of pending credentials, whose rows are not links of users."""
_NO_KEY: Final = "links with credentials fail"
Mapping = AccountMapping[Any, Any] | GrantMapping


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingTable:
    """Name the table of pending credentials of a linker.

    Attributes:
        table: The table, as ``pending_credentials`` made it.
    """

    table: sa.Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Name a table that the doctor looks at.

    Attributes:
        mapping: The table, and what its columns mean.
        tokens: The form in which the table's linker stores tokens; ``None``: no linker was given.
    """

    mapping: Mapping | PendingTable
    tokens: Tokens | None = None


def targets_of(target: object) -> tuple[Target, ...]:
    """Return the tables of what the doctor is asked about: the one that is mapped, and a linker's pending credentials.

    Args:
        target: An ``AccountLinker``, an ``AccountMapping``, a ``GrantMapping``, or an object with a mapping.

    Raises:
        ConfigurationError: The object has no mapping.
    """
    mapping = mapping_of(target)
    if not isinstance(target, AccountLinker):
        return (Target(mapping=mapping),)
    links = Target(mapping=mapping, tokens=_tokens(target.vault))
    if target.pending is None:
        return (links,)
    return links, Target(mapping=PendingTable(table=target.pending), tokens=links.tokens)


def _tokens(vault: CredentialVault | None) -> Tokens:
    if vault is None:
        return Tokens.PLAIN
    return Tokens.MIXED if vault.plaintext is Plaintext.READ else Tokens.SEALED


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


def subject_of(target: Target | Mapping, *, schema: str | None) -> Subject:
    """Return what a table must be like.

    Args:
        target: The table.
        schema: The schema in which the connection has the table.
    """
    given = target if isinstance(target, Target) else Target(mapping=target)
    match given.mapping:
        case AccountMapping() as mapping:
            return _links(mapping, schema, given.tokens)
        case GrantMapping() as mapping:
            return _grants(mapping, schema)
        case PendingTable(table=table):
            return _pending(table, schema, given.tokens)
        case _:
            assert_never(given.mapping)


def _links(mapping: AccountMapping[Any, Any], schema: str | None, tokens: Tokens | None) -> Subject:
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
        tokens=tokens,
        token_columns=tuple(
            names[role]
            for role in ("access_token", "refresh_token")
            if role in names and not works_on_values(mapping.columns[role].type)
        ),
    )


def _pending(table: sa.Table, schema: str | None, tokens: Tokens | None) -> Subject:
    """Return what the table of pending credentials needs: nothing distinguishes its rows but the key."""
    reason = "a user's tokens for an account are kept once"
    return Subject(
        schema=schema,
        table=table.name,
        needs=(Need(columns=PENDING_KEY, live=False, reason=reason, without=_NO_KEY),),
        roles={_CLAIMANT if column.name == "user_id" else column.name: column.name for column in table.columns},
        identifiers=frozenset(PENDING_KEY),
        lengths={"account_id": MAX_LENGTH, "access_token": TOKEN_LENGTH, "refresh_token": TOKEN_LENGTH},
        declared=_declared(table),
        tokens=tokens,
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
