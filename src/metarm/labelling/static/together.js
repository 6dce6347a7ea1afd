// SPDX-License-Identifier: Apache-2.0
// Scrolls both responses together, where that is wished for.

import { keep } from "/static/keeping.js";
import { byId } from "/static/screen.js";

let isTogether = localStorage.getItem("metarm.together") === "on";

/** Whether they scroll together from now on; kept in the browser. */
export function setTogether(isOn) {
  isTogether = isOn;
  keep(localStorage, "metarm.together", isOn ? "on" : "off");
  byId("together").setAttribute("aria-pressed", String(isOn));
}

export function toggleTogether() {
  setTogether(!isTogether);
}

function scrollTogether(from, to) {
  if (!isTogether || from.dataset.isLed === "true") {
    from.dataset.isLed = "false";
    return;
  }
  const range = from.scrollHeight - from.clientHeight;
  const top = range > 0 ? (from.scrollTop / range) * (to.scrollHeight - to.clientHeight) : 0;
  if (Math.abs(to.scrollTop - top) > 1) {
    to.dataset.isLed = "true";
    to.scrollTop = top;
  }
}

/** Begin to look at how both are scrolled. */
export function listenToScrolls() {
  const [left, right] = [byId("left"), byId("right")];
  left.addEventListener("scroll", () => scrollTogether(left, right), { passive: true });
  right.addEventListener("scroll", () => scrollTogether(right, left), { passive: true });
  setTogether(isTogether);
}
