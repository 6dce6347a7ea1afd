# SPDX-License-Identifier: Apache-2.0
"""What choosing labels buys where the truth is known: accuracy by number of labels and strategy.

    python benchmarks/choosing.py measure benchmarks/results/choosing.json
    python benchmarks/choosing.py draw
    python benchmarks/choosing.py write

A linear Bradley-Terry reward of 48 features whose spread falls as k^-1/2, under a random rotation;
a pool of 1500 pairs, 40 % of them near-duplicates (noise 0.05) of 40 pairs; 20 labels at random to
start with, then batches of 20; 4000 test pairs of known order. Two noise levels: reward gaps of
standard deviation 4.0 (labels agree with the truth in 85 %) and 1.4 (72 %). Seeds up to 100 were
looked at while this was built, those reported begin at 101.

`mix` also forecasts at each batch what it will add, which is held against what it did add to the
pool's true order. `write` puts the tables into docs/choosing.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from page_tables import with_tables
from scipy.special import expit

from metarm.choosing.pool import Basis, Pool, bootstrap_members, build_pool
from metarm.choosing.stopping import StopRule, forecast_gain
from metarm.choosing.strategies import choose
from metarm.metrics import mean_estimate, paired_difference
from metarm.models.linear_head import fit_head

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "choosing.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
Floats = NDArray[np.float64]

SIZE, NUM_POOL, NUM_TEST = 48, 1500, 4000
NUM_COPIED, COPIED_SHARE, COPY_NOISE = 40, 0.4, 0.05
START, BATCH, MOST = 20, 20, 640
SPREADS = {"85": 4.0, "72": 1.4}
SHOWN = (40, 80, 160, 320, 640)
TARGET = 320
FIRST_SEED, NUM_SEEDS = 101, 12
STRATEGIES = (
    "random",
    "d-optimal",
    "mix",
    "information-gain",
    "disagreement",
    "thompson",
    "near-tie",
    "choosing:largest_gap",
)
NUM_BOOTSTRAPS = 2000
LEAST_GAIN = 0.005


def largest_gap(pool: Pool, count: int, generator: np.random.Generator) -> Any:
    """The pairs that the model is surest of: what not to do."""
    return np.argsort(-np.abs(pool.means), kind="stable")


def make_problem(seed: int, spread: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Gaps of the pool and of the test pairs in the prior's unit, and their true reward gaps."""
    draw = np.random.default_rng([seed, 4_3])
    rotation = np.linalg.qr(draw.standard_normal((SIZE, SIZE)))[0]
    scale = np.arange(1, SIZE + 1) ** -0.5

    def some(count: int) -> Floats:
        found: Floats = (draw.standard_normal((count, SIZE)) * scale) @ rotation
        return found

    pool, test = some(NUM_POOL), some(NUM_TEST)
    copies = draw.choice(NUM_POOL, size=round(COPIED_SHARE * NUM_POOL), replace=False)
    copied = some(NUM_COPIED)[draw.integers(NUM_COPIED, size=len(copies))]
    pool[copies] = copied + COPY_NOISE * draw.standard_normal(copied.shape)
    theta = draw.standard_normal(SIZE)
    theta *= spread / (pool @ theta).std()
    basis = Basis.of(pool)
    return basis(pool), basis(test), pool @ theta, test @ theta


def run(strategy: str, seed: int, spread: float) -> dict[str, Any]:
    """One strategy on one problem, batch after batch."""
    gaps, test, truth, test_truth = make_problem(seed, spread)
    draw = np.random.default_rng([seed, 7])
    outcomes = (draw.random(NUM_POOL) < expit(truth)).astype(np.float64)
    taken = draw.choice(NUM_POOL, size=START, replace=False).tolist()
    accuracies, forecasts, seconds = {}, [], 0.0
    pending: dict[str, Any] | None = None
    while True:
        head = fit_head(gaps[taken], outcomes[taken])
        accuracies[len(taken)] = float((((test @ head) > 0) == (test_truth > 0)).mean())
        left = np.setdiff1d(np.arange(NUM_POOL), taken)
        if pending is not None:
            rows = pending.pop("rows")
            now = ((gaps[rows] @ head > 0) == (truth[rows] > 0)).mean()
            forecasts.append(pending | {"actual": float(now) - pending["was"]})
        if len(taken) >= MOST:
            break
        started = time.perf_counter()
        members = None
        if strategy == "disagreement":
            members = bootstrap_members(gaps[left], gaps[taken], outcomes[taken], generator=draw)
        pool = build_pool(
            gaps[left],
            left,
            means=gaps[left] @ head,
            labelled=gaps[taken],
            labelled_means=gaps[taken] @ head,
            members=members,
        )
        chosen = choose(pool, strategy, BATCH, seed=seed * 1000 + len(taken))
        seconds += time.perf_counter() - started
        pending = None
        if strategy == "mix":
            found = forecast_gain(pool, chosen.indices, StopRule(LEAST_GAIN), seed=seed)
            was = ((gaps[left] @ head > 0) == (truth[left] > 0)).mean()
            pending = {
                "labels": len(taken),
                "rows": left,
                "was": float(was),
                "expected_accuracy": found.accuracy,
                "gain": found.gain,
                "low": found.low,
                "high": found.high,
            }
        taken += left[list(chosen.indices)].tolist()
    num_batches = (MOST - START) // BATCH
    return {
        "strategy": strategy,
        "seed": seed,
        "accuracy": accuracies,
        "forecasts": forecasts,
        "seconds_per_batch": seconds / num_batches,
    }


