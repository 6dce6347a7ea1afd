# SPDX-License-Identifier: Apache-2.0
"""Storage: whole or not at all, at every system call; stages are built once."""

import errno
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crashes import cut, die_at_call, flip_bit
from metarm import storage
from metarm.errors import (
    ConfigError,
    DataError,
    FingerprintError,
    FormatError,
    ModelError,
    RunError,
)
from metarm.storage import (
    append_json_line,
    build_stage,
    check_writable,
    checkpoints_of,
    content_digest,
    fingerprint,
    read_json,
    read_json_lines,
    verify_stage,
    write_json,
    write_json_lines,
    write_text,
)


def test_a_file_is_old_or_new_wherever_the_writer_dies(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    old, new = "old " * 500, "new " * 700
    points = 0
    seen = set()
    while True:
        write_text(path, old)
        died = die_at_call(points + 1, lambda: write_text(path, new))
        seen.add(path.read_text())
        assert path.read_text() in (old, new)
        if not died:
            break
        points += 1
    assert path.read_text() == new
    assert points >= 5, "open, write, fsync, close and rename must all have been cut"
    assert seen == {old, new}, "some cuts must come before the rename and some after it"


def test_a_stage_is_absent_or_whole_wherever_its_builder_dies(tmp_path: Path) -> None:
    content = {"a.txt": "a" * 3000, "deep/b.txt": "b" * 5000}

    def build(folder: Path) -> dict[str, int]:
        for name, text in content.items():
            write_text(folder / name, text)
        return {"files": len(content)}

    points = finished = 0
    while True:
        folder = tmp_path / f"run{points}" / "stage"
        folder.parent.mkdir()
        died = die_at_call(points + 1, lambda f=folder: build_stage(f, {"x": 1}, [], build))
        was_whole = folder.exists()
        if was_whole:
            finished += died
            assert (folder / "stage.json").exists()
            assert {n: (folder / n).read_text() for n in content} == content
        calls = []
        stage = build_stage(folder, {"x": 1}, [], lambda f, c=calls: c.append(f) or build(f))
        assert len(calls) == (0 if was_whole else 1)
        assert stage.metrics == {"files": 2}
        assert {n: (folder / n).read_text() for n in content} == content
        leftovers = [p.name for p in folder.parent.iterdir() if p != folder]
        assert leftovers == [], "the next run must clear what the dead one left"
        if not died:
            break
        points += 1
    assert points >= 20
    assert finished >= 1, "the calls after the rename must have been cut too"


def test_a_failed_write_leaves_the_old_file_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    for name, code, advice in (
        ("fsync", errno.ENOSPC, "free space"),
        ("replace", errno.EROFS, "read-only"),
        ("write", errno.EDQUOT, "quota"),
        ("open", errno.EACCES, "No permission"),
        ("replace", errno.EIO, "mend the place"),
    ):

        def fail(*_: object, code: int = code, **__: object) -> None:
            raise OSError(code, os.strerror(code), "file.txt")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(RunError, match=advice) as caught:
                write_text(path, "new")
        assert str(path) in str(caught.value)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path], "no temporary file may stay"


