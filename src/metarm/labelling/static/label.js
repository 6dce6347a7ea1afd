// SPDX-License-Identifier: Apache-2.0
// One decision per screen: shows items, takes answers, hands them to the outbox, fetches ahead.

import { keep } from "/static/keeping.js";
import { Outbox } from "/static/outbox.js";
import { endBatch, showPause } from "/static/pauses.js";
import { announce, byId, fitPrompt, openPrompt, showAway, showItem, showParts, showResponses } from "/static/screen.js";
import { newKey, post, reasonOf } from "/static/server.js";
import { Sight } from "/static/sight.js";
import { noteSaved, showProgress, showState } from "/static/status.js";
import { listenToScrolls, toggleTogether } from "/static/together.js";

const AHEAD = 3; // items held besides the one that is shown
const DEAD_MS = 300; // after a new item: the second half of a double click answers nothing
const MOST_HISTORY = 20;
const CHOICES = ["left_much", "left", "tie", "right", "right_much"];
const SAID = {
  left_much: "A is much better", left: "A is better", tie: "equally good",
  right: "B is better", right_much: "B is much better", skip: "skipped",
};

const start = JSON.parse(byId("start").textContent);
const annotator = start.annotator;
const historyName = `metarm.history.${encodeURIComponent(annotator)}`;
const radios = CHOICES.map((answer) => document.querySelector(`[data-answer="${answer}"]`));

let current = null;
let ahead = [];
let answered = new Set();
let past = JSON.parse(sessionStorage.getItem(historyName) || "[]");
let isFetching = false;
let isExhausted = false;
let fetchTimer = null;
let lastState = { state: "saved", waiting: 0, refused: 0, why: "" };
let progress = start.progress;
let wait = start.wait; // why the server had no more pairs
let undone = null; // the answer that was taken back last
let view = { marked: null, flag: false, shownAt: 0, changes: 0, blurs: 0, awayMs: 0, leftAt: null, pastes: 0 };
let withDifferences = localStorage.getItem("metarm.differences") === "on";
const sight = new Sight(new Map(["left", "right"].map((side) => [side, document.querySelector(`.panel.${side}`)])));

const outbox = new Outbox(annotator, {
  onState: tellState,
  onSent: (entry, told) => {
    noteSaved();
    if (told && told.progress) tellProgress(told.progress);
    if (entry.path === "/api/undo" && told && told.is_closed && !told.is_undone) keepUndone(entry.body.key);
  },
  onElsewhere: (entry) => {
    if (entry.path !== "/api/vote") return;
    answered.add(entry.body.item);
    ahead = ahead.filter((item) => item.id !== entry.body.item);
    if (current && current.id === entry.body.item) {
      advance();
      announce("This pair was answered in another tab; here is the next one.");
    }
  },
});

function tellState(state) {
  lastState = state;
  showState(state);
  if (state.state === "blocked") showSignedOut(state.why);
}

function tellProgress(told) {
  progress = told;
  showProgress(told);
}

function showSignedOut(why) {
  current = null;
  const kept = lastState.waiting;
  const text = kept
    ? `${kept} of your answers wait in this browser; they are sent once you have signed in again.`
    : "";
  showAway("You are signed out", `${why}. ${text}`, ["Sign in", () => location.assign("/enter")]);
}

// ---- items -------------------------------------------------------------------------------

function take(items) {
  const waiting = new Set(outbox.items());
  for (const item of items) {
    const isHeld = (current && current.id === item.id) || ahead.some((held) => held.id === item.id);
    if (!isHeld && !answered.has(item.id) && !waiting.has(item.id)) ahead.push(item);
  }
}

async function fetchAhead() {
  clearTimeout(fetchTimer);
  if (isFetching || ahead.length >= AHEAD) return;
  isFetching = true;
  const held = [...(current ? [current] : []), ...ahead].map((item) => item.id);
  const body = {
    annotator,
    besides: [...new Set([...held, ...outbox.items()])].slice(0, 200),
    count: AHEAD - ahead.length,
  };
  let waitMs = 0;
  try {
    const answer = await post("/api/next", body);
    if (answer.ok) {
      take(answer.told.items);
      isExhausted = answer.told.items.length === 0;
      wait = answer.told.wait;
      if (!outbox.entries().length) tellProgress(answer.told.progress);
    } else if (answer.status === 401 || answer.status === 409) {
      outbox.isBlocked = true;
      outbox.why = reasonOf(answer);
      tellState({ ...lastState, state: "blocked", why: outbox.why });
    } else {
      waitMs = Math.max(answer.waitMs, 3000);
    }
  } catch {
    waitMs = 3000;
  } finally {
    isFetching = false;
  }
  if (waitMs) fetchTimer = setTimeout(fetchAhead, waitMs);
  if (!current && !outbox.isBlocked) advance();
}

