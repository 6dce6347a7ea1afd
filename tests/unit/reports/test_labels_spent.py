# SPDX-License-Identifier: Apache-2.0
"""What labels bought, as the page tells it: labels counted, estimates from random pairs alone."""

import json
from pathlib import Path

import pytest

from metarm.reports.labels_spent import (
    _family_name,
    common_kl,
    draw_labels_spent,
    labels_spent,
    read_spent,
    spent_rows,
)
from metarm.reports.page import write_report
from metarm.reports.read_run import Cell, read_run
from metarm.storage import build_stage, write_json_lines, write_text

ARMS = ("sft", "plain", "few", "many", "labels")


def buy(run: Path, arm: str, seed: int, number: int, metrics, stage: str = "labels") -> None:
    place = run / f"seed_{seed}/arms/{arm}/round_{number:02d}"
    build_stage(place / stage, {}, [], lambda folder: metrics)


def told(count: int, random: int, accuracy: float) -> dict[str, object]:
    estimate = {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "count": random}
    return {
        "num_labels": count,
        "num_votes": count + 1,
        "agreement_with_votes": {"share": estimate, "num_votes": random + 1, "num_pairs": random},
    }


@pytest.fixture
def labelled(make_run, tmp_path: Path) -> Path:
    """Three seeds, two rounds; `few` and `many` are mixes, `labels` the short form."""
    run = make_run(tmp_path / "run", arms=ARMS, rounds=2)
    settings = json.loads((run / "config.yaml").read_text("utf-8"))
    settings["custom_arms"] = {
        "few": {"labels_per_round": 10, "labels_choice": "mix"},
        "many": {"labels_per_round": 20, "labels_choice": "mix"},
    }
    write_text(run / "config.yaml", json.dumps(settings))
    for seed in (0, 1, 2):
        for number in (1, 2):
            buy(run, "few", seed, number, told(10, 5, 0.6 + 0.1 * seed))
            buy(run, "many", seed, number, told(20, 10, 0.8))
            buy(run, "labels", seed, number, {"num_groups": 9, "num_labels": 50}, "samples")
    return run


def test_votes_of_all_rounds_are_what_was_spent(labelled: Path) -> None:
    run = read_run(labelled)
    bought = read_spent(run)
    assert labels_spent(run, bought, "few") == dict.fromkeys((0, 1, 2), 22)
    assert labels_spent(run, bought, "labels") == dict.fromkeys((0, 1, 2), 100)
    assert labels_spent(run, bought, "plain") == dict.fromkeys((0, 1, 2), 0)
    assert bought[Cell("many", 1, 2)].num_judged == 11


def test_a_row_an_arm_and_the_base_has_no_labels(labelled: Path) -> None:
    rows, kl = spent_rows(read_run(labelled))
    assert [(row.arm, row.labels) for row in rows] == [
        ("plain", "0"),
        ("few", "22"),
        ("many", "42"),
        ("labels", "100"),
    ]
    assert [row.asked for row in rows] == [
        "no labels",
        "10 a round by gold, mix",
        "20 a round by gold, mix",
        "50 a round by gold, random",
    ]
    assert kl is not None
    assert rows[0].gold_at_kl_difference == ""
    assert rows[1].gold_at_kl_difference.startswith(("+", "-"))


def test_estimates_count_random_pairs_alone(labelled: Path) -> None:
    rows = {row.arm: row for row in spent_rows(read_run(labelled))[0]}
    assert rows["few"].estimate.startswith("0.70 [")
    assert rows["few"].estimate.endswith("] of 18 votes on random pairs"), "6 of each seed's 11"
    assert rows["many"].estimate.endswith("of 33 votes on random pairs")
    assert rows["plain"].estimate == ""


def test_arms_that_differ_in_number_alone_are_joined(labelled: Path) -> None:
    figure = draw_labels_spent(read_run(labelled))
    assert figure is not None
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["accuracy on the policy's own pairs", "final gold"]
    assert titles[2].startswith("gold at ")
    joined = [
        line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_alpha()
    ]
    ends = [tuple(line.get_xdata()) for line in joined]
    assert (22, 42) in ends
    assert not any(0 in pair or 100 in pair for pair in ends if pair[0] != pair[1])


def test_equal_kl_is_where_half_of_every_arms_seeds_arrive(labelled: Path) -> None:
    run = read_run(labelled)
    kl = common_kl(run, ("plain", "few", "many"))
    assert kl is not None
    assert kl % 0.25 == 0
    assert 1.0 < kl < 3.0, "the made-up policies end near 2.8 nats"
    assert common_kl(run, ()) is None


def test_a_run_without_labels_shows_nothing_of_them(full_run: Path) -> None:
    run = read_run(full_run)
    assert spent_rows(run) == ([], None)
    assert draw_labels_spent(run) is None


def test_the_page_has_the_table_and_says_what_waits(labelled: Path) -> None:
    place = labelled / "seed_0/arms/crowd/round_01/asked"

    def ask(folder: Path) -> dict[str, object]:
        rows = [{"prompt": "p", "first": "a", "second": f"b{n}"} for n in range(3)]
        write_json_lines(folder / "pairs.jsonl", rows)
        return {"labels_from": "people", "votes_per_pair": 1}

    build_stage(place, {}, [], ask)
    page = write_report(labelled).read_text("utf-8")
    assert page.count("What the labels bought") == 3, "the figure, its text, and the table"
    assert "18 votes on random pairs" in page
    assert "It is waiting for 3 labels (crowd): metarm label serve" in page


def test_a_familys_name_says_once_what_its_names_have_in_common() -> None:
    assert _family_name(["random-25", "random-50", "random-100"]) == "random-25, 50, 100"
    # `mix-5` begins `mix-50` too, and is no less a number of its own.
    assert _family_name(["mix-5", "mix-50"]) == "mix-5, 50"
    assert _family_name(["few", "fresh"]) == "few, fresh"
    assert _family_name(["plain"]) == "plain"