def measure(output: Path, seeds: range) -> None:
    """All strategies on all problems; the curves, what they come to, and the forecasts."""
    document: dict[str, Any] = {
        "recipe": {"size": SIZE, "pool": NUM_POOL, "test": NUM_TEST, "batch": BATCH},
        "seeds": [seeds.start, seeds.stop - 1],
        "levels": {},
    }
    for level, spread in SPREADS.items():
        runs = [run(name, seed, spread) for name in STRATEGIES for seed in seeds]
        document["levels"][level] = summarise(runs)
        print(level, "done", flush=True)
    output.write_text(f"{json.dumps(document, indent=1)}\n", encoding="utf-8")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one noise level: curves and their spread, labels to random's accuracy, forecasts."""
    counts = list(runs[0]["accuracy"])
    curves = {
        name: np.array([list(r["accuracy"].values()) for r in runs if r["strategy"] == name])
        for name in STRATEGIES
    }
    place = {count: counts.index(count) for count in SHOWN}
    rows = []
    for name, curve in curves.items():
        at = {}
        for count, column in place.items():
            own = mean_estimate(curve[:, column])
            change = paired_difference(curve[:, column], curves["random"][:, column])
            at[count] = [round(x, 4) for x in (own.value, change.value, change.low, change.high)]
        rows.append(
            {
                "strategy": name.rpartition(":")[2],
                "at": at,
                "labels_ratio": labels_ratio(curve, curves["random"], counts),
                "seconds_per_batch": round(
                    float(np.mean([r["seconds_per_batch"] for r in runs if r["strategy"] == name])),
                    4,
                ),
                "curve": np.round(curve.mean(axis=0), 4).tolist(),
            }
        )
    return {"counts": counts, "strategies": rows, "stopping": stopping(runs)}


def labels_ratio(curve: Floats, control: Floats, counts: list[int]) -> list[float | None]:
    """Labels to the accuracy that random has with `TARGET`, over `TARGET`; and a 95 % interval.

    Of mean curves over seeds, which are drawn anew for the interval; None: not reached.
    """
    target = counts.index(TARGET)

    def ratio(rows: NDArray[np.int64]) -> float:
        mine = np.maximum.accumulate(curve[rows].mean(axis=0))
        goal = control[rows].mean(axis=0)[target]
        if mine[-1] < goal:
            return np.inf
        return float(np.interp(goal, mine, counts)) / TARGET

    draw = np.random.default_rng(0)
    num_seeds = len(curve)
    drawn = [ratio(draw.integers(num_seeds, size=num_seeds)) for _ in range(NUM_BOOTSTRAPS)]
    found = [ratio(np.arange(num_seeds)), *np.quantile(drawn, (0.025, 0.975), method="nearest")]
    return [round(float(x), 3) if np.isfinite(x) else None for x in found]


