// SPDX-License-Identifier: Apache-2.0
// The page of a batch needs a script only to sign out; going on is a link.

import { enableButtons, post } from "/static/server.js";

document.getElementById("leave").addEventListener("click", async () => {
  await post("/api/leave", {}).catch(() => null);
  location.assign("/enter");
});

enableButtons();
