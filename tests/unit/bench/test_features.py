# SPDX-License-Identifier: Apache-2.0
"""Frozen features: of the response, whatever else is in the batch, computed once."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from metarm.bench.features import frozen_features
from metarm.errors import FormatError
from metarm.progress import SilentProgress
from metarm.schema import Message
from tiny_models import save_causal_lm, save_tokenizer

TEXTS = [
    ("a b", " c"),
    ("a b", " d e f"),
    ((Message("user", "a"),), " c c c c"),
    ("f e d c b a a b c d e f", " b a"),
]


def save_bert(folder: Path) -> Path:
    """A bidirectional encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=10,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return save_tokenizer(folder)


@pytest.fixture(params=[save_bert, save_causal_lm])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param(tmp_path / "model"))


def features(model: str, texts: object, cache: Path, max_length: int = 16) -> torch.Tensor:
    return frozen_features(
        model, texts, max_length=max_length, cache=cache, progress=SilentProgress()
    )


def test_a_text_has_its_own_features_whatever_the_batch(model: str, tmp_path: Path) -> None:
    together = features(model, TEXTS, tmp_path / "cache")
    assert together.shape == (4, 32)
    for index, text in enumerate(TEXTS):
        alone = features(model, [text], tmp_path / f"cache {index}")
        assert torch.allclose(alone[0], together[index], atol=1e-5)
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_what_is_known_is_not_computed_again(model: str, tmp_path: Path, monkeypatch) -> None:
    first = features(model, TEXTS[:2], tmp_path)
    asked = []
    from metarm.bench import features as module

    compute = module._compute

    def noting(name, texts, *rest):
        asked.extend(texts)
        return compute(name, texts, *rest)

    monkeypatch.setattr(module, "_compute", noting)
    both = features(model, [*TEXTS[1:], TEXTS[0]], tmp_path)
    assert asked == TEXTS[2:]
    assert torch.equal(both[0], first[1])
    assert torch.equal(both[3], first[0])
    assert torch.equal(features(model, TEXTS, tmp_path)[:2], first)
    assert asked == TEXTS[2:]


def test_a_long_prompt_keeps_its_end_and_leaves_room(model: str, tmp_path: Path) -> None:
    long = " ".join("a" * 40) + " b c d"
    ends = features(model, [(long, " e f"), ("f " + long, " e f")], tmp_path, max_length=10)
    assert torch.allclose(ends[0], ends[1], atol=1e-6), "only the end is seen"
    other = features(model, [(long + " e", " e f")], tmp_path, max_length=10)
    assert not torch.allclose(ends[0], other[0], atol=1e-3)


def test_a_long_extraction_keeps_what_it_has_when_it_is_stopped(
    model: str, tmp_path: Path, monkeypatch
) -> None:
    from metarm.bench import features as module

    monkeypatch.setattr(module, "KEEP_EVERY", 2)
    monkeypatch.setattr(module, "BATCH_SIZE", 1)
    whole = features(model, TEXTS, tmp_path / "whole")
    compute = module._compute

    def stopped(*given):
        for number, found in enumerate(compute(*given)):
            if number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(module, "_compute", stopped)
    with pytest.raises(KeyboardInterrupt):
        features(model, TEXTS, tmp_path / "again")
    asked = []

    def noting(name, texts, *rest):
        asked.extend(texts)
        return compute(name, texts, *rest)

    monkeypatch.setattr(module, "_compute", noting)
    assert torch.allclose(features(model, TEXTS, tmp_path / "again"), whole, atol=1e-6)
    assert len(asked) == 2


def test_a_damaged_file_is_named(model: str, tmp_path: Path) -> None:
    features(model, TEXTS, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(FormatError, match=r"safetensors: expected frozen features.*Remove"):
        features(model, TEXTS, tmp_path)
