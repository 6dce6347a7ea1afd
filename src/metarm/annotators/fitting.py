# SPDX-License-Identifier: Apache-2.0
"""The front door to annotator models: votes in, whom to believe out; the MODELS table."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.annotators.beliefs import UNTOLD, Belief
from metarm.annotators.dawid_skene import fit_dawid_skene
from metarm.annotators.joint_model import fit_joint
from metarm.annotators.majority import fit_majority
from metarm.annotators.vote_table import VoteTable, build_table
from metarm.errors import ConfigError, DataError, ShapeError, nearest_names
from metarm.labels.votes import Choice, Vote

__all__ = ["LEAST_SHARED", "MODELS", "check_model", "choose_model", "fit_annotators"]

Floats = NDArray[np.float64]
Fit = Callable[[VoteTable, Floats | None, Mapping[str, int]], Belief]

LEAST_SHARED: Final = 20
"""Votes on pairs that others voted on too, a mean over annotators, from which on they are judged by
each other. Of five annotators, one of whom votes the reverse on 300 pairs, that one comes out above
the good ones in 1 of 4 crowds with 2 such votes each, in 1 of 40 with 16."""

SIGNS: Final[Mapping[str, int]] = MappingProxyType({"first": 1, "second": -1, "tie": 0})

MODELS: Final[Mapping[str, Fit]] = MappingProxyType(
    {
        "joint": fit_joint,
        "dawid-skene": fit_dawid_skene,
        "majority": fit_majority,
    }
)
"""Name -> how annotators are fitted."""


def fit_annotators(
    votes: Iterable[Vote],
    features: Mapping[str, ArrayLike] | None = None,
    *,
    gold: Mapping[str, Choice] | None = None,
    pairs: Iterable[str] = (),
    model: str | None = None,
) -> Belief:
    """Whom to believe, and how likely `first` is the better one of each pair.

    Args:
        votes: Of anybody; skips count as missing, and of several by one annotator on a pair the
            first counts.
        features: Pair -> features of its first response minus those of its second, any length; of
            every pair that is voted on. Further pairs are labelled too.
        gold: Pair -> its known answer.
        pairs: Further pairs to label, without a vote.
        model: A name of `MODELS`; None: `joint` with features, else `dawid-skene` where annotators
            share enough pairs (`LEAST_SHARED`), else `majority`.

    Returns:
        The fit. Without features, whoever shares no pair with anybody and has met no known answer
        has a reliability that is not told, whatever the model's prior says.

    Raises:
        ConfigError: When there is no such model.
        DataError: When a pair that is voted on has no features, or they are not finite.
        EmptySetError: When no vote says anything.
        ShapeError: When features are not vectors of one length.

    Example:
        >>> votes = [Vote(pair, name, "first") for pair in "abc" for name in ("ann", "bob")]
        >>> fit_annotators(votes, model="dawid-skene").labels.round(1).tolist()
        [0.9, 0.9, 0.9]
    """
    more = dict.fromkeys(pairs) | dict.fromkeys(features or ())
    table = build_table(votes, list(more))
    name = model or choose_model(table, has_features=features is not None)
    check_model(name)
    rows = None if features is None else _rows(table, features)
    signs = {pair: SIGNS[choice] for pair, choice in (gold or {}).items() if choice in SIGNS}
    belief = MODELS[name](table, rows, signs)
    return belief if belief.weights_of_features is not None else _leave_untold(belief, signs)


def check_model(name: str) -> None:
    """Refuse a name that no model has.

    Raises:
        ConfigError: Names the nearest.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown annotator model {name!r}: {nearest_names(name, MODELS)}")


def choose_model(table: VoteTable, *, has_features: bool) -> str:
    """The model that has something to learn from: see `fit_annotators`."""
    if has_features:
        return "joint"
    is_shared = table.num_shared_votes >= LEAST_SHARED * len(table.annotators)
    return "dawid-skene" if is_shared else "majority"


def _leave_untold(belief: Belief, known: Mapping[str, int]) -> Belief:
    """The same, with no reliability of those whose votes nothing is beside."""
    beside = belief.table.has_witness(known)
    return replace(
        belief,
        annotators=tuple(
            one if is_told else replace(one, reliability=UNTOLD, reliability_error=1.0)
            for one, is_told in zip(belief.annotators, beside, strict=True)
        ),
    )


def _rows(table: VoteTable, features: Mapping[str, ArrayLike]) -> Floats:
    """Features in the table's order, shape (pairs, features)."""
    missing = [pair for pair in table.pairs if pair not in features]
    if missing:
        raise DataError(
            f"expected features of every pair that is voted on, got none of {len(missing)} "
            f"(first: {missing[0]}). Compute them for these, or fit without features."
        )
    rows = [np.asarray(features[pair], dtype=np.float64) for pair in table.pairs]
    shapes = {row.shape for row in rows}
    if len(shapes) > 1 or rows[0].ndim != 1 or not rows[0].size:
        raise ShapeError(f"expected features as vectors of one length, got shapes {sorted(shapes)}")
    stacked = np.stack(rows)
    if not np.isfinite(stacked).all():
        raise DataError("expected finite features, got NaN or infinity: mend what computes them")
    return stacked