function advance() {
  if (outbox.isBlocked) return;
  current = ahead.shift() || null;
  if (current) {
    show(current, {});
  } else if (isExhausted) {
    showPause(wait, progress, { lookAgain: fetchAhead, endBatch: leaveBatch });
  } else {
    showAway("The next pair is on its way", "It comes as soon as the server can be reached. Your answers are kept.", ["Try now", () => {
      outbox.sendNow();
      fetchAhead();
    }]);
  }
  if (current || !isExhausted) fetchAhead();
}

/** Close the batch: its answers can no longer be undone, here or in another tab. */
function leaveBatch() {
  endBatch({ annotator, number: progress.batch }, outbox, {
    onClosed: () => { past = []; keepPast(); },
    onMore: fetchAhead,
  });
}

/** An undo came after its batch was closed, in another tab: the answer stays. */
function keepUndone(key) {
  past = [];
  keepPast();
  if (undone && undone.key === key) {
    answered.add(undone.item.id);
    isExhausted = false; // the next batch has begun
    if (current && current.id === undone.item.id) advance();
  }
  announce("That batch is closed: the answer stays as it was.");
}

function show(item, before) {
  sight.begin();
  view = { marked: null, flag: false, shownAt: performance.now(), changes: 0, blurs: 0, awayMs: 0, leftAt: document.hasFocus() ? null : performance.now(), pastes: 0 };
  byId("answer").classList.remove("idle");
  byId("note").value = before.note || "";
  byId("note-row").hidden = !before.note;
  byId("note-button").setAttribute("aria-expanded", String(Boolean(before.note)));
  setFlag(Boolean(before.flag));
  mark(CHOICES.includes(before.answer) ? before.answer : null, false);
  showItem(item, withDifferences);
  byId("prompt-title").focus({ preventScroll: true });
}

// ---- answers -----------------------------------------------------------------------------

function mark(answer, byHand) {
  if (byHand && view.marked && view.marked !== answer) view.changes += 1;
  view.marked = answer;
  for (const radio of radios) {
    const isMarked = radio.dataset.answer === answer;
    radio.setAttribute("aria-checked", String(isMarked));
    radio.tabIndex = isMarked || (!answer && radio.dataset.answer === "tie") ? 0 : -1;
  }
  byId("confirm").disabled = !answer;
}

function setFlag(isOn) {
  view.flag = isOn;
  byId("flag").setAttribute("aria-pressed", String(isOn));
}

function vote(answer) {
  if (!current || performance.now() - view.shownAt < DEAD_MS) return;
  if (CHOICES.includes(answer)) mark(answer, true);
  const item = current;
  const seen = sight.seconds();
  const now = performance.now();
  const awayMs = view.awayMs + (view.leftAt === null ? 0 : now - view.leftAt);
  const body = {
    annotator,
    key: newKey(),
    item: item.id,
    answer,
    seconds: Math.round(now - view.shownAt) / 1000,
    note: byId("note").value.trim().replace(/\p{Surrogate}/gu, "\ufffd"), // halves are no text
    flag: view.flag,
    changes: view.changes,
    blurs: view.blurs,
    away_seconds: Math.round(awayMs) / 1000,
    pastes: view.pastes,
    left_seconds: seen.left,
    right_seconds: seen.right,
  };
  current = null;
  answered.add(item.id);
  past.push({ key: body.key, item, answer, note: body.note, flag: body.flag });
  keepPast();
  outbox.add("/api/vote", body);
  announce(`${SAID[answer]}.`);
  advance();
}

function keepPast() {
  past = past.slice(-MOST_HISTORY);
  keep(sessionStorage, historyName, JSON.stringify(past)); // else undo works until the page is loaded anew
  const last = past.at(-1);
  byId("undo").disabled = !last;
  byId("why").hidden = !last;
  byId("last").textContent = last ? `Last: ${SAID[last.answer]}` : "";
}

function undo() {
  if (!past.length) return;
  if (outbox.isBlocked) {
    announce("You are signed out: the answer stays, and can be taken back once you have signed in.");
    return;
  }
  const last = past.pop();
  keepPast();
  undone = last;
  outbox.add("/api/undo", { annotator, key: last.key });
  answered.delete(last.item.id);
  ahead = ahead.filter((item) => item.id !== last.item.id);
  if (current) ahead.unshift(current);
  current = last.item;
  show(current, last);
  announce(`Taken back: ${SAID[last.answer]}. Answer this pair again.`);
}

async function tellWhy() {
  const last = past.at(-1);
  if (!last) return;
  const place = byId("last");
  try {
    const answer = await post("/api/why", { annotator, key: last.key });
    if (answer.ok) showParts(place, answer.told.why);
    else place.textContent = reasonOf(answer);
  } catch {
    place.textContent = "The server cannot be reached now.";
  }
  announce(place.textContent);
}

// ---- buttons and keys --------------------------------------------------------------------

function toggleNote(isOpen = byId("note-row").hidden) {
  byId("note-row").hidden = !isOpen;
  byId("note-button").setAttribute("aria-expanded", String(isOpen));
  (isOpen ? byId("note") : byId("note-button")).focus();
}

