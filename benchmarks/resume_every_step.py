# SPDX-License-Identifier: Apache-2.0
"""Go on from every step of a training with dropout and meta batches, and hold the end against it.

    python benchmarks/resume_every_step.py --steps 120 --output results.json

A small GPT-2 with dropout is trained with the MetaRM step, by AdamW with a schedule, over several
epochs, and leaves a checkpoint at every step. From each one a training goes on to the end; weights
must be the same bits, and the log the same numbers without its clocks. Beside it: what a checkpoint
takes to write, and what it takes to find each of 300 flipped bits and 200 cuts in one.
"""

import argparse
import json
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from metarm.checkpoints import CheckpointPlace, save_checkpoint
from metarm.errors import CheckpointError
from metarm.manifest import check_folder
from metarm.storage import write_json
from metarm.training import MetaRewardConfig, MetaRewardTrainer

WORDS = [f"w{number}" for number in range(40)]
CLOCKS = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
MEGABYTES = 4


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    ids = {word: index for index, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def make_trainer(place: Path, steps: int, *, every: int) -> MetaRewardTrainer:
    """The same trainer each time: model, pairs and groups are drawn by fixed seeds."""
    draw = random.Random(0)

    def text() -> str:
        return "".join(f" {word}" for word in draw.choices(WORDS, k=draw.randint(2, 9)))

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS) + 3,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        num_labels=1,
        pad_token_id=0,
    )
    trainer = MetaRewardTrainer(
        GPT2ForSequenceClassification(config),
        MetaRewardConfig(
            output_dir=str(place),
            max_steps=steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            disable_dropout=False,
            logging_steps=7,
            meta_mode="ascent",
            meta_reward_fraction=0.5,
            meta_batch_size=4,
            meta_group_size=3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            save_total_limit=steps,
        ),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(150)]
        ),
        meta_dataset=datasets.Dataset.from_list(
            [{"prompt": text(), "responses": [text() for _ in range(4)]} for _ in range(30)]
        ),
        processing_class=make_tokenizer(),
    )
    trainer.keep_checkpoints(CheckpointPlace(place, every))
    return trainer


def end_of(trainer: MetaRewardTrainer) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Weights, and the log without its clocks."""
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    log = [
        {key: value for key, value in entry.items() if key not in CLOCKS}
        for entry in trainer.state.log_history
    ]
    return weights, log


def resume_from_every_step(steps: int, folder: Path) -> dict[str, int]:
    """How many of the resumed trainings end as the unbroken one did."""
    whole = make_trainer(folder / "whole", steps, every=1)
    whole.train()
    weights, log = end_of(whole)
    exact = same_log = 0
    for step in range(1, steps + 1):
        again = make_trainer(folder / "again", steps, every=steps + 1)
        again.train(str(folder / "whole" / f"checkpoint-{step}"))
        found, found_log = end_of(again)
        exact += all(torch.equal(found[name], value) for name, value in weights.items())
        same_log += found_log == log
        shutil.rmtree(folder / "again", ignore_errors=True)
    return {"steps": steps, "resumed_with_equal_weights": exact, "resumed_with_equal_log": same_log}


def find_damage(folder: Path) -> dict[str, int]:
    """How many flipped bits, and how many cuts, of a checkpoint are found."""
    state = {"weights": torch.randn(1000, 100), "numbers": torch.arange(1000)}
    whole = save_checkpoint(folder / "whole", 1, state)
    draw = random.Random(0)
    found = {"flipped_bits_found": 0, "cuts_found": 0}
    for kind, times in (("flipped_bits_found", 300), ("cuts_found", 200)):
        for _ in range(times):
            place = folder / "damaged"
            shutil.copytree(whole, place)
            path = draw.choice(sorted(place.iterdir()))
            data = bytearray(path.read_bytes())
            if kind == "cuts_found":
                data = data[: draw.randrange(len(data))]
            else:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
            try:
                check_folder(place)
            except CheckpointError:
                found[kind] += 1
            shutil.rmtree(place)
    return found


def time_checkpoints(folder: Path) -> dict[str, float]:
    """Milliseconds that a checkpoint takes to write, and to verify."""
    state = {"weights": torch.randn(MEGABYTES * 250_000)}
    written, verified = [], []
    for step in range(1, 51):
        started = time.perf_counter()
        place = save_checkpoint(folder / "timed", step, state)
        written.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        check_folder(place)
        verified.append(1000 * (time.perf_counter() - started))
    return {
        "checkpoint_megabytes": MEGABYTES,
        "write_ms_median": round(statistics.median(written), 1),
        "write_ms_95th": round(statistics.quantiles(written, n=20)[-1], 1),
        "verify_ms_median": round(statistics.median(verified), 1),
    }


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {
            **resume_from_every_step(arguments.steps, Path(folder)),
            **find_damage(Path(folder) / "damage"),
            **time_checkpoints(Path(folder)),
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        }
    write_json(arguments.output, result)
    print(json.dumps(result, indent=2))
    is_exact = result["resumed_with_equal_weights"] == result["resumed_with_equal_log"]
    if not is_exact or result["resumed_with_equal_log"] != arguments.steps:
        sys.exit(1)


if __name__ == "__main__":
    main()
