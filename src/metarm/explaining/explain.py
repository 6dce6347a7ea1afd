# SPDX-License-Identifier: Apache-2.0
"""One explanation of a reward model: slices, pairs word by word, and the labels behind them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from metarm.errors import ConfigError, ModelError
from metarm.explaining.attributing import (
    PathSettings,
    attribute,
    attribute_pair,
    check_captum,
)
from metarm.explaining.kept_work import KeptWork
from metarm.explaining.length_bias import measure_length_bias
from metarm.explaining.linear_head import LinearHead, learn_head, refit_without
from metarm.explaining.neighbours import nearest_pairs, similarities
from metarm.explaining.slices import (
    CONFIDENT_QUANTILE,
    measure_slices,
    pair_slices,
    prompt_numbers,
)
from metarm.explaining.telling import tell_explanation
from metarm.models.ensemble import EnsembleScore
from metarm.models.head_states import HeadStates, head_states
from metarm.models.kept_states import KeptStates
from metarm.models.reward_model import RewardModelScore
from metarm.protocols import ProgressReporter
from metarm.schema import PreferencePair, Prompt, prompt_text

__all__ = ["ExplainPlan", "Reward", "check_rows", "explain_pairs", "explain_text"]

Floats = NDArray[np.float64]
Reward = RewardModelScore | EnsembleScore

WRONG_SHARE: Final = 2 / 3
"""Of the pairs that are explained word by word: those that are confident and wrong."""
LEAST_LABELS: Final = 20
"""For a head of its own to say anything."""
MOST_STATES_TO_REFIT: Final = 512
"""A fit without a label takes the cube of them."""


@dataclass(frozen=True, slots=True)
class ExplainPlan:
    """How much is explained."""

    num_rows: int = 6
    """Pairs that are explained word by word, where no rows are named."""
    rows: tuple[int, ...] = ()
    """Pairs to explain, by their row in the file, from 0."""
    num_neighbours: int = 5
    num_influences: int = 3
    """Labels that helped most, and as many that harmed most."""
    num_suspects: int = 10
    """Labels that all others speak against."""
    num_topics: int = 6
    path: PathSettings = field(default_factory=PathSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Labels:
    """Labelled pairs, what tells them apart, and the head that they teach."""

    pairs: Sequence[PreferencePair]
    differences: Floats
    head: LinearHead | None


def explain_pairs(
    score: Reward,
    pairs: Sequence[PreferencePair],
    *,
    plan: ExplainPlan,
    progress: ProgressReporter,
    labelled: Sequence[PreferencePair] = (),
    after: Reward | None = None,
    kept: KeptWork | None = None,
) -> dict[str, Any]:
    """Everything that `metarm explain` tells of labelled pairs, as plain JSON values.

    Args:
        score: The reward model; of an ensemble the mean over members, without its pessimism.
        pairs: Labelled, which every model can read.
        plan: How much.
        progress: Gets a bar for scores and one for attributions.
        labelled: Pairs that the model was taught with: nearest pairs and influences are of these.
        after: The reward model after adaptation.
        kept: Has what is done already, and gets the rest as it is done.

    Raises:
        ConfigError: When a row does not exist, or captum is not there.
        ModelError: When a score is not finite, or has no linear layer.
    """
    if plan.rows or plan.num_rows:
        check_captum()
    check_rows(plan.rows, len(pairs))
    states = None if kept is None else kept.states
    with progress.stage("score pairs", 2 * len(pairs) * _num_models(score, after)) as bar:
        sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        found = head_states(score, prompts, sides, bar, states)
        differences, gaps = _differences(found)
        gaps_after = None
        if after is not None:
            own = None if kept is None else kept.states_after
            _, gaps_after = _differences(head_states(after, prompts, sides, bar, own))
    labels = _read_labels(score, labelled, progress, states)
    clusters = prompt_numbers(pairs)
    slices = measure_slices(
        pairs,
        gaps,
        pair_slices(pairs, num_topics=plan.num_topics, seed=plan.seed),
        seed=plan.seed,
        gaps_after=gaps_after,
    )
    length = measure_length_bias(pairs, gaps, clusters, seed=plan.seed)
    chosen = [(row, "asked for") for row in plan.rows] or _choose_rows(pairs, gaps, plan.num_rows)
    told = []
    with progress.stage("attributions", 2 * len(chosen)) as bar:
        for row, why in chosen:
            pair = pairs[row]
            attribution = attribute_pair(
                score,
                pair.prompt,
                pair.chosen,
                pair.rejected,
                plan.path,
                attribute_one=attribute if kept is None else kept.attribute,
            )
            bar.advance(2)
            told.append(
                {
                    "row": row,
                    "why": why,
                    **_sides(pair),
                    "gap": float(gaps[row]),
                    "gap_after": None if gaps_after is None else float(gaps_after[row]),
                    "confidence": float(expit(abs(gaps[row]))),
                    "attribution": attribution.to_json(),
                    **_behind(differences[row], labels, plan),
                }
            )
    return {
        "headline": tell_explanation(slices, length),
        "num_members": len(score.members) if isinstance(score, EnsembleScore) else 1,
        "confident_quantile": CONFIDENT_QUANTILE,
        "confident_above": float(expit(np.quantile(np.abs(gaps), CONFIDENT_QUANTILE))),
        "slices": [one.to_json() for one in slices],
        "length": length.to_json(),
        "length_after": None
        if gaps_after is None
        else measure_length_bias(pairs, gaps_after, clusters, seed=plan.seed).to_json(),
        "head": _describe_head(labels, differences, gaps),
        "suspects": _suspects(labels, plan.num_suspects),
        "path": asdict(plan.path),
        "pairs": told,
    }


def explain_text(
    score: Reward,
    prompt: Prompt,
    response: str,
    *,
    path: PathSettings,
    kept: KeptWork | None = None,
) -> dict[str, Any]:
    """The reward of one response word by word, as plain JSON values.

    Raises:
        ConfigError: When captum is not there.
    """
    check_captum()
    # Scoring first: a text that does not fit is an error that names it.
    score([prompt], [response])
    attribution = (attribute if kept is None else kept.attribute)(score, prompt, response, path)
    return {
        "prompt": prompt_text(prompt),
        "response": response,
        "attribution": attribution.to_json(),
    }


def _num_models(score: Reward, after: Reward | None) -> int:
    return sum(
        len(one.members) if isinstance(one, EnsembleScore) else 1
        for one in (score, after)
        if one is not None
    )


def check_rows(rows: Sequence[int], count: int) -> None:
    """Refuse rows that are not there.

    Raises:
        ConfigError: Names them, and those that there are.
    """
    missing = [row for row in rows if not 0 <= row < count]
    if missing:
        raise ConfigError(
            f"expected rows from 0 to {count - 1} (pairs that are kept and fit the model), got "
            f"{', '.join(map(str, missing))}"
        )


def _differences(found: HeadStates) -> tuple[Floats, Floats]:
    """Chosen - rejected of states and of rewards, for texts that take turns."""
    scores = found.scores
    if not np.isfinite(scores).all():
        raise ModelError(
            "the reward model gave a score that is not finite: its weights are broken (training "
            "diverged?); lower the learning rate and train it again"
        )
    return found.states[0::2] - found.states[1::2], scores[0::2] - scores[1::2]


def _read_labels(
    score: Reward,
    labelled: Sequence[PreferencePair],
    progress: ProgressReporter,
    states: KeptStates | None,
) -> _Labels | None:
    if not labelled:
        return None
    with progress.stage("read labelled pairs", 2 * len(labelled) * _num_models(score, None)) as bar:
        sides = [side for pair in labelled for side in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in labelled for _ in range(2)]
        differences, _ = _differences(head_states(score, prompts, sides, bar, states))
    soft = [_probability(pair) for pair in labelled]
    head = learn_head(differences, soft) if len(labelled) >= LEAST_LABELS else None
    return _Labels(labelled, differences, head)


def _choose_rows(
    pairs: Sequence[PreferencePair], gaps: Floats, count: int
) -> list[tuple[int, str]]:
    """The most confident wrong ones, then the most confident right ones; each prompt once."""
    bound = np.quantile(np.abs(gaps), CONFIDENT_QUANTILE)
    wrong = [int(i) for i in np.argsort(gaps, kind="stable") if gaps[i] < 0 and -gaps[i] >= bound]
    right = [int(i) for i in np.argsort(-gaps, kind="stable") if gaps[i] > 0]
    seen: set[Prompt] = set()

    def first(rows: Sequence[int], most: int) -> list[int]:
        taken: list[int] = []
        for row in rows:
            if len(taken) < most and pairs[row].prompt not in seen:
                seen.add(pairs[row].prompt)
                taken.append(row)
        return taken

    told = [(row, "confident and wrong") for row in first(wrong, round(WRONG_SHARE * count))]
    told += [(row, "confident and right") for row in first(right, count - len(told))]
    return told


def _sides(pair: PreferencePair) -> dict[str, Any]:
    return {
        "prompt": prompt_text(pair.prompt),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }


def _label(pair: PreferencePair) -> dict[str, Any]:
    return {**_sides(pair), "p": _probability(pair)}


def _probability(pair: PreferencePair) -> float:
    return 1.0 if pair.p is None else pair.p


def _behind(difference: Floats, labels: _Labels | None, plan: ExplainPlan) -> dict[str, Any]:
    """The labels that a pair is like, and those that the head's answer on it comes from."""
    if labels is None:
        return {"neighbours": [], "helpful": [], "harmful": [], "head_gap": None}
    like = similarities(difference[None], labels.differences)[0]
    neighbours = [
        {"label": near.label, "similarity": near.similarity, **_label(labels.pairs[near.label])}
        for near in nearest_pairs(like, plan.num_neighbours)
    ]
    told: dict[str, Any] = {
        "neighbours": neighbours,
        "helpful": [],
        "harmful": [],
        "head_gap": None,
    }
    if labels.head is not None:
        told |= _influences(difference, labels, labels.head, plan.num_influences)
    return told


