# SPDX-License-Identifier: Apache-2.0
"""Watching a trainer of TRL's from outside: what its policy writes, its log, and when it ends."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

from metarm.config_optimize import OptimizeSettings
from metarm.data.encoding import Encoder
from metarm.errors import ModelError
from metarm.policy.batch_metrics import measure_batch
from metarm.policy.control import DIVERGED_REMEDY, KlBudget, refuse_diverged, weights_length
from metarm.policy.prompt_order import prompt_batch
from metarm.policy.sampling import generate
from metarm.policy.score_scale import ScoreScale
from metarm.protocols import ScoreFunction, StageProgress
from metarm.schema import Prompt
from metarm.storage import append_json_line
from metarm.streams import draw_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["IterationKeeper", "Keeper", "PassKeeper", "Watch"]

OUR_NAMES: Final = {
    "loss": "loss/policy_avg",
    "clip_ratio/region_mean": "policy/clipfrac_avg",
    "rewards/accuracies": "rewards/accuracies",
    "rewards/margins": "rewards/margins",
    "learning_rate": "learning_rate",
}
"""What TRL logs, and what it is called here."""


@dataclass(eq=False)
class Watch:
    """A policy that TRL trains, and what is seen of each batch that it writes."""

    settings: OptimizeSettings
    seed: int
    encoder: Encoder
    policy: "PreTrainedModel"
    reference: "PreTrainedModel"
    prompts: Sequence[Prompt]
    score: ScoreFunction
    reward_model: str
    monitor: ScoreFunction | None
    log: Path
    uses_cache: bool
    """What the policy's own configuration says of generating with a cache."""
    scale: ScoreScale = field(default_factory=ScoreScale)
    budget: KlBudget = field(default_factory=lambda: KlBudget(None))
    iteration: int = 0
    """Iterations that are over."""
    row: dict[str, float] = field(default_factory=dict)
    """What is known of the iteration that runs."""
    is_beyond: bool = False
    """Whether the last batch was written beyond the KL budget."""
    lines: list[dict[str, float]] = field(default_factory=list)
    """Of the log so far: the file is made anew by an optimisation that goes on."""
    started: float = field(default_factory=time.monotonic)

    def to_values(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as tensors and plain values."""
        return {
            "scale": self.scale.to_json(),
            "budget": {"kept": self.budget.kept, "metrics": self.budget.metrics},
            "iteration": self.iteration,
            "row": self.row,
            "is_beyond": self.is_beyond,
            "lines": self.lines,
        }

    def take_values(self, values: Mapping[str, Any]) -> None:
        """The reverse.

        Writes:
            The lines of the log so far.
        """
        self.scale = ScoreScale.from_json(values["scale"])
        self.budget.kept = dict(values["budget"]["kept"])
        self.budget.metrics = dict(values["budget"]["metrics"])
        for name in ("iteration", "row", "is_beyond", "lines"):
            setattr(self, name, values[name])
        for line in self.lines:
            append_json_line(self.log, line)
        self.started = time.monotonic()

    def see(
        self,
        prompts: Sequence[Prompt],
        response_ids: Sequence[Sequence[int]],
        finished: Sequence[bool],
        responses: Sequence[str],
    ) -> list[float]:
        """Measure a batch that the policy has just written; its raw scores."""
        settings = self.settings
        measured = measure_batch(
            self.policy,
            self.reference,
            self.encoder,
            prompts,
            response_ids,
            finished,
            temperature=settings.temperature,
            rows_at_once=settings.micro_batch_size or len(prompts),
        )
        scores = self.score(prompts, responses)
        self.row = {
            "iteration": self.iteration + 1,
            **measured,
            "objective/scores": sum(scores) / len(scores),
        }
        if self.monitor is not None:
            gold = self.monitor(prompts, responses)
            self.row["objective/gold"] = sum(gold) / len(gold)
        return scores

    def check_budget(self) -> None:
        """Keep the policy that wrote the batch, or say that it is beyond its budget."""
        self.is_beyond = not self.budget.allows(self.policy, self.row)

    def write(self, seen: Mapping[str, float]) -> dict[str, float]:
        """End the iteration: its line of the log, with what TRL has logged of it."""
        row = self.row | {
            ours: seen[theirs] for theirs, ours in OUR_NAMES.items() if theirs in seen
        }
        now = time.monotonic()
        self.row = row | {"seconds": now - self.started}
        self.started = now
        append_json_line(self.log, self.row)
        self.lines.append(self.row)
        self.iteration += 1
        return self.row

    def draw_and_see(self) -> None:
        """Have the policy write a batch outside of TRL, and measure it."""
        settings = self.settings
        prompts = prompt_batch(self.prompts, settings.batch_size, self.seed, self.iteration)
        was_training = self.policy.training
        self.policy.eval()
        samples = generate(
            self.policy,
            self.encoder,
            prompts,
            temperature=settings.temperature,
            top_p=1.0,
            max_completion_length=settings.max_completion_length,
            seed=draw_seed(self.seed, "responses", self.iteration),
        )
        self.see(
            prompts,
            [sample.response_ids for sample in samples],
            [sample.finished for sample in samples],
            [sample.response for sample in samples],
        )
        self.policy.train(was_training)

    def finish(self, *, is_measured: bool) -> dict[str, float]:
        """What was measured of the weights that are kept, which are put back.

        Args:
            is_measured: Whether the last batch was written after the last update.
        """
        if self.budget.limit is None:
            return self.row
        if not self.is_beyond and not is_measured:
            # What the last update made has written nothing yet: it is measured before it is kept.
            self.draw_and_see()
            self.check_budget()
            self.write({})
        return self.budget.restore(self.policy)


class Keeper(TrainerCallback):
    """Ends TRL's training where it diverges or leaves its KL budget."""

    measures_after_updates = False
    """Whether batches are written after an iteration's updates, or before."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.length_at_start = weights_length(watch.policy)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """An optimiser step is over."""
        refuse_diverged(self.watch.policy, self.length_at_start)
        control.should_training_stop |= self.watch.is_beyond

    def refuse_broken(self, logs: Mapping[str, float]) -> None:
        """Refuse a loss or a gradient that is not finite."""
        if not all(math.isfinite(logs[name]) for name in ("loss", "grad_norm") if name in logs):
            raise ModelError(f"the loss or its gradient is not finite: {DIVERGED_REMEDY}")


class IterationKeeper(Keeper):
    """The same of an optimiser that writes a batch of responses each iteration."""

    def __init__(self, watch: Watch, bar: StageProgress) -> None:
        super().__init__(watch)
        self.bar = bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """One that goes on has some iterations behind it."""
        settings = self.watch.settings
        self.bar.advance(state.global_step // (settings.num_mini_batches * settings.num_ppo_epochs))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
        """The iteration's steps are over."""
        if "loss" not in logs or self.watch.is_beyond:
            return
        self.refuse_broken(logs)
        row = self.watch.write(logs)
        self.bar.advance(
            1, f"score {row['objective/scores']:.2f}, KL {row['objective/kl']:.1f} nats"
        )


class PassKeeper(Keeper):
    """The same of DPO, which writes nothing: its policy is measured after each pass over pairs."""

    measures_after_updates = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A budget needs weights that are within it: those that training begins from."""
        # A training that goes on gets what it has kept.
        if self.watch.budget.limit is not None and not state.global_step:
            self.watch.draw_and_see()
            self.watch.check_budget()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
        """A pass is over."""
        if "loss" not in logs:
            return
        self.refuse_broken(logs)
        self.watch.draw_and_see()
        self.watch.check_budget()
        self.watch.write(logs)
        control.should_training_stop |= self.watch.is_beyond
