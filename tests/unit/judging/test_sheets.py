# SPDX-License-Identifier: Apache-2.0
"""Blind sheets: what people say comes back to the right arm, and nothing else is taken."""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.errors import ConfigError, DataError, EmptySetError, FormatError
from metarm.judging.comparisons import Comparison
from metarm.judging.sheets import COLUMNS, export_sheet, import_sheet, key_path
from strategies import prompts, texts

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "=cmd|' /C calc'!A0"]
AWKWARD = [*FORMULAS, "'quoted", 'a "b", c;d', "line\r\nend\n", "A\u2028B", "{x}", "[1]", ""]


def comparisons(count: int = 8) -> list[Comparison]:
    return [
        Comparison(f"prompt {n}", "new-arm", "old-arm", f"new {n}", f"old {n}")
        for n in range(count)
    ]


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
        return
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def fill(path: Path, say: Callable[[dict[str, str]], str]) -> None:
    write(path, [{**row, "verdict": say(row)} for row in read(path)])


def verdicts(folder: Path, path: Path, count: int) -> list[str]:
    return [judgement.verdict for judgement in import_sheet(folder, "anna", count, path)]


@pytest.fixture(params=[".csv", ".json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sheet of eight rows that has been exported."""
    sheet = tmp_path / f"sheet{request.param}"
    assert export_sheet(tmp_path, "anna", comparisons(), sheet, seed=0) == 8
    return sheet


def test_a_sheet_names_no_arm_and_draws_its_sides(path: Path) -> None:
    assert b"arm" not in path.read_bytes()
    rows = read(path)
    assert [list(row) for row in rows] == [list(COLUMNS)] * 8
    news = [row["response_a"].startswith("new") for row in rows]
    assert 0 < sum(news) < 8
    assert [row["prompt"] for row in rows] != [f"prompt {n}" for n in range(8)]


def test_what_people_say_comes_back_to_the_arm(path: Path) -> None:
    fill(path, lambda row: " a " if row["response_a"].startswith("new") else "B")
    assert verdicts(path.parent, path, 8) == ["first"] * 8
    fill(path, lambda row: "A")
    found = import_sheet(path.parent, "anna", 8, path)
    assert {judgement.verdict for judgement in found} == {"first", "second"}
    # Whoever always takes the first side is seen to do so.
    shown_first = [j.forward == "first" or j.backward == "second" for j in found]
    assert all(shown_first)
    fill(path, lambda row: "Tie")
    assert verdicts(path.parent, path, 8) == ["tie"] * 8


@given(
    sides=st.lists(
        st.tuples(
            prompts(),
            texts() | st.sampled_from(AWKWARD),
            texts() | st.sampled_from(AWKWARD),
        ).filter(lambda row: row[1] != row[2]),
        min_size=1,
        max_size=4,
    ),
    suffix=st.sampled_from([".csv", ".json"]),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_any_texts_survive_the_way_out_and_back(sides, suffix, seed) -> None:
    asked = [
        Comparison(prompt, "new", "old", first, second, number=n)
        for n, (prompt, first, second) in enumerate(sides)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name, f"sheet{suffix}")
        export_sheet(folder, "anna", asked, path, seed=seed)
        if suffix == ".csv":
            cells = [cell for row in read(path) for cell in row.values()]
            assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n\uff1d"))]
        choices = ["A", "B", "tie"]
        told = {row["row"]: choices[n % 3] for n, row in enumerate(read(path))}
        fill(path, lambda row: told[row["row"]])
        found = import_sheet(folder, "anna", len(asked), path)
        sealed = json.loads(key_path(folder, "anna").read_text(encoding="utf-8"))["rows"]
        for row_id, key in sealed.items():
            said = {"A": "first", "B": "second", "tie": "tie"}[told[row_id]]
            if key["is_turned"] and said != "tie":
                said = "second" if said == "first" else "first"
            assert found[key["comparison"]].verdict == said


def test_line_ends_and_guards_of_spreadsheets_are_no_change(tmp_path: Path) -> None:
    asked = [Comparison("p\nq", "new", "old", "=1\nx", "plain")]
    path = tmp_path / "sheet.csv"
    export_sheet(tmp_path, "anna", asked, path, seed=0)
    (row,) = read(path)
    changed = {name: text.replace("\n", "\r\n").lstrip("'") for name, text in row.items()}
    write(path, [{**changed, "verdict": "tie"}])
    assert verdicts(tmp_path, path, 1) == ["tie"]


def spoil(rows: list[dict[str, str]]) -> None:
    """Mistakes of five kinds; a row under the name of another leaves a gap and a second."""
    rows[0]["verdict"] = ""
    rows[1]["verdict"] = "A and B"
    rows[2]["response_a"] += "!"
    rows[3]["row"] = rows[4]["row"]
    rows.append({**rows[5], "row": "r-nobody"})


def test_one_error_names_every_row_that_is_wrong(path: Path) -> None:
    fill(path, lambda row: "A")
    rows = read(path)
    ids = [row["row"] for row in rows]
    spoil(rows)
    write(path, rows)
    with pytest.raises(DataError) as error:
        import_sheet(path.parent, "anna", 8, path)
    told = str(error.value)
    assert "got 7 that are not" in told
    assert f"row {ids[0]}: `verdict` is ''" in told
    assert f"row {ids[1]}: `verdict` is 'A and B'" in told
    assert f"row {ids[2]}: its texts are not as exported" in told
    assert f"row {ids[4]}" in told
    assert "'r-nobody', which the key does not have" in told
    assert f"row {ids[3]} is missing" in told


def test_swapped_sides_are_seen(path: Path) -> None:
    """Who sorts a column by itself must not turn verdicts round."""
    rows = read(path)
    for row in rows:
        row["response_a"], row["response_b"] = row["response_b"], row["response_a"]
        row["verdict"] = "A"
    write(path, rows)
    with pytest.raises(DataError, match="got 8 that are not"):
        import_sheet(path.parent, "anna", 8, path)


def test_many_wrong_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    export_sheet(tmp_path, "anna", comparisons(40), path, seed=0)
    with pytest.raises(DataError, match=r"got 40 that are not.*and 28 more"):
        import_sheet(tmp_path, "anna", 40, path)


def test_a_key_that_was_changed_is_refused(path: Path) -> None:
    fill(path, lambda row: "A")
    key = key_path(path.parent, "anna")
    document: dict[str, Any] = json.loads(key.read_text(encoding="utf-8"))
    first = next(iter(document["rows"].values()))
    first["is_turned"] = not first["is_turned"]
    key.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FormatError, match="the key was changed"):
        import_sheet(path.parent, "anna", 8, path)


def test_rows_are_drawn_and_the_rest_is_unjudged(tmp_path: Path) -> None:
    path = tmp_path / "sheet.json"
    assert export_sheet(tmp_path, "anna", comparisons(), path, seed=3, num_rows=3) == 3
    fill(path, lambda row: "tie")
    assert sorted(verdicts(tmp_path, path, 8)) == ["tie"] * 3 + ["unjudged"] * 5


def test_what_cannot_be_a_sheet_is_said(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    with pytest.raises(ConfigError, match=r"\*\.csv or \*\.json"):
        export_sheet(tmp_path, "anna", comparisons(), tmp_path / "sheet.xlsx", seed=0)
    with pytest.raises(EmptySetError, match="the same"):
        export_sheet(tmp_path, "anna", [Comparison("p", "a", "b", "x", "x")], path, seed=0)
    with pytest.raises(DataError, match=r"spreadsheets keep.*\.json"):
        export_sheet(tmp_path, "anna", [Comparison("p", "a", "b", "x" * 40_000, "y")], path, seed=0)
    assert not path.exists()
    assert not key_path(tmp_path, "anna").exists()
    export_sheet(tmp_path, "anna", comparisons(), path, seed=0)
    with pytest.raises(ConfigError, match="exists"):
        export_sheet(tmp_path, "anna", comparisons(), tmp_path / "other.csv", seed=1)
    with pytest.raises(ConfigError, match="there is anna"):
        import_sheet(tmp_path, "bert", 8, path)
