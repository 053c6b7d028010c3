"""What holds a secret of a vault, through every encoder at hand: it shows none, or refuses."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pytest
import sqlalchemy as sa

from accountlink import AccountLinker, CredentialVault, Secret, TokenSet, VaultKey, pending_credentials, providers
from accountlink.linking.call import Brought, Call
from accountlink.values.base64url import encoded
from accountlink.values.outcomes import LinkedAccount
from accountlink.vault.contents import AccessToken, RefreshToken
from accountlink.vault.envelope import BoundTo, Envelope
from accountlink.vault.keys import GivenKeys
from accountlink.vault.sealing import Sealing, TableVault
from accountlink.vault.stored import StoredTokens
from tests.support.canaries import FACES, SLOW_FACES, faces_of, in_clear
from tests.support.models import EXCLUSIVE_SOFT, identity, make_tables

TEXTS: Final = ("canary-access", "canary-refresh", "canary-id-token", "canary-extra")
KEY: Final = b"canary-key-of-exactly-32-bytes--"
SIGNS: Final = "canary-secret-that-signs-transfer-tokens"
CANARIES: Final = (*TEXTS, KEY.decode(), SIGNS, "canary-client-secret")
NOW: Final = datetime(2026, 1, 2, tzinfo=UTC)
TOKENS: Final = TokenSet(
    access_token="canary-access",
    refresh_token="canary-refresh",
    id_token="canary-id-token",
    expires_at=NOW,
    scopes={"read"},
    extra={"instance_url": "canary-extra"},
    client="web",
    refresh_expires_at=NOW,
)
TABLES: Final = make_tables(EXCLUSIVE_SOFT)
VAULT: Final = CredentialVault(keys=[KEY, encoded(KEY[::-1])])
LINKER: Final[AccountLinker[Any, Any]] = AccountLinker(
    TABLES.Connection, secrets=[SIGNS], vault=VAULT, pending=pending_credentials(TABLES.metadata)
)
TABLE_VAULT: Final = TableVault(VAULT, LINKER.mapping)
SEALING: Final = Sealing(TABLE_VAULT, VaultKey(secret=KEY))
BOUND_TO: Final = BoundTo(context="connections", user_id=1, provider="acme", account_key="sub-1")
ACCOUNT: Final[LinkedAccount[Any, Any]] = LinkedAccount(
    id=1,
    user_id=1,
    provider="acme",
    account_id="sub-1",
    email=None,
    scopes=None,
    created_at=None,
    updated_at=None,
    deleted_at=None,
)


def call(seal: Sealing | None) -> Call:
    """A call that brings tokens, as the linker makes it."""
    tokens = TOKENS if seal else TokenSet(access_token="canary-access", refresh_token="canary-refresh")
    linker = LINKER if seal else AccountLinker(TABLES.Connection)
    return linker._store.calls.link(  # what is under test
        user_id=1, identity=identity(), credentials=tokens, expect=None, values=None, update_values=None, seal=seal
    )


HOLDERS: Final[dict[str, Any]] = {
    "TokenSet": TOKENS,
    "Secret": TOKENS.access_token,
    "extra": TOKENS.extra,
    "VaultKey": VaultKey(secret=KEY),
    "VaultKey of a text": VaultKey(secret=encoded(KEY)),
    "key's secret": VaultKey(secret=KEY).secret,
    "GivenKeys": GivenKeys([KEY]),
    "CredentialVault": VAULT,
    "TableVault": TABLE_VAULT,
    "Sealing": SEALING,
    "AccessToken": AccessToken(token=TOKENS.access_token, extra=TOKENS.extra),
    "RefreshToken": RefreshToken(token=Secret("canary-refresh"), client="web"),
    "StoredTokens": StoredTokens(
        seen={}, account=ACCOUNT, access_token="al1.x", refresh_token=None, expires_at=NOW, now=NOW, bound_to=BOUND_TO
    ),
    "Envelope": Envelope(key_id="a" * 8, grant_id="b" * 16, data=b"c"),
    "BoundTo": BOUND_TO,
    "Brought": Brought(tokens=TOKENS, seal=SEALING),
    "Call": call(SEALING),
    "Call.parameters": call(SEALING).parameters,
    "Call.kept": call(SEALING).kept,
    "AccountLinker": LINKER,
    "Provider": providers.google(client_id="app", client_secret="canary-client-secret"),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_no_encoder_shows_a_secret(holder: object) -> None:
    """A28: what holds a secret shows it in no text, copy, pickle or encoding, and in no error of an encoder."""
    shown = [*faces_of(holder, FACES), *faces_of(holder, SLOW_FACES)]
    assert [] == [f"{where}: {canary}" for where, text in shown for canary in in_clear(text, CANARIES)]


@pytest.mark.parametrize("refused", [json.dumps, pickle.dumps, vars, iter], ids=lambda each: each.__name__)
@pytest.mark.parametrize("holder", [TOKENS, TOKENS.access_token, VaultKey(secret=KEY)], ids=["tokens", "one", "key"])
def test_some_encoders_are_refused(holder: object, refused: Callable[[Any], object]) -> None:
    """A28: a session store, a task queue or a cache gets an error instead of a token or a key."""
    with pytest.raises(TypeError):
        refused(holder)


def test_a_copy_has_the_secrets() -> None:
    """What is copied deeply, as ``asdict`` does, still reveals on purpose."""
    assert TOKENS == copy.deepcopy(TOKENS)
    assert "canary-extra" == copy.deepcopy(TOKENS).extra["instance_url"].reveal()
    assert KEY == copy.deepcopy(VaultKey(secret=KEY)).secret.reveal()


def test_a_call_without_a_vault_is_masked_too() -> None:
    """A28: the parameters of a call, which are the tokens themselves where nothing seals them, show in no ``repr``."""
    plain = call(None)
    parameters = plain.parameters
    assert "canary-access" == parameters["al_access_token"]
    for shown in (plain, parameters, vars(plain), dict(parameters), plain.credentials, [*parameters.values()]):
        assert [] == in_clear(repr(shown), CANARIES)


def reached_from(thing: object) -> Iterator[tuple[str, object]]:
    """Every object of accountlink's, container and partial call that a linker is made of, with the way to it."""
    seen: dict[int, object] = {}
    pending: list[tuple[str, object]] = [(type(thing).__name__, thing)]
    while pending:
        path, current = pending.pop()
        if id(current) in seen or isinstance(current, (type, sa.sql.ClauseElement, sa.MetaData)):
            continue
        seen[id(current)] = current
        yield path, current
        if isinstance(current, functools.partial):
            parts = (current.func, *current.args, *current.keywords.values())
            pending += [(f"{path} argument", each) for each in parts]
        if callable(current) and hasattr(current, "__self__"):
            pending.append((f"{path} of", current.__self__))
        if isinstance(current, Mapping):
            pending += [(f"{path}[{name!r}]", each) for name, each in current.items()]
        elif isinstance(current, (list, tuple, set, frozenset)):
            pending += [(f"{path}[{number}]", each) for number, each in enumerate(current)]
        elif type(current).__module__.startswith("accountlink"):
            names = [*getattr(current, "__dict__", {}), *getattr(type(current), "__slots__", ())]
            pending += [(f"{path}.{name}", getattr(current, name)) for name in names if hasattr(current, name)]


def test_nothing_that_a_linker_is_made_of_shows_a_secret() -> None:
    """A28: an error tracker that walks into a linker, and shows what it meets, finds no key."""
    reached = list(reached_from(LINKER))
    assert {"VaultKey", "TransferSigner", "Calls", "StoredCredentials"} <= {type(each).__name__ for _, each in reached}
    assert [] == [(path, canary) for path, each in reached for canary in in_clear(repr(each), CANARIES)]
