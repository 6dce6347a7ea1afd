# SPDX-License-Identifier: Apache-2.0
"""Whom to believe in a bad crowd: rewards learnt from its votes, and its bad annotators named.

    python benchmarks/crowd.py --output benchmarks/results/crowd.json

10 annotators, of whom 6 vote by the true probability, 2 at random, 1 left in 95 % of cases, and 1
by the reverse of the truth; 1800 votes in all, 1, 2, 3 or 5 a pair; 32 features; 4000 noise-free
test pairs. Rewards are fitted to all votes as they are (plain), to the majority, to Dawid and
Skene's soft labels, with the annotators (joint, and joint without inverted votes), and to the good
annotators' votes alone (oracle). Then the rule that names bad annotators, in this crowd and in two
without any, and the intervals of reliability in a crowd of all grades.

With 1 vote a pair also what the labelling page collects: 5 % of the pairs once more, mirrored, by
the same annotator, who says the same (who goes by the side, what the side says). They are fitted as
metarm does it, and as if they were votes of somebody else. Beside rewards, soft labels of the pairs
themselves are held against the truth.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from metarm.annotators.beliefs import Belief
from metarm.annotators.fitting import fit_annotators
from metarm.annotators.joint_model import fit_joint
from metarm.annotators.suspects import name_suspects
from metarm.annotators.vote_table import build_table
from metarm.labels.votes import Vote
from metarm.metrics import accuracy_estimate, mean_estimate
from metarm.storage import read_json, write_json

Floats = NDArray[np.float64]

NUM_VOTES, NUM_FEATURES, NUM_TEST = 1800, 32, 4000
VOTES_PER_PAIR = (1, 2, 3, 5)
BAD_CROWD = ("good",) * 6 + ("random", "random", "always-left", "adversarial")
GRADES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.3, 0.0)
PENALTY = 5e-5
REPEATED = 0.05
"""Of the pairs: `repeat_fraction` of a label store that says nothing else."""


def first_chance(kind: str | float, p: float) -> float:
    """How likely an annotator is to say `first` of a pair of which that is true with chance p."""
    if isinstance(kind, float):
        return kind * p + (1.0 - kind) / 2.0
    return {"good": p, "adversarial": 1.0 - p, "random": 0.5}[kind]


class Crowd:
    """Votes of annotators of given kinds, and the truth that they were drawn from."""

    def __init__(self, kinds: Sequence[str | float], votes_per_pair: int, seed: int) -> None:
        draw = np.random.default_rng([seed, votes_per_pair])
        self.kinds = kinds
        self.theta = draw.normal(size=NUM_FEATURES) * 3.0 / np.sqrt(32.0)
        self.features = draw.normal(size=(NUM_VOTES // votes_per_pair, NUM_FEATURES))
        self.test = draw.normal(size=(NUM_TEST, NUM_FEATURES))
        self.votes = []
        for pair, p in enumerate(expit(self.features @ self.theta)):
            for who in draw.choice(len(kinds), size=votes_per_pair, replace=False):
                is_turned = bool(draw.integers(2))
                if kinds[who] == "always-left":
                    is_first = (draw.random() < 0.95) != is_turned
                else:
                    is_first = draw.random() < first_chance(kinds[who], p)
                choice = "first" if is_first else "second"
                self.votes.append(Vote(str(pair), str(who), choice, is_turned=is_turned))
        self.features_of = {str(pair): row for pair, row in enumerate(self.features)}

    def repeats(self, seed: int) -> list[Vote]:
        """Of 5 % of the votes the same annotators' second ones, mirrored."""
        draw = np.random.default_rng([seed, 1])
        found = []
        for vote in self.votes:
            if draw.random() >= REPEATED:
                continue
            again = replace(vote, is_turned=not vote.is_turned)
            if self.kind_of(vote.annotator) == "always-left":
                is_first = (draw.random() < 0.95) != again.is_turned
                again = replace(again, choice="first" if is_first else "second")
            found.append(again)
        return found

    def labels_right(self, belief: Belief) -> float:
        """Share of the pairs of which soft labels and the truth prefer the same."""
        gaps = np.stack([self.features_of[pair] for pair in belief.table.pairs]) @ self.theta
        return float(((belief.labels > 0.5) == (gaps > 0)).mean())

    def accuracy(self, theta: Floats) -> float:
        """On the noise-free test pairs."""
        return float((np.sign(self.test @ theta) == np.sign(self.test @ self.theta)).mean())

    def kind_of(self, name: str) -> str | float:
        return self.kinds[int(name)]


def fit_rewards(features: Floats, labels: Floats) -> Floats:
    """theta of least cross-entropy with soft labels, with the joint model's penalty."""

    def loss(theta: Floats) -> tuple[float, Floats]:
        gaps = features @ theta
        value = -(labels * log_expit(gaps) + (1.0 - labels) * log_expit(-gaps)).sum()
        penalty = PENALTY * len(labels)
        slope = features.T @ (expit(gaps) - labels)
        return float(value + penalty * theta @ theta), slope + 2.0 * penalty * theta

    start = np.zeros(features.shape[1])
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x)


