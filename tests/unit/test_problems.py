"""What an API client is told of each error."""

from __future__ import annotations

import inspect
from typing import Final

import pytest

from accountlink import AccountLinkError, errors
from accountlink.web import Impersonated
from accountlink.web.asked import Asked, redirect
from accountlink.web.problems import PROBLEMS, answer_problem, problem_of
from accountlink.web.routes import ROUTES

CLASSES: Final = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AccountLinkError)]


class Own(errors.FlowExpired):
    """Derived by an application."""

    code = "own"


def test_each_error_has_a_status_and_a_title() -> None:
    """No error is added without a status; a title is a sentence, and neither names nor quotes anything."""
    assert set(CLASSES) == set(PROBLEMS)
    assert {status for status, _ in PROBLEMS.values()} <= {400, 401, 403, 404, 409, 410, 415, 500, 502, 503}
    assert [] == [title for _, title in PROBLEMS.values() if not title.endswith(".") or "{" in title]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.code)
def test_a_problem_holds_nothing_of_the_error_but_its_code(kind: type[AccountLinkError]) -> None:
    """Type, title, status, code; no text of the error."""
    error = kind.__new__(kind)
    error.args = ("canary",)
    error.__dict__["field"] = error.__dict__["provider"] = "canary"
    answer = answer_problem(error)
    assert {"type", "title", "status", "code"} == set(problem_of(kind))
    assert (kind.code, f"urn:accountlink:{kind.code}") == (problem_of(kind)["code"], problem_of(kind)["type"])
    assert answer.status == problem_of(kind)["status"]
    assert b"canary" not in answer.body


def test_an_applications_own_error_has_its_parents_status() -> None:
    """A subclass keeps its own code."""
    assert (410, "own") == (problem_of(Own)["status"], problem_of(Own)["code"])


def test_no_route_names_an_error_twice_by_another_name() -> None:
    """Each route's errors are classes with a status of their own."""
    assert [] == [kind for route in ROUTES for kind in route.errors if kind not in PROBLEMS]


def test_a_request_and_an_answer_show_nothing_in_their_repr() -> None:
    """Cookies, states and tokens are in requests, and Set-Cookie is in answers."""
    asked = Asked[int](
        headers={"cookie": "canary"}, cookies={"a": "canary"}, query=[("state", "canary")], path={"ticket": "canary"},
        body=b"canary", user=1, label="canary",
    )  # fmt: skip
    assert "canary" not in f"{asked!r}{redirect('canary', headers={'set-cookie': 'canary'})!r}"


def test_a_typed_call_of_a_generic_value_works() -> None:
    """An application may say whose id it is: ``Impersonated[int](user_id=1)``."""
    assert Impersonated(user_id=1) == Impersonated[int](user_id=1)
