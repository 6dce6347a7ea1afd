# SPDX-License-Identifier: Apache-2.0
"""The verb `tune`: a method's few settings, searched for on one shift."""

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

__all__ = ["tune"]


def tune(
    words: SettingWords = None,
    config: ConfigFile = None,
    output: OutputFolder = None,
    as_json: AsJson = False,
) -> None:
    """Search for a method's few settings on one shift, and say whether it was worth it.

    Finished trials are kept: the same command goes on where a stopped one was, and a larger
    num_trials adds to what is there. The best setting meets the default on fresh splits.
    """
    from metarm.bench.settings import TuneSettings

    settings = read_section(config, words_with_output(words, output), TuneSettings)

    from metarm.bench.tune import tune_method
    from metarm.bench.tuning_results import format_tuning, tuning_to_json
    from metarm.reports.tuning_page import write_tuning_page
    from metarm.storage import write_json

    tuning = tune_method(settings, progress=choose_progress())
    document = tuning_to_json(tuning)
    path = settings.output_dir / "tune.json"
    write_json(path, document)
    page = write_tuning_page(
        tuning, settings.output_dir, {"metarm": __version__, **settings.model_dump(mode="json")}
    )
    if as_json:
        print_json({"output": str(path), "report": str(page), **document})
        return
    answer(format_tuning(tuning))
    answer("")
    print_table({"figures": path, "report": page})
