"""Presets for OAuth providers. Each is a function that returns a frozen :class:`Provider`; one small file each.

``docs/providers.md`` says how to add one. Importing this package loads no extra.
"""

from accountlink.providers.apple import apple
from accountlink.providers.client import OAuthClient, RefreshBehaviour, Revocation
from accountlink.providers.entra import MICROSOFT_PERSONAL_ACCOUNTS, entra
from accountlink.providers.github import github
from accountlink.providers.gitlab import gitlab
from accountlink.providers.google import google
from accountlink.providers.meta import meta
from accountlink.providers.oidc import oidc
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    EvidenceMissing,
    Provider,
    Userinfo,
)
from accountlink.providers.slack import slack

__all__ = [
    "MICROSOFT_PERSONAL_ACCOUNTS",
    "Described",
    "EmailTrust",
    "Evidence",
    "EvidenceMissing",
    "OAuthClient",
    "Provider",
    "RefreshBehaviour",
    "Revocation",
    "Userinfo",
    "apple",
    "entra",
    "github",
    "gitlab",
    "google",
    "meta",
    "oidc",
    "slack",
]
