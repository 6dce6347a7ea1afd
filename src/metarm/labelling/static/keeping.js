// SPDX-License-Identifier: Apache-2.0
// Keeps texts in the browser, which may be full or keep nothing at all.

/** Keep a text; false where there is no room for it. */
export function keep(storage, name, text) {
  try {
    storage.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}