def test_a_full_device_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    real = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, flags, *mode: real(
            "/dev/full" if str(path).endswith(".tmp") else path, flags, *mode
        ),
    )
    with pytest.raises(RunError, match="disk is full"):
        write_text(tmp_path / "file.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_places_fail_before_work_begins(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(RunError, match="cannot write"):
        check_writable(tmp_path / "file" / "below")
    calls: list[Path] = []
    with pytest.raises(RunError, match="cannot write"):
        build_stage(tmp_path / "file" / "stage", 1, [], lambda f: calls.append(f))
    assert calls == []
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_text_that_cannot_be_encoded_changes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_stop_by_the_user_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


def test_everything_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append(("replace", Path(target).name))
        real_replace(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)

    def build(folder: Path) -> None:
        # As a library does that knows nothing of syncing.
        (folder / "weights").write_bytes(b"w")

    build_stage(tmp_path / "stage", {}, [], build)
    renamed = events.index(("replace", "stage"))
    assert ("fsync", "weights") in events[:renamed]
    assert ("fsync", tmp_path.name) in events[renamed:]


def make(tmp_path: Path, settings: object = 1, **kwargs: object) -> storage.Stage:
    return build_stage(
        tmp_path / "stage", settings, kwargs.get("inputs", []), lambda f: {"steps": 3}
    )


def test_a_finished_stage_is_not_built_again(tmp_path: Path) -> None:
    first = make(tmp_path)

    def never(_: Path) -> None:
        raise AssertionError("built twice")

    second = build_stage(tmp_path / "stage", 1, [], never)
    assert second == first
    assert second.metrics == {"steps": 3}


def test_other_settings_or_inputs_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(FingerprintError, match="other settings or inputs"):
        make(tmp_path, settings=2)
    other = build_stage(tmp_path / "other", 5, [], lambda f: None)
    with pytest.raises(FingerprintError):
        make(tmp_path, inputs=[other])


def test_what_a_dead_run_left_is_removed_before_building(tmp_path: Path) -> None:
    write_text(tmp_path / ".stage.partial" / "torn.txt", "half")
    stage = make(tmp_path)
    assert sorted(p.name for p in stage.folder.iterdir()) == ["stage.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize(
    ("error", "has_written", "has_kept", "left"),
    [
        (ConfigError("a flag"), True, False, []),
        (FormatError("a row"), True, True, [".stage.checkpoints"]),
        (ModelError("no such model"), False, False, []),
        (RunError("a cap"), False, True, [".stage.checkpoints"]),
        # What a training that diverged has written is looked into.
        (ModelError("diverged"), True, True, [".stage.checkpoints", ".stage.partial"]),
        (KeyboardInterrupt(), False, False, [".stage.checkpoints", ".stage.partial"]),
    ],
)
def test_a_refusal_leaves_nothing_but_what_is_gone_on_from(
    tmp_path: Path, error: BaseException, has_written: bool, has_kept: bool, left: list[str]
) -> None:
    def build(folder: Path) -> None:
        if has_written:
            write_text(folder / "deep" / "not_finite_3.json", "{}")
        if has_kept:
            write_text(checkpoints_of(folder) / "one", "half the work")
        raise error

    with pytest.raises(type(error)):
        build_stage(tmp_path / "stage", 1, [], build, goes_on=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_folder_that_is_no_stage_is_refused_before_any_work(tmp_path: Path) -> None:
    write_text(tmp_path / "stage" / "mine.txt", "precious")
    calls: list[Path] = []
    with pytest.raises(RunError, match="not a finished stage"):
        build_stage(tmp_path / "stage", 1, [], lambda f: calls.append(f))
    assert calls == []
    assert (tmp_path / "stage" / "mine.txt").read_text() == "precious"


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    assert make(tmp_path).metrics == {"steps": 3}


def test_a_damaged_stage_is_refused(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        write_text(folder / "deep" / "weights", "12345")

    build_stage(tmp_path / "stage", 1, [], build)
    weights = tmp_path / "stage" / "deep" / "weights"
    weights.write_text("123")
    with pytest.raises(RunError, match=r"weights: expected 5 bytes .* got 3"):
        build_stage(tmp_path / "stage", 1, [], build)
    weights.unlink()
    with pytest.raises(RunError, match="got no file"):
        build_stage(tmp_path / "stage", 1, [], build)
    for record in ("{}", "[]", "null", '{"fingerprint": 1}'):
        (tmp_path / "stage" / "stage.json").write_text(record)
        with pytest.raises(RunError, match="expected the record of a finished stage"):
            build_stage(tmp_path / "stage", 1, [], build)
    (tmp_path / "stage" / "stage.json").write_text('{"finger')
    with pytest.raises(FormatError, match="expected JSON"):
        build_stage(tmp_path / "stage", 1, [], build)


def test_a_full_disk_in_a_stage_is_a_run_error_and_other_errors_pass(tmp_path: Path) -> None:
    def fail(error: Exception) -> Callable[[Path], None]:
        def build(_: Path) -> None:
            raise error

        return build

    full = OSError(errno.ENOSPC, "No space left on device", "weights")
    with pytest.raises(RunError, match=r"stage stage failed on weights.*free space"):
        build_stage(tmp_path / "stage", 1, [], fail(full))
    rust = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RunError, match=r"stage stage failed on .*stage: No space.*free space"):
        build_stage(tmp_path / "stage", 1, [], fail(rust))
    other = ValueError("Interrupted system call (os error 4)")
    with pytest.raises(ValueError, match="os error 4") as passed:
        build_stage(tmp_path / "stage", 1, [], fail(other))
    assert passed.value is other
    plain = OSError("Can't load the tokenizer")
    with pytest.raises(OSError, match="tokenizer") as caught:
        build_stage(tmp_path / "stage", 1, [], fail(plain))
    assert caught.value is plain
    assert not (tmp_path / "stage").exists()


def test_metrics_that_are_not_finite_do_not_lose_the_stage(tmp_path: Path) -> None:
    stage = build_stage(tmp_path / "stage", 1, [], lambda f: {"a": float("nan"), "b": [1.5]})
    assert stage.metrics == {"a": None, "b": [1.5]}
    assert build_stage(tmp_path / "stage", 1, [], lambda f: None) == stage


def test_fingerprints_follow_values_not_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint(1, 2) != fingerprint(2, 1)
    assert fingerprint({"path": Path("a")}) != fingerprint({"path": Path("b")})
    assert len(fingerprint(1)) == 16


def test_json_documents_and_lines_come_back(tmp_path: Path) -> None:
    rows = [{"text": "\u00e9\u2028\U0001f600", "n": 0.1}, {}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    append_json_line(tmp_path / "rows.jsonl", {"loss": float("inf"), "deep": {"x": [1, "a"]}})
    assert list(read_json_lines(tmp_path / "rows.jsonl")) == [
        *rows,
        {"loss": None, "deep": {"x": [1, "a"]}},
    ]
    write_json(tmp_path / "one.json", rows)
    assert read_json(tmp_path / "one.json") == rows
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    assert list(read_json_lines(tmp_path / "rows.jsonl.gz")) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', r"rows\.jsonl:2: expected one JSON object"),
        (b'{"a": 1}\n[1]\n', r"rows\.jsonl:2: .* got a JSON list"),
        (b"\n", r"rows\.jsonl:1"),
        (b'{"a": "\xff"}\n', r"expected UTF-8"),
        (b"[" * 100_000, r"rows\.jsonl:1"),
        (b'{"a": ' + b"1" * 5000 + b"}", r"rows\.jsonl:1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        list(read_json_lines(tmp_path / "rows.jsonl"))


def test_files_that_cannot_be_opened_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(read_json_lines(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="No such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="gzip"):
        list(read_json_lines(tmp_path / "bad.jsonl.gz"))
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        list(read_json_lines(tmp_path / "cut.jsonl.gz"))


def test_a_digest_follows_content_not_place(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "model" / "weights", "123")
    write_text(tmp_path / "a" / "config", "1")
    (tmp_path / "b").mkdir()
    first = content_digest(tmp_path / "a")
    assert first == content_digest(str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b" / "moved")
    moved = tmp_path / "b" / "moved"
    assert content_digest(moved) == first
    write_text(moved / "model" / "weights", "124")
    assert content_digest(moved) != first
    write_text(moved / "model" / "weights", "123")
    assert content_digest(moved) == first
    (moved / "config").rename(moved / "other")
    assert content_digest(moved) != first
    assert content_digest(moved / "other") != content_digest(moved / "model" / "weights")
    assert content_digest("some-one/some-model") == "some-one/some-model"


def weights_stage(tmp_path: Path) -> storage.Stage:
    def build(folder: Path) -> dict[str, float]:
        draw = random.Random("weights")
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(draw.randbytes(4000))
        write_json(folder / "config.json", {"rows": list(range(200))})
        return {"loss": 0.1}

    return build_stage(tmp_path / "stage", {"x": [1.5, None]}, [], build)


def test_every_flipped_bit_and_every_cut_of_a_stage_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_stage(tmp_path / "whole")
    files = [p.relative_to(whole.folder) for p in whole.folder.rglob("*") if p.is_file()]
    assert len(files) == 3, "its record is one of them"
    draw = random.Random(0)
    for number, damage in enumerate([flip_bit] * 100 + [cut] * 60):
        folder = tmp_path / str(number) / "stage"
        shutil.copytree(whole.folder, folder)
        damage(folder / draw.choice(files), draw)
        monkeypatch.setattr(storage, "_verified", set())
        with pytest.raises((RunError, FormatError), match=str(folder)):
            verify_stage(build_stage(folder, {"x": [1.5, None]}, [], lambda f: None))
        shutil.rmtree(folder.parent)


def test_a_damaged_input_stops_a_stage_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_stage(tmp_path)
    flip_bit(whole.folder / "deep" / "weights", random.Random(0))
    calls: list[Path] = []
    # What this process has just written it does not read again; the next one does.
    monkeypatch.setattr(storage, "_verified", set())
    with pytest.raises(RunError, match=r"weights: expected the bytes .* Remove .*stage to do"):
        build_stage(tmp_path / "next", 1, [whole], lambda f: calls.append(f))
    assert calls == []


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    whole = weights_stage(tmp_path)
    record = read_json(whole.folder / "stage.json")
    del record["digest"]
    record["files"] = {name: told["size"] for name, told in record["files"].items()}
    write_json(whole.folder / "stage.json", record)
    assert build_stage(whole.folder, {"x": [1.5, None]}, [], lambda f: None) == whole
    verify_stage(whole)


def test_a_stage_goes_on_from_its_own_checkpoints_alone(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def dies(folder: Path) -> None:
        place = checkpoints_of(folder)
        seen.append(sorted(p.name for p in place.glob("*.txt")))
        write_text(place / f"{len(seen)}.txt", "half done")
        write_text(folder / "torn.txt", "half")
        raise KeyboardInterrupt

    def build(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        seen.append(sorted(p.name for p in checkpoints_of(folder).glob("*.txt")))

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build_stage(tmp_path / "stage", 1, [], dies, goes_on=True)
    with pytest.raises(KeyboardInterrupt):
        build_stage(tmp_path / "stage", "other settings", [], dies, goes_on=True)
    build_stage(tmp_path / "stage", "other settings", [], build, goes_on=True)
    assert seen == [[], ["1.txt"], [], ["3.txt"]]
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_checkpoints_that_a_finished_stage_left_are_removed(tmp_path: Path) -> None:
    make(tmp_path)
    write_text(tmp_path / ".stage.checkpoints" / "old", "x")
    make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]
