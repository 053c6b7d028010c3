"""Answers the page's own requests: JSON from a signed-in user, and an error by its code."""

import logging
from typing import Final

from sqlalchemy import exc as sa_errors
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from accountlink import AccountLinkError, StoreBusy, StoreUnavailable
from accountlink.cli.demo.backend import Endpoint, signed_in
from accountlink.cli.demo.sealed import CannotMove

NO_STORE: Final = {"Cache-Control": "no-store"}

log = logging.getLogger(__name__)


def posted(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that takes JSON from a signed-in user, and answers an error of accountlink by its code.

    No form of another site can send JSON, and no script of one without the consent of this application (CORS).
    """

    async def checked(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            return refusal("unsupported_media_type", status=415)
        if signed_in(request) is None:
            return refusal("not_signed_in", status=401)
        return await answered(endpoint)(request)

    return checked


def answered(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint that answers an error by its code."""

    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except CannotMove:
            return refusal("cannot_move", status=409)
        except (StoreBusy, StoreUnavailable) as error:
            return refusal(error.code, status=503)
        except AccountLinkError as error:
            return refusal(error.code, status=409)
        except sa_errors.DataError:
            return refusal("invalid_request", status=400)
        except sa_errors.SQLAlchemyError as error:
            log.warning("the database did not answer as it should: %s; --fresh makes new tables", type(error).__name__)
            return refusal("database", status=503)
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):  # the body is another one
            return refusal("invalid_request", status=400)

    return answering


def refusal(code: str, *, status: int) -> Response:
    """Return an answer that says why not."""
    return JSONResponse({"error": code}, status_code=status, headers=NO_STORE)
