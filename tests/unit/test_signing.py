"""Transfer tokens, read by itsdangerous and by the standard library alone."""

import hmac
import json
import re
from base64 import urlsafe_b64decode
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from hashlib import sha1, sha256
from typing import Any, Final, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import BadSignature, Signer, URLSafeSerializer
from itsdangerous.encoding import base64_encode
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from accountlink import (
    AccountLinker,
    ConfigurationError,
    LinkedAccount,
    LinkedAccountMixin,
    LinkPolicy,
    ProviderIdentity,
)
from accountlink.transfers.signing import MAX_TOKEN, PURPOSE, Claim, RowState, TransferSigner
from accountlink.values.tagging import tagged

SALT: Final = b"accountlink.transfer.v1"
NEW: Final = "new-" + "n" * 40
OLD: Final = "old-" + "o" * 40
OLDER: Final = "older-" + "p" * 40
ISSUED: Final = datetime(2026, 1, 2, 2, 54, 5, tzinfo=UTC)
ENDS: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JTI: Final = bytes(range(16))
OWNER: Final = "owner-canary-7f3a"
ACCOUNT: Final = "account-canary-91bc"
CLAIMANT: Final = UUID("00000000-0000-4000-8000-000000000001")


def state(**fields: Any) -> RowState:
    given: dict[str, Any] = {"owner": OWNER, "provider": "provider-canary", "account_id": ACCOUNT, "version": 3}
    return RowState(**(given | fields))


def sign(*secrets: str | bytes, **fields: Any) -> str:
    given: dict[str, Any] = {
        "link_id": 41,
        "claimant": CLAIMANT,
        "state": state(),
        "jti": JTI,
        "issued_at": ISSUED,
        "expires_at": ENDS,
    }
    return signer(*secrets).sign(**(given | fields))


def signer(*secrets: str | bytes, table: str = "links") -> TransferSigner:
    return TransferSigner(secrets or (NEW,), table=table)


def verify(token: str, *secrets: str | bytes, salt: bytes = SALT, **signer: Any) -> dict[str, Any]:
    """Read a token by itsdangerous itself, newest secret first as accountlink takes them."""
    kwargs: dict[str, Any] = {"key_derivation": "hmac", "digest_method": sha256} | signer
    keys: list[Any] = list(reversed(secrets or (NEW,)))
    serializer = URLSafeSerializer(keys, salt=salt, signer_kwargs=kwargs)
    return cast("dict[str, Any]", serializer.loads(token))


def _raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def payload(token: str) -> dict[str, Any]:
    """Read a token without a key, as anyone who has it can."""
    return cast("dict[str, Any]", json.loads(_raw(token.partition(".")[0])))


# -- the signature --------------------------------------------------------------------------------------------------


def test_a_token_is_read_by_itsdangerous() -> None:
    """A20: the token is what itsdangerous makes with HMAC-SHA256 and the salt of this one purpose."""
    assert payload(sign()) == verify(sign())


def test_the_signature_is_an_hmac_of_sha_256() -> None:
    """A21: the signature is computed again with nothing but the standard library."""
    value, _, signature = sign().rpartition(".")
    key = hmac.digest(NEW.encode(), SALT, sha256)
    assert hmac.digest(key, value.encode(), sha256) == _raw(signature)


@pytest.mark.parametrize(
    "otherwise",
    [
        {"salt": b"itsdangerous"},
        {"salt": b"accountlink.grant.v1"},
        {"salt": b""},
        {"salt": b"accountlink.transfer.v1.state"},
        {"digest_method": sha1},
        {"key_derivation": "django-concat"},
        {"key_derivation": "concat"},
        {"key_derivation": "none"},
    ],
    ids=str,
)
def test_a_token_of_one_purpose_is_none_of_another(otherwise: dict[str, Any]) -> None:
    """A20: another salt, digest or derivation, with the right secret, does not verify it."""
    with pytest.raises(BadSignature):
        verify(sign(), **otherwise)


