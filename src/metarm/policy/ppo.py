# SPDX-License-Identifier: Apache-2.0
"""PPO for language models: clipped ratio and value, GAE, per-token KL to a fixed SFT reference.

What a reader might assume otherwise:
1. The KL reference is the SFT policy in every round, never the policy the round started from.
2. Log-probabilities, old and new, are taken under the sampling distribution (temperature; the
   nucleus is not cut), so that the first ratio of every iteration is exactly 1.
3. Scores are normalised by the running mean and standard deviation of one reward model alone: a
   new one has a new scale, so nothing is carried over from round to round.
4. A response that was cut off is scored as if it had ended, minus a fixed penalty.
5. The value model starts from the reward model and learns alone for the first iterations.
6. Dropout is off throughout.
7. Every draw is a function of the seed and of where the work stands; what changes is `PpoState`.

Source: Schulman et al. 1707.06347; the PPO-max settings of Zheng et al. 2307.04964 (score
normalisation and clipping, token-level KL, critic from the reward model, its warm-up, value clip,
pre-training loss mix). Differs: KL estimator k1, as in the field's implementations.
docs/ppo.md lists every detail.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metarm import __version__
from metarm.checkpoints import CheckpointPlace, StateKeeper
from metarm.config_optimize import OptimizeSettings
from metarm.data.encoding import Encoder
from metarm.errors import ModelError
from metarm.interrupts import at_boundaries
from metarm.models.saving import merge_adapter
from metarm.policy.control import (
    DIVERGED_REMEDY,
    KlBudget,
    adapted_kl_coef,
    learning_rate_factor,
    refuse_diverged,
    weights_length,
)
from metarm.policy.ppo_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    estimate_advantages,
    shape_rewards,
    token_loss_sum,
    whiten,
)
from metarm.policy.ppo_models import PpoModels, TextRow, load_models, read_texts, token_values
from metarm.policy.ppo_state import PpoState, Rollout
from metarm.policy.prompt_order import check_prompts, prompt_batch
from metarm.policy.sampling import Conversation, generate, join_rows, response_log_probs
from metarm.policy.score_scale import ScoreScale, reward_responses
from metarm.policy.sft import collate_texts
from metarm.protocols import IterationObserver, ProgressReporter, ScoreFunction
from metarm.schema import Prompt
from metarm.storage import append_json_line, content_digest, write_json
from metarm.streams import draw_seed, generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PpoRun", "optimize_ppo"]


@dataclass(frozen=True, eq=False)
class PpoRun:
    """What stays as it is while PPO runs, and its state."""

    settings: OptimizeSettings
    seed: int
    encoder: Encoder
    reference: "PreTrainedModel"
    prompts: Sequence[Prompt]
    texts: Sequence[TextRow]
    """For the language-model loss; empty without one."""
    score: ScoreFunction
    reward_model: str
    """Tells the reward model from others: its scores are normalised by their own moments."""
    monitor: ScoreFunction | None
    keeper: StateKeeper
    """Of checkpoints, one after an optimiser step."""
    state: PpoState


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
    demonstrations: Sequence[tuple[Prompt, str]] = (),
    observer: IterationObserver | None = None,
    checkpoints: CheckpointPlace | None = None,
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
        demonstrations: What the SFT policy was trained on: the texts of `ptx_coef`, where
            `ptx_texts` names no others.
        observer: Looks at the policy after each iteration, and may end the optimisation there.
        checkpoints: Where to go on from, in the middle of a batch too; None: nothing is kept.

    Returns:
        The metrics of the last iteration; with a KL budget those of the weights that are saved,
        and `kept_iteration`. docs/metrics.md explains each.

    Raises:
        EmptySetError: When there are no prompts.
        ConfigError: When the policy is beyond the KL budget from the start, or there are no texts.
        DataError: When a prompt leaves no room for a response; before anything is sampled.
        ModelError: When tokenizers differ, or the policy diverges; no policy is saved then.

    Writes:
        `output_dir` in Hugging Face format, and `metrics.jsonl`, one line an iteration.
    """
    models = load_models(settings, policy_dir, reference_dir, reward_model_dir, seed)
    check_prompts(
        models.encoder, prompts, (models.policy, models.value_model), settings, what="PPO"
    )
    texts = read_texts(settings, demonstrations, models.encoder, models.policy)
    keeper = StateKeeper(checkpoints)
    run = _start(settings, models, prompts, texts, score, reward_model_dir, monitor, keeper, seed)
    block: AbstractContextManager[None] = at_boundaries() if checkpoints else nullcontext()
    with block:
        metrics = _train(run, output_dir, progress, observer)
    merge_adapter(models.adapter or run.state.policy).save_pretrained(output_dir)
    run.encoder.tokenizer.save_pretrained(output_dir)
    return metrics


