"""Google: the flag counts where Google is authoritative, and a refresh token comes with consent."""

from typing import Final

import pytest

from accountlink.providers import Evidence, Userinfo, google
from tests.support.documented import CLIENT, GOOGLE_CLAIMS

GOOGLE: Final = google(**CLIENT)
CONSUMER: Final = {name: claim for name, claim in GOOGLE_CLAIMS.items() if name != "hd"}


@pytest.mark.parametrize(
    ("email", "hd", "flag", "expected"),
    [
        ("ada@gmail.com", None, True, True),
        ("ada@gmail.com", None, False, False),
        ("ada@example.com", "example.com", True, True),
        ("ada@example.com", "example.com", False, False),
        ("ada@example.com", None, True, None),
        ("ada@example.com", None, False, False),
        ("ada@example.com", "", True, None),
        ("ada@example.com", True, True, None),
        ("ada@gmail.com.example.com", None, True, None),
        ("ada@notgmail.com", None, True, None),
        ("ada\N{FULLWIDTH COMMERCIAL AT}gmail.com", None, True, None),
        ("ada@GMAIL.COM", None, True, None),
        ("ada@gmail.com", None, "true", None),
        ("ada@gmail.com", None, None, None),
    ],
)
def test_where_google_is_authoritative(email: str, hd: object, flag: object, expected: bool | None) -> None:
    """A05, A07: Google's old check of an address counts only if Gmail or a Workspace domain hosts the address."""
    claims = {**CONSUMER, "email": email, "email_verified": flag} | ({} if hd is None else {"hd": hd})
    identity = GOOGLE.identity(Evidence(claims=claims))
    assert (email, expected) == (identity.email, identity.email_verified)


def test_without_the_scope_of_addresses() -> None:
    """A token without an address links the account; a flag alone says nothing."""
    claims = {name: claim for name, claim in CONSUMER.items() if name != "email"} | {
        "email_verified": True,
        "hd": "a.b",
    }
    identity = GOOGLE.identity(Evidence(claims=claims))
    assert (None, None) == (identity.email, identity.email_verified)


def test_what_is_asked_for() -> None:
    """A refresh token is asked for in each flow, the consent screen only to renew a link, and no scopes of others."""
    assert {"access_type": "offline"} == GOOGLE.authorize_parameters
    assert {"prompt": "consent"} == GOOGLE.consent_parameters
    assert Userinfo.NEVER is GOOGLE.userinfo


def test_the_scope_of_the_id_token_is_always_asked_for() -> None:
    """Without ``openid`` there is no ID token, so a list without it gets it, and a list with it keeps one."""
    calendar = "https://www.googleapis.com/auth/calendar.readonly"
    assert ("openid", calendar) == google(**CLIENT, scopes=[calendar]).scopes
    assert ("openid", "email") == google(**CLIENT, scopes=("email", "openid", "email")).scopes
