"""Envelopes: each opens in its own column of its own link, and nowhere else."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pickle
import re
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, IntEnum
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink import ConfigurationError, CredentialsUnreadable, InvalidCredentials, Secret
from accountlink.values.base64url import decoded, encoded
from accountlink.values.secrecy import ConcealedNumber, ConcealedText, ConcealedUuid
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.envelope import (
    BoundTo,
    Envelope,
    _row_cipher,
    _seal,
    associated_data,
    new_grant_id,
    open_envelope,
    read,
    seal,
    unseal,
)
from accountlink.vault.keys import GivenKeys, VaultKey
from accountlink.vault.vault import Plaintext
from tests.support.vectors import VECTORS, each_envelope, each_refused

Kind = type[AccessToken] | type[RefreshToken]

OLD: Final = VaultKey(secret=b"o" * 32)
KEY: Final = VaultKey(secret=b"n" * 32)
SOURCE: Final = GivenKeys([KEY, OLD])
GRANT: Final = "GrantGrantGrant1"
LINK: Final = BoundTo(context="connections", user_id=7, provider="google", account_key="sub-canary")
ISSUED: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ACCESS: Final = AccessToken(
    token=Secret("access-canary"), type="DPoP", issued_at=ISSUED, extra={"url": Secret("extra-canary")}
)
REFRESH: Final = RefreshToken(token=Secret("refresh-canary"), client="web", refresh_expires_at=ISSUED)
SEALED: Final = _seal(ACCESS, key=KEY, grant_id=GRANT, bound_to=LINK, nonce=bytes(range(12)))
EITHER: Final = pytest.mark.parametrize("contents", [ACCESS, REFRESH], ids=["access", "refresh"])

texts = st.text(st.characters(exclude_categories=["Cs"]))
tokens = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
moments = st.none() | st.integers(-(10**9), 10**10).map(lambda n: datetime.fromtimestamp(n, UTC))
links = st.builds(
    BoundTo,
    context=texts.filter(bool),
    user_id=st.integers() | texts | st.uuids(),
    provider=texts,
    account_key=texts,
)
access_tokens = st.builds(
    AccessToken,
    token=tokens.map(Secret),
    type=tokens,
    issued_at=moments,
    extra=st.dictionaries(texts, texts.map(Secret), max_size=3),
)
refresh_tokens = st.builds(
    RefreshToken, token=tokens.map(Secret), client=st.none() | tokens, refresh_expires_at=moments
)


async def opened(
    text: str | None, kind: Kind = AccessToken, *, link: BoundTo = LINK, plaintext: Plaintext = Plaintext.REFUSE
) -> AccessToken | RefreshToken | None:
    if kind is AccessToken:
        return await unseal(text, AccessToken, source=SOURCE, bound_to=link, plaintext=plaintext)
    return await unseal(text, RefreshToken, source=SOURCE, bound_to=link, plaintext=plaintext)


async def refused(text: str, kind: Kind = AccessToken, **how: Any) -> CredentialsUnreadable:
    """The error for a text that cannot be read: it shows nothing, and has no cause that could."""
    with pytest.raises(CredentialsUnreadable) as caught:
        await opened(text, kind, **how)
    error = caught.value
    assert ("credentials_unreadable", kind.role, None, None) == (
        error.code, error.role, error.__cause__, error.__suppress_context__ or error.__context__
    )  # fmt: skip
    assert [] == leaks(error, vars(error), error.args)
    return error


def leaks(*shown: object) -> list[str]:
    return re.findall(r"\w+-canary", "".join(f"{each!s}{each!r}" for each in shown))


# -- there and back ----------------------------------------------------------------------------------------------------


@given(access_tokens | refresh_tokens, links)
async def test_what_was_sealed_is_opened(contents: AccessToken | RefreshToken, link: BoundTo) -> None:
    """Any token, scheme, client, moment and member comes back unchanged, for any link."""
    sealed = seal(contents, key=KEY, grant_id=GRANT, bound_to=link)
    assert contents == await opened(sealed, type(contents), link=link)


@EITHER
def test_an_envelope_has_its_form(contents: AccessToken | RefreshToken) -> None:
    """Format, key id, grant id and base64url: text that fits any column, URL and log, and shows no token."""
    sealed = seal(contents, key=KEY, grant_id=GRANT, bound_to=LINK)
    assert re.fullmatch(rf"al1\.{KEY.id}\.{GRANT}\.[\w-]+", sealed, re.ASCII)
    data = decoded(sealed.split(".")[3])
    assert data is not None
    assert 12 + len(contents.written()) + 16 == len(data)
    assert [] == leaks(sealed, data.decode("latin-1"))


def test_no_two_envelopes_are_equal() -> None:
    """Each envelope has a nonce of its own, and each grant an id of its own."""
    sealed = {seal(ACCESS, key=KEY, grant_id=GRANT, bound_to=LINK) for _ in range(100)}
    assert 100 == len(sealed) == len({text.split(".")[3][:16] for text in sealed})
    grants = {new_grant_id() for _ in range(100)}
    assert (100, {16}) == (len(grants), {len(grant) for grant in grants})


async def test_an_old_key_opens_and_the_newest_seals() -> None:
    """After a rotation every envelope stays readable, until its key is removed."""
    old = seal(ACCESS, key=OLD, grant_id=GRANT, bound_to=LINK)
    assert ACCESS == await opened(old)
    assert f"al1.{OLD.id}." == old[:13]
    with pytest.raises(CredentialsUnreadable) as caught:
        await unseal(old, AccessToken, source=GivenKeys([KEY]), bound_to=LINK, plaintext=Plaintext.REFUSE)
    assert ("unknown_key", OLD.id, "access_token") == (caught.value.reason, caught.value.key_id, caught.value.role)
    assert OLD.id in str(caught.value)


@pytest.mark.parametrize("size", [1, 8_735, 1_000_000])
async def test_a_token_of_any_size_is_sealed(size: int) -> None:
    """F23: a token that is as large as providers issue, and far larger, comes back whole."""
    large = RefreshToken(token=Secret("x" * size))
    sealed = seal(large, key=KEY, grant_id=GRANT, bound_to=LINK)
    assert large == await opened(sealed, RefreshToken)
    assert len(sealed) <= 4 * size / 3 + 150


@pytest.mark.parametrize("text", [None, ""])
@pytest.mark.parametrize("plaintext", Plaintext)
async def test_an_empty_column_has_no_token(text: str | None, plaintext: Plaintext) -> None:
    """Null and the empty text, which an unlink leaves in a NOT NULL column, are no token."""
    assert None is await opened(text, plaintext=plaintext)


@pytest.mark.parametrize("grant_id", ["", "short", GRANT + "x", GRANT[:-1] + ".", GRANT[:-1] + "é", GRANT[:-1] + "\n"])
def test_an_odd_grant_id_is_refused(grant_id: str) -> None:
    """Nothing is sealed that could not be read again."""
    with pytest.raises(ConfigurationError, match=r"new_grant_id\(\)"):
        seal(ACCESS, key=KEY, grant_id=grant_id, bound_to=LINK)


# -- moved, changed, cut, foreign --------------------------------------------------------------------------------------

FOREIGN: Final = {
    "user": {"user_id": 8},
    "user's type": {"user_id": "07"},
    "provider": {"provider": "google-work"},
    "account": {"account_key": "sub-canary2"},
    "account in another case": {"account_key": "SUB-canary"},
    "table": {"context": "crm.connections"},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
@EITHER
async def test_an_envelope_of_another_link_is_refused(
    contents: AccessToken | RefreshToken, change: dict[str, Any]
) -> None:
    """A29: an envelope that was moved to another user, provider, account or table is not opened there."""
    sealed = seal(contents, key=KEY, grant_id=GRANT, bound_to=LINK)
    error = await refused(sealed, type(contents), link=dataclasses.replace(LINK, **change))
    assert ("not_authentic", KEY.id) == (error.reason, error.key_id)


@EITHER
async def test_an_envelope_of_another_column_is_refused(contents: AccessToken | RefreshToken) -> None:
    """A29: a refresh token that was moved to the column of the access token is never presented as one."""
    other: Kind = RefreshToken if isinstance(contents, AccessToken) else AccessToken
    error = await refused(seal(contents, key=KEY, grant_id=GRANT, bound_to=LINK), other)
    assert "not_authentic" == error.reason


@given(links, links)
async def test_no_two_links_share_an_envelope(one: BoundTo, other: BoundTo) -> None:
    """An envelope opens for another link only if all four parts are the same texts."""
    sealed = seal(REFRESH, key=KEY, grant_id=GRANT, bound_to=one)
    if one.parts() == other.parts():
        assert REFRESH == await opened(sealed, RefreshToken, link=other)
    else:
        assert "not_authentic" == (await refused(sealed, RefreshToken, link=other)).reason


@given(st.lists(st.sampled_from(["", "a", "b", ".", "\0", "\0\0\0\1a", "ab"]), min_size=7, max_size=7), st.data())
def test_the_associated_data_is_unambiguous(parts: list[str], data: st.DataObject) -> None:
    """Whatever is moved from one part to the next, the bytes differ: each part has its length before it."""

    def associated(texts: list[str]) -> bytes:
        key_id, grant_id, role, context, user_id, provider, account_key = texts
        link = BoundTo(context=context + "c", user_id=user_id, provider=provider, account_key=account_key)
        return associated_data(key_id=key_id, grant_id=grant_id, role=role, bound_to=link)

    other = data.draw(st.permutations(parts))
    assert (parts == other) == (associated(parts) == associated(other))


@given(st.integers(0, len(SEALED) - 1), st.characters(codec="ascii") | st.characters())
async def test_every_changed_character_is_noticed(place: int, character: str) -> None:
    """A29: no character of an envelope can be replaced, not even one that has unused bits."""
    changed = SEALED[:place] + character + SEALED[place + 1 :]
    if changed == SEALED:
        assert ACCESS == await opened(changed)
    else:
        await refused(changed)


@given(st.integers(0, 8 * len(decoded(SEALED.split(".")[3]) or b"") - 1))
async def test_every_flipped_bit_is_noticed(bit: int) -> None:
    """A29: no bit of nonce, ciphertext and tag can be changed."""
    head, _, text = SEALED.rpartition(".")
    data = bytearray(decoded(text) or b"")
    data[bit // 8] ^= 1 << bit % 8
    error = await refused(f"{head}.{encoded(bytes(data))}")
    assert ("not_authentic", KEY.id) == (error.reason, error.key_id)


@given(st.integers(1, len(SEALED) - 1))
async def test_every_cut_is_noticed(length: int) -> None:
    """A column that was too narrow leaves no envelope that is taken for another token, or for plain text."""
    error = await refused(SEALED[:length])
    assert error.reason in ({"malformed", "not_authentic"} if length > 3 else {"plain_text"})


@pytest.mark.parametrize("added", ["A", "AAAA", "=", "\n", " ", ".", ".A", "\0"])
async def test_something_behind_an_envelope_is_noticed(added: str) -> None:
    """Nothing that a column, a driver or a person adds is passed over."""
    assert (await refused(SEALED + added)).reason in {"malformed", "not_authentic"}


async def test_an_envelope_of_another_grant_is_refused() -> None:
    """A grant id that was exchanged is noticed, so that no state of a refresh is believed for another grant."""
    assert "not_authentic" == (await refused(SEALED.replace(GRANT, GRANT[::-1]))).reason


async def test_an_envelope_under_another_keys_name_is_refused() -> None:
    """A key id that was exchanged is noticed, whether the vault has that key or not."""
    assert "not_authentic" == (await refused(SEALED.replace(KEY.id, OLD.id))).reason
    error = await refused(SEALED.replace(KEY.id, "AAAAAAAA"))
    assert ("unknown_key", "AAAAAAAA") == (error.reason, error.key_id)


async def test_a_key_that_only_has_the_same_id_is_refused() -> None:
    """A source that confuses keys opens nothing."""
    found = read(SEALED, AccessToken, plaintext=Plaintext.REFUSE)
    assert isinstance(found, Envelope)
    with pytest.raises(CredentialsUnreadable) as caught:
        open_envelope(found, AccessToken, key=OLD, bound_to=LINK)
    assert "not_authentic" == caught.value.reason


class Asked:
    """A source that answers each question for a key with what it was given, or raises it, and knows what was asked."""

    def __init__(self, answer: VaultKey | Exception | None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def current(self) -> VaultKey:
        return KEY

    async def get(self, key_id: str) -> VaultKey | None:
        self.asked.append(key_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(None, CredentialsUnreadable), (OLD, ConfigurationError), (ConnectionError("down"), ConnectionError)],
    ids=["none", "another", "raises"],
)
async def test_a_source_without_the_key_is_told_from_a_row_that_is_wrong(
    answer: VaultKey | Exception | None, kind: type[Exception]
) -> None:
    """A missing key is about the row, another key is a fault of the source, and what a source raises stays its own."""
    source = Asked(answer)
    with pytest.raises(kind) as caught:
        await unseal(SEALED, AccessToken, source=source, bound_to=LINK, plaintext=Plaintext.REFUSE)
    assert (kind, [KEY.id]) == (type(caught.value), source.asked)


@pytest.mark.parametrize("text", [None, "", "plain", "al2.x", "al1.x"])
async def test_a_source_is_not_asked_without_need(text: str | None) -> None:
    """Only an envelope that can be read costs a question to a key service."""
    source = Asked(KEY)
    with contextlib.suppress(CredentialsUnreadable):
        await unseal(text, AccessToken, source=source, bound_to=LINK, plaintext=Plaintext.REFUSE)
    assert [] == source.asked


async def test_an_older_envelope_of_the_same_link_opens() -> None:
    """What is not noticed, and is said so: an older token of the same link, put back."""
    older = seal(dataclasses.replace(ACCESS, token=Secret("older")), key=KEY, grant_id=GRANT, bound_to=LINK)
    found = await opened(older)
    assert found is not None
    assert "older" == found.token.reveal()


# -- plain text, and other formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["plain-canary", "al", "al1", "al.x", "AL1.x", " al1.x", "al-1.x", "al1x.y", "al\u0661.x", "x"]
)
async def test_plain_text_is_read_during_a_backfill_only(text: str) -> None:
    """Text that does not begin like an envelope is refused, unless the application says that it may be there."""
    for kind in (AccessToken, RefreshToken):
        assert "plain_text" == (await refused(text, kind)).reason
        found = await opened(text, kind, plaintext=Plaintext.READ)
        assert kind(token=Secret(text)) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("al1.", "malformed"),
        ("al1.x", "malformed"),
        ("al1.a.b.c", "malformed"),
        ("al1.AAAAAAAA.AAAAAAAAAAAAAAAA.", "malformed"),
        ("al1.AAAAAAAA.AAAAAAAAAAAAAAAA.A", "malformed"),
        ("al1.AAAAAAAA.AAAAAAAAAAAAAAAA." + encoded(bytes(28)), "malformed"),
        ("al1.AAAAAAA.AAAAAAAAAAAAAAAA." + encoded(bytes(29)), "malformed"),
        ("al1.AAAAAAAA.AAAAAAAAAAAAAAAAA." + encoded(bytes(29)), "malformed"),
        ("al1.AAAAAAA\u0661.AAAAAAAAAAAAAAAA." + encoded(bytes(29)), "malformed"),
        ("al1.AAAAAAAA.AAAAAAAAAAAAAAAA." + encoded(bytes(29)), "unknown_key"),
        ("al0.x", "unknown_format"),
        ("al2.", "unknown_format"),
        ("al10.AAAAAAAA.AAAAAAAAAAAAAAAA.AAAA", "unknown_format"),
        ("al01." + SEALED[4:], "unknown_format"),
        ("al999999999999999999999.x", "unknown_format"),
    ],
)
@pytest.mark.parametrize("plaintext", Plaintext)
async def test_what_begins_like_an_envelope_is_never_plain_text(text: str, reason: str, plaintext: Plaintext) -> None:
    """A damaged envelope, or one of a later release, is never sent to a provider as a token."""
    assert reason == (await refused(text, plaintext=plaintext)).reason


@given(st.text(max_size=40) | st.from_regex(r"al[0-9]+\..*"), st.sampled_from(Plaintext))
async def test_any_text_is_refused_or_is_plain(text: str, plaintext: Plaintext) -> None:
    """No text of a column raises anything but the one error, and only what may be plain is returned."""
    try:
        found = await opened(text, plaintext=plaintext)
    except CredentialsUnreadable:
        return
    assert (not text and found is None) or (plaintext is Plaintext.READ and not re.match(r"al[0-9]+\.", text))


@pytest.mark.parametrize("text", ["plain-canary\0", "plain-canary\ud800"])
async def test_plain_text_that_cannot_be_a_token_is_refused(text: str) -> None:
    """SQLite keeps what no provider issued; a backfill does not seal it."""
    assert "plain_text" == (await refused(text, plaintext=Plaintext.READ)).reason


# -- contents ----------------------------------------------------------------------------------------------------------


def test_the_contents_are_the_documented_json() -> None:
    """Members, their order and their units are a part of the format."""
    assert {"token": "access-canary", "type": "DPoP", "issued_at": 1767323045, "extra": {"url": "extra-canary"}} == (
        json.loads(ACCESS.written())
    )
    assert b'{"token":"refresh-canary","client":"web","refresh_expires_at":1767323045}' == REFRESH.written()
    assert b'{"token":"x","client":null,"refresh_expires_at":null}' == RefreshToken(token=Secret("x")).written()
    plain = AccessToken(token=Secret("x"))
    assert b'{"token":"x","type":"Bearer","issued_at":null,"extra":{}}' == plain.written()


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1970, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC), 1),
        (datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC), -1),
        (datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2))), 1767323045),
        (datetime.max.replace(tzinfo=UTC), 253402300799),
        (datetime.min.replace(tzinfo=UTC), -62135596800),
    ],
)
def test_a_moment_is_whole_seconds_rounded_down(moment: datetime, seconds: int) -> None:
    """A refresh token never seems to live longer than it does."""
    written = json.loads(RefreshToken(token=Secret("x"), refresh_expires_at=moment).written())
    assert seconds == written["refresh_expires_at"]
    again = RefreshToken.read(json.dumps(written).encode())
    assert again is not None
    assert again.refresh_expires_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


ODD: Final = [
    "",
    "\0",
    "a\0b",
    "\x1f",
    '"quoted" \\ back',
    "\u2028\u2029",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "\ufeff",
    "{}",
]


@pytest.mark.parametrize("text", ODD, ids=repr)
async def test_extra_members_hold_any_text(text: str) -> None:
    """Names and values of other members come back byte by byte, in the form of Unicode in which they came."""
    odd = AccessToken(token=Secret("x"), extra={text: Secret(text), "n": Secret(text * 1_000)})
    assert odd == await opened(seal(odd, key=KEY, grant_id=GRANT, bound_to=LINK))


WRONG: Final[dict[str, tuple[AccessToken | RefreshToken, str]]] = {
    "an empty token": (AccessToken(token=Secret("")), "token"),
    "an empty refresh token": (RefreshToken(token=Secret("")), "token"),
    "a NUL": (AccessToken(token=Secret("access-canary\0")), "token"),
    "a surrogate": (AccessToken(token=Secret("access-canary\ud800")), "token"),
    "a surrogate in a refresh token": (RefreshToken(token=Secret("refresh-canary\udfff")), "token"),
    "an empty scheme": (AccessToken(token=Secret("access-canary"), type=""), "type"),
    "a surrogate in the scheme": (AccessToken(token=Secret("access-canary"), type="\ud800"), "type"),
    "a surrogate in a value": (AccessToken(token=Secret("x"), extra={"a": Secret("extra-canary\ud800")}), "extra"),
    "a surrogate in a name": (AccessToken(token=Secret("x"), extra={"\ud800": Secret("extra-canary")}), "extra"),
    "a number as a name": (AccessToken(token=Secret("x"), extra={1: Secret("extra-canary")}), "extra"),  # type: ignore[dict-item]  # what is under test
    "an empty client": (RefreshToken(token=Secret("refresh-canary"), client=""), "client"),
    "a surrogate in the client": (RefreshToken(token=Secret("refresh-canary"), client="\ud800"), "client"),
    "a naive issue": (AccessToken(token=Secret("access-canary"), issued_at=datetime(2026, 1, 1)), "issued_at"),  # noqa: DTZ001  # what is under test
    "a naive end": (
        RefreshToken(token=Secret("refresh-canary"), refresh_expires_at=datetime(2026, 1, 1)),  # noqa: DTZ001  # what is under test
        "refresh_expires_at",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("contents", "field"), WRONG.values(), ids=WRONG)
def test_contents_that_could_not_be_read_are_not_sealed(contents: AccessToken | RefreshToken, field: str) -> None:
    """What no provider issued is refused before it is stored; neither the error nor a frame of ours shows it."""
    with pytest.raises(InvalidCredentials) as caught:
        seal(contents, key=KEY, grant_id=GRANT, bound_to=LINK)
    error = caught.value
    assert (field, None, None) == (error.field, error.__cause__, error.__context__)
    assert [] == leaks(error, vars(error), *frames(error))


FOREIGN_JSON: Final = [
    b"", b"x", b"null", b"[]", b"1", b'"x"', b"{}", b"\xff", b"\xef\xbb\xbf" + ACCESS.written(), b"[" * 100_000,
    ACCESS.written().decode().encode("utf-16"), ACCESS.written()[:-1], ACCESS.written() + b"}", REFRESH.written(),
    b'{"token":"x","type":"Bearer","issued_at":null}',
    b'{"token":"x","type":"Bearer","issued_at":null,"extra":{},"more":1}',
    b'{"token":"","type":"Bearer","issued_at":null,"extra":{}}',
    b'{"token":null,"type":"Bearer","issued_at":null,"extra":{}}',
    b'{"token":1,"type":"Bearer","issued_at":null,"extra":{}}',
    b'{"token":"\\ud800","type":"Bearer","issued_at":null,"extra":{}}',
    b'{"token":"\\u0000","type":"Bearer","issued_at":null,"extra":{}}',
    b'{"token":"x","type":null,"issued_at":null,"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":true,"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":1.5,"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":NaN,"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":"1","extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":99999999999999999999,"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":' + b"9" * 5_000 + b',"extra":{}}',
    b'{"token":"x","type":"Bearer","issued_at":null,"extra":null}',
    b'{"token":"x","type":"Bearer","issued_at":null,"extra":[]}',
    b'{"token":"x","type":"Bearer","issued_at":null,"extra":{"a":1}}',
    b'{"token":"x","type":"Bearer","issued_at":null,"extra":{"a":"\\udfff"}}',
]  # fmt: skip
FOREIGN_REFRESH: Final = [
    ACCESS.written(), b'{"token":"x","client":1,"refresh_expires_at":null}',
    b'{"token":"x","client":"","refresh_expires_at":null}', b'{"token":"","client":null,"refresh_expires_at":null}',
    b'{"token":"x","client":null,"refresh_expires_at":"soon"}', b'{"token":"x","client":null}',
    b'{"token":"x","client":null,"refresh_expires_at":null,"more":1}',
    b'{"token":"x","client":null,"refresh_expires_at":-99999999999999}',
]  # fmt: skip


def sealed_json(kind: Kind, data: bytes) -> str:
    """An envelope of a program that has the key, and writes contents of its own."""
    associated = associated_data(key_id=KEY.id, grant_id=GRANT, role=kind.role, bound_to=LINK)
    sealed = bytes(12) + _row_cipher(KEY, associated).encrypt(bytes(12), data, associated)
    return f"al1.{KEY.id}.{GRANT}.{encoded(sealed)}"


CONFUSED: Final = sealed_json(AccessToken, REFRESH.written())


@pytest.mark.parametrize(
    ("kind", "data"),
    [*((AccessToken, data) for data in FOREIGN_JSON), *((RefreshToken, data) for data in FOREIGN_REFRESH)],
    ids=lambda value: repr(value)[:60],
)
async def test_contents_of_another_program_are_refused(kind: Kind, data: bytes) -> None:
    """Whoever has the key can seal anything; contents of another shape are refused, and nothing of them is dropped."""
    error = await refused(sealed_json(kind, data), kind)
    assert ("contents" if data else "malformed") == error.reason


# -- whom an envelope is bound to --------------------------------------------------------------------------------------


class Color(str, Enum):  # noqa: UP042  # its str() is its name, which a StrEnum's is not
    RED = "red"


class Number(IntEnum):
    SEVEN = 7


UUID_TEXT: Final = "0190d5a2-7c3e-7a10-9b1f-3f6c2e8d4b5a"


@pytest.mark.parametrize(
    ("user_id", "text"),
    [
        (7, "7"), (-7, "-7"), (2**63, str(2**63)), (Number.SEVEN, "7"), (ConcealedNumber(7), "7"),
        ("usr_9", "usr_9"), ("", ""), ("e\u0301", "e\u0301"), (Color.RED, "red"), (ConcealedText("usr_9"), "usr_9"),
        (UUID(UUID_TEXT), UUID_TEXT), (UUID(UUID_TEXT.upper()), UUID_TEXT), (ConcealedUuid(UUID_TEXT), UUID_TEXT),
    ],
)  # fmt: skip
def test_a_user_id_is_its_text(user_id: Any, text: str) -> None:
    """A user id has one text, in whichever type the column, the driver or an enumeration hands it over."""
    link = dataclasses.replace(LINK, user_id=user_id)
    assert ("connections", text, "google", "sub-canary") == link.parts()
    assert [str, str, str, str] == [type(part) for part in link.parts()]


@pytest.mark.parametrize("user_id", [None, True, 1.5, b"7", (7,), ISSUED], ids=repr)
def test_another_user_id_is_refused(user_id: Any) -> None:
    """A user id whose text is not certain seals nothing."""
    with pytest.raises(ConfigurationError, match="A user id is a number, a text or a UUID"):
        dataclasses.replace(LINK, user_id=user_id)


@pytest.mark.parametrize("name", ["context", "user_id", "provider", "account_key"])
def test_a_link_that_utf_8_cannot_encode_is_refused(name: str) -> None:
    """The refusal names the part, and shows nothing of it."""
    changed: dict[str, Any] = {name: "link-canary\ud800"}
    with pytest.raises(ConfigurationError) as caught:
        dataclasses.replace(LINK, **changed)
    assert name.replace("_", " ") in str(caught.value)
    assert (None, []) == (caught.value.__context__, leaks(caught.value))


def test_a_vault_has_a_context() -> None:
    """Two tables without names would be one."""
    with pytest.raises(ConfigurationError, match="context"):
        dataclasses.replace(LINK, context="")


async def test_unicode_is_taken_as_it_is() -> None:
    """Two forms of one letter are two accounts: identifiers are compared byte by byte everywhere."""
    composed, decomposed = (dataclasses.replace(LINK, account_key=key) for key in ("\u00e9", "e\u0301"))
    sealed = seal(ACCESS, key=KEY, grant_id=GRANT, bound_to=composed)
    assert ACCESS == await opened(sealed, link=composed)
    assert "not_authentic" == (await refused(sealed, link=decomposed)).reason


# -- secrecy -----------------------------------------------------------------------------------------------------------


def frames(error: BaseException) -> list[object]:
    """The locals of accountlink's frames in a traceback, as an error tracker records them."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return [
        f"{frame.name}: {frame.locals}"
        for frame in shown.stack
        if "/src/accountlink/" in frame.filename.replace("\\", "/")
    ]


