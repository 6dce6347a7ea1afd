# SPDX-License-Identifier: Apache-2.0
"""Writes a world to disk: demonstrations, pairs, prompts, a tokenizer, an untrained model."""

import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metarm.config import WorldSettings
from metarm.schema import PreferencePair
from metarm.storage import write_json, write_json_lines
from metarm.world.language import (
    SPECIAL_TOKENS,
    GoldReward,
    Language,
    build_language,
    draw_prompt,
    draw_response,
    vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["build_world", "draw_pair"]

CONTEXT: Final = 64
SPACE: Final = "\u2581"


def build_world(settings: WorldSettings, seed: int, output_dir: str | Path) -> dict[str, float]:
    """Draw the data of a world and write everything a run needs.

    Args:
        settings: The knobs; `settings.seed` fixes the true reward.
        seed: Draws the data and the model's first weights.
        output_dir: Where to write.

    Returns:
        Facts about the data: `label_agreement_fraction`, the share of original labels that agree
        with the true reward, and `gold_spread`, the standard deviation of gold differences.

    Writes:
        `demonstrations.jsonl`, `preferences.jsonl`, `preferences_test.jsonl`, `prompts.jsonl`,
        `prompts_test.jsonl`, `world.json`, and `model/` (a tokenizer and an untrained model).
        With new topics also `prompts_new_task.jsonl` and `prompts_new_task_test.jsonl`.
    """
    output_dir = Path(output_dir)
    whole = build_language(settings)
    language = whole.about(whole.topics[: settings.num_topics])
    gold = GoldReward(language)
    draw = random.Random(f"data|{settings.seed}|{seed}")
    train_prompts, test_prompts = _draw_prompts(language, settings.num_prompts, draw)
    demonstrations = [
        {"prompt": prompt, "response": " " + draw_response(language, prompt, draw)}
        for prompt in draw.choices(train_prompts, k=settings.num_sft_texts)
    ]
    train = [
        draw_pair(gold, draw.choice(train_prompts), settings.label_noise, draw)
        for _ in range(settings.num_pairs)
    ]
    test = [
        draw_pair(gold, draw.choice(test_prompts), settings.label_noise, draw)
        for _ in range(settings.num_test_pairs)
    ]
    demonstrations += _write_new_task(settings, seed, whole, output_dir)
    write_json_lines(output_dir / "demonstrations.jsonl", demonstrations)
    write_json_lines(output_dir / "preferences.jsonl", (pair.to_json() for pair in train))
    write_json_lines(output_dir / "preferences_test.jsonl", (pair.to_json() for pair in test))
    write_json_lines(output_dir / "prompts.jsonl", ({"prompt": p} for p in train_prompts))
    write_json_lines(output_dir / "prompts_test.jsonl", ({"prompt": p} for p in test_prompts))
    write_json(output_dir / "world.json", {"settings": settings.model_dump(), **asdict(whole)})
    _write_model(whole, seed, output_dir / "model")
    gaps = [
        gold.score(str(p.prompt), p.chosen) - gold.score(str(p.prompt), p.rejected) for p in train
    ]
    return {
        "label_agreement_fraction": sum(gap > 0 for gap in gaps) / len(gaps),
        "gold_spread": math.sqrt(sum(gap * gap for gap in gaps) / len(gaps)),
    }


def _write_new_task(
    settings: WorldSettings, seed: int, whole: Language, output_dir: Path
) -> list[dict[str, str]]:
    """Write the prompts of the new task, if there is one, and return demonstrations of it.

    The SFT policy speaks of all topics alike; what is about the original ones alone is the pairs.
    """
    if not settings.num_new_topics:
        return []
    language = whole.about(whole.topics[settings.num_topics :])
    # A stream of its own: the original task is the same with a new one beside it.
    draw = random.Random(f"new task|{settings.seed}|{seed}")
    train_prompts, test_prompts = _draw_prompts(language, settings.num_prompts, draw)
    for name, prompts in (("", train_prompts), ("_test", test_prompts)):
        rows = ({"prompt": prompt} for prompt in prompts)
        write_json_lines(output_dir / f"prompts_new_task{name}.jsonl", rows)
    count = settings.num_sft_texts * settings.num_new_topics // settings.num_topics
    return [
        {"prompt": prompt, "response": " " + draw_response(language, prompt, draw)}
        for prompt in draw.choices(train_prompts, k=count)
    ]


def draw_pair(
    gold: GoldReward, prompt: str, label_noise: float, draw: random.Random
) -> PreferencePair:
    """Two answers to a prompt, labelled by a noisy judge of the true reward."""
    first, second = (" " + draw_response(gold.language, prompt, draw) for _ in range(2))
    while second == first:
        second = " " + draw_response(gold.language, prompt, draw)
    gap = gold.score(prompt, first) - gold.score(prompt, second)
    # A sigmoid, written as tanh: exp would overflow where the noise is small.
    noisy = math.tanh(0.5 * gap / label_noise) if label_noise else float((gap > 0) - (gap < 0))
    probability = 0.5 * (1.0 + noisy)
    chosen, rejected = (first, second) if draw.random() < probability else (second, first)
    return PreferencePair(prompt, chosen, rejected)


def _draw_prompts(
    language: Language, count: int, draw: random.Random
) -> tuple[list[str], list[str]]:
    """Distinct training and test prompts, `count` of each or as many as the language has."""
    seen: dict[str, None] = {}
    for _ in range(40 * count):
        seen.setdefault(draw_prompt(language, draw))
        if len(seen) == 2 * count:
            break
    prompts = list(seen)
    half = len(prompts) // 2
    return prompts[:half], prompts[half:]


def _write_model(language: Language, seed: int, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _build_tokenizer(language)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch's own: that seeds every device
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _build_tokenizer(language: Language) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, unknown = SPECIAL_TOKENS
    # Words carry their leading space, as in any modern tokenizer: prompt + response stays exact.
    ids = {
        word if word in SPECIAL_TOKENS else f"{SPACE}{word}": index
        for index, word in enumerate(vocabulary(language))
    }
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
