"""The tokens that a provider really hands out, followed through a flow whose linker has a vault."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from accountlink import AccountLinkError, CredentialVault, Linked, OwnershipConflict, Transferred
from accountlink.web import flow_states
from tests.support.canaries import in_clear, listening, shown_by
from tests.support.databases import Database
from tests.support.flows import FLOW_SECRETS, stage_on
from tests.support.models import EXCLUSIVE_SOFT, SECRETS
from tests.support.vaulted import KEY


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_what_a_provider_hands_out_stays_where_it_belongs(database: Database) -> None:
    """A28: from callback to transfer, no log and no table has a token, a code, or the secret of an OAuth client."""
    engine = database.engine(echo="debug")
    stage = await stage_on(engine, policy=EXCLUSIVE_SOFT, states=flow_states, vault=CredentialVault(keys=[KEY]))
    linker, codes, outcomes = stage.flow.linker, list[str](), list[object]()
    with listening() as ear:
        for user in (1, 1, 2):
            started = await stage.start(user)
            parameters = await stage.consent(started.url)
            codes.append(parameters["code"])
            outcomes.append((await stage.finish(started, parameters, user)).outcome)
        stage.provider.fail_next("token", error="invalid_client", description="canary")
        with pytest.raises(AccountLinkError) as refused:
            await stage.connect(1)
        assert isinstance(outcomes[2], OwnershipConflict)
        outcomes.append(await linker.transfer(engine, str(outcomes[2].transfer_token), user_id=2))
        stored = await linker.stored_credentials(engine, user_id=2, provider="acme")
    assert [Linked, Linked, OwnershipConflict, Transferred] == [type(each) for each in outcomes]
    kinds = ("access_token", "refresh_token", "id_token")
    issued = {answer[kind] for answer in stage.issued.answers for kind in kinds if kind in answer}
    assert stored.access_token.reveal() in issued
    async with database.engine().connect() as connection:
        found = [await connection.execute(sa.select(table)) for table in stage.metadata.sorted_tables]
        rows = repr([tuple(row) for result in found for row in result])
    file = Path(str(make_url(database.url).database))
    files = "".join(each.read_bytes().decode("latin-1") for each in file.parent.glob(f"{file.name}*"))
    told = {"log": "\n".join(ear.heard), "rows": rows, "files": files, "outcomes": repr(outcomes)}
    assert all("al1." in told[name] for name in ("log", "rows", "files"))
    told |= dict(shown_by(refused.value))
    secrets = (*issued, *codes, stage.provider.client_secret, *SECRETS, *FLOW_SECRETS)
    assert {} == {name: leaks for name, text in told.items() if (leaks := in_clear(text, secrets))}
