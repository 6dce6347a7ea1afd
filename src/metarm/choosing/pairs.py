# SPDX-License-Identifier: Apache-2.0
"""Pairs of the policy's own responses as a reward model sees them, and those worth a label."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarm.choosing.pool import Basis, Pool, bootstrap_members, build_pool
from metarm.choosing.strategies import Chosen, choose
from metarm.data.preferences import pair_key, prompt_key
from metarm.errors import EmptySetError
from metarm.labels.votes import LabelPair
from metarm.models.ensemble import EnsembleScore
from metarm.models.head_states import head_states
from metarm.models.reward_model import RewardModelScore
from metarm.schema import PreferencePair, Prompt, ResponseGroup
from metarm.streams import draw_seed

__all__ = [
    "MOST_CANDIDATES",
    "Candidates",
    "choose_pairs",
    "list_candidates",
    "name_chosen",
    "pool_of_model",
]

Floats = NDArray[np.float64]

MOST_CANDIDATES: Final = 20_000


class Candidates(NamedTuple):
    """Pairs that could be labelled."""

    pairs: tuple[LabelPair, ...]
    num_possible: int
    """How many there were before the cap."""


def list_candidates(
    groups: Sequence[ResponseGroup],
    *,
    labelled: Sequence[LabelPair | PreferencePair] = (),
    most: int = MOST_CANDIDATES,
    seed: int = 0,
) -> Candidates:
    """All pairs of different texts within a prompt that are not labelled yet.

    Args:
        groups: Responses of the policy; those of one prompt go together.
        labelled: Pairs that are left out, whichever side is named first.
        most: Where there are more, so many are drawn, each as likely.
        seed: Draws them.

    Raises:
        EmptySetError: When there is none.
    """
    known = {_key_of(pair) for pair in labelled}
    texts: dict[object, dict[str, None]] = {}
    firsts: dict[object, ResponseGroup] = {}
    for group in groups:
        key = prompt_key(group.prompt)
        firsts.setdefault(key, group)
        texts.setdefault(key, {}).update(dict.fromkeys(group.responses))
    pairs = [
        LabelPair(firsts[key].prompt, first, second, firsts[key].source)
        for key, responses in texts.items()
        for first, second in combinations(responses, 2)
    ]
    pairs = [pair for pair in pairs if _key_of(pair) not in known]
    if not pairs:
        raise EmptySetError(
            f"no pair to choose from in {len(groups)} groups: expected prompts with two different "
            f"responses that are not labelled yet ({len(known)} pairs are); sample more"
        )
    if len(pairs) <= most:
        return Candidates(tuple(pairs), len(pairs))
    draw = np.random.default_rng(draw_seed(seed, "candidates", most))
    rows = np.sort(draw.choice(len(pairs), size=most, replace=False))
    return Candidates(tuple(pairs[row] for row in rows), len(pairs))


def pool_of_model(
    score: RewardModelScore | EnsembleScore,
    pairs: Sequence[LabelPair],
    labelled: Sequence[PreferencePair] = (),
    *,
    seed: int = 0,
) -> Pool:
    """Candidates as gaps of the states that the score head reads, and what is known of them.

    Args:
        score: The reward model; of an ensemble the first member gives the states, and the mean of
            all the rewards.
        pairs: Candidates.
        labelled: What the reward model was trained on: its information counts as there already,
            as much of a soft label as of a hard one. Without an ensemble, heads of bootstrap draws
            of them stand in for members.
        seed: Draws those.

    Raises:
        DataError: When a response does not fit the model's context.
        ModelError: When a score is not finite.
    """
    members = score.members if isinstance(score, EnsembleScore) else (score,)
    fitting = score.fitting_pairs(labelled) if labelled else []
    sides = [(p.prompt, p.first, p.second) for p in pairs]
    sides += [(p.prompt, p.chosen, p.rejected) for p in fitting]
    numbers: dict[tuple[Prompt, str], int] = {}
    rows = np.array(
        [
            [numbers.setdefault((prompt, text), len(numbers)) for text in texts]
            for prompt, *texts in sides
        ]
    )
    prompts, responses = [p for p, _ in numbers], [r for _, r in numbers]
    rewards = np.array([member(prompts, responses) for member in members], np.float64)
    states = head_states(members[0], prompts, responses).states
    gaps = states[rows[:, 0]] - states[rows[:, 1]]
    reward_gaps = rewards[:, rows[:, 0]] - rewards[:, rows[:, 1]]
    own, past = slice(0, len(pairs)), slice(len(pairs), None)
    basis = Basis.of(gaps[own])
    candidates, known = basis(gaps[own]), basis(gaps[past])
    spread = reward_gaps[:, own] if len(members) > 1 else None
    if spread is None and fitting:
        draw = np.random.default_rng(draw_seed(seed, "bootstrap heads"))
        labels = [1.0 if pair.p is None else pair.p for pair in fitting]
        spread = bootstrap_members(candidates, known, labels, generator=draw)
    keys: dict[object, int] = {}
    return build_pool(
        candidates,
        [keys.setdefault(prompt_key(pair.prompt), len(keys)) for pair in pairs],
        means=reward_gaps[:, own].mean(axis=0),
        sides=rows[own],
        labelled=known,
        labelled_means=reward_gaps[:, past].mean(axis=0),
        members=spread,
    )


def choose_pairs(
    score: RewardModelScore | EnsembleScore,
    groups: Sequence[ResponseGroup],
    strategy: str,
    count: int,
    *,
    labelled: Sequence[PreferencePair] = (),
    seed: int = 0,
    most_per_prompt: int | None = None,
    most_candidates: int = MOST_CANDIDATES,
) -> tuple[list[LabelPair], Chosen]:
    """The pairs of a policy's responses to have labelled; `chosen_by` says by which strategy.

    Args:
        score: The reward model as it is.
        groups: Responses of the policy as it is.
        strategy: As in `choose`.
        count: How many pairs.
        labelled: What the reward model was trained on; none of it is chosen again.
        seed: Draws candidates where there are too many, and all that is random in the strategy.
        most_per_prompt: As in `choose`.
        most_candidates: As in `list_candidates`.

    Raises:
        ConfigError: As `choose` does.
        EmptySetError: When there is no pair to choose from.
    """
    found = list_candidates(groups, labelled=labelled, most=most_candidates, seed=seed)
    pool = pool_of_model(score, found.pairs, labelled, seed=seed)
    chosen = choose(pool, strategy, count, seed=seed, most_per_prompt=most_per_prompt)
    return name_chosen(found.pairs, chosen), chosen


def name_chosen(pairs: Sequence[LabelPair], chosen: Chosen) -> list[LabelPair]:
    """The chosen rows of `pairs`, with the strategy that took each."""
    return [
        replace(pairs[row], chosen_by=name)
        for row, name in zip(chosen.indices, chosen.strategies, strict=True)
    ]


def _key_of(pair: LabelPair | PreferencePair) -> tuple[object, frozenset[str]]:
    if isinstance(pair, LabelPair):
        return pair_key(pair.prompt, pair.first, pair.second)
    return pair_key(pair.prompt, pair.chosen, pair.rejected)
