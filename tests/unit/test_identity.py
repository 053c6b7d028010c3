"""ProviderIdentity: one that exists is valid, byte for byte what the provider said, and shows nothing personal."""

import copy
import dataclasses
import enum
import pickle
import traceback
import unicodedata
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink import InvalidIdentity, ProviderIdentity

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
"""Every code point, the surrogates too."""
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}

CONTROL = "contains a control character"
FORMAT = "contains an invisible format character"
SURROGATE = "contains a lone surrogate"
SPACE = "begins or ends with white space"

HOSTILE = {
    "empty": ("", "is empty"),
    "NUL": ("a\0b", CONTROL),
    "NUL alone": ("\0", CONTROL),
    "newline inside": ("a\nb", CONTROL),
    "newline at the end": ("a\n", CONTROL),
    "tab": ("a\tb", CONTROL),
    "unit separator": ("a\x1fb", CONTROL),
    "delete": ("a\x7fb", CONTROL),
    "C1 control": ("é\x85b", CONTROL),
    "zero width space": ("a\u200bb", FORMAT),
    "zero width joiner": ("a\u200db", FORMAT),
    "zero width space alone": ("\u200b", FORMAT),
    "right-to-left override": ("a\u202eb", FORMAT),
    "left-to-right isolate": ("a\u2066b", FORMAT),
    "byte order mark": ("\ufeffab", FORMAT),
    "soft hyphen": ("a\u00adb", FORMAT),
    "language tag": ("a\U000e0001b", FORMAT),
    "word joiner": ("a\u2060b", FORMAT),
    "lone high surrogate": ("a\ud800b", SURROGATE),
    "lone low surrogate": ("a\udfffb", SURROGATE),
    "surrogates in the wrong order": ("\udc00\ud800", SURROGATE),
    "line separator": ("a\u2028b", "contains a line separator"),
    "paragraph separator": ("a\u2029b", "contains a paragraph separator"),
    "leading space": (" ab", SPACE),
    "trailing space": ("ab ", SPACE),
    "space alone": (" ", SPACE),
    "trailing no-break space": ("ab\u00a0", SPACE),
    "leading ideographic space": ("\u3000ab", SPACE),
    "256 characters": ("a" * 256, "is 256 characters long, more than 255"),
    "256 wide characters": ("字" * 256, "is 256 characters long, more than 255"),
    "five kilobytes": ("z" * 5_000, "is 5000 characters long, more than 255"),
}
ARTIFACTS = ("None", "undefined", "null", "NaN", "[object Object]")
NOT_TEXT: dict[str, tuple[object, str]] = {
    "None": (None, "is NoneType, not text"),
    "a boolean": (True, "is bool, not text"),
    "a float": (7.0, "is float, not text"),
    "bytes": (b"7", "is bytes, not text"),
    "a UUID": (UUID(int=7), "is UUID, not text"),
    "a list": (["7"], "is list, not text"),
}


def identity(**fields: Any) -> ProviderIdentity:
    return ProviderIdentity(**({"provider": "google", "account_id": "248289761001"} | fields))


def refusal(**fields: Any) -> InvalidIdentity:
    with pytest.raises(InvalidIdentity) as caught:
        identity(**fields)
    return caught.value


@pytest.mark.parametrize("field", ["provider", "account_id"])
@pytest.mark.parametrize(("value", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_identifier_is_refused(field: str, value: str, problem: str) -> None:
    """F21: what a database would refuse, cut or store unseen is refused first, and the error does not echo it."""
    error = refusal(**{field: value})
    assert (field, problem, "invalid_identity") == (error.field, error.problem, error.code)
    assert not value.strip() or value not in str(error)


@pytest.mark.parametrize("field", ["provider", "account_id"])
@pytest.mark.parametrize("value", ARTIFACTS)
def test_a_missing_value_that_became_text_is_refused(field: str, value: str) -> None:
    """F21: "None" and "undefined" are no account, or every user without one would share it."""
    error = refusal(**{field: value})
    assert (field, f"is {value!r}, a missing value turned into text") == (error.field, error.problem)


@pytest.mark.parametrize("field", ["provider", "account_id"])
@pytest.mark.parametrize(("value", "problem"), NOT_TEXT.values(), ids=NOT_TEXT)
def test_an_identifier_of_another_type_is_refused(field: str, value: object, problem: str) -> None:
    """A08: only text and whole numbers are identifiers, so that no other type is turned into text in two ways."""
    error = refusal(**{field: value})
    assert (field, problem) == (error.field, error.problem)


@pytest.mark.parametrize("provider", ["Google", "GOOGLE", "entra-Acme", "Ünternet", "İd", "ǅ"])
def test_a_provider_is_one_lower_case_slug(provider: str) -> None:
    """A08: a provider that is not in lower case is refused, so that no account exists under two spellings."""
    error = refusal(provider=provider)
    assert ("provider", "is not in lower case") == (error.field, error.problem)
    assert "lower-case slug" in str(error)


@pytest.mark.parametrize("provider", ["google", "entra-acme", "idp_2", "https://idp.example", "ünternet", "g" * 255])
def test_a_lower_case_provider_is_kept(provider: str) -> None:
    """A lower-case slug is kept as it is."""
    assert provider == identity(provider=provider).provider


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (0, "0"), (583231, "583231"), (2**63, str(2**63)), (10**254, "1" + "0" * 254)]
)
def test_a_whole_number_becomes_its_decimal_text(number: int, text: str) -> None:
    """A08: GitHub's numeric id and its text are one account, whichever the adapter passes."""
    assert text == identity(account_id=number).account_id
    assert identity(account_id=text) == identity(account_id=number)


