"""Define the errors of accountlink: one root class, a stable ``code`` each, and a remedy in every message.

No message, attribute, cause or context carries a secret, an e-mail address, another user's id or an SQL parameter.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Final
from urllib.parse import quote_plus


class AccountLinkError(Exception):
    """Serve as the root class of every error that accountlink defines.

    Attributes:
        code: A stable, machine-readable word, safe to show to anyone and to put in a URL.
        return_to: The return target of the flow that failed, a complete URL that was checked when the flow began;
            ``None`` outside a flow, or for a flow without one.
    """

    code: ClassVar[str] = "account_link_error"
    return_to: str | None = None

    def redirect_url(self, base: str) -> str:
        """Return ``base`` with ``error=<code>`` merged into its query, and nothing else of the error.

        Args:
            base: A URL, or a path of the application's own; its other parameters stay.

        Raises:
            ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
        """
        return with_query(base, "error", self.code)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error by its state, because the constructors of the classes take different arguments."""
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(cls: type[AccountLinkError], args: tuple[object, ...], state: dict[str, object]) -> AccountLinkError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidIdentity(AccountLinkError):
    """Raised when values cannot be a provider's identity; nothing was sent to the database.

    Attributes:
        field: The field of :class:`~accountlink.ProviderIdentity` that is wrong.
        problem: The fault of that field, without its value.
    """

    code = "invalid_identity"

    def __init__(
        self, *, field: str, problem: str, remedy: str = "Pass what the provider vouched for, unchanged."
    ) -> None:
        super().__init__(f"{field} {problem}. {remedy}")
        self.field = field
        self.problem = problem


class InvalidCredentials(AccountLinkError):
    """Raised when tokens or scopes cannot come from a provider; nothing was sent to the database.

    Attributes:
        field: The field of the :class:`~accountlink.TokenSet`, or the argument, that is wrong.
        problem: Its fault, without its value.
    """

    code = "invalid_credentials"

    def __init__(
        self, *, field: str, problem: str, remedy: str = "Pass the provider's token response, with aware datetimes."
    ) -> None:
        super().__init__(f"{field} {problem}. {remedy}")
        self.field = field
        self.problem = problem


_UNREADABLE: Final = {
    "plain_text": "contains plain text. Seal it, or say Plaintext.READ as long as a backfill is under way.",
    "unknown_format": "contains an envelope of a format that this release does not know. Upgrade accountlink.",
    "malformed": "contains a damaged envelope. Let the user link the account again.",
    "unknown_key": "was sealed with a key that the vault does not have. Give the vault this key again, or let the user "
    "link the account again.",
    "not_authentic": "was changed, or was sealed for another user, account, column or table. Find out who wrote it, "
    "then let the user link the account again.",
    "contents": "was sealed by a program that writes other contents. Upgrade accountlink, or let the user link the "
    "account again.",
}


class CredentialsUnreadable(AccountLinkError):
    """Raised when the stored credentials of a link cannot be read. Other links are not affected.

    Attributes:
        role: The role of the column: ``"access_token"`` or ``"refresh_token"``.
        reason: Why: ``"plain_text"``, ``"unknown_format"``, ``"malformed"``, ``"unknown_key"``, ``"not_authentic"`` or
            ``"contents"``.
        key_id: The id of the key that the envelope names, which is not secret; ``None`` if the envelope names none.
    """

    code = "credentials_unreadable"

    def __init__(self, *, role: str, reason: str, key_id: str | None = None) -> None:
        named = f" (key {key_id!r})" if key_id else ""
        super().__init__(f"The stored {role}{named} {_UNREADABLE[reason]}")
        self.role = role
        self.reason = reason
        self.key_id = key_id


class NeedsConsent(AccountLinkError):
    """Raised when a link has no token that works, and only the user can give it a new one, by linking again.

    Attributes:
        provider_code: The provider's error code, if the provider ended the grant; otherwise ``None``.
        since: When the grant or its last token ended, aware; ``None`` if there was never a token.
        link_id: The id of the link, for ``expect=`` of a new flow.
    """

    code = "needs_consent"

    def __init__(self, *, provider_code: str | None = None, since: datetime | None = None, link_id: Any = None) -> None:
        super().__init__(
            "This account has no valid token, and none can be obtained without the user. Let the user link it again."
        )
        self.provider_code = provider_code
        self.since = since
        self.link_id = link_id


