# SPDX-License-Identifier: Apache-2.0
"""PPO for language models: clipped ratio and value, GAE, per-token KL to a fixed SFT reference.

What a reader might assume otherwise:
1. The KL reference is the SFT policy in every round, never the policy the round started from.
2. Log-probabilities, old and new, are taken under the sampling distribution (temperature; the
   nucleus is not cut), so that the first ratio of every iteration is exactly 1.
3. Scores are normalised by the running mean and standard deviation of this call alone: a new
   reward model has a new scale, so nothing is carried over from round to round.
4. A response that was cut off is scored as if it had ended, minus a fixed penalty.
5. The value model starts from the reward model and learns alone for the first iterations.
6. Dropout is off throughout.

Source: Schulman et al. 1707.06347; the PPO-max settings of Zheng et al. 2307.04964 (score
normalisation and clipping, token-level KL, critic from the reward model, its warm-up, value clip).
Differs: no pre-training loss mix; KL estimator k1, as in the field's implementations.
docs/ppo.md lists every detail.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from metarm.config import OptimizeSettings
from metarm.data.encoding import Encoder, check_prompt_length
from metarm.errors import EmptySetError, ModelError
from metarm.models.ensemble import first_member
from metarm.models.loading import (
    context_length,
    load_causal_lm,
    load_encoder,
    load_reward_model,
)
from metarm.policy.sampling import Conversation, generate, join_rows, response_log_probs
from metarm.protocols import IterationObserver, ProgressReporter, ScoreFunction
from metarm.schema import Prompt
from metarm.storage import append_json_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Advantages",
    "PolicyLoss",
    "PpoRun",
    "Rollout",
    "RunningMoments",
    "clipped_policy_loss",
    "clipped_value_loss",
    "estimate_advantages",
    "optimize_ppo",
    "shape_rewards",
    "token_values",
    "whiten",
]

# Scores whose spread is this much smaller than their mean differ by rounding only.
ROUNDING: Final = 1e-6
DIVERGED_REMEDY: Final = (
    "the policy diverged. Lower optimize.learning_rate or raise optimize.kl_coef and run the same "
    "command again; finished stages are kept."
)
# Training never makes all weights together this many times as long; a broken step size does.
DIVERGED: Final = 100.0


class Advantages(NamedTuple):
    """How much better each token was than expected, and what its value should have been."""

    advantages: Tensor
    returns: Tensor


class PolicyLoss(NamedTuple):
    """The surrogate loss, and how far this step has gone."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


class RunningMoments:
    """Mean and spread of all scores seen so far, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def update(self, values: Sequence[float]) -> None:
        """Take in a batch."""
        batch = torch.tensor(values, dtype=torch.float64)
        size, mean = len(values), batch.mean().item()
        total = self.count + size
        shift = mean - self.mean
        self._squares += (batch - mean).square().sum().item()
        self._squares += shift * shift * self.count * size / total
        self.mean += shift * size / total
        self.count = total

    @property
    def standard_deviation(self) -> float:
        """Sample standard deviation; 1 before there are two values that truly differ."""
        spread = math.sqrt(self._squares / max(self.count - 1, 1))
        return spread if spread > ROUNDING * abs(self.mean) else 1.0


def shape_rewards(
    scores: Tensor, log_ratios: Tensor, response_mask: Tensor, kl_coef: float
) -> Tensor:
    """Per-token rewards: -kl_coef * log(pi / reference) everywhere, plus the score at the end.

    Args:
        scores: Shape (rows,), in normalised units.
        log_ratios: Shape (rows, tokens), log pi - log reference of the sampled tokens.
        response_mask: Shape (rows, tokens), True on response tokens, at least one a row.
        kl_coef: beta.

    Returns:
        Shape (rows, tokens), 0 outside the mask; a row sums to score - beta * sum of log ratios.
    """
    rewards = (-kl_coef * log_ratios).masked_fill(~response_mask, 0.0)
    last = response_mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def estimate_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation along each response, which ends in a state of value 0.

    delta_t = r_t + gamma * v_{t+1} - v_t;  A_t = delta_t + gamma * lam * A_{t+1};  return = A + v

    Args:
        rewards: Shape (rows, tokens).
        values: Shape (rows, tokens), expected return before each token.
        response_mask: Shape (rows, tokens).
        gamma: Discount per token, in [0, 1].
        lam: 0 trusts the values (one step), 1 the rewards (to the end).

    Source:
        Schulman et al. 1506.02438, eq. 16.
    """
    mask = response_mask.to(rewards.dtype)
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return Advantages(advantages, advantages + values)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values with mean 0 and variance 1 over the mask; 0 outside it."""
    inside = values[mask]
    spread = inside.std(unbiased=False)
    return ((values - inside.mean()) / (spread + 1e-8)).masked_fill(~mask, 0.0)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> PolicyLoss:
    """PPO's surrogate: the worse of the plain and the clipped ratio, averaged over tokens.

    Source:
        Schulman et al. 1707.06347, eq. 7. `approx_kl` is the k3 estimator, >= 0.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    count = mask.sum()
    with torch.no_grad():
        clip_fraction = ((clipped > plain) & mask).sum() / count
        approx_kl = ((log_ratio.expm1() - log_ratio) * mask).sum() / count
    return PolicyLoss(
        (torch.maximum(plain, clipped) * mask).sum() / count, clip_fraction, approx_kl
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float
) -> Tensor:
    """Half the squared error of values, the worse of plain and clipped, averaged over tokens."""
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    worse = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (worse * mask).sum() / mask.sum()


