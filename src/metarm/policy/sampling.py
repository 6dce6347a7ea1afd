# SPDX-License-Identifier: Apache-2.0
"""k responses per prompt, the same for the same seed, and how likely models find them."""

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from metarm.chunk_log import ChunkLog
from metarm.config import SamplingSettings
from metarm.data.encoding import Encoder, check_prompt_length, pad_batch
from metarm.errors import CacheError, ModelError
from metarm.interrupts import at_boundaries, stop_if_asked
from metarm.models.ensemble import load_reward
from metarm.models.loading import context_length, load_causal_lm, load_encoder
from metarm.policy.decoding import Choose, decode
from metarm.protocols import ProgressReporter, StageProgress
from metarm.schema import Prompt, ResponseGroup
from metarm.storage import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "BEST_OF_N_FILE",
    "BestOfN",
    "Conversation",
    "Sample",
    "SampledPolicy",
    "end_tokens",
    "generate",
    "join_rows",
    "nucleus_draw",
    "response_log_probs",
    "sample_groups",
]

logger = logging.getLogger(__name__)

BEST_OF_N_FILE: Final = "best_of_n.json"


class Sample(NamedTuple):
    """One response as the policy wrote it."""

    response: str
    response_ids: list[int]
    """Sampled token ids, with EOS where it ended by itself."""
    finished: bool


class Conversation(NamedTuple):
    """Prompts and responses in one tensor: prompts end, and responses begin, at one column."""

    input_ids: Tensor
    attention_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor


def generate(
    model: "PreTrainedModel",
    encoder: Encoder,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    top_p: float,
    max_completion_length: int,
    seed: int,
) -> list[Sample]:
    """One sampled response per prompt, as one batch.

    Sampling is by temperature and nucleus alone: the model's own generation defaults (top-k,
    repetition penalty and all others) are set aside, so that log-probabilities can be taken under
    the same distribution. The global random state is left as it was.

    Raises:
        DataError: When a prompt leaves no room for a response.
        ModelError: When the model's logits are not finite.
    """
    context = context_length(model)
    encoded = {
        prompt: check_prompt_length(encoder, prompt, context, max_completion_length)
        for prompt in dict.fromkeys(prompts)
    }
    rows = [encoded[prompt] for prompt in prompts]
    ends = end_tokens(model, encoder)
    draw = nucleus_draw(len(rows), temperature=temperature, top_p=top_p)
    with _seeded(seed):
        try:
            written = decode(
                model,
                rows,
                max_new_tokens=max_completion_length,
                ends=ends,
                pad_token_id=encoder.pad_token_id,
                choose=draw,
            )
        except CacheError as reason:
            # It comes before the first draw, so that the seed holds for what follows.
            _report_slow_model(type(model).__name__, str(reason))
            written = _generate_by_transformers(
                model,
                rows,
                max_new_tokens=max_completion_length,
                ends=ends,
                pad_token_id=encoder.pad_token_id,
                temperature=temperature,
                top_p=top_p,
            )
    samples = []
    for ids in written:
        finished = ids[-1] in ends
        samples.append(Sample(encoder.decode(ids[:-1] if finished else ids), ids, finished))
    return samples


def nucleus_draw(num_rows: int, *, temperature: float, top_p: float) -> Choose:
    """Draws by temperature and nucleus, for `decode` of a batch of `num_rows`.

    Draws are those of `torch.multinomial` over the whole batch, as transformers' `generate` makes
    them: rows that have left take their share of the noise, so that no other row's is shifted.

    Raises:
        ModelError: From the draw, when logits are not finite.
    """
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    warpers = []
    if temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))

    def draw(logits: Tensor, rows: Tensor) -> Tensor:
        scores = _refuse_broken_logits(rows, logits)
        for warp in warpers:
            scores = warp(rows, scores)
        probs = torch.softmax(scores, dim=-1)
        # argmax p / noise is one draw from p, and the way of `multinomial` on CPUs and CUDA.
        noise = probs.new_empty((num_rows, probs.shape[-1])).exponential_()
        return (probs / noise[rows]).argmax(dim=-1)

    return draw


