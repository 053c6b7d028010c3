"""Errors: one root, a stable code each, typed fields, a remedy in words, and a way through a pickle."""

import copy
import inspect
import pickle
import re
from typing import Any, Final

import pytest

import accountlink
from accountlink import AccountLinkError, errors

BUSY: Final = {"sqlstate": "55P03"}
LINK: Final = {"provider": "google"}
BLOCKED: Final = {"constraint": "uq_old", "columns": ("user_id", "provider"), "rule": "stale-unique"}
HIDDEN: Final = {"provider": "google", "constraint": "uq_links", "row_security": True}
UNSEEN: Final = {"provider": "google", "constraint": None, "row_security": False}
IDENTITY: Final = {"field": "account_id", "problem": "is empty"}
TABLE: Final[list[tuple[str, str, dict[str, Any], str]]] = [
    ("InvalidIdentity", "invalid_identity", IDENTITY, "Pass what the provider vouched for, unchanged."),
    ("InvalidCredentials", "invalid_credentials", IDENTITY, "Pass the provider's token response"),
    *(
        (
            "CredentialsUnreadable",
            "credentials_unreadable",
            {"role": "access_token", "reason": reason, "key_id": key_id},
            remedy,
        )
        for reason, key_id, remedy in (
            ("plain_text", None, "say Plaintext.READ as long as a backfill is under way"),
            ("unknown_format", None, "Upgrade accountlink"),
            ("malformed", None, "Let the user link the account again"),
            ("unknown_key", "AbCd_-12", "Give the vault this key again"),
            ("not_authentic", "AbCd_-12", "Find out who wrote it"),
            ("contents", "AbCd_-12", "Upgrade accountlink"),
        )
    ),
    (
        "NeedsConsent",
        "needs_consent",
        {"provider_code": "invalid_grant", "since": None, "link_id": 7},
        "Let the user link it again",
    ),
    ("RefreshUnavailable", "refresh_unavailable", {"retry_at": None}, "Call again."),
    (
        "RefreshRefused",
        "refresh_refused",
        {"provider_code": "invalid_client"},
        "Check its id, its secret",
    ),
    ("MissingScopes", "missing_scopes", {"missing": frozenset({"read"}), "link_id": 7}, "asking for these scopes too"),
    (
        "OwnerLookupFailed",
        "database_query_failed",
        LINK | {"sqlstate": "42501"},
        "Check that the application's role may",
    ),
    ("OwnerLookupFailed", "database_query_failed", LINK | {"sqlstate": None}, "then call again"),
    ("OwnerNotFound", "database_inconsistency", HIDDEN, "Let the role see the rows of all users"),
    ("OwnerNotFound", "database_inconsistency", UNSEEN, "call again later"),
    ("BlockedByConstraint", "blocked_by_constraint", BLOCKED, "Drop it or make it match the policy"),
    (
        "BlockedByConstraint",
        "blocked_by_constraint",
        BLOCKED | {"constraint": None},
        "the doctor's rule 'stale-unique'",
    ),
    ("RetryTransaction", "retry_transaction", {"sqlstate": "40001"}, "run the whole transaction again"),
    ("RetryTransaction", "retry_transaction", {"sqlstate": None}, "passing the engine instead"),
    ("StoreBusy", "store_busy", BUSY, "call again later"),
    ("StoreBusy", "store_busy", {"sqlstate": None}, "call again later"),
    ("StoreUnavailable", "store_unavailable", {"is_read_only": False}, "call again when it is back"),
    ("StoreUnavailable", "store_unavailable", {"is_read_only": True}, "connect to the primary server"),
    ("OutcomeUnknown", "outcome_unknown", {}, "Calling again with the same arguments is safe"),
    ("DeliveryExpired", "delivery_expired", {}, "Acknowledge it before you ask for the next one"),
    ("AccountNotFound", "account_not_found", {}, "List the user's accounts and use an id from there"),
    ("AccountMismatch", "account_mismatch", LINK, "Ask the user to choose the same account"),
    ("AmbiguousAccount", "ambiguous_account", LINK | {"count": 2}, "Name one by its link_id"),
    ("LinkBlocked", "link_blocked", LINK | {"reason": "fraud"}, "Clear the row's reason"),
    ("LastAccount", "last_account", {}, "Let the user link another account or set a password first"),
    ("TokenRejected", "token_rejected", {}, "Let the user link the account again"),
    ("TokenForged", "token_forged", {}, "Pass the token as it came"),
    ("TokenForAnotherUser", "token_for_another_user", {}, "Let the user who met the conflict sign in"),
    ("TokenExpired", "token_expired", {}, "the new conflict carries a new token"),
    ("TokenSuperseded", "token_superseded", {}, "it may be free now"),
    ("FlowRejected", "flow_rejected", {}, "Let the user start to connect the account again"),
    ("FlowNotStartedHere", "flow_not_started_here", {}, "Let the user start to connect the account again"),
    ("FlowExpired", "flow_expired", {}, "Let the user start to connect the account again"),
    ("FlowReplayed", "flow_replayed", {}, "the first request may have linked one"),
    ("ProviderMismatch", "provider_mismatch", {}, "Check the redirect URI and the issuer of each provider"),
    ("ProviderFailed", "provider_error", {"step": "token"}, "check the client's registration at the provider"),
    ("ConsentDeclined", "consent_declined", {}, "Let the user start to connect the account again"),
    ("IdentityNotProven", "identity_not_proven", {}, "Check issuer, client id, algorithms and tenants"),
    ("TicketRejected", "ticket_rejected", {}, "let them ask for a new one"),
    ("UnknownProvider", "unknown_provider", {}, "Use the slug of one in LinkFlow(providers=...)"),
    ("ReturnTargetRejected", "return_target_rejected", {}, "Use a path such as /settings"),
    ("RequestRejected", "invalid_request", {"field": "body"}, "See the route's description"),
    ("UnsupportedMediaType", "unsupported_media_type", {}, "Send the fields in one of the two"),
    ("NotSignedIn", "not_signed_in", {}, "Let the user sign in"),
    ("CrossSiteRequest", "cross_site_request", {}, "LinkFlow(trusted_origins=...)"),
    ("ImpersonationRefused", "impersonation_refused", {}, "Let the user sign in themselves"),
    ("GrantRejected", "grant_rejected", {}, "Ask whoever gives the access for a new token"),
]
ROWS: Final = pytest.mark.parametrize(
    ("name", "code", "fields", "remedy"), TABLE, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(TABLE)]
)


