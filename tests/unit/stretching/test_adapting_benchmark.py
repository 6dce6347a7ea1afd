# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of adaptation makes itself: mean pooling, texts that fit, other rules."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting_rules import BEFORE, RULES, TAKEN, chosen
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import layer_norm
from transformers import BertConfig, BertModel

from metarm.data.encoding import Encoder, pad_batch
from metarm.models.loading import load_encoder
from metarm.schema import PreferencePair
from metarm.stretching.settings import AdaptSettings
from metarm.stretching.ways import Evidence, WayGaps, judge_ways
from tiny_models import SPECIAL, WORDS, save_tokenizer

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "adapting.py"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_one_more_layer_makes_the_mean_of_the_states(encoder: Encoder, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=24,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bert = BertModel(config).eval()
    bert.save_pretrained(tmp_path)
    rows = [encoder.encode("a b", " c d e f"), encoder.encode("f", " a")]
    ids, mask = pad_batch(rows, encoder.pad_token_id, side="right")
    model = SCRIPT["with_mean_pooling"](str(tmp_path), encoder, 0).double()
    with torch.no_grad():
        found = model.bert(input_ids=ids, attention_mask=mask).pooler_output
        states = bert.double()(input_ids=ids, attention_mask=mask).last_hidden_state
    for row, own, length in zip(found, states, map(len, rows), strict=True):
        summed = own[0] + SCRIPT["MEAN_WEIGHT"] * own[:length].mean(dim=0)
        normal = layer_norm(summed, (16,), eps=config.layer_norm_eps)
        normal = layer_norm(normal, (16,), eps=config.layer_norm_eps)
        expected = torch.tanh(SCRIPT["POOLER_SCALE"] * normal)
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=100).map(
    lambda words: "".join(f" {word}" for word in words)
)


@given(TEXTS, TEXTS, TEXTS)
def test_cut_texts_fit_and_are_beginnings(
    encoder: Encoder, prompt: str, chosen: str, rejected: str
) -> None:
    most = SCRIPT["MAX_TOKENS"]
    found = SCRIPT["cut_pairs"](encoder, [PreferencePair(prompt, chosen, rejected)], 1)
    for pair in found:
        for whole, cut in ((chosen, pair.chosen), (rejected, pair.rejected)):
            assert whole.startswith(cut)
            length = len(encoder.encode(prompt, cut))
            assert length == min(most, len(encoder.encode(prompt, whole)))
    is_too_long = len(encoder.encode(prompt, "")) > SCRIPT["MAX_PROMPT_TOKENS"]
    sides = {SCRIPT["cut_response"](encoder, prompt, side) for side in (chosen, rejected)}
    assert bool(found) == (not is_too_long and len(sides) == 2)


def evidence_of(few: np.ndarray, original: np.ndarray) -> Evidence:
    """Of the gaps of keeping the model and of `full`, each of a prompt of its own."""
    few_prompts, original_prompts = (
        tuple(map(str, range(table.shape[1]))) for table in (few, original)
    )
    ways = {name: WayGaps(few[n], original[n]) for n, name in enumerate(("none", "full"))}
    return Evidence(ways, np.ones(few.shape[1]), few_prompts, original_prompts)


@pytest.mark.parametrize("seed", range(8))
def test_the_rule_before_is_a_paired_test_of_outcomes_behind_proof_of_holding(seed: int) -> None:
    draw = np.random.default_rng(seed)
    few = draw.normal([[0.0], [0.3]], 1.0, (2, 60))
    same = np.tile(np.repeat([1.0, -1.0], [100, 60]), (2, 1))
    turned = same * [[1], [-1]]
    right = (few > 0).astype(float)
    p_value = stats.ttest_rel(right[1], right[0], alternative="greater").pvalue
    rule = RULES[BEFORE]
    assert chosen(rule, evidence_of(few, same)) == ("full" if p_value <= 0.2 else "none")
    assert chosen(rule, evidence_of(few, turned)) == "none"


def test_taken_minus_before_is_paired_by_split_and_prompt() -> None:
    """A way that errs as often, less surely, is taken now, and was not before."""
    few = np.array([[0.1, 0.1, -0.1, 0.1], [2.0, 2.0, -0.1, 1.0]])
    found = evidence_of(few, np.ones((2, 40)))
    taken, reason, _ = judge_ways(found, AdaptSettings())
    assert taken == "full"
    sides = {"none": [0.0, 1.0, 1.0], "full": [1.0, 1.0, 0.5]}
    row = {
        "ways": {
            way: {side: {"prompts": ["p", "q", "r"], "right": right} for side in SCRIPT["SIDES"]}
            for way, right in sides.items()
        },
        "gaps": found.to_json(),
        "seconds": 1.0,
    }
    both = SCRIPT["summarise"]([row, row], SCRIPT["AGAINST"])
    assert both["shifted_by_split"] == [round(0.5 / 3, 4)] * 2
    assert both["shifted_change"]["count"] == 3
    assert both["shifted_splits"]["count"] == 2
    assert SCRIPT["summarise"]([row], BEFORE)["taken"] == ["none"]
    now = SCRIPT["summarise"]([row], TAKEN)
    assert (now["taken"], now["reasons"]) == (["full"], [reason])
