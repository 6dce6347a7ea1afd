# SPDX-License-Identifier: Apache-2.0
"""States that are kept as they are read: what was read before a process ended is not again."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metarm.chunk_log import ChunkLog
from metarm.storage import fingerprint

__all__ = ["KeptStates"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KeptStates:
    """States of one model by the batch that they were read in.

    A whole batch is kept and not its rows: states are those of the very batches that an unbroken
    process would have read, bit for bit.
    """

    log: ChunkLog
    model: str
    """Stands for the model's bytes."""

    def of_member(self, number: int) -> "KeptStates":
        """Those of one member of an ensemble."""
        return replace(self, model=f"{self.model} member {number}")

    def get(self, rows: Sequence[Sequence[int]]) -> Floats | None:
        """The states of a batch of token ids, shape (rows, size); None where they are not read."""
        part = self.log.get(self._key(rows))
        if part is None:
            return None
        found = np.frombuffer(base64.b64decode(part["data"]), part["dtype"])
        return found.reshape(part["shape"]).astype(np.float64)

    def put(self, rows: Sequence[Sequence[int]], states: Floats) -> None:
        """Keep the states of a batch: in float32 where that says all, as of most models."""
        short = states.astype(np.float32)
        kept = short if np.array_equal(short, states, equal_nan=True) else states
        data = base64.b64encode(np.ascontiguousarray(kept).tobytes()).decode()
        part = {"dtype": kept.dtype.str, "shape": list(kept.shape), "data": data}
        self.log.put(self._key(rows), part)

    def _key(self, rows: Sequence[Sequence[int]]) -> str:
        return fingerprint("states", self.model, [list(row) for row in rows])
