# SPDX-License-Identifier: Apache-2.0
"""Do explanations hold? Completeness, influences against refits, mistakes found, false alarms.

    python benchmarks/explaining.py split hh_helpful_base_test.jsonl.gz MODEL runs/explaining
    metarm reward --model MODEL --preferences runs/explaining/train.jsonl \
        --preferences-test runs/explaining/test.jsonl --output runs/explaining/reward \
        meta_mode=off max_steps=250
    python benchmarks/explaining.py measure MODEL runs/explaining \
        --output benchmarks/results/explaining.json

`split` keeps the pairs that fit the model's context and holds out 40 % of the prompts. `measure`:

- completeness: gaps and steps of short responses, for each baseline;
- influence: every label's, by formula and by a fit without it, on held-out pairs;
- mistakes: a tenth of the labels turned, 20 times; how well each figure ranks them (area under the
  curve, 0.5 for guessing), on states taught with the right labels and on states that were not;
- neighbours: how often the nearest labelled pairs side with the model, and pairs drawn at random;
- false alarms: slices of outcomes that are dealt anew to the prompts, any of them called a finding.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from metarm.data.preferences import load_preferences, save_preferences, split_by_prompt
from metarm.explaining.attributing import BASELINES, PathSettings, attribute
from metarm.explaining.linear_head import LinearHead, learn_head, refit_without
from metarm.explaining.neighbours import nearest_pairs, similarities
from metarm.explaining.permuting import slice_tests
from metarm.explaining.slices import pair_slices, prompt_numbers
from metarm.metrics import accuracy_estimate, adjust_by_holm, mean_estimate
from metarm.models.head_states import head_states
from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.schema import PreferencePair
from metarm.storage import write_json

Floats = NDArray[np.float64]

NUM_TEXTS: Final = 24
MOST_TOKENS: Final = 128
NUM_ASKED: Final = 40
NUM_TURNINGS: Final = 20
TURNED_SHARE: Final = 0.1
NUM_NEIGHBOURS: Final = 5
NUM_DEALS: Final = 200
NUM_PERMUTATIONS: Final = 999


def split(source: str, model: str, folder: Path) -> None:
    """Write `train.jsonl` and `test.jsonl`."""
    encoder = load_encoder(model)
    score = RewardModelScore(load_reward_model(model, encoder), encoder)
    pairs = score.fitting_pairs(load_preferences(source).pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), split_by_prompt(pairs, 0.4, seed=0), strict=True):
        save_preferences(folder / f"{name}.jsonl", part)


def differences(score: RewardModelScore, pairs: list[PreferencePair]) -> tuple[Floats, Floats]:
    """chosen - rejected of states and rewards."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    found = head_states(score, [pair.prompt for pair in pairs for _ in range(2)], sides)
    return found.states[0::2] - found.states[1::2], found.scores[0::2] - found.scores[1::2]


def completeness(score: RewardModelScore, pairs: list[PreferencePair]) -> dict[str, Any]:
    """Gaps as shares of all attributions, at the default tolerance."""
    texts = [
        (pair.prompt, pair.chosen)
        for pair in pairs
        if len(score.encoder.encode(pair.prompt, pair.chosen)) <= MOST_TOKENS
    ][:NUM_TEXTS]
    found = {}
    for baseline in BASELINES:
        rows = [attribute(score, p, r, PathSettings(baseline)) for p, r in texts]
        shares = [abs(one.gap) / sum(map(abs, one.values)) for one in rows]
        found[baseline] = {
            "texts": len(rows),
            "gap_share_median": float(np.median(shares)),
            "gap_share_largest": max(shares),
            "complete": sum(one.is_complete for one in rows),
            "steps_median": float(np.median([one.num_steps for one in rows])),
            "steps_most": max(one.num_steps for one in rows),
        }
    return found


def influence(labelled: Floats, asked: Floats) -> dict[str, Any]:
    """Both formulas against fits without each label."""
    head = learn_head(labelled)
    now = head.predict(asked)
    exact = np.stack(
        [now - refit_without(head, row).predict(asked) for row in range(len(labelled))], axis=1
    )
    largest = np.abs(exact).max()
    return {
        "labels": len(labelled),
        "pairs": len(asked),
        "penalty_per_label": head.penalty / len(labelled),
        "largest_influence": float(largest),
        "largest_leverage": float(head.leverages.max()),
        **{
            name: {
                "correlation": float(np.corrcoef(found.ravel(), exact.ravel())[0, 1]),
                "largest_error_share": float(np.abs(found - exact).max() / largest),
                "most_helpful_is_the_same": float(
                    (found.argmax(axis=1) == exact.argmax(axis=1)).mean()
                ),
            }
            for name, found in (
                ("newton", head.influences(asked)),
                ("first_order", head.influences(asked, is_first_order=True)),
            )
        },
    }


