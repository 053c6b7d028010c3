"""Every preset: its documented answers prove the right identity, and nothing else does."""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountlink import ConfigurationError, InvalidIdentity, TokenSet, providers
from accountlink.providers import Described, EmailTrust, Evidence, EvidenceMissing, OAuthClient, Provider, Revocation
from tests.support.documented import CLIENT, DOCUMENTED, Documented
from tests.support.forked import Forks
from tests.support.pages import DOCS, text_of

PRESETS: Final = sorted(
    name
    for _, name, _ in pkgutil.iter_modules(providers.__path__)
    if callable(getattr(import_module(f"accountlink.providers.{name}"), name, None))
)
"""The presets that are there: a preset is a module with a function of its own name."""
MOMENT: Final = datetime(2026, 11, 29, tzinfo=UTC)
each_preset = pytest.mark.parametrize("name", PRESETS)
each_documented = pytest.mark.parametrize("documented", DOCUMENTED.values(), ids=list(DOCUMENTED))


def module_of(name: str) -> Any:  # a module
    return import_module(f"accountlink.providers.{name}")


# -- each preset is found because it is there ------------------------------------------------------------------------


@each_preset
def test_a_preset_is_public_and_has_documented_answers(name: str) -> None:
    """The package exports each preset, and each has an example of its provider's documentation."""
    assert name in providers.__all__
    assert getattr(providers, name) is getattr(module_of(name), name)
    assert name in DOCUMENTED


@each_preset
def test_the_file_of_a_preset_gives_its_reasons(name: str) -> None:
    """The file says what the stable id is, whether the e-mail flag is believed, and where its facts come from."""
    text = f"{module_of(name).__doc__}{getattr(module_of(name), name).__doc__}"
    assert all(word in text for word in ("stable id", "verified", "Source:"))


def test_each_preset_has_its_rows() -> None:
    """Both tables of the page, of ids and of refresh tokens, list each preset once."""
    rows = re.findall(r"^\| `providers\.(\w+)` \|", text_of(DOCS / "providers.md"), re.MULTILINE)
    assert sorted(PRESETS * 2) == sorted(rows)


@each_preset
def test_a_preset_takes_keywords(name: str) -> None:
    """Only the slug may be passed by position, and with one slug alone a preset has its own name for it."""
    parameters = inspect.signature(getattr(providers, name)).parameters
    by_position = [each.name for each in parameters.values() if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert by_position in ([], ["slug"])
    assert parameters["slug"].default == (inspect.Parameter.empty if by_position else name)


def test_the_public_names_are_complete() -> None:
    """Each public name is there, and sorted."""
    assert sorted(set(providers.__all__)) == sorted(providers.__all__)
    assert all(hasattr(providers, name) for name in providers.__all__)


@pytest.mark.parametrize("missing", ["httpx2", "joserfc", "starlette", "fastapi", "authlib"])
def test_the_presets_need_no_extra(forks: Forks, missing: str) -> None:
    """A preset can be made without the libraries that a flow needs."""
    code = "from accountlink import providers; providers.google(client_id='a', client_secret='b')"
    done = forks.run(code, missing=[missing])
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_the_presets_load_no_extra(forks: Forks) -> None:
    """The import of the presets loads none of those libraries."""
    tops = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import sys; from accountlink import providers; print({tops} & {{'httpx2', 'joserfc', 'starlette'}})"
    assert "set()" == forks.run(code).stdout.strip()


# -- what the documented answers come to ------------------------------------------------------------------------------


@each_documented
def test_the_documented_answers_prove_an_identity(documented: Documented) -> None:
    """The id, the address, its flag and the name are those of the provider's own example."""
    identity = documented.provider.identity(documented.evidence)
    assert documented.account_id == identity.account_id
    assert documented.email == identity.email
    assert documented.email_verified is identity.email_verified
    assert documented.display_name == identity.display_name
    assert documented.provider.slug == identity.provider
    assert documented.claims.get("iss", documented.provider.issuer) == identity.issuer


@each_documented
def test_the_documented_token_response_can_be_read(documented: Documented) -> None:
    """The token response of the documentation makes a token set, with the scopes that it lists."""
    tokens = TokenSet.from_response(documented.token, received_at=MOMENT)
    assert documented.token["access_token"] == tokens.access_token.reveal()
    assert documented.scopes == tokens.scopes
    assert (
        MOMENT + timedelta(seconds=documented.token["expires_in"]) if "expires_in" in documented.token else None
    ) == (tokens.expires_at)


@each_documented
def test_no_evidence_proves_nothing(documented: Documented) -> None:
    """Without claims and documents there is no identity."""
    with pytest.raises(EvidenceMissing):
        documented.provider.identity(Evidence())


@each_documented
@pytest.mark.parametrize("wrong", [None, 1.5, True, [], {}, ["1"]], ids=repr)
def test_an_id_of_another_type_proves_nothing(documented: Documented, wrong: object) -> None:
    """An id of a type that the provider does not document is not turned into text."""
    with pytest.raises(EvidenceMissing):
        documented.provider.identity(with_ids(documented, wrong))


@each_documented
def test_an_empty_id_is_refused(documented: Documented) -> None:
    """No two accounts share an empty id."""
    with pytest.raises((EvidenceMissing, InvalidIdentity)):
        documented.provider.identity(with_ids(documented, ""))


PLAIN: Final = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
JSON: Final = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)
"""The value of a member. No preset looks deeper into it."""
MEMBERS: Final = st.sampled_from(
    ["sub", "oid", "tid", "iss", "hd", "email", "email_verified", "name", "id", "login", "https://slack.com/team_id"]
)
ANSWER: Final = st.dictionaries(MEMBERS, JSON)
ADDRESS: Final = st.dictionaries(st.sampled_from(["email", "primary", "verified"]), st.just(True) | JSON)
DOCUMENTS: Final = st.dictionaries(
    st.sampled_from(["userinfo", "user", "emails", "me"]), JSON | ANSWER | st.lists(ADDRESS | JSON, max_size=2)
)


