// SPDX-License-Identifier: Apache-2.0
// What is on the screen. Every text is a text node; what cannot be seen comes as a chip.

import { markDifferences, tokensOf } from "/static/diff.js";

export const byId = (id) => document.getElementById(id);

const LINES_SHOWN = 12;

function chip(code) {
  const element = document.createElement("span");
  element.className = "chip";
  element.textContent = code;
  element.title = "a character that cannot be seen";
  return element;
}

/** Show a text that came in parts. */
export function showParts(element, parts) {
  element.replaceChildren(
    ...parts.map((part, place) => (place % 2 ? chip(part) : document.createTextNode(part))),
  );
}

function showTokens(element, tokens) {
  const nodes = [];
  let mark = null;
  let spaces = [];
  for (const token of tokens) {
    const node = token.isChip ? chip(token.text) : document.createTextNode(token.text);
    if (token.isOwn) {
      if (!mark) {
        mark = document.createElement("mark");
        nodes.push(...spaces, mark);
      } else {
        mark.append(...spaces);
      }
      spaces = [];
      mark.append(node);
    } else if (!token.isWord) {
      spaces.push(node);
    } else {
      nodes.push(...spaces, node);
      spaces = [];
      mark = null;
    }
  }
  element.replaceChildren(...nodes, ...spaces);
}

/** Both responses, with the words marked that differ where that is wished for. */
export function showResponses(item, withDifferences) {
  const left = byId("left");
  const right = byId("right");
  if (!withDifferences) {
    showParts(left, item.left);
    showParts(right, item.right);
    return 0;
  }
  const first = tokensOf(item.left);
  const second = tokensOf(item.right);
  markDifferences(first, second);
  showTokens(left, first);
  showTokens(right, second);
  return [...first, ...second].filter((token) => token.isOwn).length;
}

/** A whole item, scrolled to its beginning, its prompt shut where that is long. */
export function showItem(item, withDifferences) {
  byId("away").hidden = true;
  byId("item").hidden = false;
  byId("answer").hidden = false;
  byId("prompt").replaceChildren(
    ...item.prompt.map((turn) => {
      const element = document.createElement("div");
      element.className = "turn";
      if (turn.role.some(Boolean)) {
        const role = document.createElement("p");
        role.className = "role";
        showParts(role, turn.role);
        element.append(role);
      }
      const text = document.createElement("p");
      text.className = "text";
      text.dir = "auto";
      showParts(text, turn.text);
      element.append(text);
      return element;
    }),
  );
  showResponses(item, withDifferences);
  for (const id of ["left", "right", "main"]) byId(id).scrollTop = 0;
  window.scrollTo(0, 0);
  fitPrompt();
}

/** Shut the prompt where it has more lines than are shown, and say how many there are. */
export function fitPrompt() {
  const prompt = byId("prompt");
  const style = getComputedStyle(prompt);
  const padding = parseFloat(style.paddingTop) + parseFloat(style.paddingBottom);
  const lines = Math.round((prompt.scrollHeight - padding) / parseFloat(style.lineHeight));
  const isLong = lines > LINES_SHOWN;
  prompt.dataset.isLong = String(isLong);
  byId("more").hidden = !isLong;
  byId("more").dataset.lines = String(lines);
  openPrompt(false);
}

export function openPrompt(isOpen) {
  const more = byId("more");
  byId("prompt").classList.toggle("open", isOpen);
  more.setAttribute("aria-expanded", String(isOpen));
  more.textContent = isOpen ? "Show less of the prompt" : `Show all ${more.dataset.lines} lines of the prompt`;
}

/** A screen without an item; `main` and `more` are a button's words and what it does, or null. */
export function showAway(title, text, main, more = null) {
  byId("item").hidden = true;
  byId("answer").hidden = !byId("undo").disabled ? false : true;
  byId("answer").classList.toggle("idle", true);
  byId("away").hidden = false;
  byId("away-title").textContent = title;
  byId("away-text").textContent = text;
  for (const [id, told] of [["away-button", main], ["away-more", more]]) {
    byId(id).hidden = !told;
    byId(id).textContent = told ? told[0] : "";
    byId(id).onclick = told ? told[1] : null;
  }
  byId("away-title").focus();
}

/** Say something to those who listen. */
export function announce(text) {
  byId("announce").textContent = text;
}

export function clockTime() {
  return new Date().toLocaleTimeString("en-GB");
}