def _start(
    settings: OptimizeSettings,
    models: PpoModels,
    prompts: Sequence[Prompt],
    texts: Sequence[TextRow],
    score: ScoreFunction,
    reward_model_dir: Path,
    monitor: ScoreFunction | None,
    keeper: StateKeeper,
    seed: int,
) -> PpoRun:
    """A run before its first iteration."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in model.parameters() if w.requires_grad], "lr": rate}
            for model, rate in (
                (models.policy, settings.learning_rate),
                (models.value_model, settings.value_learning_rate),
            )
        ],
        weight_decay=0.0,
        eps=1e-6,
    )
    state = PpoState(
        policy=models.policy,
        value_model=models.value_model,
        optimizer=optimizer,
        scale=ScoreScale(),
        budget=KlBudget(settings.kl_budget),
        kl_coef=settings.kl_coef,
        rows_at_once=settings.micro_batch_size,
    )
    return PpoRun(
        settings=settings,
        seed=seed,
        encoder=models.encoder,
        reference=models.reference,
        prompts=prompts,
        texts=texts,
        score=score,
        reward_model=content_digest(reward_model_dir),
        monitor=monitor,
        keeper=keeper,
        state=state,
    )


def _train(
    run: PpoRun,
    output_dir: Path,
    progress: ProgressReporter,
    observer: IterationObserver | None,
) -> dict[str, float]:
    """Go on from the run's state to its end; returns the metrics of the weights it ends with."""
    settings, state = run.settings, run.state
    length_at_start = weights_length(state.policy)
    metrics: dict[str, float] = {}
    is_last = False
    if (kept := run.keeper.newest()) is not None:
        state.take_values(kept[1])
        for line in state.log:
            append_json_line(output_dir / "metrics.jsonl", line)
    with progress.stage("optimise the policy (PPO)", settings.num_iterations) as bar:
        bar.advance(state.iteration)
        while not is_last:
            started = time.monotonic()
            is_new = state.rollout is None
            if is_new:
                _begin_iteration(run)
            assert state.rollout is not None
            metrics = {"iteration": state.iteration + 1, **state.rollout.metrics}
            # What the last update made has written nothing yet: a budget is held against that too.
            is_last = state.iteration == settings.num_iterations
            if is_new and not state.budget.allows(state.policy, metrics):
                is_last = True
            if not is_last:
                metrics |= _learn(run)
                refuse_diverged(state.policy, length_at_start)
            metrics["seconds"] = time.monotonic() - started
            append_json_line(output_dir / "metrics.jsonl", metrics)
            state.log.append(metrics)
            if not is_last:
                _finish_iteration(run)
                kl, score = metrics["objective/kl"], metrics["objective/scores"]
                bar.advance(1, f"score {score:.2f}, KL {kl:.1f} nats")
                is_last = settings.kl_budget is None and state.iteration == settings.num_iterations
                if observer is not None:
                    is_last |= observer(
                        iteration=state.iteration, policy=state.policy, encoder=run.encoder
                    )
    return metrics if settings.kl_budget is None else state.budget.restore(state.policy)


def _begin_iteration(run: PpoRun) -> None:
    run.state.rollout = _roll_out(run)
    run.state.num_updates, run.state.totals = 0, {}


def _finish_iteration(run: PpoRun) -> None:
    settings, state = run.settings, run.state
    assert state.rollout is not None
    if settings.kl_controller == "adaptive" and not _only_values(run):
        state.kl_coef = adapted_kl_coef(
            state.kl_coef,
            state.rollout.metrics["objective/kl"],
            settings.batch_size,
            target=settings.kl_target,
            horizon=settings.kl_horizon,
        )
    state.iteration += 1
    state.rollout = None


def _only_values(run: PpoRun) -> bool:
    return run.state.iteration < run.settings.value_warmup_iterations


