// The demo's page. The token of a conflict is not its business: conflict-dialog.js has taken it out of the address.

import { button, find, form, make, post, say, sayCode, show, when } from "./parts.js";
import { drawGrants, forgetCame, since } from "./tokens.js";

const WORKS = "Works: it has your tokens.";
const EVERY = 1500; // milliseconds from one look at the state to the next

let signedIn; // the id of the user whom the page shows
let away = false; // whether the last look failed

function drawWho({ user, people }) {
  show("who", user, () => (user ? ["You are ", make("strong", {}, user.name)] : ["Nobody is signed in."]));
  if (signedIn !== undefined && signedIn !== user?.id) { // another tab has switched
    find("token").hidden = true;
    forgetCame();
  }
  signedIn = user?.id ?? null;
  const other = people.find((person) => person.id !== user?.id);
  find("switch").hidden = find("sign-out").hidden = !user;
  find("switch").action = `/sign-in/${other.id}`;
  find("switch").querySelector("button").textContent = `Switch to ${other.name}`;
  find("sign-in").hidden = Boolean(user);
  find("own").hidden = find("renewal").hidden = find("vault").hidden = find("doctor").hidden = !user;
}

function drawAccounts({ accounts, names, rows, readable, moments }) {
  if (!accounts.length) return [make("li", { class: "empty" }, "No account is connected yet.")];
  return accounts.map(({ id, provider, health }) => {
    const email = rows.find((row) => row.id === id)?.email ?? "";
    const which = `${names[provider]}, ${email}`;
    const text = healthOf({ health, readable: readable[id], moment: moments[id], name: names[provider] });
    const state = !text ? [] : [make("span", text === WORKS ? {} : { "data-tone": "bad" }, text)];
    const pressing = health === "needs_consent" ? { class: "urgent" } : {};
    return make(
      "li", {},
      make("p", {}, make("strong", {}, names[provider]), make("small", {}, email), ...state),
      make(
        "div", { class: "row" },
        form(`/accounts/connect/${provider}`, "Reconnect", { expect: id }, { ...pressing, "data-key": `reconnect-${id}`, "aria-label": `Reconnect ${which}` }),
        form(`/accounts/${id}/unlink`, "Disconnect", {}, { "data-key": `disconnect-${id}`, "aria-label": `Disconnect ${which}` }),
      ),
    );
  });
}

function drawNotices(notices) {
  return notices.map(({ id, user, provider, names }) => make(
    "li", {},
    make("p", {}, `${user} has connected your account at ${names[provider]}, and showed control of it. It is no longer yours here. `
      + "If that was not agreed, change your password there."),
    button("I have read this", async () => { await post("/notices/read", { event_id: id }); await refresh(); }, { class: "small quiet", "data-key": `notice-${id}` }),
  ));
}

function drawShares({ given, waiting, received, called }) {
  const revoke = (id) => button("Revoke", async () => { if (await post(`/shares/${id}/revoke`)) say("Revoked.", "good"); await refresh(); }, { "data-key": `revoke-${id}` });
  const until = (moment) => make("small", {}, `until ${new Date(moment).toLocaleDateString()}`);
  return [
    ...given.map((share) => make("li", {}, make("p", {}, `${share.with} may use ${called[share.link_id] ?? "an account"}`, until(share.expires_at)), revoke(share.id))),
    ...waiting.map((share) => make("li", {}, make("p", {}, `A token for ${called[share.link_id] ?? "an account"} waits for somebody`, until(share.expires_at)), revoke(share.id))),
    ...received.map((share) => make("li", {}, make("p", {}, `You may use ${called[share.link_id] ?? "an account"} of ${share.with}`, until(share.expires_at)))),
  ];
}

/** Say of a link whether the application can read its tokens. */
function readableOf({ read, refused }) {
  if (read) return WORKS;
  return refused ? "Its tokens cannot be read. Reconnect it." : "It has no tokens. Reconnect it.";
}

/** Say of a link whether the application can use it: whether it reads the tokens, and whether they can be renewed. */
function healthOf({ health, readable, moment, name }) {
  if (readable !== WORKS) return readable;
  if (health === "needs_consent") return `Needs reconnect${since(moment)}: ${name} has ended the access.`;
  if (health === "failing") return `Its tokens could not be renewed${since(moment)}. The next attempt may work.`;
  return WORKS;
}

