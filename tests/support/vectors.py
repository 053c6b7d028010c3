"""The published test vectors of the vault's envelopes, as they stand in the documentation."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.support.pages import DOCS

VECTORS: Final[dict[str, Any]] = json.loads((DOCS / "vault-vectors.json").read_text(encoding="utf-8"))
each_envelope = pytest.mark.parametrize("vector", VECTORS["envelopes"], ids=lambda vector: vector["name"])
each_refused = pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["name"])
