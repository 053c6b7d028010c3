"""Check what a flow is given: by the application, and by requests."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import sqlalchemy as sa

from accountlink.errors import ConfigurationError, ImpersonationRefused, RequestRejected
from accountlink.providers.provider import Provider
from accountlink.tables.arguments import check_kind
from accountlink.values.outcomes import UserId
from accountlink.web.outcomes import Impersonated, Tokens
from accountlink.web.states import FlowStates, TableFlowStates, checked_states

OF_THE_PROVIDER: Final = ("state", "code", "iss", "error")
"""The parameters of a provider's answer that a flow reads."""
_MOST_SCOPES: Final = 50
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,255}")
"""A scope token (RFC 6749, section 3.3)."""


def themselves(user: UserId | Impersonated[UserId]) -> UserId:
    """Return the user who is signed in, or refuse somebody who acts for them.

    Raises:
        ImpersonationRefused: Somebody acts for the user.
    """
    if isinstance(user, Impersonated):
        raise ImpersonationRefused
    return user


def states_of(states: sa.Table | FlowStates) -> FlowStates:
    """Return the store of a table of flows, or the store itself.

    Raises:
        ConfigurationError: Neither of the two.
    """
    if isinstance(states, sa.Table):
        return TableFlowStates(states)
    if not callable(getattr(states, "consume", None)):
        checked_states(states)
    return states


def distinct(providers: Iterable[Provider]) -> list[Provider]:
    """Return the providers, if each has a slug of its own.

    Raises:
        ConfigurationError: None, something else, or two of one slug.
    """
    given = list(providers)
    for provider in given:
        check_kind("providers", provider, Provider)
    if not given or len({provider.slug for provider in given}) != len(given):
        raise ConfigurationError(
            "providers=[...] takes at least one provider, each with a slug of its own: a redirect URI belongs to one "
            "provider."
        )
    return given


def check_columns(columns: Collection[str], *, tokens: Tokens, providers: Iterable[Provider]) -> None:
    """Refuse a table that cannot keep what each flow brings, before a user has agreed at the provider for nothing.

    Raises:
        ConfigurationError: A column is missing.
    """
    needed = ["access_token"] + ["scopes"] * any(provider.scopes for provider in providers)
    lacking = [] if tokens is Tokens.DISCARDED else [name for name in needed if name not in columns]
    if lacking:
        raise ConfigurationError(
            f"The table of links has no column mapped as {lacking[0]!r}. Map one as {lacking[0]}=..., or pass "
            "tokens=Tokens.DISCARDED to forget the provider's tokens."
        )


def checked_scopes(scopes: Collection[str]) -> tuple[str, ...]:
    """Return scopes that a request asks for.

    Raises:
        RequestRejected: One is no scope token, or there are too many.
    """
    given: object = scopes
    if isinstance(given, str) or not isinstance(given, Collection) or len(given) > _MOST_SCOPES:
        raise RequestRejected(field="scopes")
    if not all(isinstance(scope, str) and _SCOPE.fullmatch(scope) for scope in given):
        raise RequestRejected(field="scopes")
    return tuple(sorted(scopes))


def checked_answer(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a provider's answer that a flow reads.

    Raises:
        RequestRejected: They are no mapping, or one of them is not text.
    """
    given: object = parameters
    if not isinstance(given, Mapping):
        raise RequestRejected(field="parameters")
    answer = {name: given[name] for name in OF_THE_PROVIDER if given.get(name) is not None}
    for name, value in answer.items():
        if not isinstance(value, str):
            raise RequestRejected(field=name)
    return answer


def consent_for(provider: Provider, *, expect: object, scopes: Collection[str]) -> Mapping[str, str]:
    """Return the parameters that make the provider show its consent screen, where only that brings a refresh token.

    Source: OpenID Connect Core 1.0, section 11 (``offline_access`` needs ``prompt=consent``).
    """
    return provider.consent_parameters if expect is not None or "offline_access" in scopes else {}
