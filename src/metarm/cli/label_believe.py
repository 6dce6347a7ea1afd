# SPDX-License-Identifier: Apache-2.0
"""The verb `label believe`: whom to believe, what their votes say together, what to ask next."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metarm import __version__
from metarm.cli.options import AsJson, Seed, answer, note, print_json, print_table
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from metarm.annotators.label_data import LabelData
    from metarm.annotators.report import BeliefReport
    from metarm.labels.votes import LabelPair

__all__ = ["label_believe"]

MAX_LENGTH = 512
VERB: Final = "label believe"
FILES: Final = (
    "soft_labels.jsonl",
    "annotators.jsonl",
    "next_votes.jsonl",
    "believe.json",
    "believe.html",
)


def label_believe(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="VOTES", help="A label store, or a file of votes: JSON lines, CSV, Parquet."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder for labels, figures and page.")
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs", metavar="F", help="The pairs of a file of votes that only names them."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features", metavar="F", help="Features of pairs: rows of `pair` and `features`."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="M", help="A model whose hidden states are the features."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="joint, dawid-skene or majority. Default: joint with features, else dawid-skene "
            "where pairs have several votes.",
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            "--alpha", metavar="X", help="Chance that a reliable annotator is called a bad one."
        ),
    ] = 0.05,
    next_votes: Annotated[
        int,
        typer.Option("--next", metavar="N", min=0, help="How many votes to propose."),
    ] = 20,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find out whom to believe, and turn votes into soft labels.

    Rewards, reliability and side bias of every annotator are fitted together; people, models, gold
    functions and rules are annotators of the same kind. The folder gets `soft_labels.jsonl`, which
    `metarm reward` trains on, `annotators.jsonl`, `next_votes.jsonl`, which `metarm label add
    --wanted` takes, `believe.json` with every figure, and the page `believe.html`; it replaces
    those of an earlier time, unless somebody has changed them.
    """
    from metarm.errors import ConfigError

    if features and backbone:
        raise ConfigError("expected features from --features or from --backbone, got both")

    from metarm.annotators.fitting import check_model
    from metarm.annotators.label_data import read_features, read_label_data
    from metarm.annotators.report import build_report, label_rows
    from metarm.annotators.suspects import check_alpha
    from metarm.annotators.wanting import want_rows
    from metarm.labels.exchange.sealing import check_replaceable, write_sealed
    from metarm.reports.believe_page import draw_believe_page
    from metarm.storage import check_writable, json_lines_text, json_text

    # Before hidden states are read and models are fitted.
    if output.is_dir():
        check_replaceable(output, FILES, verb=VERB)
    check_alpha(alpha)
    if model is not None:
        check_model(model)
    data = read_label_data(source, pairs)
    check_writable(output)
    rows: Mapping[str, Any] | None = None
    if features:
        rows = read_features(features, data.pairs)
    elif backbone:
        rows = _backbone_features(backbone, data, output)
    report = build_report(data, rows, model=model, alpha=alpha, num_next=next_votes, seed=seed)
    document = report.to_json()
    labels = label_rows(report.belief, data)
    if missing := document["pairs"] - len(labels):
        note(f"{missing} pairs have votes but no text, and give no label: give them with --pairs")
    facts = {"metarm": __version__, "votes": str(source), "model": report.belief.model}
    facts |= {"alpha": str(alpha), "features": str(features or backbone or "none")}
    texts = (
        json_lines_text(labels),
        json_lines_text(document["annotators"]),
        json_lines_text(want_rows(report.next_votes, data)),
        json_text(document),
        draw_believe_page(report, data, facts),
    )
    files = {name: text.encode() for name, text in zip(FILES, texts, strict=True)}
    write_sealed(output, files, "beliefs", {"num_labels": len(labels)}, verb=VERB)
    page = output / "believe.html"
    if as_json:
        print_json({"output": str(output), "report": str(page), **document})
        return
    _say(report)
    print_table({"labels": output / "soft_labels.jsonl", "report": page})


def _say(report: "BeliefReport") -> None:
    """Who is believed how far, and who is not, for people."""
    named = {suspect.name: suspect.kind for suspect in report.suspects}
    width = max(len(one.name) for one in report.belief.annotators)
    answer(f"model: {report.belief.model}; reliability and side bias with 90 % intervals")
    for one in report.belief.annotators:
        remark = f"  {named[one.name]}" if one.name in named else ""
        answer(
            f"{one.name:<{width}}  {one.num_votes:>5} votes  {one.reliability!s:<20}  "
            f"{one.side_bias!s:<20}{remark}"
        )
    if not all(one.reliability.is_told for one in report.belief.annotators):
        answer(
            "Votes alone cannot tell who is reliable where hardly any pair has those of two "
            "annotators: give --backbone or --features, or have pairs of known answers, or some "
            "pairs twice, judged"
        )
    crowd = report.agreement
    alphas = {"": crowd.alpha, " of people": crowd.alpha_of_people}
    if crowd.alpha == crowd.alpha_of_people:
        del alphas[" of people"]
    for whose, alpha in alphas.items():
        answer(f"Krippendorff's alpha{whose}: {'-' if alpha is None else alpha}")
    if report.num_picked:
        answer(
            f"{report.num_picked} pairs are left out where kinds are compared: a strategy picked "
            "them, which tells nothing of others"
        )


def _backbone_features(backbone: str, data: "LabelData", output: Path) -> "dict[str, list[float]]":
    """A model's frozen hidden states, first minus second, of every pair that has a text."""
    from metarm.bench.features import frozen_features
    from metarm.errors import DataError

    missing = {vote.pair for vote in data.votes} - set(data.pairs)
    if missing:
        raise DataError(
            f"--backbone needs the text of every pair, and {len(missing)} that are voted on have "
            f"none (first: {min(missing)}): give them with --pairs"
        )
    own: list[LabelPair] = list(data.pairs.values())
    texts = [(pair.prompt, text) for pair in own for text in (pair.first, pair.second)]
    states = frozen_features(
        backbone,
        texts,
        max_length=MAX_LENGTH,
        cache=output / "features",
        progress=choose_progress(),
    )
    differences = (states[0::2] - states[1::2]).double()
    return dict(zip((pair.id for pair in own), differences.tolist(), strict=True))
