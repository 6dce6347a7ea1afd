# SPDX-License-Identifier: Apache-2.0
"""The verb `promote`: a new reward model replaces the champion only if it holds."""

import time
from pathlib import Path
from typing import Annotated

import typer

from metarm.cli.options import AsJson, DataFormat, answer, note, print_json, print_table
from metarm.cli.progress import choose_progress

__all__ = ["promote"]


def promote(
    challenger: Annotated[
        Path, typer.Argument(metavar="CHALLENGER", help="Folder of the new reward model.")
    ],
    champion: Annotated[
        Path,
        typer.Option(
            "--champion", metavar="DIR", help="Folder of champion.json and every decision."
        ),
    ],
    pairs: Annotated[
        str | None,
        typer.Option(
            "--pairs", metavar="F", help="Held-out original pairs, which neither was trained on."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="F",
            help="Responses of the watched policy, unlabelled, as `metarm sample` writes them: "
            "for the guards.",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option("--margin", metavar="X", help="Accuracy that it may be worse by at most."),
    ] = 0.03,
    alpha: Annotated[
        float,
        typer.Option("--alpha", metavar="X", help="Chance that one that is worse by it passes."),
    ] = 0.05,
    data_format: DataFormat = None,
    as_json: AsJson = False,
) -> None:
    """Replace the champion by a new reward model, if it is not worse.

    Not worse on held-out original pairs by more than a margin (a paired test), and sane on the
    policy's responses. Every decision is kept with its figures; champion.json is swapped whole, so
    that a server can follow it. The first challenger becomes champion.
    """
    from metarm.errors import ConfigError, ModelError
    from metarm.evaluation.champion import PromotionRules
    from metarm.storage import check_writable

    rules = PromotionRules(margin=margin, alpha=alpha)
    if not challenger.is_dir():
        raise ModelError(f"expected the folder of a reward model, got {str(challenger)!r}")
    check_writable(champion)

    from metarm.evaluation.champion import compare_champion
    from metarm.evaluation.champion_folder import CHAMPION_FILE, crown, read_champion
    from metarm.models.ensemble import load_reward
    from metarm.run_folder import hold_folder
    from metarm.storage import content_digest

    with hold_folder(champion):
        current = read_champion(champion)
        # A champion whose files have changed is another model: what it was compared as is gone.
        if current is not None and content_digest(current.model) != current.digest:
            raise ModelError(
                f"{current.model} is not what it was when it became champion (its files have "
                "changed or are gone): put them back, or begin in a new --champion folder"
            )
        facts = {"pairs": None, "groups": None, "decided_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        score = load_reward(challenger)
        decision = None
        if current is not None:
            if pairs is None:
                raise ConfigError("there is a champion to be compared with: give --pairs FILE")

            from metarm.data.derived import check_evaluation
            from metarm.data.meta_sets import load_groups
            from metarm.data.preferences import load_preferences

            loaded = load_preferences(pairs, data_format)
            note(f"{pairs}: {loaded.report.summary()}")
            check_evaluation(loaded.pairs, pairs)
            before = load_reward(current.model)
            fitting = before.fitting_pairs(score.fitting_pairs(loaded.pairs))
            watched = load_groups(groups) if groups is not None else []
            num_responses = sum(len(group.responses) for group in watched)
            with choose_progress().stage(
                "score pairs and groups", 2 * (2 * len(fitting) + num_responses)
            ) as bar:
                decision = compare_champion(
                    score.reporting_to(bar), before.reporting_to(bar), fitting, watched, rules
                )
            facts |= {
                "pairs": content_digest(pairs),
                "groups": None if groups is None else content_digest(groups),
            }
        now = crown(champion, challenger, decision, facts)
    replaced = decision is None or decision.replaces
    reason = "the first champion" if decision is None else decision.reason
    document = {
        "replaces": replaced,
        "reason": reason,
        "champion": None if now is None else str(now.model),
        "pointer": str(champion / CHAMPION_FILE),
        "decision": None if decision is None else decision.to_json(),
    }
    if as_json:
        print_json(document)
        return
    answer("replaced" if replaced else "kept")
    answer(f"  {reason}")
    for guard in decision.guards if decision is not None else ():
        shown = "not known" if guard.value is None else f"{guard.value:.3f}"
        answer(f"  {guard.name}: {shown}, bound {guard.bound:g}: {'ok' if guard.passes else 'NO'}")
    answer("")
    print_table({"champion": document["champion"], "pointer": document["pointer"]})