@torch.no_grad()
def _roll_out(run: PpoRun) -> Rollout:
    """Responses of the policy as it is, scored, with their advantages."""
    settings, state, device = run.settings, run.state, run.state.policy.device
    prompts = prompt_batch(run.prompts, settings.batch_size, run.seed, state.iteration)
    samples = generate(
        state.policy,
        run.encoder,
        prompts,
        temperature=settings.temperature,
        top_p=1.0,
        max_completion_length=settings.max_completion_length,
        seed=draw_seed(run.seed, "responses", state.iteration),
    )
    responses = [sample.response for sample in samples]
    batch = Conversation(
        *(t.to(device) for t in join_rows(run.encoder, prompts, [s.response_ids for s in samples]))
    )
    log_probs, reference_log_probs, values = state.within_memory(
        len(samples), lambda: _look_back(run, batch)
    )
    raw_scores = run.score(prompts, responses)
    finished = [sample.finished for sample in samples]
    scores = reward_responses(state.scale, raw_scores, finished, settings, of=run.reward_model)
    log_ratios = log_probs - reference_log_probs
    mask = batch.response_mask
    rewards = shape_rewards(scores.to(device), log_ratios, mask, state.kl_coef)
    estimate = estimate_advantages(rewards, values, mask, gamma=settings.gamma, lam=settings.lam)
    residual = (estimate.returns - values)[mask]
    spread = estimate.returns[mask].var(unbiased=False)
    metrics = {
        "objective/kl": log_ratios.sum(dim=1).mean().item(),
        "objective/kl_coef": state.kl_coef,
        "objective/scores": sum(raw_scores) / len(raw_scores),
        "objective/rlhf_reward": rewards.sum(dim=1).mean().item(),
        "objective/entropy": (-log_probs.sum() / mask.sum()).item(),
        "val/explained_variance": (1.0 - residual.var(unbiased=False) / (spread + 1e-8)).item(),
        "completions/mean_length": mask.sum(dim=1).float().mean().item(),
        "completions/finished_fraction": sum(finished) / len(finished),
    }
    if run.monitor is not None:
        metrics["objective/gold"] = sum(run.monitor(prompts, responses)) / len(responses)
    advantages = _prepared_advantages(estimate.advantages, mask, settings)
    return Rollout(batch, log_probs, values, advantages, estimate.returns, metrics)


def _look_back(run: PpoRun, batch: Conversation) -> tuple[Tensor, Tensor, Tensor]:
    """What policy, reference and value model say of each token of the responses."""
    rows = _micro_batches(run, torch.arange(len(batch.input_ids)))
    parts = [_rows_of(batch, own) for own in rows]
    ours, theirs = (
        torch.cat([response_log_probs(model, part, run.settings.temperature) for part in parts])
        for model in (run.state.policy, run.reference)
    )
    return ours, theirs, torch.cat([token_values(run.state.value_model, part) for part in parts])


def _prepared_advantages(advantages: Tensor, mask: Tensor, settings: OptimizeSettings) -> Tensor:
    if settings.normalize_advantages:
        advantages = whiten(advantages, mask)
    clip = settings.advantage_clip
    return advantages if clip is None else advantages.clamp(-clip, clip)


def _learn(run: PpoRun) -> dict[str, float]:
    """The iteration's optimiser steps that are still to be taken; means over all of them."""
    settings, state = run.settings, run.state
    factor = learning_rate_factor(state.iteration, settings)
    rates = (settings.learning_rate, settings.value_learning_rate)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    steps = _mini_batches(run)
    for rows in steps[state.num_updates :]:
        for name, value in _step(run, rows).items():
            state.totals[name] = state.totals.get(name, 0.0) + value
        state.num_updates += 1
        num_done = state.iteration * len(steps) + state.num_updates
        run.keeper.at_boundary(num_done, state.to_values)
    means = {name: total / len(steps) for name, total in state.totals.items()}
    return means | {"learning_rate": settings.learning_rate * factor}


def _mini_batches(run: PpoRun) -> list[Tensor]:
    """The rows of each of the iteration's optimiser steps: a function of seed and iteration."""
    settings, state = run.settings, run.state
    return [
        rows.to(state.policy.device)
        for epoch in range(settings.num_ppo_epochs)
        for rows in torch.randperm(
            settings.batch_size,
            generator=generator(run.seed, "mini-batches", state.iteration, epoch),
        ).chunk(settings.num_mini_batches)
    ]


def _rows_of(batch: Conversation, rows: Tensor) -> Conversation:
    return Conversation(*(tensor[rows] for tensor in batch))


def _micro_batches(run: PpoRun, rows: Tensor) -> tuple[Tensor, ...]:
    """The rows in parts that fit into memory."""
    return rows.split(run.state.rows_at_once or len(rows))


