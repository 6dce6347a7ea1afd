# SPDX-License-Identifier: Apache-2.0
"""What label verbs write never stands on a store, its files, or somebody else's."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from live_labels import make_store, plain_pairs
from metarm.cli.app import run_command
from metarm.errors import ConfigError, FormatError, RunError
from metarm.labels.events import VoteEvent
from metarm.labels.exchange.formats import export_labels
from metarm.labels.exchange.sealing import check_sealed
from metarm.labels.journal import journal_path
from metarm.labels.reading import LabelReader
from metarm.labels.store import LabelStore
from metarm.labels.tables import open_reader, open_writer
from metarm.labels.verifying import back_up, verify_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "l.db", plain_pairs(4), "Ada")
    return tmp_path / "l.db"


@pytest.fixture
def fail(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with an error, and gives what it says."""

    def run(*words: object) -> str:
        assert run_command([str(word) for word in words]) not in (0, None)
        return capfd.readouterr().err

    return run


@pytest.mark.parametrize(
    "name",
    ["l.db", "l.db.journal.jsonl", "l.db.behaviour.jsonl", "l.db.asked", ".l.db.lock", "l.db-wal"],
)
@pytest.mark.parametrize("verb", [("backup",), ("export", "--format", "votes-csv")])
def test_no_output_stands_on_the_store_or_beside_it(store: Path, fail, verb, name: str) -> None:
    before = {path.name: path.read_bytes() for path in store.parent.iterdir()}
    # By another way to the same place, too.
    output = store.parent / ".." / store.parent.name / name
    error = fail("label", verb[0], store, *verb[1:], "--output", output)
    assert "is the store itself" in error or "may belong to the store" in error
    assert {path.name: path.read_bytes() for path in store.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["l.db", "l.db-journal", "link.db", "link.db.behaviour.jsonl"])
def test_no_output_stands_beside_a_store_behind_a_link(store: Path, fail, name: str) -> None:
    link = store.parent / "linked" / "link.db"
    link.parent.mkdir()
    link.symlink_to(store)
    output = (link if name.startswith("link") else store).parent / name
    error = fail("label", "backup", link, "--output", output)
    assert "is the store itself" in error or "may belong to the store" in error
    assert link.is_symlink()
    assert output.exists() == (name in ("l.db", "link.db"))


def test_a_backup_replaces_an_earlier_one_and_nothing_else(store: Path) -> None:
    place = store.parent / "copies"
    place.mkdir()
    back_up(store, place / "copy.db")
    back_up(store, place / "copy.db")
    with LabelReader(place / "copy.db") as reader:
        assert reader.counts().num_pairs == 4
    make_store(place / "other.db", plain_pairs(2), "Bo")
    (place / "notes.txt").write_text("mine", "utf-8")
    for name in ("other.db", "notes.txt"):
        before = (place / name).read_bytes()
        with pytest.raises(RunError, match=r"exists and is no copy of .*name another file"):
            back_up(store, place / name)
        assert (place / name).read_bytes() == before


def test_a_backup_spares_a_copy_that_went_on(store: Path) -> None:
    copy = store.parent / "copy.db"
    back_up(store, copy)
    with LabelStore(copy) as opened:
        opened.record(VoteEvent("one", "Ada", "first", item=opened.next_item("Ada").id))
    with pytest.raises(RunError, match=r"has 1 entries that .* lacks, such as event one"):
        back_up(store, copy)
    with LabelReader(copy) as reader:
        assert reader.counts().num_votes == 1
    # The other way round it is an earlier copy.
    back_up(copy, store)


