# SPDX-License-Identifier: Apache-2.0
"""The page on comparing names every method and shift there is, and none that is not."""

import re

from docs.pages import REPOSITORY
from metarm.bench.recipes import COUNTED, METHODS, read_recipe
from metarm.bench.settings import CompareSettings
from metarm.bench.shifts import SHIFTS
from metarm.config_file import read_settings

PAGE = (REPOSITORY / "docs" / "compare.md").read_text(encoding="utf-8")


def names(section: str) -> list[str]:
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE)


def test_every_method_and_shift() -> None:
    counted = [name for name in names("Methods") if "N" in name]
    assert sorted(names("Methods")) == sorted([*METHODS, *counted])
    found = [re.fullmatch(pattern, n.replace("N", "4")) for pattern in COUNTED for n in counted]
    assert sum(map(bool, found)) == len(counted) == len(COUNTED)
    assert names("Shifts") == list(SHIFTS)


def test_the_benchmark_asks_for_methods_that_there_are() -> None:
    settings = read_settings(REPOSITORY / "benchmarks" / "compare.yaml", [], CompareSettings)
    for name in settings.methods:
        read_recipe(name)