@pytest.mark.parametrize("place", [0, 1, 10, -10, -1])
def test_a_changed_token_does_not_verify(place: int) -> None:
    """A20: no letter of a token can be another."""
    token = list(sign())
    token[place] = "A" if token[place] != "A" else "Q"
    with pytest.raises(BadSignature):
        verify("".join(token))


def test_a_token_needs_no_escaping_in_a_fragment() -> None:
    """A28: a token goes into a URL's fragment as it is."""
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", sign())
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", sign(claimant="ö &#?" * 50))


# -- the payload ----------------------------------------------------------------------------------------------------


def test_a_token_says_what_it_is_for() -> None:
    """A20: purpose, id, moments, link and claimant are in the signed payload, and beside keyed digests nothing else."""
    read = verify(sign())
    assert {"p", "v", "t", "j", "i", "e", "l", "c", "a", "d"} == set(read)
    assert ("transfer", PURPOSE, 1) == (read["p"], read["p"], read["v"])
    assert JTI == _raw(read["j"])
    assert (int(ISSUED.timestamp()), int(ENDS.timestamp())) == (read["i"], read["e"])
    assert [16] * 3 == [len(_raw(read[name])) for name in "tad"]
    assert ("i41", "u00000000000040008000000000000001") == (read["l"], read["c"])
    assert 16 == len(_raw(read["d"]))


def test_the_end_is_the_same_moment_in_every_zone() -> None:
    """F20: an aware moment is signed as seconds since 1970, whatever its zone."""
    there = ENDS.astimezone(datetime.now().astimezone().tzinfo)
    assert int(ENDS.timestamp()) == payload(sign(expires_at=there))["e"]


def test_a_token_is_readable_and_tells_nobody_who_the_owner_is() -> None:
    """A25: a readable token contains neither owner, provider, account nor their plain digests."""
    token = sign()
    shown = json.dumps(payload(token)) + token + str(_raw(token.partition(".")[0]))
    assert [] == [word for word in (OWNER, "provider-canary", ACCOUNT) if word in shown]
    found = _raw(payload(token)["d"])
    guesses = [OWNER, f"s{OWNER}", f"{OWNER}provider-canary{ACCOUNT}3", f"s{OWNER}provider-canary{ACCOUNT}3"]
    assert found not in {sha256(guess.encode()).digest()[:16] for guess in guesses}
    assert found not in {hmac.digest(NEW.encode(), guess.encode(), sha256)[:16] for guess in guesses}


@pytest.mark.parametrize(
    "other",
    [
        {"owner": "owner-canary-7f3b"},
        {"provider": "provider-canarz"},
        {"account_id": "account-canary-91bd"},
        {"version": 4},
        {"provider": "provider-canary" + ACCOUNT[0], "account_id": ACCOUNT[1:]},
    ],
    ids=["owner", "provider", "account", "version", "a moved border"],
)
def test_the_digest_is_of_the_whole_state(other: dict[str, Any]) -> None:
    """A25: whatever of owner, provider, account and version changes, and wherever one ends, the digest is another."""
    assert payload(sign())["d"] != payload(sign(state=state(**other)))["d"]


def test_the_digest_is_the_same_for_the_same_state() -> None:
    """A token can be compared with the row later, since its digest depends on nothing else."""
    assert payload(sign())["d"] == payload(sign(jti=bytes(16), claimant=9, link_id=1))["d"]


def test_the_digest_is_keyed() -> None:
    """A25: without the secret, a list of all users does not tell who the owner is."""
    assert payload(sign(NEW))["d"] != payload(sign(OLD))["d"]


IDS: Final = [7, "7", UUID(int=7), "i7", f"u{UUID(int=7).hex}", str(UUID(int=7)), -7, 7.0, b"7"]


def test_ids_of_different_types_stay_different() -> None:
    """A08: 7, "7" and the UUID of seven are three users, as owner and as claimant and as link."""
    assert len(IDS) == len({tagged(each) for each in IDS})
    assert len(IDS) == len({payload(sign(claimant=each))["c"] for each in IDS})
    assert len(IDS) == len({payload(sign(link_id=each))["l"] for each in IDS})
    assert len(IDS) == len({payload(sign(state=state(owner=each)))["d"] for each in IDS})