@pytest.mark.parametrize(
    "value",
    [ACCESS, REFRESH, dataclasses.replace(LINK, user_id="user-canary"), SEALED],
    ids=["access", "refresh", "link", "envelope"],
)
@pytest.mark.parametrize("show", [repr, str, format, lambda v: repr(copy.deepcopy(v)), lambda v: repr([v])])
def test_nothing_shows_a_token(value: object, show: Callable[[object], str]) -> None:
    """A28: no representation of contents, link or envelope shows a token, or an account."""
    assert [] == leaks(show(value))


@EITHER
def test_contents_show_no_token_as_a_dictionary(contents: AccessToken | RefreshToken) -> None:
    """A28: the parts of contents are secrets, not texts."""
    assert [] == leaks(dataclasses.asdict(contents), dataclasses.astuple(contents))
    assert not hasattr(contents, "__dict__")


@EITHER
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_contents_are_not_pickled(contents: AccessToken | RefreshToken, protocol: int) -> None:
    """A28: a task queue that pickles gets an error without a token."""
    with pytest.raises(TypeError) as caught:
        pickle.dumps(contents, protocol)
    assert [] == leaks(caught.value)


@pytest.mark.parametrize(
    "text",
    ["plain-canary", f"al1.{KEY.id}.{GRANT}.plain-canary", SEALED.replace(GRANT, GRANT[::-1]), SEALED[:-8], CONFUSED],
    ids=["plain", "malformed", "another grant", "cut", "contents"],
)
async def test_a_traceback_with_locals_shows_no_token(text: str) -> None:
    """A28: an error tracker that records the locals of accountlink's frames sees no token, and no account."""
    with pytest.raises(CredentialsUnreadable) as caught:
        await opened(text)
    assert frames(caught.value)
    assert [] == leaks(*frames(caught.value))


