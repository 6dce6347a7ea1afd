# SPDX-License-Identifier: Apache-2.0
"""Kept states: those of an unbroken reading bit for bit, and no batch is read twice."""

from pathlib import Path

import numpy as np
import pytest

from metarm.chunk_log import ChunkLog
from metarm.models.ensemble import EnsembleScore
from metarm.models.head_states import head_states
from metarm.models.kept_states import KeptStates
from metarm.models.reward_model import RewardModelScore, load_score_function
from tiny_models import WORDS, save_encoder_model, save_reward_model

PROMPTS = ["a b", "f", "a b", "c", "d d d", "e", "b"] * 3
RESPONSES = [" ".join(["", *WORDS[: 1 + place % 6]]) * (1 + place % 3) for place in range(21)]


class Stop(BaseException):
    """The end of a process."""


class Ending:
    """A bar at which the process ends after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


@pytest.fixture(scope="module", params=["llama", "bert", "ensemble", "double"])
def score(request, tmp_path_factory) -> RewardModelScore | EnsembleScore:
    folder = tmp_path_factory.mktemp("kept")
    llama = load_score_function(save_reward_model(folder / "llama"), batch_size=4)
    if request.param == "ensemble":
        other = load_score_function(save_reward_model(folder / "other", seed=1), batch_size=4)
        return EnsembleScore([llama, other], [0.0, 0.0], [1.0, 1.0])
    if request.param == "bert":
        return load_score_function(save_encoder_model(folder / "bert", "bert"), batch_size=4)
    if request.param == "double":
        llama.model.double()
    return llama


def count_passes(score: RewardModelScore | EnsembleScore) -> list[int]:
    """Grows by one for each batch that a model reads."""
    passes: list[int] = []
    for member in getattr(score, "members", (score,)):
        member.model.register_forward_hook(lambda *_: passes.append(1))
    return passes


def test_a_broken_reading_goes_on(score, tmp_path: Path) -> None:
    path = tmp_path / "states.log"
    unbroken = head_states(score, PROMPTS, RESPONSES)
    total = 6 * len(getattr(score, "members", (score,)))
    for ended in (1, 3):
        with pytest.raises(Stop):
            head_states(
                score, PROMPTS, RESPONSES, Ending(ended), KeptStates(ChunkLog(path), "model")
            )
    # A part that was being written when the power went.
    whole = path.read_bytes()
    assert whole.count(b"\n") == 3
    path.write_bytes(whole[:-20])
    passes = count_passes(score)
    found = head_states(score, PROMPTS, RESPONSES, kept=KeptStates(ChunkLog(path), "model"))
    np.testing.assert_array_equal(found.states, unbroken.states)
    np.testing.assert_array_equal(found.scores, unbroken.scores)
    assert len(passes) == total - 2
    again = head_states(score, PROMPTS, RESPONSES, kept=KeptStates(ChunkLog(path), "model"))
    np.testing.assert_array_equal(again.states, unbroken.states)
    assert len(passes) == total - 2
    # Nothing of one model is taken for another's.
    head_states(score, PROMPTS, RESPONSES, kept=KeptStates(ChunkLog(path), "other"))
    assert len(passes) == 2 * total - 2


def test_states_of_float32_take_four_bytes_and_others_eight(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    double = draw.standard_normal((3, 5))
    single = double.astype(np.float32).astype(np.float64)
    for name, states in (("single", single), ("double", double)):
        kept = KeptStates(ChunkLog(tmp_path / name), "model")
        kept.put([[1, 2], [3]], states)
        found = KeptStates(ChunkLog(tmp_path / name), "model").get([[1, 2], [3]])
        np.testing.assert_array_equal(found, states)
        assert found.dtype == np.float64
        assert kept.get([[1], [2, 3]]) is None
    sizes = [(tmp_path / name).stat().st_size for name in ("single", "double")]
    assert sizes[1] - sizes[0] == pytest.approx(3 * 5 * 4 * 4 / 3, abs=4)
