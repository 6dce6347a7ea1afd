# SPDX-License-Identifier: Apache-2.0
"""Strategies: which pairs of a pool to have labelled; the STRATEGIES table and `choose`.

`random` is the control of all others, and the random half of `mix` is the only one that estimates
may be made from: pairs chosen for being hard say nothing of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from metarm.choosing.pool import Pool, member_deviations
from metarm.choosing.posterior import add_label, gap_variances, information_gain
from metarm.errors import ConfigError, DataError
from metarm.resolve import resolve_name
from metarm.schema import RANDOM
from metarm.streams import draw_seed

__all__ = [
    "STRATEGIES",
    "Chosen",
    "Pick",
    "Room",
    "Strategy",
    "check_choice",
    "choose",
    "read_strategy",
]

Floats = NDArray[np.float64]

DISAGREEMENT: Final = "disagreement"
MOST_DRAWS: Final = 200
"""Draws of two heads for each pair of `thompson` that is asked for, at most."""


class Pick(NamedTuple):
    """One pair that a strategy takes."""

    row: int
    """Of the pool."""
    value: float
    """How much the strategy wanted it, in the strategy's own unit."""
    reason: str
    """The same for people to read."""
    strategy: str
    """Which one took it: `mix` is two."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pairs to have labelled, in the order they were taken; all four are of one length."""

    indices: tuple[int, ...]
    values: tuple[float, ...]
    reasons: tuple[str, ...]
    strategies: tuple[str, ...]

    @property
    def is_random(self) -> tuple[bool, ...]:
        """Which of them estimates may be made from."""
        return tuple(name == RANDOM for name in self.strategies)


