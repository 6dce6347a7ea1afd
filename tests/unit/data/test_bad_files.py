# SPDX-License-Identifier: Apache-2.0
"""Damaged and mistaken files: each gets one error that names file, line, field and the way out."""

import gzip
import io
import json
import pickle
import zipfile

import pytest

from metarm.data.files import open_file
from metarm.data.preferences import load_preferences
from metarm.errors import DataError, EmptySetError, FormatError

GOOD = b'{"prompt": "p", "chosen": "good", "rejected": "bad"}\n'
TRANSCRIPT = b"\\n\\nHuman: a\\n\\nAssistant: %s"
HH = b'{"chosen": "%s", "rejected": "%s"}\n' % (TRANSCRIPT % b"b", TRANSCRIPT % b"c")
TURNS = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "%s"}]'
CHAT = b'{"chosen": %s, "rejected": %s}\n'
SUMMARIES = b'"summaries": [{"text": "a"}, {"text": "b"}]'
POST = b'"info": {"subreddit": "s", "title": "t", "post": "p"}'


def row(**values):
    return (
        json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad", **values}).encode() + b"\n"
    )


def summary_row(choice):
    return b"{%s, %s, %s}" % (POST, SUMMARIES, b'"choice": ' + choice)


def zip_bytes():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return stream.getvalue()


