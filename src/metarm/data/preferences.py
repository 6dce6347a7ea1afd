# SPDX-License-Identifier: Apache-2.0
"""Preference sets: load pairs and account for every one, split them by prompt, save them."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metarm.data.formats import LeftOut, Parsed, detect_format, parse_row, resolve_format
from metarm.data.rows import read_rows
from metarm.errors import ConfigError, EmptySetError
from metarm.schema import PreferencePair, Prompt, is_picked
from metarm.storage import fingerprint, write_json_lines

__all__ = [
    "LoadReport",
    "PreferenceSet",
    "load_preferences",
    "pair_key",
    "prompt_key",
    "save_preferences",
    "split_by_prompt",
    "unseen_prompts",
    "without_picked",
    "without_prompts_of",
]

EXAMPLES_PER_REASON = 5
IDENTICAL = "identical sides"
DUPLICATES = "duplicates"
EMPTY = "with an empty prompt or side"
CONTRADICTIONS = "contradictions"

_PairKey = tuple[Prompt, str, str]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of every pair of one source: `num_read` is `num_kept` plus all left out."""

    source: str
    data_format: str
    num_read: int
    num_kept: int
    num_identical: int
    """Left out: chosen and rejected are the same."""
    num_duplicates: int
    """Left out: the same prompt, chosen and rejected came before."""
    num_contradictions: int
    """Kept: the same pair came before with its sides swapped."""
    num_ties: int
    """Left out: the ratings prefer neither side."""
    num_empty: int = 0
    """Left out: the prompt, chosen or rejected is blank."""
    num_diverged: int = 0
    """Left out: the conversations differ before the last message."""
    examples: tuple[str, ...] = ()
    """The first places of each kind, such as `pairs.jsonl:3: identical sides`."""

    def left_out(self) -> dict[str, int]:
        """Reason -> count, of the reasons that occurred."""
        counts = {
            IDENTICAL: self.num_identical,
            DUPLICATES: self.num_duplicates,
            LeftOut.TIE.value: self.num_ties,
            EMPTY: self.num_empty,
            LeftOut.DIVERGED.value: self.num_diverged,
        }
        return {reason: count for reason, count in counts.items() if count}

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.num_read} pairs read ({self.data_format}), {self.num_kept} kept"]
        if reasons := self.left_out():
            counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            parts.append(f"left out: {counts}")
        if self.num_contradictions:
            parts.append(f"{self.num_contradictions} contradictions kept")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Labelled pairs and the account of how they were loaded."""

    pairs: tuple[PreferencePair, ...]
    report: LoadReport


def load_preferences(
    source: str | Path,
    data_format: str | None = None,
    *,
    split: str = "train",
    keep_blank: bool = False,
) -> PreferenceSet:
    """The pairs of a file, a folder or a hub data set, checked and counted.

    Args:
        source: A .jsonl, .json, .csv or .parquet file (.gz too), or a hub id `owner/name`.
        data_format: A name of `FORMATS` or `module:function`; None: told by the first row.
        split: The split of a hub data set.
        keep_blank: A policy's own responses may be blank, and a label on one says much; in a file
            from elsewhere a blank side is a mistake.

    Raises:
        ConfigError: When `data_format` names nothing.
        FormatError: At the first row that is not as the format wants it.
        EmptySetError: When there are no rows, or no pair is left.
        DataError: When there is no such file or data set.
    """
    rows = read_rows(source, split)
    pair_format = resolve_format(data_format) if data_format else None
    first = next(rows)
    name = data_format or detect_format(first)
    pair_format = pair_format or resolve_format(name)
    kept: dict[_PairKey, PreferencePair] = {}
    counts: Counter[str] = Counter()
    examples: list[str] = []
    num_read = 0
    for row in itertools.chain([first], rows):
        for parsed in parse_row(pair_format, row):
            num_read += 1
            remark = _keep(parsed, kept, keep_blank=keep_blank)
            counts[remark] += 1
            if remark and counts[remark] <= EXAMPLES_PER_REASON:
                examples.append(f"{row.place}: {remark}")
    report = LoadReport(
        source=str(source),
        data_format=name,
        num_read=num_read,
        num_kept=len(kept),
        num_identical=counts[IDENTICAL],
        num_duplicates=counts[DUPLICATES],
        num_contradictions=counts[CONTRADICTIONS],
        num_ties=counts[LeftOut.TIE],
        num_empty=counts[EMPTY],
        num_diverged=counts[LeftOut.DIVERGED],
        examples=tuple(examples),
    )
    if not kept:
        raise EmptySetError(
            f"{source}: expected at least one usable pair, got none: {report.summary()} "
            f"(first: {examples[0] if examples else 'none'}). Mend the file."
        )
    return PreferenceSet(tuple(kept.values()), report)


def _keep(parsed: Parsed, kept: dict[_PairKey, PreferencePair], *, keep_blank: bool) -> str:
    """Add the pair to those kept, or not; the remark says why, or is empty."""
    if isinstance(parsed, LeftOut):
        return parsed
    prompt, chosen, rejected = key = (parsed.prompt, parsed.chosen, parsed.rejected)
    if chosen == rejected:
        return IDENTICAL
    texts = [prompt] if isinstance(prompt, str) else []
    texts += [] if keep_blank else [chosen, rejected]
    if not all(text.strip() for text in texts):
        return EMPTY
    if key in kept:
        return DUPLICATES
    kept[key] = parsed
    return CONTRADICTIONS if (prompt, rejected, chosen) in kept else ""


def split_by_prompt(
    pairs: Sequence[PreferencePair], test_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and test pairs, in their order; no prompt is in both.

    The prompts with the smallest hash of seed and prompt are held out, so the row order does not
    matter and a new prompt moves at most the last one. Case and spacing do not make prompts differ.

    Args:
        pairs: The pairs to split.
        test_fraction: Share of the prompts that is held out, above 0 and below 1; at least one
            prompt is on each side.
        seed: Another seed, another split.

    Raises:
        ConfigError: When `test_fraction` is out of range.
        EmptySetError: When there are fewer than two prompts.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(
            f"expected test_fraction between 0 and 1, got {test_fraction}. Set 0.1, for example."
        )
    indices_by_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        indices_by_prompt[_prompt_hash(pair.prompt, seed)].append(index)
    if len(indices_by_prompt) < 2:
        raise EmptySetError(
            f"expected pairs of at least 2 prompts to split, got {len(indices_by_prompt)}. "
            "Give a test file of its own, or more prompts."
        )
    num_test = round(test_fraction * len(indices_by_prompt))
    num_test = min(max(num_test, 1), len(indices_by_prompt) - 1)
    held_out = {
        index for key in sorted(indices_by_prompt)[:num_test] for index in indices_by_prompt[key]
    }
    train = [pair for index, pair in enumerate(pairs) if index not in held_out]
    return train, [pairs[index] for index in sorted(held_out)]


def without_prompts_of(
    pairs: Sequence[PreferencePair], held_out: Iterable[PreferencePair]
) -> list[PreferencePair]:
    """The training pairs whose prompt no held-out pair has; case and spacing do not count.

    Raises:
        EmptySetError: When none is left.
    """
    tested = {prompt_key(pair.prompt) for pair in held_out}
    kept = [pair for pair in pairs if prompt_key(pair.prompt) not in tested]
    if not kept:
        raise EmptySetError(
            f"expected training pairs of prompts that the test file does not have, got none: all "
            f"{len(pairs)} share theirs with it. Give another test file, or leave it out to have "
            "the pairs split by prompt."
        )
    return kept


def without_picked(pairs: Sequence[PreferencePair], what: str) -> list[PreferencePair]:
    """The pairs that accuracy may be estimated from: drawn at random, or chosen by nobody.

    Args:
        pairs: Labelled ones; those that were picked for being hard say nothing of the others.
        what: Their name in the message.

    Raises:
        EmptySetError: When a strategy picked all of them.

    Example:
        >>> pairs = [PreferencePair("q", "a", "b", chosen_by=by) for by in ("random", "near-tie")]
        >>> [pair.chosen_by for pair in without_picked(pairs, "labels")]
        ['random']
    """
    kept = [pair for pair in pairs if not is_picked(pair.chosen_by)]
    if pairs and not kept:
        names = ", ".join(sorted({pair.chosen_by for pair in pairs}))
        raise EmptySetError(
            f"{what}: expected pairs that were drawn at random, got {len(pairs)} that a strategy "
            f"picked (`chosen_by`: {names}), which tell no accuracy on others. Choose with `mix` "
            "or `random`; rename the column if it is something else."
        )
    return kept


def unseen_prompts(prompts: Iterable[Prompt], seen: Iterable[Prompt]) -> list[Prompt]:
    """Those of `prompts` that are not in `seen`, each once; case and spacing do not count."""
    keys = {prompt_key(prompt) for prompt in seen}
    unseen = {prompt_key(prompt): prompt for prompt in reversed(list(prompts))}
    return [prompt for key, prompt in reversed(unseen.items()) if key not in keys]


def _prompt_hash(prompt: Prompt, seed: int) -> str:
    return fingerprint(seed, prompt_key(prompt))


def prompt_key(prompt: Prompt) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The prompt without its case and spacing: what makes two prompts the same."""
    turns = [("", prompt)] if isinstance(prompt, str) else prompt
    return tuple((role, tuple(text.casefold().split())) for role, text in turns)


def pair_key(prompt: Prompt, one: str, other: str) -> tuple[object, frozenset[str]]:
    """What makes two pairs the same, whichever side is named first.

    Example:
        >>> pair_key("Why?", "a", "b") == pair_key(" why?", "b", "a")
        True
    """
    return prompt_key(prompt), frozenset((one, other))


def save_preferences(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Write the pairs as JSON lines; `load_preferences` reads the same back as `trl-explicit`.

    Blank sides need `keep_blank`, and repeated pairs come back once.

    Writes:
        `path`, whole or not at all.
    """
    write_json_lines(path, (pair.to_json() for pair in pairs))