@torch.no_grad()
def _generate_by_transformers(
    model: "PreTrainedModel",
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    pad_token_id: int,
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    """The same draws for models of any kind: each row's prompt is computed, none leaves early."""
    batch = pad_batch(rows, pad_token_id, side="left")
    with _without_defaults(model):
        output = model.generate(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            eos_token_id=list(ends),
            logits_processor=[_refuse_broken_logits],
        )
    written = output[:, batch.input_ids.shape[1] :].tolist()
    lengths = (next((n for n, t in enumerate(row, 1) if t in ends), len(row)) for row in written)
    return [row[:length] for row, length in zip(written, lengths, strict=True)]


@functools.cache
def _report_slow_model(name: str, reason: str) -> None:
    """A warning, once for each kind of model."""
    logger.warning(
        "%s is sampled by transformers' own `generate`, which takes longer: %s", name, reason
    )


def end_tokens(model: "PreTrainedModel", encoder: Encoder) -> list[int]:
    """Ids that end a response: EOS, and the end of a turn where the model's settings name one."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    others = named if isinstance(named, list) else [named]
    return list(dict.fromkeys([encoder.eos_token_id, *(t for t in others if t is not None)]))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block with random states of its own: `torch.manual_seed` sets those of every device."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = accelerator.type if accelerator is not None else "cuda"
    # Apple's accelerator has one state that cannot be asked for by device number.
    has_states = accelerator is not None and kind != "mps"
    devices = range(torch.accelerator.device_count() if has_states else 0)
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield


@contextmanager
def _without_defaults(model: "PreTrainedModel") -> Iterator[None]:
    """A block in which the model brings no generation settings of its own."""
    from transformers import GenerationConfig

    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _refuse_broken_logits(input_ids: Tensor, scores: Tensor) -> Tensor:
    """The same logits: drawing from ones that are not finite would abort the device."""
    if not torch.isfinite(scores.amax(dim=-1)).all():
        raise ModelError(
            "the policy's logits are not finite: its weights are broken (training diverged?); "
            "lower its learning rate and train it again"
        )
    return scores


def join_rows(
    encoder: Encoder, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]
) -> Conversation:
    """Left-pad prompts and right-pad responses into one tensor."""
    left = pad_batch([encoder.encode_prompt(p) for p in prompts], encoder.pad_token_id, side="left")
    right = pad_batch(responses, encoder.pad_token_id, side="right")
    return Conversation(
        torch.cat([left.input_ids, right.input_ids], dim=1),
        torch.cat([left.attention_mask, right.attention_mask], dim=1),
        right.input_ids,
        right.attention_mask.bool(),
    )


def response_log_probs(model: "PreTrainedModel", batch: Conversation, temperature: float) -> Tensor:
    """Log-probability of each response token, shape (rows, tokens); masked places are 0.

    It is that of the sampling distribution, softmax(logits / temperature).
    """
    num_tokens = batch.response_ids.shape[1]
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        # Left padding: positions count real tokens, as `generate` counts them.
        position_ids=(batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=num_tokens + 1,
    ).logits[:, :-1]
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = log_probs.gather(2, batch.response_ids.unsqueeze(2)).squeeze(2)
    return chosen.masked_fill(~batch.response_mask, 0.0)


@dataclass(frozen=True)
class BestOfN:
    """How a best-of-n policy is sampled: it has no weights of its own."""

    base: str
    reward_model: str
    num_candidates: int
    base_from_here: str = ""
    """The same folder, relative to the policy's: a run can be moved as a whole."""
    reward_model_from_here: str = ""

    def find_models(self, policy: Path) -> tuple[str, str]:
        """Base and reward model: relative to the policy's folder, else where they stood."""
        places = (
            (self.base_from_here, self.base),
            (self.reward_model_from_here, self.reward_model),
        )
        base, reward_model = (
            str(policy / near) if near and (policy / near).is_dir() else far for near, far in places
        )
        return base, reward_model


class SampledPolicy:
    """A policy folder that can be sampled: a language model, or best-of-n over one."""

    def __init__(self, policy: str | Path) -> None:
        marker = Path(policy) / BEST_OF_N_FILE
        self.best_of_n = BestOfN(**read_json(marker)) if marker.exists() else None
        source, reward_model = str(policy), None
        if self.best_of_n is not None:
            source, reward_model = self.best_of_n.find_models(Path(policy))
        if (Path(source) / BEST_OF_N_FILE).exists():
            raise ModelError(
                f"{source} is itself a best-of-n policy: best-of-n starts from a language model; "
                "set policy_start: sft"
            )
        self.encoder = load_encoder(source)
        self.model = load_causal_lm(source)
        self._score = load_reward(reward_model) if reward_model else None

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_generations: int,
        temperature: float,
        top_p: float,
        max_completion_length: int,
        batch_size: int,
        seed: int,
        bar: StageProgress,
        log: ChunkLog | None = None,
    ) -> list[list[Sample]]:
        """`num_generations` responses to each prompt; every response advances the bar by one.

        With a log each batch is kept as it comes, and one that is kept is not drawn again: the
        draws of a batch are a function of the seed and its number alone.

        Raises:
            DataError: When a prompt leaves no room for a response; before anything is sampled.
        """
        context = context_length(self.model)
        for prompt in dict.fromkeys(prompts):
            check_prompt_length(self.encoder, prompt, context, max_completion_length)
        candidates = self.best_of_n.num_candidates if self.best_of_n else 1
        repeated = [prompt for prompt in prompts for _ in range(num_generations * candidates)]
        # Prompts of like length share a batch: less padding, and the order is put back below.
        order = sorted(range(len(repeated)), key=lambda i: len(str(repeated[i])))
        samples: dict[int, Sample] = {}
        with at_boundaries() if log is not None else nullcontext():
            for number, start in enumerate(range(0, len(order), batch_size)):
                indices = order[start : start + batch_size]
                key = f"{seed} {number}"
                kept = None if log is None else log.get(key)
                if kept is None:
                    drawn = generate(
                        self.model,
                        self.encoder,
                        [repeated[index] for index in indices],
                        temperature=temperature,
                        top_p=top_p,
                        max_completion_length=max_completion_length,
                        seed=seed * 1_000_003 + number,
                    )
                else:
                    drawn = [Sample(*row) for row in kept]
                if log is not None and kept is None:
                    log.put(key, drawn)
                    stop_if_asked()
                samples.update(zip(indices, drawn, strict=True))
                bar.advance(len(indices))
        flat = [samples[index] for index in range(len(repeated))]
        if self._score is not None:
            flat = self._keep_best(repeated, flat, candidates)
        return [
            flat[start : start + num_generations] for start in range(0, len(flat), num_generations)
        ]

    def _keep_best(
        self, prompts: Sequence[Prompt], samples: Sequence[Sample], candidates: int
    ) -> list[Sample]:
        assert self._score is not None
        scores = self._score(prompts, [sample.response for sample in samples])
        return [
            samples[max(range(start, start + candidates), key=lambda index: scores[index])]
            for start in range(0, len(samples), candidates)
        ]

    def num_responses(self, num_prompts: int, num_generations: int) -> int:
        """Responses drawn in all: the total of a progress bar."""
        return (
            num_prompts * num_generations * (self.best_of_n.num_candidates if self.best_of_n else 1)
        )

    def kl_of_best_of_n(self) -> float | None:
        """KL(best-of-n || base) = ln n - (n - 1) / n nats; None for a language model.

        Source: Gao et al. 2210.10760; exact where scores have no ties, else an upper bound.
        """
        if self.best_of_n is None:
            return None
        n = self.best_of_n.num_candidates
        return math.log(n) - (n - 1) / n


def sample_groups(
    policy: str | Path,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    *,
    seed: int,
    progress: ProgressReporter,
    log: ChunkLog | None = None,
) -> list[ResponseGroup]:
    """A meta set: `num_generations` responses of the policy to each prompt.

    With a log each batch is kept as it comes, and one that is kept is not drawn again.

    Raises:
        ModelError: When there is no language model at `policy`.
        DataError: When a prompt leaves no room for a response.
    """
    sampled = SampledPolicy(policy)
    prompts = prompts[: settings.num_prompts] if settings.num_prompts else prompts
    total = sampled.num_responses(len(prompts), settings.num_generations)
    with progress.stage("sample responses", total) as bar:
        groups = sampled.sample(
            prompts,
            num_generations=settings.num_generations,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_completion_length=settings.max_completion_length,
            batch_size=settings.batch_size,
            seed=seed,
            bar=bar,
            log=log,
        )
    return [
        ResponseGroup(prompt, tuple(s.response for s in group), tuple(s.finished for s in group))
        for prompt, group in zip(prompts, groups, strict=True)
    ]
