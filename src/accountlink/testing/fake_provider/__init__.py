"""An OpenID Connect provider as an ASGI app, for tests and for the demo.

It does what a careful provider does (exact redirect URIs, S256 PKCE, single-use codes, rotating refresh
tokens, RFC 9207's ``iss``) and, on request, what a careless, broken or hostile one does.

Example:
    >>> provider = FakeProvider(redirect_uris=["https://app.example/callback"])
    >>> provider.add_account("248289761001", email="ada@example.org")
    >>> provider.sign_in_as("248289761001")
    >>> provider.fail_next("token", status=503)

Needs the extra ``accountlink[demo]``: starlette, joserfc and httpx2.
"""

from accountlink.extras import explained

try:
    from accountlink.testing.fake_provider.accounts import Account
    from accountlink.testing.fake_provider.provider import FakeProvider
    from accountlink.testing.fake_provider.script import Endpoint, Forgeable, Lost
except ModuleNotFoundError as error:
    raise explained("accountlink.testing.fake_provider", error, extra="demo") from None

__all__ = ["Account", "Endpoint", "FakeProvider", "Forgeable", "Lost"]
