# SPDX-License-Identifier: Apache-2.0
"""Kill a run at random moments, run it to its end, and hold that against one never stopped.

    python benchmarks/kill_and_resume.py --kills 200 --output results.json
    python benchmarks/kill_and_resume.py --labels --kills 40 --output results.json

Each life of a run is a fork of this process, which has its imports behind it: a start takes no
time. A run has up to sixteen lives that end by SIGKILL, each at a random moment of a stage; the
stages are drawn beforehand and put in the run's order, so that short ones are hit as often as long
ones. Then the run goes on to its end, and every file of it is compared with that of the unbroken
run, without what a clock wrote.

With `--labels` it is another run: two rounds of an arm that asks a gold function that errs, half of
the pairs chosen by the reward model. About half of the kills are meant for its label stages.
"""

import argparse
import hashlib
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from metarm.cli.app import run_command
from metarm.storage import read_json, read_json_lines, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = (
    "metarm.reports.page",
    "metarm.rlhf_loop",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
)
MOST_LIVES = 16
CLOCKS = {
    "seconds",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "files",
    "digest",
}
"""What a clock wrote, and the hashes of files with such values in them."""
OF_THE_START = {"config.yaml", "run.json", "report.html", ".lock"}
WORDS = (
    "rounds=1",
    "arms=[meta]",
    "checkpoint_steps=2",
    "reward.meta_mode=joint",
    "reward.meta_strength=auto",
    "reward.meta_step_length=null",
    "reward.per_device_train_batch_size=8",
    "sft.per_device_train_batch_size=32",
    "sampling.num_prompts=32",
    "sampling.batch_size=16",
    "evaluation.num_prompts=16",
    "world.num_prompts=80",
)


LABEL_WORDS = (
    "rounds=2",
    "arms=[asks]",
    "custom_arms.asks.meta_mode=off",
    "custom_arms.asks.labels_per_round=12",
    "custom_arms.asks.labels_choice=mix",
    "custom_arms.asks.label_noise=0.5",
    "custom_arms.asks.label_repeat=2",
)
"""Over those before."""
LABEL_STAGES = ("asked", "labels")


def words_of(run: Path, *, has_labels: bool) -> list[str]:
    """The command: a guarded meta step, so that both passes of reward training are in it."""
    config = REPOSITORY / "configs" / "smoke.yaml"
    own = [*WORDS, *(LABEL_WORDS if has_labels else ())]
    return ["run", "--config", str(config), "--output", str(run), *own]


def draw_stages(draw: random.Random, order: list[str], count: int) -> list[str]:
    """Stages that lives are to end in, in the run's order; half of them ask for labels, if any."""
    num_asking = sum(Path(name).name in LABEL_STAGES for name in order)
    weight = (len(order) - num_asking) / num_asking if num_asking else 1.0
    weights = [weight if Path(name).name in LABEL_STAGES else 1.0 for name in order]
    return sorted(draw.choices(order, weights, k=count), key=order.index)


def start(words: list[str], log: Path) -> int:
    """Run a command in a fork; its output goes into `log`. Returns the process's id."""
    pid = os.fork()
    if pid:
        return pid
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    code = 1
    try:
        os.setsid()
        code = run_command(words)
    finally:
        os._exit(code)


def live(words: list[str], log: Path, stage: Path | None = None, seconds: float = 0) -> int | None:
    """The exit code of a life; None where it was killed, `seconds` after it began a stage."""
    pid = start(words, log)
    end = None
    partial = stage and stage.with_name(f".{stage.name}.partial")
    before = identity(partial)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is None and identity(partial) != before:
            end = time.monotonic() + seconds
        if end is not None and time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def identity(folder: Path | None) -> int | None:
    """Which folder stands there: one made anew under the same name is another."""
    try:
        return None if folder is None else folder.stat().st_ctime_ns
    except FileNotFoundError:
        return None


def stages_of(run: Path) -> dict[str, float]:
    """Seconds that each finished stage of a run took, by its place in the run, in their order."""
    return {
        path.parent.relative_to(run).as_posix(): read_json(path)["seconds"]
        for path in sorted(run.rglob("stage.json"), key=lambda path: path.stat().st_mtime_ns)
    }


def artefacts(run: Path) -> dict[str, str]:
    """A hash of each file, of JSON without what a clock wrote."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        if path.name in OF_THE_START:
            continue
        readers = {".json": lambda path: [read_json(path)], ".jsonl": read_json_lines}
        reader = readers.get(path.suffix)
        data = path.read_bytes()
        if reader is not None:
            values = [without_clocks(value) for value in reader(path)]
            data = json.dumps(values, sort_keys=True).encode()
        found[path.relative_to(run).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def without_clocks(value: Any) -> Any:
    """The same JSON value without what a clock wrote."""
    if isinstance(value, dict):
        return {k: without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def stages_in_work(run: Path) -> list[str]:
    """The stages that were being built; with a star those that had something to go on from."""
    found = []
    for place in run.rglob(".*.partial"):
        kept = place.with_name(f"{place.name.removesuffix('.partial')}.checkpoints")
        has_more = kept.is_dir() and any(path.name != "begun.json" for path in kept.iterdir())
        found.append(place.name[1 : -len(".partial")] + ("*" if has_more else ""))
    return found


def kill_and_resume(
    kills: int, seed: int, folder: Path, *, has_labels: bool = False
) -> dict[str, Any]:
    """Kill so many lives and count what came of it."""
    for name in HEAVY:
        importlib.import_module(name)
    log = folder / "log.txt"
    began = time.monotonic()
    code = live(words_of(folder / "whole", has_labels=has_labels), log)
    assert code == 0, log.read_text(encoding="utf-8")
    whole_seconds = time.monotonic() - began
    whole, stages = artefacts(folder / "whole"), stages_of(folder / "whole")
    draw = random.Random(seed)
    hit: Counter[str] = Counter()
    killed = runs = identical = 0
    while killed < kills:
        runs += 1
        run = folder / f"run_{runs}"
        words = words_of(run, has_labels=has_labels)
        for name in draw_stages(draw, list(stages), min(MOST_LIVES, kills - killed)):
            code = live(words, log, run / name, draw.uniform(0, stages[name]))
            if code is not None:
                break
            killed += 1
            hit.update(stages_in_work(run) or ["between stages"])
        if code is None:
            code = live(words, log)
        assert code == 0, log.read_text(encoding="utf-8")
        found = artefacts(run)
        if found == whole:
            identical += 1
            shutil.rmtree(run)
        else:
            names = found.keys() | whole.keys()
            print(run, *sorted(n for n in names if found.get(n) != whole.get(n)), file=sys.stderr)
        print(f"{killed} kills, {identical} of {runs} runs identical", file=sys.stderr)
    return {
        "kills": killed,
        "runs": runs,
        "runs_identical": identical,
        "files_compared": len(whole),
        "kills_by_stage": dict(sorted(hit.items())),
        "kills_with_something_to_go_on_from": sum(
            count for name, count in hit.items() if name.endswith("*")
        ),
        "seconds_of_the_unbroken_run": round(whole_seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "python": platform.python_version(),
    }


def main() -> None:
    """Kill, count, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", action="store_true", help="Of a run that asks for labels.")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        result = kill_and_resume(
            arguments.kills, arguments.seed, place, has_labels=arguments.labels
        )
    write_json(arguments.output, result)
    print(json.dumps(result, indent=2))
    if result["runs_identical"] != result["runs"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
