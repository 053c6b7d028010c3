"""Keys of a vault: their forms, their ids, their sources, and that none of them shows."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import secrets
import traceback
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink import ConfigurationError
from accountlink.values.base64url import decoded, encoded
from accountlink.vault.keys import GivenKeys, KeySource, VaultKey, current_key, key_of

RAW: Final = b"key-canary-0123456789abcdefghijk"
TEXT: Final = encoded(RAW)
KEY: Final = VaultKey(secret=RAW)
CLASH: Final = [bytes(26) + bytes.fromhex(last) for last in ("f0a9ef895ea5", "63be4d554b9c")]
"""Two keys with one id, found by a search over 2**24 keys."""


def leaks(shown: object) -> list[str]:
    return [form for form in ("key-canary", TEXT, RAW.hex(), TEXT[:12]) if form in f"{shown!s}{shown!r}"]


def refusal(make: Callable[[], object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        make()
    error = caught.value
    assert (None, None, {}) == (error.__cause__, error.__context__, vars(error))
    return error


# -- forms -------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32))
def test_bytes_and_their_text_are_one_key(raw: bytes) -> None:
    """A key comes as 32 bytes or as their text, and has one id in both forms."""
    one, other = VaultKey(secret=raw), VaultKey(secret=encoded(raw))
    assert (raw, raw, one.id) == (one.secret.reveal(), other.secret.reveal(), other.id)
    assert (43, 8) == (len(encoded(raw)), len(one.id))


def test_python_makes_keys() -> None:
    """The command that the refusals name makes a key."""
    assert 32 == len(VaultKey(secret=secrets.token_urlsafe(32)).secret.reveal())


@pytest.mark.parametrize(
    "secret",
    [
        b"", RAW[:-1], RAW + b"x", RAW * 2, TEXT.encode(), bytearray(RAW), RAW.hex(), "", TEXT[:-1], TEXT + "A",
        TEXT + "=", f" {TEXT}", f"{TEXT}\n", TEXT[:-1] + "l", f"+{TEXT[1:]}", f"/{TEXT[1:]}", f"é{TEXT[1:]}",
        f"\ud800{TEXT[1:]}", f"\0{TEXT[1:]}", None, 32, [RAW], encoded(RAW + RAW[:16]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_key_is_refused(secret: Any) -> None:
    """A key has exactly 32 bytes and one text; the refusal shows none of it and says how to make one."""
    error = refusal(lambda: VaultKey(secret=secret))
    assert "token_urlsafe(32)" in str(error)
    assert [] == leaks(error)


@given(st.text(max_size=60) | st.text("ABab01-_=+/ ", max_size=60))
def test_a_text_stands_for_bytes_only_in_one_form(text: str) -> None:
    """No second text of some bytes is read: no padding, white space, other alphabet or unused bits."""
    raw = decoded(text)
    assert raw is None or encoded(raw) == text


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_an_id_that_belongs_to_the_key_may_be_given() -> None:
    """A source that stores ids beside wrapped keys learns of a wrong key at once."""
    assert KEY.id == VaultKey(id=KEY.id, secret=TEXT).id
    error = refusal(lambda: VaultKey(id="AAAAAAAA", secret=RAW))
    assert KEY.id in str(error)
    assert [] == leaks(error)


# -- secrecy -----------------------------------------------------------------------------------------------------------

CHANNELS: Final[dict[str, Callable[[VaultKey], object]]] = {
    "repr": repr,
    "str": str,
    "format": lambda key: f"{key}{key!r}{key:}",
    "a list": lambda key: [key],
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "fields": lambda key: [getattr(key, field.name) for field in dataclasses.fields(key)],
    "slots": lambda key: [getattr(key, name) for name in ("id", "secret")],
    "json": lambda key: json.dumps(key, default=str),
    "copy": lambda key: repr([copy.copy(key), copy.deepcopy(key)]),
    "given keys": lambda key: [GivenKeys([key]), vars(GivenKeys([key]))],
    "hash": hash,
}


@pytest.mark.parametrize("channel", CHANNELS.values(), ids=CHANNELS)
def test_a_key_leaves_by_no_channel(channel: Callable[[VaultKey], object]) -> None:
    """A28: no representation of a key shows it."""
    assert [] == leaks(channel(KEY))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [KEY, KEY.secret, GivenKeys([KEY])], ids=["key", "secret", "source"])
def test_a_key_is_not_pickled(value: object, protocol: int) -> None:
    """A28: a task queue that pickles gets an error without the key."""
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)) as caught:
        pickle.dumps(value, protocol)
    assert [] == leaks(caught.value)


def test_a_key_cannot_be_changed() -> None:
    """An id never stands beside another key than its own."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        KEY.id = "AAAAAAAA"  # type: ignore[misc]  # what is under test


