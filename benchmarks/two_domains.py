# SPDX-License-Identifier: Apache-2.0
"""One reward head for two domains that shift: how often a meta batch should ask for each of them.

    python benchmarks/two_domains.py MODEL --shift alpaca=FILE --shift gsm8k=FILE --seeds 10

Original pairs and groups are those of both shifts, and so are the pairs that stop the training;
each is tested on its own. `spread` is what `lost-sources` weighs by: the root mean square of the
gaps within a domain's groups over that of the gaps of original pairs, at the step that was taken.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from metarm.bench.features import frozen_features
from metarm.bench.held_out import PairRows
from metarm.bench.methods import train_recipe
from metarm.bench.problem import build_problem
from metarm.bench.recipes import read_recipe
from metarm.bench.results import Tally, clustered_difference, clustered_mean
from metarm.bench.settings import HeadSettings, SourceSettings
from metarm.bench.shifts import SHIFTS, Shift, join_shifts
from metarm.metrics import mean_estimate
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair

METHODS = ("plain", "joint", "joint+even-sources", "joint+lost-sources")


class Result(NamedTuple):
    original: Tally
    shifted: Tally
    spread: float


def root_mean_square(gaps: Sequence[float]) -> float:
    return float((sum(gap * gap for gap in gaps) / len(gaps)) ** 0.5)


def measure(shift: Shift, scores: Tensor, place: Mapping[object, int], unit: float) -> Result:
    gaps = [
        float(scores[place[group.prompt, first]] - scores[place[group.prompt, second]])
        for group in shift.groups
        for number, first in enumerate(group.responses)
        for second in group.responses[:number]
    ]
    return Result(
        PairRows.of(shift.test_original, place).tally(scores),
        PairRows.of(shift.test_shifted, place).tally(scores),
        root_mean_square(gaps) / unit,
    )


def pair_gap(pair: PreferencePair, scores: Tensor, place: Mapping[object, int]) -> float:
    return float(
        scores[place[pair.prompt, pair.chosen]] - scores[place[pair.prompt, pair.rejected]]
    )


def run_split(
    model: str, files: Mapping[str, str], cache: Path, max_length: int, seed: int
) -> dict[tuple[str, str], Result]:
    shifts = [SHIFTS[name](SourceSettings(data=path), seed) for name, path in files.items()]
    joined = join_shifts(shifts)
    texts = joined.texts
    features = frozen_features(
        model, texts, max_length=max_length, cache=cache, progress=SilentProgress()
    )
    problem = build_problem(joined, features, seed)
    place = {text: index for index, text in enumerate(texts)}
    found = {}
    for method in METHODS:
        trained = train_recipe(problem, read_recipe(method), HeadSettings(), seed)
        scores = trained.scores[trained.best]
        unit = root_mean_square([pair_gap(pair, scores, place) for pair in joined.pairs])
        for shift in shifts:
            found[method, shift.name] = measure(shift, scores, place, unit)
    if seed == 0:
        for shift in shifts:
            print(f"{shift.name}: {len(shift.pairs)} pairs, {len(shift.groups)} groups")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--shift", action="append", required=True, help="NAME=FILE, twice")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--max-length", type=int, default=112)
    parser.add_argument("--features", type=Path, default=Path("runs/features"))
    given = parser.parse_args()
    files = dict(shift.split("=", 1) for shift in given.shift)
    results: defaultdict[tuple[str, str], list[Result]] = defaultdict(list)
    for seed in range(given.seeds):
        split = run_split(given.model, files, given.features, given.max_length, seed)
        for key, result in split.items():
            results[key].append(result)
    print(f"{given.seeds} splits; changes in points against plain, with 95 % intervals")
    for name in files:
        print(f"{'method':20}{name + ': original':18}{'shifted':25}{'change':22}spread")
        plain = [result.shifted for result in results["plain", name]]
        for method in METHODS:
            found = results[method, name]
            change = clustered_difference([r.shifted for r in found], plain)
            low, high = 100 * change.low, 100 * change.high
            print(
                f"{method:20}"
                f"{clustered_mean([r.original for r in found]).value:<18.3f}"
                f"{clustered_mean([r.shifted for r in found])!s:25}"
                f"{f'{100 * change.value:+.1f} [{low:+.1f}, {high:+.1f}]':22}"
                f"{mean_estimate([r.spread for r in found]).value:.2f}"
            )


if __name__ == "__main__":
    main()
