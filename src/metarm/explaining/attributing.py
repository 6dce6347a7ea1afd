# SPDX-License-Identifier: Apache-2.0
"""What each stretch of a text adds to its reward: integrated gradients, and what they leave over.

The reward of a text, less that of the same text without its words, is shared out among the words;
the sum of the shares must be that difference. What is missing stands beside every result.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from metarm.errors import ConfigError, ModelError, nearest_names
from metarm.explaining.pieces import Part, PiecedText, merge_pieces, read_pieces
from metarm.models.ensemble import EnsembleScore
from metarm.models.reward_model import RewardModelScore
from metarm.schema import Prompt

__all__ = [
    "BASELINES",
    "Attribution",
    "PairAttribution",
    "PathSettings",
    "attribute",
    "attribute_pair",
    "check_captum",
]

Attribute = Callable[
    ["RewardModelScore | EnsembleScore", Prompt, str, "PathSettings"], "Attribution"
]

logger = logging.getLogger(__name__)

TOKENS_AT_ONCE: Final = 4096
TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class PathSettings:
    """The way from a text without its words to the text, and how exactly it is walked."""

    baseline: str = "eos"
    """What a word is replaced by, by its name in `BASELINES`."""
    keeps_prompt: bool = False
    """Whether the text without its words still has the prompt's."""
    tolerance: float = 0.01
    """Completeness gap that is accepted, as a share: of one text's of its absolute attributions, of
    a pair's of the difference that is shared out."""
    max_steps: int = 512
    """Points of the path at most; doubled from `first_steps` until the gap is small enough."""
    first_steps: int = 16
    """Points of the path to begin with."""

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ConfigError(
                f"unknown baseline {self.baseline!r}: {nearest_names(self.baseline, BASELINES)}"
            )
        if not self.tolerance > 0 or min(self.max_steps, self.first_steps) < 1:
            raise ConfigError(
                "expected a tolerance above 0, max_steps and first_steps of 1 or more, got "
                f"{self.tolerance}, {self.max_steps} and {self.first_steps}"
            )


@dataclass(frozen=True, slots=True)
class Attribution:
    """A reward shared out among the stretches of its text, in the reward's unit."""

    texts: tuple[str, ...]
    """Pieces of the text as scored; together they are the text. Empty: a token without one."""
    parts: tuple[Part, ...]
    values: tuple[float, ...]
    score: float
    baseline_score: float
    """Of the same text with every word replaced, at the same length."""
    gap: float
    """score - baseline_score - sum of values: what the path's steps leave over."""
    num_steps: int
    is_complete: bool
    """Whether the gap is within the tolerance."""

    def part_sum(self, part: Part) -> float:
        """Sum of the values of one part."""
        return sum(v for v, own in zip(self.values, self.parts, strict=True) if own == part)

    def of_part(self, part: Part) -> list[tuple[str, float]]:
        """Texts and values of one part, in order."""
        rows = zip(self.texts, self.values, self.parts, strict=True)
        return [(text, value) for text, value, own in rows if own == part]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a piece is its text, its value and its part."""
        return {
            "pieces": [list(r) for r in zip(self.texts, self.values, self.parts, strict=True)],
            "score": self.score,
            "baseline_score": self.baseline_score,
            "gap": self.gap,
            "num_steps": self.num_steps,
            "is_complete": self.is_complete,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Attribution":
        """The inverse of `to_json`."""
        texts, values, parts = zip(*row["pieces"], strict=True)
        rest = {key: value for key, value in row.items() if key != "pieces"}
        return cls(texts=texts, values=values, parts=parts, **rest)


@dataclass(frozen=True, slots=True)
class PairAttribution:
    """A difference of two rewards, first minus second, shared out among both texts at once."""

    first: Attribution
    second: Attribution
    tolerance: float
    """Completeness gap that is accepted, as a share of the difference."""

    @property
    def difference(self) -> float:
        """Reward of the first response minus that of the second."""
        return self.first.score - self.second.score

    @property
    def length_alone(self) -> float:
        """What the two texts without words differ by: lengths and frames are all they have."""
        return self.first.baseline_score - self.second.baseline_score

    @property
    def gap(self) -> float:
        """What is left over of the difference when everything else is taken from it."""
        return self.first.gap - self.second.gap

    @property
    def is_complete(self) -> bool:
        """Whether both sides are within the tolerance, and the difference's gap is as well.

        A difference below that share of all attributions is a tie, and held to that of the share.
        """
        if not (self.first.is_complete and self.second.is_complete):
            return False
        size = sum(abs(value) for side in (self.first, self.second) for value in side.values)
        difference = max(abs(self.difference), self.tolerance * size)
        return abs(self.gap) <= self.tolerance * difference + TINY

    def prompt(self) -> list[tuple[str, float]]:
        """The prompt's pieces: what each does for the first response more than for the second."""
        second = [(text, -value) for text, value in self.second.of_part("prompt")]
        return merge_pieces(self.first.of_part("prompt"), second)

    def to_json(self) -> dict[str, Any]:
        """Both sides and the parts of the difference, which sum to it."""
        return {
            "difference": self.difference,
            "prompt": self.prompt(),
            "prompt_sum": self.first.part_sum("prompt") - self.second.part_sum("prompt"),
            "first_sum": self.first.part_sum("response"),
            "second_sum": -self.second.part_sum("response"),
            "frame_sum": self.first.part_sum("frame") - self.second.part_sum("frame"),
            "length_alone": self.length_alone,
            "gap": self.gap,
            "is_complete": self.is_complete,
            "num_steps": max(self.first.num_steps, self.second.num_steps),
            "first": self.first.to_json(),
            "second": self.second.to_json(),
        }


