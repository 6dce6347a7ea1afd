# SPDX-License-Identifier: Apache-2.0
"""Every row of FORMATS: its sample is told by its columns and gives the pairs written here."""

import csv
import gzip
import json

import pytest

from metarm.data.fields import Row
from metarm.data.formats import FORMATS, detect_format, resolve_format
from metarm.data.preferences import load_preferences
from metarm.errors import ConfigError, FormatError
from metarm.schema import Message, PreferencePair

SKY = Message("user", "What colour is the sky?")
POST = "My cat sleeps all day. Is that normal?"

EXPECTED = {
    "hh-rlhf": [
        PreferencePair(
            "\n\nHuman: Name a fruit.\n\nAssistant: Which colour?\n\nHuman: Red.\n\nAssistant:",
            " An apple.",
            " A fire engine.",
        ),
        PreferencePair(
            "\n\nHuman: Is tea hot?\n\nAssistant:",
            " Mostly.\n\nHuman: Always?\n\nAssistant: No.",
            " Never.",
        ),
        PreferencePair("\n\nHuman: Name a tree.\n\nAssistant:", " Oak.", " Stone."),
        PreferencePair("\n\nHuman: Name a bird.\n\nAssistant:", " Owl.", " Trout."),
    ],
    "trl-explicit": [
        PreferencePair("The sky is", " blue.", " green.", 0.5, 0.9),
        PreferencePair("Snow is", " white.", " hot."),
    ],
    "trl-implicit": [
        PreferencePair("The sky is", " blue.", " green."),
        PreferencePair("Question: is snow hot?\n", "Answer: No, it is cold.", "Answer: No idea."),
        PreferencePair("Say yes.", " Yes", " Yes and no"),
        PreferencePair("Say no.\n", "No.\n", "No.\nYes."),
    ],
    "conversational-explicit": [
        PreferencePair((Message("system", "Be brief."), SKY), "Blue.", "Green."),
        PreferencePair((Message("user", "What is hot?"),), "Fire.", "Snow."),
        PreferencePair((Message("user", "Name a tree."),), "Oak.", "Stone."),
        PreferencePair((Message("user", "Name a bird."),), "Owl.", "Trout."),
    ],
    "conversational-implicit": [
        PreferencePair((SKY,), "Blue.", "Green."),
        PreferencePair(
            (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Bye.")),
            "Bye.",
            "Why?",
        ),
    ],
    "summarize-from-feedback": [
        PreferencePair(
            f"SUBREDDIT: r/cats\n\nTITLE: Sleepy cat\n\nPOST: {POST}\n\nTL;DR:",
            " Cat sleeps all day; normal?",
            " Dogs bark.",
        ),
        PreferencePair("It snowed in May.\n\nTL;DR:", " Snow in May.", " It is May."),
    ],
    "ultrafeedback": [
        PreferencePair("Name a prime number.", "Seven.", "Four."),
        PreferencePair((Message("user", "Name an even number."),), "Two.", "One."),
    ],
}


@pytest.fixture
def samples(repository):
    return repository / "tests" / "data"


def test_every_format_has_a_sample_and_expected_pairs(samples):
    assert set(EXPECTED) == set(FORMATS) == {path.stem for path in samples.glob("*.jsonl")}


@pytest.mark.parametrize("name", FORMATS)
def test_sample_gives_the_expected_pairs(samples, name):
    loaded = load_preferences(samples / f"{name}.jsonl")
    assert loaded.report.data_format == name
    assert list(loaded.pairs) == EXPECTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_only_the_first_match_is_its_own(samples, name):
    for line in (samples / f"{name}.jsonl").read_text().splitlines()[:1]:
        assert detect_format(Row("sample:1", json.loads(line))) == name


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("container", ["jsonl.gz", "gz without a name", "json", "pretty json"])
def test_text_containers_give_the_same_pairs(samples, tmp_path, name, container):
    text = (samples / f"{name}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    contents = {
        "jsonl.gz": gzip.compress(text.encode()),
        "gz without a name": gzip.compress(json.dumps(rows).encode()),
        "json": json.dumps(rows).encode(),
        "pretty json": ("\ufeff\n" + json.dumps(rows, indent=2) + "\n").encode(),
    }
    path = tmp_path / ("data." + container.split()[-1] if "name" not in container else "data")
    path.write_bytes(contents[container])
    assert list(load_preferences(path).pairs) == EXPECTED[name]


@pytest.mark.parametrize("name", FORMATS)
def test_parquet_gives_the_same_pairs(samples, tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    for number, line in enumerate((samples / f"{name}.jsonl").read_text().splitlines()):
        path = tmp_path / f"{number}.data"
        parquet.write_table(pyarrow.Table.from_pylist([json.loads(line)]), path)
        assert load_preferences(path, name).pairs == (EXPECTED[name][number],)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("name", ["hh-rlhf", "trl-explicit", "trl-implicit"])
def test_csv_gives_the_same_pairs(samples, tmp_path, name, delimiter):
    rows = [json.loads(line) for line in (samples / f"{name}.jsonl").read_text().splitlines()]
    columns = ["prompt", "chosen", "rejected", "margin", "p"]
    columns = [column for column in columns if any(column in row for row in rows)]
    path = tmp_path / "data"
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    assert list(load_preferences(path, name).pairs) == EXPECTED[name]


def test_csv_takes_transcripts_longer_than_the_standard_limit(tmp_path):
    limit = 131_072
    csv.field_size_limit(limit)
    path = tmp_path / "long.csv"
    path.write_text(f"prompt,chosen,rejected\nWhy?,{'a' * 200_000},b\n")
    assert len(load_preferences(path).pairs[0].chosen) == 200_000
    assert csv.field_size_limit() == limit


def read_letters(row):
    """A user's format: `letters` holds prompt, chosen and rejected."""
    prompt, chosen, rejected = row["letters"]
    return PreferencePair(prompt, chosen, rejected)


def read_nothing(row):
    """A user's format that forgets to return."""


@pytest.fixture
def user_format(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    return "test_formats:{}".format


def test_a_function_of_the_user_is_a_format(tmp_path, user_format):
    path = tmp_path / "own.jsonl"
    path.write_text('{"letters": "pcr"}\n{"letters": "pc"}\n')
    with pytest.raises(FormatError, match=r"own\.jsonl:2: .*ValueError: not enough values"):
        load_preferences(path, user_format("read_letters"))
    path.write_text('{"letters": "pcr"}\n')
    loaded = load_preferences(path, user_format("read_letters"))
    assert loaded.pairs == (PreferencePair("p", "c", "r"),)
    with pytest.raises(FormatError, match=r"own\.jsonl:1: .*got NoneType"):
        load_preferences(path, user_format("read_nothing"))


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("hh-rlfh", "did you mean 'hh-rlhf'"),
        ("no_such_module:read", "No module named 'no_such_module'"),
        ("json:no_such_function", "no_such_function"),
    ],
)
def test_unknown_formats_are_refused(name, fragment):
    with pytest.raises(ConfigError, match=fragment):
        resolve_format(name)
