# SPDX-License-Identifier: Apache-2.0
"""The verb `bench`: what an optimiser step costs on this machine."""

import os
import shlex
import sys
import time
from typing import TYPE_CHECKING

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    OutputFolder,
    SettingWords,
    answer,
    note,
    print_json,
    print_table,
    read_section,
    words_with_output,
)
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bench"]


def bench(
    words: SettingWords = None,
    config: ConfigFile = None,
    output: OutputFolder = None,
    as_json: AsJson = False,
) -> None:
    """Time an optimiser step beside TRL's, other packages' and the least that physics allows.

    Models of random weights and random texts: nothing is downloaded. Finished measurements are
    kept: the same command goes on where a stopped one was, and adds what is asked for newly. Run it
    on an idle machine.
    """
    from metarm.speed.settings import BenchSettings

    settings = read_section(config, words_with_output(words, output), BenchSettings)

    from metarm.reports.speed_page import write_speed_page
    from metarm.reports.speed_tables import all_tables
    from metarm.speed.machine import BUSY_LOAD, load_per_core
    from metarm.speed.measure import measure_speed
    from metarm.speed.summary import summarise_case
    from metarm.storage import write_json

    load = load_per_core()
    if load > BUSY_LOAD:
        note(
            f"this machine is busy: load {load:.1f} per core, above {BUSY_LOAD}. Its other work "
            "will be in the figures; ratios suffer less than seconds."
        )
    found = measure_speed(settings, progress=choose_progress())
    document = {
        "made": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["metarm", *sys.argv[1:]]),
        "load_per_core": round(load, 2),
        "settings": settings.model_dump(mode="json"),
        **found,
    }
    path = settings.output_dir / "speed.json"
    write_json(path, document)
    page = write_speed_page(document, settings.output_dir)
    if as_json:
        summaries = [summarise_case(case) for case in found["cases"]]
        rows = {summary.case.name: [row.to_json() for row in summary.rows] for summary in summaries}
        print_json({"output": str(path), "report": str(page), "summaries": rows, **document})
        return
    for title, table in all_tables(document, is_brief=True):
        _print_rich(title, table)
    print_table({"figures": path, "report": page})


def _print_rich(title: str, rows: "Sequence[Sequence[str]]") -> None:
    """A table as wide as the terminal, or as COLUMNS says where there is none."""
    from rich.console import Console
    from rich.table import Table

    stream = sys.__stdout__
    width = None if stream is not None and stream.isatty() else int(os.environ.get("COLUMNS", 140))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if place else "left", no_wrap=place == 0)
    for row in rows[1:]:
        table.add_row(*row)
    Console(file=stream, width=width, highlight=False, markup=False).print(table)
    answer("")