class RefreshUnavailable(AccountLinkError):
    """Raised when the stored access token is over, and the provider cannot renew it now.

    The provider is down or slow, or it has told clients to wait. The grant still lives.

    Attributes:
        retry_at: When the next attempt makes sense, aware, by the database's clock; ``None`` for "any time".
    """

    code = "refresh_unavailable"

    def __init__(self, *, retry_at: datetime | None = None) -> None:
        when = "" if retry_at is None else f" after {retry_at.isoformat(timespec='seconds')}"
        super().__init__(f"The access token is over, and the provider cannot renew it now. Call again{when}.")
        self.retry_at = retry_at


class RefreshRefused(AccountLinkError):
    """Raised when the provider refuses to renew tokens because of the application, and not because of the user.

    Attributes:
        provider_code: The provider's OAuth error code, such as ``"invalid_client"``.
    """

    code = "refresh_refused"

    def __init__(self, *, provider_code: str) -> None:
        super().__init__(
            f"The provider refuses this application's OAuth client ({provider_code}). Check its id, its secret and "
            "its scopes. The user's consent is not affected."
        )
        self.provider_code = provider_code


class MissingScopes(AccountLinkError):
    """Raised when the user has not granted scopes that a call needs.

    Attributes:
        missing: The scopes that the link lacks.
        link_id: The id of the link, for ``expect=`` of a new flow.
    """

    code = "missing_scopes"

    def __init__(self, *, missing: frozenset[str], link_id: Any = None) -> None:
        super().__init__(
            f"The user has not granted: {', '.join(sorted(missing))}. Let the user link the account again, asking for "
            "these scopes too."
        )
        self.missing = missing
        self.link_id = link_id


class ConfigurationError(AccountLinkError):
    """Raised for a mapping, policy, secret or call that accountlink cannot serve. The message says what to change."""

    code = "configuration_error"


class OwnerLookupFailed(AccountLinkError):
    """Raised when the database refused the link, and the look-up of the account's owner failed as well.

    Attributes:
        provider: The provider of the account that was to be linked.
        sqlstate: The database's own code for the failed look-up, if it gave one.
    """

    code = "database_query_failed"

    def __init__(self, *, provider: str, sqlstate: str | None = None) -> None:
        state = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        super().__init__(
            f"The link to {provider!r} was refused by a unique index and the look-up of the owner failed{state}. "
            "Nothing was changed. Check that the application's role may SELECT from the table, then call again."
        )
        self.provider = provider
        self.sqlstate = sqlstate


class OwnerNotFound(AccountLinkError):
    """Raised when the database keeps refusing the link, and no row that could cause the refusal can be seen.

    Attributes:
        provider: The provider of the account that was to be linked.
        constraint: The unique constraint or index that keeps refusing, if the database named it.
        row_security: Whether row-level security is on for the table, and so a likely cause.
    """

    code = "database_inconsistency"

    def __init__(self, *, provider: str, constraint: str | None, row_security: bool) -> None:
        likely = (
            "Row-level security is on for this table and probably hides the owner's row from this role"
            if row_security
            else "Rows may be changing faster than they can be read, or row-level security may hide the owner's row"
        )
        super().__init__(
            f"{_named(constraint)} refuses the link to {provider!r}, and no row that could cause it can be seen. "
            f"{likely}. Nothing was changed. Let the role see the rows of all users, or call again later."
        )
        self.provider = provider
        self.constraint = constraint
        self.row_security = row_security


class BlockedByConstraint(AccountLinkError):
    """Raised when a unique constraint or a column's type forbids a write that the policy allows.

    Attributes:
        constraint: The name of the constraint. ``None`` if the database does not name it (SQLite, for an expression),
            or if a column's own type changes the spelling.
        columns: The columns of the constraint, in their order.
        rule: The doctor's rule that reports the constraint.
    """

    code = "blocked_by_constraint"

    def __init__(self, *, constraint: str | None, columns: tuple[str, ...], rule: str) -> None:
        listed = f" on ({', '.join(columns)})" if columns else ""
        who, forbids = _named(constraint), "forbids what the link policy allows"
        if rule == "key-compares-differently":
            who = who if constraint else "A unique index or a column's type"
            forbids = "takes two spellings of an identifier for one, and identifiers are compared byte by byte"
        super().__init__(
            f"{who}{listed} {forbids}; nothing was changed. "
            f"Drop it or make it match the policy: see the doctor's rule {rule!r}. Where it is the primary key, let "
            "its sequence catch up with the rows."
        )
        self.constraint = constraint
        self.columns = columns
        self.rule = rule


