# SPDX-License-Identifier: Apache-2.0
"""Another model takes the place of the one served, or changes nothing at all."""

import os
import shutil
from pathlib import Path

import pytest

from metarm.serving.counters import Counters
from metarm.serving.model_slot import ModelSlot, Watcher
from metarm.serving.settings import ServeSettings
from metarm.storage import read_json, write_json
from patience import PATIENCE_SECONDS
from tiny_models import save_reward_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two reward models and a pointer to the first."""
    for number in (1, 2):
        save_reward_model(tmp_path / f"model_{number}", seed=number)
    write_json(tmp_path / "champion.json", {"model": "model_1"})
    return tmp_path


def test_a_pointer_that_is_written_anew_swaps_the_model(models: Path) -> None:
    counters = Counters()
    slot = ModelSlot(models / "champion.json", counters, ServeSettings())
    first = slot.current
    assert not slot.refresh()
    assert slot.current is first
    write_json(models / "champion.json", {"model": "model_2"})
    assert slot.refresh()
    assert (slot.current.facts.name, slot.current.facts.version) == ("model_2", 2)
    assert slot.current.facts.sha256 != first.facts.sha256
    assert counters.value("metarm_swaps_total", outcome="done") == 1


def test_a_link_that_is_moved_swaps_the_model(models: Path) -> None:
    link = models / "champion"
    link.symlink_to(models / "model_1")
    slot = ModelSlot(link, Counters(), ServeSettings())
    (models / "new").symlink_to(models / "model_2")
    os.replace(models / "new", link)
    assert slot.refresh()
    assert slot.current.facts.name == "model_2"


@pytest.mark.parametrize(
    "what", ["no pointer", "no folder", "no model", "wrong field", "cut weights"]
)
def test_what_cannot_be_loaded_changes_nothing(models: Path, what: str) -> None:
    counters = Counters()
    slot = ModelSlot(models / "champion.json", counters, ServeSettings())
    first = slot.current
    if what == "no pointer":
        (models / "champion.json").unlink()
    else:
        write_json(models / "champion.json", {"model": "model_2"})
    if what == "no folder":
        shutil.rmtree(models / "model_2")
    elif what == "no model":
        (models / "model_2" / "config.json").write_text("{}")
    elif what == "wrong field":
        config = read_json(models / "model_2" / "config.json")
        write_json(models / "model_2" / "config.json", {**config, "attention_bias": 1})
    elif what == "cut weights":
        weights = models / "model_2" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    assert not slot.refresh()
    assert not slot.refresh()
    assert slot.current is first
    assert slot.last_error is not None
    assert counters.value("metarm_swaps_total", outcome="failed") == 1, "told once"
    save_reward_model(models / "model_2", seed=2)
    write_json(models / "champion.json", {"model": "model_2"})
    assert slot.refresh()
    assert slot.last_error is None


def test_the_same_bytes_are_the_same_model(models: Path) -> None:
    slot = ModelSlot(models / "champion.json", Counters(), ServeSettings())
    shutil.copytree(models / "model_1", models / "copy")
    write_json(models / "champion.json", {"model": "copy"})
    assert not slot.refresh()
    assert slot.current.facts.version == 1


def test_files_that_are_being_written_are_left_alone(models: Path) -> None:
    slot = ModelSlot(models / "champion.json", Counters(), ServeSettings())
    save_reward_model(models / "model_1", seed=7)
    assert not slot.refresh(waits_for_quiet=True), "seen for the first time"
    (models / "model_1" / "more.txt").write_text("still writing")
    assert not slot.refresh(waits_for_quiet=True), "changed since"
    assert slot.refresh(waits_for_quiet=True)
    assert slot.current.facts.version == 2


def test_a_watcher_asks_when_told_and_when_it_is_time(models: Path) -> None:
    seen: list[bool] = []

    def refresh(*, waits_for_quiet: bool) -> bool:
        seen.append(waits_for_quiet)
        if len(seen) == 3:
            watcher.stop()
        elif len(seen) == 1:
            watcher.ask()
        return False

    watcher = Watcher(refresh, seconds=0.01)
    watcher.start()
    watcher._thread.join(PATIENCE_SECONDS)
    assert seen[:2] == [True, False]
