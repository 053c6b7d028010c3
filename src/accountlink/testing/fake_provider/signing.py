"""The provider's signing keys and its ID tokens."""

import hashlib
from collections.abc import Mapping
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from accountlink.values.base64url import encoded

ALGORITHM = "ES256"  # an EC key is made in under a millisecond, an RSA key in a tenth of a second


class _AnyHeader(JWSRegistry):
    """Let every header through: a forger's holds values that no honest signer would put there."""

    def check_header(self, header: Mapping[str, Any]) -> None:
        pass


class Signer:
    """Sign with the newest key and publish all of them."""

    def __init__(self) -> None:
        self._keys: list[ECKey] = []
        self._registry = _AnyHeader(algorithms=[ALGORITHM])
        self.rotate()

    def rotate(self) -> None:
        """Add a key and sign with it from now on."""
        kid = f"key-{len(self._keys) + 1}"
        self._keys.append(ECKey.generate_key("P-256", {"kid": kid, "use": "sig", "alg": ALGORITHM}))

    def public_jwks(self) -> dict[str, Any]:
        """Return the JWK set that ``/jwks`` publishes."""
        return {"keys": [dict(key.as_dict(private=False)) for key in self._keys]}

    def sign(self, claims: Mapping[str, Any], header: Mapping[str, Any]) -> str:
        """Return a signed compact JWT; ``header`` adds to the header or overrides it."""
        key = self._keys[-1]
        return jwt.encode({"alg": ALGORITHM, "kid": key.kid} | dict(header), dict(claims), key, registry=self._registry)


def access_token_hash(access_token: str) -> str:
    """Return ``at_hash`` for a SHA-256 signature. Source: OpenID Connect Core 1.0, section 3.1.3.6."""
    digest = hashlib.sha256(access_token.encode()).digest()
    return encoded(digest[: len(digest) // 2])
