"""Reading OAuth requests and writing OAuth answers."""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from starlette.requests import Request
from starlette.responses import JSONResponse


class ProtocolError(Exception):
    """Report an answer of the provider that is an OAuth error.

    Source: RFC 6749 sections 4.1.2.1 and 5.2.
    """

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(f"{error}: {description}")
        self.error = error
        self.description = description
        self.status = status

    def as_json(self) -> JSONResponse:
        """Return the error as the token, revocation and introspection endpoints give it."""
        body = {"error": self.error, "error_description": self.description}
        challenge = {"WWW-Authenticate": "Basic"} if self.status == 401 else {}
        return JSONResponse(body, status_code=self.status, headers={"Cache-Control": "no-store"} | challenge)


async def read_form(request: Request) -> dict[str, str]:
    """Return the urlencoded body; Starlette's own reader would want python-multipart."""
    return dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))


def read_basic(header: str | None) -> tuple[str, str] | None:
    """Return client id and secret of a Basic header, as sent, or ``None`` where there is none."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, separator, secret = b64decode(encoded, validate=True).decode().partition(":")
    except (Base64Error, UnicodeDecodeError):
        return None
    return (client_id, secret) if separator else None


def read_bearer(header: str | None) -> str | None:
    """Return the token of a Bearer header, or ``None`` where there is none."""
    scheme, _, token = (header or "").partition(" ")
    return token if scheme.lower() == "bearer" and token else None


def with_query(url: str, params: Mapping[str, str]) -> str:
    """Return the URL with these parameters added to whatever query it has."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True) + list(params.items())
    return urlunsplit(parts._replace(query=urlencode(query)))