def _influences(
    difference: Floats, labels: _Labels, head: LinearHead, count: int
) -> dict[str, Any]:
    """The labels that moved the head most to either side, checked by fits without them."""
    now = float(head.predict(difference))
    influence = head.influences(difference[None])[0]
    order = np.argsort(-influence, kind="stable")
    told: dict[str, Any] = {"head_gap": now}
    for name, rows, sign in (("helpful", order, 1), ("harmful", order[::-1], -1)):
        told[name] = [
            {
                "label": int(row),
                "influence": float(influence[row]),
                "by_refit": now - float(refit_without(head, int(row)).predict(difference))
                if len(difference) <= MOST_STATES_TO_REFIT
                else None,
                **_label(labels.pairs[row]),
            }
            for row in rows[:count]
            if sign * influence[row] > 0
        ]
    return told


def _describe_head(
    labels: _Labels | None, differences: Floats, gaps: Floats
) -> dict[str, Any] | None:
    """The refitted head beside the model's own: how far it speaks for it."""
    if labels is None or labels.head is None:
        return None
    head = labels.head
    own = head.predict(differences)
    varies = own.std() > 0 and gaps.std() > 0
    return {
        "num_labels": len(labels.pairs),
        "penalty_per_label": head.penalty / len(labels.pairs),
        "correlation": float(np.corrcoef(own, gaps)[0, 1]) if varies else None,
        "same_side_fraction": float((np.sign(own) == np.sign(gaps)).mean()),
        "accuracy": float(((1.0 + np.sign(own)) / 2.0).mean()),
        "accuracy_left_out": float(
            ((1.0 + (2.0 * head.p - 1.0) * np.sign(head.margins_without)) / 2.0).mean()
        ),
    }


def _suspects(labels: _Labels | None, count: int) -> list[dict[str, Any]]:
    """Labels that all the others speak against, the most suspicious first."""
    if labels is None or labels.head is None:
        return []
    head = labels.head
    # What the others say of the side that the label takes; a tie takes none.
    without = np.sign(2.0 * head.p - 1.0) * head.margins_without
    own = head.self_influences
    return [
        {
            "label": int(row),
            "margin_without": float(head.margins_without[row]),
            "chance_mistaken": float(expit(-without[row])),
            "surprise": float(head.surprises[row]),
            "self_influence": float(own[row]),
            **_label(labels.pairs[row]),
        }
        for row in np.argsort(-head.surprises, kind="stable")
        if without[row] < 0
    ][:count]
