# SPDX-License-Identifier: Apache-2.0
"""Prompts by topic: k-means on the words that tell them apart, each cluster named by its own."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from metarm.streams import draw_seed

__all__ = ["prompt_topics"]

NUM_WORDS: Final = 1000
NUM_AXES: Final = 20
NUM_STARTS: Final = 8
LEAST_PROMPTS: Final = 3
"""That a word is in, to count."""
MOST_OF_PROMPTS: Final = 0.1
NAME_WORDS: Final = 3
LEAST_LETTERS: Final = 4
_EMPTY: Final = re.compile(
    "about|after|also|anything|been|being|best|between|could|does|doing|else|find|from|give|going"
    "|good|have|help|here|into|just|know|like|look|looking|make|many|maybe|mean|more|most|much|need"
    "|okay|only|other|people|please|really|said|should|some|someone|something|such|sure|take|tell"
    "|than|thank|thanks|that|their|them|then|there|these|they|thing|things|think|this|those|trying"
    "|using|very|want|well|were|what|when|where|which|while|will|with|would|your"
)
"""Words that any question may have."""


def prompt_topics(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """The topic of each prompt, named by the words that set it apart.

    Words that few or very many prompts have are left out; tf-idf rows of unit length, on their
    first 20 principal axes, in `count` clusters: the best of 8 starts.

    Args:
        texts: One for each prompt, in any language that writes words apart.
        count: Clusters; fewer where there are not enough prompts.
        seed: Of the starts.

    Returns:
        A name such as `recipe, cook, chicken` for each text; `other` where there are no words to
        tell by.
    """
    words = [_words(text) for text in texts]
    spread = Counter(word for own in words for word in own)
    most = max(LEAST_PROMPTS, MOST_OF_PROMPTS * len(texts))
    known = [w for w, n in spread.most_common() if LEAST_PROMPTS <= n <= most][:NUM_WORDS]
    place_of = {word: place for place, word in enumerate(known)}
    rows = np.zeros((len(texts), len(known)))
    for number, own in enumerate(words):
        for word, times in own.items():
            if word in place_of:
                weight = np.log(len(texts) / spread[word])
                rows[number, place_of[word]] = (1.0 + np.log(times)) * weight
    lengths = np.linalg.norm(rows, axis=1)
    has_words = lengths > 0
    names = ["other"] * len(texts)
    own_rows = rows[has_words] / lengths[has_words, None]
    if count < 2 or len(own_rows) < 2 * count:
        return names
    labels = _cluster(own_rows, count, seed)
    average = own_rows.mean(axis=0)
    told: dict[int, str] = {}
    for label in np.unique(labels):
        apart = own_rows[labels == label].mean(axis=0) - average
        told[int(label)] = ", ".join(known[p] for p in np.argsort(-apart)[:NAME_WORDS])
    for place, label in zip(np.flatnonzero(has_words), labels, strict=True):
        names[place] = told[int(label)]
    return names


def _words(text: str) -> Counter[str]:
    found = re.findall(r"[^\W\d_]+", text.casefold())
    return Counter(w for w in found if len(w) >= LEAST_LETTERS and not _EMPTY.fullmatch(w))


def _cluster(rows: NDArray[np.float64], count: int, seed: int) -> NDArray[np.intp]:
    axes, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    points = axes[:, :NUM_AXES] * sizes[:NUM_AXES]
    best: tuple[float, NDArray[np.intp]] | None = None
    for start in range(NUM_STARTS):
        draw = np.random.default_rng(draw_seed(seed, "topics", start))
        centres, labels = kmeans2(points, count, minit="++", rng=draw, missing="warn")
        loss = float(((points - centres[labels]) ** 2).sum())
        if best is None or loss < best[0]:
            best = loss, labels
    assert best is not None
    return best[1]
