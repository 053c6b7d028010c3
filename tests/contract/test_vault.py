"""Tokens in a table with a vault: sealed by every call that writes them, and read by their own link alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from accountlink import (
    AccountLinker,
    AccountNotFound,
    Change,
    ConfigurationError,
    CredentialsUnreadable,
    CredentialVault,
    Linked,
    MissingScopes,
    NeedsConsent,
    Plaintext,
    TokenSet,
    pending_credentials,
)
from tests.support.binds import BINDS, bound
from tests.support.models import EXCLUSIVE, PER_USER, POLICIES, identity, tokens
from tests.support.vaulted import KEY, OLD_KEY, Vaulted

pytestmark = pytest.mark.each_driver

HOWS = pytest.mark.parametrize("how", BINDS)
SOON = datetime.now(UTC) + timedelta(hours=1)
WHOLE = TokenSet(
    access_token="access-1",
    refresh_token="refresh-1",
    expires_at=SOON.replace(microsecond=0),
    scopes={"read", "write"},
    token_type="bearer",
    extra={"instance_url": "https://eu1.example"},
    client="web",
    refresh_expires_at=datetime(2027, 1, 1, tzinfo=UTC),
)


async def linked(vaulted: Vaulted, bind: Any, user_id: Any = 1, account: str = "sub-1", **options: Any) -> Any:
    outcome = await vaulted.linker.link(bind, user_id=user_id, identity=identity(account), **options)
    assert isinstance(outcome, Linked)
    return outcome


# -- writing and reading ----------------------------------------------------------------------------------------------


@HOWS
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_link_reads_what_it_was_given(engine: AsyncEngine, policy: str, how: str) -> None:
    """Every field of a set of tokens comes back, and the table has no token in clear."""
    vaulted = await Vaulted(POLICIES[policy], pending=False).create(engine)
    async with bound(engine, how) as bind:
        account = (await linked(vaulted, bind, credentials=WHOLE)).account
        assert WHOLE == await vaulted.linker.stored_credentials(bind, user_id=1, link_id=account.id)
    ((access, refresh),) = await vaulted.column(engine, "access_token", "refresh_token")
    assert access.startswith("al1.")
    assert refresh.startswith("al1.")
    assert access.split(".")[1:3] == refresh.split(".")[1:3]
    valid = await vaulted.linker.credentials(engine, user_id=1, provider="acme")
    assert (WHOLE.access_token, None, WHOLE.extra) == (valid.access_token, valid.refresh_token, valid.extra)


async def test_a_restore_brings_nothing_old_back(engine: AsyncEngine) -> None:
    """A32: after an unlink nothing is left to open, and a restore has what it brings."""
    vaulted = await Vaulted().create(engine)
    link_id = (await linked(vaulted, engine, credentials=WHOLE)).account.id
    await vaulted.linker.unlink(engine, user_id=1, link_id=link_id)
    assert [(None, None)] == await vaulted.column(engine, "access_token", "refresh_token")
    assert Change.RESTORED is (await linked(vaulted, engine)).change
    with pytest.raises(NeedsConsent) as raised:
        await vaulted.linker.stored_credentials(engine, user_id=1, provider="acme")
    assert link_id == raised.value.link_id
    await linked(vaulted, engine, credentials=TokenSet(access_token="access-2"))
    stored = await vaulted.linker.stored_credentials(engine, user_id=1, link_id=link_id)
    assert ("access-2", None) == (stored.access_token.reveal(), stored.refresh_token)


@pytest.mark.parametrize("user_id", [7, "ann", UUID("ABCDEF0123456789ABCDEF0123456789")])
async def test_each_type_of_user_id(engine: AsyncEngine, user_id: Any) -> None:
    vaulted = await Vaulted(user_type=type(user_id)).create(engine)
    await linked(vaulted, engine, user_id, credentials=WHOLE)
    assert WHOLE == await vaulted.linker.stored_credentials(engine, user_id=user_id, provider="acme")


# -- validity ---------------------------------------------------------------------------------------------------------


async def test_a_token_that_is_over_is_not_given_out(engine: AsyncEngine) -> None:
    """The database's clock decides. Without a refresh token only the user can help."""
    vaulted = await Vaulted().create(engine)
    over = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    link_id = (await linked(vaulted, engine, credentials=TokenSet(access_token="access-1", expires_at=over))).account.id
    with pytest.raises(NeedsConsent) as raised:
        await vaulted.linker.credentials(engine, user_id=1, provider="acme")
    assert (over, None, link_id) == (raised.value.since, raised.value.provider_code, raised.value.link_id)
    renewable = TokenSet(access_token="access-1", refresh_token="refresh-1", expires_at=over)
    await linked(vaulted, engine, credentials=renewable)
    with pytest.raises(ConfigurationError, match="does not renew"):
        await vaulted.linker.credentials(engine, user_id=1, provider="acme")
    assert renewable == await vaulted.linker.stored_credentials(engine, user_id=1, provider="acme")


async def test_missing_scopes_are_said(engine: AsyncEngine) -> None:
    vaulted = await Vaulted().create(engine)
    await linked(vaulted, engine, credentials=WHOLE)
    ready = await vaulted.linker.credentials(engine, user_id=1, provider="acme", require={"read"})
    assert "access-1" == ready.access_token.reveal()
    with pytest.raises(MissingScopes) as raised:
        await vaulted.linker.credentials(engine, user_id=1, provider="acme", require={"read", "admin"})
    assert frozenset({"admin"}) == raised.value.missing


