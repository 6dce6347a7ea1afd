# SPDX-License-Identifier: Apache-2.0
"""The page on serving names every reason, route and metric, and shows the kept figures."""

import re

from docs.pages import REPOSITORY
from metarm.serving.counters import SERVER_METRICS
from metarm.serving.guard import KNOWN_ROUTES
from metarm.serving.refusals import STATUSES
from metarm.storage import read_json

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "benchmarks" / "results"


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_reason_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", _section("What is refused"), re.MULTILINE)
    assert {reason: int(status) for status, reason in rows} == dict(STATUSES)


def test_every_route() -> None:
    rows = re.findall(r"^\| `(?:GET|POST) (\S+)` \|", _section("Routes"), re.MULTILINE)
    assert set(rows) == KNOWN_ROUTES


def test_every_metric() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|", _section("Metrics"), re.MULTILINE)
    assert {name: (kind, text) for name, kind, text in rows} == dict(SERVER_METRICS)


def test_the_figures_are_those_that_were_kept() -> None:
    kept = read_json(RESULTS / "serve_overload.json")
    body = _section("Under load")
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", body, re.MULTILINE)
    shown = {name: cells for name, *cells in rows}

    def row(name: str, *numbers: object) -> None:
        assert shown[name] == [str(number) for number in numbers]

    runs = kept["runs"]
    row("items that may wait", *(run["max_waiting_items"] for run in runs))
    row("capacity, requests a second", *(run["capacity_requests_per_second"] for run in runs))
    over = [run["overload"] for run in runs]
    row("sent a second", *(found["sent_requests_per_second"] for found in over))
    row("accepted in all", *(found["by_code"]["200"] for found in over))
    row("refused in all (429)", *(found["by_code"]["429"] for found in over))
    row("wrong or misordered scores", *(found["wrong_scores"] for found in over))
    row("lost", *(found["lost"] for found in over))
    for name, key in (("p50", "p50"), ("p99", "p99")):
        row(f"unloaded, {name} in ms", *(run["unloaded"]["accepted_ms"][key] for run in runs))
        row(f"accepted, {name} in ms", *(found["accepted_ms"][key] for found in over))
    row("memory after 10 s, MiB", *(run["resident_mib"]["first_10_seconds_max"] for run in runs))
    row("memory at the end, MiB", *(run["resident_mib"]["last_10_seconds_max"] for run in runs))
    assert all(set(found["by_code"]) == {"200", "429"} for found in over)
    assert all(found["wrong_scores"] == found["lost"] == 0 for found in over)
    assert all(run["exit_code"] == 0 for run in runs)
    assert kept["command"].partition(" ")[2].split()[0] in body
