"""Entra: ``oid.tid``, only of the tenants that were named, and no e-mail address that counts."""

from typing import Any, Final

import pytest

from accountlink import ConfigurationError
from accountlink.providers import MICROSOFT_PERSONAL_ACCOUNTS, Evidence, EvidenceMissing, Provider, entra
from tests.support.documented import CLIENT, ENTRA_CLAIMS, OTHER_TENANT, TENANT

HOST: Final = "https://login.microsoftonline.com"


def made(*tenants: str, **changes: Any) -> Provider:
    return entra("entra", tenants=tenants, **CLIENT, **changes)


@pytest.mark.parametrize(
    ("tenants", "issuer", "authority"),
    [
        ([TENANT], TENANT, TENANT),
        ([TENANT, OTHER_TENANT], "{tenantid}", "organizations"),
        ([TENANT, MICROSOFT_PERSONAL_ACCOUNTS], "{tenantid}", "common"),
        ([MICROSOFT_PERSONAL_ACCOUNTS], MICROSOFT_PERSONAL_ACCOUNTS, MICROSOFT_PERSONAL_ACCOUNTS),
        ([TENANT, TENANT.upper()], TENANT, TENANT),
    ],
)
def test_the_authority_follows_from_the_tenants(tenants: list[str], issuer: str, authority: str) -> None:
    """Microsoft is asked for the accounts that are accepted, and for personal ones only if they are named."""
    provider = made(*tenants)
    assert f"{HOST}/{issuer}/v2.0" == provider.issuer
    assert f"{HOST}/{authority}/v2.0/.well-known/openid-configuration" == provider.metadata_url


def test_a_tenant_is_compared_as_microsoft_writes_it() -> None:
    """A tenant id in capitals, or without hyphens, is the same tenant."""
    assert (TENANT,) == made(TENANT.upper()).tenants == made(TENANT.replace("-", "")).tenants


@pytest.mark.parametrize("tenants", [[], ["common"], ["contoso.onmicrosoft.com"], TENANT, [None], [7], None], ids=repr)
def test_tenants_that_are_no_tenants_are_refused(tenants: Any) -> None:
    """A domain or a word cannot be compared with the tenant of an ID token."""
    with pytest.raises(ConfigurationError, match="tenant ids"):
        entra("entra", tenants=tenants, **CLIENT)


@pytest.mark.parametrize(
    "tid", [OTHER_TENANT, MICROSOFT_PERSONAL_ACCOUNTS, TENANT.upper(), f" {TENANT}", "", None, [TENANT]]
)
def test_another_tenant_proves_nothing(tid: object) -> None:
    """A06, A38: what the administrator of another tenant says about an account is not heard."""
    with pytest.raises(EvidenceMissing):
        made(TENANT).identity(Evidence(claims={**ENTRA_CLAIMS, "tid": tid}))


def test_one_object_id_in_two_tenants_is_two_accounts() -> None:
    """A06: two accepted tenants never share an account, even if one repeats the ids and the address of the other."""
    provider = made(TENANT, OTHER_TENANT)
    victim = provider.identity(Evidence(claims={**ENTRA_CLAIMS, "email": "ada@acme.example"}))
    other = provider.identity(Evidence(claims={**ENTRA_CLAIMS, "tid": OTHER_TENANT, "email": "ada@acme.example"}))
    assert victim.account_id != other.account_id
    assert f"{ENTRA_CLAIMS['oid']}.{OTHER_TENANT}" == other.account_id


@pytest.mark.parametrize("claims", [{"email_verified": True}, {"xms_edov": True}, {"xms_edov": "1"}, {"xms_edov": 1}])
def test_no_address_is_verified(claims: dict[str, object]) -> None:
    """A06: neither the flag nor ``xms_edov`` makes an address of Entra one that counts."""
    identity = made(TENANT).identity(Evidence(claims={**ENTRA_CLAIMS, "email": "ada@victim.example", **claims}))
    assert ("ada@victim.example", None) == (identity.email, identity.email_verified)


@pytest.mark.parametrize("oid", [None, 7, "", "a.b", f"x.{TENANT}"])
def test_an_object_id_of_another_form_proves_nothing(oid: object) -> None:
    """A08: a missing object id is not replaced by ``sub``, and one with a dot could be read as another pair."""
    with pytest.raises(EvidenceMissing):
        made(TENANT).identity(Evidence(claims={**ENTRA_CLAIMS, "oid": oid}))


def test_the_user_name_is_no_address() -> None:
    """The user name looks like an address and is none."""
    assert made(TENANT).identity(Evidence(claims=ENTRA_CLAIMS)).email is None


def test_what_is_asked_for() -> None:
    """The object id needs ``profile``, a refresh token ``offline_access``, and no flow forces the consent screen."""
    assert {"openid", "profile", "email", "offline_access"} == set(made(TENANT).scopes)
    assert ("openid", "profile", "User.Read") == made(TENANT, scopes=["User.Read"]).scopes
    assert {} == made(TENANT).consent_parameters
