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
RULES: Final = "contract/test_renewal_rules.py"
CANARIES: Final = "contract/test_vault_canaries.py"
SEALED: Final = "contract/test_sealed_rows.py"
PENDING: Final = "contract/test_pending.py"
VAULT_RACES: Final = "contract/test_vault_races.py"
VAULT_FAULTS: Final = "faults/test_vault_faults.py"
HEAD: Final = "_sized(FORMAT) + _sized(key_id) + _sized(grant_id)"
AFTER: Final = 'after_role", b"".join(sized[1:])'
TAIL: Final = "bound_to.before_role + _sized(role) + bound_to.after_role"
KEPT_KEY: Final = "(self._c[name] == self._bind(name) for name in PENDING_KEY)"
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
        old='"BEGIN" if options.get(_READS) else "BEGIN IMMEDIATE"',
        new='"BEGIN"',
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
    "vault: an envelope is not bound to the format (A29)": Fault(
        file="vault/envelope.py",
        old=HEAD,
        new="_sized(key_id) + _sized(grant_id)",
        test="unit/test_vault_envelope.py",
        only="vectors",
        certain=True,
    ),
    "vault: an envelope is not bound to the key id (A29)": Fault(
        file="vault/envelope.py",
        old=HEAD,
        new="_sized(FORMAT) + _sized(grant_id)",
        test="unit/test_vault_envelope.py",
        only="vectors",
        certain=True,
    ),
    "vault: an envelope is not bound to the grant id (A29)": Fault(
        file="vault/envelope.py",
        old=HEAD,
        new="_sized(FORMAT) + _sized(key_id)",
        test=SEALED,
        only="damaged and grant",
        certain=True,
    ),
    "vault: an envelope is not bound to the table (A29)": Fault(
        file="vault/envelope.py",
        old=TAIL,
        new="_sized(role) + bound_to.after_role",
        test=SEALED,
        only="another_table",
        certain=True,
    ),
    "vault: an envelope is not bound to the column (A29)": Fault(
        file="vault/envelope.py",
        old=TAIL,
        new="bound_to.before_role + bound_to.after_role",
        test=SEALED,
        only="other_column",
        certain=True,
    ),
    "vault: an envelope is not bound to the user (A29)": Fault(
        file="vault/envelope.py",
        old=AFTER,
        new='after_role", b"".join(sized[2:])',
        test=SEALED,
        only="another_row and user",
        certain=True,
    ),
    "vault: an envelope is not bound to the provider (A29)": Fault(
        file="vault/envelope.py",
        old=AFTER,
        new='after_role", b"".join([sized[1], sized[3]])',
        test=SEALED,
        only="another_row and provider",
        certain=True,
    ),
    "vault: an envelope is not bound to the account (A29)": Fault(
        file="vault/envelope.py",
        old=AFTER,
        new='after_role", b"".join(sized[1:3])',
        test=SEALED,
        only="another_row and account",
        certain=True,
    ),
    "vault: a token under an unknown key is plain text (A30)": Fault(
        file="vault/envelope.py",
        old='        raise CredentialsUnreadable(role=kind.role, reason="unknown_key", key_id=found.key_id)\n',
        new="        return kind(token=Secret(found.key_id))\n",
        test=SEALED,
        only="damaged and another_key or unknown_key or damaged and key",
        certain=True,
    ),
    "vault: a future format is plain text (A30)": Fault(
        file="vault/envelope.py",
        old='re.compile(r"al[0-9]+\\.")',
        new='re.compile(r"al1\\.")',
        test=SEALED,
        only="damaged and future",
        certain=True,
    ),
    "vault: plain text is read (A30)": Fault(
        file="vault/envelope.py",
        old="if began is None and plaintext is Plaintext.READ and storable(text):",
        new="if began is None and storable(text):",
        test=SEALED,
        only="damaged and plain",
        certain=True,
    ),
    "vault: a restore keeps old tokens (A32)": Fault(
        file="linking/statements.py",
        old="values[c[role]] = sa.case((was_live, c[role]), else_=nothing_in(role, c[role]))",
        new="values[c[role]] = c[role]",
        test=SEALED,
        only="nothing_wiped",
        certain=True,
    ),
    "vault: an unlink leaves the tokens (A32)": Fault(
        file="linking/statements.py",
        old="c[role]: nothing_in(role, c[role]) for role in CREDENTIAL_ROLES if role in c\n",
        new="c[role]: c[role] for role in CREDENTIAL_ROLES if role in c\n",
        test=SEALED,
        only="unlink_wipes",
        certain=True,
    ),
    "vault: a token of a megabyte is cut (F23)": Fault(
        file="vault/sealing.py",
        old="        token=tokens.access_token,\n",
        new="        token=type(tokens.access_token)(tokens.access_token.reveal()[:500_000]),\n",
        test=PENDING,
        only="megabyte",
        certain=True,
    ),
    "vault: a kept token of a megabyte is cut (F23)": Fault(
        file="tables/pending.py",
        old='"al_kept_refresh_token": sealed.get("refresh_token"),',
        new='"al_kept_refresh_token": (sealed.get("refresh_token") or "")[:500_000] or None,',
        test=PENDING,
        only="megabyte",
        certain=True,
    ),
    "replace: the row is not compared": Fault(
        file="vault/statements.py",
        old="self.live(), *self._still_sealed())",
        new="self.live())",
        test=VAULT_RACES,
        only="another_call_between and (again or too)",
        certain=True,
    ),
    "replace: what was presented is not compared": Fault(
        file="vault/stored.py",
        old="known.token != presented",
        new="False",
        test="contract/test_vault.py",
        only="what_was_presented",
        certain=True,
    ),
    "replace: a lost reply hides what was stored": Fault(
        file="vault/stored.py",
        old="if ready is None and not patience.ambiguous:",
        new="if ready is None:",
        test=VAULT_FAULTS,
        only="lost_reply and (replacement or others)",
        certain=True,
    ),
    "pending: a transfer leaves the kept tokens (A31)": Fault(
        file="transfers/statements.py",
        old='            beside.append(self.pending.drop(moved).cte(self._names("dropped")))\n',
        new="            pass\n",
        test=PENDING,
        only="has_the_tokens and asyncpg",
        certain=True,
    ),
    "pending: a transfer leaves the kept tokens on SQLite (A31)": Fault(
        file="transfers/redeeming.py",
        old='                accounts.run(connection, call.parameters, "drop kept", pending.drop)\n',
        new="                pass\n",
        test=PENDING,
        only="has_the_tokens and sqlite",
        certain=True,
    ),
    "pending: the former owner's tokens stay (A31)": Fault(
        file="transfers/statements.py",
        old="column: self.bind(role) if role in shape.credentials else nothing_in(role, column)",
        new="column: self.bind(role) if role in shape.credentials else column",
        test=PENDING,
        only="leaves_none_of_the_former",
        certain=True,
    ),
    "pending: brought tokens are sealed for the former owner (A29)": Fault(
        file="linking/call.py",
        old="brought.sealed(user_id=call.user_id,",
        new="brought.sealed(user_id=row.user_id,",
        test=PENDING,
        only="go_before_those_kept",
        certain=True,
    ),
    "pending: kept tokens are used after their end (A32)": Fault(
        file="tables/pending.py",
        old="where(self._is_named(), sa.not_(self._is_over()))",
        new="where(self._is_named())",
        test=PENDING,
        only="end_with_the_transfer_token",
        certain=True,
    ),
    "pending: kept tokens end with no leeway": Fault(
        file="linker.py",
        old="keeps_for=transfer_lifetime + LEEWAY,",
        new="keeps_for=transfer_lifetime,",
        test=PENDING,
        only="end_with_the_transfer_token or minute_off",
        certain=True,
    ),
    "pending: an old row stays": Fault(
        file="tables/pending.py",
        old='where(ctid == found).cte(self._names("swept"))',
        new='where(ctid == found, sa.false()).cte(self._names("swept"))',
        test=PENDING,
        only="next_write and asyncpg",
        certain=True,
    ),
    "pending: an old row stays on SQLite": Fault(
        file="linking/store.py",
        old='            self.run(connection, call.parameters, "sweep", pending.sweep)\n',
        new="",
        test=PENDING,
        only="next_write and sqlite",
        certain=True,
    ),
    "pending: rows that are not over are swept": Fault(
        file="tables/pending.py",
        old="kept_until < sa.bindparam",
        new="kept_until != sa.bindparam",
        test=PENDING,
        only="hundred or next_write",
        certain=True,
    ),
    "pending: rows that are not over are swept on SQLite": Fault(
        file="tables/pending.py",
        old="old = select(*key).where(self._is_over()).limit",
        new="old = select(*key).limit",
        test=PENDING,
        only="hundred and sqlite",
        certain=True,
    ),
    "pending: a write sweeps any number": Fault(
        file="tables/pending.py",
        old="            .limit(sa.literal_column(str(_SWEPT), sa.Integer))\n            .with_for_update",
        new="            .with_for_update",
        test=PENDING,
        only="hundred and asyncpg",
        certain=True,
    ),
    "pending: a write sweeps any number on SQLite": Fault(
        file="tables/pending.py",
        old=".where(self._is_over()).limit(sa.literal_column(str(_SWEPT), sa.Integer))",
        new=".where(self._is_over())",
        test=PENDING,
        only="hundred and sqlite",
        certain=True,
    ),
    "pending: a sweep waits for locked rows": Fault(
        file="tables/pending.py",
        old="with_for_update(of=over, skip_locked=True)",
        new="with_for_update(of=over)",
        test=VAULT_RACES,
        only="passes_over",
        certain=True,
    ),
    "pending: kept tokens are not compared again": Fault(
        file="transfers/statements.py",
        old="if shape.takes or not shape.credentials:",
        new="if False:",
        test=VAULT_RACES,
        only="second_callback_comes_between and after",
        certain=True,
    ),
    "pending: no kept tokens are not looked for again": Fault(
        file="transfers/statements.py",
        old="if shape.takes or not shape.credentials:",
        new="if shape.takes:",
        test=VAULT_RACES,
        only="second_callback_comes_between and after and None",
        certain=True,
    ),
    "pending: kept tokens are compared without a lock": Fault(
        file="tables/pending.py",
        old='.where(self._is_named()).with_for_update().cte(self._names("kept"))',
        new='.where(self._is_named()).cte(self._names("kept"))',
        test=VAULT_RACES,
        only="not_committed",
        certain=True,
    ),
    "pending: two transfers lock in two orders": Fault(
        file="transfers/statements.py",
        old="return [self.pending.is_locked()]",
        new="return []",
        test=VAULT_RACES,
        only="lock_in_one_order and False",
        certain=True,
    ),
    "pending: kept tokens of another table (A29)": Fault(
        file="tables/pending.py",
        old=KEPT_KEY,
        new='(self._c[name] == self._bind(name) for name in _KEY if name != "table_name")',
        test=PENDING,
        only="its_own",
        certain=True,
    ),
    "pending: kept tokens of another user (A29)": Fault(
        file="tables/pending.py",
        old=KEPT_KEY,
        new='(self._c[name] == self._bind(name) for name in _KEY if name != "user_id")',
        test=PENDING,
        only="its_own",
        certain=True,
    ),
    "pending: kept tokens of another provider (A29)": Fault(
        file="tables/pending.py",
        old=KEPT_KEY,
        new='(self._c[name] == self._bind(name) for name in _KEY if name != "provider")',
        test=PENDING,
        only="its_own",
        certain=True,
    ),
    "pending: kept tokens of another account (A29)": Fault(
        file="tables/pending.py",
        old=KEPT_KEY,
        new='(self._c[name] == self._bind(name) for name in _KEY if name != "account_id")',
        test=PENDING,
        only="its_own",
        certain=True,
    ),
    "pending: a refresh token that is given once is lost": Fault(
        file="tables/pending.py",
        old='_LEFT_ALONE: Final = ("refresh_token", "scopes")',
        new="_LEFT_ALONE: Final[tuple[str, ...]] = ()",
        test=PENDING,
        only="given_once",
        certain=True,
    ),
    "pending: a refresh token outlives its time (A32)": Fault(
        file="tables/pending.py",
        old="earlier = sa.case((sa.not_(self._is_over()), self._c[name]))",
        new="earlier = self._c[name]",
        test=PENDING,
        only="time_is_over_is_not_kept",
        certain=True,
    ),
    "pending: an end loses its time zone": Fault(
        file="tables/pending.py",
        old="None if tokens.expires_at is None else tokens.expires_at.astimezone(UTC)",
        new="tokens.expires_at",
        test=PENDING,
        only="same_moment and sqlite",
        certain=True,
    ),
    "pending: a conflict waits without a limit": Fault(
        file="linking/store.py",
        old="bound = [bounded()] if call.lock_timeout is not None else []",
        new="bound: list[Any] = []",
        test=VAULT_RACES,
        only="no_longer and violation",
        certain=True,
    ),
    "pending: a conflict behind a violation keeps nothing": Fault(
        file="linker.py",
        old="(store.outbox is not None or call.keeps)",
        new="store.outbox is not None",
        test=VAULT_RACES,
        only="behind_a_violation_keeps",
        certain=True,
    ),
    "renewal 1: the lease is taken with tokens that were read before (gram#4612)": Fault(
        file="vault/lease_statements.py",
        old='        link = select(self._c["id"].label("id")).where(*bound, *self._presented())\n',
        new='        link = select(self._c["id"].label("id")).where(*bound, self._is_named(), self.live())\n',
        test=RULES,
        only="newest_tokens",
        certain=True,
    ),
    "renewal 1: the lease is judged by the host's clock (coder#27479)": Fault(
        file="vault/lease_statements.py",
        old="else sa.func.clock_timestamp(type_=moment)",
        new='else sa.literal(__import__("accountlink.tables.rows", fromlist=["x"]).present(), moment)',
        test=RULES,
        only="clock_is_ahead and asyncpg",
        certain=True,
    ),
    "renewal 1: a lease whose answer was lost is another's": Fault(
        file="vault/lease_statements.py",
        old="sa.or_(s.lease_until.is_(None), s.lease_until < now, mine)",
        new="sa.or_(s.lease_until.is_(None), s.lease_until < now)",
        test=RULES,
        only="answer_was_lost",
        certain=True,
    ),
    "renewal 1: a live lease is taken (trycompai/comp#3143)": Fault(
        file="vault/lease_statements.py",
        old="where=sa.and_(free, sa.or_(sa.not_(same), may_try))",
        new="where=sa.or_(sa.not_(same), may_try)",
        test="contract/test_renewing.py",
        only="many_callers_of_many",
        certain=True,
    ),
    "renewal 2: the call may outlast its lease (infusionsoft-php#220)": Fault(
        file="vault/renewing.py",
        old="                    deadline = asked + self.timing.deadline.total_seconds()\n"
        "                    return await",
        new="                    deadline = asked + 10 * self.timing.deadline.total_seconds()\n"
        "                    return await",
        test=RULES,
        only="over_before_its_lease",
        certain=True,
    ),
    "renewal 3: who gets no lease asks all the same (n8n#37828)": Fault(
        file="vault/renewing.py",
        old="                    return RefreshUnavailable(retry_at=found.state.leased_until)\n",
        new="                    tokens, _ = await self.stored.opened(found)\n"
        "                    assert tokens is not None\n"
        "                    return await self.refresher.renew("
        "found.account.provider, tokens, deadline=self.timing.deadline)\n",
        test=RULES,
        only="never_calls",
        certain=True,
    ),
    "renewal 3: who waits gives up too soon (onyx#13146)": Fault(
        file="vault/renewing.py",
        old="until = began + 2 * self.timing.lease.total_seconds()",
        new="until = began + self.timing.lease.total_seconds() / 10",
        test=RULES,
        only="as_long_as_a_winner",
        certain=True,
    ),
    "renewal 4: a token is given out before it is stored (coder#24228)": Fault(
        file="vault/renewing.py",
        old="            return await self._store(engine, asked, found, answer)\n",
        new="            self._begun(object(), self._store(engine, asked, found, answer))\n            return answer\n",
        test=RULES,
        only="not_stored",
        certain=True,
    ),
    "renewal 4: the state is not written with the row": Fault(
        file="vault/lease_statements.py",
        old='        return select(written.c.id).add_cte(done.cte(self._names("gave_back")))\n',
        new="        return select(written.c.id)\n",
        test=RULES,
        only="change_together and asyncpg",
        certain=True,
    ),
    "renewal 5: only who has the lease stores (local-operator#945)": Fault(
        file="vault/lease_statements.py",
        old='        written = self.replace(shape).cte(self._names("written"))\n',
        new="        holds = sa.exists(select(ONE).select_from(self._states)"
        ".where(*self._has_lease(), self._s.lease_until > self._now(on_sqlite=False)))\n"
        '        written = self.replace(shape).where(holds).cte(self._names("written"))\n',
        test=RULES,
        only="lapsed_lease and asyncpg",
        certain=True,
    ),
    "renewal 5: the texts are compared, not the tokens (bifrost#5919)": Fault(
        file="vault/renewing.py",
        old="        for _ in range(ATTEMPTS):\n            ready = ",
        new="        for _ in range(1):\n            ready = ",
        test=RULES,
        only="5_keys_rotated",
        certain=True,
    ),
    "renewal 5: other tokens are written over (bifrost#5919)": Fault(
        file="vault/stored.py",
        old="known is None or call.brought is None or known.token != presented",
        new="known is None or call.brought is None",
        test=RULES,
        only="not_written_over",
        certain=True,
    ),
    "renewal 5: what cannot be stored at once is thrown away (local-operator#945)": Fault(
        file="vault/renewing.py",
        old="                if not _may_pass(error) or asyncio.get_running_loop().time() > ends:\n",
        new="                if error:\n",
        test=RULES,
        only="5_a_database or 5_a_key",
        certain=True,
    ),
    "renewal 5: who takes a lapsed lease asks at once (local-operator#945)": Fault(
        file="vault/renewing.py",
        old="None if found.lease_by is None else await",
        new="None if True else await",
        test=RULES,
        only="longer_than_the_lease",
        certain=True,
    ),
    "renewal 5: whose link it is now is not looked at (A02)": Fault(
        file="vault/statements.py",
        old=".where(self._is_named(), self.live(), *self._still_sealed())\n            .values(",
        new='.where(self._c["id"] == self.bind("id"))\n            .values(',
        test="contract/test_renewal_orders.py",
        only="statement_of_a_renewal",
        certain=True,
    ),
    "renewal: a lost reply is retried without a grace period": Fault(
        file="vault/oauth.py",
        old="if not away.uncertain or not grace:",
        new="if not away.uncertain:",
        test="faults/test_renewal_processes.py",
        only="reply_is_lost and asyncpg",
        certain=True,
    ),
    "renewal: a lost reply is forgotten": Fault(
        file="vault/lease_statements.py",
        old='            "uncertain": sa.or_(s.uncertain, flag),\n',
        new='            "uncertain": s.uncertain,\n',
        test="faults/test_renewal_processes.py",
        only="reply_is_lost and asyncpg",
        certain=True,
    ),
    "renewal: a caller who died is forgotten": Fault(
        file="vault/lease_statements.py",
        old="sa.or_(s.uncertain, sa.and_(s.lease_by.is_not(None), sa.not_(mine)))",
        new="s.uncertain",
        test="faults/test_renewal_processes.py",
        only="killed and asyncpg",
        certain=True,
    ),
    "renewal: Retry-After is not stored": Fault(
        file="vault/answers.py",
        old="        return ProviderUnavailable(retry_at)\n",
        new="        return ProviderUnavailable()\n",
        test="faults/test_renewal_processes.py",
        only="no_answer_now and asyncpg",
        certain=True,
    ),
    "renewal: Retry-After throws a new token away": Fault(
        file="vault/answers.py",
        old="    if is_success and known not in AWAY and",
        new="    if answer.retry_after is None and is_success and known not in AWAY and",
        test="contract/test_oauth_refresher.py",
        only="beside_retry_after",
        certain=True,
    ),
    "renewal: a proxy's page counts as a refusal": Fault(
        file="vault/answers.py",
        old="is_refusal = answer.status in _OPAQUE or",
        new="is_refusal = answer.status < 429 or",
        test="contract/test_oauth_refresher.py",
        only="read_by_its_code",
        certain=True,
    ),
    "renewal: a secret is sent as it is": Fault(
        file="providers/authentication.py",
        old=":{quote_plus(secret)}",
        new=":{secret}",
        test="contract/test_oauth_refresher.py",
        only="form_encoded",
        certain=True,
    ),
    "renewal: the end is by this machine's clock (EDDI#751)": Fault(
        file="vault/renewing.py",
        old="        new = _by_database(new, lease)\n",
        new="",
        test="faults/test_renewal_processes.py",
        only="hour and asyncpg",
        certain=True,
    ),
    "renewal 6: the end is stored whatever the row has (vercel/ai#20674)": Fault(
        file="vault/lease_statements.py",
        old="self._gave_back(values, sa.exists(select(ONE).select_from(found)))",
        new="self._gave_back(values)",
        test=RULES,
        only="6_a_new_consent",
        certain=True,
    ),
    "renewal 6: a row that was sealed again hides the end (coder#24228)": Fault(
        file="vault/renewing.py",
        old="        for _ in range(ATTEMPTS):\n            recorded = ",
        new="        for _ in range(1):\n            recorded = ",
        test=RULES,
        only="6_keys_rotated",
        certain=True,
    ),
    "renewal 6: the end belongs to the grant that was read": Fault(
        file="vault/lease_statements.py",
        old='            "grant_id": sa.bindparam("al_grant_id", type_=sa.Text),\n'
        '            "retry_at": sa.null() if state',
        new='            "retry_at": sa.null() if state',
        test=RULES,
        only="6_a_relink",
        certain=True,
    ),
    "renewal 6: a living token is withheld (better-ccflare#407)": Fault(
        file="vault/renewal.py",
        old="return obstacle if facts.is_over else Step.GIVE",
        new="return obstacle",
        test=RULES,
        only="6_a_living",
        certain=True,
    ),
    "renewal 7: the renewal ends with its first caller (coder#22904)": Fault(
        file="vault/renewing.py",
        old="return await asyncio.shield(task)\n        except asyncio.CancelledError:",
        new="return await task\n        except asyncio.CancelledError:",
        test=RULES,
        only="takes_nobody_along",
        certain=True,
    ),
    "renewal 7: each caller of a process begins a renewal": Fault(
        file="vault/renewing.py",
        old="if known is not None and not known.done():",
        new="if False:",
        test=RULES,
        only="share_one_task",
        certain=True,
    ),
    "renewal 7: the map of renewals grows (fastmcp#3713)": Fault(
        file="vault/renewing.py",
        old="            del mine[key]\n",
        new="            pass\n",
        test=RULES,
        only="7_",
        certain=True,
    ),
    "renewal 7: renewals of closed loops stay (fastmcp#3713)": Fault(
        file="vault/renewing.py",
        old="                self._tasks.pop(other, None)  #",
        new="                pass  #",
        test=RULES,
        only="leave_nothing",
        certain=True,
    ),
    "renewal 7: a cancelled loop throws a rotation away": Fault(
        file="vault/renewing.py",
        old="                cancelled = error\n                continue\n",
        new="                raise\n",
        test=RULES,
        only="while_it_stores",
        certain=True,
    ),
    "renewal: nobody is early": Fault(
        file="vault/renewal.py",
        old="        return Step.GIVE_AND_RENEW\n",
        new="        return Step.GIVE\n",
        test="contract/test_renewing.py",
        only="early_renewal",
        certain=True,
    ),
    "renewal: everybody waits for an early one": Fault(
        file="vault/renewal.py",
        old="        return Step.GIVE_AND_RENEW\n",
        new="        return Step.RENEW\n",
        test="contract/test_renewing.py",
        only="early_renewal",
        certain=True,
    ),
    "renewal: an early one's failure is everybody's": Fault(
        file="vault/renewing.py",
        old="            if facts.is_over:\n                raise\n            return None\n",
        new="            raise\n",
        test=RULES,
        only="living_token_hears_of",
        certain=True,
    ),
    "renewal: a connection is held while the provider is asked (AI-Employee#463)": Fault(
        file="vault/renewing.py",
        old="        answer = await self._answer(found.account.provider, asked, deadline=deadline)\n",
        new="        async with engine.connect() as connection:\n"
        "            await connection.execute(sa.select(1))\n"
        "            answer = await self._answer(found.account.provider, asked, deadline=deadline)\n",
        test="contract/test_renewing.py",
        only="no_connection and asyncpg",
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
        effort, taken = ("not quick", "") if full else ("not full", "not stress")
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.planted", "-p", "no:cacheprovider"),
            *(
                "--tb=no",
                "-W",
                "ignore",
                "-m",
                taken,
                "-k",
                f"({only}) and {effort}" if only else effort,
                f"tests/{test}",
            ),
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
