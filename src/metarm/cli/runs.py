# SPDX-License-Identifier: Apache-2.0
"""The verbs about whole runs: `run`, `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
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
    from metarm.config import RunSettings

__all__ = ["report", "run"]

WAITING: Final = 75
"""Exit code where people are to answer first: EX_TEMPFAIL, try again later."""


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
    stages are kept: the same command goes on where a stopped run was. Where an arm waits for labels
    of people, all others are finished first and the exit code is 75.
    """
    from metarm.config import RunSettings

    own_seed = [] if seed is None else [f"seeds=[{seed}]"]
    settings = read_section(config, [*words_with_output(words, output), *own_seed], RunSettings)

    from metarm.rlhf_loop import run_rounds

    run_dir = run_rounds(settings, progress=choose_progress())
    _print_run(run_dir, as_json=as_json)
    _end_waiting(run_dir, settings)


def _end_waiting(run_dir: Path, settings: "RunSettings") -> None:
    """Say which labels the arms that were asked for wait for, and end with WAITING."""
    from metarm.round_labels.waiting import read_waiting, waiting_text

    waiting = [
        one
        for one in read_waiting(run_dir)
        if one.arm in settings.arms and one.seed in settings.seeds
    ]
    if waiting:
        note(waiting_text(run_dir, waiting))
        raise typer.Exit(WAITING)


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
            "waiting": [one.to_json() for one in found.waiting],
            "scorecards": cards,
        }
    )
