"""The published test vectors of the envelopes are true for a reader that imports nothing of accountlink."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.support.vectors import VECTORS, each_envelope


def text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("key", VECTORS["keys"].values(), ids=VECTORS["keys"])
def test_a_key_has_its_text_and_its_id(key: dict[str, str]) -> None:
    """The vectors' keys have the text form and the id that their bytes give."""
    secret = bytes.fromhex(key["secret"])
    assert (32, key["text"]) == (len(secret), text(secret))
    assert key["id"] == text(sha256(b"al1 key id" + secret).digest()[:6])


@each_envelope
def test_an_independent_reader_opens_and_seals_each_envelope(vector: dict[str, Any]) -> None:
    """Whoever has the key, the row and the documented format needs no accountlink to read a token."""
    secret = bytes.fromhex(VECTORS["keys"][vector["key"]]["secret"])
    form, key_id, grant_id, data = vector["envelope"].split(".")
    link = (vector[name] for name in ("context", "role", "user_id", "provider", "account_key"))
    parts = [part.encode() for part in (form, key_id, grant_id, *link)]
    associated = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    row_key = HKDF(algorithm=SHA256(), length=32, salt=None, info=associated).derive(secret)
    raw = urlsafe_b64decode(data + "=" * (-len(data) % 4))
    plaintext = AESGCM(row_key).decrypt(raw[:12], raw[12:], associated)
    assert ("al1", VECTORS["keys"][vector["key"]]["id"], vector["grant_id"]) == (form, key_id, grant_id)
    assert (vector["associated_data"], vector["row_key"]) == (associated.hex(), row_key.hex())
    assert (vector["nonce"], vector["plaintext"]) == (raw[:12].hex(), plaintext.decode())
    sealed = raw[:12] + AESGCM(row_key).encrypt(raw[:12], plaintext, associated)
    assert vector["envelope"] == f"{form}.{key_id}.{grant_id}.{text(sealed)}"


def test_the_reader_is_independent() -> None:
    """This module imports nothing of accountlink."""
    imports = [line for line in Path(__file__).read_text(encoding="utf-8").splitlines() if "import " in line]
    assert [] == [line for line in imports if line.startswith(("from accountlink", "import accountlink"))]
