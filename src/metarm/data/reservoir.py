# SPDX-License-Identifier: Apache-2.0
"""A reservoir: a fixed number of all groups of past rounds, each as likely to be in it."""

import heapq
from collections.abc import Iterable

from metarm.schema import ResponseGroup
from metarm.storage import fingerprint

__all__ = ["keep_reservoir"]


def keep_reservoir(groups: Iterable[ResponseGroup], size: int, *, seed: int) -> list[ResponseGroup]:
    """A uniform sample of `size` groups, or all where there are no more.

    A group's place is a hash of the seed, its source and its text; the lowest are kept. So the
    order in which groups come does not matter, nothing has to be remembered between rounds, and
    what one round keeps of the rounds before is all that a later round can keep of them.

    Args:
        groups: Of all past rounds, each with its source.
        size: How many to keep; 0 keeps none.
        seed: Another seed, another sample.

    Returns:
        The kept groups, by their place.

    Source:
        Bottom-k sampling (Cohen & Kaplan 2007): the distribution of Vitter's algorithm R (1985),
        which keeps a state instead.
    """
    return heapq.nsmallest(size, groups, key=lambda group: fingerprint(seed, group.to_json()))
