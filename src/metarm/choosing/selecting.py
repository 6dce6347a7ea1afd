# SPDX-License-Identifier: Apache-2.0
"""A selection on disk: the pairs to have labelled, why each, and whether they are worth it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from metarm.choosing.pairs import Candidates, list_candidates, name_chosen, pool_of_model
from metarm.choosing.pool import Pool
from metarm.choosing.settings import SelectSettings
from metarm.choosing.stopping import StopRule, forecast_gain
from metarm.choosing.strategies import Chosen, check_choice, choose
from metarm.models.ensemble import EnsembleScore
from metarm.models.reward_model import RewardModelScore
from metarm.schema import RANDOM, PreferencePair, ResponseGroup
from metarm.storage import write_json, write_json_lines

__all__ = ["PAIRS_FILE", "SELECTION_FILE", "find_candidates", "write_selection"]

PAIRS_FILE = "pairs.jsonl"
SELECTION_FILE = "selection.json"


def find_candidates(
    groups: Sequence[ResponseGroup],
    labelled: Sequence[PreferencePair],
    settings: SelectSettings,
    *,
    is_ensemble: bool,
    seed: int,
) -> Candidates:
    """The pairs to choose from, once it is sure that they can be: nothing is scored yet.

    Args:
        groups: Responses of the policy as it is.
        labelled: What the reward model was trained on.
        settings: See `SelectSettings`.
        is_ensemble: Whether the reward model has several members.
        seed: Of all that is drawn.

    Raises:
        ConfigError: When the strategy is unknown, needs what is not given, or there are too few
            candidates.
        EmptySetError: When there is none.
    """
    found = list_candidates(groups, labelled=labelled, most=settings.most_candidates, seed=seed)
    check_choice(
        settings.strategy,
        settings.count,
        len(found.pairs),
        has_members=is_ensemble or bool(labelled),
    )
    return found


def write_selection(
    folder: Path,
    score: RewardModelScore | EnsembleScore,
    found: Candidates,
    labelled: Sequence[PreferencePair],
    settings: SelectSettings,
    *,
    num_groups: int,
    seed: int,
) -> dict[str, Any]:
    """Choose pairs and write them down.

    Args:
        folder: Gets the files.
        score: The reward model as it is.
        found: The pairs to choose from, as `find_candidates` gives them.
        labelled: What the reward model was trained on.
        settings: See `SelectSettings`.
        num_groups: Responses that the candidates are of.
        seed: Of all that is drawn.

    Returns:
        What `selection.json` says, without its rows.

    Raises:
        DataError: When a response does not fit the model's context.
        ModelError: When a score is not finite.

    Writes:
        `pairs.jsonl`, rows of `LabelPair`, and `selection.json` in `folder`.
    """
    pool = pool_of_model(score, found.pairs, labelled, seed=seed)
    chosen = choose(
        pool,
        settings.strategy,
        settings.count,
        seed=seed,
        most_per_prompt=settings.most_per_prompt,
    )
    rule = StopRule(settings.least_gain, settings.cost_per_label, settings.worth_per_point)
    forecast = forecast_gain(pool, chosen.indices, rule, seed=seed)
    control = choose(pool, RANDOM, settings.count, seed=seed)
    at_random = forecast_gain(pool, control.indices, rule, seed=seed)
    document = {
        "strategy": settings.strategy,
        "seed": seed,
        "num_groups": num_groups,
        "num_labelled": len(labelled),
        "num_possible": found.num_possible,
        "num_candidates": len(found.pairs),
        "chosen_by": dict(Counter(chosen.strategies)),
        "forecast": forecast.to_json(),
        "forecast_at_random": at_random.to_json(),
    }
    write_json_lines(
        folder / PAIRS_FILE, [pair.to_json() for pair in name_chosen(found.pairs, chosen)]
    )
    rows = _rows(found, pool, chosen)
    write_json(folder / SELECTION_FILE, {**document, "pairs": rows})
    return document


def _rows(found: Candidates, pool: Pool, chosen: Chosen) -> list[dict[str, Any]]:
    """Of each chosen pair, what the model thinks of it and why it was taken."""
    deviations = np.sqrt(pool.variances)
    return [
        {
            "pair": found.pairs[row].id,
            "chosen_by": name,
            "reason": reason,
            "value": value,
            "reward_gap": float(pool.means[row]),
            "reward_gap_deviation": float(deviations[row]),
            "first_is_better": float(expit(pool.means[row])),
        }
        for row, name, reason, value in zip(
            chosen.indices, chosen.strategies, chosen.reasons, chosen.values, strict=True
        )
    ]
