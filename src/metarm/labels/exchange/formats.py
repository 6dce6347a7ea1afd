# SPDX-License-Identifier: Apache-2.0
"""What labels are exported as and imported from: the FORMATS table.

To add one: write `write` and `read` in a file of their own, add a row to `FORMATS`, a row to
`tests/unit/labels/test_exchange.py` and a heading to `docs/labels.md`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from metarm.errors import ConfigError, EmptySetError, nearest_names
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.exchange.argilla import read_argilla, write_argilla
from metarm.labels.exchange.label_studio import read_label_studio, write_label_studio
from metarm.labels.exchange.preferences import (
    count_undecided,
    read_preferences,
    write_preferences_jsonl,
    write_preferences_parquet,
)
from metarm.labels.exchange.raw_votes import read_raw_votes, write_votes_csv, write_votes_jsonl
from metarm.labels.exchange.sealing import check_sealed, write_sealed
from metarm.labels.store import LabelStore
from metarm.labels.votes import AnnotatorKind, Choice, LabelPair

__all__ = [
    "FORMATS",
    "Imported",
    "LabelFormat",
    "export_labels",
    "find_format",
    "import_labels",
    "read_labels",
]

_OTHER: Final[Mapping[Choice, Choice]] = {"first": "second", "second": "first"}


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """One format: the files it writes, by name ("" is a single one), and how they are read."""

    text: str
    write: Callable[[LabelContent], Mapping[str, bytes]]
    read: Callable[[Path], LabelContent] | None
    """None: as preferences, which have no annotators and are given one."""


FORMATS: Final[Mapping[str, LabelFormat]] = MappingProxyType(
    {
        "trl-jsonl": LabelFormat("preference rows, JSON lines", write_preferences_jsonl, None),
        "trl-parquet": LabelFormat("preference rows, Parquet", write_preferences_parquet, None),
        "votes-jsonl": LabelFormat("one vote a row, JSON lines", write_votes_jsonl, read_raw_votes),
        "votes-csv": LabelFormat("one vote a row, CSV", write_votes_csv, read_raw_votes),
        "argilla": LabelFormat("records and settings of Argilla 2", write_argilla, read_argilla),
        "label-studio": LabelFormat(
            "tasks and configuration of Label Studio", write_label_studio, read_label_studio
        ),
    }
)
"""Name -> format."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the votes that were read."""

    num_pairs: int
    """New ones."""
    num_votes: int
    """New ones."""
    num_known: int
    """Votes that were there already."""


def find_format(name: str) -> LabelFormat:
    """The format of a name.

    Raises:
        ConfigError: When there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format of labels {name!r}: {nearest_names(name, FORMATS)}")
    return FORMATS[name]


def export_labels(content: LabelContent, name: str, path: Path) -> dict[str, int]:
    """Write the labels in a format, with a manifest.

    Returns:
        How many pairs, votes and undecided pairs it is about.

    Raises:
        ConfigError: When there is no such format.
        EmptySetError: When nobody has voted.
        DataError: When the format cannot hold the labels.
        RunError: When the place cannot be written.

    Writes:
        `path`, a file or, for formats of several files, a folder; and the manifest.
    """
    found = find_format(name)
    if not content.votes:
        raise EmptySetError(
            "expected votes to export, got none: nobody has voted yet. Collect them with `metarm "
            "label serve` or `label ask`, or bring them in with `label import`"
        )
    facts = {
        "num_pairs": len({vote.pair for vote in content.votes}),
        "num_votes": len(content.votes),
        "num_undecided": count_undecided(content),
    }
    write_sealed(path, found.write(content), name, facts)
    return facts


def read_labels(
    path: Path,
    name: str,
    *,
    annotator: str | None = None,
    kind: AnnotatorKind = "person",
    data_format: str | None = None,
) -> LabelContent:
    """The labels in a file or folder.

    Args:
        path: An export, or a file of the tool itself.
        name: A name of `FORMATS`, or `preferences` for any file of preference pairs.
        annotator: Whose votes preference rows are; other formats know it.
        kind: Of that annotator.
        data_format: Of `preferences`; None: told by the first row.

    Raises:
        ConfigError: When there is no such format, or an annotator is missing or too many.
        FormatError: At the first place that is not as it should be.
        EmptySetError: When there are no labels.
        DataError: When there is no such file.
    """
    read = None if name == "preferences" else find_format(name).read
    if (annotator is None) != (read is not None):
        expected = "an annotator" if read is None else "no annotator: the file names them"
        raise ConfigError(f"format {name}: expected {expected}, got {annotator!r}")
    check_sealed(path)
    if read is not None:
        return read(path)
    return read_preferences(path, str(annotator), kind, data_format)


def import_labels(store: LabelStore, content: LabelContent) -> Imported:
    """Add labels to a store, all or nothing; those that are there already are left.

    A pair that the store has the other way round is taken for that one. A vote that says what the
    annotator's own vote on the same showing says already is that vote, whatever its key: a format
    that knows no sides and times does not take them away.

    Raises:
        MetarmError: When something does not fit the store.
    """
    before = store.pairs()
    aligned = _aligned(content, {pair.id for pair in before})
    there = {_showing(vote): _said(vote) for vote in store.content().votes}
    new = tuple(vote for vote in aligned.votes if there.get(_showing(vote)) != _said(vote))
    recorded = store.add_content(replace(aligned, votes=new))
    num_new = sum(one.is_new for one in recorded)
    return Imported(
        num_pairs=store.counts().num_pairs - len(before),
        num_votes=num_new,
        num_known=len(aligned.votes) - num_new,
    )


def _showing(vote: VoteEvent) -> tuple[str, str, bool]:
    return vote.pair, vote.annotator, vote.is_repeat


def _said(vote: VoteEvent) -> tuple[Choice, int, bool, str]:
    return vote.choice, vote.strength, vote.flag, vote.note


def _aligned(content: LabelContent, there: set[str]) -> LabelContent:
    """The content with pairs, answers and votes in the order in which the store has them."""
    turned: dict[str, LabelPair] = {}
    for pair in content.pairs:
        other = replace(pair, first=pair.second, second=pair.first)
        if pair.id not in there and other.id in there:
            turned[pair.id] = other
    return LabelContent(
        tuple(turned.get(pair.id, pair) for pair in content.pairs),
        {
            turned[pair].id if pair in turned else pair: _OTHER.get(answer, answer)
            if pair in turned
            else answer
            for pair, answer in content.gold.items()
        },
        content.annotators,
        tuple(
            _turned(vote, turned[vote.pair]) if vote.pair in turned else vote
            for vote in content.votes
        ),
    )


def _turned(vote: VoteEvent, pair: LabelPair) -> VoteEvent:
    """The same vote, told of the pair the other way round."""
    is_turned = None if vote.is_turned is None else not vote.is_turned
    choice = _OTHER.get(vote.choice, vote.choice)
    return replace(vote, pair=pair.id, choice=choice, is_turned=is_turned)