@pytest.mark.parametrize("number", [10**255, 10**300, -(10**255), 10**5_000], ids=["256", "301", "-256", "5001"])
def test_a_number_is_bounded_like_a_text(number: int) -> None:
    """F21: a number whose decimal text is over 255 characters is refused like that text, with the same typed error."""
    error = refusal(account_id=number)
    assert ("account_id", "invalid_identity") == (error.field, error.code)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abc", "ABC"),
        ("user1", "user10"),
        ("1", "01"),
        ("1", "+1"),
        ("1", "\uff11"),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
        ("k", "\u212a"),
        ("fi", "\ufb01"),
        ("a b", "a  b"),
        ("a", "а"),  # noqa: RUF001  # the second one is Cyrillic
    ],
)
def test_near_equal_account_ids_stay_two_accounts(one: str, other: str) -> None:
    """A08: an account id is compared byte by byte, never folded, trimmed or normalised."""
    assert identity(account_id=one) != identity(account_id=other)
    assert (one, other) == (identity(account_id=one).account_id, identity(account_id=other).account_id)


@pytest.mark.parametrize(
    "account_id",
    ["1", "a" * 255, "字" * 255, "\U0001d538" * 255, "auth0|5f7c", "a b", "none", "0e1", "sub@example.com", "a\u0301"],
)
def test_an_unusual_account_id_is_kept(account_id: str) -> None:
    """F21: what a provider may well issue is taken unchanged, up to 255 characters."""
    assert account_id == identity(account_id=account_id).account_id


@given(ANY_TEXT)
def test_an_account_id_is_kept_unchanged_or_refused(text: str) -> None:
    """F21: there is no third way: no text is repaired into an identifier."""
    safe = not UNSAFE & {unicodedata.category(character) for character in text}
    fits = 1 <= len(text) <= 255 and text == text.strip() and text not in ARTIFACTS
    if safe and fits:
        assert text == identity(account_id=text).account_id
    else:
        assert "account_id" == refusal(account_id=text).field


class Spelled(str, enum.Enum):  # noqa: UP042  # applications that support older Pythons write it so
    GOOGLE = "google"


def test_an_identifier_is_plain_text_whatever_text_it_came_as() -> None:
    """A08: a member of an application's own str enum becomes its value, and not ``Spelled.GOOGLE`` in a message."""
    made = identity(provider=Spelled.GOOGLE, account_id=Spelled.GOOGLE)
    assert (str, str) == (type(made.provider), type(made.account_id))
    assert "google/google" == f"{made.provider}/{made.account_id}"


@pytest.mark.parametrize("value", ["false", "true", "", 0, 1, 1.0, [], "True"], ids=repr)
def test_email_verified_is_a_boolean_or_nothing(value: object) -> None:
    """A05: the text "false" is true to Python, so anything but the provider's own boolean is refused."""
    error = refusal(email="a@example.com", email_verified=value)
    assert ("email_verified", f"is {type(value).__name__}, not a boolean") == (error.field, error.problem)
    assert "True yourself" in str(error)


@pytest.mark.parametrize("value", [True, False, None])
def test_email_verified_is_kept_as_the_provider_said(value: bool | None) -> None:
    """A05: silence is not the same as false, and neither is taken for true."""
    assert value is identity(email="a@example.com", email_verified=value).email_verified


def test_an_email_is_not_verified_unless_somebody_says_so() -> None:
    """A05: an e-mail address by itself says nothing about whose it is."""
    assert None is identity(email="a@example.com").email_verified