def stopping(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How forecasts of `mix` compare with what came, and where they would have stopped."""
    own = [r for r in runs if r["forecasts"]]
    table = []
    for first, last in ((20, 80), (80, 160), (160, 320), (320, 640)):
        rows = [f for r in own for f in r["forecasts"] if first <= f["labels"] < last]
        table.append(
            {
                "labels": [first, last],
                "forecast": round(float(np.mean([f["gain"] for f in rows])), 5),
                "actual": round(float(np.mean([f["actual"] for f in rows])), 5),
                "inside": round(
                    float(np.mean([f["low"] <= f["actual"] <= f["high"] for f in rows])), 3
                ),
                "expected_accuracy": round(
                    float(np.mean([f["expected_accuracy"] for f in rows])), 4
                ),
                "accuracy": round(float(np.mean([f["was"] for f in rows])), 4),
            }
        )
    stops = [
        next((f["labels"] for f in r["forecasts"] if f["gain"] < LEAST_GAIN), MOST) for r in own
    ]
    # In hindsight: the mean curve over seeds, smoothed over five batches.
    actual = np.mean([[f["actual"] for f in r["forecasts"]] for r in own], axis=0)
    smooth = np.convolve(np.pad(actual, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    labels = [f["labels"] for f in own[0]["forecasts"]]
    below = [count for count, gain in zip(labels, smooth, strict=True) if gain < LEAST_GAIN]
    return {
        "by_labels": table,
        "stops": stops,
        "hindsight": below[0] if below else MOST,
        "accuracy_at_stop": round(
            float(np.mean([r["accuracy"][s] for r, s in zip(own, stops, strict=True)])), 4
        ),
        "accuracy_at_end": round(float(np.mean([r["accuracy"][MOST] for r in own])), 4),
    }


def draw(source: Path, output: Path) -> None:
    """The curves of both noise levels."""
    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "choosing"
    document = json.loads(source.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, (level, found) in zip(axes, document["levels"].items(), strict=True):
        for row in found["strategies"]:
            style = {"random": ("black", 2.2), "largest_gap": ("0.7", 1.2)}
            colour, width = style.get(row["strategy"], (None, 1.4))
            name = row["strategy"].replace("_", " ")
            axis.plot(found["counts"], row["curve"], color=colour, lw=width, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(SHOWN, [str(count) for count in SHOWN])
        axis.set_title(f"labels agree with the truth in {level} %", fontsize=10)
        axis.set_xlabel("labels")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy on new pairs")
    axes[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def tables(document: dict[str, Any]) -> dict[str, str]:
    """The tables of the page."""
    made = {}
    for level, found in document["levels"].items():
        lines = [
            f"| labels agree in {level} % | {' | '.join(map(str, SHOWN))} | labels, of random's "
            "| seconds a batch |",
            f"|---|{'---|' * len(SHOWN)}---|---|",
        ]
        for row in found["strategies"]:
            cells = []
            for value, change, low, high in row["at"].values():
                is_sure = row["strategy"] != "random" and not low <= 0 <= high
                text = f"{value:.3f}"
                cells.append(f"**{text}**" if is_sure and change > 0 else text)
            ratio = [">2" if x is None else f"{x:.2f}" for x in row["labels_ratio"]]
            shown = f"{ratio[0]} [{ratio[1]}, {ratio[2]}]" if row["strategy"] != "random" else "1"
            name = row["strategy"].replace("_", " ")
            name = f"`{name}`" if " " not in name else f"{name} (not offered)"
            lines.append(
                f"| {name} | {' | '.join(cells)} | {shown} | {row['seconds_per_batch']:.3f} |"
            )
        made[f"curves {level}"] = "\n".join(lines)
    lines = [
        "| labels agree in | labels so far | forecast a batch, points | came | came inside the "
        "90 % interval | accuracy: believed | true |",
        "|---|---|---|---|---|---|---|",
    ]
    for level, found in document["levels"].items():
        for row in found["stopping"]["by_labels"]:
            first, last = row["labels"]
            lines.append(
                f"| {level} % | {first}-{last} | {100 * row['forecast']:+.2f} "
                f"| {100 * row['actual']:+.2f} | {100 * row['inside']:.0f} % "
                f"| {row['expected_accuracy']:.3f} | {row['accuracy']:.3f} |"
            )
    made["stopping"] = "\n".join(lines)
    return made


def render(page: str, made: dict[str, str]) -> str:
    """The page with its tables made anew."""
    return with_tables(page, {f"choosing: {name}": table for name, table in made.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("output", type=Path)
    measuring.add_argument("--first-seed", type=int, default=FIRST_SEED)
    measuring.add_argument("--seeds", type=int, default=NUM_SEEDS)
    verbs.add_parser("draw")
    verbs.add_parser("write")
    arguments = parser.parse_args()
    if arguments.verb == "measure":
        first = arguments.first_seed
        measure(arguments.output, range(first, first + arguments.seeds))
    elif arguments.verb == "draw":
        draw(RESULTS / "choosing.json", RESULTS / "choosing.svg")
    else:
        document = json.loads((RESULTS / "choosing.json").read_text(encoding="utf-8"))
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), tables(document)), "utf-8")


if __name__ == "__main__":
    main()
