// What the parts of the page are made of.

const NOTICES = new Map([
  ["success", "Connected."],
  ["unlinked", "Disconnected. The row stays, without its tokens, and serves again if you connect the account again."],
  ["ownership_conflict", "Another user has connected this account. To move it to you, connect it once more."],
  ["consent_declined", "You did not agree at the provider. Nothing was connected."],
  ["flow_not_started_here", "Somebody else began this, or another browser. Please press the button again."],
  ["flow_expired", "That took too long. Please press the button again."],
  ["flow_replayed", "This answer was used already. Your accounts are below."],
  ["account_mismatch", "You signed in with another account than the one that you wanted to reconnect."],
  ["account_not_found", "You have no such account any more."],
  ["token_expired", "The offer to move the account is over. Connect the account once more."],
  ["token_superseded", "The account has changed hands meanwhile. Connect it once more."],
  ["token_for_another_user", "The offer to move the account was made to another user."],
  ["grant_rejected", "This token is unknown, used up, your own, or over."],
  ["not_signed_in", "Please sign in first."],
  ["cannot_move", "The rows have changed meanwhile. Please look again."],
  ["provider_error", "The provider did not answer as it should. Please try again."],
]);
const FAILED = "That did not work. Please try again.";
const shown = new Map(); // what each part shows, to leave it alone while it stays the same

export const find = (id) => document.getElementById(id);

/** Make an element. Texts become text, never markup. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Make a form of one button, which leads away from the page. */
export function form(action, label, fields = {}, attributes = {}) {
  const inputs = Object.entries(fields).map(([name, value]) => make("input", { type: "hidden", name, value }));
  return make("form", { method: "post", action }, ...inputs, make("button", attributes, label));
}

/** Make a button that stays on the page. */
export function button(label, press, attributes = {}) {
  const element = make("button", { type: "button", ...attributes }, label);
  element.addEventListener("click", press);
  return element;
}

/** Show a part again if what it shows has changed, and leave the focus where it was. */
export function show(id, data, draw) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const part = find(id);
  const focused = part.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const chosen = part.value; // of a list to choose from
  part.replaceChildren(...draw(data));
  if (chosen && [...part.children].some((option) => option.value === chosen)) part.value = chosen;
  if (focused) (part.querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? find("title")).focus();
}

export function say(text, tone) {
  find("notice").textContent = text;
  find("notice").dataset.tone = tone;
}

/** Say what a code means; of a code that is not known, only that something failed. */
export function sayCode(code, tone) {
  say(NOTICES.get(code) ?? FAILED, tone);
}

/** Ask a route of the demo, and say on the page why it refuses. */
export async function post(path, body = {}) {
  const answer = await fetch(`/demo${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => null);
  const told = answer === null ? {} : await answer.json().catch(() => ({}));
  if (answer?.ok) return told;
  sayCode(told.error, "bad");
  return null;
}

export const when = (moment) => new Date(moment).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