def token_values(value_model: "PreTrainedModel", batch: Conversation) -> Tensor:
    """Value before each response token, shape (rows, tokens): the score head at every place."""
    backbone = getattr(value_model, value_model.base_model_prefix)
    hidden = backbone(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=(batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    num_tokens = batch.response_ids.shape[1]
    values = value_model.score(hidden[:, -num_tokens - 1 : -1]).squeeze(-1).float()
    return values.masked_fill(~batch.response_mask, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One iteration's responses and what they were worth when they were written."""

    batch: Conversation
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


@dataclass(eq=False)
class PpoRun:
    """The models and moving parts of one optimisation."""

    settings: OptimizeSettings
    encoder: Encoder
    policy: "PreTrainedModel"
    reference: "PreTrainedModel"
    value_model: "PreTrainedModel"
    score: ScoreFunction
    monitor: ScoreFunction | None
    moments: RunningMoments
    optimizer: torch.optim.Optimizer


def optimize_ppo(
    *,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    progress: ProgressReporter,
    settings: OptimizeSettings,
    observer: IterationObserver | None = None,
) -> Mapping[str, float]:
    """Optimise a policy against `score` and save it: a `protocols.PolicyOptimizer`.

    Args:
        policy_dir: Where the policy starts.
        reference_dir: The SFT policy that KL is measured to.
        reward_model_dir: Where the value model starts; of an ensemble, its first member.
        score: Scores finished responses.
        prompts: Drawn in a new random order every pass; at least one.
        output_dir: Where to save.
        seed: Order of prompts and responses.
        monitor: Another score function, only logged (gold).
        progress: Gets one bar.
        settings: See `config.OptimizeSettings`.
        observer: Looks at the policy after each iteration, and may end the optimisation there.

    Returns:
        The last iteration's metrics; docs/metrics.md explains each.

    Raises:
        EmptySetError: When there are no prompts.
        DataError: When a prompt leaves no room for a response; before anything is sampled.
        ModelError: When tokenizers differ, or the policy diverges; no policy is saved then.

    Writes:
        `output_dir` in Hugging Face format, and `metrics.jsonl`, one line an iteration.
    """
    run = _set_up(settings, policy_dir, reference_dir, reward_model_dir, score, monitor, seed)
    _check_prompts(run, prompts)
    generator = torch.Generator().manual_seed(seed)
    batches = _prompt_batches(prompts, settings.batch_size, generator)
    length_at_start = _length(run.policy)
    metrics: dict[str, float] = {}
    with progress.stage("optimise the policy (PPO)", settings.num_iterations) as bar:
        for iteration in range(settings.num_iterations):
            started = time.monotonic()
            rollout = _roll_out(run, next(batches), seed=seed * 1_000_003 + iteration)
            updates = _update(run, rollout, generator, iteration)
            _refuse_diverged(run.policy, length_at_start)
            metrics = {"iteration": iteration + 1, **rollout.metrics, **updates}
            metrics["seconds"] = time.monotonic() - started
            append_json_line(output_dir / "metrics.jsonl", metrics)
            bar.advance(
                1, f"score {metrics['objective/scores']:.2f}, KL {metrics['objective/kl']:.1f} nats"
            )
            if observer is not None and observer(
                iteration=iteration + 1, policy=run.policy, encoder=run.encoder
            ):
                break
    run.policy.save_pretrained(output_dir)
    run.encoder.tokenizer.save_pretrained(output_dir)
    return metrics


def _set_up(
    settings: OptimizeSettings,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    monitor: ScoreFunction | None,
    seed: int,
) -> PpoRun:
    encoder = load_encoder(policy_dir)
    value_start = first_member(reward_model_dir)
    for folder, reason in (
        (reference_dir, "KL compares token by token: the reference must be the policy's ancestor"),
        (
            value_start,
            "the value model starts from the reward model and reads the policy's tokens: train "
            "the reward model on the policy's own backbone",
        ),
    ):
        if load_encoder(folder).tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
            raise ModelError(f"{folder} has another tokenizer than {policy_dir}; {reason}")
    policy = load_causal_lm(policy_dir)
    value_model = load_reward_model(value_start, encoder, seed=seed)
    reference = load_causal_lm(reference_dir)
    reference.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(policy.parameters()), "lr": settings.learning_rate},
            {"params": list(value_model.parameters()), "lr": settings.value_learning_rate},
        ],
        weight_decay=0.0,
        eps=1e-6,
    )
    return PpoRun(
        settings=settings,
        encoder=encoder,
        policy=policy,
        reference=reference,
        value_model=value_model,
        score=score,
        monitor=monitor,
        moments=RunningMoments(),
        optimizer=optimizer,
    )


