# SPDX-License-Identifier: Apache-2.0
"""Preference rows as TRL and `datasets` read them, made of votes; and votes made of such rows.

A row's `p` is the share of votes for `chosen`, a tie counting half; `margin` the mean of
strength - 1, votes for the other side negative, and at least 0. Pairs whose votes prefer neither
have no row.
"""

import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from metarm.data.fields import Row, shown
from metarm.data.preferences import load_preferences
from metarm.data.rows import read_rows
from metarm.errors import DataError
from metarm.labels.adding import check_name
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.votes import AnnotatorKind, Choice, LabelPair
from metarm.schema import PreferencePair, Prompt, prompt_to_json
from metarm.storage import fingerprint, json_lines_text

__all__ = [
    "count_undecided",
    "read_preferences",
    "write_preferences_jsonl",
    "write_preferences_parquet",
]

COLUMNS: Final = ("prompt", "chosen", "rejected", "p", "margin", "n_votes", "chosen_by")
MOST_VOTES: Final = 10_000
"""Per row; more is taken for a mistake."""


class _Tally(NamedTuple):
    """What the votes on a pair come to."""

    pair: LabelPair
    points: int
    """For `first`: 2 a vote, 1 a tie."""
    strength: int
    """Sum of strength - 1, votes for `second` negative."""
    num_votes: int


def _tallies(content: LabelContent) -> Iterator[_Tally]:
    """One for each pair with a vote; skips and repeats are no further votes.

    Pairs with a known answer are there to judge annotators by: what these say of them is no label.
    """
    pairs = {pair.id: pair for pair in content.pairs}
    counted = (
        vote
        for vote in content.votes
        if vote.choice != "skip" and not vote.is_repeat and vote.pair not in content.gold
    )
    for pair, group in itertools.groupby(counted, key=lambda vote: vote.pair):
        points = strength = count = 0
        for vote in group:
            sign = {"first": 1, "tie": 0, "second": -1}[vote.choice]
            points += 1 + sign
            strength += sign * (vote.strength - 1)
            count += 1
        yield _Tally(pairs[pair], points, strength, count)


def count_undecided(content: LabelContent) -> int:
    """Pairs whose votes prefer neither response."""
    return sum(tally.points == tally.num_votes for tally in _tallies(content))


def _rows(content: LabelContent) -> Iterator[dict[str, Any]]:
    for pair, points, strength, count in _tallies(content):
        if points == count:
            continue
        is_first = points > count
        chosen, rejected = (pair.first, pair.second)[:: 1 if is_first else -1]
        won, gap = (points, strength) if is_first else (2 * count - points, -strength)
        row: dict[str, Any] = {
            "prompt": prompt_to_json(pair.prompt),
            "chosen": _side(pair.prompt, chosen),
            "rejected": _side(pair.prompt, rejected),
            "p": won / (2 * count),
            "margin": max(gap, 0) / count,
            "n_votes": count,
        }
        if pair.chosen_by:
            row["chosen_by"] = pair.chosen_by
        yield row


