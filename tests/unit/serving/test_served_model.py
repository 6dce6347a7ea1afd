# SPDX-License-Identifier: Apache-2.0
"""A served model's scores are those of a local call with the pair alone, to the last bit."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from metarm.errors import ModelError
from metarm.models.ensemble import load_reward, save_ensemble
from metarm.models.reward_model import load_score_function
from metarm.schema import Message, PreferencePair
from metarm.serving.model_files import find_model, model_sha256
from metarm.serving.refusals import RefusedError
from metarm.serving.served_model import ScoreItem, ServedModel, load_served_model
from tiny_models import CONTEXT, save_causal_lm, save_reward_model, save_tokenizer

PAIRS = [("a", " b"), ("b c", " c d e f"), ("a", ""), ("a", " c"), ("d e f a", " a"), ("b", " c")]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
    "{% endif %}{{ m.role[0] }} {{ m.content }} {% endfor %}</s>"
)


def scores(model: ServedModel, *items: ScoreItem, truncate: bool = False) -> list[float]:
    return [s.score for s in model.score([model.encode(i, truncate=truncate) for i in items])]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    members = [save_reward_model(folder / f"member_{n}", seed=n) for n in range(3)]
    pairs = [PreferencePair("a", " b c", " d"), PreferencePair("b", " e", " a a f")]
    save_ensemble(folder / "reward", members, pairs, pessimism=0.5)
    return folder / "reward"


def test_scores_are_local_ones(reward_model_dir: Path) -> None:
    model, local = load_served_model(reward_model_dir, version=1), load_reward(reward_model_dir)
    items = [ScoreItem(*pair) for pair in PAIRS]
    for _ in range(3):
        assert scores(model, *items) == [local([p], [r])[0] for p, r in PAIRS]


def test_an_ensemble_says_how_far_its_members_disagree(ensemble: Path) -> None:
    model, local = load_served_model(ensemble, version=1), load_reward(ensemble)
    found = model.score([model.encode(ScoreItem(*pair), truncate=False) for pair in PAIRS])
    assert [s.score for s in found] == [local([p], [r])[0] for p, r in PAIRS]
    standard = [
        (np.array([member([p], [r])[0] for p, r in PAIRS]) - mean) / spread
        for member, mean, spread in zip(local.members, local.means, local.spreads, strict=True)
    ]
    assert [s.uncertainty for s in found] == pytest.approx(np.std(standard, axis=0).tolist())


@pytest.mark.parametrize(
    "text", ["a b", "a b</s>", "<s>a b</s>", "<s>a b</s></s>", "<pad><pad><s>a b</s><pad>"]
)
def test_a_query_is_read_as_its_prompt_and_response(reward_model_dir: Path, text: str) -> None:
    """What OpenRLHF sends is decoded from tokens, special ones and padding included."""
    model = load_served_model(reward_model_dir, version=1)
    query = model.encode(ScoreItem("", text, is_query=True), truncate=False)
    assert query.rows == model.encode(ScoreItem("a", " b"), truncate=False).rows


def test_too_long_is_refused_or_cut_at_its_beginning(reward_model_dir: Path) -> None:
    model, local = load_served_model(reward_model_dir, version=1), load_reward(reward_model_dir)
    item = ScoreItem("a" + " b" * CONTEXT, " c d")
    with pytest.raises(RefusedError, match=f"at most {CONTEXT} tokens an item, got 29") as caught:
        model.encode(item, truncate=False)
    assert caught.value.status == 422
    cut = model.encode(item, truncate=True)
    row = local.encoder.encode(item.prompt, item.response)
    assert cut.is_truncated
    assert cut.rows == (tuple(row[-CONTEXT:]),)
    assert scores(model, item, truncate=True) == local.score_tokens([row[-CONTEXT:]], [0])
    fits = model.encode(ScoreItem("a", " b"), truncate=True)
    assert not fits.is_truncated


def test_messages_go_through_the_models_own_template(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "chat")
    save_tokenizer(folder, chat_template=TEMPLATE)
    model, local = load_served_model(folder, version=1), load_reward(folder)
    prompt = (Message("a", "b c"),)
    assert scores(model, ScoreItem(prompt, "d")) == local([prompt], ["d"])
    with pytest.raises(RefusedError, match="no tools here") as caught:
        model.encode(ScoreItem((Message("tool", "b"),), "c"), truncate=False)
    assert caught.value.reason == "cannot_encode"


def test_without_a_template_messages_are_refused(reward_model_dir: Path) -> None:
    model = load_served_model(reward_model_dir, version=1)
    with pytest.raises(RefusedError, match="no chat template"):
        model.encode(ScoreItem((Message("user", "b"),), "c"), truncate=False)


def test_a_model_whose_scores_are_not_finite_is_not_put_in_place(tmp_path: Path) -> None:
    local = load_score_function(save_reward_model(tmp_path / "broken"))
    local.model.score.weight.data.fill_(float("nan"))
    local.model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelError, match="not finite"):
        load_served_model(tmp_path / "broken", version=1)


def test_the_hash_is_that_of_sha256sum(reward_model_dir: Path) -> None:
    names = sorted(path.name for path in reward_model_dir.iterdir())
    lines = [
        f"{hashlib.sha256((reward_model_dir / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
    ]
    assert model_sha256(reward_model_dir) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_hash_of_an_ensemble_is_that_of_its_members_too(ensemble: Path, tmp_path: Path) -> None:
    before = model_sha256(ensemble)
    shutil.copytree(ensemble.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / ensemble.name
    assert model_sha256(copy) == before
    with open(tmp_path / "copy" / "member_2" / "model.safetensors", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    assert model_sha256(copy) != before


def test_a_pointer_names_a_folder_beside_it(tmp_path: Path, reward_model_dir: Path) -> None:
    (tmp_path / "first").symlink_to(reward_model_dir)
    pointer = tmp_path / "champion.json"
    pointer.write_text(json.dumps({"model": "first"}))
    assert find_model(pointer) == find_model(reward_model_dir) == reward_model_dir.resolve()


@pytest.mark.parametrize("text", ['{"model": "missing"}', '{"folder": "x"}', "[]", '{"model": 1}'])
def test_a_pointer_to_nothing_is_refused(tmp_path: Path, text: str) -> None:
    pointer = tmp_path / "champion.json"
    pointer.write_text(text)
    with pytest.raises(ModelError, match=r'expected \{"model": "folder"\}'):
        find_model(pointer)


def test_a_name_that_is_no_folder_is_refused() -> None:
    with pytest.raises(ModelError, match="hf download"):
        find_model(Path("owner/name"))


def test_a_policy_is_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reward model"):
        load_served_model(save_causal_lm(tmp_path / "policy"), version=1)
