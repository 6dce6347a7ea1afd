# SPDX-License-Identifier: Apache-2.0
"""Pairs in files: rows of `prompt`, `first` and `second`, or groups of responses taken by twos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from metarm.data.fields import shown
from metarm.data.meta_sets import load_groups
from metarm.data.rows import read_rows
from metarm.errors import FormatError
from metarm.labels.exchange.fields import read_pair, read_word
from metarm.labels.votes import Choice, LabelPair

__all__ = ["FoundPairs", "read_pair_file", "read_pairs_of_groups", "read_wanted_file"]

MOST_VOTES: Final = 1_000_000


class FoundPairs(NamedTuple):
    """Pairs, each once, and what is known of them."""

    pairs: list[LabelPair]
    gold: Mapping[str, Choice]
    """Pair id -> known answer."""
    num_same: int
    """Left out: both responses are the same."""


def read_pair_file(source: Path) -> FoundPairs:
    """Rows of `prompt`, `first`, `second`; `source`, `chosen_by` and `known_answer` where known.

    Raises:
        FormatError: At the first row that is no pair, or knows another answer than one before.
        EmptySetError: When there is no row.
        DataError: When there is no such file.
    """
    pairs: dict[str, LabelPair] = {}
    gold: dict[str, Choice] = {}
    num_same = 0
    for row in read_rows(source):
        pair = read_pair(row)
        if pair.first == pair.second:
            num_same += 1
            continue
        pairs.setdefault(pair.id, pair)
        if row.has("known_answer"):
            answer = read_word(row, ("first", "second", "tie"), "known_answer")
            if gold.setdefault(pair.id, answer) != answer:
                raise FormatError(
                    f"{row.place}: field `known_answer`: expected {gold[pair.id]!r} as before, got "
                    f"{answer!r}. Leave one."
                )
    return FoundPairs(list(pairs.values()), gold, num_same)


def read_pairs_of_groups(source: Path) -> FoundPairs:
    """Groups of responses, each response in one pair: the first with the second, and so on.

    Raises:
        FormatError: At the first row that is no group.
        EmptySetError: When there is no row.
        DataError: When there is no such file.
    """
    pairs: dict[str, LabelPair] = {}
    num_same = 0
    for group in load_groups(source):
        for first, second in zip(group.responses[::2], group.responses[1::2], strict=False):
            pair = LabelPair(group.prompt, first, second, group.source)
            num_same += first == second
            if first != second:
                pairs.setdefault(pair.id, pair)
    return FoundPairs(list(pairs.values()), {}, num_same)


def read_wanted_file(source: Path) -> dict[str, int]:
    """Rows of `pair`, an id, and `wanted`, votes of people; of several numbers the largest.

    Raises:
        FormatError: At the first row that is not so.
        EmptySetError: When there is no row.
        DataError: When there is no such file.
    """
    wanted: dict[str, int] = {}
    for row in read_rows(source):
        pair, votes = row.text("pair"), row.number("wanted")
        if not 1 <= votes <= MOST_VOTES or votes != int(votes):
            expected = f"1 to {MOST_VOTES} votes"
            row.fail(("wanted",), expected, shown(row.value("wanted")), "Mend the field.")
        wanted[pair] = max(int(votes), wanted.get(pair, 0))
    return wanted