def from_votes(crowd: Crowd, votes: Sequence[Vote]) -> Floats:
    """Every vote as a pair of its own."""
    rows = np.stack([crowd.features_of[vote.pair] for vote in votes])
    return fit_rewards(rows, np.array([float(vote.choice == "first") for vote in votes]))


def from_labels(crowd: Crowd, model: str) -> Floats:
    """The soft labels of a model without features; a pair that is a tie says nothing."""
    belief = fit_annotators(crowd.votes, model=model)
    rows = np.stack([crowd.features_of[pair] for pair in belief.table.pairs])
    told = belief.labels != 0.5
    return fit_rewards(rows[told], belief.labels[told])


def without_inverted(crowd: Crowd) -> Floats:
    table = build_table(crowd.votes)
    rows = np.stack([crowd.features_of[pair] for pair in table.pairs])
    theta = fit_joint(table, rows, {}, can_invert=False).weights_of_features
    assert theta is not None
    return theta


WAYS: Mapping[str, Callable[[Crowd], Floats]] = {
    "plain": lambda crowd: from_votes(crowd, crowd.votes),
    "majority": lambda crowd: from_labels(crowd, "majority"),
    "dawid-skene": lambda crowd: from_labels(crowd, "dawid-skene"),
    "joint without inverted votes": without_inverted,
    "oracle": lambda crowd: from_votes(
        crowd, [vote for vote in crowd.votes if crowd.kind_of(vote.annotator) == "good"]
    ),
}


def area_under_curve(bad: Sequence[float], good: Sequence[float]) -> float:
    """How often a bad annotator is found less reliable than a good one; a tie counts one half."""
    ranks = stats.mannwhitneyu(good, bad, method="asymptotic").statistic
    return float(ranks / (len(bad) * len(good)))


def judge_naming(crowd: Crowd, belief: Belief) -> dict[str, float]:
    """How many of the bad and of the good annotators were named, and how well the bad stand out."""
    named = {suspect.name: suspect.kind for suspect in name_suspects(belief)}
    bad = [one for one in belief.annotators if crowd.kind_of(one.name) != "good"]
    good = [one for one in belief.annotators if crowd.kind_of(one.name) == "good"]
    return {
        "bad_named": sum(one.name in named for one in bad) / len(bad),
        "all_bad_named": float(all(one.name in named for one in bad)),
        "good_named": float(any(one.name in named for one in good)),
        "kinds_right": sum(named.get(one.name) == crowd.kind_of(one.name) for one in bad)
        / len(bad),
        "auc": area_under_curve(
            [one.reliability.value for one in bad], [one.reliability.value for one in good]
        ),
    }


def measure_seed(seed: int, votes_per_pair: int) -> dict[str, dict[str, float]]:
    """Accuracies of all ways and, of those that judge annotators, how they name them."""
    crowd = Crowd(BAD_CROWD, votes_per_pair, seed)
    rows = {way: {"accuracy": crowd.accuracy(fit(crowd))} for way, fit in WAYS.items()}
    began = time.perf_counter()
    joint = fit_annotators(crowd.votes, crowd.features_of)
    seconds = time.perf_counter() - began
    assert joint.weights_of_features is not None
    rows["joint"] = {
        "accuracy": crowd.accuracy(joint.weights_of_features),
        "seconds": seconds,
        **judge_naming(crowd, joint),
    }
    for model in ("dawid-skene", "majority"):
        rows[model] |= judge_naming(crowd, fit_annotators(crowd.votes, model=model))
    return rows


def counted_as_strangers(crowd: Crowd, repeats: Sequence[Vote]) -> Belief:
    """The fit with each repeat a vote of its own, as metarm once had it."""
    renamed = [replace(vote, annotator=f"{vote.annotator} again") for vote in repeats]
    table = build_table([*crowd.votes, *renamed])
    names = tuple(dict.fromkeys(vote.annotator for vote in crowd.votes))
    own = np.array([names.index(name.removesuffix(" again")) for name in table.annotators])
    rows = np.stack([crowd.features_of[pair] for pair in table.pairs])
    return fit_joint(replace(table, annotators=names, annotator=own[table.annotator]), rows, {})


def measure_repeats(seed: int) -> dict[str, dict[str, float]]:
    """Rewards and labels of the joint model without repeats, with them, and with them as votes."""
    crowd = Crowd(BAD_CROWD, 1, seed)
    repeats = crowd.repeats(seed)
    fits = {
        "without repeats": fit_annotators(crowd.votes, crowd.features_of),
        "with repeats": fit_annotators([*crowd.votes, *repeats], crowd.features_of),
        "repeats as votes of others": counted_as_strangers(crowd, repeats),
    }
    rows = {}
    for way, belief in fits.items():
        assert belief.weights_of_features is not None
        rows[way] = {
            "accuracy": crowd.accuracy(belief.weights_of_features),
            "labels_right": crowd.labels_right(belief),
            **judge_naming(crowd, belief),
        }
    loss = rows["repeats as votes of others"]
    rows["as votes of others minus with repeats"] = {
        name: loss[name] - rows["with repeats"][name] for name in ("accuracy", "labels_right")
    }
    return rows


