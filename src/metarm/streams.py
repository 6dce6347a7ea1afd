# SPDX-License-Identifier: Apache-2.0
"""Random draws as functions of (seed, stream, step): work taken up again draws what it would have.

A generator that runs along must be saved with the work; a seed that is worked out from where the
work stands need not be, and no stream can shift another.
"""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["draw_seed", "generator"]


def draw_seed(seed: int, stream: str, *steps: int) -> int:
    """The seed of one draw: 63 bits of the SHA-256 of the arguments, in [0, 2^63).

    Args:
        seed: Of the whole piece of work.
        stream: What is drawn; streams of different names share nothing.
        steps: Where the work stands: iteration, pass, and so on.

    Example:
        >>> draw_seed(0, "order", 1) == draw_seed(0, "order", 1)
        True
        >>> len({draw_seed(0, "order", 1), draw_seed(0, "order", 2), draw_seed(0, "text", 1)})
        3
    """
    digest = hashlib.sha256(json.dumps([seed, stream, *steps]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: str, *steps: int) -> "torch.Generator":
    """A generator on the CPU, seeded by `draw_seed`; the global random state is left alone."""
    import torch

    return torch.Generator().manual_seed(draw_seed(seed, stream, *steps))
