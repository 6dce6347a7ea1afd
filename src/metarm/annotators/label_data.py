# SPDX-License-Identifier: Apache-2.0
"""Votes with their pairs, known answers and annotators, out of a label store or plain files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from metarm.data.fields import Row, shown
from metarm.data.rows import read_rows
from metarm.errors import DataError, EmptySetError, FormatError
from metarm.labels.exchange.raw_votes import read_raw_votes
from metarm.labels.reading import LabelReader
from metarm.labels.votes import CHOICES, AnnotatorKind, Choice, LabelPair, Vote

__all__ = ["LabelData", "read_features", "read_label_data"]

SQLITE: Final = b"SQLite format 3\0"
FLAGS: Final = {"true": True, "false": False, "1": True, "0": False}
KINDS: Final = get_args(AnnotatorKind)


@dataclass(frozen=True, slots=True)
class LabelData:
    """What annotators have said, and of what."""

    votes: tuple[Vote, ...]
    pairs: Mapping[str, LabelPair]
    """Id -> pair, also those that nobody voted on; may lack some of a file of votes alone."""
    gold: Mapping[str, Choice]
    """Pair -> its known answer."""
    kinds: Mapping[str, AnnotatorKind]
    """Annotator -> kind; a file's are people where it does not say."""


def read_label_data(source: Path, pairs: Path | None = None) -> LabelData:
    """The votes of a label store, or of a file with a row a vote.

    A file's row has `annotator` and `choice` (first, second, tie, skip), may have `strength`,
    `is_turned`, `seconds` and `kind`, and names its pair by `pair`, an id, or holds it as `prompt`,
    `first` and `second`. Rows of `pairs` have these three, may have the `id` that votes name them
    by, and `known_answer`. What `metarm label export` writes as `votes-jsonl` or `votes-csv`, whose
    rows have `label` for `choice`, is read as well.

    Args:
        source: A store's database, or a JSON, JSON lines, CSV or Parquet file.
        pairs: The file of pairs.

    Raises:
        DataError: When there is no such file.
        EmptySetError: When there is no vote.
        FormatError: At the first row that is not as it should be.
        RunError: When the store cannot be read.
    """
    if source.is_file() and source.open("rb").read(len(SQLITE)) == SQLITE:
        with LabelReader(source) as reader:
            data = LabelData(
                votes=tuple(reader.votes()),
                pairs={pair.id: pair for pair in reader.pairs()},
                gold=reader.gold(),
                kinds={one.name: one.kind for one in reader.annotators()},
            )
        if not data.votes:
            raise EmptySetError(f"{source} has no votes yet: metarm label serve collects them")
        return data
    known: dict[str, LabelPair] = {}
    gold: dict[str, Choice] = {}
    own_ids: dict[str, str] = {}
    for row in read_rows(pairs) if pairs else ():
        pair = _pair(row)
        known[pair.id] = pair
        own_ids[row.text("id") if row.has("id") else pair.id] = pair.id
        if row.has("known_answer"):
            gold[pair.id] = _choice(row, "known_answer")
    if _is_export(source):
        content = read_raw_votes(source)
        given = tuple(
            Vote(one.pair, one.annotator, one.choice, one.strength, one.is_turned, one.seconds)
            for one in content.votes
        )
        texts = {pair.id: pair for pair in content.pairs}
        return LabelData(given, known | texts, {**content.gold, **gold}, content.annotators)
    votes: list[Vote] = []
    kinds: dict[str, AnnotatorKind] = {}
    for row in read_rows(source):
        vote = _vote(row, known, own_ids)
        votes.append(vote)
        kind = row.text("kind") if row.has("kind") else "person"
        if kind not in KINDS:
            row.fail(("kind",), f"one of {', '.join(KINDS)}", shown(kind), "Mend the row.")
        if kinds.setdefault(vote.annotator, kind) != kind:  # type: ignore[arg-type]
            row.fail(("kind",), kinds[vote.annotator], kind, "An annotator has one kind.")
    return LabelData(tuple(votes), known, gold, kinds)


def _is_export(source: Path) -> bool:
    """Whether a file of votes has the columns of an export."""
    first = next(iter(read_rows(source)))
    return first.has("label") and not first.has("choice")


def read_features(source: Path, pairs: Mapping[str, LabelPair]) -> dict[str, list[float]]:
    """Features of pairs, first minus second, from a file of `pair` and `features`.

    Args:
        source: JSON lines, JSON or Parquet.
        pairs: Those that are known, for the message where none of the file's is.

    Raises:
        DataError: When there is no such file, or it has features of other pairs only.
        FormatError: At the first row that is not as it should be.
    """
    found: dict[str, list[float]] = {}
    for row in read_rows(source):
        count = row.length("features")
        found[row.text("pair")] = [row.number("features", place) for place in range(count)]
    if pairs and not any(pair in pairs for pair in found):
        raise DataError(
            f"{source}: expected features of the pairs that are voted on, got those of others: "
            "`pair` is the id that votes name"
        )
    return found


def _pair(row: Row) -> LabelPair:
    source = row.text("source") if row.has("source") else ""
    chosen_by = row.text("chosen_by") if row.has("chosen_by") else ""
    return LabelPair(row.prompt("prompt"), row.text("first"), row.text("second"), source, chosen_by)


def _vote(row: Row, known: dict[str, LabelPair], own_ids: Mapping[str, str]) -> Vote:
    if row.has("pair"):
        name = row.text("pair")
        pair = own_ids.get(name, name)
    else:
        held = _pair(row)
        pair = held.id
        known.setdefault(pair, held)
    try:
        return Vote(
            pair=pair,
            annotator=row.text("annotator"),
            choice=_choice(row, "choice"),
            strength=int(row.number("strength")) if row.has("strength") else 1,
            is_turned=_flag(row, "is_turned") if row.has("is_turned") else None,
            seconds=row.number("seconds") if row.has("seconds") else None,
        )
    except FormatError as error:
        if str(error).startswith(row.place):
            raise
        raise FormatError(f"{row.place}: {error}. Mend the row.") from error


def _choice(row: Row, name: str) -> Choice:
    value = row.text(name)
    found: dict[str, Choice] = {choice: choice for choice in CHOICES}
    if value not in found:
        row.fail((name,), f"one of {', '.join(CHOICES)}", shown(value), "Mend the row.")
    return found[value]


def _flag(row: Row, name: str) -> bool:
    value = row.value(name)
    read: Callable[[str], bool | None] = FLAGS.get
    flag = value if isinstance(value, bool) else read(str(value).lower())
    if flag is None:
        row.fail((name,), "true or false", shown(value), "Leave it out where no side is known.")
    return flag
