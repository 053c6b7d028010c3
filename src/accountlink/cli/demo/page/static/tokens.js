// The panel of the tokens that expire: what the application knows of each, and what two workers get that ask for one.

import { button, find, make, post, when } from "./parts.js";

/** Say since when something is so, if anybody knows. */
export const since = (moment) => (moment ? ` since ${when(moment)}` : "");

const counted = (calls) => (calls === 1 ? "1 token call" : `${calls} token calls`);

function validity({ expires_at, is_over }) {
  if (!expires_at) return "Nobody knows how long it is valid";
  return is_over ? `Over since ${when(expires_at)}` : `Valid until ${when(expires_at)}`;
}

function stateOf({ health, provider_code, since: moment }) {
  if (health === "needs_consent") return `Needs reconnect${since(moment)}${provider_code ? ` (${provider_code})` : ""}`;
  return health === "failing" ? `Could not be renewed${since(moment)}` : "Works";
}

/** Draw the user's tokens. `refresh` looks at the state again, after a button was pressed. */
export function drawGrants({ grants, called, names }, refresh) {
  if (!grants.length) return [make("li", { class: "empty" }, "No account is connected yet.")];
  return grants.map((grant) => {
    const { id, calls } = grant, which = called[id] ?? `account ${id}`, name = names[grant.provider];
    const press = (label, path, done) => button(label, async ({ currentTarget: pressed }) => {
      pressed.setAttribute("aria-busy", "true");
      const answer = await post(`/tokens/${id}/${path}`);
      pressed.removeAttribute("aria-busy");
      if (answer) find("came").replaceChildren(...done(answer));
      await refresh();
    }, { class: "small quiet", "data-key": `${path}-${id}`, "aria-label": `${label}: ${which}` });
    const facts = [["access token", validity(grant)], ["grant", stateOf(grant)], [name, `${counted(calls)} since the demo began`]];
    const drawn = make(
      "li", {}, make("h3", {}, which),
      make("dl", {}, ...facts.map(([title, text]) => make("div", {}, make("dt", {}, title), make("dd", {}, text)))),
      make(
        "div", { class: "row" },
        press("Let the token expire", "expire", () => [make("p", {}, "The token is over: the table now says that it ended a minute ago.")]),
        press("Two workers ask at once", "ask", (answer) => drawAsked(answer, name)),
        press("Withdraw consent at the provider", "withdraw", () => [make("p", {}, `Withdrawn at ${name}. The application does not know it yet: it learns it when it next renews the token.`)]),
      ),
    );
    if (grant.health === "needs_consent") drawn.dataset.refused = "";
    return drawn;
  });
}

/** Say what a worker got. No more than the beginning of a token is known here. */
function drawWorker({ access_token, code, waited }, index) {
  const got = access_token ? ["the token ", make("code", {}, access_token)] : ["no token, but ", make("code", {}, code)];
  return make("li", {}, `Worker ${index + 1} got `, ...got, `, after ${Math.round(waited * 1000)} ms.`);
}

function drawAsked({ workers, is_same, calls }, name) {
  const verdict = is_same ? `Both have the same token${calls ? "" : ", which is still valid"}.`
    : workers.some(({ code }) => code === "needs_consent") ? "The grant has ended: reconnect the account."
    : workers.every(({ code }) => code) ? "No worker has a token." : "They do not have the same token.";
  return [make("ul", {}, ...workers.map(drawWorker)), make("p", {}, `${verdict} ${name} counted ${counted(calls)}.`)];
}

/** Forget what came of the buttons that another user pressed. */
export function forgetCame() {
  find("came").replaceChildren(make("p", { class: "muted" }, "No button was pressed yet."));
}
