# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/speed.md, from the results of `metarm bench`.

    python benchmarks/speed.py --keep runs/speed/speed.json xeon-2
    python benchmarks/speed.py --write

The first takes results into `benchmarks/results/speed-NAME.json`, one file a machine. The second
puts tables into the page, each between `<!-- table: NAME TITLE -->` and `<!-- end -->`, and draws
its figure; without `--write` it says whether the page is as the results are, which a test asks too.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from metarm.reports.drawing import STYLE
from metarm.reports.speed_page import draw_parts
from metarm.reports.speed_tables import all_tables, equivalence_text
from metarm.speed.summary import stacked_parts, summarise_case

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "speed.md"
BLOCK = re.compile(r"<!-- table: (\S+) (.+?) -->\n.*?<!-- end -->", re.DOTALL)
NOT_YET = "*Not measured yet.*"
FACTS = ("processor", "cores", "threads", "accelerator", "torch", "transformers", "trl", "metarm")


def read(name: str) -> dict[str, Any] | None:
    """The results of a machine, where there are any."""
    path = RESULTS / f"speed-{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; all but its first column to the right."""
    head, *body = rows
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def table(name: str, document: dict[str, Any], title: str) -> str:
    """What a title names: `machine`, `equivalence`, a table, or after `figure` a case's bars.

    A table that the results do not have is said to be not measured yet.
    """
    if title == "machine":
        machine = document["machine"]
        rows = [[name, str(machine[name])] for name in FACTS]
        rows += [["measured", document["made"]], ["load per core", str(document["load_per_core"])]]
        rows += [["command", f"`{document['command']}`"]]
        return markdown([["", "machine"], *rows]).replace("--:", "---")
    if title == "equivalence":
        found = {
            summarise_case(case).case.name: equivalence_text(case) for case in document["cases"]
        }
        return markdown([["case", "shared against plain"], *map(list, found.items())])
    if title.startswith("figure "):
        case = title.removeprefix("figure ")
        found = (f for f in document["cases"] if summarise_case(f).case.name == case)
        if not any(stacked_parts(f) for f in found):
            return NOT_YET
        return f"![A MetaRM step in TRL steps, one change after the other](images/speed-{name}.png)"
    tables = dict(all_tables(document))
    return markdown(tables[title]) if title in tables else NOT_YET


def render(page: str) -> str:
    """The page with every table made anew."""

    def fill(block: re.Match[str]) -> str:
        name, title = block[1], block[2]
        document = read(name)
        body = NOT_YET if document is None else table(name, document, title)
        return f"<!-- table: {name} {title} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(fill, page)


def draw(page: str) -> None:
    """Every figure that the page asks for."""
    for name, title in BLOCK.findall(page):
        for found in (read(name) or {"cases": []})["cases"]:
            summary = summarise_case(found)
            if f"figure {summary.case.name}" == title and (figure := draw_parts(found, summary)):
                path = PAGE.parent / "images" / f"speed-{name}.png"
                with matplotlib.rc_context(STYLE):
                    figure.savefig(path, dpi=110, metadata={"Software": None})


def keep(source: Path, name: str) -> None:
    """Take results, numbers to five digits, one line a list of numbers."""
    found = json.loads(
        source.read_text(encoding="utf-8"), parse_float=lambda x: float(f"{float(x):.5g}")
    )
    # Where they were kept is nobody's business.
    del found["settings"]["output_dir"]
    text = json.dumps(found, indent=1)
    text = re.sub(r"\[\s+([-\d.,e\s])+\]", lambda row: re.sub(r"\s+", " ", row[0]), text)
    (RESULTS / f"speed-{name}.json").write_text(f"{text}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs=2, metavar=("SPEED_JSON", "NAME"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep:
        keep(Path(arguments.keep[0]), arguments.keep[1])
        return
    page = PAGE.read_text(encoding="utf-8")
    made = render(page)
    if arguments.write:
        PAGE.write_text(made, encoding="utf-8")
        draw(made)
    elif made != page:
        raise SystemExit("docs/speed.md is not as the results are: run with --write")


if __name__ == "__main__":
    main()