function setDifferences(isOn) {
  withDifferences = isOn;
  keep(localStorage, "metarm.differences", isOn ? "on" : "off");
  byId("diff").setAttribute("aria-pressed", String(isOn));
  if (!current) return;
  const count = showResponses(current, isOn);
  announce(isOn ? `${count} words differ; they are marked.` : "Differences are no longer marked.");
}

function moveMark(step) {
  const place = CHOICES.indexOf(view.marked);
  const next = place < 0 ? (step > 0 ? 3 : 1) : Math.min(4, Math.max(0, place + step));
  mark(CHOICES[next], true);
  radios[next].focus();
}

function openHelp() {
  sight.setAway(true);
  byId("help").showModal();
}

const KEYS = {
  1: () => vote("left_much"),
  2: () => vote("left"),
  3: () => vote("tie"),
  4: () => vote("right"),
  5: () => vote("right_much"),
  s: () => vote("skip"),
  f: () => setFlag(!view.flag),
  n: () => toggleNote(true),
  u: undo,
  d: () => setDifferences(!withDifferences),
  c: toggleTogether,
  p: () => byId("more").hidden || openPrompt(!byId("prompt").classList.contains("open")),
  w: tellWhy,
  "?": openHelp,
  ArrowLeft: () => moveMark(-1),
  ArrowRight: () => moveMark(1),
};
const NEED_ITEM = new Set(["1", "2", "3", "4", "5", "s", "f", "n", "p", "ArrowLeft", "ArrowRight"]);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target === byId("note")) {
    if (event.key === "Escape") toggleNote(false);
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && view.marked && current && event.target.closest("[role=radio], h1, body > main") ) {
    event.preventDefault();
    if (!event.repeat) vote(view.marked);
    return;
  }
  if ((key === "ArrowUp" || key === "ArrowDown") && !event.target.closest(".response")) {
    if (current && getComputedStyle(byId("left")).overflowY === "auto") {
      event.preventDefault();
      for (const id of ["left", "right"]) byId(id).scrollBy({ top: key === "ArrowDown" ? 60 : -60 });
    }
    return;
  }
  const action = KEYS[key];
  if (!action || (NEED_ITEM.has(key) && !current)) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith("Arrow")) action();
}

function onChoiceClick(event) {
  const radio = event.target.closest("[role=radio]");
  if (!radio) return;
  // A pointer's click answers; one that a screen reader or the space bar makes only marks.
  if (event.detail === 0) mark(radio.dataset.answer, true);
  else if (event.detail === 1) vote(radio.dataset.answer);
}

function listen() {
  document.addEventListener("keydown", onKey);
  byId("choices").addEventListener("click", onChoiceClick);
  byId("confirm").addEventListener("click", () => view.marked && vote(view.marked));
  byId("skip").addEventListener("click", (event) => event.detail < 2 && vote("skip"));
  byId("flag").addEventListener("click", () => setFlag(!view.flag));
  byId("note-button").addEventListener("click", () => toggleNote());
  byId("undo").addEventListener("click", (event) => event.detail < 2 && undo());
  byId("why").addEventListener("click", tellWhy);
  byId("diff").addEventListener("click", () => setDifferences(!withDifferences));
  byId("together").addEventListener("click", toggleTogether);
  byId("more").addEventListener("click", () => openPrompt(!byId("prompt").classList.contains("open")));
  byId("help-button").addEventListener("click", openHelp);
  byId("help").addEventListener("close", () => sight.setAway(!document.hasFocus()));
  byId("help-close").addEventListener("click", () => byId("help").close());
  byId("leave").addEventListener("click", async () => {
    await post("/api/leave", {}).catch(() => null);
    location.assign("/enter");
  });
  byId("note").addEventListener("paste", () => { view.pastes += 1; });
  listenToScrolls();
  window.addEventListener("blur", () => {
    view.blurs += 1;
    view.leftAt ??= performance.now();
    sight.setAway(true);
  });
  window.addEventListener("focus", () => {
    if (view.leftAt !== null) view.awayMs += performance.now() - view.leftAt;
    view.leftAt = null;
    sight.setAway(byId("help").open);
  });
  window.addEventListener("online", () => fetchAhead());
  window.addEventListener("offline", () => tellState({ ...lastState, state: lastState.waiting ? "offline" : lastState.state }));
  window.addEventListener("resize", () => current && !byId("prompt").classList.contains("open") && fitPrompt());
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
}

listen();
keepPast();
tellProgress(progress);
byId("diff").setAttribute("aria-pressed", String(withDifferences));
// Answers that wait count as given: their items are not shown again.
answered = new Set([...outbox.items(), ...past.map((one) => one.item.id)]);
take(start.items);
isExhausted = start.items.length === 0 && !outbox.entries().length;
outbox.sendNow();
advance();
if (byId("guide") && localStorage.getItem("metarm.guide") !== byId("guide").textContent) {
  keep(localStorage, "metarm.guide", byId("guide").textContent);
  openHelp();
}