def test_an_export_replaces_an_earlier_one_and_nothing_else(store: Path) -> None:
    with LabelStore(store) as opened:
        item = opened.next_item("Ada")
        opened.record(VoteEvent("one", "Ada", "first", item=item.id))
        content = opened.content()
    place = store.parent / "out"
    for name, target in (("votes-csv", place / "v.csv"), ("argilla", place / "argilla")):
        export_labels(content, name, target)
        export_labels(content, name, target)
        check_sealed(target)
    (place / "mine.csv").write_text("a,b", "utf-8")
    (place / "other").mkdir()
    (place / "other" / "settings.json").write_text("{}", "utf-8")
    (place / "third").mkdir()
    (place / "third" / "manifest.json").write_text("{}", "utf-8")
    for name, target, kept in (
        ("votes-csv", place / "mine.csv", place / "mine.csv"),
        ("argilla", place / "other", place / "other" / "settings.json"),
        ("argilla", place / "third", place / "third" / "manifest.json"),
    ):
        before = kept.read_bytes()
        with pytest.raises(ConfigError, match="exists, and `metarm label export` did not write it"):
            export_labels(content, name, target)
        assert kept.read_bytes() == before
        assert not list(target.parent.glob(".*.tmp"))
    with pytest.raises(ConfigError, match="is a folder, and votes-csv is one file"):
        export_labels(content, "votes-csv", place / "other")


def test_an_export_spares_what_its_earlier_one_did_not_write(store: Path) -> None:
    with LabelStore(store) as opened:
        opened.record(VoteEvent("one", "Ada", "first", item=opened.next_item("Ada").id))
        content = opened.content()
    place = store.parent / "out"
    export_labels(content, "argilla", place)
    (place / "tasks.json").write_text("[]", "utf-8")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(ConfigError, match=r"tasks\.json exists, and `metarm label export` did not"):
        export_labels(content, "label-studio", place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_an_export_that_was_changed_is_not_replaced(store: Path) -> None:
    with LabelStore(store) as opened:
        opened.record(VoteEvent("one", "Ada", "first", item=opened.next_item("Ada").id))
        content = opened.content()
    place = store.parent / "out"
    for name, target, changed in (
        ("votes-csv", place / "v.csv", place / "v.csv"),
        ("argilla", place / "argilla", place / "argilla" / "settings.json"),
    ):
        export_labels(content, name, target)
        changed.write_bytes(changed.read_bytes() + b" ")
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match="was changed since `metarm label export` wrote it"):
            export_labels(content, name, target)
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
        # What it says to do helps.
        changed.rename(changed.with_name("kept"))
        export_labels(content, name, target)
        check_sealed(target)


def test_an_export_cut_short_is_done_again(store: Path) -> None:
    with LabelStore(store) as opened:
        opened.record(VoteEvent("one", "Ada", "first", item=opened.next_item("Ada").id))
        before = opened.content()
        opened.add_annotator("Bo")
        opened.record(VoteEvent("two", "Bo", "second", item=opened.next_item("Bo").id))
        after = opened.content()
    first, last = store.parent / "first", store.parent / "last"
    export_labels(before, "argilla", first)
    export_labels(after, "argilla", last)
    # It ends between the first file and the last, which is that of the earlier export still.
    settings = (first / "settings.json").read_bytes()
    (first / "settings.json").unlink()
    (first / "settings.json").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        export_labels(after, "argilla", first)
    (first / "settings.json").rmdir()
    (first / "settings.json").write_bytes(settings)
    assert (first / "records.json").read_bytes() == (last / "records.json").read_bytes()
    with pytest.raises(FormatError, match=r"users\.json: expected the bytes"):
        check_sealed(first)
    export_labels(after, "argilla", first)
    for path in last.iterdir():
        assert (first / path.name).read_bytes() == path.read_bytes()


def test_an_export_that_fails_leaves_nothing_half_written(store: Path) -> None:
    with LabelStore(store) as opened:
        opened.record(VoteEvent("one", "Ada", "first", item=opened.next_item("Ada").id))
        content = opened.content()
    place = store.parent / "out"
    export_labels(content, "argilla", place)
    (place / "settings.json").unlink()
    (place / "settings.json").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        export_labels(content, "argilla", place)
    assert not list(place.glob(".*.tmp"))


