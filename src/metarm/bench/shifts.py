# SPDX-License-Identifier: Apache-2.0
"""Shifts: labelled pairs of one distribution, responses of another; the SHIFTS table.

A reader draws a prompt-disjoint split by its seed. Labels of the shifted side are there to test
with, and for the methods that say that they use them.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from metarm.bench.settings import SourceSettings
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.derived import split_labelled, without_kin_of
from metarm.data.meta_sets import load_groups
from metarm.data.preferences import load_preferences, prompt_key
from metarm.data.rows import read_rows
from metarm.errors import ConfigError, DataError, EmptySetError
from metarm.gold_labels import label_groups
from metarm.protocols import ScoreFunction
from metarm.resolve import load_gold
from metarm.schema import PreferencePair, Prompt, ResponseGroup, prompt_text
from metarm.storage import content_digest, fingerprint
from metarm.world.language import GoldReward, build_language

__all__ = [
    "SHIFTS",
    "Shift",
    "ShiftReader",
    "digest_source",
    "join_shifts",
    "read_alpaca",
    "read_files",
    "read_gsm8k",
    "read_hh",
    "read_world",
    "thin_shift",
]

TEST_FRACTION: Final = 0.3
GROUP_SIZE: Final = 5


@dataclass(frozen=True)
class Shift:
    """One split of one shift; no prompt is on both sides of training and test."""

    name: str
    pairs: tuple[PreferencePair, ...]
    """Labelled original pairs to train on."""
    groups: tuple[ResponseGroup, ...]
    """Unlabelled responses of the shifted policy to training prompts: the meta set."""
    test_original: tuple[PreferencePair, ...]
    test_shifted: tuple[PreferencePair, ...]
    """Empty where nobody has labelled any: only label-free figures are shown then."""
    shifted_labels: tuple[PreferencePair, ...]
    """Labelled shifted pairs of training prompts, for `+N-labels` and `oracle`; may be empty."""
    augmented: tuple[PreferencePair, ...] = ()
    """Rows made from `pairs` and `groups`, for the methods that are named after them."""

    @cached_property
    def texts(self) -> tuple[tuple[Prompt, str], ...]:
        """Every prompt with a response that occurs, each once; those of made rows come last.

        In an order of their content: that of the pairs would tell which side was chosen.
        """
        pairs = (*self.pairs, *self.test_original, *self.test_shifted, *self.shifted_labels)
        rows = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
        rows += [(group.prompt, response) for group in self.groups for response in group.responses]
        made = {(row.prompt, side) for row in self.augmented for side in (row.chosen, row.rejected)}
        return _by_content(set(rows)) + _by_content(made - set(rows))

    def digest(self) -> str:
        """A hash of everything that was read, wherever that was: made rows follow from it."""
        sets = (self.pairs, self.groups, self.test_original, self.test_shifted, self.shifted_labels)
        return fingerprint(self.name, *([row.to_json() for row in rows] for rows in sets))


def _by_content(rows: set[tuple[Prompt, str]]) -> tuple[tuple[Prompt, str], ...]:
    return tuple(sorted(rows, key=lambda row: fingerprint(prompt_text(row[0]), row[1])))


def thin_shift(shift: Shift, max_pairs: int | None, max_test_pairs: int | None, seed: int) -> Shift:
    """The same with at most so many pairs on each side, drawn by the seed; None keeps all.

    Labelled shifted pairs are as many as original ones at most: an oracle has no larger budget.
    """
    draw = random.Random(f"thin|{shift.name}|{seed}")

    def thin(pairs: tuple[PreferencePair, ...], most: int | None) -> tuple[PreferencePair, ...]:
        return pairs if most is None or len(pairs) <= most else tuple(draw.sample(pairs, most))

    return replace(
        shift,
        pairs=thin(shift.pairs, max_pairs),
        test_original=thin(shift.test_original, max_test_pairs),
        test_shifted=thin(shift.test_shifted, max_test_pairs),
        shifted_labels=thin(shift.shifted_labels, max_pairs),
    )


ShiftReader = Callable[[SourceSettings, int], Shift]


class _Rated(NamedTuple):
    """A response and how good it is."""

    response: str
    gold: float


def _label_pairs(
    rated: Mapping[str, Sequence[_Rated]], count: int, draw: random.Random
) -> list[PreferencePair]:
    """Up to `count` pairs of each prompt's responses, by their ratings; ties make none."""
    pairs = []
    for prompt, responses in rated.items():
        untied = [
            (first, second)
            for first, second in itertools.combinations(dict.fromkeys(responses), 2)
            if first.gold != second.gold and first.response != second.response
        ]
        for first, second in draw.sample(untied, min(count, len(untied))):
            better, worse = (first, second) if first.gold > second.gold else (second, first)
            pairs.append(PreferencePair(prompt, better.response, worse.response))
    return pairs


