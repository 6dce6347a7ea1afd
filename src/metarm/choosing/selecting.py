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
from metarm.choosing.strategies import RANDOM, Chosen, choose
from metarm.models.ensemble import EnsembleScore
from metarm.models.reward_model import RewardModelScore
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import write_json, write_json_lines

__all__ = ["PAIRS_FILE", "SELECTION_FILE", "write_selection"]

PAIRS_FILE = "pairs.jsonl"
SELECTION_FILE = "selection.json"


def write_selection(
    folder: Path,
    score: RewardModelScore | EnsembleScore,
    groups: Sequence[ResponseGroup],
    labelled: Sequence[PreferencePair],
    settings: SelectSettings,
    *,
    seed: int,
) -> dict[str, Any]:
    """Choose pairs and write them down.

    Args:
        folder: Gets the files.
        score: The reward model as it is.
        groups: Responses of the policy as it is.
        labelled: What the reward model was trained on.
        settings: See `SelectSettings`.
        seed: Of all that is drawn.

    Returns:
        What `selection.json` says, without its rows.

    Raises:
        ConfigError: When the strategy is unknown or there are too few candidates.
        EmptySetError: When there is none.

    Writes:
        `pairs.jsonl`, rows of `LabelPair`, and `selection.json` in `folder`.
    """
    found = list_candidates(groups, labelled=labelled, most=settings.most_candidates, seed=seed)
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
        "num_groups": len(groups),
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
