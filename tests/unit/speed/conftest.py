# SPDX-License-Identifier: Apache-2.0
"""Batches of a few tokens share their prompts as large ones do."""

import pytest

from metarm.models import shared_prompts


@pytest.fixture(autouse=True)
def no_batch_is_too_small(monkeypatch) -> None:
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 0)
