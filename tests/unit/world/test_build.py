# SPDX-License-Identifier: Apache-2.0
"""A world on disk: disjoint prompts, noisy labels, an exact tokenizer, the same from one seed."""

import json
import math
import random

import pytest
import torch

from metarm.config import WorldSettings
from metarm.data.encoding import Encoder
from metarm.data.meta_sets import load_demonstrations, load_prompts
from metarm.data.preferences import load_preferences
from metarm.models.loading import context_length, load_causal_lm, load_encoder
from metarm.world.build import CONTEXT, build_world, draw_pair
from metarm.world.language import GoldReward, build_language, draw_prompt, draw_response
from tiny_models import folder_digest

SMALL = WorldSettings(num_pairs=60, num_test_pairs=30, num_prompts=40, num_sft_texts=80)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    facts = build_world(SMALL, 0, folder)
    return folder, facts


@pytest.fixture(scope="module")
def encoder(world) -> Encoder:
    return load_encoder(world[0] / "model")


def pairs_of(folder, name):
    return load_preferences(folder / f"{name}.jsonl", "trl-explicit").pairs


def test_prompts_to_train_and_to_test_on_are_disjoint(world):
    folder, _ = world
    train, test = (
        load_prompts(folder / "prompts.jsonl"),
        load_prompts(folder / "prompts_test.jsonl"),
    )
    assert len(train) == len(test) == 40
    assert not set(train) & set(test)
    assert {pair.prompt for pair in pairs_of(folder, "preferences")} <= set(train)
    assert {pair.prompt for pair in pairs_of(folder, "preferences_test")} <= set(test)
    asked = {prompt for prompt, _ in load_demonstrations(folder / "demonstrations.jsonl")}
    assert asked <= set(train)


def test_a_small_language_gives_as_many_prompts_as_it_has(tmp_path):
    """One place: 3 ways to ask, 8 * 7 ordered pairs of things."""
    build_world(SMALL.model_copy(update={"num_topics": 1, "num_prompts": 500}), 0, tmp_path)
    train = load_prompts(tmp_path / "prompts.jsonl")
    test = load_prompts(tmp_path / "prompts_test.jsonl")
    assert len(train) == len(test) == 3 * 8 * 7 / 2
    assert not set(train) & set(test)


def test_counts_and_facts_are_those_of_the_files(world):
    folder, facts = world
    pairs = pairs_of(folder, "preferences")
    assert (len(pairs), len(pairs_of(folder, "preferences_test"))) == (60, 30)
    assert len(load_demonstrations(folder / "demonstrations.jsonl")) == 80
    gold = GoldReward(build_language(SMALL))
    gaps = [gold.score(p.prompt, p.chosen) - gold.score(p.prompt, p.rejected) for p in pairs]
    assert facts["label_agreement_fraction"] == sum(gap > 0 for gap in gaps) / 60
    assert facts["gold_spread"] == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / 60))
    saved = json.loads((folder / "world.json").read_text())
    assert saved["quiet_weights"] == build_language(SMALL).quiet_weights
    assert WorldSettings(**saved["settings"]) == SMALL


def test_the_same_seed_builds_the_same_world(world, tmp_path):
    folder, facts = world
    state = torch.get_rng_state()
    assert build_world(SMALL, 0, tmp_path / "again") == facts
    assert torch.equal(torch.get_rng_state(), state)
    assert folder_digest(tmp_path / "again") == folder_digest(folder)


def test_the_runs_seed_draws_data_and_the_worlds_seed_the_reward(world, tmp_path):
    folder, _ = world
    build_world(SMALL, 1, tmp_path / "data")
    build_world(SMALL.model_copy(update={"seed": 1}), 0, tmp_path / "gold")
    languages = {
        name: json.loads((place / "world.json").read_text())["quiet_weights"]
        for name, place in (
            ("here", folder),
            ("data", tmp_path / "data"),
            ("gold", tmp_path / "gold"),
        )
    }
    assert languages["data"] == languages["here"] != languages["gold"]
    for name in ("preferences.jsonl", "prompts.jsonl", "demonstrations.jsonl"):
        assert (tmp_path / "data" / name).read_bytes() != (folder / name).read_bytes()
    weights = [load_causal_lm(p / "model").lm_head.weight for p in (folder, tmp_path / "data")]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("label_noise", [0.3, 1.0, 3.0])
def test_labels_are_as_noisy_as_the_sigmoid_says(label_noise):
    """The count of right labels against the sum of sigmoid(|gap| / noise), in standard errors."""
    settings = WorldSettings()
    language, draw = build_language(settings), random.Random(0)
    gold = GoldReward(language)
    right = expected = variance = 0.0
    for _ in range(1500):
        pair = draw_pair(gold, draw_prompt(language, draw), label_noise, draw)
        gap = gold.score(pair.prompt, pair.chosen) - gold.score(pair.prompt, pair.rejected)
        if gap == 0:
            continue
        probability = 1 / (1 + math.exp(-abs(gap) / label_noise))
        right += gap > 0
        expected += probability
        variance += probability * (1 - probability)
    assert abs(right - expected) < 4 * math.sqrt(variance)
    assert variance > 50, "there is noise to see"


@pytest.mark.parametrize("label_noise", [0.0, 1e-9])
def test_without_noise_every_label_is_right(label_noise):
    language, draw = build_language(WorldSettings()), random.Random(0)
    gold = GoldReward(language)
    for _ in range(200):
        pair = draw_pair(gold, draw_prompt(language, draw), label_noise, draw)
        assert pair.chosen != pair.rejected
        better, worse = (gold.score(pair.prompt, r) for r in (pair.chosen, pair.rejected))
        assert better >= worse - 1e-7


def test_text_and_tokens_are_the_same_thing(world, encoder):
    """A word is a token; prompt and response meet without a seam; decoding gives the text back."""
    folder, _ = world
    texts = load_demonstrations(folder / "demonstrations.jsonl")
    texts += [(p.prompt, text) for p in pairs_of(folder, "preferences") for text in (p.chosen,)]
    for prompt, response in texts:
        ids, prompt_ids = encoder.encode(prompt, response), encoder.encode_prompt(prompt)
        assert len(prompt_ids) == 1 + len(prompt.split())
        assert ids[: len(prompt_ids)] == prompt_ids
        response_ids = ids[len(prompt_ids) : -1]
        assert len(response_ids) == len(response.split())
        assert ids[-1] == encoder.eos_token_id
        assert encoder.tokenizer.unk_token_id not in ids
        assert encoder.decode(response_ids) == response


def test_the_model_knows_every_token_and_no_more(world, encoder):
    model = load_causal_lm(world[0] / "model")
    assert model.config.vocab_size == len(encoder.tokenizer.get_vocab())
    assert context_length(model) == CONTEXT
    assert len({encoder.pad_token_id, encoder.eos_token_id, encoder.tokenizer.bos_token_id}) == 3


class LongWinded(random.Random):
    """Draws the longest answer: every optional part, the last of every list of choices."""

    def random(self):
        return 0.0

    def choices(self, population, weights=None, *, cum_weights=None, k=1):
        return [population[-1]] * k


def test_the_longest_demonstration_fits_the_context(encoder):
    language = build_language(SMALL)
    prompt = draw_prompt(language, random.Random(0))
    longest = " " + draw_response(language, prompt, LongWinded(0))
    usual = [draw_response(language, prompt, random.Random(seed)) for seed in range(500)]
    assert len(longest.split()) >= max(len(text.split()) for text in usual)
    assert len(encoder.encode(prompt, longest)) <= CONTEXT
