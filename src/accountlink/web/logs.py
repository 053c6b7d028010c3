"""Write into the application's log how requests ended, without a token, an e-mail address or a provider's text."""

from __future__ import annotations

import logging
from typing import Any, Final, assert_never

from accountlink.errors import AccountLinkError, BlockedByConstraint, ConfigurationError, ProviderMismatch
from accountlink.linker import AccountLinker
from accountlink.values.outcomes import AlreadyOwner, Linked, OwnershipConflict, Transferred, Unlinked
from accountlink.web.outcomes import Impersonated
from accountlink.web.problems import problem_of

logger: Final = logging.getLogger("accountlink.web")

Outcome = Linked[Any, Any] | OwnershipConflict | Transferred[Any, Any] | AlreadyOwner[Any, Any] | Unlinked[Any, Any]

_FOR_OPERATORS: Final = (BlockedByConstraint, ProviderMismatch)
"""Refusals whose cause is the table or a provider's settings, and not what the user did."""


def log_outcome(outcome: Outcome, *, user: object) -> None:
    """Log what became of a link. The owner of a conflict is named here only: no answer names them."""
    match outcome:
        case Linked(account=account, change=change):
            logger.info("user %r, %s: link %r %s", user, account.provider, account.id, change.value)
        case OwnershipConflict(provider=provider):
            logger.info("user %r, %s: the account is linked to user %r", user, provider, outcome.owner_id)
        case Transferred(account=account, previous_owner_id=former):
            logger.info("user %r, %s: link %r taken over from user %r", user, account.provider, account.id, former)
        case AlreadyOwner(account=account):
            logger.info("user %r, %s: link %r is theirs already", user, account.provider, account.id)
        case Unlinked(account=account):
            logger.info("user %r, %s: link %r disconnected", user, account.provider, account.id)
        case _:
            assert_never(outcome)


def person(user: Any, linker: AccountLinker[Any, Any]) -> str:
    """Describe who sent a request. What an application gives by mistake instead of a user's id is not shown."""
    if user is None:
        return "nobody"
    user_id, role = (user.user_id, "somebody for user") if isinstance(user, Impersonated) else (user, "user")
    try:
        linker.check_user(user_id)
    except ConfigurationError:
        return f"{role} of another type"
    return f"{role} {user_id!r}"


def log_error(error: AccountLinkError, *, route: str, provider: str | None, who: str) -> None:
    """Log a refusal or a failure by its code.

    The level says who can do something about it: ``ERROR`` the application's developers, ``WARNING`` its operators or
    the provider's, ``INFO`` the user.

    Args:
        error: The error.
        route: The route's name.
        provider: The provider's slug, if the request named one of the flow's providers.
        who: The person, as :func:`person` describes them.
    """
    where = route if provider is None else f"{route} of {provider}"
    status = problem_of(type(error))["status"]
    if status == 500:
        logger.error("%s, %s: %s", who, where, error.code, exc_info=error)
    elif status > 500 or isinstance(error, _FOR_OPERATORS):
        logger.warning("%s, %s: %s: %s", who, where, error.code, error)
    else:
        logger.info("%s, %s: %s", who, where, error.code)
