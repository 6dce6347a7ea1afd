# SPDX-License-Identifier: Apache-2.0
"""The `optimize` section: how the policy is moved; which optimiser has what, docs/optimizers.md."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from metarm.config_base import STRICT, Count, Fraction, NonNegative, Positive

__all__ = ["OptimizeSettings"]


class OptimizeSettings(BaseModel):
    """How the policy is moved. PPO defaults follow the paper where it names them."""

    model_config = STRICT

    algo: str = "ppo"
    """`ppo`, `rloo`, `grpo`, `best_of_n`, `dpo`, or `module:function` (see docs/optimizers.md)."""
    learning_rate: Positive = 5e-7
    """Peak of the policy's learning rate. Paper: 5e-7 (7B)."""
    value_learning_rate: Positive = 1.5e-6
    """Value model's learning rate. Paper: 1.5e-6 (7B)."""
    lr_scheduler_type: Literal["constant", "linear", "inverse_sqrt"] = "constant"
    """What becomes of both rates after their rise."""
    warmup_fraction: Fraction = 0.0
    """Share of iterations (dpo: of steps) with rising learning rates."""
    num_iterations: Count = 200
    """Batches of fresh responses."""
    batch_size: Count = 128
    """Responses per iteration."""
    num_mini_batches: Count = 2
    """Optimiser steps per pass over an iteration's responses."""
    micro_batch_size: Count | None = None
    """Responses per forward and backward pass: less memory, same result; None: a mini-batch's."""
    num_ppo_epochs: Count = 2
    """Passes over an iteration's responses."""
    kl_coef: NonNegative = 0.05
    """Weight of the per-token KL to the SFT policy. Paper: 0.05."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """ppo: `adaptive` moves the weight of KL towards `kl_target`."""
    kl_target: Positive = 6.0
    """`adaptive`: KL to SFT that is aimed at, in nats a response."""
    kl_horizon: Count = 10_000
    """`adaptive`: responses over which the weight may change by a fifth."""
    kl_budget: Positive | None = None
    """Stop beyond this KL to SFT, in nats a response; the last weights within it are kept."""
    cliprange: Positive = 0.2
    """Clip of the probability ratio."""
    cliprange_value: Positive = 0.2
    """Clip of the change of a value."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss, where policy and value share an optimiser step."""
    gamma: Fraction = 1.0
    """Discount per token."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    normalize_scores: bool = True
    """Scores in standard deviations of all that this reward model has given."""
    reward_clip: Positive | None = 5.0
    """Clip of the score, in standard deviations where it is normalised; None: none."""
    normalize_advantages: bool = True
    """ppo, rloo: advantages of a batch get mean 0 and variance 1."""
    advantage_clip: Positive | None = None
    """ppo: clip of the advantages, after that; None: none."""
    missing_eos_penalty: NonNegative = 1.0
    """Taken off the normalised score of a response that did not end by itself."""
    ptx_coef: NonNegative = 0.0
    """ppo: weight of the language-model loss on texts, in the same optimiser step (PPO-ptx)."""
    ptx_texts: str | None = None
    """ppo: file of those texts, plain lines or demonstrations; None: those of the SFT policy."""
    ptx_batch_size: Count | None = None
    """ppo: texts per optimiser step; None: as many as responses."""
    max_grad_norm: Positive = 1.0
    """Clip of the gradient's norm."""
    value_warmup_iterations: int = Field(default=2, ge=0)
    """Iterations in which only the value model learns."""
    temperature: Positive = 1.0
    """Sampling temperature of the rollouts; log-probabilities are taken under it too."""
    max_completion_length: Count = 64
    """Longest response, in tokens."""
    use_peft: bool = False
    """Train LoRA adapters (ppo: of policy and value model); what is saved has them merged in."""
    lora_r: Count = 16
    """Rank of the adapters."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """rloo, grpo: responses per prompt, which are each other's baseline."""
    num_candidates: Annotated[int, Field(ge=2)] = 16
    """Best-of-n: responses drawn per prompt, of which the best is kept."""
    dpo_beta: Positive = 0.1
    """dpo: weight of the implicit KL to the SFT policy."""
    dpo_epochs: Count = 1
    """dpo: passes over the original pairs; the policy is measured after each."""
    dpo_batch_size: Count = 32
    """dpo: pairs per optimiser step."""

    @model_validator(mode="after")
    def _whole_groups(self) -> "OptimizeSettings":
        """TRL cuts a batch into whole groups, and each pass into steps of one size."""
        size = self.batch_size
        if self.algo not in ("rloo", "grpo"):
            return self
        if size % self.num_generations:
            raise ValueError(
                f"batch_size ({size}) must be a multiple of num_generations "
                f"({self.num_generations}): {self.algo} compares whole groups"
            )
        if size % self.num_mini_batches:
            raise ValueError(
                f"batch_size ({size}) must be a multiple of num_mini_batches "
                f"({self.num_mini_batches}) in {self.algo}"
            )
        step = size // self.num_mini_batches
        if step % (self.micro_batch_size or step):
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must divide the mini-batch of {step} "
                f"responses in {self.algo}"
            )
        return self