async def test_another_user_reads_nothing(engine: AsyncEngine) -> None:
    vaulted = await Vaulted().create(engine)
    link_id = (await linked(vaulted, engine, credentials=WHOLE)).account.id
    for method in (vaulted.linker.credentials, vaulted.linker.stored_credentials):
        with pytest.raises(AccountNotFound):
            await method(engine, user_id=2, link_id=link_id)


# -- envelopes in the wrong place -------------------------------------------------------------------------------------


async def test_an_older_key_opens_and_an_unknown_one_is_said(engine: AsyncEngine) -> None:
    vaulted = await Vaulted(vault=CredentialVault(keys=[OLD_KEY])).create(engine)
    await linked(vaulted, engine, credentials=WHOLE)
    rotated = vaulted.other_linker(vault=CredentialVault(keys=[KEY, OLD_KEY]))
    assert WHOLE == await rotated.stored_credentials(engine, user_id=1, provider="acme")
    lost = vaulted.other_linker(vault=CredentialVault(keys=[KEY]))
    with pytest.raises(CredentialsUnreadable) as raised:
        await lost.stored_credentials(engine, user_id=1, provider="acme")
    assert "unknown_key" == raised.value.reason


async def test_plain_text_is_read_only_where_that_is_said(engine: AsyncEngine) -> None:
    vaulted = await Vaulted(pending=False).create(engine)
    plain = AccountLinker(vaulted.tables.Connection)
    await plain.link(engine, user_id=1, identity=identity(), credentials=tokens())
    with pytest.raises(CredentialsUnreadable) as raised:
        await vaulted.linker.stored_credentials(engine, user_id=1, provider="acme")
    assert "plain_text" == raised.value.reason
    reading = vaulted.other_linker(vault=CredentialVault(keys=[KEY], plaintext=Plaintext.READ))
    assert tokens() == await reading.stored_credentials(engine, user_id=1, provider="acme")


# -- replacing --------------------------------------------------------------------------------------------------------


@HOWS
async def test_tokens_are_replaced_if_the_link_has_what_was_presented(engine: AsyncEngine, how: str) -> None:
    """Two callers with one refresh token cannot both store what they got; version and grant id stay."""
    vaulted = await Vaulted().create(engine)
    link_id = (await linked(vaulted, engine, credentials=WHOLE)).account.id
    before = await vaulted.column(engine, "version", "access_token")
    new = TokenSet(access_token="access-2", refresh_token="refresh-2", expires_at=SOON, extra={"more": "1"})
    async with bound(engine, how) as bind:
        for expected in (True, False):
            assert expected is await vaulted.linker.replace_credentials(
                bind, user_id=1, link_id=link_id, tokens=new, presented="refresh-1"
            )
    stored = await vaulted.linker.stored_credentials(engine, user_id=1, link_id=link_id)
    assert stored.refresh_token is not None
    assert ("access-2", "refresh-2") == (stored.access_token.reveal(), stored.refresh_token.reveal())
    assert ({"instance_url", "more"}, "web", WHOLE.scopes) == (set(stored.extra), stored.client, stored.scopes)
    after = await vaulted.column(engine, "version", "access_token")
    assert [(version, access.split(".")[2]) for version, access in before] == [
        (version, access.split(".")[2]) for version, access in after
    ]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_a_linker_refuses() -> None:
    """A mistake is said when the linker is made, with its remedy."""
    vault = CredentialVault(keys=[KEY])
    with pytest.raises(ConfigurationError, match="needs vault="):
        Vaulted().other_linker(vault=None)
    with pytest.raises(ConfigurationError, match="secrets"):
        Vaulted().other_linker(secrets=[])
    with pytest.raises(ConfigurationError, match="EXCLUSIVE"):
        Vaulted(PER_USER)
    with pytest.raises(ConfigurationError, match="CredentialVault"):
        Vaulted().other_linker(vault=KEY)
    with pytest.raises(ConfigurationError, match="pending_credentials"):
        Vaulted(EXCLUSIVE).other_linker(pending=sa.Table("other", sa.MetaData()))
    assert vault.plaintext is Plaintext.REFUSE


async def test_what_only_an_envelope_holds_needs_a_vault(engine: AsyncEngine) -> None:
    """Nothing is dropped in silence."""
    vaulted = await Vaulted(pending=False).create(engine)
    plain = AccountLinker(vaulted.tables.Connection)
    for field in ({"extra": {"a": "b"}}, {"client": "web"}, {"refresh_expires_at": SOON}):
        brought = TokenSet(access_token="access-1", refresh_token="refresh-1", **field)
        with pytest.raises(ConfigurationError, match=next(iter(field))):
            await plain.link(engine, user_id=1, identity=identity(), credentials=brought)
    with pytest.raises(ConfigurationError, match="needs AccountLinker"):
        await plain.stored_credentials(engine, user_id=1, provider="acme")


def test_the_table_of_pending_credentials_is_made_once() -> None:
    metadata = sa.MetaData()
    assert pending_credentials(metadata) is pending_credentials(metadata)
