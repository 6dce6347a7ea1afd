// SPDX-License-Identifier: Apache-2.0
// Keeps what was answered until the server has it. An entry is a key of localStorage of its own, so
// that two tabs never write over each other; whoever sends it, the server counts it once.

import { keep } from "/static/keeping.js";
import { post, reasonOf } from "/static/server.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15000;
const SIGNED_OUT = new Set([401, 409]);
const TRY_AGAIN = new Set([408, 421, 425, 429]);
const ORDER_DIGITS = 15;
const OWN_REST = new RegExp(`^\\d{${ORDER_DIGITS}}\\.`); // not of another annotator whose name begins alike

export class Outbox {
  /**
   * @param {string} annotator whose answers these are
   * @param {{onState: Function, onSent: Function, onElsewhere: Function}} told
   */
  constructor(annotator, told) {
    this.prefix = `metarm.outbox.${encodeURIComponent(annotator)}.`;
    this.refusedPrefix = `metarm.refused.${encodeURIComponent(annotator)}.`;
    this.told = told;
    this.memory = new Map(); // where the browser keeps nothing
    this.waitMs = FIRST_WAIT_MS;
    this.timer = null;
    this.isSending = false;
    this.isBlocked = false;
    window.addEventListener("online", () => this.sendNow());
    window.addEventListener("storage", (event) => this.#elsewhere(event));
  }

  /** Entries that wait, oldest first. */
  entries() {
    return this.#names(this.prefix).map((name) => [name, this.#read(name)]).filter(([, entry]) => entry);
  }

  /** How many entries the server refused for good. */
  numRefused() {
    return this.#names(this.refusedPrefix).length;
  }

  /** Items whose answers wait. */
  items() {
    return this.entries().map(([, entry]) => entry.body.item).filter(Boolean);
  }

  add(path, body) {
    // After all that wait, also where the clock was set back since: an undo follows its vote.
    const last = this.#names(this.prefix).at(-1);
    const order = Math.max(Date.now(), last ? this.#orderOf(last) + 1 : 0);
    const name = `${this.prefix}${String(order).padStart(ORDER_DIGITS, "0")}.${body.key}`;
    this.#keep(name, JSON.stringify({ path, body }));
    this.sendNow();
  }

  /** Send without waiting any longer. */
  sendNow() {
    clearTimeout(this.timer);
    this.waitMs = FIRST_WAIT_MS;
    this.#send();
  }

  async #send() {
    if (this.isSending || this.isBlocked) return this.#tell();
    this.isSending = true;
    this.#tell();
    try {
      for (let next = this.entries()[0]; next; next = this.entries()[0]) {
        if (!(await this.#sendOne(...next))) break;
      }
    } finally {
      this.isSending = false;
    }
    return this.#tell();
  }

  /** Whether to go on with the next one. */
  async #sendOne(name, entry) {
    let answer;
    try {
      answer = await post(entry.path, entry.body);
    } catch {
      return this.#later(0);
    }
    if (answer.ok) {
      this.#remove(name);
      this.waitMs = FIRST_WAIT_MS;
      this.isOffline = false;
      this.told.onSent(entry, answer.told);
      this.#tell();
      return true;
    }
    if (SIGNED_OUT.has(answer.status)) {
      this.isBlocked = true;
      this.why = reasonOf(answer);
      return false;
    }
    if (answer.status >= 500 || TRY_AGAIN.has(answer.status)) return this.#later(answer.waitMs);
    // It will never be taken: keep it aside, in its own room, so that the others get through.
    const why = { ...entry, why: reasonOf(answer) };
    this.#remove(name);
    this.#keep(name.replace(this.prefix, this.refusedPrefix), JSON.stringify(why));
    return true;
  }

  #later(leastMs) {
    this.isOffline = true;
    const wait = Math.max(leastMs, this.waitMs) * (0.75 + Math.random() / 2);
    this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#send(), wait);
    return false;
  }

  /** Names that begin so and go on as ours, in order. */
  #names(prefix) {
    return [...this.memory.keys(), ...Object.keys(localStorage)]
      .filter((name) => name.startsWith(prefix) && OWN_REST.test(name.slice(prefix.length)))
      .sort();
  }

  #orderOf(name) {
    return Number(name.slice(this.prefix.length, this.prefix.length + ORDER_DIGITS));
  }

  #keep(name, text) {
    if (!keep(localStorage, name, text)) this.memory.set(name, text);
  }

  #read(name) {
    const text = this.memory.get(name) ?? localStorage.getItem(name);
    try {
      return JSON.parse(text);
    } catch {
      return null; // another program's, or half of ours
    }
  }

  #remove(name) {
    this.memory.delete(name);
    localStorage.removeItem(name);
  }

  #elsewhere(event) {
    if (event.key === null || !event.key.startsWith(this.prefix)) return;
    if (event.newValue) {
      const entry = this.#read(event.key);
      if (entry) this.told.onElsewhere(entry);
    }
    this.#tell();
  }

  #tell() {
    const waiting = this.entries().length;
    const state = this.isBlocked ? "blocked"
      : !waiting ? "saved"
      : this.isOffline || !navigator.onLine ? "offline"
      : "saving";
    this.told.onState({ state, waiting, refused: this.numRefused(), why: this.why || "" });
  }
}
