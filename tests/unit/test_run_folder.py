# SPDX-License-Identifier: Apache-2.0
"""The run's own files: settings, starts, and the lock."""

import errno
import fcntl
from pathlib import Path

import pytest

from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.errors import DataError, FingerprintError, FormatError, RunError
from metarm.run_folder import open_run_folder
from metarm.storage import read_json, write_json


def settings(folder: Path, rounds: int = 1) -> RunSettings:
    return RunSettings.model_validate({"output_dir": folder, "world": {}, "rounds": rounds})


def test_settings_and_each_start_are_written_down(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "deep" / "run"
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/metarm", "run", "a b"])
    with open_run_folder(settings(run)) as folder:
        assert folder == run
        assert read_settings(run / "config.yaml", [], RunSettings) == settings(run)
    first = read_json(run / "run.json")
    assert first["command"] == "metarm run a b"
    assert first["versions"].keys() >= {"metarm", "python", "torch", "trl"}
    monkeypatch.setattr("sys.argv", ["metarm", "run", "again"])
    monkeypatch.setattr("metarm.__version__", "99")
    for rounds in (2, 3):
        with open_run_folder(settings(run, rounds)):
            pass
    now = read_json(run / "run.json")
    assert {key: now[key] for key in first} == first
    assert [start["command"] for start in now["resumed"]] == ["metarm run again"] * 2
    assert now["resumed"][0]["versions"]["metarm"] == "99"
    assert "machine" not in now["resumed"][0], "what is as it was is not said again"
    assert read_settings(run / "config.yaml", [], RunSettings).rounds == 3


@pytest.mark.parametrize(("error", "rounds"), [(FingerprintError, 1), (DataError, 2)])
def test_settings_that_the_stages_are_not_of_are_not_kept(
    tmp_path: Path, error: type[Exception], rounds: int
) -> None:
    with open_run_folder(settings(tmp_path)):
        pass
    with pytest.raises(error), open_run_folder(settings(tmp_path, rounds=2)):
        raise error("stop")
    assert read_settings(tmp_path / "config.yaml", [], RunSettings).rounds == rounds


def test_the_folder_has_one_user(tmp_path: Path) -> None:
    def enter_again() -> None:
        with open_run_folder(settings(tmp_path, rounds=2)):
            pass

    with open_run_folder(settings(tmp_path)):
        with pytest.raises(RunError, match="in use by another process"):
            enter_again()
        assert read_settings(tmp_path / "config.yaml", [], RunSettings).rounds == 1
    enter_again()


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch) -> None:
    def fail(code: int):
        def flock(*_):
            raise OSError(code, "no locks")

        return flock

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with open_run_folder(settings(tmp_path)):
        pass
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError, match="no locks"), open_run_folder(settings(tmp_path)):
        pass


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", [1])
    with pytest.raises(FormatError, match=r"run\.json"), open_run_folder(settings(tmp_path)):
        pass
