"""Say who the user is: of a request to the MCP server, and of a browser. Replace all of it with your application's own.

Both must know the same users: a ticket that the agent of a user gets is good only for a browser of that user.
"""

from os import environ
from typing import Final

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl
from starlette.requests import Request

SITE: Final = environ["SITE"]
"""The application's address: ``http://localhost:8000``, or https and your host."""
ISSUER: Final = environ["AUTHORIZATION_SERVER"]
"""The authorization server, at which a user allows an agent to use the MCP server."""
KEY: Final = OctKey.import_key(environ["ACCESS_TOKEN_SECRET"])
"""The key of its access tokens. In production use its public keys (``jwks_uri``) and their algorithm."""
RESOURCE: Final = f"{SITE}/mcp"
"""The address of the MCP server. Its access tokens are issued for it, and a token for another server is refused."""
PROTECTION: Final = AuthSettings(
    issuer_url=AnyHttpUrl(ISSUER),
    resource_server_url=AnyHttpUrl(RESOURCE),
    validate_token_resource=False,  # the rules below do
)
_RULES: Final = jwt.JWTClaimsRegistry(
    iss={"essential": True, "value": ISSUER},
    aud={"essential": True, "value": RESOURCE},  # also among others in a list
    sub={"essential": True},
    exp={"essential": True},
)


class OurAccessTokens(TokenVerifier):
    """Accept the access tokens of the application's own authorization server. They are never the provider's."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what a token says; ``None`` if it is not one of the authorization server's, or is over."""
        try:
            claims = jwt.decode(token, KEY, algorithms=["HS256"]).claims
            _RULES.validate(claims)
        except (JoseError, ValueError):
            return None
        return AccessToken(
            token=token,
            client_id=claims.get("client_id", "unknown"),
            scopes=claims.get("scope", "").split(),
            expires_at=claims["exp"],
            resource=RESOURCE,
            subject=claims["sub"],
            claims={"iss": claims["iss"]},
        )


def user_of_agent() -> int:
    """Return the user whose access token came with the request to the MCP server."""
    token = get_access_token()
    if token is None or token.subject is None:
        raise RuntimeError("The MCP server runs without its token verifier.")
    return int(token.subject)


def user_of_browser(request: Request) -> int | None:
    """Return the user who is signed in to the application with this browser; ``None`` if nobody is."""
    user_id: int | None = request.session.get("user_id")
    return user_id
