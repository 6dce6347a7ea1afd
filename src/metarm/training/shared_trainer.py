# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` in which both sides of a pair compute what they begin with once.

Verified on trl 1.16, transformers 5.23.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from metarm.data.encoding import PaddedBatch
from metarm.data.meta_batches import MetaBatch
from metarm.models.shared_prompts import SharedPrompts, Work
from metarm.placement import sharded_modules
from metarm.training.regularised_trainer import RegularisedTrainer
from metarm.training.sharding import sharded_autocast

__all__ = ["SharedPromptTrainer"]

MEASURE_BATCH: Final = 64


class SharedPromptTrainer(RegularisedTrainer):
    """`RewardTrainer` with the settings of a `MetaRewardConfig`, of which it knows `share_prompts`.

    Scores and gradients are TRL's to 1e-6; with `share_prompts=False`, and where a model's prompts
    cannot be shared, bit for bit.

    Overrides, and why:
        `training_step`, `prediction_step`: the parent's, inside a block that shares prompts.
        `autocast_smart_context_manager`: that of a model whose weights are gathered in fp32.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Of a sharded model each process would run passes of its own, and wait for the others.
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        can_share = self.args.share_prompts and kind in ("NO", "MULTI_GPU", "MULTI_CPU")
        self._prompts = SharedPrompts(self.model) if can_share else None
        self._work: list[Work] = []

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
        """The parent's."""
        inputs = self._prepare_inputs(inputs)
        # As the parent does: whether dropout is on is looked at before.
        model.train()
        with self._sharing_pairs(inputs):
            loss: Tensor = super().training_step(model, inputs, *arguments, **options)
        if self.accelerator.sync_gradients:
            self._log_work()
        return loss

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """The parent's."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self._sharing_pairs(inputs):
            return super().prediction_step(model, inputs, *arguments, **options)

    def autocast_smart_context_manager(
        self, *arguments: Any, **options: Any
    ) -> AbstractContextManager[Any]:
        """The parent leaves autocast to accelerate, which leaves it to FSDP2."""
        return sharded_autocast(self.accelerator)

    @contextmanager
    def _sharing(
        self, input_ids: Tensor, attention_mask: Tensor, group_of_row: Sequence[int]
    ) -> Iterator[None]:
        """A block in which rows of a group compute what they begin with once, if that is asked."""
        if self._prompts is None:
            yield
            return
        with self._prompts.sharing(input_ids, attention_mask, group_of_row) as work:
            if torch.is_grad_enabled():
                self._work.append(work)
            yield

    @contextmanager
    def _sharing_pairs(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """The same for TRL's batch of pairs."""
        ids = inputs["input_ids"]
        with self._sharing(ids, inputs["attention_mask"], _pairs_of_rows(len(ids))):
            yield

    @torch.no_grad()
    def _score_pairs(self, inputs: Mapping[str, Any]) -> Tensor:
        """Scores of TRL's batch as training sees them, without a graph, shape (rows,), fp32."""
        model = self.accelerator.unwrap_model(self.model)
        with self._sharing_pairs(inputs), self.compute_loss_context_manager():
            logits: Tensor = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            ).logits
        return logits.squeeze(-1).float()

    @torch.no_grad()
    def _measure_scores(self, batch: PaddedBatch | MetaBatch) -> Tensor:
        """Scores at the weights as they are, without a graph or dropout, shape (rows,).

        Args:
            batch: Groups, or pairs as TRL lays them out.
        """
        device = self.accelerator.device
        model = self.accelerator.unwrap_model(self.model)
        # Without accelerate's autocast: bfloat16 would round a small change of the scores away.
        # Shards are gathered by calling the model itself, on which there is none of its.
        forward = model if sharded_modules(model) else getattr(model, "_original_forward", model)
        was_training = model.training
        # Dropout would be taken for a change of the rewards.
        model.eval()
        groups = (
            batch.group_of_row
            if isinstance(batch, MetaBatch)
            else _pairs_of_rows(len(batch.input_ids))
        )
        scores = torch.zeros(len(groups), device=device)
        together = torch.tensor(sorted(range(len(groups)), key=groups.__getitem__))
        for rows in together.split(MEASURE_BATCH):
            ids, mask = batch.input_ids[rows].to(device), batch.attention_mask[rows].to(device)
            with self._sharing(ids, mask, [groups[row] for row in rows.tolist()]):
                logits = forward(input_ids=ids, attention_mask=mask, use_cache=False).logits
            scores[rows.to(device)] = logits.squeeze(-1).float()
        model.train(was_training)
        return scores

    def _log_work(self) -> None:
        """How much of this optimiser step's passes was computed."""
        if computed := sum(work.computed for work in self._work):
            plain = sum(work.plain for work in self._work)
            padding = sum(work.padding for work in self._work)
            metrics = self._metrics["train"]
            metrics["tokens/computed_share"].append(computed / plain)
            metrics["tokens/padding_share"].append(padding / computed)
        self._work = []


def _pairs_of_rows(num_rows: int) -> list[int]:
    """Which pair each row of TRL's batch belongs to: chosen sides first, then rejected ones."""
    return [*range(num_rows // 2), *range(num_rows // 2)]
