# SPDX-License-Identifier: Apache-2.0
"""The verb `explain`: why a reward model scores as it does, and where it is confident and wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from metarm.cli.options import AsJson, DataFormat, Seed, answer, note, print_json, print_table
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from metarm.explaining.explain import Reward
    from metarm.schema import PreferencePair

__all__ = ["explain"]


def explain(
    reward_model: Annotated[
        str, typer.Option("--reward-model", metavar="M", help="Folder or hub id; an ensemble too.")
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Gets explain.json and explain.html.")
    ],
    preferences: Annotated[
        str | None,
        typer.Option("--preferences", metavar="F", help="Labelled pairs, not trained on."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="M2", help="The reward model after adaptation, compared."),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(
            "--labelled",
            metavar="F",
            help="Pairs that the model was taught with: nearest pairs, influences, mistakes.",
        ),
    ] = None,
    text: Annotated[
        tuple[str, str] | None,
        typer.Option("--text", metavar="PROMPT RESPONSE", help="One response, word by word."),
    ] = None,
    num_rows: Annotated[
        int, typer.Option("--rows", metavar="N", min=0, help="Pairs told word by word; 0: none.")
    ] = 6,
    rows: Annotated[
        list[int] | None,
        typer.Option("--row", metavar="I", min=0, help="This pair, from 0; may be repeated."),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option("--baseline", metavar="NAME", help="A word's stand-in: eos, pad or zero."),
    ] = "eos",
    keeps_prompt: Annotated[
        bool, typer.Option("--keep-prompt", help="Attribute the response alone.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", metavar="X", help="Gap left, as a share of the difference."),
    ] = 0.01,
    max_steps: Annotated[
        int, typer.Option("--max-steps", metavar="N", min=1, help="Points of the path at most.")
    ] = 512,
    num_topics: Annotated[
        int, typer.Option("--topics", metavar="N", min=0, help="Clusters of prompts.")
    ] = 6,
    data_format: DataFormat = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Say why a reward model scores as it does, and where it is confident and wrong.

    Kinds of pairs with multiplicity held, some pairs word by word (integrated gradients, with what
    they leave over), the labelled pairs that they are like, and what single labels did:
    docs/explaining.md. States and attributions that are done are kept; the same command goes on.
    """
    from metarm.errors import ConfigError

    if preferences is None and text is None:
        raise ConfigError("give --preferences FILE, labelled pairs, or --text PROMPT RESPONSE")
    if preferences is None and (after or labelled or rows):
        raise ConfigError("--after, --labelled and --row are of pairs: give --preferences FILE")

    from metarm.data.derived import check_evaluation
    from metarm.explaining.attributing import PathSettings
    from metarm.explaining.explain import ExplainPlan, check_rows, explain_pairs, explain_text
    from metarm.explaining.kept_work import KeptWork
    from metarm.models.ensemble import load_reward
    from metarm.reports.explain_page import write_explain_page
    from metarm.run_folder import hold_folder
    from metarm.storage import check_writable, write_json

    path = PathSettings(baseline, keeps_prompt, tolerance, max_steps)
    plan = ExplainPlan(
        num_rows=num_rows, rows=tuple(rows or ()), num_topics=num_topics, path=path, seed=seed
    )
    # All that can be wrong with files and models is told before anything is scored.
    told = [] if preferences is None else _load(preferences, data_format)
    check_evaluation(told, str(preferences))
    taught = [] if labelled is None else _load(labelled, data_format)
    check_writable(output)
    with hold_folder(output):
        score = load_reward(reward_model)
        material = None
        if preferences is not None:
            adapted = None if after is None else load_reward(after)
            material = _fitting(score, adapted, told, taught)
            check_rows(plan.rows, len(material.pairs))
        kept = KeptWork.in_folder(output, reward_model, after)
        document: dict[str, Any] = {
            "reward_model": reward_model,
            "after": after,
            "preferences": preferences,
            "labelled": labelled,
            "seed": seed,
        }
        if text is not None:
            document["text"] = explain_text(score, *text, path=path, kept=kept)
        if material is not None:
            document |= explain_pairs(
                score,
                material.pairs,
                plan=plan,
                progress=choose_progress(),
                labelled=material.labelled,
                after=material.after,
                kept=kept,
            )
        write_json(output / "explain.json", document)
        page = write_explain_page(document, output)
    if as_json:
        print_json({**document, "page": str(page)})
        return
    for point in document.get("headline", ()):
        answer(point)
    if text is not None:
        attribution = document["text"]["attribution"]
        answer(
            f"reward {attribution['score']:.4g}, {attribution['baseline_score']:.4g} without its "
            f"words; {abs(attribution['gap']):.2g} left over"
        )
    answer("")
    print_table({"page": page, "figures": output / "explain.json"})


class _Material(NamedTuple):
    """What is explained, all of which the models can read."""

    pairs: "list[PreferencePair]"
    labelled: "list[PreferencePair]"
    after: "Reward | None"


def _fitting(
    score: "Reward",
    after: "Reward | None",
    pairs: "list[PreferencePair]",
    labelled: "list[PreferencePair]",
) -> _Material:
    """Pairs that fit every model, and labelled ones that fit the one that was taught with them."""
    fitting = score.fitting_pairs(pairs)
    if after is not None:
        fitting = after.fitting_pairs(fitting)
    return _Material(fitting, score.fitting_pairs(labelled) if labelled else [], after)


def _load(source: str, data_format: str | None) -> "list[PreferencePair]":
    from metarm.data.preferences import load_preferences

    found = load_preferences(source, data_format)
    note(f"{source}: {found.report.summary()}")
    return list(found.pairs)
