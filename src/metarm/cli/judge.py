# SPDX-License-Identifier: Apache-2.0
"""The verbs about who wins: `judge`, `sheet`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metarm import __version__
from metarm.cli.judge_sources import (
    EndpointModel,
    EndpointUrl,
    GoldFunction,
    JudgeSource,
    OwnFunction,
    RewardModel,
    build_judge,
    file_name,
    read_judge_source,
    say_what_is_missing,
)
from metarm.cli.options import (
    AsJson,
    ConfigFile,
    Seed,
    SettingWords,
    answer,
    note,
    print_json,
    print_table,
    read_section,
)

if TYPE_CHECKING:
    from metarm.config_judge import JudgeSettings
    from metarm.judging.comparisons import Arm, Comparison

__all__ = ["judge", "sheet"]

JudgingFolder = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Folder of the judging.")
]


def judge(
    output: JudgingFolder,
    words: SettingWords = None,
    config: ConfigFile = None,
    responses: Annotated[
        list[str] | None,
        typer.Option(
            "--responses",
            metavar="NAME=F",
            help="An arm and its file of `prompt` with `response` or `responses`. Repeat it.",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN_DIR", help="Take every arm of a run instead."),
    ] = None,
    round_number: Annotated[
        int | None,
        typer.Option("--round", metavar="N", min=0, help="After this round; default: the last."),
    ] = None,
    new_task: Annotated[
        bool, typer.Option("--new-task", help="Of a run with a new task: on its prompts.")
    ] = False,
    gold: GoldFunction = None,
    reward_model: RewardModel = None,
    endpoint: EndpointUrl = None,
    model: EndpointModel = None,
    own: OwnFunction = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Under which verdicts stand; default: its own."
        ),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge responses of arms against each other.

    Both orders are asked and ties kept. The folder keeps every judge's verdicts, and every answer
    of a model: the same command goes on where it was stopped, and costs nothing again. Another
    judge is added to those that are there.
    """
    from metarm.config_judge import JudgeSettings

    settings = read_section(config, words, JudgeSettings)
    judge_source = read_judge_source(gold, reward_model, endpoint, model, own)

    from metarm.judging.comparisons import JudgementSet, save_judgements
    from metarm.judging.judge_all import judge_all
    from metarm.run_folder import hold_folder
    from metarm.storage import check_writable

    check_writable(output)
    with hold_folder(output):
        comparisons = _comparisons(
            output, settings, responses, run_dir, round_number, is_new_task=new_task
        )
        if judge_source is not None:
            called = file_name(name or judge_source.name)
            facts = _identity(judge_source, settings)
            _check_same_judge(output, called, facts, len(comparisons))
            asked = build_judge(judge_source, settings, output, called, run_dir)
            found = judge_all(comparisons, asked, both_orders=settings.both_orders)
            told = {**facts, **getattr(asked, "facts", {})}
            save_judgements(output, JudgementSet(called, told, tuple(found)))
            say_what_is_missing(told)
        _write_results(output, settings.num_resamples, seed, as_json=as_json)