def check_captum() -> None:
    """Refuse to go on without the package that integrates gradients.

    Raises:
        ConfigError: When it is not there; the message says how to get it.
    """
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "attributions need the captum package: pip install 'metarm[explain]', or ask for none "
            "(--rows 0)"
        ) from error


def attribute(
    score: RewardModelScore | EnsembleScore,
    prompt: Prompt,
    response: str,
    settings: PathSettings | None = None,
) -> Attribution:
    """Share out the reward of a response among prompt and response.

    attribution of a token = (e - b) . mean over the path of dr/de, e its embedding and b the
    baseline's; the tokens of a piece are summed. Frame tokens (BOS, EOS, a template's) stay.

    Args:
        score: A reward model, or an ensemble, of which the mean over members is explained,
            without its pessimism.
        prompt: As it is scored.
        response: As it is scored.
        settings: Baseline, tolerance, steps.

    Returns:
        In the reward's unit. Of a model that is linear in its embeddings the value of a token is
        w . (e - b), at any number of steps.

    Raises:
        ConfigError: When captum is not there.
        ModelError: When tokens cannot be traced to characters, or members read a text differently.

    Source:
        Sundararajan et al. 1703.01365, by captum's `IntegratedGradients` with Gauss-Legendre
        steps. Differs: captum's `LayerIntegratedGradients` takes baselines as token ids, and
        measures its gap with those ids, where a classifier of a language model reads its score at
        another place (the last token that is not padding). Here ids stay and embeddings move.
    """
    check_captum()
    chosen = settings or PathSettings()
    if isinstance(score, RewardModelScore):
        return _attribute_one(score, prompt, response, chosen)
    found = [_attribute_one(member, prompt, response, chosen) for member in score.members]
    if len({one.texts for one in found}) > 1:
        raise ModelError(
            "the members of the ensemble cut the same text into different tokens: explain each "
            "member by itself"
        )
    weights = [1.0 / (spread * len(found)) for spread in score.spreads]

    def mean(values: list[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True))

    offset = mean(list(score.means))
    return Attribution(
        texts=found[0].texts,
        parts=found[0].parts,
        values=tuple(mean(list(own)) for own in zip(*(one.values for one in found), strict=True)),
        score=mean([one.score for one in found]) - offset,
        baseline_score=mean([one.baseline_score for one in found]) - offset,
        gap=mean([one.gap for one in found]),
        num_steps=max(one.num_steps for one in found),
        is_complete=all(one.is_complete for one in found),
    )


