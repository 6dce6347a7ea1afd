# SPDX-License-Identifier: Apache-2.0
"""A real language model on real human pairs, as a new user would type it, cut down to few steps."""

import gzip
import itertools
import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from metarm.data.preferences import load_preferences

pytestmark = pytest.mark.slow
CONTEXT = 512  # of the model; the default of max_length is larger


def test_human_pairs_train_a_reward_model(shared: Path, metarm, tmp_path: Path) -> None:
    model = shared / "models" / "stories260K-hf"
    pairs = shared / "data" / "hh_harmless_base_test.jsonl.gz"
    words = ["reward", "--model", model, "--preferences", pairs, "--output", "rm", "max_steps=3"]
    done = metarm(*words)
    assert done.code == 0, done.err
    assert "2312 pairs read (hh-rlhf), 2308 kept" in done.err
    table = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.out.splitlines())
    assert "longer than 512 tokens (max_length, or the model's context)" in table["encoding"]
    numbers = re.findall(r"[\d.]+", table["held-out accuracy"])
    value, low, high = map(float, numbers[:3])
    assert 0 < low <= value <= high < 1
    assert ("a coin's accuracy" in done.err) == (low <= 0.5 <= high)
    assert table["output"] == "rm"

    # The second time there is nothing to do, and the same to say.
    again = metarm(*words, "--json")
    assert again.code == 0, again.err
    assert "is finished; nothing is done again" in again.err
    said = json.loads(again.out)
    assert said["num_pairs"] + said["num_test_pairs"] == 2308
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    held_out = said["num_test_pairs"] - said["num_test_too_long"]
    assert 0 < held_out < said["num_test_pairs"]
    assert said["accuracy"]["count"] <= held_out

    # What is measured again with the folder alone, and the folder is what Hugging Face expects.
    reward_model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert reward_model.config.num_labels == 1
    with gzip.open(pairs, "rt", encoding="utf-8") as whole:
        (tmp_path / "some.jsonl").write_text("".join(itertools.islice(whole, 300)), "utf-8")
    fitting = [
        pair
        for pair in load_preferences(tmp_path / "some.jsonl").pairs
        if max(len(tokenizer(pair.prompt + s)["input_ids"]) for s in (pair.chosen, pair.rejected))
        < CONTEXT
    ]
    measured = metarm("evaluate", "--reward-model", "rm", "--preferences", "some.jsonl", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["num_pairs"] == len(fitting)