def _step(run: PpoRun, rows: Tensor) -> dict[str, float]:
    """One optimiser step on some rows of the roll-out."""
    state = run.state
    state.optimizer.zero_grad(set_to_none=True)
    metrics, total = state.within_memory(len(rows), lambda: _add_gradients(run, rows))
    norms = [
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.settings.max_grad_norm)
        for model in (state.policy, state.value_model)
    ]
    # A finite loss can have an infinite gradient; either would break the weights.
    if not all(math.isfinite(number) for number in (total, *map(float, norms))):
        kept = _write_bundle(run, rows)
        raise ModelError(f"the PPO loss or its gradient is not finite: {DIVERGED_REMEDY}{kept}")
    state.optimizer.step()
    return metrics


def _write_bundle(run: PpoRun, rows: Tensor) -> str:
    """Keep what a step that is not finite was made of; says where, where there is a place."""
    state = run.state
    if (folder := run.keeper.folder) is None or state.rollout is None:
        return ""
    path = folder / f"not_finite_{state.iteration + 1}_{state.num_updates + 1}.json"
    rollout = state.rollout
    numbers = {
        "old_log_probs": rollout.old_log_probs,
        "old_values": rollout.old_values,
        "advantages": rollout.advantages,
        "returns": rollout.returns,
    }
    document = {
        "what": "the PPO loss or its gradient is not finite",
        "seed": run.seed,
        "iteration": state.iteration + 1,
        "step": state.num_updates + 1,
        "versions": {"metarm": __version__, "torch": str(torch.__version__)},
        **{name: x.tolist() for name, x in _rows_of(rollout.batch, rows)._asdict().items()},
        # JSON has no NaN: as text.
        **{name: [list(map(str, row)) for row in x[rows].tolist()] for name, x in numbers.items()},
    }
    write_json(path, document)
    return f" What led to it is in {path}."


def _add_gradients(run: PpoRun, rows: Tensor) -> tuple[dict[str, float], float]:
    """The gradient of all that a step learns from; the losses, and PPO's own."""
    assert run.state.rollout is not None
    metrics, total = _add_gradient(run, run.state.rollout, rows)
    if run.texts and not _only_values(run):
        metrics["loss/ptx_avg"] = _add_text_gradient(run, len(rows))
    return metrics, total


def _add_gradient(run: PpoRun, rollout: Rollout, rows: Tensor) -> tuple[dict[str, float], float]:
    """Add the gradient of PPO's loss on some rows; returns its parts, and the loss itself."""
    num_tokens = rollout.batch.response_mask[rows].sum()
    metrics: dict[str, float] = {}
    total = 0.0
    for part in _micro_batches(run, rows):
        loss, parts = _losses(run, rollout, part)
        # Means over tokens: weighted by tokens, the parts add up to the mini-batch's own mean.
        share = rollout.batch.response_mask[part].sum() / num_tokens
        (loss * share).backward()
        total += (loss.detach() * share).item()
        for name, value in parts.items():
            metrics[name] = metrics.get(name, 0.0) + value * share.item()
    return metrics, total


def _losses(run: PpoRun, rollout: Rollout, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of some rows, a mean over their tokens, and its parts."""
    settings, state = run.settings, run.state
    batch = _rows_of(rollout.batch, rows)
    mask = batch.response_mask
    values = token_values(state.value_model, batch)
    value_loss = clipped_value_loss(
        values, rollout.old_values[rows], rollout.returns[rows], mask, settings.cliprange_value
    )
    metrics = {"loss/value_avg": value_loss.item()}
    loss = settings.vf_coef * value_loss
    if not _only_values(run):
        log_probs = response_log_probs(state.policy, batch, settings.temperature)
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


def _add_text_gradient(run: PpoRun, num_rows: int) -> float:
    """Add `ptx_coef` times the gradient of the language-model loss on a few texts; the loss.

    Source:
        PPO-ptx, Ouyang et al. 2203.02155, eq. 2; in one backward pass's `.grad`, so in one step.
    """
    settings, state = run.settings, run.state
    draws = generator(run.seed, "texts", state.iteration, state.num_updates)
    drawn = torch.randperm(len(run.texts), generator=draws)[: settings.ptx_batch_size or num_rows]
    rows = [run.texts[index] for index in drawn.tolist()]
    # The first token of a text is predicted by nothing.
    num_labels = sum(label >= 0 for row in rows for label in row["labels"][1:])
    total = 0.0
    for part in _micro_batches(run, torch.arange(len(rows))):
        batch = collate_texts([rows[index] for index in part.tolist()], run.encoder.pad_token_id)
        batch = {name: tensor.to(state.policy.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        loss = token_loss_sum(state.policy(**batch, use_cache=False).logits, labels) / num_labels
        (settings.ptx_coef * loss).backward()
        total += loss.item()
    return total
