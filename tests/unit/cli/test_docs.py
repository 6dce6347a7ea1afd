# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md is what the command says today."""

from pathlib import Path

from metarm.cli.app import VERBS
from metarm.cli.docs import cli_page


def test_the_page_is_fresh(repository: Path) -> None:
    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_page(), "stale: run `python -m metarm.cli.docs docs/cli.md`"


def test_the_page_tells_of_every_verb_and_flag() -> None:
    page = cli_page()
    for verb in VERBS:
        assert f"\n## metarm {verb}\n" in page
    for text in ("`--meta-set F`", "`meta_mode=joint`", "`world.seed=0`", "`evaluation.gold=null`"):
        assert text in page
