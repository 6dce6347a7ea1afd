// SPDX-License-Identifier: Apache-2.0
// The owner invites people and ends invitations; a link is shown once and kept nowhere.

import { showParts } from "/static/screen.js";
import { enableButtons, post, reasonOf } from "/static/server.js";

const made = document.getElementById("made");

async function send(path, body, tell) {
  made.hidden = false;
  made.textContent = "…";
  try {
    const answer = await post(path, body);
    if (answer.ok) tell(answer.told);
    else made.textContent = reasonOf(answer);
  } catch {
    made.textContent = "The server cannot be reached. Try again.";
  }
}

function say(before, parts, after) {
  const name = document.createElement("strong");
  showParts(name, parts);
  made.replaceChildren(before, name, after);
}

document.getElementById("invite").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const body = { name: form.get("name"), days: Number(form.get("days")) };
  send("/api/owner/invite", body, (told) => {
    say("Send this link to ", told.name, `; it is shown this once: ${told.link}`);
    event.target.reset();
  });
});

document.getElementById("revoke").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = new FormData(event.target).get("name");
  send("/api/owner/revoke", { name }, (told) => say("Ended: the invitations of ", told.name, ""));
});

const queue = document.getElementById("queue");
const TOLD = "metarm.queue"; // what the page says once it was loaded anew

queue.addEventListener("click", async () => {
  const told = document.getElementById("queue-told");
  const isOpen = queue.dataset.isOpen !== "true";
  queue.disabled = true;
  try {
    const answer = await post("/api/owner/queue", { is_open: isOpen });
    if (answer.ok) {
      sessionStorage.setItem(TOLD, isOpen ? "The queue is open again." : "The queue is closed.");
      location.reload();
      return;
    }
    told.textContent = reasonOf(answer);
  } catch {
    told.textContent = "The server cannot be reached. Try again.";
  }
  queue.disabled = false;
});

const kept = sessionStorage.getItem(TOLD);
if (kept) {
  sessionStorage.removeItem(TOLD);
  document.getElementById("queue-told").textContent = kept;
  queue.disabled = false;
  queue.focus();
}

document.getElementById("leave").addEventListener("click", async () => {
  await post("/api/owner/leave", {}).catch(() => null);
  location.assign("/enter");
});

enableButtons();
