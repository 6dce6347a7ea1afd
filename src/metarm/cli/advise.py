# SPDX-License-Identifier: Apache-2.0
"""The verb `advise`: whether the step will help on one's own pairs and groups."""

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

__all__ = ["advise"]


def advise(
    words: SettingWords = None,
    config: ConfigFile = None,
    output: OutputFolder = None,
    as_json: AsJson = False,
) -> None:
    """Say what to expect of the step on your pairs and groups, and which mode to use, if any.

    Small heads on frozen features; with labelled shifted pairs these decide, without them a rule
    that was fitted to a made-up feature space. Finished splits are kept.
    """
    from metarm.bench.settings import AdviseSettings

    settings = read_section(config, words_with_output(words, output), AdviseSettings)

    from metarm.bench.advice_rule import load_rule
    from metarm.bench.advise import advise as form_advice
    from metarm.bench.advise import format_advice
    from metarm.bench.readings import read_splits
    from metarm.storage import check_writable, write_json

    check_writable(settings.output_dir)
    readings = read_splits(settings, progress=choose_progress())
    advice = form_advice(readings, load_rule(), settings.confidence)
    path = settings.output_dir / "advice.json"
    write_json(path, advice.to_json())
    if as_json:
        print_json({"output": str(path), **advice.to_json()})
        return
    answer(format_advice(advice))
    answer("")
    print_table({"figures": path})
