# SPDX-License-Identifier: Apache-2.0
"""A model folder is copied whole, but for the record of the stage that made it."""

from pathlib import Path

import pytest

from metarm.models.reward_model import load_score_function
from metarm.models.saving import copy_model_folder
from metarm.storage import STAGE_FILE, build_stage
from tiny_models import save_reward_model


def test_a_copy_has_the_folders_of_a_model_and_not_its_stage(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        save_reward_model(folder)
        # As sentence encoders and checkpoints have them.
        (folder / "1_Pooling" / "deep").mkdir(parents=True)
        (folder / "1_Pooling" / "config.json").write_text("{}")
        (folder / "1_Pooling" / "deep" / STAGE_FILE).write_text("not this stage's")

    build_stage(tmp_path / "made", {}, [], build)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_text("replaced")
    copy_model_folder(tmp_path / "made", tmp_path / "copy")

    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    made = contents(tmp_path / "made")
    assert STAGE_FILE in made
    del made[STAGE_FILE]
    assert contents(tmp_path / "copy") == made
    scores = [load_score_function(tmp_path / n)(["a"], [" b c"]) for n in ("made", "copy")]
    assert scores[0] == pytest.approx(scores[1], abs=0)