ANY_ID: Final = st.integers() | st.text() | st.uuids()


@given(ANY_ID, ANY_ID)
def test_a_tagged_id_stands_for_one_id(one: object, other: object) -> None:
    """A08: two ids have one tagged form only if they are one id of one type."""
    assert ((type(one), one) == (type(other), other)) == (tagged(one) == tagged(other))


def test_an_equal_id_has_an_equal_tag() -> None:
    """A08: an application's own IntEnum is the number that its column stores."""

    class User(IntEnum):
        ADA = 7

    assert tagged(7) == tagged(User.ADA)


def test_a_boolean_is_no_id() -> None:
    """A08: ``True`` is not user 1."""
    with pytest.raises(ConfigurationError) as caught:
        tagged(True)
    assert "boolean" in str(caught.value)


# -- reading --------------------------------------------------------------------------------------------------------


def read(token: object, *secrets: str | bytes, table: str = "links") -> Claim:
    claim = signer(*secrets, table=table).read(token)
    assert claim is not None
    return claim


def signed(payload: object, *, secret: str = NEW) -> str:
    """Whatever one likes, under the right signature."""
    made = Signer(secret, salt=SALT, key_derivation="hmac", digest_method=sha256)
    return made.sign(base64_encode(json.dumps(payload))).decode()


def forged(token: object, *secrets: str | bytes, table: str = "links") -> bool:
    return signer(*secrets, table=table).read(token) is None


def test_a_token_is_read_as_it_was_signed() -> None:
    """A18: link, claimant, moments and state come back, of the types that they had."""
    claim = read(sign())
    assert (41, int(ISSUED.timestamp()), int(ENDS.timestamp())) == (claim.link_id, claim.issued_at, claim.expires_at)
    assert (True, False, False) == (claim.is_for(CLAIMANT), claim.is_for(str(CLAIMANT)), claim.is_for(1))
    assert claim.is_of("provider-canary", ACCOUNT)
    assert claim.fits(state())


@given(st.integers(-(2**63), 2**63) | st.text() | st.uuids(), st.integers(-(2**63), 2**63) | st.text() | st.uuids())
def test_ids_come_back_as_what_they_were(link_id: object, claimant: object) -> None:
    """A08: a number, a text and a UUID are read back as themselves, whatever they hold."""
    claim = read(sign(link_id=link_id, claimant=claimant))
    assert (type(link_id), link_id) == (type(claim.link_id), claim.link_id)
    assert claim.is_for(claimant)


@pytest.mark.parametrize(
    "other",
    [
        {"owner": "owner-canary-7f3b"},
        {"owner": UUID(int=7)},
        {"provider": "provider-canarz"},
        {"account_id": "account-canary-91bd"},
        {"version": 4},
        {"version": 30},
        {"provider": "provider-canary" + ACCOUNT[0], "account_id": ACCOUNT[1:]},
    ],
    ids=str,
)
def test_a_claim_fits_one_state_of_the_row(other: dict[str, Any]) -> None:
    """A04: whatever of owner, provider, account and version is another, the claim fits no more."""
    assert not read(sign()).fits(state(**other))


def test_a_claim_is_of_one_account() -> None:
    """A18: another subject of the same provider is another account, and so is the same subject elsewhere."""
    claim = read(sign())
    assert [False] * 3 == [
        claim.is_of("provider-canary", ACCOUNT + "0"),
        claim.is_of("provider-canarz", ACCOUNT),
        claim.is_of("provider-canary" + ACCOUNT[0], ACCOUNT[1:]),
    ]


def test_each_secret_reads_its_own_tokens_and_states() -> None:
    """A21: a token of an older secret is read whole, its digests too, whatever place its secret has in the list."""
    for secrets in ((OLD,), (OLD, NEW), (NEW, OLD), (NEW, OLDER, OLD)):
        claim = read(sign(OLD), *secrets)
        assert claim.fits(state())
        assert claim.is_of("provider-canary", ACCOUNT)
    assert forged(sign(OLD), NEW, OLDER)


