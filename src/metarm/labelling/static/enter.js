// SPDX-License-Identifier: Apache-2.0
// Signs in with the token of a link: it stands after the #, which no browser sends or logs.

import { enableButtons, post, reasonOf } from "/static/server.js";

const status = document.getElementById("enter-status");
const input = document.getElementById("token");

async function enter(text) {
  const token = text.trim().replace(/^.*#/s, "");
  if (!token) return;
  status.textContent = "Signing in …";
  try {
    const answer = await post("/api/enter", { token: token.slice(0, 200) });
    if (answer.ok) {
      location.replace(answer.told.go === "/owner" ? "/owner" : "/");
      return;
    }
    status.textContent = reasonOf(answer);
  } catch {
    status.textContent = "The server cannot be reached. Try again.";
  }
  input.focus();
}

document.getElementById("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(input.value);
});

function fromLink() {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", location.pathname); // out of the history
  enter(token);
}

enableButtons();
window.addEventListener("hashchange", fromLink);
fromLink();
