"""TokenSet and Secret: tokens go in as text, come out by reveal(), and show nowhere else."""

import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import accountlink
from accountlink import InvalidCredentials, Secret, TokenSet
from accountlink.values.credentials import join_scopes, split_scopes

ACCESS = "access-canary-1f0c"
REFRESH = "refresh-canary-2e9b"
ID = "idtoken-canary-3d8a"
CANARIES = (ACCESS, REFRESH, ID)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOKENS = TokenSet(
    access_token=ACCESS,
    refresh_token=REFRESH,
    id_token=ID,
    expires_at=NOW,
    scopes={"openid", "email"},
    token_type="DPoP",
)


def refusal(**fields: Any) -> InvalidCredentials:
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet(**({"access_token": ACCESS} | fields))
    return caught.value


def leaks(shown: object) -> list[str]:
    return [canary for canary in CANARIES if canary in str(shown) or canary in repr(shown)]


# -- secrecy --------------------------------------------------------------------------------------------------------


def _logged(value: object) -> str:
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "%s %r", (value, value), None)
    return logging.Formatter().format(record)


def _with_locals(value: object) -> str:
    def fail(tokens: object) -> None:
        raise RuntimeError(f"failed with {tokens}")

    with pytest.raises(RuntimeError) as caught:
        fail(value)
    return "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())


CHANNELS: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "padded format": lambda value: f"{value!s:>80}{value!r}",
    "percent": lambda value: "%s" % (value,),  # noqa: UP031  # as an old logging call does it
    "in a list": lambda value: [value],
    "in a dict": lambda value: f"{ {'tokens': value} }",
    "json default=str": lambda value: json.dumps({"tokens": value}, default=str),
    "json default=repr": lambda value: json.dumps(value, default=repr),
    "log record": _logged,
    "traceback with locals": _with_locals,
    # Not __weakref__: up to Python 3.11.2 a class with slots has one that does not apply to it.
    "dir": lambda value: [repr(getattr(value, name)) for name in dir(value) if name != "__weakref__"],
    "copy": lambda value: repr(copy.copy(value)),
    "deep copy": lambda value: repr(copy.deepcopy(value)),
    "hash": hash,
}


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("value", [TOKENS, TOKENS.access_token], ids=["TokenSet", "Secret"])
def test_a_secret_leaves_by_no_channel(value: object, channel: Callable[[Any], object]) -> None:
    """A28: no representation of a token set, or of one of its secrets, shows a token."""
    assert [] == leaks(channel(value))


FIELD_CHANNELS: dict[str, Callable[[TokenSet], object]] = {
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "replace": lambda tokens: [getattr(tokens, field.name) for field in dataclasses.fields(tokens)],
    "json of asdict": lambda tokens: json.dumps(dataclasses.asdict(tokens), default=str),
    "state": lambda tokens: cast("Any", tokens).__getstate__(),
    "slots": lambda tokens: [getattr(tokens, name) for name in cast("Any", type(tokens)).__slots__],
}


@pytest.mark.parametrize("channel", FIELD_CHANNELS.values(), ids=FIELD_CHANNELS)
def test_a_field_is_a_concealed_secret(channel: Callable[[TokenSet], object]) -> None:
    """A28: the parts of a token set are secrets, not texts."""
    assert [] == leaks(channel(TOKENS))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [TOKENS, TOKENS.access_token], ids=["TokenSet", "Secret"])
def test_a_secret_is_not_pickled(value: object, protocol: int) -> None:
    """A28: a session store or a task queue that pickles gets an error that says what to do, and no token."""
    with pytest.raises(TypeError) as caught:
        pickle.dumps(value, protocol)
    assert [] == leaks(caught.value)


@pytest.mark.parametrize("value", [TOKENS, TOKENS.access_token], ids=["TokenSet", "Secret"])
def test_a_secret_has_no_dict(value: object) -> None:
    """A28: an encoder that falls back on ``vars`` finds nothing."""
    assert not hasattr(value, "__dict__")
    with pytest.raises(TypeError):
        vars(value)
    with pytest.raises(TypeError):
        json.dumps(value, default=vars)


def test_a_secret_is_no_text_and_no_sequence() -> None:
    """A28: a secret cannot be joined, iterated or measured by mistake."""
    secret = cast("Any", TOKENS.access_token)
    for use in (iter, len, "".join, lambda s: "Bearer " + s, lambda s: s[0]):
        with pytest.raises(TypeError) as caught:
            use(secret)
        assert [] == leaks(caught.value)


def test_a_secret_is_revealed_on_purpose() -> None:
    """One method, and nothing else, gives the text."""
    assert TOKENS.refresh_token is not None
    assert TOKENS.id_token is not None
    assert CANARIES == (TOKENS.access_token.reveal(), TOKENS.refresh_token.reveal(), TOKENS.id_token.reveal())