class RetryTransaction(AccountLinkError):
    """Raised when the caller's transaction can no longer succeed: roll it back and run it again from its start.

    Attributes:
        sqlstate: The database's own code, if it gave one (40001, 40P01, ...).
    """

    code = "retry_transaction"

    def __init__(self, *, sqlstate: str | None = None) -> None:
        state = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        super().__init__(
            f"A concurrent transaction won{state}. Roll back and run the whole transaction again; "
            "passing the engine instead lets accountlink do that for you."
        )
        self.sqlstate = sqlstate


class StoreBusy(AccountLinkError):
    """Raised when a lock, a statement or a connection took longer than the time limit.

    Attributes:
        sqlstate: The database's own code, if it gave one (55P03, 57014).
    """

    code = "store_busy"

    def __init__(self, *, sqlstate: str | None = None) -> None:
        state = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        super().__init__(f"The database was too busy to answer in time{state}. Nothing was changed; call again later.")
        self.sqlstate = sqlstate


class StoreUnavailable(AccountLinkError):
    """Raised when the connection failed before anything could have been committed, or the database takes no writes.

    Attributes:
        is_read_only: Whether the database was reached and is read-only at the moment, as a standby is.
    """

    code = "store_unavailable"

    def __init__(self, *, is_read_only: bool = False) -> None:
        super().__init__(
            "The database is read-only at the moment: a standby, or a transaction that may not write. Nothing was "
            "changed; call again when a failover is over, or connect to the primary server."
            if is_read_only
            else "The database cannot be reached. Nothing was committed; call again when it is back."
        )
        self.is_read_only = is_read_only


class OutcomeUnknown(AccountLinkError):
    """Raised when the connection was lost while the database may have committed."""

    code = "outcome_unknown"

    def __init__(self) -> None:
        super().__init__(
            "The connection was lost before the database's answer arrived. Calling again with the same arguments is "
            "safe: nothing is done twice."
        )


class DeliveryExpired(AccountLinkError):
    """Raised when an event is no longer held for this consumer. If it was not acknowledged, it is delivered again."""

    code = "delivery_expired"

    def __init__(self) -> None:
        super().__init__(
            "This event is not held for this consumer any more; unless it was acknowledged after all, it is delivered "
            "again. Acknowledge it before you ask for the next one; on SQLite, also before its lease ends: give a "
            "longer lease=."
        )


class AccountNotFound(AccountLinkError):
    """Raised when the user has no such link. Another user's link and a missing one give the same error."""

    code = "account_not_found"

    def __init__(self) -> None:
        super().__init__("This user has no such linked account. List the user's accounts and use an id from there.")


class AccountMismatch(AccountLinkError):
    """Raised when the provider vouched for another account than the one to be reconnected; nothing was changed.

    Attributes:
        provider: The provider that vouched.
    """

    code = "account_mismatch"

    def __init__(self, *, provider: str) -> None:
        super().__init__(
            f"Another {provider!r} account signed in than the one to be reconnected; nothing was changed. "
            "Ask the user to choose the same account at the provider, or link it as a new one."
        )
        self.provider = provider


class AmbiguousAccount(AccountLinkError):
    """Raised when a provider alone matches several linked accounts of the user.

    Attributes:
        provider: The provider that was asked for.
        count: How many live accounts match.
    """

    code = "ambiguous_account"

    def __init__(self, *, provider: str, count: int) -> None:
        super().__init__(f"The user has {count} linked {provider!r} accounts. Name one by its link_id.")
        self.provider = provider
        self.count = count


class LinkBlocked(AccountLinkError):
    """Raised when the account was disconnected for a reason that forbids restoring it; nothing was changed.

    Attributes:
        provider: The provider of the account.
        reason: The recorded reason, one of the policy's ``blocked_reasons``.
    """

    code = "link_blocked"

    def __init__(self, *, provider: str, reason: str) -> None:
        super().__init__(
            f"This {provider!r} account was disconnected for {reason!r}, which the policy lists in blocked_reasons. "
            "Clear the row's reason to allow the link again."
        )
        self.provider = provider
        self.reason = reason


class LastAccount(AccountLinkError):
    """Raised when an unlink or a transfer would leave the link's owner no way to sign in; nothing was changed."""

    code = "last_account"

    def __init__(self) -> None:
        super().__init__(
            "This is the user's last linked account and guard_last knows of no other way to sign in. "
            "Let the user link another account or set a password first."
        )


