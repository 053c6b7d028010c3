"""Say what each error is to an API client: a status and a fixed title, and nothing of the error's attributes."""

from __future__ import annotations

from typing import Any, Final

from accountlink import errors
from accountlink.errors import AccountLinkError
from accountlink.web.asked import Answer, answer_json

PROBLEM: Final = "application/problem+json"

PROBLEMS: Final[dict[type[AccountLinkError], tuple[int, str]]] = {
    # the request
    errors.RequestRejected: (400, "The request is malformed."),
    errors.ReturnTargetRejected: (400, "The user cannot be sent to this return target."),
    errors.UnsupportedMediaType: (415, "The body must be a form or JSON."),
    errors.CrossSiteRequest: (403, "The request may come from a page of another site."),
    # the user
    errors.NotSignedIn: (401, "Nobody is signed in."),
    errors.ImpersonationRefused: (403, "Only the user may do this."),
    errors.AccountNotFound: (404, "There is no such linked account."),
    errors.AccountMismatch: (409, "Another account signed in than the one to be reconnected."),
    errors.AmbiguousAccount: (409, "Several linked accounts match."),
    errors.NeedsConsent: (409, "The user has to link this account again."),
    errors.MissingScopes: (403, "The user has not granted these scopes."),
    errors.RefreshUnavailable: (503, "The provider cannot renew the tokens now. Try again later."),
    errors.RefreshRefused: (500, "The provider refuses this application."),
    errors.LinkBlocked: (409, "This account may not be linked again."),
    errors.LastAccount: (409, "This is the last way to sign in."),
    # the flow
    errors.FlowRejected: (400, "The flow is refused."),
    errors.FlowNotStartedHere: (403, "This user did not begin this flow in this browser."),
    errors.FlowExpired: (410, "The flow began too long ago."),
    errors.FlowReplayed: (409, "This answer of the provider was used already."),
    errors.UnknownProvider: (404, "There is no such provider."),
    errors.TicketRejected: (404, "There is no such ticket for this user."),
    errors.ConsentDeclined: (403, "The user did not agree at the provider."),
    # the provider
    errors.ProviderMismatch: (400, "Another provider answered."),
    errors.ProviderFailed: (502, "The provider failed."),
    errors.IdentityNotProven: (502, "The provider did not prove which account signed in."),
    errors.InvalidIdentity: (502, "The provider described the account in a form that cannot be stored."),
    errors.InvalidCredentials: (502, "The provider issued tokens that cannot be stored."),
    # tokens
    errors.TokenRejected: (400, "The transfer token is refused."),
    errors.TokenForged: (400, "This is no valid transfer token."),
    errors.TokenForAnotherUser: (403, "The transfer token was given to another user."),
    errors.TokenExpired: (410, "The transfer token is too old."),
    errors.TokenSuperseded: (409, "The link has changed since the transfer token was issued."),
    errors.GrantRejected: (404, "There is no such grant for this user."),
    errors.CredentialsUnreadable: (500, "The stored credentials cannot be read."),
    errors.DeliveryExpired: (409, "The event is no longer held."),
    # the store
    errors.BlockedByConstraint: (409, "Another row forbids the change."),
    errors.StoreBusy: (503, "The database is busy. Try again later."),
    errors.StoreUnavailable: (503, "The database cannot be reached. Try again later."),
    errors.RetryTransaction: (503, "A concurrent request won. Try again."),
    errors.OutcomeUnknown: (503, "It is not known whether the change was made. Try again."),
    errors.OwnerLookupFailed: (500, "The server failed."),
    errors.OwnerNotFound: (500, "The server failed."),
    errors.ConfigurationError: (500, "The server failed."),
    errors.AccountLinkError: (500, "The server failed."),
}
"""The status and the title of each error. A subclass that is not named here has those of its parent."""


def problem_of(kind: type[AccountLinkError]) -> dict[str, Any]:
    """Return the problem document of a class of errors (RFC 9457, section 3)."""
    status, title = next(PROBLEMS[each] for each in kind.__mro__ if each in PROBLEMS)
    return {"type": f"urn:accountlink:{kind.code}", "title": title, "status": status, "code": kind.code}


def answer_problem(error: AccountLinkError) -> Answer:
    """Answer an API client with an error."""
    problem = problem_of(type(error))
    return answer_json(problem, status=problem["status"], media_type=PROBLEM)