def _check_prompts(run: PpoRun, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise EmptySetError("PPO needs at least one prompt to sample responses to, got none")
    context = min(context_length(run.policy), context_length(run.value_model))
    for prompt in dict.fromkeys(prompts):
        check_prompt_length(run.encoder, prompt, context, run.settings.max_completion_length)


def _prompt_batches(
    prompts: Sequence[Prompt], batch_size: int, generator: torch.Generator
) -> Iterator[list[Prompt]]:
    """Endless batches; every prompt comes once before any comes again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(len(prompts), generator=generator).tolist()
        yield [prompts[index] for index in waiting[:batch_size]]
        waiting = waiting[batch_size:]


@torch.no_grad()
def _roll_out(run: PpoRun, prompts: Sequence[Prompt], *, seed: int) -> Rollout:
    settings, device = run.settings, run.policy.device
    samples = generate(
        run.policy,
        run.encoder,
        prompts,
        temperature=settings.temperature,
        top_p=1.0,
        max_completion_length=settings.max_completion_length,
        seed=seed,
    )
    responses = [sample.response for sample in samples]
    batch = Conversation(
        *(t.to(device) for t in join_rows(run.encoder, prompts, [s.response_ids for s in samples]))
    )
    parts = [_rows_of(batch, rows) for rows in _micro_batches(run, torch.arange(len(samples)))]
    log_probs, reference_log_probs = (
        torch.cat([response_log_probs(model, part, settings.temperature) for part in parts])
        for model in (run.policy, run.reference)
    )
    values = torch.cat([token_values(run.value_model, part) for part in parts])
    raw_scores = run.score(prompts, responses)
    run.moments.update(raw_scores)
    finished = torch.tensor([sample.finished for sample in samples], device=device)
    scores = (torch.tensor(raw_scores, device=device) - run.moments.mean) / (
        run.moments.standard_deviation
    )
    scores = scores.clamp(-settings.reward_clip, settings.reward_clip)
    scores = scores - settings.missing_eos_penalty * (~finished)
    log_ratios = log_probs - reference_log_probs
    rewards = shape_rewards(scores, log_ratios, batch.response_mask, settings.kl_coef)
    estimate = estimate_advantages(
        rewards, values, batch.response_mask, gamma=settings.gamma, lam=settings.lam
    )
    residual = (estimate.returns - values)[batch.response_mask]
    spread = estimate.returns[batch.response_mask].var(unbiased=False)
    metrics = {
        "objective/kl": log_ratios.sum(dim=1).mean().item(),
        "objective/scores": sum(raw_scores) / len(raw_scores),
        "objective/rlhf_reward": rewards.sum(dim=1).mean().item(),
        "objective/entropy": (-log_probs.sum() / batch.response_mask.sum()).item(),
        "val/explained_variance": (1.0 - residual.var(unbiased=False) / (spread + 1e-8)).item(),
        "completions/mean_length": batch.response_mask.sum(dim=1).float().mean().item(),
        "completions/finished_fraction": finished.float().mean().item(),
    }
    if run.monitor is not None:
        metrics["objective/gold"] = sum(run.monitor(prompts, responses)) / len(responses)
    advantages = whiten(estimate.advantages, batch.response_mask)
    return Rollout(batch, log_probs, values, advantages, estimate.returns, metrics)


def _update(
    run: PpoRun, rollout: Rollout, generator: torch.Generator, iteration: int
) -> dict[str, float]:
    settings = run.settings
    only_values = iteration < settings.value_warmup_iterations
    totals: dict[str, float] = {}
    num_rows = rollout.batch.input_ids.shape[0]
    num_updates = 0
    for _ in range(settings.num_ppo_epochs):
        order = torch.randperm(num_rows, generator=generator).to(rollout.batch.input_ids.device)
        for rows in order.chunk(settings.num_mini_batches):
            parts = _step(run, rollout, rows, only_values=only_values)
            num_updates += 1
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value
    return {name: value / num_updates for name, value in totals.items()}


def _rows_of(batch: Conversation, rows: Tensor) -> Conversation:
    return Conversation(*(tensor[rows] for tensor in batch))


def _micro_batches(run: PpoRun, rows: Tensor) -> tuple[Tensor, ...]:
    """The rows in parts that fit into memory."""
    return rows.split(run.settings.micro_batch_size or len(rows))


def _step(run: PpoRun, rollout: Rollout, rows: Tensor, *, only_values: bool) -> dict[str, float]:
    run.optimizer.zero_grad(set_to_none=True)
    num_tokens = rollout.batch.response_mask[rows].sum()
    metrics: dict[str, float] = {}
    total = 0.0
    for part in _micro_batches(run, rows):
        loss, parts = _losses(run, rollout, part, only_values=only_values)
        # Means over tokens: weighted by tokens, the parts add up to the mini-batch's own mean.
        share = rollout.batch.response_mask[part].sum() / num_tokens
        (loss * share).backward()
        total += (loss.detach() * share).item()
        for name, value in parts.items():
            metrics[name] = metrics.get(name, 0.0) + value * share.item()
    norms = [
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.settings.max_grad_norm)
        for model in (run.policy, run.value_model)
    ]
    # A finite loss can have an infinite gradient; either would break the weights.
    if not all(math.isfinite(number) for number in (total, *map(float, norms))):
        raise ModelError(f"the PPO loss or its gradient is not finite: {DIVERGED_REMEDY}")
    run.optimizer.step()
    return metrics


def _losses(
    run: PpoRun, rollout: Rollout, rows: Tensor, *, only_values: bool
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some rows, a mean over their tokens, and its parts."""
    settings = run.settings
    batch = _rows_of(rollout.batch, rows)
    mask = batch.response_mask
    values = token_values(run.value_model, batch)
    value_loss = clipped_value_loss(
        values, rollout.old_values[rows], rollout.returns[rows], mask, settings.cliprange_value
    )
    metrics = {"loss/value_avg": value_loss.item()}
    loss = settings.vf_coef * value_loss
    if not only_values:
        log_probs = response_log_probs(run.policy, batch, settings.temperature)
        policy = clipped_policy_loss(
            log_probs,
            rollout.old_log_probs[rows],
            rollout.advantages[rows],
            mask,
            settings.cliprange,
        )
        loss = loss + policy.loss
        metrics |= {
            "loss/policy_avg": policy.loss.item(),
            "policy/approxkl_avg": policy.approx_kl.item(),
            "policy/clipfrac_avg": policy.clip_fraction.item(),
        }
    return loss, metrics


def _length(model: "PreTrainedModel") -> float:
    """Euclidean length of all weights together."""
    with torch.no_grad():
        return torch.stack([weight.norm() for weight in model.parameters()]).norm().item()


def _refuse_diverged(policy: "PreTrainedModel", length_at_start: float) -> None:
    """Weights may be finite and yet worthless: norm layers overflow and every token is alike."""
    length = _length(policy)
    if not length <= DIVERGED * length_at_start:
        raise ModelError(
            f"the policy's weights are {length / length_at_start:.0f} times as long as before: "
            f"{DIVERGED_REMEDY}"
        )
