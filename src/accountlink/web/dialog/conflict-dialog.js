// accountlink: asks the user whether an account that another user has connected shall move to them.
// Include it in <head> as the first script, without defer, async or type="module". See docs/conflict-dialog.md.
(() => {
  "use strict";
  const loaded = Symbol.for("accountlink.conflict-dialog");
  if (document[loaded]) return; // the page includes this script twice
  document[loaded] = true;

  const NAME = "transfer_token";
  const DIALOG = "dialog[data-accountlink-conflict]";
  const INPUT = `${DIALOG} form[method="post" i] input[name="${NAME}"]`; // by GET the token would get into an address
  const SHAPE = /^[\w.-]+$/;
  const LONGEST = 65536; // characters; a real token has a few hundred
  const LONGEST_WAIT = 10_000; // milliseconds
  let token = ""; // only from the moment when it is read until the dialog closes
  let sending = 0; // the timer that ends the wait for the answer, or 0
  let before = null; // the element that had the focus before the dialog

  // Read the token, and remove it from the address, before any other script runs.
  const take = () => {
    const found = [], others = [];
    for (const part of location.hash.slice(1).split("&")) {
      const value = new URLSearchParams(part).get(NAME);
      if (value === null) others.push(part);
      else found.push(value);
    }
    if (!found.length) return;
    const url = new URL(location.href);
    url.hash = others.join("&");
    history.replaceState(history.state, "", url);
    const [value] = found;
    if (found.length === 1 && value.length <= LONGEST && SHAPE.test(value)) token = value;
  };

  // Let the form hold the token while the dialog asks, and nothing otherwise.
  const fill = () => document.querySelectorAll(INPUT).forEach((input) => { input.value = token; });

  const ask = () => {
    if (!token || document.readyState === "loading") return;
    const dialog = document.querySelector(INPUT)?.closest(DIALOG);
    if (!dialog) {
      token = "";
      console.warn(`accountlink: there is no <${DIALOG}> with a POST form and its input "${NAME}".`);
      return;
    }
    if (!dialog.open) {
      before = document.activeElement;
      dialog.showModal(); // the browser keeps the focus inside, and the rest of the page inert
    }
    fill();
  };

  const stopWaiting = (dialog) => {
    clearTimeout(sending);
    sending = 0;
    dialog?.removeAttribute("aria-busy");
  };

  const forget = (dialog) => {
    token = "";
    fill();
    stopWaiting(dialog);
  };

  take();
  document.addEventListener("DOMContentLoaded", ask);
  ask(); // for a page that loads this script late, against the advice above
  addEventListener("hashchange", () => { take(); ask(); });

  // Once the user has agreed, neither a second press nor Escape counts until the answer leads to another page.
  // The user may have stopped the request, or the answer leads nowhere. So after a while the buttons work again.
  document.addEventListener("submit", (event) => {
    const dialog = event.target.closest?.(DIALOG);
    if (!dialog || event.defaultPrevented) return;
    if (sending) event.preventDefault();
    else if (event.target.matches('[method="post" i]')) {
      dialog.setAttribute("aria-busy", "true");
      sending = setTimeout(stopWaiting, LONGEST_WAIT, dialog);
    }
  });
  document.addEventListener("cancel", (event) => {
    if (sending && event.target.matches?.(DIALOG)) event.preventDefault();
  }, true);
  addEventListener("keydown", (event) => { // Chromium lets a page refuse only the first of two cancels
    if (sending && event.key === "Escape") event.preventDefault();
  }, true);

  // The browser has given the focus back already, unless nothing had it before.
  document.addEventListener("close", (event) => {
    const dialog = event.target;
    if (!dialog.matches?.(DIALOG) || dialog.open) return;
    forget(dialog);
    const next = dialog.dataset.returnFocus;
    if (next && (!before?.isConnected || before === document.body)) document.querySelector(next)?.focus();
  }, true);

  // Neither the back/forward cache nor what a browser puts back into forms may bring an old token.
  addEventListener("pagehide", () => {
    const dialog = document.querySelector(`${DIALOG}[open]`);
    forget(dialog);
    dialog?.close();
  });
  addEventListener("pageshow", fill);
})();
