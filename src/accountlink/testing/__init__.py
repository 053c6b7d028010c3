"""Support the tests of applications and of accountlink itself."""

from accountlink.testing.refreshing import FakeRefresher, link_with_expired_token

__all__ = ["FakeRefresher", "link_with_expired_token"]