@dataclass(slots=True, eq=False)
class Room:
    """Who may still be taken: no pair twice, no more than so many of a prompt."""

    prompts: NDArray[np.int64]
    most_per_prompt: int
    is_free: NDArray[np.bool_]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, pool: Pool, most_per_prompt: int) -> "Room":
        """All of a pool, none of it taken."""
        _, prompts = np.unique(pool.prompts, return_inverse=True)
        num_prompts = int(prompts.max(initial=-1)) + 1
        return cls(
            prompts, most_per_prompt, np.ones(len(pool), bool), np.zeros(num_prompts, np.int64)
        )

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Shape (pairs,); a cap that leaves nobody is lifted."""
        within: NDArray[np.bool_] = self.is_free & (
            self.counts[self.prompts] < self.most_per_prompt
        )
        return within if within.any() else self.is_free

    def take(self, index: int) -> None:
        """Book one pair."""
        self.is_free[index] = False
        self.counts[self.prompts[index]] += 1


Strategy = Callable[[Pool, int, Room, np.random.Generator], list[Pick]]
"""Takes that many pairs, books them, and gives them in the order they were taken."""


def choose(
    pool: Pool,
    strategy: str,
    count: int,
    *,
    seed: int,
    most_per_prompt: int | None = None,
) -> Chosen:
    """Take pairs out of a pool by a strategy.

    Args:
        pool: What there is, and what is known of it.
        strategy: A name of STRATEGIES, `mix+NAME` for half of it by another one than D-optimal, or
            `module:function` of the user's: called with (pool, count, generator), it returns rows
            of the pool, the best first.
        count: How many.
        seed: The same seed gives the same pairs.
        most_per_prompt: Pairs of one prompt at most, where that leaves enough; random draws do not
            keep to it, as they must be drawn from all alike. None: one more than an even share.

    Raises:
        ConfigError: When the strategy is unknown, needs what the pool has not, or the pool is too
            small.
        DataError: When a function of the user's returns no such rows.
    """
    check_choice(strategy, count, len(pool), has_members=pool.members is not None)
    take = read_strategy(strategy)
    if most_per_prompt is None:
        most_per_prompt = -(-count // len(np.unique(pool.prompts))) + 1
    room = Room.of(pool, most_per_prompt)
    draw = np.random.default_rng(draw_seed(seed, f"choose {strategy}", count))
    picks = take(pool, count, room, draw)
    columns = tuple(zip(*picks, strict=True))
    return Chosen(*columns)


def check_choice(strategy: str, count: int, num_pairs: int, *, has_members: bool) -> None:
    """Refuse what `choose` would refuse, before any pair is scored.

    Args:
        strategy: As in `choose`.
        count: The same.
        num_pairs: Candidates that there are.
        has_members: Whether the pool will have members: of an ensemble, or fitted on labelled
            pairs.

    Raises:
        ConfigError: When the strategy is unknown, needs what the pool has not, or the pool is too
            small.
    """
    if not 0 < count <= num_pairs:
        raise ConfigError(
            f"expected a count of 1 to {num_pairs}, the pairs there are to choose from, got {count}"
        )
    read_strategy(strategy)
    if strategy.removeprefix("mix+") == DISAGREEMENT and not has_members:
        raise ConfigError(
            f"strategy {DISAGREEMENT!r} needs an ensemble of reward models, or labelled pairs that "
            "heads can be fitted on: give one, or take another strategy"
        )


def _random(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """Each pair as likely as any other."""
    rows = draw.choice(np.flatnonzero(room.is_free), size=count, replace=False)
    for row in rows:
        room.take(int(row))
    return [Pick(int(row), 0.0, "drawn at random", RANDOM) for row in rows]


def _d_optimal(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """The largest gain of log det H, which is log(1 + p (1 - p) c' H^-1 c).

    Source: Shen, Sun & Ton, 2502.04354. Differs: greedy with rank-1 updates, not one-shot.
    """
    weights = _weights(pool.means)
    covariance = _with_taken(pool, room, weights)
    return _greedy(
        pool.gaps,
        weights,
        covariance,
        count,
        room,
        lambda variances: np.log1p(weights * variances),
        "d-optimal",
        "adds {:.3f} to the log-determinant of what is known",
    )


def _information_gain(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """The largest information of one label on the head, given those taken before it."""
    weights = _weights(pool.means)
    return _greedy(
        pool.gaps,
        weights,
        _with_taken(pool, room, weights),
        count,
        room,
        lambda variances: information_gain(pool.means, variances),
        "information-gain",
        "its label is expected to tell {:.3f} nats",
    )


def _disagreement(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """Where members of an ensemble differ most on the reward gap, given those taken before it.

    The members' deviations stand in for features, so that a pair on which they differ in the same
    way as on one that is taken has less left to tell.
    """
    assert pool.members is not None  # check_choice has seen to it
    deviations = member_deviations(pool.members)
    weights = _weights(pool.means)
    covariance = np.eye(deviations.shape[1])
    for row in np.flatnonzero(~room.is_free):
        covariance, _ = add_label(covariance, deviations[row], float(weights[row]))
    return _greedy(
        deviations,
        weights,
        covariance,
        count,
        room,
        lambda variances: np.sqrt(np.maximum(variances, 0.0)),
        DISAGREEMENT,
        "members differ on its reward gap by {:.3f}",
    )


def _near_tie(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """The smallest expected reward gap: what the model is least sure of."""
    ranking = np.argsort(np.abs(pool.means), kind="stable")
    return [
        Pick(row, -abs(float(pool.means[row])), f"reward gap {pool.means[row]:+.3f}", "near-tie")
        for row in _walk(ranking, count, room)
    ]


def _thompson(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
    """Double Thompson sampling: of a random prompt, the best responses by two drawn heads.

    Source: Dwaracherla et al., 2402.00396. Differs: heads are drawn from the Laplace posterior.
    """
    factor = np.linalg.cholesky(pool.covariance)
    rows_of = [np.flatnonzero(room.prompts == prompt) for prompt in range(len(room.counts))]
    rewards_of = [_rewards_of_gaps(pool.sides[rows]) for rows in rows_of]
    picks: list[Pick] = []
    for _ in range(MOST_DRAWS * count):
        if len(picks) == count:
            break
        prompt = int(draw.integers(len(rows_of)))
        rows, (responses, rewards) = rows_of[prompt], rewards_of[prompt]
        deviations = pool.gaps[rows] @ factor
        first, second = (
            int(responses[np.argmax(rewards @ (pool.means[rows] + deviations @ drawn))])
            for drawn in draw.standard_normal((2, factor.shape[1]))
        )
        allowed = room.allowed
        for row in rows:
            if {first, second} == set(pool.sides[row].tolist()) and allowed[row]:
                room.take(int(row))
                picks.append(Pick(int(row), 0.0, "best by two drawn heads", "thompson"))
    # Where the heads agree on everything that is left, chance is as good as they.
    missing = count - len(picks)
    return picks + [
        pick._replace(reason="drawn heads agree: at random", strategy="thompson")
        for pick in (_random(pool, missing, room, draw) if missing else [])
    ]


def _rewards_of_gaps(sides: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """A prompt's responses, and what makes pairs' reward gaps their rewards, up to a constant.

    By least squares: exact however many pairs are not in the pool, as long as those that are
    connect the responses; counting the pairs that each wins is not.
    """
    responses, places = np.unique(sides, return_inverse=True)
    first, second = places.reshape(sides.shape).T
    design = np.eye(len(responses))[first] - np.eye(len(responses))[second]
    return responses, np.linalg.pinv(design)


def _mixed(other: Strategy) -> Strategy:
    """Half at random, drawn first and from all alike; then the other half, which knows of it."""

    def take(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
        half = -(-count // 2)
        picks = _random(pool, half, room, draw)
        return picks + (other(pool, count - half, room, draw) if count > half else [])

    return take


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {
        RANDOM: _random,
        "d-optimal": _d_optimal,
        "information-gain": _information_gain,
        DISAGREEMENT: _disagreement,
        "near-tie": _near_tie,
        "thompson": _thompson,
        "mix": _mixed(_d_optimal),
    }
)
"""Name -> how it takes pairs; `mix+NAME` puts another strategy into the chosen half of `mix`."""


def read_strategy(name: str) -> Strategy:
    """A strategy by its name, a mix with another, or a function of the user's.

    Raises:
        ConfigError: When there is none.
    """
    mixed, plus, other = name.partition("+")
    if plus and mixed == "mix" and other not in (RANDOM, "mix"):
        return _mixed(read_strategy(other))
    found = resolve_name(name, STRATEGIES, what="strategy")
    return found if name in STRATEGIES else _of_user(name, found)


def _of_user(name: str, function: Callable[..., Sequence[int]]) -> Strategy:
    """A ranking of the user's as a strategy."""

    def wrong(got: str) -> DataError:
        return DataError(
            f"{name}: expected different rows of the pool, the best first, got {got}. "
            "Mend the function."
        )

    def take(pool: Pool, count: int, room: Room, draw: np.random.Generator) -> list[Pick]:
        try:
            ranking = np.asarray(function(pool, count, draw))
        # Code that is not ours may raise anything: the line must name it, whatever it was.
        except Exception as error:
            raise wrong(f"{type(error).__name__}: {error} (--debug shows where)") from error
        if ranking.ndim != 1 or not np.issubdtype(ranking.dtype, np.integer):
            raise wrong(f"an array of {ranking.dtype} and shape {ranking.shape}")
        if len(np.unique(ranking)) != len(ranking):
            raise wrong("some row twice")
        if ranking.size and (ranking.min() < 0 or ranking.max() >= len(pool)):
            raise wrong(f"rows {ranking.min()} to {ranking.max()}, with {len(pool)} in the pool")
        rows = _walk(ranking, count, room)
        if len(rows) < count:
            raise wrong(f"{len(rows)} that are not taken, where {count} were asked for")
        return [Pick(row, 0.0, f"chosen by {name}", name) for row in rows]

    return take


def _walk(ranking: NDArray[np.int64], count: int, room: Room) -> list[int]:
    """The first of a ranking that there is room for; a cap that leaves too few is lifted."""
    taken: list[int] = []
    for is_capped in (True, False):
        for row in ranking:
            if len(taken) == count:
                break
            is_full = room.counts[room.prompts[row]] >= room.most_per_prompt
            if room.is_free[row] and not (is_capped and is_full):
                room.take(int(row))
                taken.append(int(row))
    return taken


def _greedy(
    gaps: Floats,
    weights: Floats,
    covariance: Floats,
    count: int,
    room: Room,
    utility: Callable[[Floats], Floats],
    name: str,
    reason: str,
) -> list[Pick]:
    """One after the other the pair of largest utility, each as if those before were labelled."""
    variances = gap_variances(gaps, covariance)
    picks = []
    for _ in range(count):
        values = np.where(room.allowed, utility(variances), -np.inf)
        row = int(values.argmax())
        room.take(row)
        picks.append(Pick(row, float(values[row]), reason.format(values[row]), name))
        covariance, step = add_label(covariance, gaps[row], float(weights[row]))
        variances = np.maximum(variances - (gaps @ step) ** 2, 0.0)
    return picks


def _weights(means: Floats) -> Floats:
    """What one label of a pair weighs: p (1 - p)."""
    p: Floats = expit(means)
    return p * (1 - p)


def _with_taken(pool: Pool, room: Room, weights: Floats) -> Floats:
    """The pool's covariance as if the pairs that are taken already were labelled."""
    covariance = pool.covariance
    for row in np.flatnonzero(~room.is_free):
        covariance, _ = add_label(covariance, pool.gaps[row], float(weights[row]))
    return covariance
