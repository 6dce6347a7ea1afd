# SPDX-License-Identifier: Apache-2.0
"""How strong the trainer's meta step is at each optimiser step: fixed, or set by the data."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor

from metarm.data.encoding import EncodedGroup, PaddedBatch, pad_batch
from metarm.data.meta_batches import MetaBatch, collate_groups
from metarm.errors import ConfigError
from metarm.meta_step import SIGNS, Direction, inner_product, read_sum, signed_step
from metarm.meta_strength import FULL_FRACTION, FULL_WEIGHT
from metarm.strength import (
    NUM_REFERENCE_PAIRS,
    RewardUnits,
    StrengthGuard,
    mean_rank_correlation,
)

__all__ = [
    "PlainScores",
    "StrengthControl",
    "gradient_cosine",
    "keep_watched",
    "read_reference_pairs",
]

NUM_CHECKS: Final = 10
MOST_WATCHED: Final = 64
LEAST_WATCHED: Final = 5
WATCHED_SHARE: Final = 0.1

logger = logging.getLogger(__name__)


def keep_watched(
    groups: Sequence[EncodedGroup],
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """Groups to train on, and every tenth (64 at most) to watch alone; none of fewer than 50."""
    count = min(MOST_WATCHED, int(WATCHED_SHARE * len(groups)))
    if count < LEAST_WATCHED:
        return list(groups), []
    every = len(groups) // count
    watched = set(range(0, every * count, every))
    return (
        [group for index, group in enumerate(groups) if index not in watched],
        [groups[index] for index in sorted(watched)],
    )


def read_reference_pairs(train_dataset: Any, pad_token_id: int) -> PaddedBatch:
    """A few original pairs, always the same, whose scores' spread is the unit of a step.

    Args:
        train_dataset: As TRL has encoded it.
        pad_token_id: To pad with.

    Returns:
        The chosen sides, then the rejected ones in the same order.

    Raises:
        ConfigError: When the data set is streamed.
    """
    if not hasattr(train_dataset, "select"):
        raise ConfigError(
            "a strength in reward units is measured on a few training pairs, and a streamed "
            "data set has no rows to pick: give a Dataset, or set meta_step_length or "
            "meta_weight"
        )
    count = len(train_dataset)
    # Spread over the set: a file may be sorted.
    rows = train_dataset.select(range(0, count, -(-count // NUM_REFERENCE_PAIRS)))
    return pad_batch([*rows["chosen_ids"], *rows["rejected_ids"]], pad_token_id, side="right")


def gradient_cosine(parameters: Sequence[Tensor], others: Iterable[Tensor | None]) -> float | None:
    """Cosine of what is left in `.grad` with another gradient, in [-1, 1]; None where one vanishes.

    Args:
        parameters: Whose `.grad` it is.
        others: One a parameter; taken one at a time, so that they may be made on the way.
    """
    products, squares, lengths = [], [], []
    for parameter, other in zip(parameters, others, strict=True):
        if parameter.grad is not None:
            squares.append(inner_product(parameter.grad, parameter.grad))
        if other is not None:
            lengths.append(inner_product(other, other))
            if parameter.grad is not None:
                products.append(inner_product(parameter.grad, other))
    scale = math.sqrt(read_sum(squares) * read_sum(lengths))
    return read_sum(products) / scale if scale > 0 else None


class StrengthControl:
    """The strength of the meta step: from the settings, or in reward units behind a guard.

    Args:
        args: A `MetaRewardConfig`.
        score: Scores of a padded batch without a graph, without dropout, in fp32, shape (rows,).
        reference: Original responses whose scores' spread is the unit; None where none is needed.
        watched: Groups that are not trained on; empty where nothing is guarded.
        pad_token_id: To pad them with.
        agree: The mean of a number over all processes, which must not decide each for itself.
    """

    def __init__(
        self,
        args: Any,
        *,
        score: Callable[[PaddedBatch | MetaBatch], Tensor],
        reference: PaddedBatch | None,
        watched: Sequence[EncodedGroup],
        pad_token_id: int,
        agree: Callable[[float], float] = lambda value: value,
    ) -> None:
        self._args = args
        self._agree = agree
        self._score = score
        self._watched = None
        if watched:
            self._watched = collate_groups(watched, pad_token_id, torch.device("cpu"))
        self._plain: dict[int, Tensor] = {}
        self._num_steps = 0
        self._is_resumed = False
        self.guard: StrengthGuard | None = None
        self._is_auto = args.meta_strength == "auto"
        self._units = None
        if reference is not None:
            self._units = RewardUnits(lambda: score(reference))

    @property
    def units(self) -> RewardUnits | None:
        """What measures the strength, where it is in reward units; a checkpoint keeps its state."""
        return self._units

    @property
    def plain_scores(self) -> "PlainScores":
        """What plain training has recorded, as a checkpoint of it keeps it."""
        return PlainScores(self)

    @property
    def factor(self) -> float:
        """What the guard leaves of the full strength, in [0, 1]."""
        return 1.0 if self.guard is None else self.guard.factor

    def signed_step(self, direction: Direction, parameters: Sequence[Tensor]) -> float:
        """The multiple of J's gradient to look ahead by; 0 in `joint`."""
        args, mode = self._args, self._args.meta_mode
        if self._units is None or mode not in SIGNS:
            return signed_step(
                mode,
                direction,
                step_size=args.meta_learning_rate or 0.0,
                step_length=args.meta_step_length,
            )
        fraction = FULL_FRACTION[mode] if self._is_auto else args.meta_reward_fraction
        step = self._agree(self._units.look_ahead_step(parameters, direction, fraction))
        return SIGNS[mode] * self.factor * step

    def joint_weight(self, direction: Direction, parameters: Sequence[Tensor]) -> float:
        """The weight of J, after the preference gradient has been left in `.grad`."""
        args = self._args
        weight: float = FULL_WEIGHT if self._is_auto else args.meta_weight
        if self._units is not None:
            fraction = FULL_FRACTION["joint"] if self._is_auto else args.meta_reward_fraction
            gradients = [p.grad for p in parameters]
            bound = self._units.joint_weight(parameters, direction, gradients, fraction)
            weight = min(weight, self._agree(bound))
        return weight * self.factor

    @property
    def can_guard(self) -> bool:
        """Whether there are groups to watch."""
        return self._watched is not None

    @property
    def recorded(self) -> tuple[Mapping[int, Tensor], int]:
        """Watched scores of plain training by step, and the steps that it was planned for."""
        return self._plain, self._num_steps

    def take_recorded(self, plain: Mapping[int, Tensor], num_steps: int) -> None:
        """What a plain training that goes on has recorded before."""
        self._plain, self._num_steps = dict(plain), num_steps

    def record(self, step: int, num_steps: int) -> None:
        """After an optimiser step of plain training: keep the watched scores for the guard."""
        self._num_steps = num_steps
        if self._is_check(step, num_steps):
            self._plain[step] = self._watched_scores()

    def end_guard(self) -> None:
        """Forget what was recorded, and watch no more."""
        self.guard = None
        self._plain, self._is_resumed = {}, False

    def begin_guard(self) -> None:
        """From here on `watch` compares with what was recorded, where there are groups to watch."""
        if self.can_guard:
            self.guard = StrengthGuard()

    def resume_guard(
        self, plain: Mapping[int, Tensor], num_steps: int, *, is_begun: bool = True
    ) -> None:
        """The same with what an earlier process has recorded.

        Args:
            plain: Watched scores of plain training by step.
            num_steps: That it was planned for.
            is_begun: Whether the guarded training goes on too; `restore` then says how far it came.
        """
        self._plain, self._num_steps, self._is_resumed = dict(plain), num_steps, is_begun
        self.begin_guard()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the guard, as JSON values; empty where nothing is guarded."""
        return {} if self.guard is None else asdict(self.guard)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """At the begin of a training: take up what a checkpoint has kept."""
        if not self._is_resumed or self.guard is None:
            return
        self._is_resumed = False
        if not saved:
            logger.warning(
                "the checkpoint was not guarded: the meta step is bounded in reward units alone"
            )
            self.end_guard()
            return
        for name, value in saved.items():
            setattr(self.guard, name, value)

    def watch(self, step: int, num_steps: int) -> dict[str, float]:
        """After an optimiser step: compare the watched scores with plain ones.

        Returns:
            Metrics of a check, empty between two.
        """
        if self.guard is None or not self._is_check(step, num_steps):
            return {}
        if num_steps != self._num_steps:
            logger.warning(
                "plain training took %d steps and this one takes %d: it is guarded no more",
                self._num_steps,
                num_steps,
            )
            self.end_guard()
            return {}
        before = self.guard.factor
        self.guard.observe(self._rank_correlation(step))
        if self.guard.factor < before:
            logger.warning(
                "step %d: rewards order the watched groups unlike plain training's (rank "
                "correlation %.2f, below %.2f): the meta step goes on at %g of its strength",
                step,
                self.guard.newest,
                self.guard.least,
                self.guard.factor,
            )
        found = {}
        found["meta/strength"] = self.guard.factor
        if self.guard.newest is not None:
            found["meta/rank_correlation"] = self.guard.newest
        return found

    def judge(self, step: int) -> bool:
        """Whether the weights that a training ends with, perhaps an earlier step's, are near plain.

        Args:
            step: That they are of.
        """
        if self.guard is None or not self._plain:
            return True
        nearest = min(self._plain, key=lambda recorded: abs(recorded - step))
        self.guard.newest = self._rank_correlation(nearest)
        return self.guard.holds

    def _rank_correlation(self, step: int) -> float | None:
        """Of the watched groups' scores now with those of plain training at a step."""
        rows = torch.arange(self._mask.numel()).reshape(self._mask.shape)
        found = mean_rank_correlation(
            rows.masked_fill(~self._mask, -1),
            self._watched_scores().reshape(-1),
            self._plain[step].reshape(-1),
        )
        return None if found is None else self._agree(found)

    def _is_check(self, step: int, num_steps: int) -> bool:
        every = max(1, num_steps // NUM_CHECKS)
        return self._watched is not None and (step % every == 0 or step == num_steps)

    @property
    def _mask(self) -> Tensor:
        assert self._watched is not None, "only with watched groups"
        return self._watched.mask

    def _watched_scores(self) -> Tensor:
        """Shape (groups, k), 0 where a group is smaller."""
        assert self._watched is not None, "only with watched groups"
        flat = self._score(self._watched).cpu()
        return torch.zeros(self._mask.shape).masked_scatter(self._mask, flat)


class PlainScores:
    """The watched scores that a plain training has recorded so far; `meta_callback.Kept`."""

    def __init__(self, control: StrengthControl) -> None:
        self._control = control

    def state(self) -> dict[str, Any]:
        """Scores by step; float32 comes back from JSON as it was."""
        plain, num_steps = self._control.recorded
        return {"num_steps": num_steps, "scores": {str(k): v.tolist() for k, v in plain.items()}}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Nothing where a plain training begins."""
        scores = saved["scores"] if saved else {}
        plain = {int(step): torch.tensor(rows) for step, rows in scores.items()}
        self._control.take_recorded(plain, saved["num_steps"] if saved else 0)
