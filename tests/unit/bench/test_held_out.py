# SPDX-License-Identifier: Apache-2.0
"""How scores order held-out pairs, prompt by prompt, against counting by hand."""

import random

import pytest
import torch

from metarm.bench.held_out import PairRows
from metarm.bench.results import clustered_difference
from metarm.bench.summary import change_in_points
from metarm.bench.trajectory import Cost, Trajectory
from metarm.metrics import length_balanced_accuracy
from metarm.schema import PreferencePair


def test_it_counts_as_a_hand_does() -> None:
    draw = random.Random(0)
    pairs = [
        PreferencePair(f"p{draw.randrange(4)}", f"c{n}" + "x" * draw.randrange(9), f"r{n} yyyy")
        for n in range(30)
    ]
    texts = sorted({(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)})
    place = {text: row for row, text in enumerate(texts)}
    draws = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (len(texts),), generator=draws).float()
    score = {text: scores[row].item() for text, row in place.items()}
    right: dict[str, list[float]] = {}
    flat = []
    for pair in pairs:
        gap = score[pair.prompt, pair.chosen] - score[pair.prompt, pair.rejected]
        flat.append(0.5 if gap == 0 else float(gap > 0))
        right.setdefault(str(pair.prompt), []).append(flat[-1])
    held_out = PairRows.of(pairs, place)
    tally = held_out.tally(scores)
    assert len(set(tally.prompts)) == 4
    assert tally.counts == tuple(len(values) for values in right.values())
    assert tally.correct == tuple(sum(values) for values in right.values())
    lengths = [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs]
    expected = length_balanced_accuracy(flat, *lengths)
    assert held_out.length_balanced(scores) == pytest.approx(expected)


def test_of_one_prompt_there_is_no_interval() -> None:
    pairs = [PreferencePair("p", "a", "b"), PreferencePair("p", "c", "d")]
    place = {("p", side): row for row, side in enumerate("abcd")}
    held_out = PairRows.of(pairs, place)
    ours, plain = held_out.tally(torch.tensor([1.0, 0, 1, 0])), held_out.tally(torch.zeros(4))
    change = clustered_difference([ours], [plain])
    assert change_in_points(change) == "+50.0"


def test_a_trajectory_survives_the_disk(tmp_path) -> None:
    scores = torch.randn(2, 5)
    scores[:, 3] = torch.nan
    found = Trajectory((2, 4), scores, (0.5, 0.75), Cost(7, 5, 0.25), (), (1.0, 0.5), (True, False))
    found.save(tmp_path / "t.safetensors")
    again = Trajectory.read(tmp_path / "t.safetensors")
    assert torch.equal(again.scores.nan_to_num(9.0), scores.nan_to_num(9.0))
    assert (again.steps, again.validation, again.strength, again.held, again.cost) == (
        found.steps,
        found.validation,
        found.strength,
        found.held,
        found.cost,
    )
