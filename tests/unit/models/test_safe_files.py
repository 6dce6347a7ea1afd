# SPDX-License-Identifier: Apache-2.0
"""Weights that are pickles are refused by their bytes, under any name; code is never run."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metarm.errors import ModelError
from metarm.models.loading import load_causal_lm, load_encoder, load_reward_model
from metarm.models.safe_files import refuse_pickles
from tiny_models import save_causal_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_causal_lm(tmp_path_factory.mktemp("model"))


def archive() -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return stream.getvalue()


PICKLES = {
    **{f"protocol {n}": pickle.dumps({"a": [1, "b"]}, protocol=n) for n in range(6)},
    "torch.save": archive(),
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_is_refused_under_any_name(
    model: Path, tmp_path: Path, kind: str, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(PICKLES[kind])
    for load in (load_causal_lm, lambda f: load_reward_model(f, load_encoder(model))):
        with pytest.raises(ModelError, match=f"{name}: expected safetensors, got a Python pickle"):
            load(folder)


def test_a_copy_that_nobody_reads_is_let_be(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "pytorch_model.bin").write_bytes(PICKLES["protocol 2"])
    load_causal_lm(folder)


def test_no_header_of_safetensors_is_taken_for_one(tmp_path: Path) -> None:
    """A header of 640 bytes begins with 0x80 0x02, as pickles of protocol 2 do."""
    seen = set()
    for count in range(500, 700):
        save_file({"w" * count: torch.zeros(1)}, tmp_path / "model.safetensors")
        with (tmp_path / "model.safetensors").open("rb") as stream:
            seen.add(stream.read(2))
        refuse_pickles(tmp_path)
    assert b"\x80\x02" in seen


def test_code_of_a_models_author_is_not_run(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="expected a causal language model"):
        load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()
