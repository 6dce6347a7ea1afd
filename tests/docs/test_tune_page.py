# SPDX-License-Identifier: Apache-2.0
"""The page on tuning names every setting that is searched, and its range."""

import re

from docs.pages import REPOSITORY
from metarm.bench.space import RANGES

PAGE = (REPOSITORY / "docs" / "tune.md").read_text(encoding="utf-8")


def test_every_range() -> None:
    body = PAGE.split("\n## What is searched\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([\d.]+) to ([\d.]+)(.*?) \|", body, re.MULTILINE)
    assert {name: (float(low), float(high)) for name, low, high, _ in rows} == dict(RANGES)
    multiples = [name for name, *_, unit in rows if unit == " times the method's own"]
    assert multiples == ["strength", "reward_fraction"]
