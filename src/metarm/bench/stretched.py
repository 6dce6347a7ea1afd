# SPDX-License-Identifier: Apache-2.0
"""Methods that stretch labels: rows made from pairs and groups, and rounds of pseudo-labels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

import torch
from torch import Tensor

from metarm.bench.label_choice import choose_labels
from metarm.bench.problem import Problem, SoftPairs
from metarm.bench.recipes import PLAIN, Recipe
from metarm.bench.shifts import Shift
from metarm.bench.trajectory import Trajectory
from metarm.errors import EmptySetError
from metarm.schema import ResponseGroup
from metarm.streams import draw_seed, generator
from metarm.stretching.augmenting import Material, augment
from metarm.stretching.calibration import fit_temperature
from metarm.stretching.pseudo_labels import most_pseudo_labels, paired_change, take_confident

__all__ = ["add_made_rows", "train_in_rounds", "with_made_rows"]

ROWS_PER_PROMPT: Final = 1
MADE_REPEAT: Final = 4
"""How often a made row stands beside the pairs: each one costs frozen features."""
PAIRS_PER_GROUP: Final = 3
CONFIDENCE: Final = 0.75
MOST_SHARE: Final = 0.5
DROP_ALPHA: Final = 0.2

Train = Callable[[Problem, Recipe], Trajectory]


def add_made_rows(shift: Shift, kinds: Sequence[str]) -> Shift:
    """The shift with rows of some kinds, made from its training pairs and groups.

    Of one seed in all splits, which so have most of their texts in common. The policy of the groups
    is taken for the stronger one, that of the pairs for the weaker.
    """
    if not kinds:
        return shift
    weaker = [ResponseGroup(pair.prompt, (pair.chosen, pair.rejected)) for pair in shift.pairs]
    material = Material(shift.pairs, shift.groups, stronger=shift.groups, weaker=tuple(weaker))
    made = augment(material, sorted(set(kinds)), per_prompt=ROWS_PER_PROMPT)
    return replace(shift, augmented=tuple(made.rows))


def with_made_rows(problem: Problem, kinds: Sequence[str]) -> Problem:
    """The problem with the made rows of some kinds among what is trained on.

    Raises:
        EmptySetError: When there are none of a kind.
    """
    extra = problem.extra
    for kind in kinds:
        if kind not in problem.made:
            raise EmptySetError(f"no row of the kind {kind!r} was made for this split")
        rows, labels = problem.made[kind]
        repeated = SoftPairs(rows.repeat(MADE_REPEAT, 1), labels.repeat(MADE_REPEAT))
        extra = repeated.plus(extra)
    return replace(problem, extra=extra)


def train_in_rounds(
    problem: Problem, recipe: Recipe, seed: int, train: Train, teacher: Trajectory | None
) -> Trajectory:
    """Rounds of pseudo-labels on the groups; the last before held-out accuracy dropped.

    Each round's teacher is the student of the one before, calibrated on validation pairs, the first
    is plain training; students begin anew. What stays where no round helps is the recipe without
    pseudo-labels. Held out are original pairs, whose labels alone are used.

    Args:
        problem: Its groups are what is labelled.
        recipe: The students', whose `pseudo_rounds` are counted.
        seed: Of the draws.
        train: Trains a recipe on a problem, with all groups measured.
        teacher: Plain training, where it is there already.
    """
    student = replace(recipe, pseudo_rounds=0)
    if teacher is None:
        teacher = train(problem, PLAIN)
    labelled = problem.own_labels
    if not recipe.is_oracle:
        labelled = choose_labels(problem, recipe.label_choice, recipe.num_labels, seed)
    kept, cost = teacher, teacher.cost
    if student != PLAIN:
        kept = train(problem, student)
        cost = cost.plus(kept.cost)
    for number in range(recipe.pseudo_rounds):
        scores = teacher.scores[teacher.best]
        pseudo = _label_groups(problem, labelled, scores, draw_seed(seed, "round", number))
        if not len(pseudo.rows):
            break
        found = train(replace(problem, extra=pseudo.plus(problem.extra)), student)
        cost = cost.plus(found.cost)
        after, before = (_right(problem, t.scores[t.best]) for t in (found, kept))
        if paired_change(after, before).is_drop(DROP_ALPHA):
            break
        kept = teacher = found
    return replace(kept, cost=cost)


def _label_groups(problem: Problem, labelled: Tensor, scores: Tensor, seed: int) -> SoftPairs:
    """Pseudo-labelled pairs of the groups' responses by a teacher's scores.

    None of them is among those whose labels are trained on, in either order.
    """
    held_out = scores[problem.validation]
    calibration = fit_temperature((held_out[:, 0] - held_out[:, 1]).double().numpy())
    candidates = _candidates(problem.groups, generator(seed, "candidates"))
    candidates = candidates[~_are_among(candidates, labelled)]
    gaps = scores[candidates[:, 0]] - scores[candidates[:, 1]]
    chances = calibration.probabilities(gaps.double().numpy())
    most = most_pseudo_labels(len(problem.pairs), MOST_SHARE)
    taken = torch.from_numpy(take_confident(chances, confidence=CONFIDENCE, most=most, seed=seed))
    return SoftPairs(candidates[taken], torch.from_numpy(chances)[taken].float())


def _candidates(groups: Tensor, draw: torch.Generator) -> Tensor:
    """A few pairs of each group, their sides in an order that says nothing, shape (pairs, 2)."""
    found = []
    for group in groups:
        pairs = torch.tensor(list(combinations(group[group >= 0].tolist(), 2)))
        few = pairs[torch.randperm(len(pairs), generator=draw)[:PAIRS_PER_GROUP]]
        is_turned = torch.rand(len(few), 1, generator=draw) < 0.5
        found.append(torch.where(is_turned, few.flip(1), few))
    return torch.cat(found)


def _are_among(pairs: Tensor, known: Tensor) -> Tensor:
    """Which pairs are among the known ones, in either order, shape (pairs,)."""
    there = {frozenset(pair) for pair in known.tolist()}
    return torch.tensor([frozenset(pair) in there for pair in pairs.tolist()], dtype=torch.bool)


def _right(problem: Problem, scores: Tensor) -> list[float]:
    """Of each validation pair 1 right, 0 wrong, 0.5 a tie."""
    gaps = scores[problem.validation[:, 0]] - scores[problem.validation[:, 1]]
    return list(((1 + gaps.sign()) / 2).tolist())
