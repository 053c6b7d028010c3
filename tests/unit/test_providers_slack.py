"""Slack: a user in a workspace."""

from typing import Final

import pytest

from accountlink.providers import Evidence, EvidenceMissing, slack
from tests.support.documented import CLIENT, SLACK_CLAIMS

SLACK: Final = slack(**CLIENT)
TEAM: Final = "https://slack.com/team_id"


def test_one_user_id_in_two_workspaces_is_two_accounts() -> None:
    """A38: a workspace whose user has the id of another workspace's user never reaches that account."""
    accounts = {SLACK.identity(Evidence(claims={**SLACK_CLAIMS, TEAM: team})).account_id for team in ("T1", "T2")}
    assert {"U123ABC456.T1", "U123ABC456.T2"} == accounts


@pytest.mark.parametrize(
    ("sub", "team"), [("U1", None), (None, "T1"), ("U1", ""), ("U1.T1", "T2"), ("U1", "T1.T2"), (1, 2)]
)
def test_half_an_id_proves_nothing(sub: object, team: object) -> None:
    """A08: both parts are needed, and neither may be read as a part of the other."""
    with pytest.raises(EvidenceMissing):
        SLACK.identity(Evidence(claims={**SLACK_CLAIMS, "sub": sub, TEAM: team}))


def test_an_administrator_s_address_is_not_verified() -> None:
    """A05: administrators write the addresses of their members, so Slack's flag is dropped."""
    identity = SLACK.identity(Evidence(claims=SLACK_CLAIMS))
    assert ("alice@example.com", None) == (identity.email, identity.email_verified)