# name -> (file name, content, what the message must hold besides the file's name)
BAD_FILES = {
    "cut off": ("a.jsonl", GOOD + GOOD[:30], ":2: expected one JSON object a line|cut off"),
    "torn inside": ("a.jsonl", GOOD[:30] + b"\n" + GOOD, ":1: |Put one whole object on each line"),
    "rejected missing": (
        "a.jsonl",
        GOOD + b'{"prompt": "p", "chosen": "c"}\n',
        ":2: field `rejected`: expected a value, got none (there is `prompt`, `chosen`). Add",
    ),
    "chosen missing at once": (
        "a.jsonl",
        b'{"prompt": "p", "rejected": "c"}\n' + GOOD,
        ":1: field `chosen`: expected a value",
    ),
    "prompt missing later": (
        "a.jsonl",
        GOOD + b'\n{"chosen": "a", "rejected": "b"}\n',
        ":3: field `prompt`: expected a value",
    ),
    "null": ("a.jsonl", GOOD + row(chosen=None), ":2: field `chosen`: expected text, got null"),
    "number": (
        "a.jsonl",
        GOOD + row(rejected=4),
        ":2: field `rejected`: expected text, got the number 4. Write it as a string",
    ),
    "boolean": ("a.jsonl", row(prompt=True), ":1: field `prompt`: expected text, got True"),
    "list": (
        "a.jsonl",
        GOOD + row(rejected=["b"]),
        ":2: field `rejected`: expected text, got the list",
    ),
    "list of strings": (
        "a.jsonl",
        row(chosen=["a"], rejected=["b"]),
        ":1: field `chosen[0]`: expected an object, got 'a'",
    ),
    "message without content": (
        "a.jsonl",
        b'{"chosen": [{"from": "human", "value": "x"}], "rejected": []}\n',
        ":1: field `chosen[0].role`: expected a value, got none (there is `from`, `value`)",
    ),
    "null content": (
        "a.jsonl",
        GOOD + row(prompt=[{"role": "user", "content": None}]),
        ":2: field `prompt[0].content`: expected text, got null",
    ),
    "empty conversation": ("a.jsonl", row(prompt=[]), ":1: field `prompt`: expected at least one"),
    "last word is the user's": (
        "a.jsonl",
        row(chosen=[{"role": "user", "content": "a"}], rejected=[{"role": "user", "content": "b"}]),
        ":1: field `chosen[0].role`: expected 'assistant', got 'user'",
    ),
    "different prompts in chats": (
        "a.jsonl",
        CHAT % (TURNS % b"x", TURNS % b"y")
        + CHAT % (TURNS % b"x", (TURNS % b"y").replace(b'"a"', b'"A"')),
        ":2: field `rejected[0]`: expected the same first message",
    ),
    "different prompts in transcripts": (
        "a.jsonl",
        HH + HH.replace(b"Human: a", b"Human: b", 1),
        ":2: field `rejected`: expected the same beginning as `chosen`",
    ),
    "transcripts without the prompt": (
        "a.jsonl",
        HH + HH.replace(b"{", b'{"prompt": "\\n\\nHuman: z\\n\\nAssistant:", '),
        ":2: field `rejected`: expected the same beginning as `chosen`",
    ),
    "nothing shared": (
        "a.jsonl",
        b'{"chosen": "a b", "rejected": "a c"}\n{"chosen": "x y", "rejected": "u v"}\n',
        ":2: field `rejected`: expected the same first words|Add a `prompt` column",
    ),
    "duplicate key": (
        "a.jsonl",
        GOOD + b'{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}\n',
        ":2: |the key `chosen` twice|Mend the object",
    ),
    "NaN margin": (
        "a.jsonl",
        GOOD + row(margin=float("nan")),
        ":2: field `margin`: expected a finite number, got the number nan",
    ),
    "infinite margin": (
        "a.jsonl",
        b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e999}\n',
        ":1: field `margin`: expected a finite number, got the number inf",
    ),
    "margin in words": (
        "a.jsonl",
        row(margin="large"),
        ":1: field `margin`: expected a finite number, got 'large'",
    ),
    "boolean margin": (
        "a.jsonl",
        row(margin=True),
        ":1: field `margin`: expected a finite number, got True",
    ),
    "a soft label above 1": (
        "a.jsonl",
        GOOD + row(p=1.5),
        ":2: field `p`: expected a probability between 0 and 1, got 1.5",
    ),
    "a soft label in words": (
        "a.jsonl",
        row(p="likely"),
        ":1: field `p`: expected a finite number, got 'likely'",
    ),
    "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16"), ":1: |UTF-16|Save it as UTF-8"),
    "latin-1": (
        "a.jsonl",
        GOOD + GOOD.replace(b"good", b"caf\xe9"),
        ":2: expected UTF-8, got the byte 0xe9 in column 31|iconv",
    ),
    "lone surrogate": (
        "a.jsonl",
        GOOD + GOOD.replace(b"good", b"ab\\ud83d"),
        ":2: field `chosen`: expected Unicode text, got the lone surrogate U+D83D at position 3",
    ),
    "escaped NUL": (
        "a.jsonl",
        GOOD + GOOD.replace(b"bad", b"\\u0000"),
        ":2: field `rejected`: expected text, got a NUL character at position 1",
    ),
    "NUL byte": (
        "a.jsonl",
        GOOD + GOOD.replace(b"bad", b"b\0d"),
        ":2: expected text, got a NUL byte in column 49",
    ),
    "empty": ("a.jsonl", b"", ":1: the file is empty"),
    "only a mark": ("a.jsonl", b"\xef\xbb\xbf", ":1: the file is empty"),
    "only a newline": ("a.jsonl", b"\n", ":1: the file is empty"),
    "only blanks of Unicode": ("a.jsonl", "\u3000\n\x85".encode(), ":1: the file is empty"),
    "empty gzip": ("a.jsonl.gz", gzip.compress(b"\n\n"), ":1: the file is empty"),
    "empty array": ("a.json", b"[ ]\n", " has no rows"),
    "web page": (
        "a.jsonl",
        b"\n<!DOCTYPE html><html></html>",
        ":1: |a page of HTML|fetch the data file itself",
    ),
    "scalar lines": (
        "a.jsonl",
        b"3\n4\n",
        ":1: expected one JSON object with named fields, got the number 3",
    ),
    "list line": (
        "a.jsonl",
        GOOD + b"[1]\n",
        ":2: expected one JSON object with named fields, got the list",
    ),
    "document over many lines": (
        "a.json",
        b'{\n "chosen": "a"\n}\n',
        ":1: |Put one whole object on each line",
    ),
    "array cut off": (
        "a.json",
        b"[" + GOOD + b",\n" + GOOD[:-9],
        ":3: expected a JSON array|copy it again",
    ),
    "array without its end": ("a.json", b"[\n" + GOOD, ":3: |Expecting ',' or ']'"),
    "array without a comma": ("a.json", b"[\n" + GOOD + GOOD + b"]", ":3: |Expecting ',' or ']'"),
    "comma before the array's end": ("a.json", b"[\n" + GOOD + b",]", ":3: expected a JSON array"),
    "number in an array": ("a.json", b"[\n" + GOOD + b",\n7]", ":4: expected one JSON object"),
    "field in an array": (
        "a.json",
        b"[\n" + GOOD + b",\n" + row(chosen=1) + b"]",
        ":4: field `chosen`",
    ),
    "duplicate key in an array": ("a.json", b'[\n\n{"a": 1, "a": 2}]', ":3: |the key `a` twice"),
    "text after the array": (
        "a.json",
        b"[" + GOOD + b"]\n\n{}",
        ":4: expected nothing after the JSON array",
    ),
    "nested too deeply": ("a.jsonl", GOOD + b'{"a": ' + b"[" * 200_000, ":2: |nested too deeply"),
    "prose": ("notes", b"\nDear diary,\n", ":2: expected JSON lines|got 'Dear diary,'"),
    "columns of another kind": (
        "a.jsonl",
        b'{"question": "q", "answer": "a"}\n',
        ":1: expected the columns of one of the formats|trl-implicit: chosen, rejected (text)"
        "|got question, answer",
    ),
    "CSV with a short record": (
        "a.csv",
        b'prompt,chosen,rejected\np,"two\nlines",c\np,"c\nd"\n',
        ":4: expected 3 fields (prompt, chosen, rejected), got 2",
    ),
    "CSV with a bare comma": (
        "a.csv",
        b"prompt,chosen,rejected\np,a,b,c\n",
        ":2: expected 3 fields|Quote",
    ),
    "CSV with an open quote": (
        "a.csv",
        b'prompt,chosen,rejected\np,c,r\n"p,c,r\np,c,r\n',
        ":3: expected a CSV record|Close the quotes",
    ),
    "CSV with one name twice": (
        "a.csv",
        b"chosen,rejected,chosen\n1,2,3\n",
        ":1: expected a header",
    ),
    "CSV with NaN": (
        "a.csv",
        b"prompt,chosen,rejected,margin\np,c,r,\nq,c,r,nan\n",
        ":3: field `margin`: expected a finite number, got 'nan'",
    ),
    "CSV in latin-1": ("a.csv", b"prompt,chosen,rejected\np,c,r\np,\xe9,r\n", ":3: expected UTF-8"),
    "CSV with a header alone": ("a.csv", b"prompt,chosen,rejected\n", " has no rows"),
    "choice NaN": ("a.jsonl", summary_row(b"NaN"), ":1: field `choice`: expected a finite number"),
    "choice of a third": (
        "a.jsonl",
        summary_row(b"2"),
        ":1: field `choice`: expected 0 or 1, got 2",
    ),
    "one summary": (
        "a.jsonl",
        summary_row(b"0").replace(b', {"text": "b"}', b""),
        ":1: field `summaries`: expected two summaries, got 1",
    ),
    "article instead of a post": (
        "a.jsonl",
        summary_row(b"0").replace(b'"post": "p"', b'"post": null'),
        ":1: field `info.post`: expected text, got null",
    ),
    "one rated response": (
        "a.jsonl",
        b'{"instruction": "i", "completions": [{"response": "a", "overall_score": 1}]}',
        ":1: field `completions`: expected two or more, got 1",
    ),
    "rating NaN": (
        "a.jsonl",
        b'{"instruction": "i", "completions": [{"response": "a", "overall_score": 1},'
        b' {"response": "b", "overall_score": NaN}]}',
        ":1: field `completions[1].overall_score`: expected a finite number",
    ),
    "scores against the label": (
        "a.jsonl",
        row(score_chosen=1, score_rejected=2),
        ":1: field `score_rejected`: expected at most `score_chosen`, got 2 > 1",
    ),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(GOOD * 2000)[:-12], "|damaged or cut off"),
    "gzip garbled": (
        "a.jsonl.gz",
        gzip.compress(GOOD)[:10] + b"\xff" * 40,
        ":1: |damaged or cut off",
    ),
    "gzip twice": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), ":1: |gzip inside gzip"),
    "line in gzip": ("a.jsonl.gz", gzip.compress(GOOD * 9 + row(chosen=0)), ":10: field `chosen`"),
    "pickle": ("a.jsonl", pickle.dumps([1, 2]), ":1: |a Python pickle|are not opened"),
    "pickle in gzip": ("a.gz", gzip.compress(pickle.dumps([1, 2])), ":1: |a Python pickle"),
    "torch checkpoint": ("model.bin", zip_bytes(), ":1: |a ZIP archive"),
    "Parquet cut off": ("a.parquet", b"PAR1" + b"\0" * 40, ", row 1: expected Parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_one_clear_error(tmp_path, name):
    file_name, content, expected = BAD_FILES[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    with pytest.raises((FormatError, EmptySetError)) as caught:
        load_preferences(path)
    message = str(caught.value)
    place, *fragments = expected.split("|")
    assert message.startswith(f"{path}{place}")
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "expected" in message
    assert message[-1] in ".?"
    assert "\n" not in message
    assert len(message) < 1000


GOOD_FILES = {
    "a mark at the start": ("a.jsonl", b"\xef\xbb\xbf" + GOOD),
    "an extra column in a later row": ("a.jsonl", GOOD + row(chosen="x", note=float("nan"))),
    "blank lines": ("a.jsonl", b"\n" + GOOD + b"\n  \n" + row(chosen="x") + b"\n"),
    "blank lines first": ("pairs", b"\n\n\n\n" + GOOD),
    "no line end at the end": ("a.jsonl", GOOD.rstrip()),
    "Windows line ends": ("a.jsonl", GOOD.replace(b"\n", b"\r\n")),
    "a name that says nothing": ("pairs", GOOD),
    "a name that says otherwise": ("a.csv", GOOD),
    "a null margin": ("a.jsonl", row(margin=None)),
    "an integer of many digits as margin": ("a.jsonl", row(margin=10**30)),
    "a separator of lines in Unicode": (
        "a.jsonl",
        row(prompt="a\u2028b").replace(b"\\u2028", "\u2028".encode()),
    ),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_an_odd_file_loads(tmp_path, name):
    file_name, content = GOOD_FILES[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    pairs = load_preferences(path).pairs
    assert [pair.rejected for pair in pairs] == ["bad"] * content.count(b"bad")


def test_a_missing_file_names_its_neighbours(tmp_path):
    for name in ("pairs_train.jsonl", "pairs_test.jsonl", "zebra.csv"):
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(DataError, match=r"no such file.*near names there: pairs_train\.jsonl"):
        load_preferences(tmp_path / "pair_train.jsonl")
    with pytest.raises(DataError, match=r"there is: pairs_test\.jsonl, pairs_train\.jsonl, zebra"):
        load_preferences(tmp_path / "0000")
    with pytest.raises(DataError, match=r"there is: pairs_test\.jsonl"):
        load_preferences(tmp_path / "no_folder" / "x.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is: nothing"):
        load_preferences(tmp_path / "empty" / "x.jsonl")


def test_a_relative_path_with_a_suffix_is_never_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/pairs\.jsonl: no such file\. In "):
        load_preferences("data/pairs.jsonl")


def test_a_hub_id_without_a_network_is_a_clear_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"owner/no-such-set: no such file here.*'train'.*go online"
    ):
        load_preferences("owner/no-such-set")


def test_a_file_that_may_not_be_read_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_file(tmp_path)


def test_a_folder_is_read_by_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(GOOD)
    (folder / "test.jsonl").write_bytes(GOOD + row(chosen=None, rejected="b"))
    datasets.disable_progress_bars()
    assert load_preferences(folder).report.num_kept == 1
    with pytest.raises(FormatError, match=r"set\[test\], row 2: field `chosen`: .* got null"):
        load_preferences(folder, split="test")
    with pytest.raises(DataError, match=r"split 'validation' could not be loaded"):
        load_preferences(folder, split="validation")
