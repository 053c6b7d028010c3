"""The normal form of an e-mail address: what meets, what stays apart, and what is refused."""

import sys
import unicodedata
from functools import cache
from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from accountlink import InvalidIdentity, normalize_email

FORM: Final = "is not of the form local@domain"
STRUCTURE: Final = "changes its structure under Unicode normalisation"

EQUAL: Final = {
    "ASCII case": ("Ada@Example.COM", "ada@example.com"),
    "sharp s and SS": ("straße@example.de", "STRASSE@EXAMPLE.DE"),
    "capital sharp s": ("STRA\u1e9eE@example.de", "strasse@example.de"),
    "NFD and NFC": ("e\u0301@example.com", "\u00e9@example.com"),
    "NFD in the domain": ("a@mu\u0308nchen.de", "a@m\u00fcnchen.de"),
    "order of combining marks": ("a\u0323\u0307@example.com", "a\u0307\u0323@example.com"),
    "full-width letters": ("ＡＤＡ@ｅｘａｍｐｌｅ.com", "ada@example.com"),  # noqa: RUF001  # the point
    "full-width digits": ("a\uff11@example.com", "a1@example.com"),
    "final sigma": ("οδυσσευς@example.gr", "ΟΔΥΣΣΕΥΣ@EXAMPLE.GR"),
    "Kelvin sign": ("\u212aelvin@example.com", "kelvin@example.com"),
    "Angstrom sign": ("\u212b@example.com", "\u00e5@example.com"),
    "ligature": ("o\ufb03ce@example.com", "office@example.com"),
    "long s": ("\u017fam@example.com", "sam@example.com"),
    "mathematical letters": ("\U0001d4b6\U0001d4b9\U0001d4b6@example.com", "ada@example.com"),
    "circled letters": ("ⓐ@example.com", "a@example.com"),
    "superscript": ("a²@example.com", "a2@example.com"),
    "ypogegrammeni": ("\u1fb3@example.gr", "\u03b1\u03b9@example.gr"),
    "Hangul": ("\u1112\u1161\u11ab@example.kr", "\ud55c@example.kr"),
}
APART: Final = {
    "dotless i": ("\u0131da@example.com", "ida@example.com"),
    "dotted capital I": ("\u0130da@example.com", "ida@example.com"),
    "Cyrillic a": ("\u0430da@example.com", "ada@example.com"),
    "an accent": ("ren\u00e9@example.com", "rene@example.com"),
    "a dot in the local part": ("a.da@example.com", "ada@example.com"),
    "a tag": ("ada+work@example.com", "ada@example.com"),
    "punycode": ("a@xn--mnchen-3ya.de", "a@m\u00fcnchen.de"),
    "a trailing dot": ("a@example.com.", "a@example.com"),
    "a longer name": ("user10@example.com", "user1@example.com"),
}
BECOMES_ANOTHER: Final = {
    "full-width at": "\uff20",
    "ideographic full stop": "\u3002",
    "half-width ideographic full stop": "\uff61",
    "small at": "\ufe6b",
    "one dot leader": "\u2024",
    "two dot leader": "\u2025",
    "ellipsis": "\u2026",
    "full-width full stop": "\uff0e",
    "small full stop": "\ufe52",
    "digit one full stop": "\u2488",
    "no-break space": "\u00a0",
    "en quad": "\u2000",
    "ideographic space": "\u3000",
    "full-width comma": "\uff0c",
    "full-width semicolon": "\uff1b",
    "Greek question mark": "\u037e",
    "full-width colon": "\uff1a",
    "full-width less-than": "\uff1c",
    "small greater-than": "\ufe65",
    "full-width parenthesis": "\uff08",
    "parenthesised one": "\u2474",
    "full-width quotation mark": "\uff02",
    "full-width apostrophe": "\uff07",
    "full-width backslash": "\uff3c",
    "full-width slash": "\uff0f",
    "account of": "\u2100",
    "full-width percent": "\uff05",
    "care of": "\u2105",
    "diaeresis": "\u00a8",
    "acute accent": "\u00b4",
    "Greek ypogegrammeni": "\u037a",
}
FORMLESS: Final = {
    "no at": "ada.example.com",
    "no local part": "@example.com",
    "no domain": "ada@",
    "only at": "@",
    "two ats": "ada@example.com@evil.example",
    "two ats in a row": "ada@@example.com",
    "leading space": " ada@example.com",
    "trailing space": "ada@example.com ",
    "space inside": "a da@example.com",
}
HOSTILE: Final = {
    "NUL": "ada\0@example.com",
    "newline": "ada@example.com\n",
    "tab": "ada\t@example.com",
    "header injection": "ada@example.com\r\nBcc: eve@example.com",
    "zero width space": "ada\u200b@example.com",
    "right-to-left override": "ada\u202e@example.com",
    "soft hyphen": "a\u00adda@example.com",
    "lone surrogate": "ada\ud800@example.com",
    "line separator": "ada\u2028@example.com",
}


def _changes(character: str) -> bool:
    return unicodedata.normalize("NFKC", character) != character or character.casefold() != character


@cache
def changing() -> list[str]:
    """Find every code point that normalisation or case folding changes; only who runs these tests waits for it."""
    points = (chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF)
    return [character for character in points if _changes(character)]


MARKS: Final = "\u0300\u0301\u0307\u0308\u0323\u0327\u0345\u0334\u093c\u1161\u11a8\u3099\u302e"
LETTERS: Final = st.deferred(
    lambda: st.text(
        st.sampled_from([*changing(), *MARKS, *"abiskK\u017f\u03a3\u03c2\u03c3\u0131\u0130"]), min_size=1, max_size=12
    )
)
ANYTHING: Final = st.text(st.characters(exclude_categories=()), max_size=40)


