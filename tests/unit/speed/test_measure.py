# SPDX-License-Identifier: Apache-2.0
"""Measurements are made once, each is kept at once, and a package that fails is a result."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from metarm.errors import ConfigError
from metarm.progress import SilentProgress
from metarm.speed import measure, trainers
from metarm.speed.machine import Rates
from metarm.speed.measure import measure_speed
from metarm.speed.settings import BenchSettings


@pytest.fixture
def settings(tmp_path: Path) -> BenchSettings:
    return BenchSettings(
        output_dir=tmp_path / "out",
        sizes=["tiny"],
        lengths=["12/6/3"],
        num_pairs=2,
        num_groups=2,
        methods=["trl", "sam", "torchopt"],
        repeats=2,
        steps=1,
        inference=False,
    )


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch) -> None:
    monkeypatch.setattr(measure, "measure_rates", lambda *_, **__: Rates(1e9, 1e9))


def files(settings: BenchSettings) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in settings.output_dir.glob("measured/*/*.json")}


def test_a_package_that_fails_says_why(settings, monkeypatch) -> None:
    def refuse(model: object) -> None:
        raise RuntimeError("derivative is not implemented\nand more")

    monkeypatch.setitem(sys.modules, "torchopt", SimpleNamespace(extract_state_dict=refuse))
    found = measure_speed(settings, progress=SilentProgress())["cases"][0]["methods"]
    assert found["torchopt"]["failure"] == "fails: RuntimeError: derivative is not implemented"
    assert not found["torchopt"]["blocks"]
    assert (found["sam"]["failure"], len(found["sam"]["blocks"])) == ("", 2)
    # A package that was not there is looked for again; one that failed is not run again.
    monkeypatch.setitem(sys.modules, "torchopt", None)
    again = measure_speed(settings, progress=SilentProgress())["cases"][0]["methods"]
    assert again["torchopt"]["failure"] == found["torchopt"]["failure"]


def test_a_package_that_is_missing_is_looked_for_again(settings, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchopt", None)
    found = measure_speed(settings, progress=SilentProgress())["cases"][0]["methods"]
    assert found["torchopt"]["failure"] == "not installed (torchopt)"

    def refuse(model: object) -> None:
        raise TypeError("now it is there")

    monkeypatch.setitem(sys.modules, "torchopt", SimpleNamespace(extract_state_dict=refuse))
    again = measure_speed(settings, progress=SilentProgress())["cases"][0]["methods"]
    assert again["torchopt"]["failure"] == "fails: TypeError: now it is there"


def test_our_own_failure_is_an_error(settings, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(trainers, "_train", fail)
    with pytest.raises(RuntimeError, match="ours"):
        measure_speed(settings, progress=SilentProgress())


def test_it_goes_on_where_it_was_stopped_and_adds_what_is_new(settings, monkeypatch) -> None:
    settings = settings.model_copy(update={"methods": ["trl", "sam"]})
    whole, calls = measure._Kept._time, []

    def stop_third(self: measure._Kept, name: str, repeat: int) -> None:
        calls.append((name, repeat))
        if len(calls) == 3:
            raise KeyboardInterrupt
        whole(self, name, repeat)

    monkeypatch.setattr(measure._Kept, "_time", stop_third)
    with pytest.raises(KeyboardInterrupt):
        measure_speed(settings, progress=SilentProgress())
    # Every other time backwards.
    assert calls == [("trl", 0), ("sam", 0), ("sam", 1)]
    monkeypatch.undo()
    monkeypatch.setattr(measure, "measure_rates", None)
    before = files(settings)
    assert len(before) == 5
    done = measure_speed(settings, progress=SilentProgress())["cases"][0]
    assert {name: len(row["blocks"]) for name, row in done["methods"].items()} == {
        "trl": 2,
        "sam": 2,
    }
    changed = [path.name for path, moment in files(settings).items() if before[path] != moment]
    assert sorted(changed) == ["method_sam.json", "method_trl.json"]
    more = settings.model_copy(update={"methods": ["trl", "functional-call"], "repeats": 1})
    kept = files(settings)
    added = measure_speed(more, progress=SilentProgress())["cases"][0]["methods"]
    assert len(added["functional-call"]["blocks"]) == 1
    assert all(files(settings)[path] == moment for path, moment in kept.items())


def test_another_case_has_a_folder_of_its_own(settings) -> None:
    settings = settings.model_copy(update={"methods": ["sam"], "repeats": 1})
    measure_speed(settings, progress=SilentProgress())
    measure_speed(settings.model_copy(update={"seed": 1}), progress=SilentProgress())
    assert len(list(settings.output_dir.glob("measured/*"))) == 2


def test_unknown_methods_are_refused(settings) -> None:
    wrong = settings.model_copy(update={"methods": ["plane"]})
    with pytest.raises(ConfigError, match="plain"):
        measure_speed(wrong, progress=SilentProgress())
