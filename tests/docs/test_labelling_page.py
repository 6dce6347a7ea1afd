# SPDX-License-Identifier: Apache-2.0
"""The page on labelling names every reason and key, and shows the kept figures."""

import re

from docs.pages import REPOSITORY
from metarm.labelling.refusals import PAGE_STATUSES
from metarm.storage import read_json

PAGE = (REPOSITORY / "docs" / "labelling.md").read_text(encoding="utf-8")
SCRIPT = REPOSITORY / "src" / "metarm" / "labelling" / "static" / "label.js"
KEPT = read_json(REPOSITORY / "benchmarks" / "results" / "label_kills.json")


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_reason_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", _section("What is refused"), re.MULTILINE)
    assert {reason: int(status) for status, reason in rows} == dict(PAGE_STATUSES)


def test_every_key() -> None:
    table = SCRIPT.read_text(encoding="utf-8").split("const KEYS = {")[1].split("};")[0]
    keys = re.findall(r"^  \"?([\w?]+)\"?:", table, re.MULTILINE)
    arrows = {"ArrowLeft": "←", "ArrowRight": "→"}
    for key in keys:
        assert f"`{arrows.get(key, key)}`" in _section("Keys"), key
    assert len(keys) == 16


def test_the_figures_are_those_that_were_kept() -> None:
    rows = dict(re.findall(r"^\| ([^|]+?) \| (\d+) \|$", _section("What is kept"), re.MULTILINE))
    kills = KEPT["kills"]
    assert rows == {
        "server": str(kills["server"]),
        "annotators over HTTP, with an outbox in files": str(kills["annotator"]),
        "pages in Chromium, with their browsers": str(kills["browser"]),
        "answers given": str(KEPT["num_answered"]),
        "acknowledged": str(KEPT["num_acknowledged"]),
        "stored": str(KEPT["num_stored"]),
        "acknowledged and lost": str(KEPT["num_lost"]),
        "doubled": str(KEPT["num_doubled"]),
        "with wrong sides": str(KEPT["num_wrong_sides"]),
        "votes beyond those that a pair wants": str(KEPT["num_votes_beyond_their_pairs"]),
    }
    assert KEPT["num_kills"] >= 200
    assert (KEPT["num_annotators"], KEPT["num_pairs"]) == (20, 400)
    assert KEPT["num_lost"] == KEPT["num_doubled"] == KEPT["num_wrong_sides"] == 0
    assert KEPT["integrity"] == "ok"
    assert KEPT["is_labelled_to_the_end"]


def test_the_figures_across_batches_are_those_that_were_kept() -> None:
    kept = read_json(REPOSITORY / "benchmarks" / "results" / "label_kills_batches.json")
    told = f"{kept['num_kills']} kills of server, annotators and browsers "
    told += f"({kept['num_annotators']} annotators, {kept['num_answered']} answers;"
    assert told in " ".join(_section("What is kept").split())
    assert kept["num_acknowledged"] == kept["num_stored"] == kept["num_answered"]
    assert kept["num_lost"] == kept["num_doubled"] == kept["num_wrong_sides"] == 0
    assert kept["is_labelled_to_the_end"]


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"\(images/(labelling-[\w-]+\.png)\)", PAGE)
    folder = REPOSITORY / "docs" / "images"
    assert {path.name for path in folder.glob("labelling-*.png")} == set(pictures)
    assert all((folder / name).stat().st_size < 250_000 for name in pictures)
