# SPDX-License-Identifier: Apache-2.0
"""Does a score's last bit depend on whom it was scored with? Counted for several ways to batch.

    OMP_NUM_THREADS=1 python benchmarks/batch_bits.py MODEL PAIRS.jsonl.gz \
        --output benchmarks/results/batch_bits.json

Each way's scores are compared bit for bit with those of each text alone: `padded`, a local call on
all (batches of like lengths, padded, prompts shared); `widths`, texts of one length side by
side without padding, by how many there were. MODEL is a language model, which gets a score head;
Llamas of random weights stand beside it.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import RewardModelScore
from metarm.storage import read_json_lines, write_json

MOST_TOKENS = 320
NUM_TEXTS = 128
LENGTHS = (7, 16, 33, 64, 100, 129, 200, 256)
WIDTHS = (2, 8, 32)


def changed(found: list[float], alone: list[float]) -> int:
    """How many scores are not the same number."""
    return sum(one != other for one, other in zip(found, alone, strict=True))


def measure(score: RewardModelScore, sides: list[tuple[str, str]], seed: int) -> dict[str, Any]:
    """Counts for one model."""
    prompts, responses = zip(*sides, strict=True)
    alone = [score([p], [r])[0] for p, r in sides]
    batched = score(prompts, responses)
    generator = torch.Generator().manual_seed(seed)
    widths: dict[int, dict[int, int]] = {}
    vocabulary = score.model.config.get_text_config().vocab_size
    for width in WIDTHS:
        widths[width] = {}
        for length in LENGTHS:
            rows = torch.randint(3, vocabulary, (width, length), generator=generator).tolist()
            each = [score.score_tokens([row], [0])[0] for row in rows]
            together = score.score_tokens(rows, range(width))
            widths[width][length] = changed(together, each)
    return {
        "texts": len(sides),
        "padded_changed": changed(batched, alone),
        "padded_largest_difference": max(abs(a - b) for a, b in zip(batched, alone, strict=True)),
        "changed_by_width_and_length": {
            str(width): {str(length): count for length, count in own.items()}
            for width, own in widths.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model)
    sides = []
    for row in read_json_lines(arguments.pairs):
        for side in ("chosen", "rejected"):
            if len(encoder.encode(row["prompt"], row[side])) <= MOST_TOKENS:
                sides.append((row["prompt"], row[side]))
    sides = sides[:NUM_TEXTS]
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        load_reward_model(arguments.model, encoder, seed=0).save_pretrained(folder / "real")
        for width, layers in ((256, 4), (512, 4)):
            torch.manual_seed(0)
            LlamaForSequenceClassification(
                LlamaConfig(
                    vocab_size=len(encoder.tokenizer),
                    hidden_size=width,
                    intermediate_size=int(2.75 * width),
                    num_hidden_layers=layers,
                    num_attention_heads=width // 64,
                    max_position_embeddings=512,
                    num_labels=1,
                    pad_token_id=encoder.pad_token_id,
                )
            ).save_pretrained(folder / f"llama_{width}x{layers}")
        for own in sorted(folder.iterdir()):
            encoder.tokenizer.save_pretrained(own)
            name = Path(arguments.model).name if own.name == "real" else own.name
            own_encoder = load_encoder(own)
            model = load_reward_model(own, own_encoder, seed=None)
            found[name] = measure(RewardModelScore(model, own_encoder), sides, seed=0)
    document = {
        "made": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "models": found,
    }
    write_json(arguments.output, document)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
