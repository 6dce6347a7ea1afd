# SPDX-License-Identifier: Apache-2.0
"""`label add --wanted`: what people are asked next, from a file; what is wrong with it is said."""

import json
from pathlib import Path

import pytest

from live_labels import make_store, plain_pairs
from metarm.cli.app import run_command
from metarm.labels.reading import LabelReader
from metarm.labels.votes import LabelPair
from metarm.storage import write_json_lines

PAIRS = plain_pairs(4)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "l.db", PAIRS, "Ada")
    return tmp_path / "l.db"


def test_the_largest_number_is_wanted_and_the_file_says_the_same_twice(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a pair that the same command adds, too."""
    new = LabelPair("a new question", "a", "b")
    write_json_lines(tmp_path / "new.jsonl", [new.to_json()])
    rows = [(PAIRS[0].id, 2), (PAIRS[0].id, 3), (PAIRS[1].id, 1), (new.id, 2)]
    path = tmp_path / "wanted.jsonl"
    write_json_lines(path, [{"pair": pair, "wanted": number, "nats": 0.1} for pair, number in rows])
    words = ["label", "add", str(store), "--pairs", str(tmp_path / "new.jsonl")]
    told = []
    for _ in range(2):
        assert run_command([*words, "--wanted", str(path), "--json"]) == 0
        told.append(json.loads(capfd.readouterr().out))
    assert told[0] == {"added": 1, "pairs": 5, "gold": 0, "wanted": 3}
    assert told[1] == {"added": 0, "pairs": 5, "gold": 0, "wanted": 0}
    with LabelReader(store) as reader:
        assert reader.wanted() == {PAIRS[0].id: 3, PAIRS[1].id: 1, new.id: 2}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"pair": PAIRS[0].id}, "wanted"),
        ({"wanted": 1}, "pair"),
        ({"pair": PAIRS[0].id, "wanted": 0}, "1 to 1000000 votes"),
        ({"pair": PAIRS[0].id, "wanted": 1.5}, "1 to 1000000 votes"),
        ({"pair": PAIRS[0].id, "wanted": 1e300}, "1 to 1000000 votes"),
        ({"pair": "none", "wanted": 1}, "a pair that is there, got 'none'"),
    ],
)
def test_a_wrong_row_changes_nothing(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], row: dict, told: str
) -> None:
    before = store.read_bytes()
    path = tmp_path / "wanted.jsonl"
    write_json_lines(path, [{"pair": PAIRS[1].id, "wanted": 2}, row])
    assert run_command(["label", "add", str(store), "--wanted", str(path)]) not in (0, None)
    assert told in capfd.readouterr().err
    assert store.read_bytes() == before
    with LabelReader(store) as reader:
        assert reader.wanted() == {}


def test_no_store_is_made_of_a_mistyped_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_json_lines(tmp_path / "wanted.jsonl", [{"pair": PAIRS[0].id, "wanted": 2}])
    words = ["label", "add", str(tmp_path / "none.db"), "--wanted", str(tmp_path / "wanted.jsonl")]
    assert run_command(words) not in (0, None)
    assert "expected a label store with its pairs" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["wanted.jsonl"]
