"""Try the forty lines without an account at Google: a provider of accountlink's own stands in for it.

python examples/fastapi/try_it.py [--port 8000]
"""

import argparse
import secrets
import sys
from os import environ
from pathlib import Path

import uvicorn
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that this file can be started by its path

from accountlink import providers
from accountlink.providers import Provider
from accountlink.testing.fake_provider import FakeProvider

ACCOUNT = "248289761001"


def demonstration(port: int) -> FastAPI:
    """Return the application of ``main.py`` and ``stand_in.py``, with a provider that knows one account.

    Args:
        port: The port that it will listen at. As a site, ``localhost`` is the application and ``127.0.0.1`` the
            provider: a browser keeps their cookies apart, as it does with Google's.
    """
    site, issuer = f"http://localhost:{port}", f"http://127.0.0.1:{port}/provider"
    provider = FakeProvider(issuer=issuer, redirect_uris=[f"{site}/accounts/callback/google"])
    provider.add_account(ACCOUNT, email="ada@example.org", name="Ada")
    provider.sign_in_as(ACCOUNT)  # so it answers at once; Google would ask

    def google(*, client_id: str, client_secret: str) -> Provider:
        return providers.oidc("google", issuer=issuer, client_id=client_id, client_secret=client_secret)

    # main.py is the file that the README shows, and knows of no demonstration. So the stand-in is put in Google's
    # place before main.py is read.
    providers.google = google  # type: ignore[assignment]  # it takes only what main.py passes
    environ.update(SITE=site, GOOGLE_CLIENT_ID=provider.client_id, GOOGLE_CLIENT_SECRET=provider.client_secret)
    for name in ("TRANSFER_SECRET", "FLOW_SECRET", "SESSION_SECRET"):
        environ.setdefault(name, secrets.token_urlsafe(48))  # forgotten at the end; yours stay the same

    from examples.fastapi.stand_in import app  # noqa: PLC0415  (it reads what is set above)

    app.mount("/", provider)  # every path that the application does not have
    return app


def main() -> None:
    """Serve the demonstration until Ctrl-C."""
    parser = argparse.ArgumentParser(description="The FastAPI application of the README, with a built-in provider.")
    parser.add_argument("--port", type=int, default=8000, help="where to listen; 8000 by default")
    port: int = parser.parse_args().port
    print(f"Open http://localhost:{port}/settings")
    uvicorn.run(demonstration(port), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
