# SPDX-License-Identifier: Apache-2.0
"""Wrong tokens: ten a minute by one address, and nobody else waits for it."""

import pytest

from metarm.labelling.attempts import MOST_ADDRESSES, MOST_FAILURES, Attempts
from metarm.serving.refusals import RefusedError


def test_an_address_waits_and_others_do_not() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(MOST_FAILURES):
        attempts.check("a")
        attempts.fail("a")
        now[0] += 1
    with pytest.raises(RefusedError) as refused:
        attempts.check("a")
    assert refused.value.status == 429
    assert refused.value.retry_seconds == 50
    attempts.check("b")
    now[0] += 50
    attempts.check("a")


def test_memory_is_bounded() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(MOST_ADDRESSES + 50):
        attempts.fail(str(number))
    assert len(attempts._failures) == MOST_ADDRESSES