class TokenRejected(AccountLinkError):
    """Raised, as one of the classes below, when a transfer token is not accepted. Nothing was changed.

    No message and no attribute says who the owner is, or what the token contains.
    """

    code = "token_rejected"

    def __init__(
        self, *, problem: str = "The transfer token is refused.", remedy: str = "Let the user link the account again."
    ) -> None:
        super().__init__(f"{problem} {remedy}")


class TokenForged(TokenRejected):
    """Raised when no secret of this linker signed the token for this table, or that secret was removed."""

    code = "token_forged"

    def __init__(self) -> None:
        super().__init__(
            problem="This is no transfer token that a secret of this linker signed for this table.",
            remedy="Pass the token as it came, unchanged; if its secret was removed, let the user link the account "
            "again.",
        )


class TokenForAnotherUser(TokenRejected):
    """Raised when the token was given to another user than the one who presents it."""

    code = "token_for_another_user"

    def __init__(self) -> None:
        super().__init__(
            problem="This transfer token was given to another user than the one who is signed in.",
            remedy="Let the user who met the conflict sign in, or let this one link the account themselves.",
        )


class TokenExpired(TokenRejected):
    """Raised when the token has expired, or is older than the application accepts."""

    code = "token_expired"

    def __init__(self) -> None:
        super().__init__(
            problem="This transfer token is too old.",
            remedy="Let the user link the account again: the new conflict carries a new token.",
        )


class TokenSuperseded(TokenRejected):
    """Raised when the link's owner or state has changed since the token was issued."""

    code = "token_superseded"

    def __init__(self) -> None:
        super().__init__(
            problem="The link has changed since this transfer token was issued.",
            remedy="Let the user link the account again: it may be free now, or the new conflict carries a new token.",
        )


class FlowRejected(AccountLinkError):
    """Raised, as one of the classes below, when a flow with a provider does not begin or does not end in a link.

    Each class has a fixed text. No message and no attribute holds text of the provider, or of the request.
    """

    code = "flow_rejected"

    def __init__(
        self, *, problem: str = "The flow is refused.", remedy: str = "Let the user start to connect the account again."
    ) -> None:
        super().__init__(f"{problem} {remedy}")


class FlowNotStartedHere(FlowRejected):
    """Raised when this user did not begin this flow in this browser, or no user is signed in."""

    code = "flow_not_started_here"

    def __init__(self) -> None:
        super().__init__(problem="This user did not begin this flow in this browser.")


class FlowExpired(FlowRejected):
    """Raised when the user came back from the provider too late."""

    code = "flow_expired"

    def __init__(self) -> None:
        super().__init__(problem="The user began this flow too long ago.")


class FlowReplayed(FlowRejected):
    """Raised when the same answer of the provider comes again, by a reload, a double click or the Back button."""

    code = "flow_replayed"

    def __init__(self) -> None:
        super().__init__(
            problem="This answer of the provider was used already.",
            remedy="Show the user's linked accounts: the first request may have linked one. Otherwise let them start "
            "to connect the account again.",
        )


class ProviderMismatch(FlowRejected):
    """Raised when the answer comes from another provider, or another issuer, than the one the user was sent to."""

    code = "provider_mismatch"

    def __init__(self) -> None:
        super().__init__(
            problem="Another provider answered than the one that the user was sent to.",
            remedy="Check the redirect URI and the issuer of each provider; if they are right, this may be an attack.",
        )


class ProviderFailed(FlowRejected):
    """Raised when the provider answers with an error, refuses the code, or cannot be reached.

    Attributes:
        step: The step that failed: ``"discovery"``, ``"authorization"``, ``"token"``, ``"keys"`` or ``"profile"``.
    """

    code = "provider_error"

    def __init__(self, *, step: str) -> None:
        super().__init__(
            problem=f"The provider failed at the step {step!r}.",
            remedy="Let the user try again; if it stays so, check the client's registration at the provider.",
        )
        self.step = step


class ConsentDeclined(FlowRejected):
    """Raised when the user pressed "cancel" at the provider."""

    code = "consent_declined"

    def __init__(self) -> None:
        super().__init__(problem="The user did not agree at the provider.")


class IdentityNotProven(FlowRejected):
    """Raised when the provider's answer does not prove who signed in: its ID token, or its profile, is not valid."""

    code = "identity_not_proven"

    def __init__(self) -> None:
        super().__init__(
            problem="The provider's answer does not prove which account signed in.",
            remedy="Check issuer, client id, algorithms and tenants of the provider; if they are right, let the user "
            "start again.",
        )


