// Runs the certified OpenID provider `oidc-provider` on loopback: as many issuers as the tests ask for, one port each.
//
// A line of JSON on stdin is an order, and a line of JSON on stdout is its answer. The process ends when stdin closes.

import { createPrivateKey, generateKeyPairSync, randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

console.info = console.error; // oidc-provider's notices: stdout is for answers
const { Provider } = await import("oidc-provider");

const ENDPOINTS = {
  "/.well-known/openid-configuration": "discovery",
  "/jwks": "jwks",
  "/auth": "authorization",
  "/interaction": "interaction",
  "/token": "token",
  "/me": "userinfo",
  "/token/revocation": "revocation",
};
const issuers = new Map();
const spareKeys = []; // of closed issuers: to make one takes longer than all else

const orders = {
  async open({ client, accounts }) {
    const issuer = { accounts, requests: {}, delays: {}, key: spareKeys.pop() ?? makeKey() };
    const server = createServer((request, response) => answer(issuer, request, response));
    await once(server.listen(0, "127.0.0.1"), "listening");
    issuer.server = server;
    issuer.provider = makeProvider(issuer, client);
    issuers.set(issuer.provider.issuer, issuer);
    return issuer.provider.issuer;
  },
  setAccount({ issuer, account, claims }) {
    issuers.get(issuer).accounts[account] = claims;
  },
  delay({ issuer, endpoint, milliseconds }) {
    issuers.get(issuer).delays[endpoint] = milliseconds;
  },
  requests({ issuer }) {
    return issuers.get(issuer).requests;
  },
  close({ issuer }) {
    const { server, key } = issuers.get(issuer);
    server.close().closeAllConnections();
    issuers.delete(issuer);
    spareKeys.push(key);
  },
};

function makeKey() {
  const pem = { type: "pkcs8", format: "pem" };
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048, privateKeyEncoding: pem });
  // By way of a text: Node.js 20 can wait for itself for ever when it exports a key that it has just generated.
  return { ...createPrivateKey(privateKey).export({ format: "jwk" }), kid: "newest", use: "sig", alg: "RS256" };
}

function makeProvider(issuer, client) {
  const { port } = issuer.server.address();
  return new Provider(`http://127.0.0.1:${port}`, {
    clients: [client],
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
    findAccount: (_, accountId) =>
      Object.hasOwn(issuer.accounts, accountId)
        ? { accountId, claims: () => ({ sub: accountId, ...issuer.accounts[accountId] }) }
        : undefined,
    features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    jwks: { keys: [issuer.key] },
    cookies: {
      keys: [randomBytes(32).toString("hex")],
      names: { session: `session-${port}` }, // a browser sends the cookies of one port to every port of the host
    },
  });
}

async function answer(issuer, request, response) {
  const path = request.url.split("?")[0].replace(/^(\/auth|\/interaction)\/.*/, "$1"); // without an interaction's id
  const endpoint = ENDPOINTS[path] ?? "other";
  issuer.requests[endpoint] = (issuer.requests[endpoint] ?? 0) + 1;
  try {
    await setTimeout(issuer.delays[endpoint] ?? 0);
    if (endpoint !== "interaction") {
      await issuer.provider.callback()(request, response);
    } else if (request.method === "POST") {
      await finishInteraction(issuer, request, response);
    } else {
      await issuer.provider.interactionDetails(request, response); // refuses a browser that did not begin it
      showInteraction(issuer, response);
    }
  } catch (error) {
    console.error(error);
    response.writeHead(400, { "content-type": "text/plain" }).end(String(error));
  }
}

// One page is both sign-in and consent. "Cancel" stands for the providers' own.
function showInteraction({ accounts, provider }, response) {
  const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
  const buttons = Object.keys(accounts)
    .map(escaped)
    .map((account) => `<p><button name="account" value="${account}">Continue as ${account}</button></p>`);
  response.writeHead(200, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" }).end(`<!doctype html>
<html lang="en"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<title>Sign in</title><h1>Sign in at ${provider.issuer}</h1>
<form method="post">${buttons.join("")}<p><button name="cancel" value="yes">Cancel</button></p></form></html>`);
}

async function finishInteraction({ accounts, provider }, request, response) {
  let body = "";
  for await (const chunk of request) body += chunk;
  const form = new URLSearchParams(body);
  const { params } = await provider.interactionDetails(request, response);
  if (form.has("cancel")) {
    const refusal = { error: "access_denied", error_description: "The user cancelled." };
    return provider.interactionFinished(request, response, refusal, { mergeWithLastSubmission: false });
  }
  const accountId = form.get("account");
  if (!Object.hasOwn(accounts, accountId)) throw new Error(`there is no account ${accountId}`);
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const result = { login: { accountId }, consent: { grantId: await grant.save() } };
  return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
}

const parent = process.ppid; // a fork of the test run may hold stdin open after the test run's end
setInterval(() => process.ppid === parent || process.exit(), 250);
for await (const line of createInterface({ input: process.stdin })) {
  const { order, ...details } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ result: (await orders[order](details)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error) }));
  }
}
process.exit();