# -- the published vectors ---------------------------------------------------------------------------------------------

KEYS: Final = {name: VaultKey(secret=key["text"]) for name, key in VECTORS["keys"].items()}
KINDS: Final[dict[str, Kind]] = {"access_token": AccessToken, "refresh_token": RefreshToken}


def link_of(vector: dict[str, Any]) -> BoundTo:
    return BoundTo(**{name: vector[name] for name in ("context", "user_id", "provider", "account_key")})


def contents_of(vector: dict[str, Any]) -> AccessToken | RefreshToken:
    """The contents of a vector, read without the code under test."""
    members = json.loads(vector["plaintext"])
    for name in {"issued_at", "refresh_expires_at"} & members.keys():
        members[name] = None if members[name] is None else datetime.fromtimestamp(members[name], UTC)
    if "extra" in members:
        members["extra"] = {name: Secret(value) for name, value in members["extra"].items()}
    return KINDS[vector["role"]](**members | {"token": Secret(members["token"])})


@each_envelope
async def test_the_vectors_are_sealed_and_opened(vector: dict[str, Any]) -> None:
    """With the vector's nonce accountlink writes the vector's envelope, byte by byte, and it reads its contents."""
    contents, key, link = contents_of(vector), KEYS[vector["key"]], link_of(vector)
    nonce = bytes.fromhex(vector["nonce"])
    assert vector["envelope"] == _seal(contents, key=key, grant_id=vector["grant_id"], bound_to=link, nonce=nonce)
    kind, source = KINDS[vector["role"]], GivenKeys(list(KEYS.values()))
    how: Any = {"source": source, "bound_to": link, "plaintext": Plaintext.REFUSE}
    assert contents == await unseal(vector["envelope"], kind, **how)  # type: ignore[type-var]  # one of the two


@each_refused
async def test_the_vectors_of_refusals_are_refused(vector: dict[str, Any]) -> None:
    """A moved, changed, cut, foreign, plain or future text is refused, for the reason that the vector gives."""
    how: Any = {"source": GivenKeys(list(KEYS.values())), "bound_to": link_of(vector), "plaintext": Plaintext.REFUSE}
    with pytest.raises(CredentialsUnreadable) as caught:
        await unseal(vector["envelope"], KINDS[vector["role"]], **how)  # type: ignore[type-var]  # one of the two
    assert (vector["reason"], vector["role"]) == (caught.value.reason, caught.value.role)