def test_secrets_compare_by_their_text_and_with_secrets_only() -> None:
    """Equal texts are equal secrets; a secret is never equal to a text, in either direction."""
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("é") != Secret("e\u0301")
    assert (False, False) == (Secret("a") == "a", "a" == Secret("a"))
    assert hash("a") != hash(Secret("a"))


def test_a_secret_cannot_be_changed() -> None:
    """A28: neither the text nor the way to it can be replaced, and no attribute added."""
    for name in ("reveal", "text"):
        with pytest.raises(AttributeError) as caught:
            setattr(TOKENS.access_token, name, lambda: "other")
        assert [] == leaks(caught.value)
    assert ACCESS == TOKENS.access_token.reveal()


def test_a_copied_secret_is_the_same_secret() -> None:
    """``asdict`` copies deeply, and still finds something that reveals."""
    assert TOKENS == copy.copy(TOKENS) == copy.deepcopy(TOKENS)
    assert ACCESS == dataclasses.asdict(TOKENS)["access_token"].reveal()


# -- the constructor ------------------------------------------------------------------------------------------------


def test_a_token_set_holds_what_it_was_given() -> None:
    """Everything that is no secret can be read as it is."""
    assert (NOW, frozenset({"openid", "email"}), "DPoP") == (TOKENS.expires_at, TOKENS.scopes, TOKENS.token_type)


def test_a_token_set_needs_an_access_token_alone() -> None:
    """A value that the provider did not send is absent, not guessed."""
    tokens = TokenSet(access_token=ACCESS)
    assert (None, None, frozenset(), "Bearer", None) == (
        tokens.refresh_token,
        tokens.expires_at,
        tokens.scopes,
        tokens.token_type,
        tokens.id_token,
    )


def test_a_token_set_is_frozen_and_keyword_only() -> None:
    """Tokens cannot be swapped by position, nor replaced."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        TOKENS.access_token = Secret("other")  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        cast("Any", TokenSet)(ACCESS, REFRESH)


def test_token_sets_compare_by_value() -> None:
    """Two sets with the same tokens are equal, and differ as soon as one token does."""
    assert TokenSet(access_token=ACCESS) == TokenSet(access_token=ACCESS)
    assert hash(TokenSet(access_token=ACCESS)) == hash(TokenSet(access_token=ACCESS))
    assert TokenSet(access_token=ACCESS) != TokenSet(access_token=REFRESH)


UNUSABLE: dict[str, tuple[object, str]] = {
    "empty": ("", "is empty"),
    "NUL": (f"{ACCESS}\0", "contains a character that no text column can hold"),
    "lone surrogate": (f"{ACCESS}\ud800", "contains a character that no text column can hold"),
    "lone low surrogate": (f"{ACCESS}\udfff", "contains a character that no text column can hold"),
    "bytes": (ACCESS.encode(), "is bytes, not text"),
    "a number": (7, "is int, not text"),
    "a secret": (Secret(ACCESS), "is Secret, not text"),
}


@pytest.mark.parametrize("field", ["access_token", "refresh_token", "id_token"])
@pytest.mark.parametrize(("token", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_token_is_refused(field: str, token: object, problem: str) -> None:
    """F21: what no column can hold is refused before any SQL, by its field's name and without its text."""
    error = refusal(**{field: token})
    assert (field, problem, "invalid_credentials") == (error.field, error.problem, error.code)
    assert [] == leaks(error)


def test_a_missing_access_token_is_refused() -> None:
    """F21: there are no credentials without an access token."""
    assert ("access_token", "is NoneType, not text") == ((e := refusal(access_token=None)).field, e.problem)


@pytest.mark.parametrize("length", [8_735, 10_000, 1_000_000])
def test_a_large_token_is_kept(length: int) -> None:
    """F23: access tokens that are padded JWTs arrive whole."""
    assert "x" * length == TokenSet(access_token="x" * length).access_token.reveal()


@pytest.mark.parametrize("text", ["ünïcode", "a b", "line\nbreak", "\U0001d538", "'; DROP TABLE links; --"])
def test_a_token_is_not_judged_by_its_letters(text: str) -> None:
    """F23: a token is opaque: whatever a text column can hold is kept unchanged."""
    assert text == TokenSet(access_token=text).access_token.reveal()


def test_a_naive_moment_is_refused() -> None:
    """F20: a moment without a zone is refused, for it would be another moment on another machine."""
    error = refusal(expires_at=datetime(2026, 1, 1))  # noqa: DTZ001  # the point
    assert ("expires_at", "is a naive datetime") == (error.field, error.problem)
    assert "aware" in str(error)