function drawEnvelope(envelope) {
  if (!envelope) return make("p", {}, "No envelope.");
  const parts = [["format", envelope.format], ["key", envelope.key_id], ["grant", envelope.grant_id], ["ciphertext", envelope.data]];
  return make("dl", {}, ...parts.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
}

function drawRead({ envelope, read, refused }) {
  if (refused) return [make("strong", {}, "Refused: "), make("code", {}, refused.code), ` (${refused.role}, ${refused.reason}). Other rows are read as before.`];
  if (!read) return ["There is no token to read."];
  const also = read.refresh_token ? [", refresh token ", make("code", {}, read.refresh_token)] : [];
  const old = envelope ? "" : " The table has it in plain text, from an older demo. Reconnect the account to seal it.";
  return ["Access token ", make("code", {}, read.access_token), ...also, ".", old];
}

/** Make the button that puts another row's ciphertext into a row, or the one that puts the row's own back. */
function moving(link, other) {
  const press = async (path, body, text) => { if (await post(`/vault/${link.id}/${path}`, body)) say(text, "good"); await refresh(); };
  const key = { class: "small quiet", "data-key": `vault-${link.id}` };
  if (link.is_moved) return [button(`Restore the ciphertext of row ${link.id}`, () => press("restore", {}, `Row ${link.id} has its own ciphertext again.`), key)];
  if (!other) return [];
  const text = `Row ${link.id} now has the ciphertext of row ${other.id}. See below how it is read.`;
  return [button(`Copy the ciphertext of row ${other.id} into row ${link.id}`, () => press("copy", { from: other.id }, text), key)];
}

function drawEnvelopes({ links, waiting, owners, called, names }) {
  if (!links.length) return [make("li", { class: "empty" }, "No token is stored yet. Connect an account.")];
  const own = links.filter((link) => link.envelope && !link.is_moved);
  const half = (title, ...parts) => make("div", {}, make("p", { class: "muted" }, title), ...parts);
  const entry = (title, about, envelope, read, ...more) => make(
    "li", {}, make("h3", {}, title, " ", make("small", {}, about)),
    half("In the table", drawEnvelope(envelope)), half("The application reads", make("p", {}, ...read), ...more),
  );
  return [
    ...links.map((link) => {
      const others = link.envelope ? own.filter(({ id }) => id !== link.id) : [];
      const other = others.find(({ id }) => owners[id] !== owners[link.id]) ?? others[0];
      const drawn = entry(`Row ${link.id}, ${owners[link.id]}`, called[link.id] ?? "", link.envelope, drawRead(link), ...moving(link, other));
      if (link.refused) drawn.dataset.refused = "";
      return drawn;
    }),
    ...waiting.map(({ user, provider, envelope, until }) => entry(
      `Waits for ${user}`, names[provider], envelope,
      [`Nothing yet. ${user} met a conflict. If ${user} moves the account before ${when(until)}, its row gets this grant.`],
    )),
  ];
}

function drawRows(rows) {
  if (!rows.length) return [make("tr", {}, make("td", { colspan: "6", class: "empty" }, "There is no row yet."))];
  return rows.map((row) => make(
    "tr", row.deleted_at ? { "data-dead": "" } : {},
    ...[
      row.id, row.user, row.provider, row.email,
      row.access_token ? `access ${row.access_token}, refresh ${row.refresh_token ?? "none"}` : "none",
      row.deleted_at ? when(row.deleted_at) : "no",
    ].map((cell) => make("td", {}, String(cell))),
  ));
}

function drawEvents(events) {
  if (!events.length) return [make("li", { class: "empty" }, "No event yet.")];
  return events.map((event) => {
    const about = event.link_id === null ? "" : `, row ${event.link_id}`;
    const other = event.other_user === null ? "" : ` (the other user: ${event.other_user})`;
    return make("li", { value: event.id }, make("strong", {}, event.type), ` ${event.type === "consent_needed" ? "of" : "by"} ${event.user}${other}${about} `, make("small", {}, when(event.occurred_at)));
  });
}

function drawStatements(statements) {
  if (!statements.length) return [make("li", { class: "empty" }, "Nothing ran yet.")];
  return [...statements].reverse().map(({ number, cause, sql }) => make("li", { value: number }, make("small", {}, cause), make("pre", {}, sql)));
}

function drawSystems(systems) {
  return systems.map(({ slug, title, story }) => make(
    "li", {}, make("h3", {}, title), make("p", {}, story),
    button("Break it", (event) => examine(slug, title, event.currentTarget), { class: "small", "aria-label": `Break it: ${title}` }),
  ));
}

/** Break one system's schema, and show what the doctor does about it. */
async function examine(slug, title, pressed) {
  pressed.setAttribute("aria-busy", "true");
  const told = await post(`/doctor/${slug}`);
  pressed.removeAttribute("aria-busy");
  if (!told) return;
  const code = (text, label) => make("pre", { tabindex: "0", role: "region", "aria-label": label }, text.trim());
  find("diagnosis").replaceChildren(
    make("h3", {}, title),
    make(
      "ol", {},
      make("li", {}, "The table as the system had it:", code(told.schema, "The broken schema")),
      make("li", {}, "What a user tried: ", make("code", {}, told.attempt)),
      make("li", {}, "What the doctor finds:", make("ul", {}, ...told.findings.map((each) => make(
        "li", {}, make("code", {}, each.rule), each.name ? ` about ${each.name}: ` : ": ", each.message, " ", make("em", {}, each.remedy),
      )))),
      make("li", {}, "The migration that it writes:", code(told.migration, "The migration")),
      make("li", {}, told.findings_after.length ? "After it, the doctor still finds something." : "After it, the doctor finds nothing. The user tries again: ", make("code", {}, told.attempt_after)),
    ),
  );
  find("diagnosis").focus();
}

/** Look at the state, and show what has changed; say so if it cannot be read. */
async function refresh() {
  try {
    await look();
    if (away) say("", "");
    away = false;
  } catch {
    away = true;
    say("The demo has ended, or cannot read its database: its terminal says which. This page goes on trying.", "bad");
  }
  document.body.removeAttribute("aria-busy");
}

async function look() {
  const read = async (path) => {
    const answer = await fetch(path, { headers: { accept: "application/json" } });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  };
  const state = await read("/demo/state");
  const accounts = state.user ? await read("/accounts") : [];
  const names = Object.fromEntries(state.providers.map(({ slug, name }) => [slug, name]));
  const called = Object.fromEntries(state.rows.map((row) => [row.id, `${names[row.provider]} (${row.email})`]));
  const label = (id) => called[id] ?? `account ${id}`; // a row that came between the two looks
  const own = state.rows.filter((row) => row.user === state.user?.name);
  drawWho(state);
  show("people", state.people, (people) => people.map(({ id, name }) => form(`/sign-in/${id}`, `Be ${name}`)));
  show("connect", state.providers, (all) => all.map(({ slug, name }) => form(`/accounts/connect/${slug}`, name, {}, { "aria-label": `Connect ${name}` })));
  const tokens = Object.fromEntries(state.vault.links.map((link) => [link.id, readableOf(link)]));
  const readable = Object.fromEntries(own.map(({ id }) => [id, tokens[id]]));
  const moments = Object.fromEntries(state.tokens.map((each) => [each.id, each.since]));
  show("accounts", { accounts, names, rows: own.map(({ id, email }) => ({ id, email })), readable, moments }, drawAccounts);
  show("grants", { grants: state.tokens, called, names }, (data) => drawGrants(data, refresh));
  show("share-account", accounts.map(({ id }) => [id, label(id)]), (all) => all.map(([id, text]) => make("option", { value: id }, text)));
  find("share").hidden = !accounts.length;
  show("notices", state.notices.map((notice) => ({ ...notice, names })), drawNotices);
  show("shares", { ...state.shares, called }, drawShares);
  show("rows", state.rows, drawRows);
  show("events", state.events, drawEvents);
  show("statements", state.statements, drawStatements);
  const owners = Object.fromEntries(state.rows.map((row) => [row.id, row.user]));
  const links = state.vault.links.filter(({ id }) => id in owners); // without one that came after the look at the rows
  show("envelopes", { links, waiting: state.vault.waiting, owners, called, names }, drawEnvelopes);
  show("systems", state.systems, drawSystems);
}

// What the redirect said, once: after a reload it would no longer be true. Only known codes are shown, because every
// site can link to this page with a text of its own.
const query = new URLSearchParams(location.search);
const code = query.get("connection") ?? query.get("error");
if (code) {
  history.replaceState(history.state, "", location.pathname);
  sayCode(code, query.has("error") ? "bad" : "good");
}

find("share").addEventListener("submit", async (event) => {
  event.preventDefault();
  const told = await post("/shares", { link_id: Number(find("share-account").value) });
  if (!told) return;
  find("token-text").textContent = told.token;
  find("token").hidden = false;
  say("The token is made.", "good");
  await refresh();
});
find("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(find("token-text").textContent).then(() => say("Copied.", "good"), () => say("Select the token and copy it.", "bad"));
});
find("redeem").addEventListener("submit", async (event) => {
  event.preventDefault();
  const told = await post("/shares/redeem", { token: find("redeem-token").value.trim() });
  if (!told) return;
  find("redeem-token").value = "";
  say("You have the access now.", "good");
  await refresh();
});
find("reset").addEventListener("click", async () => { if (await post("/reset")) say("The tables are empty.", "good"); await refresh(); });
addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });

/** Look again and again, as long as somebody can see it. A demo that was stopped comes back by itself. */
async function watch() {
  if (!document.hidden) await refresh();
  setTimeout(watch, EVERY);
}
watch();