def test_a_token_of_one_table_is_none_of_another() -> None:
    """A20: the same secrets, link and claimant, another table: forged; and no digest is the same."""
    ours, theirs = sign(), TransferSigner([NEW], table="others")
    assert forged(ours, table="others")
    other = payload(
        theirs.sign(link_id=41, claimant=CLAIMANT, state=state(), jti=JTI, issued_at=ISSUED, expires_at=ENDS)
    )
    assert [] == [name for name in "tad" if payload(ours)[name] == other[name]]


GOOD: Final = payload(sign())
SHAPES: Final[dict[str, object]] = {
    "no object": [],
    "a text": "transfer",
    "nothing": None,
    "an empty object": {},
    "another purpose": GOOD | {"p": "grant"},
    "a later version": GOOD | {"v": 2},
    "a version that is true": GOOD | {"v": True},
    "an end that is a text": GOOD | {"e": str(GOOD["e"])},
    "an end that is a fraction": GOOD | {"e": GOOD["e"] + 0.5},
    "an end that is true": GOOD | {"e": True},
    "an end that never comes": GOOD | {"e": 10**400},
    "an end beyond the calendar": GOOD | {"e": 10**12},
    "an issue beyond the calendar": GOOD | {"i": 10**12},
    "a link without a type": GOOD | {"l": "41"},
    "a link of no type": GOOD | {"l": "float:7.0"},
    "a link that is a number": GOOD | {"l": 41},
    "a link that is no number": GOOD | {"l": "i4x1"},
    "a link of a thousand digits": GOOD | {"l": "i" + "9" * 1_000},
    "a link of other digits": GOOD | {"l": "i\u0664"},
    "a link that is no UUID": GOOD | {"l": "u12"},
    "an empty link": GOOD | {"l": ""},
    "a claimant that is a number": GOOD | {"c": 1},
    "a digest that is short": GOOD | {"d": "AAAA"},
    "a digest that is long": GOOD | {"d": "A" * 1_000},
    "a digest that is no base64": GOOD | {"d": "\u00e4"},
    "an account that is empty": GOOD | {"a": ""},
    "another table": GOOD | {"t": GOOD["d"]},
} | {f"no {name}": {key: value for key, value in GOOD.items() if key != name} for name in GOOD}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_signed_token_of_another_shape_is_forged(shape: object) -> None:
    """A20: a text that the secret signed for another purpose or version is not a transfer token."""
    assert read(signed(GOOD)).fits(state())
    assert forged(signed(shape))


@pytest.mark.parametrize(
    "value", [b"{", b"\xff\xfe", b"[" * 20_000, b"9" * 5_000, b"NaN", b""], ids=lambda v: repr(v[:4])
)
def test_a_signed_token_that_is_no_json_is_forged(value: bytes) -> None:
    """A20: nor is anything that does not parse, nests without end, or counts beyond what Python reads."""
    made = Signer(NEW, salt=SALT, key_derivation="hmac", digest_method=sha256)
    assert forged(made.sign(base64_encode(value)).decode())


@given(st.text() | st.binary() | st.integers() | st.none() | st.lists(st.text(), max_size=3))
def test_whatever_is_presented_is_forged(presented: object) -> None:
    """A20: any value that a client invents is forged, and raises no other error."""
    assert forged(presented)


@given(st.text(alphabet="abcAB01.-_=+/ \n", max_size=60), st.integers(0, 400))
def test_a_token_with_something_in_it_is_itself_or_forged(extra: str, place: int) -> None:
    """A19: a token that is read in spite of what was put into it says the same."""
    token = sign()
    changed = token[:place] + extra + token[place:]
    assert forged(changed) or read(token).link_id == read(changed).link_id


