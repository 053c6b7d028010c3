"""Finish an OAuth flow: send the browser to a page for each way in which linking can end. No framework in it."""

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountLinkError,
    AlreadyOwner,
    EventType,
    Linked,
    OwnerLookupFailed,
    OwnerNotFound,
    OwnershipConflict,
    ProviderIdentity,
    TokenSet,
    Transferred,
)

logger = logging.getLogger(__name__)


async def callback(
    linker: AccountLinker[int, int],
    engine: AsyncEngine,
    *,
    user_id: int,
    provider: str,
    claims: Mapping[str, Any],
    token_response: Mapping[str, Any],
    page: str,
) -> str:
    """Link the account that the provider has just vouched for to the signed-in user.

    Call it once your OAuth client has checked state, nonce, PKCE and the ID token. Send ``Cache-Control: no-store`` and
    ``Referrer-Policy: no-referrer`` with the redirect.

    Args:
        linker: The application's linker.
        engine: The application's engine; accountlink tries again by itself where that is safe.
        user_id: Who is signed in, and began this flow.
        provider: Our slug of the provider, such as ``"google"``.
        claims: The validated claims.
        token_response: The answer of the token endpoint.
        page: Where the browser goes, from the configuration, never from the request.

    Returns:
        The page's URL with ``?connection=success``, or ``?error=`` and what happened; after a conflict with a transfer
        token in the fragment, which no server or log sees.

    Raises:
        sqlalchemy.exc.DBAPIError: A violation that is not about links, such as a foreign key: a bug, not an answer.
    """
    try:
        identity = ProviderIdentity(
            provider=provider,
            account_id=claims.get("sub", ""),
            email=claims.get("email"),
            email_verified=claims.get("email_verified"),
        )
        tokens = TokenSet.from_response(token_response, received_at=datetime.now(UTC))
        outcome = await linker.link(engine, user_id=user_id, identity=identity, credentials=tokens)
    except (OwnerLookupFailed, OwnerNotFound) as error:  # the owner is not known: an operator must look
        logger.exception("user %s, %s: the owner cannot be told", user_id, provider)
        return _failed(page, error)
    except AccountLinkError as error:  # each says in its code what it is; see docs/errors.md
        logger.warning("user %s, %s: %s", user_id, provider, error)
        return _failed(page, error)

    match outcome:
        case Linked(account=account, change=change):
            logger.info("user %s, %s: link %s %s", user_id, provider, account.id, change.value)
        case OwnershipConflict():
            logger.info("user %s, %s: the account is user %s's", user_id, provider, outcome.owner_id)
        case _:
            assert_never(outcome)
    return outcome.redirect_url(page)


async def take_over(
    linker: AccountLinker[int, int], engine: AsyncEngine, *, user_id: int, token: str, page: str
) -> str:
    """Give the signed-in user the account of a conflict, once they have said in the dialogue that they want it.

    Call it for a POST whose body has the token, which the page's script took from the fragment. Never for a GET: mail
    scanners and previews open links.

    Args:
        linker: The application's linker.
        engine: The application's engine.
        user_id: Who is signed in; never what a request says.
        token: What the request says is a transfer token; it is looked at before any SQL.
        page: Where the browser goes, from the configuration.

    Returns:
        The page's URL with ``?connection=success``, also for a second click; or ``?error=`` and why not.
    """
    try:
        outcome = await linker.transfer(engine, token, user_id=user_id)
    except AccountLinkError as error:
        logger.warning("user %s: no transfer: %s", user_id, error.code)
        return _failed(page, error)
    match outcome:
        case Transferred(account=account, previous_owner_id=former):
            logger.info("user %s: link %s taken over from user %s", user_id, account.id, former)
        case AlreadyOwner(account=account):
            logger.info("user %s: link %s is theirs already", user_id, account.id)
        case _:
            assert_never(outcome)
    return outcome.redirect_url(page)


async def notices_to_former_owners(
    linker: AccountLinker[int, int], engine: AsyncEngine
) -> AsyncIterator[tuple[int, int]]:
    """Yield the user to inform, and the link, for each account that was transferred since the last call.

    Runs in a worker, or in several. An event is acknowledged when the notice has gone out: a worker that dies in
    between leaves it to the next one.
    """
    async for delivery in linker.events(engine):
        if delivery.event.type is EventType.TRANSFERRED and delivery.event.other_user_id is not None:
            yield delivery.event.other_user_id, delivery.event.link_id
        await delivery.acknowledge()


def _failed(page: str, error: AccountLinkError) -> str:
    return f"{page}{'&' if '?' in page else '?'}error={error.code}"
