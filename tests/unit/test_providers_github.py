"""GitHub: the number of a user, and the primary address that GitHub has verified."""

from typing import Any, Final

import pytest

from accountlink.providers import Evidence, EvidenceMissing, github
from tests.support.documented import CLIENT, GITHUB_DOCUMENTS

GITHUB: Final = github(**CLIENT)
USER: Final = GITHUB_DOCUMENTS["user"]


def told(emails: Any, **user: object) -> Evidence:
    return Evidence(documents={"user": {**USER, **user}, "emails": emails})


def entry(email: object, *, primary: object = True, verified: object = True) -> dict[str, object]:
    return {"email": email, "primary": primary, "verified": verified, "visibility": None}


@pytest.mark.parametrize(
    ("emails", "expected"),
    [
        ([entry("ada@example.com")], "ada@example.com"),
        ([entry("old@example.com", primary=False), entry("ada@example.com")], "ada@example.com"),
        ([entry("ada@example.com", verified=False)], None),
        ([entry("ada@example.com", verified=False), entry("old@example.com", primary=False)], None),
        ([entry("ada@example.com", verified="true")], None),
        ([entry("ada@example.com", verified=1)], None),
        ([entry("ada@example.com", primary="true")], None),
        ([entry("1+ada@users.noreply.github.com")], None),
        ([entry("ada@Users.NoReply.GitHub.com")], None),
        ([entry(None)], None),
        ([entry(7)], None),
        ([], None),
        ({"message": "Requires authentication"}, None),
        ([None, "ada@example.com", 7], None),
        (None, None),
    ],
)
def test_the_verified_primary_address(emails: object, expected: str | None) -> None:
    """A05, A07: an address that nobody proved, or that receives no mail, counts as none."""
    identity = GITHUB.identity(told(emails))
    assert (expected, True if expected else None) == (identity.email, identity.email_verified)


def test_the_address_of_the_profile_is_not_used() -> None:
    """The profile's address has no flag; without the list of addresses the account is linked without one."""
    identity = GITHUB.identity(Evidence(documents={"user": {**USER, "email": "victim@example.com"}}))
    assert ("1", None, None) == (identity.account_id, identity.email, identity.email_verified)


@pytest.mark.parametrize("user", [None, [], "octocat", {"login": "octocat"}, {"id": "1"}, {"id": True}, {"id": 1.0}])
def test_only_a_whole_number_is_an_id(user: object) -> None:
    """A08: the login, and a number in another form, identify nobody."""
    with pytest.raises(EvidenceMissing):
        GITHUB.identity(Evidence(documents={"user": user}))


def test_a_renamed_user_is_the_same_account_and_the_new_owner_of_the_login_is_not() -> None:
    """A07: an account follows the number, not the login."""
    renamed = GITHUB.identity(told([], login="renamed"))
    recycled = GITHUB.identity(told([], id=583231, login="octocat"))
    assert ("1", "583231") == (renamed.account_id, recycled.account_id)


def test_where_github_is_asked() -> None:
    """There is no ID token; the addresses may be refused, and an issuer that GitHub names must be GitHub's."""
    assert not GITHUB.id_token
    assert ("emails",) == GITHUB.optional_requests
    assert {"user", "emails"} == set(GITHUB.requests)
    assert ("https://github.com/login/oauth", False) == (GITHUB.issuer, GITHUB.iss_parameter)
