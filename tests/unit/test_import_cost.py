"""The import of accountlink loads no part of the doctor, and nothing that only a vault needs."""

import json
from typing import Final

import pytest

import accountlink
from tests.support.forked import Forks

OF_THE_DOCTOR: Final = "accountlink.doctor"
NAMES: Final = ("Finding", "Look", "Severity", "diagnose")


def loaded_by(forks: Forks, code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code."""
    done = forks.run(f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))")
    assert (0, "") == (done.returncode, done.stderr)
    return set(json.loads(done.stdout))


def doctors(modules: set[str]) -> list[str]:
    return sorted(name for name in modules if name.startswith(OF_THE_DOCTOR))


def test_importing_the_package_loads_nothing_of_the_doctor(forks: Forks) -> None:
    """An application that links accounts loads neither the doctor nor the readers of SQL and of catalogues."""
    linking = "from accountlink import AccountLinker, ShareGrants, link_outbox, grants_table, transfer_ledger"
    assert [] == doctors(loaded_by(forks, linking))


@pytest.mark.parametrize("name", NAMES)
def test_the_doctors_names_load_it_when_they_are_asked_for(forks: Forks, name: str) -> None:
    """``from accountlink import diagnose`` and its companions go on working, each by itself."""
    assert "accountlink.doctor" in doctors(loaded_by(forks, f"from accountlink import {name}"))


def test_the_doctors_names_are_listed_and_an_unknown_one_is_refused() -> None:
    """``dir`` shows them, and a name that is not there is an ``AttributeError`` as in every module."""
    assert set() == set(NAMES) - set(dir(accountlink))
    with pytest.raises(AttributeError, match="no attribute 'diagnosis'"):
        getattr(accountlink, "diagnosis")  # noqa: B009  # a type checker would refuse it written out


OF_A_VAULT: Final = ("cryptography", "cffi", "_cffi_backend", "accountlink.vault.sealing", "accountlink.vault.stored")
"""What seals, which takes several times as long to load as to use."""
A_LINKER: Final = """
import sqlalchemy as sa
from accountlink import AccountLinker, AccountMapping, CredentialVault, LinkPolicy, pending_credentials

names = ("user_id", "provider", "account_id", "access_token")
columns = [sa.Column(name, sa.Text, nullable=False) for name in names]
table = sa.Table("links", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), *columns)
pending_credentials(table.metadata)
mapping = AccountMapping(table, policy=LinkPolicy(), version=None)
AccountLinker(mapping)
"""


def sealing(modules: set[str]) -> list[str]:
    return sorted(name for name in modules if name.startswith(OF_A_VAULT))


def test_an_application_without_a_vault_loads_nothing_that_seals(forks: Forks) -> None:
    """The names of the vault can be imported, and a linker made, without a trace of ``cryptography``."""
    assert [] == sealing(loaded_by(forks, A_LINKER))


def test_a_vault_loads_what_seals_when_it_is_made(forks: Forks) -> None:
    """What is missing is said when the application starts, not at the first user's link."""
    made = f"{A_LINKER}\nCredentialVault(keys=[bytes(32)])"
    assert {"accountlink.vault.sealing", "cryptography"} <= set(sealing(loaded_by(forks, made)))