def _split_prompts(prompts: Sequence[str], draw: random.Random) -> tuple[list[str], list[str]]:
    """Prompts to train on and prompts to test on."""
    order = draw.sample(sorted(set(prompts)), len(set(prompts)))
    cut = round((1 - TEST_FRACTION) * len(order))
    return order[:cut], order[cut:]


def _rated_shift(
    name: str,
    original: Mapping[str, Sequence[_Rated]],
    shifted: Mapping[str, Sequence[_Rated]],
    seed: int,
    *,
    pairs_per_prompt: int,
    group_size: int = GROUP_SIZE,
) -> Shift:
    """A shift out of rated responses of two sides to the same prompts."""
    draw = random.Random(f"shift|{name}|{seed}")
    train, test = _split_prompts([*original, *shifted], draw)

    def part(
        side: Mapping[str, Sequence[_Rated]], prompts: Sequence[str]
    ) -> dict[str, Sequence[_Rated]]:
        return {prompt: side[prompt] for prompt in prompts if prompt in side}

    def label(
        side: Mapping[str, Sequence[_Rated]], prompts: Sequence[str]
    ) -> tuple[PreferencePair, ...]:
        return tuple(_label_pairs(part(side, prompts), pairs_per_prompt, draw))

    groups = []
    for prompt, rated in part(shifted, train).items():
        responses = list(dict.fromkeys(r.response for r in rated))
        if len(responses) > 1:
            chosen = draw.sample(responses, min(group_size, len(responses)))
            groups.append(ResponseGroup(prompt, tuple(chosen)))
    return Shift(
        name=name,
        pairs=label(original, train),
        groups=tuple(groups),
        test_original=label(original, test),
        test_shifted=label(shifted, test),
        shifted_labels=label(shifted, train),
    )