def test_an_aware_moment_of_any_zone_is_kept() -> None:
    """F20: the zone does not matter as long as there is one."""
    there = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert NOW == TokenSet(access_token=ACCESS, expires_at=there).expires_at


@pytest.mark.parametrize("moment", [1_700_000_000, 1.7e9, "2026-01-01T00:00:00Z", NOW.date()], ids=repr)
def test_what_is_no_moment_is_refused(moment: object) -> None:
    """F20: ``expires_at`` in seconds, as token responses have it, is refused with the typed error."""
    error = refusal(expires_at=moment)
    assert ("expires_at", "invalid_credentials") == (error.field, error.code)
    assert [] == leaks(error)


@pytest.mark.parametrize(
    "scopes", ["openid email", {""}, {"a b"}, {"a\0"}, {"a\nb"}, {"a\ud800"}, {7}, {None}, None, 7], ids=repr
)
def test_scopes_are_a_set_of_scope_tokens(scopes: object) -> None:
    """One text is refused rather than read as a set of letters, and so is what no scope can be."""
    error = refusal(scopes=scopes)
    assert ("scopes", "invalid_credentials") == (error.field, error.code)


def test_scopes_become_one_frozen_set() -> None:
    """However scopes are given, equal ones are equal."""
    assert frozenset({"a", "b"}) == TokenSet(access_token=ACCESS, scopes=["b", "a", "b"]).scopes


def test_scopes_that_can_be_read_once_are_read_once() -> None:
    """Scopes as granted: an iterator is refused or read whole, and never found empty after it was checked."""
    try:
        tokens = TokenSet(access_token=ACCESS, scopes=cast("Any", iter(["a", "b"])))
    except InvalidCredentials as error:
        assert "scopes" == error.field  # noqa: PT017  # one of two answers
        return
    assert frozenset({"a", "b"}) == tokens.scopes


def test_a_refused_token_set_leaves_no_token_in_its_own_frames() -> None:
    """A28: a traceback with locals, as error trackers keep it, shows no token of a call that another field failed."""
    error = refusal(refresh_token=REFRESH, id_token=ID, expires_at=datetime(2026, 1, 1))  # noqa: DTZ001  # the point
    package = str(Path(accountlink.__file__).parent)
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in captured.stack if frame.filename.startswith(package)]
    assert frames
    assert [] == [canary for frame in frames for canary in leaks(frame.locals)]


# -- from_response --------------------------------------------------------------------------------------------------


def from_response(**response: Any) -> TokenSet:
    return TokenSet.from_response({"access_token": ACCESS} | response, received_at=NOW)


def test_a_whole_response_is_read() -> None:
    """RFC 6749, section 5.1: each member goes to its field, and none is shown."""
    tokens = from_response(
        refresh_token=REFRESH, id_token=ID, token_type="DPoP", expires_in=3600, scope="openid email", extra="ignored"
    )
    assert tokens == TokenSet(
        access_token=ACCESS,
        refresh_token=REFRESH,
        id_token=ID,
        token_type="DPoP",
        expires_at=NOW + timedelta(hours=1),
        scopes={"openid", "email"},
    )


@pytest.mark.parametrize(
    ("members", "expires_at"),
    [
        ({}, None),
        ({"expires_in": None, "expires_at": None}, None),
        ({"expires_in": 3600}, NOW + timedelta(hours=1)),
        ({"expires_in": "3600"}, NOW + timedelta(hours=1)),
        ({"expires_in": 0}, NOW),
        ({"expires_in": 1.5}, NOW + timedelta(seconds=1.5)),
        ({"expires_at": 1_767_323_045}, NOW),
        ({"expires_at": 1_767_323_045.0}, NOW),
        ({"expires_at": "1767323045"}, NOW),
        ({"expires_at": 1_767_323_045, "expires_in": 3600}, NOW),
        ({"expires_at": None, "expires_in": 3600}, NOW + timedelta(hours=1)),
    ],
    ids=repr,
)
def test_the_end_of_a_token_is_read(members: dict[str, Any], expires_at: datetime | None) -> None:
    """F20: ``expires_in`` counts from the arrival that the caller names; ``expires_at``, in seconds, wins over it."""
    assert expires_at == from_response(**members).expires_at


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("openid email", {"openid", "email"}),
        ("repo,user", {"repo", "user"}),
        ("repo, user", {"repo", "user"}),
        ("  a   b ", {"a", "b"}),
        ("a", {"a"}),
        ("", set()),
        (None, set()),
        ("https://www.googleapis.com/auth/calendar", {"https://www.googleapis.com/auth/calendar"}),
    ],
)
def test_scopes_are_split_at_spaces_and_commas(scope: str | None, scopes: set[str]) -> None:
    """RFC 6749 separates scopes by spaces, GitHub by commas: both are read."""
    assert scopes == from_response(scope=scope).scopes


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_member_is_none(nothing: str | None) -> None:
    """An empty refresh token is no refresh token, and so does not replace the stored one."""
    tokens = from_response(refresh_token=nothing, id_token=nothing, token_type=nothing)
    assert (None, None, "Bearer") == (tokens.refresh_token, tokens.id_token, tokens.token_type)


