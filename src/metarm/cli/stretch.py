# SPDX-License-Identifier: Apache-2.0
"""The verbs that make rows out of labels and groups: `pseudo-label`, `augment`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metarm.schema import PreferencePair
    from metarm.stretching.settings import AugmentSettings

__all__ = ["augment", "pseudo_label"]

PARAPHRASE: Final = "paraphrase"
MOST_SWAP: Final = 1e-3
"""Rounding in another batch is far below it; a score of pairs far above."""


def pseudo_label(
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Backbone or reward model: folder or id.")
    ],
    preferences: Annotated[
        str, typer.Option("--preferences", metavar="F", help="Labelled pairs: file or hub id.")
    ],
    unlabelled: Annotated[
        str,
        typer.Option(
            "--unlabelled", metavar="F", help="Groups of responses, as `metarm sample` writes them."
        ),
    ],
    output: NewFolder,
    data_format: DataFormat = None,
    words: SettingWords = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a reward model in rounds on what it is itself sure of.

    Each round labels pairs of unlabelled responses with the model of the round before, calibrated
    on held-out labels, and trains anew on labels and pseudo-labels. It ends where held-out accuracy
    drops; OUTPUT is the last model before that, its pseudo-labels and all rounds' figures.
    """
    from metarm.stretching.settings import PseudoLabelSettings

    settings = read_section(config, words, PseudoLabelSettings)

    def build(folder: Path) -> dict[str, Any]:
        from metarm.data.meta_sets import load_groups
        from metarm.data.preferences import load_preferences
        from metarm.storage import checkpoints_of
        from metarm.stretching.rounds import train_on_pseudo_labels

        loaded = load_preferences(preferences, data_format)
        note(f"{preferences}: {loaded.report.summary()}")
        report = train_on_pseudo_labels(
            model=model,
            pairs=loaded.pairs,
            groups=load_groups(unlabelled),
            settings=settings,
            output_dir=folder,
            place=checkpoints_of(folder),
            seed=seed,
            progress=choose_progress(),
        )
        return report.to_json()

    inputs = {"model": model, "preferences": preferences, "unlabelled": unlabelled}
    facts = {"seed": seed, "data_format": data_format}
    stage = build_output("pseudo-label", output, settings, inputs, facts, build, goes_on=True)
    if stage is None:
        return
    document = dict(stage.metrics)
    if as_json:
        print_json({"output": str(output), **document})
        return
    for found in document["rounds"]:
        change = found["change"]
        against = f", {change_text(change['change'])} against the best before" if change else ""
        answer(
            f"round {found['number']}: {found['num_pseudo']} pseudo-labels, held-out accuracy "
            f"{estimate_text(found['accuracy'])}{against}"
        )
    kept = document["rounds"][document["kept"]]
    answer(f"kept round {document['kept']}: {document['reason']}")
    answer("")
    print_table(
        {
            "labelled pairs": document["num_labelled"],
            "pseudo-labels": kept["num_pseudo"],
            "temperature": _temperature(kept["calibration"]["inverse_temperature"]),
            "output": output,
        }
    )


