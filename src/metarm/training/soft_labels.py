# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with a column `p`: how likely each pair's chosen side is the better one.

Verified on trl 1.16, transformers 5.23.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from trl import RewardTrainer

__all__ = ["ColumnCollator", "SoftLabelTrainer"]

LABEL: Final = "p"


class ColumnCollator:
    """Another collator, whose batch gains a column where the examples have it, shape (pairs,).

    Args:
        collate: The other.
        name: The column.
        dtype: Of its numbers.
    """

    def __init__(
        self,
        collate: Callable[[Any], dict[str, Any]],
        name: str,
        dtype: torch.dtype,
    ) -> None:
        self._collate, self._name, self._dtype = collate, name, dtype

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The other's batch, and the column."""
        batch = self._collate(examples)
        if self._name in examples[0]:
            values = [example[self._name] for example in examples]
            batch[self._name] = torch.tensor(values, dtype=self._dtype)
        return batch


class SoftLabelTrainer(RewardTrainer):
    """`RewardTrainer` that takes the loss against a soft label; without a column `p` it is TRL's.

    L = mean of -[ p * log sigmoid(d) + (1 - p) * log sigmoid(-d) ],  d = gap - margin

    TRL's loss is that at p = 1; as log sigmoid(-d) = log sigmoid(d) - d, the mean of (1 - p) * d
    is all that is added. It is `objectives.bradley_terry_loss` with `label=p`.

    Overrides, and why:
        `compute_loss`: the parent's, and that sum.
        `_set_signature_columns_if_needed`: columns that are not named there are dropped.
    """

    data_collator: Any
    _columns: tuple[str, ...] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.take_column(LABEL, torch.float)

    def take_column(self, name: str, dtype: torch.dtype) -> None:
        """Have a column of the examples in the batches, where there is one, shape (pairs,)."""
        self.data_collator = ColumnCollator(self.data_collator, name, dtype)
        self._columns = (*self._columns, name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [c for c in self._columns if c not in self._signature_columns]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The parent's, and (1 - p) * d."""
        # Not to the model: among a forward's arguments there may be a `p`.
        others = {name: value for name, value in inputs.items() if name != LABEL}
        loss, outputs = super().compute_loss(model, others, True, num_items_in_batch)
        if LABEL in inputs:
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            gap = chosen - rejected - inputs.get("margin", 0.0)
            loss = loss + ((1.0 - inputs[LABEL]) * gap).mean()
        return (loss, outputs) if return_outputs else loss
