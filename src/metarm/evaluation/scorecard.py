# SPDX-License-Identifier: Apache-2.0
"""All metrics of a reward model on preference pairs, and of an arm after a round."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarm.chunk_log import ChunkLog
from metarm.config import EvaluationSettings
from metarm.config_optimize import OptimizeSettings
from metarm.data.encoding import Encoder
from metarm.errors import DataError
from metarm.evaluation.kept_scores import KeptScores
from metarm.metrics import (
    accuracy_estimate,
    gap_histogram,
    kl_estimate,
    length_balanced_accuracy,
    mean_estimate,
    mean_group_spearman,
    pair_accuracy,
    win_tie_lose,
    within_group_gaps,
)
from metarm.models.loading import load_causal_lm
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.policy.sampling import (
    Conversation,
    Sample,
    SampledPolicy,
    join_rows,
    response_log_probs,
)
from metarm.protocols import ProgressReporter, ScoreFunction, StageProgress
from metarm.schema import Estimate, PreferencePair, Prompt, ResponseGroup, Scorecard, prompt_text

__all__ = [
    "PolicySamples",
    "ScoreFunctions",
    "evaluate_round",
    "sample_for_evaluation",
    "score_groups",
]

Scores = NDArray[np.float64]
TINY_SPREAD = 1e-12


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """A policy's responses to the evaluation prompts, k each, and how far it is from SFT."""

    groups: tuple[ResponseGroup, ...]
    kl_nats: Estimate
    response_tokens: float
    finished_fraction: float


@dataclass(frozen=True, slots=True)
class ScoreFunctions:
    """Who scores in an evaluation."""

    reward: ScoreFunction
    """The arm's reward model after the round's training."""
    first: ScoreFunction
    """The first reward model: plain, original pairs only."""
    gold: ScoreFunction | None
    """The true reward, where one is known."""

    def kept_in(self, log: ChunkLog, bar: StageProgress) -> "ScoreFunctions":
        """The same, each asked once for what it has to score, whatever ends the process.

        Args:
            log: Of this evaluation alone.
            bar: Advances by what the reward models need not score again.
        """
        return ScoreFunctions(
            reward=KeptScores("reward", self.reward, log, bar),
            first=KeptScores("first", self.first, log, bar),
            gold=None if self.gold is None else KeptScores("gold", self.gold, log),
        )


def score_groups(score: ScoreFunction, groups: Sequence[ResponseGroup]) -> Scores:
    """Scores of groups of equal size, shape (groups, k).

    Raises:
        DataError: When there are no groups, or of different sizes.
    """
    sizes = sorted({len(group.responses) for group in groups})
    if len(sizes) != 1:
        raise DataError(
            f"expected groups of one size, got sizes {sizes}: the same number of responses to "
            "every prompt is compared"
        )
    prompts = [group.prompt for group in groups for _ in group.responses]
    responses = [response for group in groups for response in group.responses]
    return np.array(score(prompts, responses), dtype=np.float64).reshape(len(groups), -1)


def sample_for_evaluation(
    policy_dir: Path,
    reference_dir: Path,
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
    optimize: OptimizeSettings,
    *,
    batch_size: int,
    seed: int,
    progress: ProgressReporter,
    log: ChunkLog | None = None,
) -> PolicySamples:
    """Responses under the distribution that was optimised, and their KL to the reference.

    With a log each batch is kept as it comes, and one that is kept is not done again.
    """
    sampled = SampledPolicy(policy_dir)
    total = sampled.num_responses(len(prompts), settings.num_generations)
    with progress.stage("evaluate: sample responses", total) as bar:
        samples = sampled.sample(
            prompts,
            num_generations=settings.num_generations,
            temperature=optimize.temperature,
            top_p=1.0,
            max_completion_length=optimize.max_completion_length,
            batch_size=batch_size,
            seed=seed,
            bar=bar,
            log=log,
        )
    analytic = sampled.kl_of_best_of_n()
    if analytic is None:
        with progress.stage("evaluate: measure KL", len(prompts) * settings.num_generations) as bar:
            kl = _measure_kl(
                sampled, reference_dir, prompts, samples, optimize.temperature, batch_size, bar, log
            )
    else:
        kl = Estimate(analytic, analytic, analytic, len(prompts))
    flat = [sample for group in samples for sample in group]
    return PolicySamples(
        groups=tuple(
            ResponseGroup(
                prompt,
                tuple(sample.response for sample in group),
                tuple(sample.finished for sample in group),
            )
            for prompt, group in zip(prompts, samples, strict=True)
        ),
        kl_nats=kl,
        response_tokens=float(np.mean([len(sample.response_ids) for sample in flat])),
        finished_fraction=float(np.mean([sample.finished for sample in flat])),
    )


@torch.no_grad()
def _measure_kl(
    sampled: SampledPolicy,
    reference_dir: Path,
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Sample]],
    temperature: float,
    batch_size: int,
    bar: StageProgress,
    log: ChunkLog | None,
) -> Estimate:
    reference = load_causal_lm(reference_dir)
    rows = [
        (index, prompt, sample)
        for index, (prompt, group) in enumerate(zip(prompts, samples, strict=True))
        for sample in group
    ]
    log_ratios: list[float] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        found = None if log is None else log.get(f"kl {start}")
        if found is None:
            batch = _joined(sampled.encoder, [p for _, p, _ in part], [s for _, _, s in part])
            batch = Conversation(*(tensor.to(sampled.model.device) for tensor in batch))
            ours = response_log_probs(sampled.model, batch, temperature)
            theirs = response_log_probs(reference, batch, temperature)
            found = (ours - theirs).sum(dim=1).tolist()
            if log is not None:
                log.put(f"kl {start}", found)
        log_ratios += found
        bar.advance(len(part))
    return kl_estimate(log_ratios, [index for index, _, _ in rows])


