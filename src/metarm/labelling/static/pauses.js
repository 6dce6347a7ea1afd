// SPDX-License-Identifier: Apache-2.0
// Screens between pairs: a batch is over, nothing is left, the queue is closed, the network is away.

import { announce, byId, showAway } from "/static/screen.js";
import { post, reasonOf } from "/static/server.js";

const SEND_MS = 3000; // that answers under way get before a batch is closed
const STEP_MS = 100;
const SEE = "See how it went";

/**
 * Say why there is no pair.
 * @param {string} wait what the server said: batch, closed or none
 * @param {{batch_size: number, num_in_batch: number}} progress
 * @param {{lookAgain: Function, endBatch: Function}} actions
 */
export function showPause(wait, progress, actions) {
  byId("note-row").hidden = true;
  if (wait === "batch") {
    showAway(
      `A batch of ${progress.batch_size} is done`,
      "You can still undo answers. Once you have seen how it went, they stay as they are.",
      [SEE, actions.endBatch],
    );
    return;
  }
  const [title, text] = wait === "closed"
    ? ["Nothing to do now", "Thank you. No pairs are handed out at the moment; your answers are kept. Look again later, or close this page."]
    : ["Nothing left to answer", "Thank you. There may be more later, when others skip a pair or the owner adds some."];
  const isBatch = progress.batch_size > 0 && progress.num_in_batch > 0;
  showAway(title, text, ["Look again", actions.lookAgain], isBatch ? [SEE, actions.endBatch] : null);
}

function say(text) {
  byId("away-text").textContent = text;
  announce(text);
}

/**
 * Close a batch, once all its answers are saved, and show what it came to.
 * @param {{annotator: string, number: number}} batch
 * @param {{onClosed: Function, onMore: Function}} told
 */
export async function endBatch(batch, outbox, told) {
  outbox.sendNow();
  for (let waited = 0; outbox.entries().length && waited < SEND_MS; waited += STEP_MS) {
    await new Promise((done) => { setTimeout(done, STEP_MS); });
  }
  if (outbox.isBlocked) return;
  if (outbox.entries().length) {
    say("Your answers have to be sent first, and the server cannot be reached now. Try again later.");
    return;
  }
  try {
    const answer = await post("/api/batch", { annotator: batch.annotator, number: batch.number });
    if (!answer.ok) {
      say(reasonOf(answer));
    } else if (answer.told.is_closed) {
      told.onClosed();
      location.assign(`/batch/${batch.number}`);
    } else {
      told.onMore();
    }
  } catch {
    say("The server cannot be reached now. Try again.");
  }
}
