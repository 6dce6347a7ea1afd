# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of adaptation makes itself: a model that pools by the mean, texts that fit."""

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import layer_norm
from transformers import BertConfig, BertModel

from metarm.data.encoding import Encoder, pad_batch
from metarm.models.loading import load_encoder
from metarm.schema import PreferencePair
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
