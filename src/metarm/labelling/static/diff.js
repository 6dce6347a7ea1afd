// SPDX-License-Identifier: Apache-2.0
// Which words of two texts the other one lacks: a longest common subsequence of words.

const MOST_CELLS = 4000000;

/** Words, spaces and chips of a text that came in parts; `word` is false for spaces. */
export function tokensOf(parts) {
  const tokens = [];
  parts.forEach((part, place) => {
    if (place % 2) {
      tokens.push({ text: part, isChip: true, isWord: true, isOwn: false });
      return;
    }
    for (const text of part.split(/(\s+)/)) {
      if (text) tokens.push({ text, isChip: false, isWord: /\S/.test(text), isOwn: false });
    }
  });
  return tokens;
}

/** Set `isOwn` of the words that only one of the two has. */
export function markDifferences(left, right) {
  const first = left.filter((token) => token.isWord);
  const second = right.filter((token) => token.isWord);
  const isSame = (i, j) => first[i].text === second[j].text && first[i].isChip === second[j].isChip;
  let begin = 0;
  const shorter = Math.min(first.length, second.length);
  while (begin < shorter && isSame(begin, begin)) begin += 1;
  let end = 0;
  while (end < shorter - begin && isSame(first.length - 1 - end, second.length - 1 - end)) end += 1;
  const rows = first.length - begin - end;
  const columns = second.length - begin - end;
  if (rows * columns > MOST_CELLS) {
    markUnknown(first.slice(begin, begin + rows), second.slice(begin, begin + columns));
    return;
  }
  const width = columns + 1;
  const lengths = new Uint32Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      const here = i * width + j;
      lengths[here] = isSame(begin + i, begin + j)
        ? lengths[here + width + 1] + 1
        : Math.max(lengths[here + width], lengths[here + 1]);
    }
  }
  let i = 0;
  let j = 0;
  while (i < rows && j < columns) {
    if (isSame(begin + i, begin + j)) {
      i += 1;
      j += 1;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) {
      first[begin + i].isOwn = true;
      i += 1;
    } else {
      second[begin + j].isOwn = true;
      j += 1;
    }
  }
  for (; i < rows; i += 1) first[begin + i].isOwn = true;
  for (; j < columns; j += 1) second[begin + j].isOwn = true;
}

/** For texts too long for the exact answer: words that the other does not have at all. */
function markUnknown(first, second) {
  const ofFirst = new Set(first.map((token) => token.text));
  const ofSecond = new Set(second.map((token) => token.text));
  for (const token of first) token.isOwn = !ofSecond.has(token.text);
  for (const token of second) token.isOwn = !ofFirst.has(token.text);
}
