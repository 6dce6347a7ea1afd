// SPDX-License-Identifier: Apache-2.0
// The line at the top: whether answers are saved, and how far the annotator is.

import { byId, clockTime } from "/static/screen.js";

let savedAt = "";

/** Remember that the server has just taken an answer. */
export function noteSaved() {
  savedAt = clockTime();
}

/** Whether answers are saved, under way or waiting. */
export function showState(state) {
  const status = byId("status");
  const more = state.refused ? `, ${state.refused} not taken` : "";
  const texts = {
    saved: savedAt ? `Saved ${savedAt}` : "Nothing to save yet",
    saving: state.waiting === 1 ? "Saving …" : `Saving ${state.waiting} …`,
    offline: `Offline (${state.waiting})`,
    blocked: `Signed out (${state.waiting} kept)`,
  };
  status.textContent = texts[state.state] + more;
  status.dataset.state = state.refused ? "refused" : state.state;
  status.title = {
    saved: "Every answer is on the server's disk.",
    saving: "An answer is on its way.",
    offline: "Answers wait in this browser and are sent when the server can be reached.",
    blocked: state.why,
  }[state.state];
}

/** How many today, how fast, how far in the batch, how many are left. */
export function showProgress(progress) {
  const pace = progress.median_seconds ? ` · ${Math.max(1, Math.round(progress.median_seconds))} s a pair` : "";
  byId("pace").textContent = `${progress.num_today} today${pace} · ${progress.num_left ? `up to ${progress.num_left}` : "none"} left`;
  const { batch_size: size, num_in_batch: number } = progress;
  byId("batch-pace").textContent = size ? `${Math.min(number, size)} of ${size} in this batch` : "";
  const bar = byId("progress");
  bar.max = Math.max(1, progress.num_votes + progress.num_left);
  bar.value = progress.num_votes;
}