@pytest.mark.parametrize(
    ("email", "problem"),
    [
        ("a\0@example.com", CONTROL),
        ("a@example.com\n", CONTROL),
        ("a\u200b@example.com", FORMAT),
        ("a\u202e@example.com", FORMAT),
        ("a\ud800@example.com", SURROGATE),
        ("a" * 309 + "@example.com", "is longer than 320 characters"),
        (7, "is int, not text"),
        (b"a@example.com", "is bytes, not text"),
    ],
    ids=["NUL", "newline", "zero width", "bidi", "surrogate", "321 characters", "int", "bytes"],
)
def test_an_email_that_no_column_should_hold_is_refused(email: object, problem: str) -> None:
    """F21: an e-mail address is checked with the identity, and the error does not repeat it."""
    error = refusal(email=email)
    assert ("email", problem) == (error.field, error.problem)
    assert "example.com" not in str(error)


@pytest.mark.parametrize("email", ["a@example.com", "\uff21@example.com", "A@Example.COM", "a" * 308 + "@example.com"])
def test_an_email_is_kept_as_the_provider_wrote_it(email: str) -> None:
    """A35: the original is kept; only a key compares the normal form."""
    assert email == identity(email=email).email


@pytest.mark.parametrize("email", [None, ""])
def test_no_email_is_none(email: str | None) -> None:
    """An empty address is no address."""
    assert None is identity(email=email).email


@pytest.mark.parametrize("field", ["issuer", "display_name"])
@pytest.mark.parametrize("value", [7, b"x", ["x"]], ids=["int", "bytes", "list"])
def test_other_fields_are_text_or_nothing(field: str, value: object) -> None:
    """F21: a field of another type is refused by its name."""
    error = refusal(**{field: value})
    assert (field, f"is {type(value).__name__}, not text") == (error.field, error.problem)


@pytest.mark.parametrize("claims", [None, 7, "claims", ["a"]], ids=repr)
def test_claims_that_are_no_mapping_are_refused(claims: object) -> None:
    """F21: whatever an adapter passes as claims, the answer is the one typed error."""
    error = refusal(claims=claims)
    assert ("claims", "invalid_identity") == (error.field, error.code)


def test_claims_are_a_copy_and_no_part_of_equality() -> None:
    """Claims change with every sign-in, so they neither follow the caller's dict nor tell two identities apart."""
    said: dict[str, Any] = {"hd": "example.com"}
    made = identity(claims=said)
    said["hd"] = "other.example"
    assert {"hd": "example.com"} == dict(made.claims)
    assert identity() == made
    assert hash(identity()) == hash(made)


def test_two_accounts_with_one_email_are_two_identities() -> None:
    """A06: an e-mail address that two providers or tenants assert makes them neither equal nor related."""
    assert identity(account_id="1", email="a@example.com") != identity(account_id="2", email="a@example.com")


SHOWN: dict[str, Callable[[object], str]] = {"repr": repr, "str": str, "format": format}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_an_identity_shows_nothing_personal(show: Callable[[object], str]) -> None:
    """A28: a log of an identity names provider and account, and neither address nor name nor claims."""
    made = identity(email="ada@example.com", display_name="Ada L.", claims={"nonce": "n-0S6_WzA2Mj"})
    shown = show(made)
    assert "248289761001" in shown
    assert "google" in shown
    assert [] == [word for word in ("ada", "Ada", "example.com", "nonce", "n-0S6") if word in shown]


def test_a_refused_identity_leaves_no_cause_behind() -> None:
    """A28: the error for one field carries none of the others."""
    error = refusal(account_id="", email="ada@example.com", display_name="Ada L.")
    assert (None, None) == (error.__cause__, error.__context__)
    assert "ada@example.com" not in "".join(traceback.format_exception(error))


def test_an_identity_is_frozen_keyword_only_and_survives_a_copy() -> None:
    """Nothing can turn a checked identity into an unchecked one."""
    made = identity(email="a@example.com", claims={"a": [1]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.account_id = "other"  # type: ignore[misc]  # what the test is about
    with pytest.raises(TypeError):
        cast("Any", ProviderIdentity)("google", "1")
    for twin in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301  # our own bytes
        assert made == twin
        assert made.claims == twin.claims


def test_a_replaced_field_is_checked_again() -> None:
    """F21: ``dataclasses.replace`` cannot make an identity that the constructor would refuse."""
    with pytest.raises(InvalidIdentity) as caught:
        dataclasses.replace(identity(), account_id="")
    assert "account_id" == caught.value.field