def test_a_token_of_any_length_is_judged_by_its_length_first() -> None:
    """A40: five megabytes are refused without a look at the signature, and the longest ids of a column are read."""
    assert forged("a" * 5_000_000)
    assert forged(sign() + "=" * MAX_TOKEN)
    assert read(sign(link_id="\U0001f511" * 255, claimant="\U0001f511" * 255)).is_for("\U0001f511" * 255)


def test_a_token_ends_with_the_leeway() -> None:
    """F20, A22: until 60 seconds after its end it is good, and from the next second on it is not."""
    claim = read(sign())
    seconds = (-601, 0, 1, 60, 60.5, 61, 10**6)
    expired = [claim.has_expired(ENDS + timedelta(seconds=each)) for each in seconds]
    assert [False, False, False, False, True, True, True] == expired


def test_an_age_is_counted_from_the_issue_without_leeway() -> None:
    """A22: `max_age` refuses what was signed longer ago, though its end has not come; a signer ahead is no reason."""
    claim = read(sign())
    ages = (-30, 0, 59, 60, 61)
    old = [claim.has_expired(ISSUED + timedelta(seconds=each), max_age=timedelta(seconds=60)) for each in ages]
    assert [False, False, False, False, True] == old


def test_a_claim_does_not_show_what_it_holds() -> None:
    """A28: a log of a claim, or of the state that it is compared with, shows neither key nor claimant nor owner."""
    shown = f"{read(sign())!r} {state()!r}"
    assert [] == [word for word in (OWNER, CLAIMANT.hex, NEW, "Concealed") if word in shown]


# -- secrets --------------------------------------------------------------------------------------------------------


def test_the_newest_secret_signs() -> None:
    """A21: the first of the list signs, and the others do not."""
    token = sign(NEW, OLD, OLDER)
    assert payload(token) == verify(token, NEW)
    for other in (OLD, OLDER):
        with pytest.raises(BadSignature):
            verify(token, other)


def test_an_older_secret_still_verifies() -> None:
    """A21: a token from before the rotation is read by the list that still holds its secret."""
    token = sign(OLD)
    assert payload(token) == verify(token, NEW, OLD) == verify(token, NEW, OLDER, OLD)


def test_the_tokens_of_a_removed_secret_die_at_once() -> None:
    """A21: a leaked secret that is removed takes its tokens with it."""
    with pytest.raises(BadSignature):
        verify(sign(OLD), NEW, OLDER)


def test_a_secret_is_text_or_bytes_alike() -> None:
    """A secret from the environment and the same one from a file sign alike."""
    assert sign(NEW) == sign(NEW.encode())


@pytest.mark.parametrize("secret", ["x" * 32, b"x" * 32, "é" * 16], ids=["text", "bytes", "two bytes each"])
def test_a_secret_of_32_bytes_is_long_enough(secret: str | bytes) -> None:
    """A21: what counts is bytes."""
    assert payload(sign(secret)) == verify(sign(secret), secret)


UNUSABLE: Final[dict[str, object]] = {
    "one text": "s" * 64,
    "one bytes": b"s" * 64,
    "an empty text": "",
    "none": [],
    "too short": ["s" * 31],
    "too short in bytes": [b"s" * 31],
    "an empty one": [""],
    "a short one behind a good one": [NEW, "s" * 31],
    "a short one before a good one": ["s" * 31, NEW],
    "a number, which bytes() would make that many zeros": [64],
    "a boolean": [True],
    "nothing": [None],
    "a number behind a good one": [NEW, 64],
    "a list of numbers": [list(range(40))],
}