def classes() -> dict[str, type[AccountLinkError]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, AccountLinkError) and kind is not AccountLinkError
    }


def make(name: str, fields: dict[str, Any]) -> AccountLinkError:
    error: AccountLinkError = getattr(errors, name)(**fields)
    return error


@ROWS
def test_an_error_has_a_code_fields_and_a_remedy(name: str, code: str, fields: dict[str, Any], remedy: str) -> None:
    """Each class of the contract has its stable code, its typed fields, and a message that says what to do."""
    error = make(name, fields)
    assert (code, fields) == (error.code, vars(error))
    assert code == type(error).code
    assert remedy in str(error)
    assert re.fullmatch(r"[A-Z].*\.", str(error)) or str(error).startswith(fields.get("field", "\0"))


@ROWS
def test_an_error_has_the_one_root(name: str, code: str, fields: dict[str, Any], remedy: str) -> None:
    """One ``except`` catches every error of accountlink, and no error of another library."""
    families = {errors.TokenRejected, errors.FlowRejected}
    above = [kind for kind in type(make(name, fields)).__mro__[1:] if kind not in families]
    assert [AccountLinkError, Exception, BaseException, object] == above


def test_what_is_wrong_with_a_token_has_one_root() -> None:
    """One ``except`` catches every refusal of a token, and nothing else."""
    below = {name for name, kind in classes().items() if issubclass(kind, errors.TokenRejected)}
    assert {"TokenRejected", "TokenForged", "TokenForAnotherUser", "TokenExpired", "TokenSuperseded"} == below


def test_what_is_wrong_with_a_flow_has_one_root() -> None:
    """One ``except`` catches every refusal of a flow or of a request to its routes, and nothing of the store."""
    below = {name for name, kind in classes().items() if issubclass(kind, errors.FlowRejected)}
    listed = [name for name, *_ in TABLE]
    assert below == set(listed[listed.index("FlowRejected") : listed.index("GrantRejected")])


@ROWS
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_a_pickle(name: str, code: str, fields: dict[str, Any], remedy: str, protocol: int) -> None:
    """An error that a worker sends home is the same error: class, text and fields."""
    error = make(name, fields)
    twin = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301  # our own bytes
    assert (type(error), str(error), error.args, vars(error)) == (type(twin), str(twin), twin.args, vars(twin))


@ROWS
def test_an_error_survives_a_copy(name: str, code: str, fields: dict[str, Any], remedy: str) -> None:
    """A copied error is the same error: class, text and fields."""
    error = make(name, fields)
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert (type(error), str(error), vars(error)) == (type(twin), str(twin), vars(twin))


