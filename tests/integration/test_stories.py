# SPDX-License-Identifier: Apache-2.0
"""The stories example, cut down: a real model, a gold function of one's own, two rounds."""

import json
import math
from pathlib import Path

import pytest

from metarm.data.meta_sets import load_prompts
from metarm.data.preferences import load_preferences
from metarm.reports.read_run import read_run
from metarm.resolve import resolve_name
from metarm.schema import Scorecard

pytestmark = pytest.mark.slow
CUT_DOWN = (
    *("seeds=[0]", "threads=1", "arms=[frozen, meta, labels]", "custom_arms.labels.meta_mode=off"),
    *("custom_arms.labels.num_gold_labels=8", "sft.num_train_epochs=2", "data.num_gold_pairs=160"),
    *("reward.max_steps=8", "sampling.num_prompts=16", "optimize.num_iterations=3"),
    *("optimize.value_warmup_iterations=1", "optimize.batch_size=16"),
    *("evaluation.num_prompts=16", "evaluation.num_generations=2"),
)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has before them: the example's files lie where the commands expect them."""
    (tmp_path / "examples").symlink_to(repository / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_rounds_with_a_real_model(shared: Path, checkout: Path, metarm) -> None:
    model = shared / "models" / "stories260K-hf"
    words = ["run", "--config", "examples/stories/run.yaml", "--output", "run", *CUT_DOWN]
    done = metarm(*words, f"model_name_or_path={model}")
    assert done.code == 0, done.err
    run = checkout / "run"
    cards = read_run(run).cards
    seen = {(cell.arm, cell.round) for cell in cards}
    assert seen == {("sft", 0), *((a, n) for a in ("frozen", "meta", "labels") for n in (1, 2))}
    for card in cards.values():
        assert card.gold_score is not None
        assert card.accuracy_original is not None
        assert math.isfinite(card.kl_nats.value)
        assert 0 < card.response_tokens <= 64

    # Demonstrations have taught it to end, which it never does by itself.
    assert _card(run, "sft", 0).finished_fraction > 0.2
    # Stories go on where their openings stop, and gold is the example's own function.
    gold = resolve_name("examples.stories.gold:score", {}, what="gold")
    rows = [
        json.loads(line)
        for line in (run / "seed_0/arms/meta/round_02/evaluation/samples.jsonl").open()
    ]
    assert len(rows) == 16
    for row in rows:
        assert row["gold"] == pytest.approx(gold([row["prompt"]], [row["response"]])[0])
    assert sum(row["sft_response"][:1].isspace() for row in rows) > len(rows) / 2
    assert any(row["response"] != row["sft_response"] for row in rows)
    openings = set(load_prompts(checkout / "examples/stories/prompts.jsonl"))
    assert {row["prompt"] for row in rows} <= openings
    for pair in load_preferences(run / "seed_0/data/preferences.jsonl").pairs:
        chosen, rejected = gold([pair.prompt] * 2, [pair.chosen, pair.rejected])
        assert chosen > rejected
    assert "examples.stories.gold:score" in (run / "config.yaml").read_text("utf-8")
    assert (run / "report.html").stat().st_size > 10_000


def _card(run: Path, arm: str, number: int) -> Scorecard:
    cards = read_run(run).cards.items()
    return next(card for cell, card in cards if (cell.arm, cell.round) == (arm, number))


def test_gold_prefers_a_story_on_its_subject_that_ends(checkout: Path) -> None:
    gold = resolve_name("examples.stories.gold:score_story", {}, what="gold")
    opening = "Lily had a red ball. She took the ball to the park. One day,"
    good = " Lily lost her ball. A kind dog found it in the park. They played and Lily was happy."
    worse = {
        "another subject": good.replace("ball", "cup")
        .replace("Lily", "she")
        .replace("park", "sea"),
        "a stranger": good.replace("kind dog", "kind dog, Rex,"),
        "no end": good.removesuffix("."),
        "a cold end": good.replace("They played and Lily was happy", "Then it began to rain again"),
        "too short": " Lily was happy.",
        "padded out": good + " And" + " then and now and here and there" * 8 + " Lily was happy.",
        "said again": good + good,
        "nothing": "",
    }
    value = gold(opening, good)
    for fault, story in worse.items():
        assert gold(opening, story) < value, fault
