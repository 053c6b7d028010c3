"""Describe the routes for OpenAPI: what each takes, and every answer that it gives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from accountlink.web.checks import OF_THE_PROVIDER
from accountlink.web.fields import FORM, JSON
from accountlink.web.problems import PROBLEM, problem_of
from accountlink.web.routes import LinkRoute

Schema = Mapping[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_URL: Final[Schema] = {"type": "string", "format": "uri"}
_MOMENT_OR_NULL: Final[Schema] = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}
_SCOPES: Final[Schema] = {"type": "array", "items": {"type": "string"}}
_ID: Final[Schema] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "description": "The id of the linked account. Hand it back as it came.",
}


def _object(properties: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": [*properties]}


_BEGUN: Final = _object({"url": _URL})
_CHANGED_LINK: Final[Mapping[str, Schema]] = {
    "connection": {"type": "string", "enum": ["success", "unlinked"]},
    "change": {
        "type": "string",
        "enum": ["created", "updated", "restored", "transferred", "already_owner", "unlinked"],
    },
    "id": _ID,
    "provider": _TEXT,
    "return_to": {"anyOf": [_URL, {"type": "null"}]},
}
_CHANGED: Final = _object(_CHANGED_LINK)
_TRANSFERRED: Final = _object(_CHANGED_LINK, optional={
    "has_credentials": {
        "type": "boolean",
        "description": "Only with `transferred`: whether the link has the user's tokens. If it has none, the user has "
        "to connect the account again before your application can use it.",
    },
})  # fmt: skip
_LISTED: Final[Schema] = {
    "type": "array",
    "items": _object({
        "id": _ID,
        "provider": _TEXT,
        "scopes": {"anyOf": [_SCOPES, {"type": "null"}]},
        "created_at": _MOMENT_OR_NULL,
        "updated_at": _MOMENT_OR_NULL,
    }, optional={
        "health": {
            "type": "string",
            "enum": ["ok", "failing", "needs_consent"],
            "description": "Only where the application renews tokens. With `needs_consent` let the user reconnect the "
            "account: `expect` names it.",
        },
    }),
}  # fmt: skip
_OFFERED: Final = _object({"provider": _TEXT, "scopes": _SCOPES, "reconnects": {"type": "boolean"}})

_ANSWERS: Final[Mapping[str, tuple[str, Schema] | None]] = {
    "accounts": ("The user's linked accounts, the oldest first.", _LISTED),
    "connect": ("The address at the provider; send the browser there.", _BEGUN),
    "callback": ("The account is linked.", _CHANGED),
    "bounce": None,
    "finish": ("The account is linked.", _CHANGED),
    "transfer": ("The account is the user's.", _TRANSFERRED),
    "ticket": ("What the ticket is for: a page for a browser.", _OFFERED),
    "use_ticket": ("The address at the provider; send the browser there.", _BEGUN),
    "unlink": ("The account is disconnected.", _CHANGED),
    "remove": ("The account is disconnected.", _CHANGED),
}
"""The JSON answer of each route; ``None`` for one that redirects only."""
_REDIRECTS: Final = {
    "accounts": "For a browser: to the page, with the error's code in its query.",
    "connect": "For a browser: to the provider; or to the page, with the error's code in its query.",
    "callback": "For a browser: to the return target or the page, with the result in the query. After a conflict the "
    "fragment has the transfer token.",
    "bounce": "To the callback by GET, with the same parameters; or to the page, with the error's code in its query.",
    "transfer": "For a browser: to the page, with the result in the query.",
    "ticket": "For a browser: to the page, with the error's code in its query.",
    "use_ticket": "For a browser: to the provider; or to the page, with the error's code in its query.",
    "unlink": "For a browser: to the page, with the result in the query.",
}
"""Where each route redirects to; the others answer in JSON only."""
_OF_THE_PROVIDER: Final[Mapping[str, Schema]] = {
    name: {"type": "string", "description": "The provider's parameter of this name."} for name in OF_THE_PROVIDER
}
_FIELDS: Final[Mapping[str, Schema]] = {
    "connect": _object({}, optional={
        "return_to": {"type": "string", "description": "A path, or one of the allowed URLs, to go to in the end."},
        "expect": {"type": "string", "description": "The id of the account to reconnect."},
        "scopes": {"type": "string", "description": "Scopes to ask for as well, with blanks between."},
    }),
    "finish": _object({}, optional=_OF_THE_PROVIDER),
    "bounce": _object({}, optional=_OF_THE_PROVIDER),
    "transfer": _object({"transfer_token": {"type": "string", "description": "From the conflict, unchanged."}}),
}  # fmt: skip
"""The fields of a form."""
_IN_JSON: Final[Mapping[str, Schema]] = {
    "expect": {**_ID, "description": "The id of the account to reconnect."},
    "scopes": {"anyOf": [_TEXT, _SCOPES], "description": "Scopes to ask for as well: a list, or a text with blanks."},
}
"""The fields that JSON may have in another form as well."""
_IN_PATH: Final = {
    "provider": "The provider's slug.",
    "link_id": "The id of the linked account.",
    "ticket": "The ticket.",
}


def described(route: LinkRoute, slugs: Sequence[str]) -> dict[str, Any]:
    """Return what FastAPI's ``add_api_route`` takes to describe a route.

    Args:
        route: The route.
        slugs: The slugs of the providers.
    """
    form = _FIELDS.get(route.name)
    extra: dict[str, Any] = {"parameters": _parameters(route, slugs)}
    if form is not None:
        in_json = {name: _IN_JSON.get(name, field) for name, field in form["properties"].items()}
        only_texts = {**form, "additionalProperties": _TEXT}  # which are ignored; a field that comes twice is not
        content = {FORM: {"schema": only_texts}, JSON: {"schema": {**form, "properties": in_json}}}
        extra["requestBody"] = {"required": bool(form["required"]), "content": content}
    return {
        "summary": (route.run.__doc__ or "").partition("\n")[0],
        "description": "",
        "status_code": 303 if _ANSWERS[route.name] is None else 200,
        "responses": _responses(route),
        "openapi_extra": extra,
    }


def _parameters(route: LinkRoute, slugs: Sequence[str]) -> list[dict[str, Any]]:
    """Describe the path and the query. Neither is FastAPI's to check: no answer of the routes has status 422."""
    found = []
    for name in re.findall(r"{(\w+)}", route.path):
        schema = {"type": "string", "enum": [*slugs]} if name == "provider" else {"type": "string"}
        found.append({"name": name, "in": "path", "required": True, "description": _IN_PATH[name], "schema": schema})
    query = _OF_THE_PROVIDER if route.name == "callback" else {}
    return found + [
        {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in query.items()
    ]


def _responses(route: LinkRoute) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {}
    answer = _ANSWERS[route.name]
    if answer is not None:
        description, schema = answer
        page = {"text/html": {"schema": _TEXT}} if route.name == "ticket" else {}
        responses[200] = {"description": description, "content": {JSON: {"schema": schema}, **page}}
    if route.name in _REDIRECTS:
        to = {"Location": {"description": "The address.", "schema": _URL}}
        responses[303] = {"description": _REDIRECTS[route.name], "headers": to}
    responses.update(_refusals(route))
    return responses


def _refusals(route: LinkRoute) -> dict[int | str, dict[str, Any]]:
    """Describe the errors by their status, each with the codes that it can have."""
    problems: dict[int, list[dict[str, Any]]] = {}
    for kind in dict.fromkeys(route.errors):
        problem = problem_of(kind)
        problems.setdefault(problem["status"], []).append(problem)
    if route.name in {"callback", "finish"}:
        problems.setdefault(409, []).append({"code": "ownership_conflict", "title": "Another user has this account."})
    return {
        status: {
            "description": " ".join(f"`{problem['code']}`: {problem['title']}" for problem in found),
            "content": {PROBLEM: {"schema": _problem(status, [problem["code"] for problem in found])}},
        }
        for status, found in sorted(problems.items())
    }


def _problem(status: int, codes: Sequence[str]) -> Schema:
    always = {
        "type": {"type": "string", "format": "uri"},
        "title": _TEXT,
        "status": {"type": "integer", "enum": [status]},
        "code": {"type": "string", "enum": [*codes]},
    }
    conflicts: dict[str, Schema] = {}
    if "ownership_conflict" in codes:
        conflicts = {
            "provider": _TEXT,
            "transfer_token": {"type": "string", "description": "Only with `ownership_conflict`."},
            "expires_at": {"type": "string", "format": "date-time"},
        }
    return _object(always, optional=conflicts)
