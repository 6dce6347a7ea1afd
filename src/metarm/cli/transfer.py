# SPDX-License-Identifier: Apache-2.0
"""The verbs that make a reward model out of others: `average`, `adapt`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    DataFormat,
    NewFolder,
    Seed,
    SettingWords,
    answer,
    build_output,
    change_text,
    estimate_text,
    note,
    print_json,
    print_table,
    read_section,
)
from metarm.cli.progress import choose_progress

__all__ = ["adapt", "average"]


def average(
    models: Annotated[
        list[Path], typer.Argument(metavar="M M", help="Folders of reward models, two or more.")
    ],
    output: NewFolder,
    preferences: Annotated[
        str | None,
        typer.Option(
            "--preferences",
            metavar="F",
            help="Labelled pairs that none was trained on: the loss barrier between each two.",
        ),
    ] = None,
    data_format: DataFormat = None,
    as_json: AsJson = False,
) -> None:
    """Average the weights of several reward models (WARM).

    They must be of one architecture and vocabulary, fine-tuned from one start. With --preferences
    the loss is measured on the way from each to each other: where it rises above both, the average
    is no good, and a warning says so.
    """
    from metarm.errors import ConfigError

    if len({model.resolve() for model in models}) != len(models) or len(models) < 2:
        raise ConfigError(
            f"expected two reward models or more, each once, got {' '.join(map(str, models))}"
        )

    def build(folder: Path) -> dict[str, Any]:
        from metarm.data.derived import check_evaluation
        from metarm.data.preferences import load_preferences
        from metarm.metrics import accuracy_estimate, pair_accuracy
        from metarm.models.reward_model import load_score_function
        from metarm.progress import SilentProgress
        from metarm.schema import prompt_text
        from metarm.stretching.averaging import average_models, num_passes
        from metarm.stretching.pseudo_labels import gaps_of

        pairs = load_preferences(preferences, data_format).pairs if preferences else ()
        check_evaluation(pairs, str(preferences))
        progress = choose_progress() if pairs else SilentProgress()
        with progress.stage("losses along the way", num_passes(len(models))) as bar:
            barriers = average_models(models, folder, pairs, bar)
        document: dict[str, Any] = {"barriers": [barrier.to_json() for barrier in barriers]}
        if pairs:
            accuracies = {}
            for name, place in [*((str(m), m) for m in models), ("average", folder)]:
                score = load_score_function(place)
                fitting = score.fitting_pairs(pairs)
                gaps = gaps_of(score, fitting)
                found = accuracy_estimate(
                    pair_accuracy(gaps, [1.0] * len(gaps)), [prompt_text(p.prompt) for p in fitting]
                )
                accuracies[name] = asdict(found)
            document["accuracy"] = accuracies
        return document

    inputs = {f"model_{number}": model for number, model in enumerate(models)}
    stage = build_output(
        "average",
        output,
        None,
        {**inputs, "preferences": preferences},
        {"data_format": data_format},
        build,
    )
    if stage is None:
        return
    document = dict(stage.metrics)
    barriers = document["barriers"]
    for barrier in barriers:
        if barrier["is_one"]:
            note(
                f"warning: between {barrier['first']} and {barrier['second']} the loss rises by "
                f"{barrier['height']['value']:.3f} nats a pair: they lie in different valleys, and "
                "their average is not to be trusted. Average fine-tunes of one start"
            )
    if as_json:
        print_json({"output": str(output), **document})
        return
    if not barriers:
        note("no --preferences: whether a barrier lies between the models was not looked at")
    print_table(
        {
            **{
                f"barrier, {b['first']} to {b['second']} (nats a pair)": estimate_text(b["height"])
                for b in barriers
            },
            **{f"accuracy, {n}": estimate_text(a) for n, a in document.get("accuracy", {}).items()},
            "output": output,
        }
    )


def adapt(
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Reward model: folder or hub id.")
    ],
    preferences: Annotated[
        str,
        typer.Option("--preferences", metavar="F", help="The few labelled pairs: file or hub id."),
    ],
    original: Annotated[
        str,
        typer.Option(
            "--original", metavar="F", help="Original pairs that the model was not trained on."
        ),
    ],
    output: NewFolder,
    data_format: DataFormat = None,
    words: SettingWords = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Adapt a reward model to a few labels, in the way that does best on labels not seen.

    Keeping the model, its head alone, a LoRA adapter and all weights are compared by
    cross-validation on the few labels; one that loses on original pairs by more than a margin is
    refused. OUTPUT is the reward model that was taken, and every candidate's figures.
    """
    from metarm.stretching.settings import AdaptSettings

    settings = read_section(config, words, AdaptSettings)

    def build(folder: Path) -> dict[str, Any]:
        from metarm.data.preferences import load_preferences
        from metarm.storage import checkpoints_of
        from metarm.stretching.adapting import adapt_reward_model

        loaded = [load_preferences(file, data_format) for file in (preferences, original)]
        for file, found in zip((preferences, original), loaded, strict=True):
            note(f"{file}: {found.report.summary()}")
        report = adapt_reward_model(
            model=model,
            few=loaded[0].pairs,
            original=loaded[1].pairs,
            settings=settings,
            output_dir=folder,
            place=checkpoints_of(folder),
            seed=seed,
            progress=choose_progress(),
        )
        return report.to_json()

    inputs = {"model": model, "preferences": preferences, "original": original}
    # What is kept of a choice by another rule has other figures.
    facts = {"seed": seed, "data_format": data_format, "chosen_by": "log loss"}
    stage = build_output("adapt", output, settings, inputs, facts, build, goes_on=True)
    if stage is None:
        return
    document = dict(stage.metrics)
    if as_json:
        print_json({"output": str(output), **document})
        return
    none, *others = document["candidates"]
    answer(
        f"{none['name']:<5} few labels: log loss {estimate_text(none['log_loss'])}, accuracy "
        f"{estimate_text(none['accuracy'])}; original {estimate_text(none['accuracy_original'])}"
    )
    for found in others:
        answer(
            f"{found['name']:<5} few labels: log loss "
            f"{change_text(found['log_loss_change']['change'])}, accuracy "
            f"{change_text(found['gain']['change'])}; original "
            f"{change_text(found['change_original'])} "
            f"({'passes' if found['original']['holds'] else 'refused'})"
        )
    if num_left_out := document["num_original_left_out"]:
        answer(f"{num_left_out} original pairs left out: they are of few labels' prompts")
    answer(f"taken: {document['taken']}. {document['reason']}")
    answer("")
    print_table({"output": output})