@pytest.mark.parametrize(
    "make",
    [
        lambda: VaultKey(secret=RAW + b"!"),
        lambda: VaultKey(secret=TEXT + "="),
        lambda: VaultKey(id="AAAAAAAA", secret=RAW),
        lambda: GivenKeys([RAW, RAW]),
        lambda: GivenKeys([TEXT + "="]),
        lambda: GivenKeys(TEXT),
    ],
    ids=["long", "padded", "another id", "twice", "one of a list", "no list"],
)  # fmt: skip
def test_a_traceback_with_locals_shows_no_key(make: Callable[[], object]) -> None:
    """A28: an error tracker that records the locals of accountlink's frames sees no key."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in shown.stack if "/accountlink/vault/" in frame.filename.replace("\\", "/")]
    assert ours
    assert [] == leaks([frame.locals for frame in ours])


# -- sources -----------------------------------------------------------------------------------------------------------


async def test_the_newest_key_seals_and_each_is_found() -> None:
    """The first of the given keys is the current one; each is found by its id, and no other id finds anything."""
    newest, middle, oldest = (VaultKey(secret=bytes([n]) * 32) for n in range(3))
    source = GivenKeys([newest, middle.secret.reveal(), encoded(oldest.secret.reveal())])
    assert newest is await current_key(source)
    assert [newest.id, middle.id, oldest.id] == [
        found.id for key in (newest, middle, oldest) if (found := await key_of(source, key.id))
    ]
    assert None is await key_of(source, KEY.id)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], "at least one key"),
        (RAW, "takes a list"),
        (TEXT, "takes a list"),
        (KEY, "takes a list"),
        (None, "takes a list"),
        (7, "takes a list"),
        ([RAW, TEXT], "twice"),
        ([KEY, RAW], "twice"),
        ([RAW, bytes(32), KEY], "twice"),
        (CLASH, "two keys with the id"),
        ([RAW, None], "exactly 32 random bytes"),
        ([RAW, "short"], "exactly 32 random bytes"),
    ],
)
def test_keys_that_are_none_or_not_apart_are_refused(keys: Any, told: str) -> None:
    """A list of keys is refused if it is none, is empty, or has one key or one id twice; the refusal shows no key."""
    error = refusal(lambda: GivenKeys(keys))
    assert told in str(error)
    assert [] == leaks(error)


def test_two_keys_can_clash() -> None:
    """The two keys of the test above differ, and their ids are equal."""
    one, other = (VaultKey(secret=raw) for raw in CLASH)
    assert (True, True) == (CLASH[0] != CLASH[1], one.id == other.id)


class Answering:
    """A source that answers each question with what it was given, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def current(self) -> Any:
        return await self.get("")

    async def get(self, key_id: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_what_a_source_raises_reaches_the_caller() -> None:
    """A key service that is down is neither a wrong configuration nor an unreadable row."""
    source: KeySource = Answering(ConnectionError("the key service is down"))
    for asked in (current_key(source), key_of(source, KEY.id)):
        with pytest.raises(ConnectionError, match="the key service is down"):
            await asked


@pytest.mark.parametrize("answer", [RAW, TEXT, 7, [KEY]], ids=["bytes", "text", "number", "list"])
async def test_a_source_that_returns_no_key_is_refused(answer: Any) -> None:
    """The refusal names the method and the type, and shows no key."""
    source = Answering(answer)
    for asked, method in ((current_key(source), "current()"), (key_of(source, KEY.id), "get()")):
        with pytest.raises(ConfigurationError) as caught:
            await asked
        assert [True, True] == [word in str(caught.value) for word in (method, type(answer).__name__)]
        assert [] == leaks(caught.value)


async def test_a_source_without_a_current_key_is_refused() -> None:
    """Nothing is ever stored unsealed because a source had no key."""
    with pytest.raises(ConfigurationError):
        await current_key(Answering(None))


async def test_a_source_that_returns_another_key_is_refused() -> None:
    """The refusal names both ids."""
    with pytest.raises(ConfigurationError) as caught:
        await key_of(Answering(KEY), "AAAAAAAA")
    assert [True, True] == [name in str(caught.value) for name in ("AAAAAAAA", KEY.id)]


async def test_a_source_that_is_not_async_is_refused() -> None:
    """Python's own error would say nothing of the source."""

    class Synchronous:
        def current(self) -> VaultKey:
            return KEY

        def get(self, key_id: str) -> VaultKey:
            return KEY

    source: Any = Synchronous()
    with pytest.raises(ConfigurationError, match=r"current\(\).*async"):
        await current_key(source)
    with pytest.raises(ConfigurationError, match=r"get\(\).*async"):
        await key_of(source, "12345678")
