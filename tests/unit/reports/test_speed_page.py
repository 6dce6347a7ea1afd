# SPDX-License-Identifier: Apache-2.0
"""The page and the tables of `metarm bench`, from MADE-UP figures."""

from pathlib import Path

import pytest

from metarm.reports.speed_page import draw_parts, headline, write_speed_page
from metarm.reports.speed_tables import all_tables, memory_text, ratio_text, seconds_text
from metarm.speed.results import PARTS, Block, Case, Measurement, Spread
from metarm.speed.summary import LABELS, summarise_case
from metarm.speed.workload import Workload

SECONDS = {
    "trl-default": 1.4,
    "trl": 1.0,
    "plain": 0.6,
    "meta": 1.5,
    "meta-naive": 3.5,
    "meta-every-4": 0.9,
    "sam": 3.6,
}


def made_up(kind: str = "lengths", k: int = 5) -> dict:
    methods = {}
    for name, seconds in SECONDS.items():
        parts = dict.fromkeys(PARTS, (seconds / 4,))
        blocks = tuple(Block((seconds,), parts) for _ in range(3))
        methods[name] = Measurement(blocks, 100.0, 10**9).to_json()
    methods["torchopt"] = Measurement(failure="fails: <b>no</b> derivative").to_json()
    case = Case(kind, "30m", Workload(256, 64, k, 4, 4), tuple(methods), 3, 1, False, 0)
    return {
        "case": case.to_json(),
        "methods": methods,
        "rates": {"flops_per_second": 1e12, "bytes_per_second": 1e10},
        "move": {"seconds": 0.02},
        "equivalence": {"score_error": 1e-6, "gradient_error": 2e-6, "computed_share": 0.4},
        "scoring": {"metarm": [0.3], "one batch": [0.9], "one by one": [1.0]},
    }


DOCUMENT = {
    "made": "2026-01-01",
    "command": "metarm bench",
    "load_per_core": 0.1,
    "machine": {
        "processor": "A <fast> one",
        "cores": 1,
        "threads": 1,
        "accelerator": "cpu",
        **dict.fromkeys(("torch", "transformers", "trl", "metarm"), "1"),
        "torchopt": None,
    },
    "settings": {"sizes": ["30m"]},
    "cases": [made_up(), *(made_up("k", k) for k in (2, 16))],
}


def test_the_page_says_it_all_and_loads_nothing(tmp_path: Path) -> None:
    page = write_speed_page(DOCUMENT, tmp_path).read_text("utf-8")
    assert all(LABELS[name] in page for name in SECONDS)
    assert page.count("data:image/svg+xml") == 1
    assert "fails: &lt;b&gt;no&lt;/b&gt; derivative" in page
    assert "A &lt;fast&gt; one" in page
    assert "http://" not in page
    assert "<script" not in page
    assert "gradient 2.0e-06 of its length; 40% of the padded" in page


def test_tables_and_what_is_in_them() -> None:
    tables = dict(all_tables(DOCUMENT))
    assert list(tables) == [
        "30m 256/64/5",
        "More responses a group",
        "Sixteen responses to a prompt scored",
    ]
    rows = {row[0]: row[1:] for row in tables["30m 256/64/5"]}
    assert rows[LABELS["meta"]][1:3] == ["1.50 [1.50, 1.50]", "1.07 [1.07, 1.07]"]
    assert rows[LABELS["trl"]][1] == "1"
    assert rows[LABELS["torchopt"]][:2] == ["fails: <b>no</b> derivative", "-"]
    assert rows[LABELS["meta-naive"]][3] == "3.50"
    assert {len(row) for table in tables.values() for row in table} == {9, 8, 5}
    swept = tables["More responses a group"]
    assert [row[0] for row in swept] == ["k", "2", "16"]
    assert float(swept[1][-1]) < float(swept[2][-1])
    scored = tables["Sixteen responses to a prompt scored"]
    assert scored[1][2:] == ["0.33 [0.33, 0.33]", "0.30 [0.30, 0.30]", "0.23"]
    brief = dict(all_tables(DOCUMENT, is_brief=True))["30m 256/64/5"]
    assert brief[4][2] == "1.50"


def test_the_headline_has_both_units_and_the_fastest_other_way() -> None:
    text = headline(summarise_case(DOCUMENT["cases"][0]))
    assert "plain training takes 0.60 of TRL's without checkpointing, 0.43 of TRL's as it" in text
    assert "0.42 of the fastest other MetaRM step (two closures (SAM style))" in text


def test_bars_end_at_the_steps_and_carry_their_floors() -> None:
    found = made_up()
    figure = draw_parts(found, summarise_case(found))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3.50", "3.00", "1.50", "0.90", "TRL"]
    lines = [line for line in figure.axes[0].lines if line.get_color() == "black"]
    assert len(lines) == 3
    del found["methods"]["meta"]
    assert draw_parts(found, summarise_case(found)) is None


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(0.0123456, 0.01, 1.5), "12.3 [10, 1500] ms"),
        (Spread(2.5, 2.0, 3.0), "2.5 [2, 3] s"),
        (None, "-"),
    ],
)
def test_seconds(spread, text: str) -> None:
    assert seconds_text(spread) == text


def test_other_texts() -> None:
    assert ratio_text(Spread(0.5, 0.25, 1.0)) == "0.50 [0.25, 1.00]"
    assert (memory_text(2_500_000_000), memory_text(3_400_000)) == ("2.50 GB", "3 MB")