def refusal(email: str) -> InvalidIdentity:
    with pytest.raises(InvalidIdentity) as caught:
        normalize_email(email)
    return caught.value


def normal_or_none(email: str) -> str | None:
    try:
        return normalize_email(email)
    except InvalidIdentity:
        return None


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_spellings_of_one_address_meet(one: str, other: str) -> None:
    """F15: what a reader takes for one address has one normal form, whatever the database's own idea of case is."""
    assert normalize_email(other) == normalize_email(one)


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART)
def test_addresses_that_only_look_alike_stay_apart(one: str, other: str) -> None:
    """A35: a look-alike is another mailbox, and never meets the address that it imitates."""
    assert normalize_email(other) != normalize_email(one)


@pytest.mark.parametrize("character", BECOMES_ANOTHER.values(), ids=BECOMES_ANOTHER)
@pytest.mark.parametrize("place", ["a{}b@example.com", "a@exa{}mple.com", "{}a@example.com", "a@example.com{}"])
def test_an_address_whose_structure_changes_is_refused(place: str, character: str) -> None:
    """A35: a sign that normalisation turns into one that splits addresses is refused (GHSA-7rqj-j65f-68wh)."""
    error = refusal(place.format(character))
    assert ("email", STRUCTURE, "invalid_identity") == (error.field, error.problem, error.code)


def test_a_full_width_at_never_stands_for_at() -> None:
    """A35: an address with no ``@`` of its own is none after normalisation either (GHSA-7rqj-j65f-68wh)."""
    assert STRUCTURE == refusal("ada\uff20example.com").problem
    assert STRUCTURE == refusal("ada@evil.example\uff20example.com").problem


@pytest.mark.parametrize("email", FORMLESS.values(), ids=FORMLESS)
def test_what_is_no_address_is_refused(email: str) -> None:
    """A35: an address is ``local@domain``, exactly once."""
    error = refusal(email)
    assert ("email", FORM) == (error.field, error.problem)
    assert "example" not in str(error)


@pytest.mark.parametrize("email", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_address_is_refused(email: str) -> None:
    """F21: controls, invisible characters and surrogates have no normal form."""
    error = refusal(email)
    assert ("email", "invalid_identity") == (error.field, error.code)
    assert error.problem.startswith("contains a")
    assert "example" not in str(error)


def test_no_address_is_refused() -> None:
    """F15: nothing to compare is an error, and not a key that all users without an address share."""
    error = refusal("")
    assert ("email", "is missing") == (error.field, error.problem)
    assert "e-mail scope" in str(error)


@pytest.mark.parametrize("place", ["a{}b@example.com", "a@exa{}mple.com"])
def test_no_character_adds_structure(place: str) -> None:
    """A35: of all characters that normalisation or case folding changes, none becomes a sign that splits an address."""
    signs = "@.\"'()<>[]\\,;:%/ "
    before = [place.count(sign) for sign in signs]
    added = [c for c in changing() if (n := normal_or_none(place.format(c))) and before != [n.count(s) for s in signs]]
    assert [] == added


def test_the_normal_form_of_every_character_is_its_own() -> None:
    """A35: for all characters that change at all, changing them once is enough."""
    forms = [form for character in changing() if (form := normal_or_none(f"{character}@example.com"))]
    assert [] == [form for form in forms if form != normal_or_none(form)]


@given(LETTERS, LETTERS)
def test_the_normal_form_is_its_own(local: str, domain: str) -> None:
    """A35: applying the function again changes nothing, also where letters and marks meet."""
    form = normal_or_none(f"{local}@{domain}")
    assume(form is not None)
    assert form == normal_or_none(str(form))


@given(LETTERS)
def test_composition_makes_no_difference(local: str) -> None:
    """F15: NFC and NFD of one address never end as two keys."""
    forms = {normal_or_none(unicodedata.normalize(form, f"{local}@example.com")) for form in ("NFC", "NFD")} - {None}
    assert len(forms) <= 1


@given(LETTERS)
def test_case_makes_no_difference(local: str) -> None:
    """F15: an address and its case-folded spelling never end as two keys."""
    forms = {normal_or_none(f"{text}@example.com") for text in (local, local.casefold())} - {None}
    assert len(forms) <= 1


@given(ANYTHING)
def test_any_text_has_a_normal_form_or_is_refused(text: str) -> None:
    """F21: whatever arrives, the answer is an address of two parts or the typed error."""
    form = normal_or_none(text)
    assert form is None or (1 == form.count("@") and all(form.split("@")))


@pytest.mark.parametrize(
    "letter", ["\ufb03", "\u0390", "\u337f", "\u00df"], ids=["ffi", "iota", "kabushiki", "sharp s"]
)
def test_a_normal_form_is_bounded_like_the_address(letter: str) -> None:
    """A35: an address that grows beyond the bound is refused, for a key that its own function refuses is none."""
    form = normal_or_none(letter * 308 + "@example.com")
    assert form is None or (len(form) <= 320 and form == normal_or_none(form))


def test_the_longest_address_has_a_normal_form() -> None:
    """A35: 320 characters are an address, 321 are none."""
    assert "a" * 308 + "@example.com" == normalize_email("A" * 308 + "@example.com")
    assert "is longer than 320 characters" == refusal("A" * 309 + "@example.com").problem