@each_documented
@given(claims=ANSWER, documents=DOCUMENTS)
def test_no_answer_makes_a_preset_fail(
    documented: Documented, claims: dict[str, Any], documents: dict[str, Any]
) -> None:
    """Whatever a provider answers, it proves an identity or is refused by one of two errors."""
    evidence = Evidence(claims={**documented.claims, **claims}, documents={**documented.documents, **documents})
    try:
        identity = documented.provider.identity(evidence)
    except (EvidenceMissing, InvalidIdentity):
        return
    assert identity.email_verified is None or identity.email is not None


def with_ids(documented: Documented, value: object) -> Evidence:
    """The documented answers, with another value for every id."""
    ids = {"id", "sub", "oid", "tid", "https://slack.com/team_id"}
    documents = {
        name: {key: value if key in ids else one for key, one in document.items()}
        if isinstance(document, dict)
        else document
        for name, document in documented.documents.items()
    }
    return Evidence(
        claims={key: value if key in ids else one for key, one in documented.claims.items()}, documents=documents
    )


def with_email(documented: Documented, **changes: object) -> Evidence:
    """The documented answers with another address, or another flag, wherever they stand."""
    claims = {**documented.claims, **changes} if documented.claims else {}
    documents = {
        name: {**document, **changes} if isinstance(document, dict) else [{**each, **changes} for each in document]
        for name, document in documented.documents.items()
    }
    return Evidence(claims=claims, documents=documents)


@each_documented
def test_a_new_address_is_the_same_account(documented: Documented) -> None:
    """A07: the account stays the same when its e-mail address changes."""
    moved = documented.provider.identity(with_email(documented, email="moved@example.org"))
    assert (documented.account_id, "moved@example.org") == (moved.account_id, moved.email)


@each_documented
@pytest.mark.parametrize("flag", ["false", "False", "no", "0", 0, 1, "", None, [], "TRUE", "yes"], ids=repr)
def test_only_a_boolean_vouches_for_an_address(documented: Documented, flag: object) -> None:
    """A05: the text "false" and its like never say that an address is verified."""
    identity = documented.provider.identity(with_email(documented, email_verified=flag, verified=flag))
    assert identity.email_verified is not True


@each_documented
def test_no_flag_is_no_verified_address(documented: Documented) -> None:
    """A05: an address without a flag is not verified."""
    without = {key: value for key, value in documented.claims.items() if key != "email_verified"}
    documents = {name: document for name, document in documented.documents.items() if name != "emails"}
    identity = documented.provider.identity(Evidence(claims=without, documents=documents))
    assert identity.email_verified is None


@each_documented
@pytest.mark.parametrize(
    "email", ["victim\N{FULLWIDTH COMMERCIAL AT}gmail.com", "v\N{LATIN SMALL LETTER DOTLESS I}ctim@gmail.com"]
)
def test_an_address_is_kept_as_the_provider_wrote_it(documented: Documented, email: str) -> None:
    """A35: a preset neither folds nor corrects an address, so that nobody's address becomes another's."""
    assert email == documented.provider.identity(with_email(documented, email=email)).email


@each_documented
def test_an_untrusted_flag_is_dropped(documented: Documented) -> None:
    """A05: a preset that does not believe the flag reports none, whatever the flag is."""
    untrusted = replace(documented.provider, email_trust=EmailTrust.UNTRUSTED)
    for flag in (True, False):
        assert untrusted.identity(with_email(documented, email_verified=flag, verified=True)).email_verified is None


TRUST: Final = {name: documented.provider.email_trust.value for name, documented in DOCUMENTED.items()}


def test_who_is_believed() -> None:
    """A05: the flags of four providers are believed, each for the reason that its file gives."""
    assert {"apple", "github", "gitlab", "google"} == {n for n, trust in TRUST.items() if trust == "verified_flag"}


