# SPDX-License-Identifier: Apache-2.0
"""Run folders with MADE-UP numbers: they test the page and say nothing about the method."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metarm.schema import Estimate, Histogram, Scorecard
from metarm.storage import append_json_line, write_json, write_json_lines, write_text

ARMS = ("sft", "frozen", "plain", "meta", "labels")
STRENGTH = {"sft": 0.0, "frozen": 0.0, "plain": 0.02, "meta": 0.035, "labels": 0.07}


def made_up_card(arm: str, seed: int, round_number: int, *, gold: bool = True) -> Scorecard:
    """A plausible scorecard: optimisation takes accuracy, better arms lose less of it."""
    draw = Random(f"{arm}/{seed}/{round_number}")
    help_ = STRENGTH.get(arm, 0.01) * min(round_number, 2)
    accuracy = 0.71 - 0.13 * (1 - math.exp(-0.9 * round_number)) + help_ + draw.gauss(0, 0.008)
    kl = 0.02 if round_number == 0 else 1.4 * round_number + draw.gauss(0, 0.15)
    true = -0.5 + 0.75 * math.sqrt(kl) - 0.07 * kl + 2 * help_ + draw.gauss(0, 0.02)
    spread = 0.2 + 0.8 * math.exp(-0.35 * round_number) + help_
    win = 0.5 if round_number == 0 else min(0.9, 0.6 + 0.06 * round_number + help_)
    edges = tuple(-5 + 0.25 * place for place in range(41))
    counts = tuple(
        round(4000 * 0.25 / spread * math.exp(-(((a + 0.125) / spread) ** 2) / 2))
        for a in edges[:-1]
    )

    def around(value: float, half: float = 0.03, count: int = 256) -> Estimate:
        return Estimate(value, value - half, value + half, count)

    def if_gold(value: Any) -> Any:
        return value if gold else None

    tie = 0.02 if round_number else 1.0
    win = win if round_number else 0.0
    return Scorecard(
        arm=arm,
        seed=seed,
        round=round_number,
        accuracy_original=around(0.74 - 0.003 * round_number + draw.gauss(0, 0.004), 0.015, 1000),
        accuracy_before=if_gold(around(min(accuracy + 0.04 + help_, 0.71)))
        if round_number
        else None,
        accuracy_shifted=if_gold(around(accuracy)),
        accuracy_shifted_length_balanced=if_gold(accuracy - 0.02),
        accuracy_first=if_gold(around(0.71 - 0.12 * (1 - math.exp(-0.9 * round_number)))),
        gap_spread=1.5 * spread,
        gap_spread_reference=1.5,
        gap_histogram=Histogram(edges, counts),
        rank_correlation_plain=1 - 0.06 * round_number + draw.gauss(0, 0.01),
        kl_nats=around(kl, 0.1),
        proxy_score=around(1.1 * math.sqrt(kl) if round_number else 0.0, 0.05),
        gold_score=if_gold(around(true, 0.06)),
        win_fraction=if_gold(around(win, 0.05)),
        tie_fraction=if_gold(around(tie, 0.02)),
        lose_fraction=if_gold(around(1 - win - tie, 0.05)),
        response_tokens=14 + 1.5 * round_number,
        finished_fraction=0.97,
        seconds=41.0 + round_number,
    )


def write_round(folder: Path, card: Scorecard, responses: Sequence[str] = ()) -> None:
    """One finished round: scorecard, samples and, after a start, the optimisation's log."""
    place = folder / f"seed_{card.seed}/arms/{card.arm}/round_{card.round:02d}"
    gold = card.gold_score.value if card.gold_score else None
    write_json(place / "evaluation/scorecard.json", card.to_json())
    texts = responses or [
        f"The {word} garden answers {card.arm}." for word in ("old", "wet", "big")
    ]
    rows = [
        {
            "prompt": f"topic {number}: describe the garden",
            "response": text,
            "sft_response": "A garden.",
            "gold": gold,
            "sft_gold": gold and -0.5,
            "score": 1.25,
            "sft_score": 0.5,
        }
        for number, text in enumerate(texts)
    ]
    write_json_lines(place / "evaluation/samples.jsonl", rows)
    if card.round == 0:
        return
    draw = Random(f"curve/{card.arm}/{card.seed}/{card.round}")
    log = place / "policy/metrics.jsonl"
    log.parent.mkdir(parents=True)
    for iteration in range(40):
        kl = card.kl_nats.value - 1.4 * (1 - iteration / 39)
        row = {"iteration": iteration, "objective/kl": kl, "objective/scores": 1.0}
        if gold is not None:
            row["objective/gold"] = gold - 0.3 * (1 - iteration / 39) + draw.gauss(0, 0.1)
        append_json_line(log, row)


def write_run(
    folder: Path,
    *,
    arms: Sequence[str] = ARMS,
    rounds: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    gold: bool = True,
    responses: Sequence[str] = (),
    change: Callable[[Scorecard], Scorecard | None] = lambda card: card,
    planned_rounds: int | None = None,
) -> Path:
    """A run folder; `change` may alter a scorecard or, with None, leave its round out."""
    settings = {
        "output_dir": "runs/made-up",
        "rounds": planned_rounds or rounds,
        "seeds": list(seeds),
        "arms": list(arms),
        "custom_arms": {arm: {} for arm in arms if arm not in ARMS},
        "world": {"seed": 0},
    }
    write_text(folder / "config.yaml", json.dumps(settings, indent=1))
    facts = {
        "versions": {"metarm": "0.1.0", "torch": "2.13.0"},
        "machine": {"cpus": 2},
        "command": "metarm run made-up.yaml",
        "started_at": "2025-01-01T00:00:00Z",
    }
    write_json(folder / "run.json", facts)
    for seed in seeds:
        for arm in arms:
            for round_number in [0] if arm == "sft" else range(1, rounds + 1):
                card = change(made_up_card(arm, seed, round_number, gold=gold))
                if card is not None:
                    write_round(folder, card, responses)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """The writer of made-up run folders."""
    return write_run


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five arms, three rounds, three seeds; read only."""
    return write_run(tmp_path_factory.mktemp("full") / "made-up")


@pytest.fixture(scope="session")
def with_accuracy() -> Callable[[Scorecard, float], Scorecard]:
    """A scorecard with another accuracy on the policy's own pairs."""

    def changed(card: Scorecard, value: float, half: float = 0.01) -> Scorecard:
        return replace(card, accuracy_shifted=Estimate(value, value - half, value + half, 256))

    return changed
