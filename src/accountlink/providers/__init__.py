"""Presets for OAuth providers. Each is a function that returns a frozen :class:`Provider`; one small file each.

``docs/providers.md`` says how to add one.
"""

from accountlink.providers.oidc import oidc
from accountlink.providers.provider import (
    Described,
    EmailTrust,
    Evidence,
    EvidenceMissing,
    OAuthClient,
    Provider,
    RefreshBehaviour,
    Revocation,
    Userinfo,
)

__all__ = [
    "Described",
    "EmailTrust",
    "Evidence",
    "EvidenceMissing",
    "OAuthClient",
    "Provider",
    "RefreshBehaviour",
    "Revocation",
    "Userinfo",
    "oidc",
]