def measure_errors(seed: int, votes_per_pair: int) -> dict[str, float]:
    """Whether anybody is named in crowds without a bad annotator, and coverage of intervals."""
    all_good = Crowd(("good",) * 10, votes_per_pair, seed)
    # One just at the bound: as bad as one may be without being called bad.
    at_bound = Crowd((0.9,) * 9 + (0.45,), votes_per_pair, seed)
    graded = Crowd(GRADES, votes_per_pair, seed)
    fits = [
        fit_annotators(crowd.votes, crowd.features_of) for crowd in (all_good, at_bound, graded)
    ]
    covered = [
        one.reliability.low <= float(graded.kind_of(one.name)) <= one.reliability.high
        for one in fits[2].annotators
    ]
    return {
        "named_all_good": float(bool(name_suspects(fits[0]))),
        "named_at_bound": float(bool(name_suspects(fits[1], least=0.45))),
        "coverage": float(np.mean(covered)),
    }


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Each figure's mean over seeds with its 95 % interval."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        is_share = name in ("all_bad_named", "good_named", "named_all_good", "named_at_bound")
        estimate = accuracy_estimate(values) if is_share else mean_estimate(values)
        found[name] = {"value": estimate.value, "interval": [estimate.low, estimate.high]}
    return found


def repeats_of(seeds: Sequence[int]) -> dict[str, Any]:
    """What repeats come to, over seeds."""
    rows = [measure_repeats(seed) for seed in seeds]
    return {way: summarise([row[way] for row in rows]) for way in rows[0]}


def text_of(figure: Mapping[str, Any], digits: int = 3) -> str:
    """A share, its interval cut to [0, 1]."""
    low, high = max(0.0, figure["interval"][0]), min(1.0, figure["interval"][1])
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def tables_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Accuracies, naming, errors and repeats as tables in Markdown."""
    ways = ["plain", "majority", "dawid-skene", "joint without inverted votes", "joint", "oracle"]
    accuracy = [f"| votes a pair | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    naming = ["| votes a pair | model | bad ones named | all four named | a good one named | AUC |"]
    naming.append("|---" * 6 + "|")
    for count, own in result["accuracy"].items():
        row = " | ".join(text_of(own[way]["accuracy"]) for way in ways)
        accuracy.append(f"| {count} | {row} |")
        for way in ("joint", "dawid-skene", "majority"):
            names = ("bad_named", "all_bad_named", "good_named", "auc")
            row = " | ".join(text_of(own[way][name], 2) for name in names)
            naming.append(f"| {count} | {way} | {row} |")
    errors = ["| votes a pair | named among ten good ones | named at the bound | covered |"]
    errors.append("|---" * 4 + "|")
    for count, own in result["errors"].items():
        names = ("named_all_good", "named_at_bound", "coverage")
        errors.append(f"| {count} | {' | '.join(text_of(own[name]) for name in names)} |")
    repeats = ["| 5 % repeats | rewards | soft labels | bad ones named | a good one named |"]
    repeats.append("|---" * 5 + "|")
    for way, own in result["repeats"].items():
        if "bad_named" in own:
            told = [text_of(own[name]) for name in ("accuracy", "labels_right")]
            told += [text_of(own[name], 2) for name in ("bad_named", "good_named")]
            repeats.append(f"| {way} | {' | '.join(told)} |")
    return tuple("\n".join(table) for table in (accuracy, naming, errors, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--error-seeds", type=int, default=100)
    parser.add_argument(
        "--repeats-only", action="store_true", help="into a result that has all the rest"
    )
    given = parser.parse_args()
    if given.repeats_only:
        result = read_json(given.output)
        result["repeats"] = repeats_of(range(result["seeds"]))
        write_json(given.output, result)
        print(tables_of(result)[-1])
        return
    result = {
        "seeds": given.seeds,
        "error_seeds": given.error_seeds,
        "accuracy": {},
        "errors": {},
    }
    for count in VOTES_PER_PAIR:
        seeds = [measure_seed(seed, count) for seed in range(given.seeds)]
        own = {way: summarise([seed[way] for seed in seeds]) for way in seeds[0]}
        own["joint minus oracle"] = summarise(
            [{"accuracy": seed["joint"]["accuracy"] - seed["oracle"]["accuracy"]} for seed in seeds]
        )
        result["accuracy"][str(count)] = own
        write_json(given.output, result)
        line = ", ".join(f"{way} {one['accuracy']['value']:.3f}" for way, one in own.items())
        print(f"{count} votes a pair: {line}", flush=True)
        for way in ("joint", "dawid-skene", "majority"):
            told = {k: round(v["value"], 3) for k, v in own[way].items() if k != "accuracy"}
            print(f"  {way}: {told}", flush=True)
    for count in (1, 3):
        errors = [measure_errors(seed, count) for seed in range(given.error_seeds)]
        result["errors"][str(count)] = summarise(errors)
        write_json(given.output, result)
    result["repeats"] = repeats_of(range(given.seeds))
    write_json(given.output, result)
    print("\n\n".join(tables_of(result)))


if __name__ == "__main__":
    main()
