# SPDX-License-Identifier: Apache-2.0
"""The verb `compare`: methods x shifts x seeds."""

from metarm import __version__
from metarm.cli.options import (
    AsJson,
    ConfigFile,
    OutputFolder,
    SettingWords,
    answer,
    print_json,
    print_table,
    read_section,
    words_with_output,
)
from metarm.cli.progress import choose_progress

__all__ = ["compare"]


def compare(
    words: SettingWords = None,
    config: ConfigFile = None,
    output: OutputFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare methods on shifts, with paired splits and intervals.

    Every method sees the same splits. Finished cells are kept: the same command goes on where a
    stopped one was, and further methods, shifts or seeds are added to what is there.
    """
    from metarm.bench.settings import CompareSettings

    settings = read_section(config, words_with_output(words, output), CompareSettings)

    from metarm.bench.compare import compare_methods
    from metarm.bench.summary import comparison_to_json, format_table, summarise_cells
    from metarm.reports.comparison_page import write_comparison_page
    from metarm.storage import check_writable, write_json

    check_writable(settings.output_dir)
    cells = compare_methods(settings, progress=choose_progress())
    summaries = summarise_cells(cells)
    document = comparison_to_json(summaries, cells)
    path = settings.output_dir / "compare.json"
    write_json(path, document)
    page = write_comparison_page(
        cells, settings.output_dir, {"metarm": __version__, **settings.model_dump(mode="json")}
    )
    if as_json:
        print_json({"output": str(path), "report": str(page), **document})
        return
    answer(format_table(summaries))
    answer("")
    print_table({"figures": path, "report": page})