def test_the_journal_of_another_store_is_called_so(store: Path, fail, tmp_path: Path) -> None:
    make_store(tmp_path / "other.db", plain_pairs(2), "Bo")
    journal_path(store).write_bytes(journal_path(tmp_path / "other.db").read_bytes())
    found = verify_store(store)
    assert found.is_foreign_journal
    assert not found.is_whole
    assert "that of another store. Move" in fail("label", "verify", store)


@pytest.mark.parametrize(
    "finding",
    [
        {"problems": ("a row of nothing",)},
        {"only_database": ("vote one",)},
        {"only_journal": ("vote one",)},
        {"different": ("vote one",)},
        {"num_damaged_lines": 1},
        {"has_torn_line": True},
        {"is_foreign_journal": True},
    ],
    ids=lambda finding: next(iter(finding)),
)
def test_any_single_finding_is_enough(store: Path, finding: dict[str, Any]) -> None:
    found = verify_store(store)
    assert found.is_whole
    assert not replace(found, **finding).is_whole


@pytest.mark.parametrize("open_it", [open_writer, open_reader])
def test_a_file_that_is_no_store_is_let_go(
    open_it: Callable[[Path], sqlite3.Connection], tmp_path: Path
) -> None:
    path = tmp_path / "foreign.db"
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE recipe (name TEXT)")
    # The error that is held holds every frame it came through, and what they hold.
    with pytest.raises(RunError) as told:
        open_it(path)
    assert str(path) not in {file.path for file in psutil.Process().open_files()}
    assert str(path) in str(told.value)


@pytest.mark.parametrize("words", [("verify",), ("verify", "--replay"), ("status",)])
def test_a_broken_database_with_a_whole_journal_names_the_mend(store: Path, fail, words) -> None:
    store.write_bytes(b"no database " * 100)
    error = fail("label", words[0], store, *words[1:])
    assert "not a database. The journal beside it is whole" in error
    assert "move l.db itself away, leave the journal, and run" in error
    # What it says to do mends the store.
    store.rename(store.with_name("aside"))
    assert run_command(["label", "verify", str(store), "--replay"]) in (0, None)
    with LabelReader(store) as reader:
        assert reader.counts().num_pairs == 4


def test_a_broken_database_with_a_damaged_journal_asks_for_a_backup(store: Path, fail) -> None:
    store.write_bytes(b"no database " * 100)
    lines = journal_path(store).read_bytes().splitlines(keepends=True)
    journal_path(store).write_bytes(b"".join([lines[0], b"damaged\n", *lines[2:]]))
    assert "restore a backup and run" in fail("label", "verify", store)


def test_a_name_mistyped_makes_no_store(fail, tmp_path: Path) -> None:
    error = fail("label", "verify", tmp_path / "typo.db", "--replay")
    assert "expected a label store or its journal, got neither" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("add",), ("verify", "--replay")])
def test_a_folder_is_no_store(fail, tmp_path: Path, words) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    pairs = tmp_path / "p.jsonl"
    pairs.write_text('{"prompt": "a", "first": "b", "second": "c"}\n', "utf-8")
    more = ("--pairs", pairs) if words[0] == "add" else words[1:]
    error = fail("label", words[0], folder, *more)
    assert "expected a label store, which is a file, got a folder" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "p.jsonl"]


def test_nobody_is_invited_to_nowhere_or_under_a_rules_name(fail, store: Path) -> None:
    with LabelReader(store) as reader:
        before = [one.name for one in reader.annotators()]
    error = fail("label", "invite", store, "Bo", "--public-url", "nothing")
    assert "expected such as https://labels.example.org" in error
    with LabelReader(store) as reader:
        assert [one.name for one in reader.annotators()] == before
    with LabelStore(store) as opened:
        opened.add_annotator("longer", "rule")
    assert "of the kind rule, not person" in fail("label", "invite", store, "longer")
