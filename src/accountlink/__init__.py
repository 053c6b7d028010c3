"""Link users to OAuth provider accounts idempotently, and report each conflict of ownership.

.. code-block:: python

    match await linker.link(bind, user_id=user.id, identity=identity, credentials=tokens):
        case Linked(account=account, change=change): ...
        case OwnershipConflict() as conflict: ...
"""

from typing import TYPE_CHECKING

from accountlink.database.pooler import pooler_options
from accountlink.database.sqlite import tune_sqlite
from accountlink.errors import (
    AccountLinkError,
    AccountMismatch,
    AccountNotFound,
    AmbiguousAccount,
    BlockedByConstraint,
    ConfigurationError,
    ConsentDeclined,
    CredentialsUnreadable,
    CrossSiteRequest,
    DeliveryExpired,
    FlowExpired,
    FlowNotStartedHere,
    FlowRejected,
    FlowReplayed,
    GrantRejected,
    IdentityNotProven,
    ImpersonationRefused,
    InvalidCredentials,
    InvalidIdentity,
    LastAccount,
    LinkBlocked,
    MissingScopes,
    NeedsConsent,
    NotSignedIn,
    OutcomeUnknown,
    OwnerLookupFailed,
    OwnerNotFound,
    ProviderFailed,
    ProviderMismatch,
    RefreshRefused,
    RefreshUnavailable,
    RequestRejected,
    RetryTransaction,
    ReturnTargetRejected,
    StoreBusy,
    StoreUnavailable,
    TicketRejected,
    TokenExpired,
    TokenForAnotherUser,
    TokenForged,
    TokenRejected,
    TokenSuperseded,
    UnknownProvider,
    UnsupportedMediaType,
)
from accountlink.grants.mapping import GrantMapping
from accountlink.grants.table import grants_table
from accountlink.linker import AccountLinker
from accountlink.outbox.consuming import Batch, Delivery
from accountlink.outbox.table import link_outbox
from accountlink.sharing import ShareGrants
from accountlink.tables.ledger import transfer_ledger
from accountlink.tables.mapping import AccountMapping
from accountlink.tables.mixin import LinkedAccountMixin
from accountlink.tables.pending import pending_credentials
from accountlink.tables.refreshes import refresh_states
from accountlink.values.credentials import TokenSet
from accountlink.values.email import normalize_email
from accountlink.values.events import EventType, GrantEvent, LinkEvent
from accountlink.values.grants import AlreadyGranted, Grant, Granted, IssuedGrant, Revoked
from accountlink.values.health import Health, HealthState
from accountlink.values.identity import ProviderIdentity
from accountlink.values.outcomes import (
    AlreadyOwner,
    Change,
    Linked,
    LinkedAccount,
    OwnershipConflict,
    Transferred,
    Unlinked,
)
from accountlink.values.policy import Key, LinkPolicy, Ownership, Removal
from accountlink.values.secrecy import Secret
from accountlink.vault.keys import KeySource, VaultKey
from accountlink.vault.refresher import ClientRefused, GrantEnded, ProviderUnavailable, Refresher
from accountlink.vault.vault import CredentialVault, Plaintext

if TYPE_CHECKING:
    from accountlink.doctor.diagnose import diagnose
    from accountlink.doctor.examine import Look
    from accountlink.doctor.findings import Finding, Severity
    from accountlink.vault.oauth import OAuthRefresher
    from accountlink.vault.upkeep import KeptAlive
    from accountlink.web.account_auth import LinkedAccountAuth

__all__ = [
    "AccountLinkError",
    "AccountLinker",
    "AccountMapping",
    "AccountMismatch",
    "AccountNotFound",
    "AlreadyGranted",
    "AlreadyOwner",
    "AmbiguousAccount",
    "Batch",
    "BlockedByConstraint",
    "Change",
    "ClientRefused",
    "ConfigurationError",
    "ConsentDeclined",
    "CredentialVault",
    "CredentialsUnreadable",
    "CrossSiteRequest",
    "Delivery",
    "DeliveryExpired",
    "EventType",
    "Finding",
    "FlowExpired",
    "FlowNotStartedHere",
    "FlowRejected",
    "FlowReplayed",
    "Grant",
    "GrantEnded",
    "GrantEvent",
    "GrantMapping",
    "GrantRejected",
    "Granted",
    "Health",
    "HealthState",
    "IdentityNotProven",
    "ImpersonationRefused",
    "InvalidCredentials",
    "InvalidIdentity",
    "IssuedGrant",
    "KeptAlive",
    "Key",
    "KeySource",
    "LastAccount",
    "LinkBlocked",
    "LinkEvent",
    "LinkPolicy",
    "Linked",
    "LinkedAccount",
    "LinkedAccountAuth",
    "LinkedAccountMixin",
    "Look",
    "MissingScopes",
    "NeedsConsent",
    "NotSignedIn",
    "OAuthRefresher",
    "OutcomeUnknown",
    "OwnerLookupFailed",
    "OwnerNotFound",
    "Ownership",
    "OwnershipConflict",
    "Plaintext",
    "ProviderFailed",
    "ProviderIdentity",
    "ProviderMismatch",
    "ProviderUnavailable",
    "RefreshRefused",
    "RefreshUnavailable",
    "Refresher",
    "Removal",
    "RequestRejected",
    "RetryTransaction",
    "ReturnTargetRejected",
    "Revoked",
    "Secret",
    "Severity",
    "ShareGrants",
    "StoreBusy",
    "StoreUnavailable",
    "TicketRejected",
    "TokenExpired",
    "TokenForAnotherUser",
    "TokenForged",
    "TokenRejected",
    "TokenSet",
    "TokenSuperseded",
    "Transferred",
    "UnknownProvider",
    "Unlinked",
    "UnsupportedMediaType",
    "VaultKey",
    "diagnose",
    "grants_table",
    "link_outbox",
    "normalize_email",
    "pending_credentials",
    "pooler_options",
    "refresh_states",
    "transfer_ledger",
    "tune_sqlite",
]

_LATE = {
    "Finding": "doctor.findings",
    "KeptAlive": "vault.upkeep",
    "LinkedAccountAuth": "web.account_auth",
    "Look": "doctor.examine",
    "OAuthRefresher": "vault.oauth",
    "Severity": "doctor.findings",
    "diagnose": "doctor.diagnose",
}
"""Public names that are loaded when they are first used, and their modules: the doctor is a tool that no application
needs to serve users, and the others need an extra."""


def __getattr__(name: str) -> object:
    """Load a public name that not every application needs."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # as late as what it imports

    found = globals()[name] = getattr(import_module(f"accountlink.{_LATE[name]}"), name)
    return found


def __dir__() -> list[str]:
    """List the public names, with those that are loaded late."""
    return sorted({*globals(), *__all__})
