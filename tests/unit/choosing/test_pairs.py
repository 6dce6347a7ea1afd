# SPDX-License-Identifier: Apache-2.0
"""Pairs of a policy's responses as a reward model sees them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metarm.choosing.pairs import choose_pairs, list_candidates, pool_of_model
from metarm.errors import EmptySetError
from metarm.labels.votes import LabelPair
from metarm.models.ensemble import load_reward, save_ensemble
from metarm.models.reward_model import load_score_function
from metarm.schema import PreferencePair, ResponseGroup
from tiny_models import save_reward_model

GROUPS = [
    ResponseGroup("a b", (" a", " b", " a", " c d"), source="round 1"),
    ResponseGroup("c", (" e f", " d", " a b c")),
    ResponseGroup("a b", (" c d", " f")),
    ResponseGroup("e", (" a", " a")),
]
LABELLED = [PreferencePair("a b", " b", " a"), PreferencePair("d", " a b", " f")]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    for seed in range(2):
        save_reward_model(folder / f"member_{seed}", seed=seed)
    pairs = [PreferencePair(g.prompt, g.responses[0], g.responses[-1]) for g in GROUPS[:2]]
    save_ensemble(folder, [folder / "member_0", folder / "member_1"], pairs)
    return folder


def test_candidates_are_all_pairs_of_different_texts() -> None:
    found = list_candidates(GROUPS)
    texts = {(pair.prompt, frozenset((pair.first, pair.second))) for pair in found.pairs}
    assert len(texts) == len(found.pairs) == found.num_possible == 6 + 3
    assert all(pair.first != pair.second for pair in found.pairs)
    assert {pair.source for pair in found.pairs if pair.prompt == "a b"} == {"round 1"}


def test_what_is_labelled_is_left_out_from_either_side() -> None:
    turned = [LabelPair("a b", " a", " b"), LabelPair("c", " d", " e f")]
    found = list_candidates(GROUPS, labelled=turned)
    assert len(found.pairs) == 7
    with pytest.raises(EmptySetError, match="sample more"):
        list_candidates(GROUPS[3:])


def test_of_too_many_some_are_drawn() -> None:
    first, again, other = (list_candidates(GROUPS, most=4, seed=seed).pairs for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 4
    assert list_candidates(GROUPS, most=4).num_possible == 9


def test_the_pool_is_what_the_head_reads(reward: Path) -> None:
    score = load_score_function(reward / "member_0")
    pairs = list_candidates(GROUPS).pairs
    pool = pool_of_model(score, pairs)
    expected = np.subtract(
        score([p.prompt for p in pairs], [p.first for p in pairs]),
        score([p.prompt for p in pairs], [p.second for p in pairs]),
    )
    np.testing.assert_allclose(pool.means, expected, atol=1e-5)
    # The reward is linear in the features: some head gives these very gaps.
    head, *_ = np.linalg.lstsq(pool.gaps, expected, rcond=None)
    np.testing.assert_allclose(pool.gaps @ head, expected, atol=1e-4)
    np.testing.assert_allclose(pool.covariance, np.eye(pool.gaps.shape[1]))
    assert pool.members is None
    assert len(set(pool.prompts.tolist())) == 2
    assert len(np.unique(pool.sides)) == 4 + 3


def test_labelled_pairs_leave_less_unknown(reward: Path) -> None:
    score = load_score_function(reward / "member_0")
    pairs = list_candidates(GROUPS).pairs
    pool = pool_of_model(score, pairs, LABELLED)
    assert pool.members is not None
    assert pool.variances.sum() < pool_of_model(score, pairs).variances.sum()


def test_soft_labels_are_no_hard_ones(reward: Path) -> None:
    """Heads of bootstrap draws learn what labels say: nothing of a tie, the other side below .5."""
    score = load_score_function(reward / "member_0")
    pairs = list_candidates(GROUPS).pairs
    labelled = [PreferencePair("d", " a b", " f"), PreferencePair("d", " c", " e e")] * 30

    def spread(p: float | None) -> np.ndarray:
        pool = pool_of_model(score, pairs, [replace(pair, p=p) for pair in labelled])
        assert pool.members is not None
        return pool.members

    def turned() -> np.ndarray:
        swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in labelled]
        return pool_of_model(score, pairs, swapped).members

    hard = spread(None)
    np.testing.assert_array_equal(spread(1.0), hard)
    np.testing.assert_allclose(spread(0.0), turned(), atol=1e-5)
    soft, tie = spread(0.8), spread(0.5)
    assert np.abs(tie - hard).max() > 0.5
    assert np.abs(soft.mean(axis=0) - hard.mean(axis=0)).max() > 0.1
    # What is known does not depend on what was said.
    one, other = (
        pool_of_model(score, pairs, [replace(pair, p=p) for pair in labelled]).covariance
        for p in (1.0, 0.5)
    )
    np.testing.assert_array_equal(one, other)


def test_members_of_an_ensemble_are_its_own(reward: Path) -> None:
    pairs = list_candidates(GROUPS).pairs
    pool = pool_of_model(load_reward(reward), pairs)
    gaps = [pool_of_model(load_score_function(reward / f"member_{n}"), pairs).means for n in (0, 1)]
    np.testing.assert_allclose(pool.members, gaps, atol=1e-5)
    np.testing.assert_allclose(pool.means, np.mean(gaps, axis=0), atol=1e-5)


def test_chosen_pairs_say_by_whom(reward: Path) -> None:
    score = load_score_function(reward / "member_0")
    pairs, chosen = choose_pairs(score, GROUPS, "mix", 4, labelled=LABELLED, seed=1)
    assert [pair.chosen_by for pair in pairs] == ["random", "random", "d-optimal", "d-optimal"]
    assert len({pair.id for pair in pairs}) == 4
    assert chosen.is_random == (True, True, False, False)
    assert pairs == choose_pairs(score, GROUPS, "mix", 4, labelled=LABELLED, seed=1)[0]
