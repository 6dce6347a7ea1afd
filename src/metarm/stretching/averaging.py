# SPDX-License-Identifier: Apache-2.0
"""The mean of several reward models' weights, and whether a valley of the loss joins them (WARM).

Averaged weights are a good model only where the way from one to the other stays low: fine-tunes of
one start, as a rule. The barrier says whether it does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarm.config import RewardSettings
from metarm.data.encoding import Encoder
from metarm.errors import DataError, ModelError
from metarm.metrics import mean_estimate
from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import RewardModelScore
from metarm.models.saving import save_reward_model
from metarm.protocols import StageProgress
from metarm.schema import Estimate, PreferencePair, prompt_text
from metarm.stretching.pseudo_labels import gaps_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Barrier",
    "average_models",
    "average_weights",
    "check_alike",
    "measure_barrier",
    "num_passes",
]

PLACES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Between one model's weights and the other's."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Barrier:
    """How far the loss rises above the straight line between two models' losses."""

    first: str
    second: str
    place: float
    """Where it rises most, in [0, 1]; 0 where it nowhere rises."""
    height: Estimate
    """There, in nats a pair, clustered by prompt; 0 where it nowhere rises."""
    losses: tuple[float, ...]
    """At `PLACES`, in nats a pair."""

    @property
    def is_one(self) -> bool:
        """Whether it is above zero for certain: the interval leaves zero out."""
        return self.height.low > 0.0

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self) | {"is_one": self.is_one}


def average_weights(models: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each weight, summed in float64 and given back in the first one's type.

    Raises:
        ModelError: As `check_alike`; or when there are none.
    """
    if not models:
        raise ModelError("expected reward models to average, got none")
    for number, other in enumerate(models[1:], start=2):
        check_alike(models[0], other, f"number {number}")
    mean: dict[str, Tensor] = {}
    for name, first in models[0].items():
        # Positions and the like are the same in all.
        if first.is_floating_point():
            total = torch.stack([other[name].double() for other in models]).mean(dim=0)
            mean[name] = total.to(first.dtype)
        else:
            mean[name] = first.clone()
    return mean


def check_alike(first: Weights, other: Weights, name: str) -> None:
    """Refuse to average weights that are not of one architecture.

    Raises:
        ModelError: Names the first weight that one has and the other has not, or of another shape.
    """
    for weight in [*first, *other]:
        mine, theirs = first.get(weight), other.get(weight)
        if mine is None or theirs is None or mine.shape != theirs.shape:
            shapes = [None if w is None else tuple(w.shape) for w in (mine, theirs)]
            raise ModelError(
                f"expected models of one architecture, got another in {name}: {weight!r} is "
                f"{shapes[0] or 'missing'} in the first and {shapes[1] or 'missing'} in it. "
                "Average fine-tunes of one model"
            )


def measure_barrier(
    losses_at: Callable[[float], NDArray[np.float64]],
    clusters: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
) -> Barrier:
    """The loss barrier on the straight way from one model to another.

    barrier = max over a of L(a) - (1 - a) L(0) - a L(1), not below 0

    Args:
        losses_at: Losses of the same pairs at a place in [0, 1], shape (pairs,), in nats.
        clusters: The prompt of each pair.
        names: Of the two models.

    Source:
        Linear mode connectivity, Frankle et al. 1912.05671, in the form of Entezari et al.
        2110.06296; for averaged reward models, Ramé et al. 2401.12187.
    """
    losses = np.stack([losses_at(place) for place in PLACES])
    line = np.outer(1.0 - np.array(PLACES), losses[0]) + np.outer(PLACES, losses[-1])
    rises = (losses - line).mean(axis=1)
    worst = int(rises.argmax())
    height = Estimate(0.0, 0.0, 0.0, len(set(clusters)))
    # At the ends it is 0 by definition, but for rounding.
    if 0 < worst < len(PLACES) - 1 and rises[worst] > 0.0:
        height = mean_estimate(losses[worst] - line[worst], list(clusters))
    return Barrier(
        *names,
        PLACES[worst] if height.value > 0.0 else 0.0,
        height,
        tuple(losses.mean(axis=1).tolist()),
    )


def num_passes(count: int) -> int:
    """Places at which pairs are scored for the barriers between `count` models.

    Example:
        >>> num_passes(3)
        15
    """
    return len(PLACES) * (count * (count - 1) // 2)


def average_models(
    folders: Sequence[Path],
    output_dir: Path,
    pairs: Sequence[PreferencePair] = (),
    bar: StageProgress | None = None,
) -> tuple[Barrier, ...]:
    """Write the reward model whose weights are the mean of several ones'.

    Args:
        folders: Two reward models or more, of one architecture and one vocabulary.
        output_dir: Where to save.
        pairs: Labelled pairs that the barrier between each two is measured on; none: not measured.
        bar: Moves by one for each place that the pairs are scored at.

    Returns:
        The barrier between each two.

    Raises:
        ModelError: When one is missing, or of another architecture or vocabulary.
        DataError: When there are fewer than two.

    Writes:
        `output_dir` in Hugging Face format, safetensors alone.
    """
    if len(folders) < 2:
        raise DataError(f"expected two reward models or more to average, got {len(folders)}")
    encoder = load_encoder(folders[0])
    model = load_reward_model(folders[0], encoder, seed=None, device=torch.device("cpu"))
    weights: list[Weights] = [_copied(model)]
    for folder in folders[1:]:
        _check_vocabulary(encoder, folders[0], folder)
        other = load_reward_model(folder, encoder, seed=None, device=torch.device("cpu"))
        weights.append(_copied(other))
        check_alike(weights[0], weights[-1], str(folder))
    barriers = []
    if pairs:
        score = RewardModelScore(model, encoder)
        fitting = score.fitting_pairs(pairs)
        clusters = [prompt_text(pair.prompt) for pair in fitting]
        for one, two in combinations(range(len(folders)), 2):

            def losses_at(place: float, one: int = one, two: int = two) -> NDArray[np.float64]:
                _put(model, _between(weights[one], weights[two], place))
                if bar is not None:
                    bar.advance()
                return np.logaddexp(0.0, -gaps_of(score, fitting))

            names = (str(folders[one]), str(folders[two]))
            barriers.append(measure_barrier(losses_at, clusters, names))
    _put(model, average_weights(weights))
    save_reward_model(model, encoder, RewardSettings(meta_mode="off"), output_dir)
    return tuple(barriers)


def _copied(model: "PreTrainedModel") -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def _between(one: Weights, two: Weights, place: float) -> dict[str, Tensor]:
    """Exactly the one at 0 and the other at 1."""
    return {
        name: torch.lerp(weight, two[name], place) if weight.is_floating_point() else weight
        for name, weight in one.items()
    }


def _put(model: nn.Module, weights: Weights) -> None:
    model.load_state_dict(dict(weights))


def _check_vocabulary(encoder: Encoder, first: Path, other: Path) -> None:
    """Weights of other words cannot be averaged, whatever their shapes."""
    if load_encoder(other).tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        raise ModelError(
            f"expected models of one vocabulary, got another in {other} than in {first}: average "
            "fine-tunes of one model"
        )