def test_a_configuration_error_is_its_message() -> None:
    """The one class without fields says all in its text, and keeps it through copy and pickle."""
    error = errors.ConfigurationError("Map deleted_at=....")
    assert ("configuration_error", {}, "Map deleted_at=....") == (error.code, vars(error), str(error))
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own bytes
        assert (type(error), str(error)) == (type(twin), str(twin))


def test_an_applications_own_error_survives_too() -> None:
    """A subclass with a constructor of its own crosses process borders like the others."""
    error = Own("x", 7)
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert (Own, "x", 7, "x (7)") == (type(twin), twin.what, twin.number, str(twin))


class Own(AccountLinkError):
    """Derived by an application."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} ({number})")
        self.what, self.number = what, number


def test_every_error_is_in_the_table_and_public() -> None:
    """No class is added without its code, its remedy and a name that can be imported."""
    named = {name for name, *_ in TABLE} | {"ConfigurationError"}
    assert set() == set(classes()) - named
    assert [] == [name for name in classes() if getattr(accountlink, name, None) is not classes()[name]]
    assert AccountLinkError is accountlink.AccountLinkError


def test_codes_are_words_and_belong_to_one_class() -> None:
    """A code is safe to show and to put in a URL, and tells one class from all others."""
    codes = [kind.code for kind in classes().values()]
    assert sorted(set(codes)) == sorted(codes)
    assert [] == [code for code in codes if not re.fullmatch(r"[a-z]+(_[a-z]+)*", code)]
    assert "account_link_error" == AccountLinkError.code
    assert AccountLinkError.code not in codes


def test_a_missing_account_and_another_users_account_are_one_answer() -> None:
    """A25: the error has no field and no word that could tell the two apart."""
    assert ({}, str(errors.AccountNotFound())) == (vars(errors.AccountNotFound()), str(errors.AccountNotFound()))
    assert [] == list(inspect.signature(errors.AccountNotFound).parameters)


def test_a_refused_token_says_nothing_of_the_owner() -> None:
    """A25: no refusal takes or holds anything that depends on who the owner is."""
    for name in ("TokenForged", "TokenForAnotherUser", "TokenExpired", "TokenSuperseded"):
        assert [] == list(inspect.signature(classes()[name]).parameters)
        assert {} == vars(make(name, {}))


def test_a_refused_grant_is_one_answer() -> None:
    """A25: the refusal takes and holds nothing by which unknown, expired, ended, used up and foreign could differ."""
    assert [] == list(inspect.signature(errors.GrantRejected).parameters)
    assert {} == vars(errors.GrantRejected())


def test_row_level_security_is_named_as_a_possible_cause() -> None:
    """OwnerNotFound names row-level security as a possible cause, with more certainty if the table has policies."""
    assert "probably hides" in str(errors.OwnerNotFound(provider="google", constraint="uq", row_security=True))
    assert "may hide" in str(errors.OwnerNotFound(provider="google", constraint="uq", row_security=False))


def test_a_constraint_without_known_columns_is_named_without_empty_brackets() -> None:
    """PostgreSQL names a deferrable constraint and not its columns; the message makes a sentence all the same."""
    error = errors.BlockedByConstraint(constraint="uq_links", columns=(), rule="deferrable-key")
    assert "'uq_links'" in str(error)
    assert "()" not in str(error)


def test_an_error_takes_keywords_only() -> None:
    """No two texts can be swapped by position."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    mixed = {
        name: parameter
        for name, kind in classes().items()
        if name != "ConfigurationError"
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.kind is positional
    }
    assert {} == mixed


@ROWS
def test_an_error_redirects_by_its_code_alone(name: str, code: str, fields: dict[str, Any], remedy: str) -> None:
    """A page learns the code, which is safe to show, and nothing else of the error; its own query stays."""
    error = make(name, fields)
    assert f"/settings?error={code}" == error.redirect_url("/settings")
    assert f"/settings?tab=links&error={code}" == error.redirect_url("/settings?error=old&tab=links")


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("/settings#top", "fragment"),
        ("/a b", "white space"),
        ("/a\r\nb", "control"),
        ("/\ud800", "control"),
        (None, "text"),
    ],
)
def test_an_error_refuses_an_unfit_base(base: Any, problem: str) -> None:
    """The base of an error's redirect keeps the rules of an outcome's."""
    with pytest.raises(errors.ConfigurationError, match=problem):
        errors.AccountNotFound().redirect_url(base)
