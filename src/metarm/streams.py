# SPDX-License-Identifier: Apache-2.0
"""Random draws as functions of a seed, a stream's name and a step: nothing runs on between them.

So the random state of a piece of work is its step: a work that goes on cannot forget it.
"""

import hashlib
import json

import torch

__all__ = ["draw_seed", "generator"]


def draw_seed(seed: int, stream: str, *steps: int) -> int:
    """A seed of 63 bits for one draw: the same arguments, the same seed, on any machine.

    Args:
        seed: Of the run.
        stream: What is drawn: two streams share nothing.
        steps: Which draw of the stream: iteration, epoch, batch.

    Returns:
        In [0, 2^63), from SHA-256 of the JSON of the arguments.

    Example:
        >>> draw_seed(0, "order", 3) == draw_seed(0, "order", 3) != draw_seed(0, "order", 4)
        True
    """
    text = json.dumps([seed, stream, *steps])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, stream: str, *steps: int) -> torch.Generator:
    """A generator on the CPU that begins at `draw_seed`."""
    return torch.Generator().manual_seed(draw_seed(seed, stream, *steps))