def sheet(
    output: JudgingFolder,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Who judges: the name in results.")
    ],
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="F", help="Write a sheet: *.csv or *.json."),
    ] = None,
    filled: Annotated[
        Path | None, typer.Option("--import", metavar="F", help="Read a filled sheet.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", metavar="N", min=1, help="Rows, drawn by chance. Default: all."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Have people judge: write a blind sheet, or read it back.

    The folder is one of `metarm judge`. A sheet names no arm; rows and sides are drawn by chance,
    and the folder keeps the key. An import checks every row against it and takes all or nothing.
    """
    from metarm.errors import ConfigError

    if (export is None) == (filled is None):
        raise ConfigError("expected one of --export and --import")

    from metarm.judging.comparisons import JudgementSet, load_comparisons, save_judgements
    from metarm.judging.sheets import export_sheet, import_sheet
    from metarm.run_folder import hold_folder
    from metarm.storage import check_writable

    called = file_name(name)
    check_writable(output)
    with hold_folder(output):
        comparisons = load_comparisons(output)
        if export is not None:
            count = export_sheet(output, called, comparisons, export, seed=seed, num_rows=rows)
            document = {"sheet": str(export), "rows": count}
            (print_json if as_json else print_table)(document)
        elif filled is not None:
            judgements = import_sheet(output, called, len(comparisons), filled)
            facts = {"kind": "person", "sheet": filled.name}
            save_judgements(output, JudgementSet(called, facts, judgements))
            _write_results(output, _default_resamples(), seed, as_json=as_json)


def _default_resamples() -> int:
    from metarm.config_judge import JudgeSettings

    return JudgeSettings().num_resamples


def _comparisons(
    output: Path,
    settings: "JudgeSettings",
    responses: Sequence[str] | None,
    run_dir: Path | None,
    round_number: int | None,
    *,
    is_new_task: bool,
) -> "list[Comparison]":
    """What is judged: made of the arms that are given, or what the folder holds already."""
    from metarm.errors import ConfigError
    from metarm.judging.comparisons import (
        COMPARISONS_FILE,
        compare_arms,
        keep_comparisons,
        load_comparisons,
        load_run_arms,
    )

    if responses and run_dir:
        raise ConfigError("expected arms from --responses or from --run, got both")
    if not responses and not run_dir:
        if not (output / COMPARISONS_FILE).exists():
            raise ConfigError(
                f"{output} holds no comparisons yet: give the arms, --responses NAME=FILE for "
                "each, or --run RUN_DIR"
            )
        return load_comparisons(output)
    arms = (
        load_run_arms(run_dir, round_number, is_new_task=is_new_task)
        if run_dir
        else _arms(responses or [])
    )
    comparisons = compare_arms(
        arms,
        against=settings.against,
        num_prompts=settings.num_prompts,
        num_responses=settings.num_responses,
    )
    keep_comparisons(output, comparisons)
    sizes = {arm: len(own) for arm, own in arms.items()}
    shared = len({(one.source, one.prompt) for one in comparisons})
    if any(size > shared for size in sizes.values()):
        told = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
        note(f"{shared} prompts are compared; the arms have {told}")
    return comparisons


def _arms(responses: Sequence[str]) -> "dict[str, Arm]":
    from metarm.errors import ConfigError
    from metarm.judging.comparisons import load_arm

    arms: dict[str, Arm] = {}
    for word in responses:
        arm, equals, path = word.partition("=")
        if not (arm and equals and path):
            raise ConfigError(f"--responses: expected NAME=FILE, got {word!r}")
        if arm in arms:
            raise ConfigError(f"--responses: the arm {arm!r} is named twice")
        arms[arm] = load_arm(path)
    return arms


def _identity(judge_source: JudgeSource, settings: "JudgeSettings") -> dict[str, Any]:
    """What makes a judge the same judge: whoever differs in it needs another name."""
    from metarm.judging.templates import load_template
    from metarm.storage import content_digest

    flag, source, model = judge_source
    facts: dict[str, Any] = {"kind": flag.removeprefix("--"), "both_orders": settings.both_orders}
    if flag == "--endpoint":
        return {
            **facts,
            "model": model,
            "template": load_template(settings.template).name,
            "temperature": settings.temperature,
            "max_answer_tokens": settings.max_answer_tokens,
        }
    facts["source"] = source
    if flag == "--reward-model":
        facts["digest"] = content_digest(source)
    if flag != "--judge":
        facts["tie_margin"] = settings.tie_margin
    return facts


def _check_same_judge(output: Path, name: str, facts: Mapping[str, Any], count: int) -> None:
    """Refuse to write another judge's verdicts over those of one of this name.

    Raises:
        FingerprintError: When the name is taken.
    """
    from metarm.errors import FingerprintError
    from metarm.judging.comparisons import load_judgements

    before = {judged.name: judged.facts for judged in load_judgements(output, count)}.get(name)
    if before is None:
        return
    other = [key for key, value in facts.items() if key != "kind" and before.get(key) != value]
    if other or before.get("kind") != facts["kind"]:
        raise FingerprintError(
            f"{output} has verdicts of another judge called {name} (it differs in "
            f"{', '.join(other) or 'kind'}): give this one a name of its own with --name"
        )


def _write_results(output: Path, num_resamples: int, seed: int, *, as_json: bool) -> None:
    """Work out and write all results of a folder, and print them."""
    from metarm.judging.results import format_win_rates, judging_to_json, read_judging
    from metarm.reports.judging_page import write_judging_page
    from metarm.storage import write_json

    judging = read_judging(output, num_resamples=num_resamples, seed=seed)
    document = judging_to_json(judging)
    path = output / "judge.json"
    write_json(path, document)
    page = write_judging_page(
        judging, output, {"metarm": __version__, "num_resamples": num_resamples, "seed": seed}
    )
    if as_json:
        print_json({"output": str(path), "report": str(page), **document})
        return
    answer(format_win_rates(judging))
    answer("")
    print_table({"figures": path, "report": page})
