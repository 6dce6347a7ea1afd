# SPDX-License-Identifier: Apache-2.0
"""The verb `explain`: why a reward model scores as it does, and where it is confident and wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metarm.cli.options import AsJson, DataFormat, Seed, answer, note, print_json, print_table
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from metarm.explaining.explain import ExplainPlan, Reward
    from metarm.explaining.kept_work import KeptWork
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

    from metarm.explaining.attributing import PathSettings
    from metarm.explaining.kept_work import KeptWork
    from metarm.models.ensemble import load_reward
    from metarm.reports.explain_page import write_explain_page
    from metarm.run_folder import hold_folder
    from metarm.storage import check_writable, write_json

    path = PathSettings(baseline, keeps_prompt, tolerance, max_steps)
    check_writable(output)
    with hold_folder(output):
        score = load_reward(reward_model)
        kept = KeptWork.in_folder(output, reward_model, after)
        document: dict[str, Any] = {
            "reward_model": reward_model,
            "after": after,
            "preferences": preferences,
            "labelled": labelled,
            "seed": seed,
        }
        if text is not None:
            from metarm.explaining.explain import explain_text

            prompt, response = text
            document["text"] = explain_text(score, prompt, response, path=path, kept=kept)
        if preferences is not None:
            from metarm.explaining.explain import ExplainPlan

            plan = ExplainPlan(
                num_rows=num_rows,
                rows=tuple(rows or ()),
                num_topics=num_topics,
                path=path,
                seed=seed,
            )
            files = preferences, labelled, data_format
            document |= _explain_pairs(score, after, files, plan, kept)
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


def _explain_pairs(
    score: "Reward",
    after: str | None,
    files: tuple[str, str | None, str | None],
    plan: "ExplainPlan",
    kept: "KeptWork",
) -> dict[str, Any]:
    from metarm.data.derived import check_evaluation
    from metarm.explaining.explain import explain_pairs
    from metarm.models.ensemble import load_reward

    preferences, labelled, data_format = files
    adapted = None if after is None else load_reward(after)
    told = _load(preferences, data_format)
    check_evaluation(told, preferences)
    pairs = score.fitting_pairs(told)
    if adapted is not None:
        pairs = adapted.fitting_pairs(pairs)
    taught = [] if labelled is None else score.fitting_pairs(_load(labelled, data_format))
    return explain_pairs(
        score,
        pairs,
        plan=plan,
        progress=choose_progress(),
        labelled=taught,
        after=adapted,
        kept=kept,
    )


def _load(source: str, data_format: str | None) -> "list[PreferencePair]":
    from metarm.data.preferences import load_preferences

    found = load_preferences(source, data_format)
    note(f"{source}: {found.report.summary()}")
    return list(found.pairs)
