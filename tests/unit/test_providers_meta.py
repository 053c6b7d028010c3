"""Meta: the person's id for one app, and an address without a flag."""

from dataclasses import replace
from typing import Any, Final

import pytest

from accountlink import ConfigurationError
from accountlink.providers import EmailTrust, Evidence, EvidenceMissing, meta
from tests.support.documented import CLIENT, META_DOCUMENTS

META: Final = meta(**CLIENT)


@pytest.mark.parametrize(
    "me", [None, [], {"name": "Jane"}, {"id": 4}, {"id": "4a"}, {"id": "4 "}, {"id": "\N{ARABIC-INDIC DIGIT FOUR}"}]
)
def test_only_a_numeric_text_is_an_id(me: object) -> None:
    """A08: an id in a form that Meta does not document identifies nobody."""
    with pytest.raises(EvidenceMissing):
        META.identity(Evidence(documents={"me": me}))


@pytest.mark.parametrize("extra", [{"email_verified": True}, {"verified": True}, {"is_verified": True}])
def test_no_address_is_verified(extra: dict[str, object]) -> None:
    """A05: Meta documents no flag, so a member that looks like one is not read, even if somebody trusts it."""
    documents = {"me": {**META_DOCUMENTS["me"], **extra}}
    trusting = replace(META, email_trust=EmailTrust.VERIFIED_FLAG)
    assert trusting.identity(Evidence(documents=documents)).email_verified is None


def test_a_person_without_an_address() -> None:
    """A person who signed up with a telephone number, or declined the address, is linked without one."""
    identity = META.identity(Evidence(documents={"me": {"id": "4", "name": "Jane Smith"}}))
    assert ("4", None, "Jane Smith") == (identity.account_id, identity.email, identity.display_name)


def test_where_meta_is_asked() -> None:
    """Every address has the version of the Graph API that was asked for."""
    newer = meta(**CLIENT, version="v26.0")
    assert "https://www.facebook.com/v26.0/dialog/oauth" == newer.authorization_endpoint
    assert "https://graph.facebook.com/v26.0/oauth/access_token" == newer.token_endpoint
    assert {"me": "https://graph.facebook.com/v26.0/me?fields=id,name,email"} == newer.requests
    assert {"auth_type": "rerequest"} == newer.consent_parameters


@pytest.mark.parametrize("version", ["25.0", "v25", "v25.0/../x", "", None, 25], ids=repr)
def test_a_version_of_another_form_is_refused(version: Any) -> None:
    """A version is part of an address."""
    with pytest.raises(ConfigurationError, match=r"v25\.0"):
        meta(**CLIENT, version=version)
