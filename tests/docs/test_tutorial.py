# SPDX-License-Identifier: Apache-2.0
"""The tutorial's commands work, one after the other, from a bare checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_environment, reader_folder
from patience import PATIENCE_SECONDS


@pytest.mark.slow
def test_the_tutorial_can_be_typed(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = [block.text for block in fenced_blocks(text) if block.language == "sh"]
    environment = reader_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "\n".join(blocks)],
        cwd=reader_folder(tmp_path),
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    for page in ("smoke", "own"):
        assert (tmp_path / "runs" / page / "report.html").exists()
    assert done.stdout.count("held-out accuracy") == 2