RANKINGS: Final[Mapping[str, Callable[[LinearHead], Floats]]] = {
    "margin without the label": lambda head: -head.margins_without,
    "residual": lambda head: head.residuals,
    "self-influence": lambda head: head.self_influences,
}


def mistakes(labelled: Floats) -> dict[str, Any]:
    """Area under the curve of each figure, over sets of turned labels."""
    areas: dict[str, list[float]] = {name: [] for name in RANKINGS}
    accuracy = []
    for seed in range(NUM_TURNINGS):
        is_turned = np.random.default_rng(seed).uniform(size=len(labelled)) < TURNED_SHARE
        head = learn_head(np.where(is_turned[:, None], -labelled, labelled))
        for name, rank in RANKINGS.items():
            ranks = stats.rankdata(rank(head))
            count = int(is_turned.sum())
            above = ranks[is_turned].sum() - count * (count + 1) / 2
            areas[name].append(float(above / (count * (len(labelled) - count))))
        accuracy.append(float((head.margins_without * np.where(is_turned, -1, 1) > 0).mean()))
    return {
        "labels": len(labelled),
        "accuracy_left_out": float(np.mean(accuracy)),
        "area_under_curve": {name: str(mean_estimate(own)) for name, own in areas.items()},
    }


def neighbours(labelled: Floats, asked: Floats, gaps: Floats) -> dict[str, Any]:
    """Whether the similarity-weighted vote of labelled pairs takes the model's side."""
    like = similarities(asked, labelled)
    draw = np.random.default_rng(0)
    own, others = [], []
    for row, gap in zip(like, gaps, strict=True):
        near = sum(one.similarity for one in nearest_pairs(row, NUM_NEIGHBOURS))
        drawn = row[draw.choice(len(row), NUM_NEIGHBOURS, replace=False)].sum()
        own.append(float(near * gap > 0))
        others.append(float(drawn * gap > 0))
    return {
        "nearest_with_the_model": str(accuracy_estimate(own)),
        "random_with_the_model": str(accuracy_estimate(others)),
    }


def false_alarms(pairs: list[PreferencePair], gaps: Floats) -> dict[str, Any]:
    """Share of deals of outcomes to prompts in which any slice is called a finding."""
    masks = list(pair_slices(pairs, num_topics=6, seed=0).values())
    masks = [mask for mask in masks if 20 <= mask.sum() <= len(pairs) - 20]
    wrong = ((np.abs(gaps) >= np.quantile(np.abs(gaps), 0.75)) & (gaps < 0)).astype(float)
    alarms = []
    for seed in range(NUM_DEALS):
        dealt = np.random.default_rng(seed).permutation(wrong)
        found = slice_tests(
            dealt, masks, prompt_numbers(pairs), num_permutations=NUM_PERMUTATIONS, seed=seed
        )
        alarms.append(float(min(adjust_by_holm(found)) <= 0.05))
    return {"slices": len(masks), "deals": NUM_DEALS, "any_finding": str(accuracy_estimate(alarms))}


def measure(model: str, folder: Path, output: Path) -> None:
    """Everything, written as it comes."""
    score = load_score_function(folder / "reward")
    encoder = load_encoder(model)
    untaught = RewardModelScore(load_reward_model(model, encoder), encoder)
    train, test = (list(load_preferences(folder / f"{n}.jsonl").pairs) for n in ("train", "test"))
    document: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "pairs": {"train": len(train), "test": len(test)},
    }
    taught_train, _ = differences(score, train)
    taught_test, gaps = differences(score, test)
    untaught_train, _ = differences(untaught, train)
    untaught_test, _ = differences(untaught, test)
    clusters = prompt_numbers(test)
    document["accuracy"] = str(accuracy_estimate(gaps > 0, clusters))
    asked = slice(0, NUM_ASKED)
    parts: dict[str, Callable[[], Any]] = {
        "neighbours": lambda: neighbours(taught_train, taught_test, gaps),
        "mistakes": lambda: {
            "states taught with the right labels": mistakes(taught_train),
            "the same states, other pairs": mistakes(taught_test),
            "states of the language model": mistakes(untaught_train),
        },
        "influence": lambda: {
            "states of the reward model": influence(taught_train, taught_test[asked]),
            "states of the language model": influence(untaught_train, untaught_test[asked]),
        },
        "false_alarms": lambda: false_alarms(test, gaps),
        "completeness": lambda: completeness(score, test),
    }
    for name, part in parts.items():
        document[name] = part()
        print(name, json.dumps(document[name], indent=2), flush=True)
        write_json(output, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    splitting = verbs.add_parser("split")
    splitting.add_argument("source")
    splitting.add_argument("model")
    splitting.add_argument("folder", type=Path)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("model")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "split":
        split(arguments.source, arguments.model, arguments.folder)
    else:
        measure(arguments.model, arguments.folder, arguments.output)


if __name__ == "__main__":
    main()
