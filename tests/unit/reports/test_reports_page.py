# SPDX-License-Identifier: Apache-2.0
"""The page: self-contained, safe with any text, complete, and honest about what is missing."""

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from metarm.errors import EmptySetError, FormatError
from metarm.reports.measures import definitions
from metarm.reports.page import summary_table, write_report
from metarm.reports.read_run import read_run
from metarm.reports.rendering import fact_rows, visible_text
from metarm.schema import Scorecard
from metarm.storage import read_json, write_json, write_json_lines, write_text

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x.png onerror=alert(2)>',
    "</div></body><style>*{display:none}</style>",
    "W" * 5000,
    "\u202egnp.exe \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629\u2066",
    "{{ 7 * 7 }} {% for x in y %} \U0001f469\u200d\U0001f52c \U0001f600 \x00\x1b[31m",
    "",
)


class Collector(HTMLParser):
    """Every tag with its attributes, the text, and the tags left open."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(path: Path) -> Collector:
    collector = Collector()
    collector.feed(path.read_text(encoding="utf-8"))
    collector.close()
    return collector


@pytest.fixture(scope="module")
def page(full_run) -> Collector:
    return parsed(write_report(full_run))


def test_page_loads_nothing_and_runs_nothing(page, full_run):
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form", "svg"}
    )
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    source = (full_run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert "@import" not in source


def test_page_is_well_formed(page):
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_every_figure_has_a_text_and_is_a_picture(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8
    for image in images:
        assert len(image["alt"]) > 40
        assert "frozen 0" in image["alt"] or "frozen 4" in image["alt"]
        drawn = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
        assert drawn.startswith(b"<?xml")
        assert b"<script" not in drawn


def test_every_field_of_a_scorecard_is_explained(page):
    explained = {attributes.get("id") for tag, attributes in page.tags if tag == "tr"}
    for field in fields(Scorecard):
        assert f"field-{field.name}" in explained
    assert all(text.strip() for text in definitions().values())
    assert "Standard deviation of reward differences between responses" in page.text


def test_table_shows_the_mean_over_seeds_of_the_final_round(page, full_run):
    cards = [
        read_json(full_run / f"seed_{s}/arms/meta/round_03/evaluation/scorecard.json")
        for s in (0, 1, 2)
    ]
    mean = sum(card["gold_score"]["value"] for card in cards) / 3
    assert f"{mean:.3f}" in page.text


def test_number_of_comparisons_is_told(page):
    # 8 measures and the restored accuracy, 3 arms against plain, then 3 against frozen;
    # nothing is restored in frozen
    assert "50 comparisons with an interval" in " ".join(page.text.split())


def test_page_is_the_same_when_written_twice(page, full_run):
    first = (full_run / "report.html").read_bytes()
    assert write_report(full_run).read_bytes() == first


@pytest.mark.parametrize("place", ["response", "prompt", "arm", "setting"])
def test_hostile_text_stays_text(make_run, tmp_path, place):
    arms = ("sft", "plain") if place == "arm" else ("sft",)
    folder = make_run(tmp_path / "run", arms=arms, rounds=1, seeds=(0,))
    if place == "arm":
        shutil.move(folder / "seed_0/arms/plain", folder / "seed_0/arms/<script>alert(1)<b>$_x^{$")
    elif place == "setting":
        write_text(
            folder / "config.yaml", "\n".join(text for text in HOSTILE if "\x00" not in text)
        )
    for path in folder.glob("seed_0/arms/*/round_*/evaluation/samples.jsonl"):
        rows = [{"prompt": "p", "response": "r", place: text} for text in HOSTILE]
        write_json_lines(path, [{**row, "gold": None, "score": None} for row in rows])
    page = parsed(write_report(folder))
    assert page.open == []
    assert {"script", "b"}.isdisjoint({tag for tag, _ in page.tags})
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert all((a["src"] or "").startswith("data:") for tag, a in page.tags if tag == "img")
    assert "<script>alert(1)" in page.text
    assert not set(page.text) & set("\u202e\u2066\x00\x1b")


def test_first_prompts_are_shown_and_long_responses_cut(make_run, tmp_path):
    responses = [f"answer-{number}" for number in range(9)]
    texts = ["W" * 5000, *responses]
    folder = make_run(tmp_path / "run", arms=("sft",), seeds=(0,), responses=texts)
    text = parsed(write_report(folder)).text
    assert "3500 more characters" in text
    assert "answer-2" in text
    assert "answer-3" not in text


def test_a_conversation_is_shown_by_its_roles(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft",), seeds=(0,))
    prompt = [{"role": "user", "content": "which way?"}]
    samples = folder / "seed_0/arms/sft/round_00/evaluation/samples.jsonl"
    write_json_lines(samples, [{"prompt": prompt, "response": "left"}])
    assert "user: which way?" in parsed(write_report(folder)).text


def test_lone_surrogates_do_not_stop_the_page(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft",), seeds=(0,))
    samples = folder / "seed_0/arms/sft/round_00/evaluation/samples.jsonl"
    write_text(samples, '{"prompt": "p", "response": "half \\ud83d a pair"}\n')
    assert "half <U+D83D> a pair" in parsed(write_report(folder)).text


def test_settings_are_rows_of_text_whatever_they_hold():
    facts = {"seed": 0, "run": Path("runs/a"), "head": {"hidden": [4], "places": [Path("b")]}}
    assert fact_rows(facts) == [
        ("seed", "0"),
        ("run", "runs/a"),
        ("head: hidden", "[4]"),
        ("head: places", '["b"]'),
    ]


def test_visible_text_keeps_what_people_write():
    kept = "a\n\tb \u05e9\u05dc\u05d5\u05dd \U0001f469\u200d\U0001f52c caf\u00e9"
    assert visible_text(kept) == kept
    assert visible_text("a\u202eb\x07") == "a<U+202E>b<U+0007>"


def test_without_gold_the_gold_figures_are_left_out(make_run, tmp_path):
    arms = ("sft", "frozen", "plain", "meta")
    page = parsed(write_report(make_run(tmp_path / "run", arms=arms, gold=False)))
    assert [tag for tag, _ in page.tags].count("img") == 4
    assert "Gold against KL" not in page.text
    assert "This run has no gold function" in page.text


def test_unfinished_run_says_what_is_missing(make_run, tmp_path):
    def change(card):
        is_late = card.arm == "labels" or (card.seed == 1 and card.round == 2)
        return None if is_late else card

    folder = make_run(tmp_path / "run", rounds=2, planned_rounds=3, seeds=(0, 1), change=change)
    (folder / "run.json").unlink()
    partial = folder / "seed_0/arms/labels/round_01/.evaluation.partial"
    partial.mkdir(parents=True)
    (partial / "scorecard.json").write_text("{", encoding="utf-8")
    text = parsed(write_report(folder)).text
    assert "Seed 0 has not finished: frozen round 3; plain round 3; meta round 3; labels" in text
    assert "Seed 1 has not finished: frozen rounds 2, 3;" in text
    assert "run.json is missing" in text
    assert "After 2 of 3 planned rounds" in text


def test_no_scorecard_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(EmptySetError, match=r"found none\. Let the run finish one round"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_broken_scorecard_is_named(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft",), seeds=(0,))
    path = folder / "seed_0/arms/sft/round_00/evaluation/scorecard.json"
    write_json(path, {**read_json(path), "kl_nats": None})
    with pytest.raises(FormatError, match=r"scorecard\.json: expected a value in 'kl_nats'"):
        write_report(folder)


def test_torn_log_costs_only_its_last_line(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft", "plain"), rounds=1, seeds=(0,))
    log = folder / "seed_0/arms/plain/round_01/policy/metrics.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    run = read_run(folder)
    ((_, curve),) = run.curves.items()
    assert len(curve) == 39
    assert any("metrics.jsonl:40" in sentence for sentence in run.missing)
    write_report(folder)


def test_settings_this_version_does_not_know_are_shown_as_they_are(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft",), seeds=(0,))
    settings = json.loads((folder / "config.yaml").read_text(encoding="utf-8"))
    write_text(folder / "config.yaml", json.dumps({**settings, "from_the_future": 1}))
    text = parsed(write_report(folder)).text
    assert "not understood by this version" in text
    assert "from_the_future" in text


def test_summary_table_has_a_row_per_arm_and_the_headline(full_run):
    text = summary_table(full_run)
    rows = text.split("\n\n")[0].splitlines()
    assert rows[0].startswith("arm")
    assert [row.split(",")[0] for row in rows[1:]] == ["sft", "frozen", "plain", "meta", "labels"]
    # columns line up: the first value starts at the same place in each row
    place = rows[0].index("accuracy, own pairs")
    assert all(re.match(r"0\.\d{3} \[", row[place:]) for row in rows[1:])
    assert "After 3 rounds of frozen" in text
    assert "difference to plain" in text


def test_import_leaves_torch_out():
    code = (
        "import sys, metarm.reports.page\n"
        "print(sorted({'torch', 'transformers', 'trl', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_templates_escape_everything():
    folder = files("metarm.reports") / "templates"
    for path in folder.iterdir():
        source = path.read_text(encoding="utf-8")
        assert "|safe" not in source.replace(" ", "")
        assert "autoescape" not in source
        assert not re.search(r"=\{\{", source), "an unquoted attribute lets new ones in"