def _side(prompt: Prompt, text: str) -> str | list[dict[str, str]]:
    """A response: text after text, a message after a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def write_preferences_jsonl(content: LabelContent) -> dict[str, bytes]:
    """Preference rows as JSON lines."""
    return {"": json_lines_text(_rows(content)).encode()}


def write_preferences_parquet(content: LabelContent) -> dict[str, bytes]:
    """Preference rows as Parquet.

    Raises:
        DataError: When some prompts are texts and others conversations.
    """
    import pyarrow
    import pyarrow.parquet

    rows = list(_rows(content))
    kinds = {isinstance(row["prompt"], str) for row in rows}
    if len(kinds) > 1:
        raise DataError(
            "expected prompts that are all texts or all conversations, which a column of Parquet "
            "can hold, got both: export as trl-jsonl"
        )
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    text = pyarrow.string() if kinds != {False} else pyarrow.list_(message)
    types = (
        text,
        text,
        text,
        pyarrow.float64(),
        pyarrow.float64(),
        pyarrow.int64(),
        pyarrow.string(),
    )
    schema = pyarrow.schema(list(zip(COLUMNS, types, strict=True)))
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream)
    return {"": stream.getvalue()}


def read_preferences(
    path: Path, annotator: str, kind: AnnotatorKind = "person", data_format: str | None = None
) -> LabelContent:
    """Votes made of preference rows, by an annotator of the name given.

    Rows with `p` and `n_votes` become as many votes, by NAME, NAME-2, NAME-3, ...; all others, in
    any format of `metarm.data.formats`, one vote for `chosen` each.

    Raises:
        ConfigError: When the name or the format is none.
        FormatError: At the first row that is no preference.
        EmptySetError: When there is none.
        DataError: When there is no such file.
    """
    check_name(annotator)
    first = next(read_rows(path))
    if data_format is None and first.has("p") and first.has("n_votes"):
        found = [_read_votes(row, annotator) for row in read_rows(path)]
    else:
        loaded = load_preferences(path, data_format, keep_blank=True).pairs
        found = [_one_vote(one, annotator) for one in loaded]
    votes = tuple(vote for _, own in found for vote in own)
    names = sorted({vote.annotator for vote in votes})
    return LabelContent(
        tuple({pair.id: pair for pair, _ in found}.values()), {}, dict.fromkeys(names, kind), votes
    )


def _one_vote(one: PreferencePair, annotator: str) -> tuple[LabelPair, list[VoteEvent]]:
    """A pair and what its label says: for `chosen`, unless a soft label says otherwise."""
    pair = LabelPair(one.prompt, one.chosen, one.rejected, one.source, one.chosen_by)
    p = 1.0 if one.p is None else one.p
    choice: Choice = "tie" if p == 0.5 else "first" if p > 0.5 else "second"
    return pair, [VoteEvent(_key(pair, annotator), annotator, choice, pair=pair.id)]


def _key(pair: LabelPair, annotator: str, *others: Any) -> str:
    return f"import {fingerprint('preference', pair.id, annotator, *others)}"


def _read_votes(row: Row, annotator: str) -> tuple[LabelPair, list[VoteEvent]]:
    """A row's pair, and votes that come to its `p`, `margin` and `n_votes`."""
    count, strong, shares = _read_counts(row)
    choices = [choice for choice, number in shares.items() for _ in range(number)]
    pair = LabelPair(
        prompt=row.prompt("prompt"),
        first=row.response("chosen"),
        second=row.response("rejected"),
        chosen_by=row.text("chosen_by") if row.has("chosen_by") else "",
    )
    votes = []
    for number, choice in enumerate(choices):
        name = annotator if number == 0 else f"{annotator}-{number + 1}"
        strength = 2 if number < strong else 1
        key = _key(pair, name, choice, strength, count)
        votes.append(VoteEvent(key, name, choice, pair=pair.id, strength=strength))
    return pair, votes


def _read_counts(row: Row) -> tuple[int, int, Mapping[Choice, int]]:
    """How many votes a row stands for, how many are strong, and how many say what."""
    remedy = "Leave out `p` and `n_votes`, to have every row read as one vote."
    number = row.number("n_votes")
    if number != int(number) or not 1 <= number <= MOST_VOTES:
        got = shown(row.value("n_votes"))
        row.fail(("n_votes",), f"a whole number from 1 to {MOST_VOTES}", got, remedy)
    count, share = int(number), row.number("p")
    points = round(2 * count * share) if 0.5 <= share <= 1 else -1
    if points < 0 or abs(points - 2 * count * share) > 1e-6:
        expected = f"a share of {count} votes, ties counting half, from .5 to 1"
        row.fail(("p",), expected, shown(row.value("p")), remedy)
    wins = points // 2
    margin = row.number("margin") if row.has("margin") else 0.0
    strong = round(margin * count) if 0 <= margin <= 1 else -1
    if not 0 <= strong <= wins or abs(strong - margin * count) > 1e-6:
        expected = f"a mean of 0 and 1 over {count} votes"
        row.fail(("margin",), expected, shown(row.value("margin")), remedy)
    ties = points % 2
    return count, strong, {"first": wins, "tie": ties, "second": count - wins - ties}
