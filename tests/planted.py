"""Plants faults in a copy of the library, and counts how often the tests of the default run find each.

``python -m tests.planted [--runs 100] [--full] [NAME ...]``

A race test of a few rounds is worth having only if it finds what it is there to find, nearly always. Each fault here
takes away one thing that a race depends on: a lock, a second look, a condition. The copy is made anew for each, and the
text that a fault replaces must stand in the source exactly once, so that a fault is never planted beside the point.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
RUNS: Final = "ACCOUNTLINK_PLANTED_RUNS"


@dataclass(frozen=True)
class Fault:
    """A thing that is taken away, and the test that has to notice.

    Attributes:
        file: Where, below ``src/accountlink``.
        old: What stands there, once.
        new: What is put there instead.
        test: The tests that must go red, below ``tests``: one by its id, or several by a file and ``-k``.
        only: ``-k`` of pytest.
        certain: Whether one run is enough, because no race decides.
    """

    file: str
    old: str
    new: str
    test: str
    only: str = ""
    certain: bool = False


RACES: Final = "contract/test_races.py"
FLOW: Final = "contract/test_flow.py"
SIGN_IN: Final = "contract/test_sign_in.py"
STATES: Final = "contract/test_flow_states.py"
TOKENS: Final = "contract/test_id_tokens.py"
REFUSALS: Final = "contract/test_router_refusals.py"
PAGES: Final = "contract/test_router_pages.py"
GATED: Final = "contract/test_gated_races.py"
CANARIES: Final = "contract/test_vault_canaries.py"
FAULTS: Final[dict[str, Fault]] = {
    "link: no ON CONFLICT": Fault(
        file="linking/statements.py",
        old="            insert_or_nothing(self._t)\n",
        new="            sa.insert(self._t)\n",
        test=GATED,
        only="first_links_of_one_user and exclusive-soft",
    ),
    "link: restored without a second look": Fault(
        file="linking/statements.py",
        old="self.live() == own.c.was_live if self._policy.removal is Removal.SOFT else sa.true(),",
        new="sa.true(),",
        test=GATED,
        only="restores_of_one_user",
    ),
    "sqlite: a transaction begins without the lock": Fault(
        file="database/sqlite.py",
        old='!= "AUTOCOMMIT":\n        connection.exec_driver_sql("BEGIN IMMEDIATE")',
        new='!= "AUTOCOMMIT":\n        connection.exec_driver_sql("BEGIN")',
        test=RACES,
        only="one_user_racing_themselves and sqlite and not policy",
    ),
    "transfer: the row is not looked at again": Fault(
        file="transfers/statements.py",
        old='[self._is_the_link(), self._c["user_id"] == self._owner(), self.same_account(), self.live()]\n'
        '        if self._mapping.written("version"):',
        new="[self._is_the_link()]\n        if False:",
        test="contract/test_transfer_races.py",
        only="of_two_claimants and asyncpg and not ledger",
    ),
    "transfer: the epoch is not looked at again": Fault(
        file="transfers/statements.py",
        old='ledger.raised_by(locked, read=sa.bindparam("al_version_read", type_=sa.BigInteger))',
        new="ledger.raised_by(locked)",
        test="contract/test_transfer_races.py",
        only="there_and_back and asyncpg and ledger and engine",
    ),
    "grants: a token is read without a lock": Fault(
        file="grants/statements.py",
        old="            .with_for_update(of=self._t)\n            .cte(",
        new="            .cte(",
        test=GATED,
        only="users_who_redeem and own",
    ),
    "grants: redemptions of a pair take no turns": Fault(
        file="grants/statements.py",
        old="select(level, sa.func.pg_advisory_xact_lock(key))",
        new='select(level, sa.cast(key, sa.Text) + ":")',
        test=GATED,
        only="tokens_of_one_pair and patients-pairs",
    ),
    "unlink: the last link is counted without a lock": Fault(
        file="linking/statements.py",
        old='query.order_by(self._c["id"]).with_for_update()',
        new='query.order_by(self._c["id"])',
        test=GATED,
        only="unlinks_both",
    ),
    "outbox: an event is read without a lock": Fault(
        file="outbox/reading.py",
        old=".with_for_update(skip_locked=True)",
        new="",
        test="contract/test_deliveries.py",
        only="share_the_events and asyncpg",
    ),
    "outbox: a claim is not looked at": Fault(
        file="outbox/reading.py",
        old="sa.or_(free.c.claimed_until.is_(None), free.c.claimed_until <= now)",
        new="sa.true()",
        test="contract/test_deliveries.py",
        only="share_the_events and sqlite",
    ),
    "flow: a state is used twice (A09)": Fault(
        file="web/states.py",
        old="mine, c.used_at.is_(None), c.expires_at > now",
        new="mine, c.expires_at > now",
        test=STATES,
        only="used_once and sqlite and table",
        certain=True,
    ),
    "flow: a state has no end (A09, A22)": Fault(
        file="web/states.py",
        old="mine, c.used_at.is_(None), c.expires_at > now",
        new="mine, c.used_at.is_(None)",
        test=STATES,
        only="record_ends and sqlite and table",
        certain=True,
    ),
    "flow: another user ends it (A10)": Fault(
        file="web/states.py",
        old='            c.user_id == sa.bindparam("al_user", type_=sa.Text),\n',
        new="",
        test=STATES,
        only="used_once and sqlite and table",
        certain=True,
    ),
    "flow: another browser ends it (A09, A12)": Fault(
        file="web/states.py",
        old='sa.or_(c.browser.is_(None), c.browser == sa.bindparam("al_browser", type_=sa.Text)),',
        new="",
        test=STATES,
        only="used_once and sqlite and table",
        certain=True,
    ),
    "sign-in: another browser ends it (A09)": Fault(
        file="web/sign_in.py",
        old='return f"browser:{digest(browser)}"',
        new='return "browser"',
        test=SIGN_IN,
        only="another_browser or cookie_of_another",
        certain=True,
    ),
    "sign-in: its record is one of a link's flow (A20)": Fault(
        file="web/states.py",
        old='    SIGN_IN = "sign_in"\n',
        new='    SIGN_IN = "flow"\n',
        test=STATES,
        only="used_once and sqlite and table",
        certain=True,
    ),
    "flow: a ticket serves as a state (A20)": Fault(
        file="web/states.py",
        old='            c.kind == sa.bindparam("al_kind", type_=sa.Text),\n',
        new="",
        test=STATES,
        only="used_once and sqlite and table",
        certain=True,
    ),
    "flow: a user has any number of records (A40)": Fault(
        file="web/states.py",
        old="            connection.execute(self._trim, Parameters(al_user_id=record.user_id))\n",
        new="",
        test=STATES,
        only="loses_the_oldest and sqlite and table",
        certain=True,
    ),
    "flow: nobody need be signed in at the end (A10)": Fault(
        file="web/flow.py",
        old="        if user_id is None:\n            raise FlowNotStartedHere\n",
        new="        if user_id is None:\n            user_id = 1  # type: ignore[assignment]\n",
        test=FLOW,
        only="another_user_cannot_end",
        certain=True,
    ),
    "flow: another provider's callback (A11, A12)": Fault(
        file="web/journeys.py",
        old="if record.provider != exchange.provider.slug:",
        new="if False:",
        test=FLOW,
        only="another_provider_is_refused",
        certain=True,
    ),
    "flow: the issuer is not compared (A11)": Fault(
        file="web/exchange.py",
        old="        raise ProviderMismatch\n\n    async def prove",
        new="        return\n\n    async def prove",
        test=FLOW,
        only="another_issuer_is_refused",
        certain=True,
    ),
    "flow: a promised issuer may be missing (A11)": Fault(
        file="web/exchange.py",
        old="if iss is None and not endpoints.promises_iss:",
        new="if iss is None:",
        test=FLOW,
        only="another_issuer_is_refused and None",
        certain=True,
    ),
    "flow: no PKCE (A14)": Fault(
        file="web/exchange.py",
        old="            code_challenge=create_s256_code_challenge(verifier),\n",
        new="",
        test=FLOW,
        only="ends_in_a_link or holds_what_protects",
        certain=True,
    ),
    "flow: the nonce is not compared (A15)": Fault(
        file="web/id_tokens.py",
        old='            "nonce": {"essential": True, "value": nonce},\n        }\n        context = {"nonce": nonce, ',
        new="        }\n        context = {",
        test=TOKENS,
        only="nonce",
        certain=True,
    ),
    "flow: the audience is Authlib's alone (A15)": Fault(
        file="web/id_tokens.py",
        old='            "aud": {"essential": True, "value": client_id},\n',
        new="",
        test=TOKENS,
        only="audience",
        certain=True,
    ),
    "flow: the token's issuer is not compared (A15, A17)": Fault(
        file="web/id_tokens.py",
        old='            "iss": {"essential": True, "value": _issuer_for(provider, token.claims)},\n',
        new="",
        test=TOKENS,
        only="issuer",
        certain=True,
    ),
    "flow: any key signs (A15)": Fault(
        file="web/id_tokens.py",
        old="        token = jwt.decode(",
        new="        from joserfc.jws import extract_compact  # noqa: PLC0415\n"
        "        import json  # noqa: PLC0415\n"
        "        from types import SimpleNamespace  # noqa: PLC0415\n"
        "        jws = extract_compact(_text(raw).encode())\n"
        "        token = SimpleNamespace(claims=json.loads(jws.payload), header=jws.headers())\n"
        "        (lambda *_, **__: None)(",
        test=TOKENS,
        only="another_key or none or flipped or swapped or public",
        certain=True,
    ),
    "flow: userinfo of another account (A15)": Fault(
        file="web/exchange.py",
        old='(claims and told.get("sub") != claims["sub"])',
        new="False",
        test=FLOW,
        only="userinfo_of_another",
        certain=True,
    ),
    "flow: another issuer's discovery document (A17)": Fault(
        file="web/exchange.py",
        old='or document.get("issuer") != provider.issuer',
        new="",
        test=FLOW,
        only="discovery_document_of_another",
        certain=True,
    ),
    "flow: an answer of any size (A40)": Fault(
        file="providers/conversation.py", old="if left < 0:", new="if False:", test=FLOW, only="megabyte", certain=True
    ),
    "flow: any return target (A24)": Fault(
        file="web/targets.py",
        old="        if not _PATH.fullmatch(return_to) or _hides_something(return_to):\n",
        new="        if False:\n",
        test="unit/test_return_targets.py",
        certain=True,
    ),
    "flow: a target hides another one (A24)": Fault(
        file="web/targets.py",
        old=" or _hides_something(return_to)",
        new="",
        test="unit/test_return_targets.py",
        certain=True,
    ),
    "flow: a transfer token goes anywhere (A24)": Fault(
        file="web/targets.py",
        old="if return_to is not None and origin_of(return_to) == self.origin else self.page",
        new="or self.page",
        test=FLOW,
        only="pages_origin_only",
        certain=True,
    ),
    "flow: an error's text decides nothing (A33)": Fault(
        file="web/journeys.py",
        old='if (refusal := parameters.get("error")) is not None:',
        new='if (refusal := parameters.get("error")) is not None and False:',
        test=FLOW,
        only="declined_consent",
        certain=True,
    ),
    "flow: who acts for a user connects": Fault(
        file="web/checks.py",
        old="        raise ImpersonationRefused\n    return user",
        new="        return user.user_id  # type: ignore[no-any-return]\n    return user",
        test=FLOW,
        only="acts_for_a_user",
        certain=True,
    ),
    "flow: any tenant's token (A06, A38)": Fault(
        file="web/id_tokens.py",
        old="if tenant not in provider.tenants:",
        new="if False:",
        test=TOKENS,
        only="accepted_tenants",
        certain=True,
    ),
    "router: pages of another site (A34)": Fault(
        file="web/origins.py",
        old='    origin, relation = asked.headers.get("origin")',
        new='    return\n    origin, relation = asked.headers.get("origin")',
        test=REFUSALS,
        only="other_sites",
        certain=True,
    ),
    "router: a cookie that a sibling host can plant (A13)": Fault(
        file="web/browser.py",
        old='"__Host-accountlink" if https else "accountlink"',
        new='"accountlink"',
        test=PAGES,
        only="no_other_host_can_set",
        certain=True,
    ),
    "router: answers that caches keep (A23)": Fault(
        file="web/asked.py",
        old='("cache-control", "no-store"), ',
        new="",
        test=PAGES,
        only="kept_or_passed_on",
        certain=True,
    ),
    "router: HEAD runs a GET (A23)": Fault(
        file="web/starlette.py",
        old="        made.methods = {route.method}  # Starlette adds HEAD, and would run a GET for it\n",
        new="",
        test=REFUSALS,
        only="head_consumes_nothing and starlette",
        certain=True,
    ),
    "router: a parameter comes twice": Fault(
        file="web/fields.py",
        old="if len(found) != len(given):",
        new="if False:",
        test=REFUSALS,
        only="comes_twice",
        certain=True,
    ),
    "router: a body of any size (A40)": Fault(
        file="web/fields.py",
        old="if len(asked.body) > LARGEST:",
        new="if False:",
        test=REFUSALS,
        only="not_understood",
        certain=True,
    ),
    "router: a start by GET (A34)": Fault(
        file="web/routes.py",
        old='name="connect", method="POST"',
        new='name="connect", method="GET"',
        test=REFUSALS,
        only="start_by_get",
        certain=True,
    ),
    "router: a header unbinds a flow (A09)": Fault(
        file="web/routes.py",
        old="if asked.has_bearer and not asked.has_cookies:",
        new="if asked.has_bearer:",
        test=REFUSALS,
        only="unbinds_no_flow",
        certain=True,
    ),
    "flow: an e-mail flag is believed (A05)": Fault(
        file="providers/provider.py",
        old="trusted = self.email_trust is EmailTrust.VERIFIED_FLAG",
        new="trusted = True",
        test="unit/test_providers.py",
        certain=True,
    ),
    "flow: an address is split after normalisation alone (A35)": Fault(
        file="values/email.py",
        old="if _structure(normal) != _structure(checked) or any(dot in normal for dot in _OTHER_DOTS):",
        new="if False:",
        test="unit/test_email.py",
        certain=True,
    ),
    "vault: an echo of rows shows plain text (A28)": Fault(
        file="vault/statements.py",
        old="(concealed(self._c[role]) if role in SEALED_ROLES else self._c[role]).label(role)",
        new="self._c[role].label(role)",
        test=CANARIES,
        only="sqlite and (plain_text or cannot_be_read)",
        certain=True,
    ),
    "vault: a source's wrong answer stays in a frame (A28)": Fault(
        file="vault/keys.py",
        old="        del key  # leave no key in this frame, which a traceback with locals would show\n"
        '        raise ConfigurationError(f"current()',
        new='        raise ConfigurationError(f"current()',
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: what was presented stays in a frame (A28)": Fault(
        file="linker.py",
        old='sent, presented = Concealed[object](presented), ""',
        new="sent = Concealed[object](presented)",
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: what was rejected stays in a frame (A28)": Fault(
        file="linker.py",
        old="refused, rejected = Concealed[object](rejected), None",
        new="refused = Concealed[object](rejected)",
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: a transfer token stays in a frame (A28)": Fault(
        file="linker.py",
        old='presented, token = self._transfers.read(token), ""',
        new="presented = self._transfers.read(token)",
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: tokens go beside their envelopes (A28)": Fault(
        file="linking/call.py",
        old='ConcealedText("" if seal else tokens.access_token.reveal())',
        new="ConcealedText(tokens.access_token.reveal())",
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: a conflict keeps tokens in clear (A28)": Fault(
        file="tables/pending.py",
        old='"al_kept_refresh_token": sealed.get("refresh_token"),',
        new='"al_kept_refresh_token": tokens.refresh_token and tokens.refresh_token.reveal(),',
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: a log shows a token in hexadecimal (A28)": Fault(
        file="vault/contents.py",
        old="    def _members(self) -> dict[str, Any]:\n"
        "        return {\n"
        '            "token": self.token.reveal(),\n'
        '            "type": self.type,',
        new="    def _members(self) -> dict[str, Any]:\n"
        "        import logging  # noqa: PLC0415\n"
        "        logging.getLogger(__name__).debug(self.token.reveal().encode().hex())\n"
        "        return {\n"
        '            "token": self.token.reveal(),\n'
        '            "type": self.type,',
        test=CANARIES,
        only="no_ending and sqlite and engine",
        certain=True,
    ),
    "vault: extra shows in a repr (A28)": Fault(
        file="values/secrecy.py",
        old="        return repr(self._members)",
        new="        return repr(self.revealed())",
        test="unit/test_vault_faces.py",
        certain=True,
    ),
    "vault: a key shows in a repr (A28)": Fault(
        file="values/secrecy.py",
        old='        return "<concealed>"',
        new="        return repr(self.reveal())",
        test="unit/test_vault_faces.py",
        certain=True,
    ),
    "router: addresses come from the Host header (A36)": Fault(
        file="web/starlette.py",
        old="return response_of(await answering.answer(route, await asked_by(request, user=user, label=name)))",
        new=(
            "told = response_of(await answering.answer(route, await asked_by(request, user=user, label=name)))\n"
            "            if told.headers.get('location', '').startswith('https://app.example'):\n"
            "                told.headers['location'] = f'{request.base_url}settings'\n"
            "            return told"
        ),
        test=REFUSALS,
        only="forged_host and starlette",
        certain=True,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test as often as wanted; this module is then a plugin of pytest's."""
    if runs := int(os.environ.get(RUNS, "0")):
        metafunc.fixturenames.append("planted_run")
        metafunc.parametrize("planted_run", range(runs))


