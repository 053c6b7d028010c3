"""The endpoints of the fake provider: what it answers when nothing else is planned."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from accountlink.testing.fake_provider.accounts import Client, Directory
from accountlink.testing.fake_provider.grants import CodeRequest, Grant, GrantBook
from accountlink.testing.fake_provider.protocol import (
    ProtocolError,
    read_basic,
    read_bearer,
    read_form,
    with_query,
)
from accountlink.testing.fake_provider.script import Script
from accountlink.testing.fake_provider.signing import ALGORITHM, Signer, access_token_hash

SCOPES = ("openid", "profile", "email", "offline_access")
NO_STORE = {"Cache-Control": "no-store"}


class Endpoints:
    """Answer each endpoint by one method. An OAuth error is raised as ``ProtocolError``."""

    def __init__(
        self,
        *,
        issuer: str,
        metadata: Mapping[str, Any],
        directory: Directory,
        signer: Signer,
        script: Script,
        grants: GrantBook,
        clock: Callable[[], datetime],
        token_lifetime: timedelta,
    ) -> None:
        self._issuer = issuer
        self._metadata = metadata
        self._directory = directory
        self._signer = signer
        self._script = script
        self._grants = grants
        self._clock = clock
        self._token_lifetime = token_lifetime

    async def configuration(self, _request: Request) -> Response:
        """Source: OpenID Connect Discovery 1.0, section 3; RFC 9207 section 3."""
        genuine = {
            "issuer": self._issuer,
            "authorization_endpoint": f"{self._issuer}/authorize",
            "token_endpoint": f"{self._issuer}/token",
            "userinfo_endpoint": f"{self._issuer}/userinfo",
            "jwks_uri": f"{self._issuer}/jwks",
            "revocation_endpoint": f"{self._issuer}/revoke",
            "introspection_endpoint": f"{self._issuer}/introspect",
            "scopes_supported": list(SCOPES),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(self._script.forged("configuration", genuine | dict(self._metadata)))

    async def jwks(self, _request: Request) -> Response:
        """Publish the public keys."""
        return JSONResponse(self._script.forged("jwks", self._signer.public_jwks()))

    async def authorize(self, request: Request) -> Response:
        """Answer at the redirect URI, with a code or an error, the state and the issuer.

        Source: RFC 6749 section 4.1.1 and 4.1.2 (an unregistered redirect URI is never redirected to);
        RFC 9207 section 2.
        """
        params = await read_form(request) if request.method == "POST" else dict(request.query_params)
        client = self._directory.clients.get(params.get("client_id", ""))
        redirect_uri = params.get("redirect_uri", "")
        if client is None or redirect_uri not in client.redirect_uris:
            return PlainTextResponse("unknown client_id, or a redirect_uri not registered", status_code=400)
        try:
            planned: ProtocolError | None = getattr(request.state, "planned_error", None)
            if planned is not None:
                raise planned
            answer = {"code": self._code_for(client, redirect_uri, params)}
        except ProtocolError as refusal:
            answer = {"error": refusal.error, "error_description": refusal.description}
        if "state" in params:
            answer["state"] = params["state"]
        answer["iss"] = self._issuer
        return RedirectResponse(with_query(redirect_uri, self._script.forged("authorize", answer)), status_code=302)

    def _code_for(self, client: Client, redirect_uri: str, params: Mapping[str, str]) -> str:
        if params.get("response_type") != "code":
            raise ProtocolError("unsupported_response_type", "only response_type=code")
        if params.get("code_challenge_method") != "S256" or not params.get("code_challenge"):
            raise ProtocolError("invalid_request", "PKCE with code_challenge_method=S256 is required")
        account = self._directory.choose(
            login_hint=params.get("login_hint"), silent="none" in params.get("prompt", "").split()
        )
        if account is None:
            raise ProtocolError("login_required", "nobody is signed in: sign_in_as(subject), or a login_hint")
        grant = Grant(
            client_id=client.client_id,
            subject=account.subject,
            scopes=frozenset(params.get("scope", "").split()) & frozenset(SCOPES),
            granted_at=self._clock(),
        )
        request = CodeRequest(
            redirect_uri=redirect_uri, code_challenge=params["code_challenge"], nonce=params.get("nonce")
        )
        return self._grants.issue_code(grant, request)

    async def token(self, request: Request) -> Response:
        """Redeem a code or a refresh token. Source: RFC 6749 sections 4.1.3, 5 and 6."""
        form = await read_form(request)
        client_id = self._authenticated(request, form)
        nonce, is_first = None, True
        match form.get("grant_type"):
            case "authorization_code":
                grant, nonce = self._grants.redeem_code(
                    form.get("code", ""),
                    client_id=client_id,
                    redirect_uri=form.get("redirect_uri"),
                    code_verifier=form.get("code_verifier"),
                )
            case "refresh_token":
                grant = self._grants.redeem_refresh_token(form.get("refresh_token", ""), client_id=client_id)
                is_first = False
            case _:
                raise ProtocolError("unsupported_grant_type", "authorization_code or refresh_token")
        return JSONResponse(
            self._script.forged("token", self._tokens(grant, nonce, is_first=is_first)), headers=NO_STORE
        )

    def _tokens(self, grant: Grant, nonce: str | None, *, is_first: bool) -> dict[str, Any]:
        access_token = self._grants.issue_access_token(grant)
        answer: dict[str, Any] = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": int(self._token_lifetime.total_seconds()),
            "scope": " ".join(sorted(grant.scopes)),
        }
        if "offline_access" in grant.scopes and (is_first or self._grants.behaviour.rotates):
            answer["refresh_token"] = self._grants.issue_refresh_token(grant)
        if "openid" in grant.scopes:
            answer["id_token"] = self._id_token(grant, nonce, access_token)
        return answer

    def _id_token(self, grant: Grant, nonce: str | None, access_token: str) -> str:
        """Source: OpenID Connect Core 1.0, sections 2 and 3.1.3.6."""
        now = self._clock()
        claims: dict[str, Any] = self._directory.accounts[grant.subject].released(grant.scopes) | {
            "iss": self._issuer,
            "aud": grant.client_id,
            "iat": int(now.timestamp()),
            "exp": int((now + self._token_lifetime).timestamp()),
            "auth_time": int(grant.granted_at.timestamp()),
            "at_hash": access_token_hash(access_token),
        }
        if nonce is not None:
            claims["nonce"] = nonce
        forged = self._script.forged_id_token(claims)
        return forged if isinstance(forged, str) else self._signer.sign(forged, {})

    async def userinfo(self, request: Request) -> Response:
        """Tell the bearer of a live access token whose it is. Source: OIDC Core 5.3; RFC 6750 section 3."""
        token = read_bearer(request.headers.get("Authorization"))
        access = self._grants.live_access_token(token) if token is not None else None
        if access is None or "openid" not in access.grant.scopes:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            return JSONResponse({"error": "invalid_token"}, status_code=401, headers=challenge)
        claims = self._directory.accounts[access.grant.subject].released(access.grant.scopes)
        return JSONResponse(self._script.forged("userinfo", claims), headers=NO_STORE)

    async def revoke(self, request: Request) -> Response:
        """End the grant of a token; success also for a token that is unknown. Source: RFC 7009 section 2."""
        form = await read_form(request)
        self._grants.revoke(form.get("token", ""), client_id=self._authenticated(request, form))
        return Response(status_code=200)

    async def introspect(self, request: Request) -> Response:
        """Tell a client whether a token of its own is alive. Source: RFC 7662 section 2."""
        form = await read_form(request)
        client_id = self._authenticated(request, form)
        grant = self._grants.live_grant(form.get("token", ""))
        if grant is None or grant.client_id != client_id:
            return JSONResponse({"active": False}, headers=NO_STORE)
        answer = {"active": True, "sub": grant.subject, "client_id": client_id, "iss": self._issuer}
        return JSONResponse(answer | {"scope": " ".join(sorted(grant.scopes))}, headers=NO_STORE)

    def _authenticated(self, request: Request, form: Mapping[str, str]) -> str:
        """Return the id of the client that proved itself, by header or in the body."""
        posted = (form.get("client_id", ""), form.get("client_secret", ""))
        client_id, client_secret = read_basic(request.headers.get("Authorization")) or posted
        client = self._directory.authenticate(client_id, client_secret)
        if client is None:
            raise ProtocolError("invalid_client", "unknown client or wrong secret", status=401)
        return client.client_id
