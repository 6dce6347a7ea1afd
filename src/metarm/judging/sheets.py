# SPDX-License-Identifier: Apache-2.0
"""Blind sheets for people: exported with sides drawn by chance, imported against a sealed key.

A sheet names no arm. Its key, which stays in the judging folder, says for each row which comparison
it is, which side is which, and what its texts were: a row that came back otherwise is no verdict.
"""

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from metarm.data.fields import Row
from metarm.data.rows import read_rows
from metarm.errors import ConfigError, DataError, EmptySetError, FormatError
from metarm.judging.comparisons import Comparison, Judgement
from metarm.schema import Verdict, prompt_text
from metarm.storage import fingerprint, read_json, write_json, write_text

__all__ = ["COLUMNS", "export_sheet", "import_sheet", "key_path"]

COLUMNS: Final = ("row", "prompt", "response_a", "response_b", "verdict")
CELL_LIMIT: Final = 32_767
"""Characters that a spreadsheet keeps of a cell."""
FORMULA_STARTS: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
GUARD: Final = "'"
MAX_TOLD: Final = 12
"""Wrong rows that an error names; of more it tells the number."""
_SAYS: Final[Mapping[str, Verdict]] = {"a": "first", "b": "second", "tie": "tie"}


def key_path(folder: Path, name: str) -> Path:
    """Where the key of the sheet called `name` is."""
    return folder / "sheets" / f"{name}.key.json"


def export_sheet(
    folder: Path,
    name: str,
    comparisons: Sequence[Comparison],
    path: Path,
    *,
    seed: int,
    num_rows: int | None = None,
) -> int:
    """Write a sheet for one person, and its key.

    Args:
        folder: Judging folder, which keeps the key.
        name: Whom the sheet is for: the judge's name in results.
        comparisons: All comparisons of the folder; those whose responses are the same need nobody.
        path: `.csv` or `.json`.
        seed: Draws rows, their order and their sides.
        num_rows: Rows to write, drawn by chance; None: all.

    Returns:
        The number of rows.

    Raises:
        ConfigError: When the sheet or its key is there already, or `path` ends otherwise.
        DataError: When a text is longer than a spreadsheet keeps.
        EmptySetError: When every two responses are the same.

    Writes:
        `path`, and `sheets/NAME.key.json` in `folder`.
    """
    write = _writer(path)
    key_file = key_path(folder, name)
    for taken in (path, key_file):
        if taken.exists():
            raise ConfigError(f"{taken} exists: name another sheet, or import this one first")
    draw = random.Random(f"sheet|{name}|{seed}")
    places = [place for place, one in enumerate(comparisons) if not one.is_same]
    if not places:
        raise EmptySetError("all responses are the same: there is nothing for a person to judge")
    places = draw.sample(places, min(len(places), num_rows or len(places)))
    rows, sealed = [], {}
    for number, place in enumerate(places):
        comparison, is_turned = comparisons[place], draw.random() < 0.5
        texts = (comparison.first, comparison.second)
        row = _row(comparison, texts[::-1] if is_turned else texts)
        # A letter first: spreadsheets turn some hex numbers into powers of ten.
        row["row"] = f"r{fingerprint('sheet', name, seed, number)}"
        rows.append(row)
        sealed[row["row"]] = {
            "comparison": place,
            "is_turned": is_turned,
            "texts": _digest(row),
        }
    text = write(rows)
    write_json(key_file, {"rows": sealed, "seal": fingerprint(sealed)})
    write_text(path, text)
    return len(rows)