def _joined(encoder: Encoder, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> Conversation:
    return join_rows(encoder, prompts, [sample.response_ids for sample in samples])


def evaluate_round(
    *,
    arm: str,
    seed: int,
    round_number: int,
    samples: PolicySamples,
    sft_groups: Sequence[ResponseGroup],
    previous_groups: Sequence[ResponseGroup] | None,
    test_pairs: Sequence[PreferencePair],
    scores: ScoreFunctions,
    settings: EvaluationSettings,
    seconds_before: float,
) -> tuple[Scorecard, list[dict[str, Any]]]:
    """The scorecard of an arm after a round, and the rows of `samples.jsonl`.

    Args:
        arm: Its name.
        seed: The run's seed.
        round_number: 0 for SFT.
        samples: Of the policy that ended the round.
        sft_groups: SFT's responses to the same prompts.
        previous_groups: Those of the policy that began the round; None for SFT.
        test_pairs: Held-out original pairs.
        scores: Reward model, first reward model, gold.
        settings: Tie margin.
        seconds_before: What the round's other stages took.
    """
    started = time.monotonic()
    groups = samples.groups
    proxy, first = score_groups(scores.reward, groups), score_groups(scores.first, groups)
    sft_proxy = score_groups(scores.reward, sft_groups)
    gold = sft_gold = None
    if scores.gold is not None:
        gold, sft_gold = score_groups(scores.gold, groups), score_groups(scores.gold, sft_groups)
    sft_unit = max(float(sft_proxy.std()), TINY_SPREAD)
    reference_spread = float(within_group_gaps(sft_proxy).std())
    gaps = within_group_gaps(proxy)
    prompt_ids = np.repeat(np.arange(len(groups)), proxy.shape[1])
    wins = None
    if gold is not None and sft_gold is not None:
        wins = win_tie_lose(gold[:, 0], sft_gold[:, 0], settings.tie_margin)
    before = None
    if previous_groups is not None and scores.gold is not None:
        before = _gold_accuracy(
            score_groups(scores.reward, previous_groups),
            score_groups(scores.gold, previous_groups),
        )
    card = Scorecard(
        arm=arm,
        seed=seed,
        round=round_number,
        accuracy_original=evaluate_preferences(scores.reward, test_pairs).accuracy
        if test_pairs
        else None,
        accuracy_before=before,
        accuracy_shifted=None if gold is None else _gold_accuracy(proxy, gold),
        accuracy_shifted_length_balanced=None
        if gold is None
        else _balanced_accuracy(proxy, gold, groups),
        accuracy_first=None if gold is None else _gold_accuracy(first, gold),
        gap_spread=float(gaps.std()),
        gap_spread_reference=reference_spread,
        gap_histogram=gap_histogram(gaps, max(reference_spread, TINY_SPREAD)),
        rank_correlation_plain=mean_group_spearman(proxy, first),
        kl_nats=samples.kl_nats,
        proxy_score=mean_estimate((proxy.ravel() - sft_proxy.mean()) / sft_unit, prompt_ids),
        gold_score=None if gold is None else mean_estimate(gold.ravel(), prompt_ids),
        win_fraction=wins.win if wins else None,
        tie_fraction=wins.tie if wins else None,
        lose_fraction=wins.lose if wins else None,
        response_tokens=samples.response_tokens,
        finished_fraction=samples.finished_fraction,
        seconds=seconds_before + time.monotonic() - started,
    )
    rows = [
        {
            "prompt": prompt_text(group.prompt),
            "response": group.responses[0],
            "sft_response": sft.responses[0],
            "gold": None if gold is None else float(gold[index, 0]),
            "sft_gold": None if sft_gold is None else float(sft_gold[index, 0]),
            "score": float(proxy[index, 0]),
            "sft_score": float(sft_proxy[index, 0]),
        }
        for index, (group, sft) in enumerate(zip(groups, sft_groups, strict=True))
    ]
    return card, rows


def _pair_columns(scores: Scores, gold: Scores) -> tuple[NDArray[np.bool_], Scores, Scores]:
    """Which (group, i<j) pairs gold tells apart, and both sides' gaps, shape (groups, pairs)."""
    first, second = np.triu_indices(scores.shape[1], k=1)
    gold_gaps = gold[:, first] - gold[:, second]
    return gold_gaps != 0, scores[:, first] - scores[:, second], gold_gaps


def _gold_accuracy(scores: Scores, gold: Scores) -> Estimate | None:
    told, gaps, gold_gaps = _pair_columns(scores, gold)
    if not told.any():
        return None
    clusters = np.nonzero(told)[0]
    return accuracy_estimate(pair_accuracy(gaps[told], gold_gaps[told]), clusters)


def _balanced_accuracy(
    scores: Scores, gold: Scores, groups: Sequence[ResponseGroup]
) -> float | None:
    told, gaps, gold_gaps = _pair_columns(scores, gold)
    if not told.any():
        return None
    first, second = np.triu_indices(scores.shape[1], k=1)
    lengths = np.array([[len(response) for response in group.responses] for group in groups])
    better = np.where(gold_gaps > 0, lengths[:, first], lengths[:, second])[told]
    worse = np.where(gold_gaps > 0, lengths[:, second], lengths[:, first])[told]
    return length_balanced_accuracy(pair_accuracy(gaps[told], gold_gaps[told]), better, worse)