def attribute_pair(
    score: RewardModelScore | EnsembleScore,
    prompt: Prompt,
    first: str,
    second: str,
    settings: PathSettings | None = None,
    *,
    attribute_one: Attribute = attribute,
) -> PairAttribution:
    """Share out the difference of two rewards among both texts.

    Two texts may each be within the tolerance of their own attributions and leave much of a small
    difference over: both paths are refined until the difference's own gap is within it.

    Args:
        score: As in `attribute`.
        prompt: The same.
        first: One response.
        second: The other.
        settings: As in `attribute`.
        attribute_one: `attribute`, or what keeps what it finds.
    """
    chosen = settings or PathSettings()
    while True:
        one, other = (attribute_one(score, prompt, side, chosen) for side in (first, second))
        found = PairAttribution(one, other, chosen.tolerance)
        steps = 2 * max(one.num_steps, other.num_steps)
        if found.is_complete or steps > chosen.max_steps:
            return found
        chosen = replace(chosen, first_steps=steps)


def _attribute_one(
    score: RewardModelScore, prompt: Prompt, response: str, settings: PathSettings
) -> Attribution:
    from captum.attr import IntegratedGradients

    read = read_pieces(score.encoder, prompt, response)
    model = score.model
    ids = torch.tensor([read.ids], device=model.device)
    layer = model.get_input_embeddings()
    with torch.no_grad():
        there = layer(ids)
        nothing = BASELINES[settings.baseline](score, layer).to(there)
    is_moved = torch.tensor(_moved(read, keeps_prompt=settings.keeps_prompt), device=model.device)
    start = torch.where(is_moved[None, :, None], nothing, there)
    forward = _forward(model, layer, ids)
    with torch.no_grad():
        reward, baseline_reward = forward(torch.cat([there, start])).tolist()
    batch = max(1, min(score.batch_size, TOKENS_AT_ONCE // len(read.ids)))
    path = IntegratedGradients(forward)
    steps = min(settings.first_steps, settings.max_steps)
    while True:
        found = path.attribute(there, start, n_steps=steps, internal_batch_size=batch)
        of_token = found[0].sum(dim=-1).double().tolist()
        gap = reward - baseline_reward - sum(of_token)
        size = sum(map(abs, of_token)) + TINY
        is_complete = abs(gap) <= settings.tolerance * size
        if is_complete or 2 * steps > settings.max_steps:
            break
        steps *= 2
    if not is_complete:
        logger.warning(
            "attributions leave %.2g of the reward over after %d steps, above %g of their size",
            gap,
            steps,
            settings.tolerance,
        )
    return Attribution(
        texts=tuple(piece.text for piece in read.pieces),
        parts=tuple(piece.part for piece in read.pieces),
        values=tuple(sum(of_token[token] for token in piece.tokens) for piece in read.pieces),
        score=reward,
        baseline_score=baseline_reward,
        gap=gap,
        num_steps=steps,
        is_complete=is_complete,
    )


def _moved(read: PiecedText, *, keeps_prompt: bool) -> list[bool]:
    """Of each token, whether the baseline replaces it."""
    kept = {
        token
        for piece in read.pieces
        if piece.part == "frame" or (keeps_prompt and piece.part == "prompt")
        for token in piece.tokens
    }
    return [token not in kept and not is_frame for token, is_frame in enumerate(read.is_frame)]


def _forward(model: nn.Module, layer: nn.Module, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Rewards of rows of embeddings, which stand in for those of `ids`."""

    def rewards(embeddings: Tensor) -> Tensor:
        own = ids.expand(len(embeddings), -1)
        with _embedded_as(layer, embeddings):
            logits: Tensor = model(
                input_ids=own, attention_mask=torch.ones_like(own), use_cache=False
            ).logits
        return logits.squeeze(-1)

    return rewards


@contextmanager
def _embedded_as(layer: nn.Module, embeddings: Tensor) -> Iterator[None]:
    handle = layer.register_forward_hook(lambda *_: embeddings)
    try:
        yield
    finally:
        handle.remove()


def _token(score: RewardModelScore, layer: nn.Module, token: int) -> Tensor:
    found: Tensor = layer(torch.tensor([[token]], device=score.model.device))
    return found


BASELINES: Final[Mapping[str, Callable[[RewardModelScore, nn.Module], Tensor]]] = {
    "pad": lambda score, layer: _token(score, layer, score.encoder.pad_token_id),
    "eos": lambda score, layer: _token(score, layer, score.encoder.eos_token_id),
    "zero": lambda score, layer: torch.zeros_like(_token(score, layer, score.encoder.eos_token_id)),
}
"""What replaces a word: an embedding that says nothing, of shape (1, 1, size)."""