def found(fault: Fault | None, *, test: str, only: str, runs: int, full: bool) -> tuple[int, int]:
    """Plant a fault, or none, and return how many of the runs noticed, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        if fault is not None:
            path = source / "accountlink" / fault.file
            text = path.read_text(encoding="utf-8")
            if text.count(fault.old) != 1:
                raise SystemExit(f"{fault.file} has the text {text.count(fault.old)} times that a fault replaces")
            path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        effort = "not quick" if full else "not full"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.planted", "-p", "no:cacheprovider"),
            *("--tb=no", "-W", "ignore", "-m", "", "-k", f"({only}) and {effort}" if only else effort, f"tests/{test}"),
        ]
        environment = os.environ | {"PYTHONPATH": str(source), RUNS: str(runs)}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", ran.stdout.splitlines()[-1])}
    if not counts:
        raise SystemExit(ran.stdout[-3000:] + ran.stderr[-3000:])
    red = counts.get("failed", 0) + counts.get("error", 0)
    return red, red + counts.get("passed", 0)


def main() -> None:
    """Plant what is asked for, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a part of a fault's name; all without one")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="with the rounds of the stress run")
    given = parser.parse_args()
    for name, fault in FAULTS.items():
        if given.names and not any(part in name for part in given.names):
            continue
        runs = 1 if fault.certain else given.runs
        red, ran = found(fault, test=fault.test, only=fault.only, runs=runs, full=given.full)
        quiet, of = found(None, test=fault.test, only=fault.only, runs=max(1, runs // 20), full=given.full)
        print(f"{name}: found in {red} of {ran}; without the fault {quiet} of {of}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
