"""Keep the fake provider's grants: codes, access tokens and rotating refresh tokens."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any

from itsdangerous import BadData, URLSafeSerializer

from accountlink.providers.client import RefreshBehaviour
from accountlink.testing.fake_provider.protocol import ProtocolError
from accountlink.values.base64url import encoded

CODE_LIFETIME = timedelta(seconds=60)


@dataclass(eq=False, kw_only=True, slots=True)
class Grant:
    """Describe one person's consent to one client. Every token of it dies when it ends."""

    client_id: str
    subject: str
    scopes: frozenset[str]
    granted_at: datetime
    ended: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeRequest:
    """Hold the values to which the authorization request bound the code."""

    redirect_uri: str
    code_challenge: str
    nonce: str | None


@dataclass(eq=False, kw_only=True, slots=True)
class _Code:
    grant: Grant
    request: CodeRequest
    expires_at: datetime
    spent: bool = False


@dataclass(eq=False, kw_only=True, slots=True)
class _RefreshToken:
    grant: Grant
    spent_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessToken:
    """Grant the right to call ``/userinfo`` until it expires."""

    grant: Grant
    expires_at: datetime


class GrantBook:
    """Issue and redeem; a replay of anything that is single-use ends the whole grant.

    Args:
        clock: Returns the aware current time.
        access_token_lifetime: How long access tokens live.
        behaviour: How refresh tokens are treated: whether they rotate, and how long a spent one still works.
        secret: Signs codes and refresh tokens, so that another book with this secret knows them; a random one if it is
            ``None``. The other book knows neither which were spent, nor which grants had ended.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        access_token_lifetime: timedelta,
        behaviour: RefreshBehaviour,
        secret: str | None = None,
    ) -> None:
        self.behaviour = behaviour
        key = secret or secrets.token_urlsafe(32)
        self._signed = URLSafeSerializer(key, salt="accountlink fake provider code")
        self._signed_refresh = URLSafeSerializer(key, salt="accountlink fake provider refresh token")
        self._clock = clock
        self._access_token_lifetime = access_token_lifetime
        self._grants: list[Grant] = []
        self._withdrawn: dict[str, datetime] = {}
        self._codes: dict[str, _Code] = {}
        self._access_tokens: dict[str, AccessToken] = {}
        self._refresh_tokens: dict[str, _RefreshToken] = {}

    def issue_code(self, grant: Grant, request: CodeRequest) -> str:
        """Return a code that is good once, and for one minute."""
        expires_at = self._clock() + CODE_LIFETIME
        code = self._signed.dumps(
            {
                "jti": secrets.token_urlsafe(16),
                "grant": _written(grant),
                "request": asdict(request),
                "expires_at": expires_at.isoformat(),
            }
        )
        assert isinstance(code, str)  # noqa: S101  # the serializer of JSON returns text
        self._keep(code, _Code(grant=grant, request=request, expires_at=expires_at))
        return code

    def redeem_code(
        self, code: str, *, client_id: str, redirect_uri: str | None, code_verifier: str | None
    ) -> tuple[Grant, str | None]:
        """Return the grant and the nonce that the code stands for.

        Raises:
            ProtocolError: ``invalid_grant`` for a code that is unknown, spent, expired or another client's,
                for another redirect URI, and for a missing or wrong PKCE verifier.

        Source: RFC 6749 sections 4.1.2 and 4.1.3 (a replay revokes what the code gave); RFC 7636 section 4.6.
        """
        stored = self._codes.get(code) or self._issued_before(code)
        if stored is None or stored.grant.client_id != client_id:
            raise ProtocolError("invalid_grant", "unknown code")
        if stored.spent:
            stored.grant.ended = True
            raise ProtocolError("invalid_grant", "code already used")
        stored.spent = True
        if stored.grant.ended:
            raise ProtocolError("invalid_grant", "consent withdrawn")
        if self._clock() >= stored.expires_at:
            raise ProtocolError("invalid_grant", "code expired")
        if redirect_uri != stored.request.redirect_uri:
            raise ProtocolError("invalid_grant", "redirect_uri differs from the authorization request")
        if code_verifier is None or not compare_digest(_s256(code_verifier), stored.request.code_challenge):
            raise ProtocolError("invalid_grant", "PKCE verifier missing or wrong")
        return stored.grant, stored.request.nonce

    def _issued_before(self, code: str) -> _Code | None:
        """Return what a code stands for that a book with this secret issued, such as one that has ended meanwhile."""
        try:
            told: dict[str, Any] = self._signed.loads(code)
        except BadData:
            return None
        stored = _Code(
            grant=self._granted_before(told["grant"]),
            request=CodeRequest(**told["request"]),
            expires_at=datetime.fromisoformat(told["expires_at"]),
        )
        self._keep(code, stored)
        return stored

    def _granted_before(self, written: dict[str, Any]) -> Grant:
        """Return a grant of a book with this secret, ended if its person has withdrawn their consent since."""
        told = {"scopes": frozenset(written["scopes"]), "granted_at": datetime.fromisoformat(written["granted_at"])}
        grant = Grant(**(written | told))
        withdrawn = self._withdrawn.get(grant.subject)
        grant.ended = grant.ended or (withdrawn is not None and grant.granted_at <= withdrawn)
        return grant

    def _keep(self, code: str, stored: _Code) -> None:
        self._grants.append(stored.grant)
        self._codes[code] = stored

    def redeem_refresh_token(self, token: str, *, client_id: str) -> Grant:
        """Spend a refresh token and return its grant; one that was spent longer ago than the grace ends the grant.

        Raises:
            ProtocolError: ``invalid_grant``.

        Source: RFC 9700 section 4.14.2 (refresh token rotation).
        """
        stored = self._refresh_token(token)
        if stored is None or stored.grant.client_id != client_id:
            raise ProtocolError("invalid_grant", "unknown refresh token")
        now, grace = self._clock(), self.behaviour.grace or timedelta(0)
        if stored.spent_at is not None and now - stored.spent_at >= grace:
            stored.grant.ended = True
        if stored.grant.ended:
            raise ProtocolError("invalid_grant", "refresh token revoked or already used")
        if self.behaviour.rotates and stored.spent_at is None:
            stored.spent_at = now
        return stored.grant

    def issue_access_token(self, grant: Grant) -> str:
        """Return an opaque access token."""
        token = secrets.token_urlsafe(24)
        expires_at = self._clock() + self._access_token_lifetime
        self._access_tokens[token] = AccessToken(grant=grant, expires_at=expires_at)
        return token

    def issue_refresh_token(self, grant: Grant) -> str:
        """Return an opaque refresh token that is good once."""
        name = secrets.token_urlsafe(12)
        token = f"{name}.{self._signed_refresh.dumps({'name': name, 'grant': _written(grant)})}"
        self._refresh_tokens[token] = _RefreshToken(grant=grant)
        return token

    def _refresh_token(self, token: str) -> _RefreshToken | None:
        """Return what a refresh token stands for, also if a book with this secret issued it."""
        if token in self._refresh_tokens:
            return self._refresh_tokens[token]
        name, _, signed = token.partition(".")
        try:
            told: dict[str, Any] = self._signed_refresh.loads(signed)
        except BadData:
            return None
        if told["name"] != name:
            return None
        grant = self._granted_before(told["grant"])
        self._grants.append(grant)
        return self._refresh_tokens.setdefault(token, _RefreshToken(grant=grant))

    def live_access_token(self, token: str) -> AccessToken | None:
        """Return what the access token stands for, or ``None`` once it is unknown, expired or revoked."""
        stored = self._access_tokens.get(token)
        if stored is None or stored.grant.ended or self._clock() >= stored.expires_at:
            return None
        return stored

    def live_grant(self, token: str) -> Grant | None:
        """Return the grant behind a live access or refresh token, or ``None``."""
        if (access := self.live_access_token(token)) is not None:
            return access.grant
        refresh = self._refresh_token(token)
        if refresh is None or refresh.spent_at is not None or refresh.grant.ended:
            return None
        return refresh.grant

    def revoke(self, token: str, *, client_id: str) -> None:
        """End the grant behind the token; an unknown token, or another client's, changes nothing."""
        stored = self._access_tokens.get(token) or self._refresh_token(token)
        if stored is not None and stored.grant.client_id == client_id:
            stored.grant.ended = True

    def end_all(self, subject: str) -> None:
        """End every grant of one person, also one of a book with this secret that this book meets later."""
        self._withdrawn[subject] = self._clock()
        for grant in self._grants:
            if grant.subject == subject:
                grant.ended = True


def _written(grant: Grant) -> dict[str, Any]:
    """Return a grant for JSON."""
    return asdict(grant) | {"scopes": sorted(grant.scopes), "granted_at": grant.granted_at.isoformat()}


def _s256(code_verifier: str) -> str:
    """Return the PKCE challenge of a verifier. Source: RFC 7636 section 4.2."""
    digest = hashlib.sha256(code_verifier.encode()).digest()
    return encoded(digest)
