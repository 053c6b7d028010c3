"""The FastAPI application of the README, loaded anew, at an address and with a provider of the test's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final
from unittest.mock import patch

from accountlink import providers
from accountlink.providers import Provider
from accountlink.testing.fake_provider import FakeProvider

FILE: Final = Path(__file__).parents[2] / "examples" / "fastapi" / "main.py"
ENVIRONMENT: Final = {
    "GOOGLE_CLIENT_ID": "1234.apps.googleusercontent.com",
    "GOOGLE_CLIENT_SECRET": "an example, not a client's",
    "TRANSFER_SECRET": "an example for transfers, not random",
    "FLOW_SECRET": "an example for flows, that is not random",
    "SESSION_SECRET": "an example for sessions, not random",
}
_PACKAGE: Final = "examples.fastapi"


@contextmanager
def loaded(folder: Path, *, site: str, google: FakeProvider | None = None) -> Iterator[ModuleType]:
    """Load ``main.py`` for the length of a ``with`` block.

    Args:
        folder: Where its database is.
        site: Where browsers reach it.
        google: A fake provider in Google's place.
    """

    def described(*, client_id: str, client_secret: str) -> Provider:
        assert google is not None
        return providers.oidc("google", issuer=google.issuer, client_id=client_id, client_secret=client_secret)

    client = (
        {} if google is None else {"GOOGLE_CLIENT_ID": google.client_id, "GOOGLE_CLIENT_SECRET": google.client_secret}
    )
    with (
        chdir(folder),
        patch.dict(os.environ, ENVIRONMENT | client | {"SITE": site}),
        patch.object(providers, "google", providers.google if google is None else described),
    ):
        try:
            yield import_module(f"{_PACKAGE}.main")
        finally:
            for name in [name for name in sys.modules if f"{name}.".startswith(f"{_PACKAGE}.")]:
                del sys.modules[name]  # the package as well: it has the modules as attributes
