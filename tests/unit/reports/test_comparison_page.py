# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: a column in which no method has a figure is left out."""

import re
from pathlib import Path

import pytest

from metarm.bench.results import Cell, Tally
from metarm.reports.comparison_page import write_comparison_page


def cell(method: str, seed: int, *, has_labels: bool) -> Cell:
    tally = Tally(("a", "b", "c"), (2, 2, 2), (2.0, 1.0, float(seed % 2)))
    return Cell(
        shift="style",
        method=method,
        seed=seed,
        best_step=10,
        original=tally,
        shifted=tally if has_labels else None,
        length_balanced=0.6 if has_labels else None,
        rank_correlation=0.9,
        difference=0.5,
        strength=1.0,
        curve=((0, 0.5, 0.5, 0.5 if has_labels else None),),
        forward=1000,
        backward=1000,
        seconds=1.0,
    )


@pytest.mark.parametrize(
    ("methods", "has_labels", "missing"),
    [
        (
            ("plain", "ascent"),
            False,
            {"shifted", "length-balanced", "worst split", "oracle's gap", "worth labels"},
        ),
        (("plain", "ascent"), True, {"oracle's gap", "worth labels"}),
    ],
)
def test_columns_of_nothing_are_left_out(
    tmp_path: Path, methods: tuple[str, ...], has_labels: bool, missing: set[str]
) -> None:
    cells = [cell(one, seed, has_labels=has_labels) for one in methods for seed in range(3)]
    page = write_comparison_page(cells, tmp_path, {}).read_text("utf-8")
    table = page[page.index("<thead>") : page.index("</table>")]
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    every = {"shifted", "length-balanced", "worst split", "oracle's gap", "worth labels"}
    # Quotes in the template are its own and stand as they are.
    assert every - set(heads) == missing
    for row in table.split("<tbody>")[1].split("</tr>")[:-1]:
        assert row.count("</td>") + 1 == len(heads)