@each_documented
def test_what_a_repr_shows(documented: Documented) -> None:
    """A provider and the evidence can be logged: neither secret nor address nor id is shown."""
    shown = repr((documented.provider, documented.evidence, documented.provider.describe(documented.evidence)))
    hidden = ["the-client-secret", "PRIVATE KEY", documented.account_id, documented.email, documented.display_name]
    assert [] == [text for text in hidden if text and len(text) > 2 and text in shown]


# -- the frozen value -------------------------------------------------------------------------------------------------


def described(evidence: Evidence) -> Described:
    return Described(account_id=evidence.documents["me"]["id"], email="a@example.com", email_verified=True)


def own(**changes: Any) -> Provider:
    """A provider of an application's own."""
    fields: dict[str, Any] = {
        "slug": "own",
        "name": "Own",
        "clients": [OAuthClient(**CLIENT)],
        "describe": described,
        "authorization_endpoint": "https://own.example/authorize",
        "token_endpoint": "https://own.example/token",
        "id_token": False,
    }
    return Provider(**{**fields, **changes})


def test_a_provider_of_an_application_s_own() -> None:
    """An application adds a provider in its own code, and its flag is not believed unless it says so."""
    evidence = Evidence(documents={"me": {"id": 7}})
    assert ("7", None) == (own().identity(evidence).account_id, own().identity(evidence).email_verified)
    assert own(email_trust=EmailTrust.VERIFIED_FLAG).identity(evidence).email_verified is True


def test_a_provider_is_frozen() -> None:
    """Neither a field nor a list that was passed changes a provider later."""
    scopes = ["a"]
    provider = own(scopes=scopes)
    scopes.append("b")
    assert ("a",) == provider.scopes
    with pytest.raises(FrozenInstanceError):
        setattr(provider, "slug", "other")  # noqa: B010  # a type checker would refuse it written out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slug": "Own"}, "redirect URI"),
        ({"slug": "a/b"}, "redirect URI"),
        ({"slug": 7}, "redirect URI"),
        ({"clients": []}, "client_id"),
        ({"scopes": "openid"}, "one text"),
        ({"scopes": ["a b"]}, "white space"),
        ({"scopes": [7]}, "white space"),
        ({"tenants": "one"}, "one text"),
        ({"clients": 7}, "one text"),
        ({"issuer": "own.example"}, "https"),
        ({"token_endpoint": "http://own.example/token"}, "https"),
        ({"token_endpoint": "https://[own.example"}, "https"),
        ({"requests": {"me": "ftp://own.example"}}, "https"),
        ({"token_endpoint": None}, "endpoints"),
        ({"id_token": True}, "issuer"),
        ({"algorithms": ["none"]}, "algorithms"),
    ],
    ids=repr,
)
def test_a_provider_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    """A flow never begins with a provider that cannot end it; the message says what to pass."""
    with pytest.raises(ConfigurationError, match=words):
        own(**changes)


def test_a_provider_on_this_machine_may_use_http() -> None:
    """A test's provider needs no certificate."""
    assert "http://127.0.0.1:9/token" == own(token_endpoint="http://127.0.0.1:9/token").token_endpoint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client_id": ""}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"client_secret": " "}, "empty"),
        ({"client_secret": None}, "public"),
        ({"client_secret": 7}, "function"),
        ({"auth_method": "none"}, "public"),
        ({"auth_method": "client_secret_jwt"}, "auth_method"),
    ],
    ids=repr,
)
def test_a_client_that_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    """A registration without an id, or with half a secret, is refused before the first user."""
    with pytest.raises(ConfigurationError, match=words):
        OAuthClient(**{**CLIENT, **changes})


def test_a_secret_is_text_or_made_anew() -> None:
    """The secret of a client is the text, what a function returns each time, or nothing."""
    made = iter(["one", "two"])
    assert "the-client-secret" == OAuthClient(**CLIENT).secret()
    anew = OAuthClient(client_id="a", client_secret=lambda: next(made))
    assert ("one", "two") == (anew.secret(), anew.secret())
    assert OAuthClient(client_id="a", auth_method="none").secret() is None


@each_documented
def test_refresh_tokens_that_rotate_say_for_how_long_the_former_lives(documented: Documented) -> None:
    """A preset that knows of rotation knows of the former token too; what it does not know is ``None``."""
    behaviour = documented.provider.client.behaviour
    assert (behaviour.grace is not None) == (behaviour.rotates is True)


def test_how_each_token_is_revoked() -> None:
    """Each provider's way of revoking is data."""
    ways = {name: documented.provider.client.revocation for name, documented in DOCUMENTED.items()}
    own_way, standard = Revocation.OWN, Revocation.RFC7009
    assert {
        "google": standard, "entra": Revocation.UNSUPPORTED, "github": own_way, "meta": own_way,
        "apple": standard, "gitlab": standard, "slack": own_way, "oidc": standard,
    } == ways  # fmt: skip
