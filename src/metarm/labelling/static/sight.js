// SPDX-License-Identifier: Apache-2.0
// How long each response was in view: half of it, or what fills 40 % of the window's height, while
// the page has the focus and nothing covers it. Where both stand side by side both are in view.

const STEPS = 50;
const SHARE_OF_ITSELF = 0.5;
const SHARE_OF_WINDOW = 0.4;

export class Sight {
  /** @param {Map<string, Element>} sides name -> what has to be in view */
  constructor(sides) {
    this.names = new Map([...sides].map(([name, element]) => [element, name]));
    this.inView = new Set();
    this.isAway = !document.hasFocus();
    const threshold = Array.from({ length: STEPS + 1 }, (_, step) => step / STEPS);
    this.observer = new IntersectionObserver((entries) => this.#see(entries), { threshold });
    this.begin();
  }

  /** Count anew, for another pair: where that scrolled to is known with the next frame. */
  begin() {
    this.ms = { left: 0, right: 0 };
    this.since = performance.now();
    this.inView.clear();
    for (const element of this.names.keys()) {
      this.observer.unobserve(element);
      this.observer.observe(element);
    }
  }

  /** The page lost the focus or is covered, or has come back. */
  setAway(isAway) {
    this.#count();
    this.isAway = isAway;
  }

  /** Seconds in view by side, to the millisecond. */
  seconds() {
    this.#count();
    return { left: Math.round(this.ms.left) / 1000, right: Math.round(this.ms.right) / 1000 };
  }

  #count() {
    const now = performance.now();
    if (!this.isAway) for (const name of this.inView) this.ms[name] += now - this.since;
    this.since = now;
  }

  #see(entries) {
    this.#count();
    for (const entry of entries) {
      const isSeen = entry.intersectionRatio >= SHARE_OF_ITSELF
        || (entry.rootBounds && entry.intersectionRect.height >= SHARE_OF_WINDOW * entry.rootBounds.height);
      const name = this.names.get(entry.target);
      if (entry.isIntersecting && isSeen) this.inView.add(name);
      else this.inView.delete(name);
    }
  }
}
