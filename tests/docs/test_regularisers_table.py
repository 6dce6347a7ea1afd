# SPDX-License-Identifier: Apache-2.0
"""The table of regularisers on docs/stretching.md is that of the kept results."""

import runpy

from docs.pages import REPOSITORY
from metarm.storage import read_json

PAGE = REPOSITORY / "docs" / "stretching.md"


def test_the_table_is_that_of_the_results() -> None:
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "regularisers.py"))
    page, kept = PAGE.read_text(encoding="utf-8"), read_json(script["RESULTS"])
    assert script["render"](page, kept) == page
    assert f"{len(kept['seeds'])} seeds" in page
    kept["rows"][1]["accuracy"]["value"] += 0.01
    assert script["render"](page, kept) != page
