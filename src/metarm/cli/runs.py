# SPDX-License-Identifier: Apache-2.0
"""The verbs about whole runs: `run`, `report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    SettingWords,
    answer,
    print_json,
    print_table,
    read_section,
    words_with_output,
)
from metarm.cli.progress import choose_progress

__all__ = ["report", "run"]


def run(
    words: SettingWords = None,
    config: ConfigFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Run folder: output_dir=DIR.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Run this one seed: seeds=[N].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop, round by round and arm by arm.

    Each round samples, trains the reward model, optimises the policy and evaluates. Finished
    stages are kept: the same command goes on where a stopped run was.
    """
    from metarm.config import RunSettings

    own_seed = [] if seed is None else [f"seeds=[{seed}]"]
    settings = read_section(config, [*words_with_output(words, output), *own_seed], RunSettings)

    from metarm.rlhf_loop import run_rounds

    run_dir = run_rounds(settings, progress=choose_progress())
    _print_run(run_dir, as_json=as_json)


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Write the main figure there too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's page and print its table.

    The page is report.html in the run's folder. An unfinished run shows what it has.
    """
    if picture is not None:
        from metarm.reports.figures import write_picture

        write_picture(run_dir, picture)
    _print_run(run_dir, as_json=as_json)


def _print_run(run_dir: Path, *, as_json: bool) -> None:
    """Write the page of a run and print its results."""
    from metarm.reports.page import summary_table, write_report
    from metarm.reports.read_run import read_run

    page = write_report(run_dir)
    if not as_json:
        answer(f"{summary_table(run_dir)}\n")
        print_table({"report": page})
        return
    found = read_run(run_dir)
    cards: list[dict[str, Any]] = [card.to_json() for _, card in sorted(found.cards.items())]
    print_json(
        {
            "run_dir": str(run_dir),
            "report": str(page),
            "missing": list(found.missing),
            "scorecards": cards,
        }
    )