@pytest.mark.parametrize("secrets", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_secret_is_refused(secrets: object) -> None:
    """A21: a secret shorter than 32 bytes is refused with the remedy, and is not shown."""
    with pytest.raises(ConfigurationError) as caught:
        TransferSigner(cast("Any", secrets), table="links")
    assert "configuration_error" == caught.value.code
    assert re.search(r"token_urlsafe|takes a list", str(caught.value))
    assert "sss" not in str(caught.value)


@pytest.mark.parametrize("link_id", [7.0, b"7", True], ids=str)
def test_a_link_id_that_no_token_can_carry_has_none(link_id: Any) -> None:
    """A08: an id that would not come back as what it was gets no token, rather than one that finds another row."""
    owned: LinkedAccount[int, Any] = LinkedAccount(id=link_id, user_id=7, provider="google", account_id=ACCOUNT)
    assert linker()._conflict(owned, 3, IDENTITY, 8).transfer_token is None


# -- through the linker ---------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """Of this module's tables."""


class Link(LinkedAccountMixin, Base):
    """A table of links that no database has."""

    __tablename__ = "links"
    __link_policy__ = LinkPolicy()
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]


OWNED: Final[LinkedAccount[int, int]] = LinkedAccount(id=41, user_id=7, provider="google", account_id=ACCOUNT)
IDENTITY: Final = ProviderIdentity(provider="google", account_id=ACCOUNT, email="ada@example.com")
CLOCK: Final = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def linker(**options: Any) -> AccountLinker[int, int]:
    given: dict[str, Any] = {"secrets": [NEW], "clock": lambda: CLOCK}
    return AccountLinker(Link, **(given | options))


def test_a_conflict_carries_a_token_for_its_claimant() -> None:
    """A25: the token names link and claimant, ends in ten minutes by the injected clock, and hides the owner."""
    conflict = linker()._conflict(OWNED, 3, IDENTITY, 8)
    assert conflict.transfer_token is not None
    read = verify(conflict.transfer_token)
    assert ("transfer", "i41", "i8") == (read["p"], read["l"], read["c"])
    assert datetime(2026, 1, 2, 3, 14, 5, tzinfo=UTC) == conflict.expires_at
    assert int(conflict.expires_at.timestamp()) == read["e"]
    assert [] == [word for word in ("i7", ACCOUNT, "ada") if word in json.dumps(read)]
    assert 7 == conflict.owner_id


def test_no_two_tokens_are_one() -> None:
    """A20: each token has its own 16 random bytes, so that one can be used once."""
    conflicts = [linker()._conflict(OWNED, 3, IDENTITY, 8) for _ in range(200)]
    ids = [payload(str(conflict.transfer_token))["j"] for conflict in conflicts]
    assert (200, {16}) == (len(set(ids)), {len(_raw(each)) for each in ids})


def test_the_lifetime_of_a_token_is_the_applications() -> None:
    """F20: ``transfer_lifetime`` counts from the clock that the application gave."""
    conflict = linker(transfer_lifetime=timedelta(minutes=2))._conflict(OWNED, 3, IDENTITY, 8)
    assert datetime(2026, 1, 2, 3, 6, 5, tzinfo=UTC) == conflict.expires_at


@pytest.mark.parametrize(("options", "version"), [({"secrets": ()}, 3), ({}, None)], ids=["no secrets", "no version"])
def test_a_conflict_that_no_token_can_serve_has_none(options: dict[str, Any], version: int | None) -> None:
    """Without secrets, or without a way to distinguish the states of a row, there is no token and no expiry."""
    conflict = linker(**options)._conflict(OWNED, version, IDENTITY, 8)
    assert (None, None) == (conflict.transfer_token, conflict.expires_at)


def test_a_naive_clock_is_refused() -> None:
    """F20: a clock without a zone would end tokens at another moment on another machine."""
    with pytest.raises(ConfigurationError) as caught:
        linker(clock=lambda: datetime(2026, 1, 1))._conflict(OWNED, 3, IDENTITY, 8)  # noqa: DTZ001  # the point
    assert "Return datetime.now(UTC)" in str(caught.value)


@pytest.mark.parametrize("secrets", ["", b"", "s" * 64], ids=["empty text", "empty bytes", "text"])
def test_a_linker_refuses_one_text_for_its_secrets(secrets: object) -> None:
    """A21: an unset environment variable, which is an empty text, does not silently switch transfers off."""
    with pytest.raises(ConfigurationError) as caught:
        linker(secrets=secrets)
    assert "takes a list" in str(caught.value)
