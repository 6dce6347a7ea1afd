# SPDX-License-Identifier: Apache-2.0
"""The verb `select`: which pairs of the policy's responses are worth a label."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    DataFormat,
    Seed,
    SettingWords,
    answer,
    build_output,
    note,
    print_json,
    print_table,
    read_section,
)
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from metarm.schema import PreferencePair

__all__ = ["select"]

NUM_SHOWN = 10
WIDTH = 44


def select(
    groups: Annotated[
        str,
        typer.Option(
            "--groups",
            metavar="F",
            help="Responses of the current policy, as `metarm sample` writes them.",
        ),
    ],
    reward_model: Annotated[
        str,
        typer.Option("--reward-model", metavar="M", help="Reward model or ensemble: folder or id."),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write.")],
    words: SettingWords = None,
    config: ConfigFile = None,
    labelled: Annotated[
        list[str] | None,
        typer.Option(
            "--labelled",
            metavar="F",
            help="Pairs that the reward model was trained on: none is chosen again, and what they "
            "tell is not asked for again. May be given several times.",
        ),
    ] = None,
    data_format: DataFormat = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="Short for strategy=NAME.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="Short for count=N.")
    ] = None,
    cost_per_label: Annotated[
        float | None,
        typer.Option("--cost-per-label", metavar="X", help="Short for cost_per_label=X."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Choose the pairs of a policy's responses that are worth a label, and say what they would do.

    Writes pairs.jsonl, for `metarm label add`, and selection.json, with the reason for each. Only
    pairs whose `chosen_by` is `random` may be used to estimate accuracy.
    """
    from metarm.choosing.settings import SelectSettings

    given = {"strategy": strategy, "count": count, "cost_per_label": cost_per_label}
    shortcuts = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    settings = read_section(config, [*(words or []), *shortcuts], SelectSettings)

    def build(folder: Path) -> dict[str, Any]:
        from metarm.data.meta_sets import load_groups
        from metarm.data.preferences import load_preferences

        responses = load_groups(groups)
        pairs: list[PreferencePair] = []
        for source in labelled or []:
            loaded = load_preferences(source, data_format)
            note(f"{source}: {loaded.report.summary()}")
            pairs += loaded.pairs

        from metarm.choosing.selecting import find_candidates, write_selection
        from metarm.models.ensemble import load_reward, member_folders

        is_ensemble = len(member_folders(reward_model)) > 1
        found = find_candidates(responses, pairs, settings, is_ensemble=is_ensemble, seed=seed)
        score = load_reward(reward_model)
        total = sum(len(group.responses) for group in responses) + 2 * len(pairs)
        with choose_progress().stage("score responses", total) as bar:
            return write_selection(
                folder,
                score.reporting_to(bar),
                found,
                pairs,
                settings,
                num_groups=len(responses),
                seed=seed,
            )

    inputs = {"groups": groups, "reward_model": reward_model}
    inputs |= {f"labelled_{number}": source for number, source in enumerate(labelled or [])}
    stage = build_output("select", output, settings, inputs, {"seed": seed}, build)
    if stage is not None:
        (print_json if as_json else _print)({"output": str(output), **stage.metrics})


def _print(document: dict[str, Any]) -> None:
    """The answer for people: figures, the first pairs with their reasons, and the advice."""
    from metarm.choosing.selecting import PAIRS_FILE, SELECTION_FILE
    from metarm.labels.votes import LabelPair
    from metarm.schema import prompt_text
    from metarm.storage import read_json, read_json_lines

    folder = Path(document["output"])
    chosen = ", ".join(f"{number} {name}" for name, number in document["chosen_by"].items())
    of = f"{document['num_candidates']} candidates of {document['num_possible']} pairs"
    rows = {
        "chosen": f"{chosen}, of {of}",
        "pairs": str(folder / PAIRS_FILE),
        "reasons": str(folder / SELECTION_FILE),
    }
    print_table(rows)
    answer("")
    reasons = read_json(folder / SELECTION_FILE)["pairs"]
    pairs = [LabelPair.from_json(row) for row in read_json_lines(folder / PAIRS_FILE)]
    shown = list(zip(pairs, reasons, strict=True))
    for pair, row in shown[:NUM_SHOWN]:
        text = repr(prompt_text(pair.prompt))[:WIDTH]
        answer(f"{row['chosen_by']:<16}  {text:<{WIDTH}}  {row['reason']}")
    if len(shown) > NUM_SHOWN:
        answer(f"... and {len(shown) - NUM_SHOWN} more")
    answer("")
    answer(document["forecast"]["sentence"])
    if not document["num_labelled"]:
        answer(
            "That is for a reward model that has learnt nothing yet: with --labelled, the pairs "
            "that it was trained on, what they tell is not expected again."
        )
    answer(f"as many at random: {100 * document['forecast_at_random']['gain']:+.1f} points")
