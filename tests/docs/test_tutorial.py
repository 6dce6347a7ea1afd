# SPDX-License-Identifier: Apache-2.0
"""The tutorial's commands work, one after the other, from a bare checkout."""

from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_folder
from docs.typed import type_out


@pytest.mark.slow
def test_the_tutorial_can_be_typed(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = [block.text for block in fenced_blocks(text) if block.language == "sh"]
    out, _ = type_out("\n".join(blocks), reader_folder(tmp_path), is_ready=False)
    for page in ("smoke", "own"):
        assert (tmp_path / "runs" / page / "report.html").exists()
    assert out.count("held-out accuracy") == 2