def _read_rated(
    path: Path, sides: Sequence[str], *, side: str, prompt: str, response: str, gold: str
) -> list[dict[str, list[_Rated]]]:
    """Rated responses by prompt, for each of the sides that a shift is made of.

    Raises:
        DataError: When a side has no row, or no two responses that are rated differently.
        FormatError: When a field is missing or of another type; names file and line.
    """
    found: defaultdict[str, defaultdict[str, list[_Rated]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(path):
        value = row.value(gold)
        rating = float(value) if isinstance(value, bool) else row.number(gold)
        found[row.text(side)][row.text(prompt)].append(_Rated(row.text(response), rating))
    for name in sides:
        if name not in found:
            raise DataError(
                f"{path}: expected rows whose {side!r} is {name!r}, found "
                f"{', '.join(map(repr, found)) or 'no rows'}; give this shift's own file"
            )
        if not any(len({r.gold for r in rated}) > 1 for rated in found[name].values()):
            raise DataError(
                f"{path}: no two responses of {name!r} to one prompt differ in {gold!r}: no pair "
                "can be labelled"
            )
    return [dict(found[name]) for name in sides]


def digest_source(source: SourceSettings) -> dict[str, object]:
    """What decides the content of a source: its settings, and a hash of each file it names."""
    files = ("data", "preferences", "groups", "preferences_shifted")
    return {
        key: content_digest(value) if key in files and value is not None else value
        for key, value in source.model_dump().items()
    }


def _data_of(source: SourceSettings, name: str) -> Path:
    if source.data is None:
        raise ConfigError(
            f"the shift {name!r} is read from a file: give it as sources.{name}.data=PATH"
        )
    return Path(source.data)


def read_alpaca(source: SourceSettings, seed: int) -> Shift:
    """AlpacaEval: pairs of weak models' responses; groups of strong models'.

    Rows of `prompt`, `tier` (weak, strong), `response`, `gold` (preference over one baseline).
    """
    weak, strong = _read_rated(
        _data_of(source, "alpaca"),
        ("weak", "strong"),
        side="tier",
        prompt="prompt",
        response="response",
        gold="gold",
    )
    return _rated_shift("alpaca", weak, strong, seed, pairs_per_prompt=11)


def read_gsm8k(source: SourceSettings, seed: int, *, step: int = 500) -> Shift:
    """GSM8K: pairs of a base policy's answers, right over wrong; groups of it after `step` steps.

    Rows of `policy` (base, step-200, step-500), `question`, `completion`, `pred_ok`.
    """
    name = "gsm8k" if step == 500 else f"gsm8k-{step}"
    base, shifted = _read_rated(
        _data_of(source, name),
        ("base", f"step-{step}"),
        side="policy",
        prompt="question",
        response="completion",
        gold="pred_ok",
    )
    return _rated_shift(name, base, shifted, seed, pairs_per_prompt=6)


def read_hh(source: SourceSettings, seed: int) -> Shift:
    """HH-RLHF: helpful pairs to train on; the responses of harmless pairs, their labels hidden.

    What people prefer conflicts: the control in which a good method knows that it cannot help.
    """
    folder = _data_of(source, "hh")
    helpful, harmless = (
        load_preferences(folder / f"hh_{side}_base_test.jsonl.gz").pairs
        for side in ("helpful", "harmless")
    )
    return _labelled_shift("hh", helpful, harmless, None, seed)


def read_files(source: SourceSettings, seed: int) -> Shift:
    """A user's own shift: a pair file, a group file, and perhaps labelled shifted pairs."""
    if source.preferences is None or source.groups is None:
        raise ConfigError(
            "the shift 'files' needs `preferences` (labelled original pairs) and `groups` (the "
            "shifted policy's responses, as `metarm sample` writes them)"
        )
    pairs = load_preferences(source.preferences).pairs
    shifted: Sequence[PreferencePair] = ()
    if source.preferences_shifted is not None:
        shifted = load_preferences(source.preferences_shifted, keep_blank=True).pairs
    return _labelled_shift("files", pairs, shifted, load_groups(source.groups), seed)


def _labelled_shift(
    name: str,
    original: Sequence[PreferencePair],
    shifted: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup] | None,
    seed: int,
) -> Shift:
    """A shift out of labelled pairs of both sides; without groups, the pairs' sides are them."""
    for side, pairs in (("original", original), ("shifted", shifted)):
        if pairs and len({prompt_key(pair.prompt) for pair in pairs}) < 2:
            raise EmptySetError(
                f"{name}: the labelled {side} pairs are all of one prompt, and training and test "
                "take different ones: give pairs of two prompts at least"
            )
    train, test = split_labelled(original, TEST_FRACTION, seed)
    tested = [pair.prompt for pair in test]
    shifted_train: list[PreferencePair] = []
    shifted_test: list[PreferencePair] = []
    if shifted:
        shifted_train, shifted_test = split_labelled(shifted, TEST_FRACTION, seed)
        tested += [pair.prompt for pair in shifted_test]
    if groups is None:
        groups = [
            ResponseGroup(pair.prompt, tuple(sorted((pair.chosen, pair.rejected))))
            for pair in shifted_train
        ]
    keys = {prompt_key(prompt) for prompt in tested}
    groups = [group for group in groups if prompt_key(group.prompt) not in keys]
    if not groups:
        raise EmptySetError(
            f"{name}: no group is left whose prompt is not tested on; give groups of other prompts"
        )
    return Shift(
        name=name,
        pairs=tuple(
            pair
            for pair in without_kin_of(train, [*test, *shifted_test])
            if prompt_key(pair.prompt) not in keys
        ),
        groups=tuple(groups),
        test_original=tuple(test),
        test_shifted=tuple(shifted_test),
        shifted_labels=tuple(pair for pair in shifted_train if prompt_key(pair.prompt) not in keys),
    )


def read_world(source: SourceSettings, seed: int) -> Shift:
    """A finished `metarm run`: its original pairs, and an optimised policy of the same seed.

    The policy's responses are those of an evaluation. Their prompts are split: unlabelled groups of
    one part, gold-labelled pairs of the other. Held-out original pairs are the run's own.

    Raises:
        ConfigError: When the run has no gold function.
        EmptySetError: When it has not this seed, arm or round.
    """
    run = _data_of(source, "world")
    settings = read_settings(run / "config.yaml", [], RunSettings)
    gold = _gold_of(settings)
    folder = run / f"seed_{seed}"
    judged = folder / "arms" / source.arm / f"round_{source.round or settings.rounds:02d}"
    if not (judged / "evaluation" / "groups.jsonl").is_file():
        there = sorted(p.name for p in run.glob("seed_*") if p.is_dir())
        arms = sorted(p.name for p in (folder / "arms").glob("*"))
        raise EmptySetError(
            f"{judged}: expected a finished evaluation, found none; the seed of a split is that of "
            f"the run, which has {', '.join(there) or 'no seeds'}; in seed_{seed} are the arms "
            f"{', '.join(arms) or '(none)'}. Choose other seeds, sources.world.arm or .round, or "
            "let the run go on"
        )
    groups = load_groups(judged / "evaluation" / "groups.jsonl")
    place = folder / ("world" if settings.world is not None else "data")
    original, held_out = (
        load_preferences(place / f"{name}.jsonl", "trl-explicit", keep_blank=True).pairs
        for name in ("preferences", "preferences_test")
    )
    draw = random.Random(f"shift|world|{seed}")
    keys = sorted({prompt_key(group.prompt) for group in groups})
    tested = set(draw.sample(keys, round(TEST_FRACTION * len(keys))))
    own_test, own_train = (
        [group for group in groups if (prompt_key(group.prompt) in tested) is is_test]
        for is_test in (True, False)
    )
    meta_set = _distinct(own_train)
    seen = {*keys} - tested
    test_original = tuple(pair for pair in held_out if prompt_key(pair.prompt) not in seen)
    unseen = tested | {prompt_key(pair.prompt) for pair in test_original}
    pairs = tuple(pair for pair in original if prompt_key(pair.prompt) not in unseen)
    if not (pairs and meta_set and test_original):
        raise EmptySetError(
            f"{judged}: {len(pairs)} original pairs, {len(meta_set)} groups and "
            f"{len(test_original)} held-out pairs are left with no prompt on both sides: evaluate "
            "on more prompts (evaluation.num_prompts)"
        )

    def label(part: Sequence[ResponseGroup]) -> tuple[PreferencePair, ...]:
        count = sum(len(group.responses) ** 2 for group in part)  # more than there are pairs
        return tuple(label_groups(part, gold, count, seed=seed))

    return Shift(
        name="world",
        pairs=pairs,
        groups=tuple(meta_set),
        test_original=test_original,
        test_shifted=label(own_test),
        shifted_labels=label(own_train),
    )


def _gold_of(settings: RunSettings) -> ScoreFunction:
    if settings.world is not None:
        return GoldReward(build_language(settings.world))
    if settings.evaluation.gold is None:
        raise ConfigError(
            "the shift 'world' needs a run whose true reward is known: one with a `world`, or with "
            "`evaluation.gold`"
        )
    return load_gold(settings.evaluation.gold, what="evaluation.gold")


def _distinct(groups: Sequence[ResponseGroup]) -> list[ResponseGroup]:
    """The groups with each response once; those of a single response are left out."""
    found = [ResponseGroup(g.prompt, tuple(dict.fromkeys(g.responses))) for g in groups]
    return [group for group in found if len(group.responses) > 1]


def join_shifts(shifts: Sequence[Shift]) -> Shift:
    """Several shifts as one: the pairs of all, and their groups with the shift's name as source.

    A prompt that one shift trains on and another tests on stays as it is: give shifts whose prompts
    are apart.
    """
    return Shift(
        name="+".join(shift.name for shift in shifts),
        pairs=tuple(pair for shift in shifts for pair in shift.pairs),
        groups=tuple(
            replace(group, source=shift.name) for shift in shifts for group in shift.groups
        ),
        test_original=tuple(pair for shift in shifts for pair in shift.test_original),
        test_shifted=tuple(pair for shift in shifts for pair in shift.test_shifted),
        shifted_labels=tuple(pair for shift in shifts for pair in shift.shifted_labels),
    )


SHIFTS: Final[Mapping[str, ShiftReader]] = MappingProxyType(
    {
        "alpaca": read_alpaca,
        "gsm8k": read_gsm8k,
        "gsm8k-200": partial(read_gsm8k, step=200),
        "hh": read_hh,
        "world": read_world,
        "files": read_files,
    }
)
"""Name -> reader of a split."""
