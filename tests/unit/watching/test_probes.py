# SPDX-License-Identifier: Apache-2.0
"""Probes on disk, what is drawn at them, and what a reward model makes of it."""

import shutil

import numpy as np
import pytest
import torch

from metarm.errors import DataError, EmptySetError, FingerprintError, FormatError
from metarm.models.ensemble import load_reward, save_ensemble
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair
from metarm.watching.measuring import last_states, measure, measure_once
from metarm.watching.probes import (
    ProbePlan,
    build_probes,
    draw_fresh,
    load_probes,
    load_reference_model,
)
from tiny_models import save_reward_model
from unit.watching.conftest import PROMPTS


def test_probes_are_read_back_the_same(probes) -> None:
    assert load_probes(probes.stage.folder) == probes
    assert probes.prompts == tuple(PROMPTS)
    assert {len(group.responses) for group in probes.groups} == {4}


def test_what_was_made_otherwise_is_refused(probes, watched, tmp_path) -> None:
    folder = tmp_path / "probes"
    shutil.copytree(probes.stage.folder, folder)
    quiet = SilentProgress()
    again = build_probes(folder, watched / "policy", PROMPTS, probes.plan, progress=quiet)
    assert again.groups == probes.groups
    for policy, prompts in ((watched / "other", PROMPTS), (watched / "policy", PROMPTS[::-1])):
        with pytest.raises(FingerprintError):
            build_probes(folder, policy, prompts, probes.plan, progress=quiet)
    with pytest.raises(EmptySetError, match="expected 6 probe prompts, got 2"):
        build_probes(folder, watched / "policy", PROMPTS[:2], probes.plan, progress=quiet)
    (folder / "probes.json").write_text('{"plan": {}}', "utf-8")
    with pytest.raises(FormatError, match="expected probes"):
        load_probes(folder)
    with pytest.raises(DataError, match="no probes"):
        load_probes(tmp_path)
    with pytest.raises(DataError, match="two responses"):
        ProbePlan(num_fresh=1)


def test_a_look_draws_the_same_again_and_another_look_draws_others(probes, watched) -> None:
    reference = load_reference_model(probes)
    model, encoder = load_causal_lm(watched / "other"), load_encoder(watched / "other")
    model.train()
    before = torch.get_rng_state()
    one = draw_fresh(probes, (model, encoder), look=1, reference=reference)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert draw_fresh(probes, watched / "other", look=1, reference=reference) == one
    assert draw_fresh(probes, watched / "other", look=2, reference=None).groups != one.groups
    assert one.kl_nats.value > 0
    assert {len(group.responses) for group in one.groups} == {3}


def test_a_policy_that_has_not_moved_has_no_kl(probes, watched) -> None:
    same = draw_fresh(probes, watched / "policy", look=1, reference=load_reference_model(probes))
    assert same.kl_nats.value == pytest.approx(0.0, abs=1e-5)


def test_the_reward_is_linear_in_the_states(probes, watched) -> None:
    score = load_score_function(watched / "reward")
    found = measure(score, probes.groups)
    states = last_states(score, probes.groups)
    assert states.shape == (6, 4, 16)
    weight = score.model.score.weight.detach().double().numpy()
    np.testing.assert_allclose((states @ weight.T)[..., 0], found.scores, atol=1e-4)
    np.testing.assert_array_equal(found.states, states)
    assert found.members is None
    assert found.lengths[0, 0] == len(probes.groups[0].responses[0])


def test_an_ensemble_gives_its_members_rewards(probes, watched, tmp_path) -> None:
    save_reward_model(tmp_path / "second", seed=5)
    pairs = [PreferencePair("a", " b", " c d")]
    (tmp_path / "both").mkdir()
    save_ensemble(tmp_path / "both", [watched / "reward", tmp_path / "second"], pairs)
    found = measure(load_reward(tmp_path / "both"), probes.groups)
    assert found.members.shape == (2, 6, 4)
    alone = measure(load_score_function(watched / "reward"), probes.groups)
    np.testing.assert_allclose(found.members[0], alone.scores, atol=1e-6)
    np.testing.assert_array_equal(found.states, alone.states)
    kept = measure_once(probes.groups, tmp_path, load_reward(tmp_path / "both"), "x")
    again = measure_once(probes.groups, tmp_path, None, "x")
    for name in ("scores", "lengths", "states", "members"):
        np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))


def test_of_a_callable_there_are_rewards_and_lengths(probes) -> None:
    found = measure(lambda prompts, responses: [float(len(r)) for r in responses], probes.groups)
    assert found.states is None
    np.testing.assert_array_equal(found.scores, found.lengths)
