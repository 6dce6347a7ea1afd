# SPDX-License-Identifier: Apache-2.0
"""Threads of a run's process; what the rounds do is in the integration tests."""

import gc
import os

import pytest
import torch

from metarm import rlhf_loop
from metarm.config import RunSettings


@pytest.fixture
def threads(monkeypatch):
    """The threads that given settings lead to, on a machine of eight cores."""
    before = torch.get_num_threads()

    def ask(**settings) -> int:
        torch.set_num_threads(3)
        values = {"output_dir": "run", "world": {}} | settings
        rlhf_loop._set_threads(RunSettings.model_validate(values))
        return torch.get_num_threads()

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    yield ask
    torch.set_num_threads(before)


def test_workers_share_the_cores(threads) -> None:
    assert threads() == 8
    assert threads(workers=2, seeds=[0, 1, 2]) == 4
    assert threads(workers=4, seeds=[0, 1]) == 4, "no more workers than seeds"
    assert threads(workers=20, seeds=list(range(20))) == 1
    assert threads(threads=5, workers=2, seeds=[0, 1]) == 5


def test_what_the_user_said_elsewhere_holds(threads, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    assert threads(threads=2) == 2


def test_garbage_is_collected_and_old_objects_are_let_go() -> None:
    class Model:
        pass

    def alive() -> int:
        return sum(isinstance(thing, Model) for thing in gc.get_objects())

    with rlhf_loop._cheap_collection():
        assert gc.get_freeze_count() > 0
        model = Model()
        model.itself = model
        del model
        assert alive() == 1
        gc.collect()
        assert alive() == 0
    assert gc.get_freeze_count() == 0