def augment(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="Labelled pairs: file or hub id.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="F.jsonl", help="File to write: pairs and new rows.")
    ],
    kinds: Annotated[
        str,
        typer.Option(
            "--kinds",
            metavar="K,K",
            help="cross-prompt, cross-prompt-policy, neutral, format-only, truncated, "
            "stronger-weaker, paraphrase.",
        ),
    ] = "cross-prompt,neutral",
    groups: Annotated[
        str | None,
        typer.Option("--groups", metavar="F", help="Policy's responses: for cross-prompt-policy."),
    ] = None,
    stronger: Annotated[
        str | None,
        typer.Option("--stronger", metavar="F", help="Groups of a policy known to be better."),
    ] = None,
    weaker: Annotated[
        str | None, typer.Option("--weaker", metavar="F", help="Groups of the other policy.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="URL", help="Paraphrase at a server of OpenAI's protocol."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Its name at the server.")
    ] = None,
    check_swap: Annotated[
        str | None,
        typer.Option(
            "--check-swap",
            metavar="M",
            help="Also check that swapping the sides of the pairs changes no score of this "
            "reward model.",
        ),
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Write the new rows alone.")] = False,
    data_format: DataFormat = None,
    words: SettingWords = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make further training rows from labelled pairs.

    Every new row names its `source` and `parent_id`; `metarm reward` trains on it, and holds
    neither it nor what it was made from out. Paraphrases are kept as they come, in
    OUTPUT.answers.jsonl: the same command goes on where it was stopped.
    """
    from metarm.errors import ConfigError
    from metarm.run_folder import hold_output
    from metarm.stretching.settings import AugmentSettings

    settings = read_section(config, words, AugmentSettings)
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--kinds names kinds of rows, each once, got {kinds!r}")
    if (PARAPHRASE in names) != bool(endpoint and model):
        raise ConfigError(
            "--kinds paraphrase, --endpoint and --model belong together: what is made, the server, "
            "and the model there"
        )
    with hold_output(output):
        if output.exists():
            raise ConfigError(f"{output} exists: name another file, or remove it first")

        from metarm.data.meta_sets import load_groups
        from metarm.data.preferences import load_preferences, save_preferences
        from metarm.stretching.augmenting import Material, augment

        loaded = load_preferences(pairs, data_format)
        note(f"{pairs}: {loaded.report.summary()}")
        named = {"groups": groups, "stronger": stronger, "weaker": weaker}
        read = {key: tuple(load_groups(file)) for key, file in named.items() if file}
        material = Material(loaded.pairs, **read, seed=seed)
        own = [name for name in names if name != PARAPHRASE]
        made = augment(material, own, per_prompt=settings.per_prompt)
        rows, counts = list(made.rows), dict(made.counts)
        # Before the endpoint, which costs.
        swap = None if check_swap is None else _check_swap(check_swap, loaded.pairs)
        facts: dict[str, Any] = {}
        if endpoint and model:
            new, facts = _paraphrase(endpoint, model, loaded.pairs, settings, output, seed)
            rows += new
            counts[PARAPHRASE] = len(new)
        save_preferences(output, rows if only_new else [*loaded.pairs, *rows])
    document = {
        "output": str(output),
        "num_labelled": len(loaded.pairs),
        "num_made": len(rows),
        "counts": counts,
        **facts,
        **({} if swap is None else {"side_swap": swap}),
    }
    if as_json:
        print_json(document)
        return
    print_table(
        {
            "labelled pairs": len(loaded.pairs),
            **{f"new: {name}": count for name, count in counts.items()},
            **{f"left out: {why}": count for why, count in facts.get("left_out", {}).items()},
            **({} if swap is None else {"side swap, largest difference (logits)": swap}),
            "output": output,
        }
    )


def _paraphrase(
    endpoint: str,
    model: str,
    pairs: "Sequence[PreferencePair]",
    settings: "AugmentSettings",
    output: Path,
    seed: int,
) -> "tuple[list[PreferencePair], dict[str, Any]]":
    """Rows, and what is to be told of the asking."""
    from metarm.endpoint.client import Endpoint
    from metarm.stretching.paraphrase import paraphrase_pairs

    found = paraphrase_pairs(
        Endpoint(endpoint, model, settings.endpoint),
        pairs,
        settings,
        output.with_name(f"{output.name}.answers.jsonl"),
        seed=seed,
        progress=choose_progress(),
    )
    if found.stopped:
        note(f"not all was asked: {found.stopped}")
    return found.rows, {"left_out": found.left_out, "stopped": found.stopped}


def _check_swap(model: str, pairs: "Sequence[PreferencePair]") -> float:
    """The check of `stretching.augmenting`; said aloud where it fails."""
    from metarm.models.ensemble import load_reward
    from metarm.stretching.augmenting import check_side_swap

    score = load_reward(model)
    found = check_side_swap(score, score.fitting_pairs(pairs))
    if found > MOST_SWAP:
        note(
            f"warning: swapping the sides of the pairs changes gaps of {model} by up to "
            f"{found:.2g}: its score of a response depends on what it is scored beside"
        )
    return found


def _temperature(inverse: float) -> str:
    return f"{1.0 / inverse:.3g}" if inverse else "none: its gaps say nothing"