class TicketRejected(FlowRejected):
    """Raised when a ticket is unknown, used, too old, or another user's: one error for all."""

    code = "ticket_rejected"

    def __init__(self) -> None:
        super().__init__(
            problem="This ticket is not one that the signed-in user can use.",
            remedy="Let the user sign in who asked for it, or let them ask for a new one.",
        )


class UnknownProvider(FlowRejected):
    """Raised when the application has no provider of that name."""

    code = "unknown_provider"

    def __init__(self) -> None:
        super().__init__(
            problem="There is no provider of this name.", remedy="Use the slug of one in LinkFlow(providers=...)."
        )


class ReturnTargetRejected(FlowRejected):
    """Raised when a return target is neither a plain path of the application nor in ``allowed_return_urls``."""

    code = "return_target_rejected"

    def __init__(self) -> None:
        super().__init__(
            problem="The user cannot be sent to this return target.",
            remedy="Use a path such as /settings, or a URL listed in LinkFlow(allowed_return_urls=...).",
        )


class RequestRejected(FlowRejected):
    """Raised when a request to a route is not one that the route understands.

    Attributes:
        field: The part of the request that is wrong, without its value.
    """

    code = "invalid_request"

    def __init__(self, *, field: str) -> None:
        super().__init__(problem=f"The request has no usable {field}.", remedy="See the route's description.")
        self.field = field


class UnsupportedMediaType(FlowRejected):
    """Raised when the body of a request is neither a form nor JSON."""

    code = "unsupported_media_type"

    def __init__(self) -> None:
        super().__init__(
            problem="The request's body is neither application/x-www-form-urlencoded nor application/json.",
            remedy="Send the fields in one of the two.",
        )


class NotSignedIn(FlowRejected):
    """Raised when nobody is signed in, and the route is for a signed-in user."""

    code = "not_signed_in"

    def __init__(self) -> None:
        super().__init__(problem="Nobody is signed in.", remedy="Let the user sign in, then repeat the request.")


class CrossSiteRequest(FlowRejected):
    """Raised when a page of another site may have sent the request in the name of the user."""

    code = "cross_site_request"

    def __init__(self) -> None:
        super().__init__(
            problem="A page of another site may have sent this request.",
            remedy="Send it from LinkFlow(page=...)'s origin, or list the page's origin in "
            "LinkFlow(trusted_origins=...).",
        )


class ImpersonationRefused(FlowRejected):
    """Raised when an administrator who acts for a user begins or ends a flow, unlinks or transfers."""

    code = "impersonation_refused"

    def __init__(self) -> None:
        super().__init__(
            problem="Somebody acts for this user, and only the user may connect or disconnect accounts.",
            remedy="Let the user sign in themselves.",
        )


class GrantRejected(AccountLinkError):
    """Raised when this user cannot use a grant.

    One error serves every reason: an unknown, expired, ended or used-up grant, the user's own, or another user's.
    """

    code = "grant_rejected"

    def __init__(self) -> None:
        super().__init__(
            "There is no such grant for this user to use. Ask whoever gives the access for a new token; "
            "to revoke, use the id or the token of a grant that this user has issued."
        )


def _named(constraint: str | None) -> str:
    return f"The unique constraint or index {constraint!r}" if constraint else "A unique constraint or index"


_TOLD: Final = frozenset({"connection", "error"})
"""The parameters by which a redirect tells how something ended."""


def with_query(base: str, name: str, value: str) -> str:
    """Return a URL with one query parameter set, and without what an earlier redirect told.

    A page passes its own address as the next return target, so an old error stood beside a new success.

    Raises:
        ConfigurationError: ``base`` is no text, or has a fragment, white space or control characters.
    """
    given: object = base
    if not isinstance(given, str):
        raise ConfigurationError(f"The base of a redirect is text, not {type(given).__name__}.")
    if "#" in base:
        raise ConfigurationError("The base of a redirect must not have a fragment: the transfer token goes there.")
    if any(c <= " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in base):  # what no URL can carry
        raise ConfigurationError("The base of a redirect must not contain white space or control characters.")
    path, _, query = base.partition("?")
    kept = [pair for pair in query.split("&") if pair.partition("=")[0] not in _TOLD] if query else []
    return f"{path}?{'&'.join([*kept, f'{name}={quote_plus(value)}'])}"