def import_sheet(
    folder: Path, name: str, num_comparisons: int, path: Path
) -> tuple[Judgement, ...]:
    """The judgements of a sheet that came back, every row checked against the key.

    Args:
        folder: Judging folder.
        name: Whom the sheet was for.
        num_comparisons: Of the folder.
        path: The sheet, filled: `A`, `B` or `tie` in each row's `verdict`.

    Returns:
        One a comparison; those that are not on the sheet are `unjudged`.

    Raises:
        ConfigError: When no sheet of this name was exported.
        DataError: When rows are missing, unknown, there twice, changed, or without a verdict: one
            error that names them all.
        FormatError: When the file cannot be read, or the key was changed.
    """
    sealed = _read_key(key_path(folder, name))
    _writer(path)
    wrong: list[str] = []
    judgements = [Judgement("unjudged", None)] * num_comparisons
    seen: set[str] = set()
    for row in read_rows(path):
        row_id = _word(row, "row")
        key = sealed.get(row_id)
        if key is None:
            wrong.append(f"{row.place}: `row` is {row_id[:20]!r}, which the key does not have")
            continue
        if row_id in seen:
            wrong.append(f"{row.place}: row {row_id} a second time")
        elif (problem := _problem(row, key)) is not None:
            wrong.append(f"{row.place}: row {row_id}: {problem}")
        else:
            judgements[key["comparison"]] = _judgement(row, is_turned=key["is_turned"])
        seen.add(row_id)
    wrong += [f"row {row_id} is missing" for row_id in sealed if row_id not in seen]
    if wrong:
        more = f" ... and {len(wrong) - MAX_TOLD} more" if len(wrong) > MAX_TOLD else ""
        raise DataError(
            f"{path}: expected {len(sealed)} rows as exported, each with A, B or tie as verdict, "
            f"got {len(wrong)} that are not: {'; '.join(wrong[:MAX_TOLD])}{more}. Mend them in the "
            "sheet and import it again; nothing was taken."
        )
    return tuple(judgements)


def _row(comparison: Comparison, texts: Sequence[str]) -> dict[str, str]:
    return {
        "row": "",
        "prompt": prompt_text(comparison.prompt),
        "response_a": texts[0],
        "response_b": texts[1],
        "verdict": "",
    }


def _digest(row: Mapping[str, Any]) -> str:
    """A hash of a row's texts, the same whatever a spreadsheet does with line ends and guards."""
    return fingerprint(*(_plain(str(row.get(name, ""))) for name in COLUMNS[1:4]))


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip(GUARD)


def _guarded(text: str) -> str:
    """The text so that no spreadsheet takes it for a formula.

    Source:
        OWASP, CSV injection: the characters that a formula can begin with.

    Example:
        >>> _guarded("=1+1"), _guarded("plain")
        ("'=1+1", 'plain')
    """
    return GUARD + text if text.startswith(FORMULA_STARTS) else text


def _writer(path: Path) -> Any:
    """How a sheet of that name is written.

    Raises:
        ConfigError: When its name ends in neither `.csv` nor `.json`.
    """
    writers = {".csv": _csv_text, ".json": _json_text}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: expected a sheet called *.csv or *.json")
    return writers[path.suffix]


def _json_text(rows: Sequence[Mapping[str, str]]) -> str:
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as CSV that spreadsheets open: a mark of UTF-8 before it, formulas defused."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        guarded = {name: _guarded(text) for name, text in row.items()}
        if (longest := max(map(len, guarded.values()))) > CELL_LIMIT:
            raise DataError(
                f"expected texts of up to {CELL_LIMIT} characters, which spreadsheets keep, got "
                f"one of {longest}: export the sheet as .json"
            )
        writer.writerow(guarded)
    return "\ufeff" + stream.getvalue()


def _problem(row: Row, key: Mapping[str, Any]) -> str | None:
    """What is wrong with a row; None where nothing is."""
    if _digest(row.values) != key["texts"]:
        return "its texts are not as exported"
    said = _word(row, "verdict")
    if said.lower() not in _SAYS:
        return f"`verdict` is {said[:20]!r}"
    return None


def _word(row: Row, name: str) -> str:
    """A cell of one word, without what a spreadsheet may have put around it."""
    return str(row.values.get(name) or "").strip().lstrip(GUARD)


def _judgement(row: Row, *, is_turned: bool) -> Judgement:
    """The row's verdict, told of the arms; which order it was shown in is kept."""
    shown = _SAYS[_word(row, "verdict").lower()]
    return Judgement.of_orders(None, shown) if is_turned else Judgement.of_orders(shown, None)


def _read_key(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a key that is as it was written."""
    if not path.exists():
        there = sorted(p.name.removesuffix(".key.json") for p in path.parent.glob("*.key.json"))
        raise ConfigError(
            f"{path}: no sheet of this name was exported; there is {', '.join(there) or 'none'}"
        )
    document = read_json(path)
    try:
        rows: dict[str, dict[str, Any]] = document["rows"]
        is_whole = document["seal"] == fingerprint(rows)
    except (KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise FormatError(
            f"{path}: the key was changed since the sheet was exported, so that nobody knows which "
            "side is which. Restore it, or export a new sheet."
        )
    return rows
