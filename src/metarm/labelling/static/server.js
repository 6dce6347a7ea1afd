// SPDX-License-Identifier: Apache-2.0
// Speaks to the server: JSON out, JSON in, and never waits for ever.

const PATIENCE_MS = 15000;

/** An answer: its status, its JSON (null where there is none), and when to try again. */
export async function post(path, body) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), PATIENCE_MS);
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
      signal: abort.signal,
    });
    let told = null;
    try {
      told = await response.json();
    } catch (error) {
      if (response.ok) throw error; // half an answer is none
    }
    const wait = Number(response.headers.get("Retry-After")) || 0;
    return { status: response.status, ok: response.ok, told, waitMs: wait * 1000 };
  } finally {
    clearTimeout(timer);
  }
}

/** What a refusal says. */
export function reasonOf(answer) {
  return (answer.told && answer.told.error && answer.told.error.message) || `error ${answer.status}`;
}

/** A key that nobody else makes; browsers lack randomUUID on plain http. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Let buttons be used. Until its script is there a form would send itself, with a token or a name
 * in the address; with its submit button disabled neither a click nor Enter in a field sends it.
 */
export function enableButtons() {
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
}