@pytest.mark.parametrize("response", [{}, {"access_token": None}, {"access_token": ""}, {"error": "invalid_grant"}])
def test_a_response_without_a_token_is_refused(response: dict[str, Any]) -> None:
    """A provider's error is never read as credentials."""
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet.from_response(response, received_at=NOW)
    assert "access_token" == caught.value.field


@pytest.mark.parametrize(
    ("field", "members"),
    [
        ("expires_in", {"expires_in": "soon"}),
        ("expires_in", {"expires_in": ""}),
        ("expires_in", {"expires_in": float("nan")}),
        ("expires_in", {"expires_in": float("inf")}),
        ("expires_in", {"expires_in": 1e30}),
        ("expires_in", {"expires_in": [3600]}),
        ("expires_at", {"expires_at": "2030-01-01T00:00:00Z"}),
        ("expires_at", {"expires_at": 1.7e15}),
        ("expires_at", {"expires_at": -1e30}),
        ("expires_at", {"expires_at": {}}),
        ("scope", {"scope": 7}),
    ],
    ids=repr,
)
def test_a_malformed_response_is_refused(field: str, members: dict[str, Any]) -> None:
    """A provider that answers nonsense gets the typed error, and no ValueError out of the middle of a callback."""
    with pytest.raises(InvalidCredentials) as caught:
        from_response(**members)
    assert field.rstrip("s").partition("_in")[0] in caught.value.field
    assert [] == leaks(caught.value)


def test_a_refused_response_leaves_no_token_in_its_own_frames() -> None:
    """A28: a traceback with locals shows no token of a response whose end could not be read."""
    with pytest.raises(InvalidCredentials) as caught:
        from_response(refresh_token=REFRESH, expires_in="soon")
    package = str(Path(accountlink.__file__).parent)
    captured = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in captured.stack if frame.filename.startswith(package)]
    assert frames
    assert [] == [canary for frame in frames for canary in leaks(frame.locals)]


def test_a_naive_arrival_is_refused() -> None:
    """F20: an arrival without a zone would make an end without one."""
    with pytest.raises(InvalidCredentials) as caught:
        TokenSet.from_response({"access_token": ACCESS, "expires_in": 1}, received_at=datetime(2026, 1, 1))  # noqa: DTZ001
    assert "expires_at" == caught.value.field


# -- scopes as stored -----------------------------------------------------------------------------------------------

SCOPE_TOKEN = st.text(st.sampled_from([chr(c) for c in range(0x21, 0x7F) if c not in {0x22, 0x5C}]), min_size=1)


@given(st.frozensets(SCOPE_TOKEN, max_size=5))
def test_scopes_come_back_as_they_were_stored(scopes: frozenset[str]) -> None:
    """Scopes as granted: whatever a token set accepts is read back the same from one text column."""
    try:
        accepted = TokenSet(access_token=ACCESS, scopes=scopes).scopes
    except InvalidCredentials:
        assume(False)
    assert scopes == split_scopes(join_scopes(accepted))


def test_scopes_are_stored_sorted() -> None:
    """Equal scopes are equal texts, so that an update that changes nothing changes nothing."""
    assert "a b c" == join_scopes({"c", "a", "b"})


# -- the lifetime of a refresh token, and the names of further members ------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"refresh_token": "refresh", "lasts": 60}, NOW + timedelta(seconds=60)),
        ({"refresh_token": "refresh", "lasts": "60"}, NOW + timedelta(seconds=60)),
        ({"refresh_token": "refresh", "lasts": 0}, None),
        ({"refresh_token": "refresh", "lasts": "0"}, None),
        ({"refresh_token": "refresh", "lasts": None}, None),
        ({"refresh_token": "refresh"}, None),
        ({"lasts": 60}, None),
    ],
)
def test_when_a_refresh_token_expires(response: dict[str, object], expected: datetime | None) -> None:
    """A provider that tells a lifetime, and sends no new refresh token with it, makes no response unusable."""
    found = TokenSet.from_response(
        {"access_token": ACCESS} | response, received_at=NOW, refresh_expires_in="lasts", client="web"
    )
    assert expected == found.refresh_expires_at


def test_one_text_is_not_a_list_of_names() -> None:
    """Each letter would be looked up as a name, and nothing be found."""
    with pytest.raises(InvalidCredentials) as raised:
        TokenSet.from_response({"access_token": ACCESS, "instance_url": "u"}, received_at=NOW, extra="instance_url")
    assert "extra" == raised.value.field
