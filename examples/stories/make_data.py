# SPDX-License-Identifier: Apache-2.0
"""Writes this folder's prompts.jsonl and demonstrations.jsonl; both are kept here as written.

The openings are templates filled at random. The demonstrations are the given model's own
continuations of them, cut at the end of one of its sentences, the second or later where there are
two. A model that was trained on whole files of stories never writes its end-of-text token, and
fine-tuning on these teaches it that alone.

Run it: `python examples/stories/make_data.py MODEL`, one minute.
"""

import json
import random
import re
import sys
from pathlib import Path

import torch

from metarm.data.meta_sets import load_prompts
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.policy.sampling import generate

HERE = Path(__file__).resolve().parent
NUM_PROMPTS = 400
NUM_DEMONSTRATIONS = 1000
DEMONSTRATION_TOKENS = 60
SEED = 0

GIRLS = ("Lily", "Mia", "Sue", "Anna", "Amy", "Lucy", "Jane", "Sara")
BOYS = ("Tim", "Tom", "Ben", "Max", "Sam", "Jack", "Bob", "Leo")
ANIMALS = ("cat", "dog", "bird", "bear", "frog", "duck", "fish", "mouse", "fox", "rabbit")
THINGS = (
    *("ball", "kite", "box", "cake", "hat", "boat", "car", "flower", "book", "doll"),
    *("drum", "apple", "bike", "balloon", "train", "shell", "stone", "spoon", "coat", "bell"),
)
LOOKS = ("red", "big", "blue", "little", "shiny", "soft", "old", "pretty", "yellow", "funny")
PLACES = ("park", "garden", "beach", "forest", "farm", "river", "school", "store", "yard", "hill")
WISHES = ("play", "run", "sing", "jump", "draw", "swim", "read", "dance", "climb", "paint")
TEMPLATES = (
    "Once upon a time, there was a little {animal} named {name}. {name} had a {look} {thing}.",
    "Once upon a time, there was a {child} named {name}. {name} loved to {wish} in the {place}.",
    "{name} had a {look} {thing}. {He} took the {thing} to the {place}. One day,",
    "One day, {name} and {friend} went to the {place}. They saw a {look} {thing}.",
    "There was a {look} {animal} who lived near the {place}. The {animal} wanted a {thing}.",
    "{name} was a {animal}. {He} liked to {wish} with {his} friend {friend}. One day,",
    "{name} lost {his} {look} {thing}. {He} looked for it in the {place}.",
    '"Look, a {thing}!" said {name}. {friend} wanted to {wish} with the {look} {thing}.',
    "{name} was sad. {He} could not {wish}. Then a {look} {animal} came to the {place}.",
    "One day, a {animal} found a {look} {thing} in the {place}. The {animal} was happy.",
    "{name} wanted to {wish}, but it was raining. So {he} took {his} {look} {thing}",
    "{name}'s mom gave {his} friend {friend} a {look} {thing}. {name} wanted one too.",
)


def write_opening(draw: random.Random) -> str:
    """One opening of a story."""
    is_girl = draw.random() < 0.5
    name = draw.choice(GIRLS if is_girl else BOYS)
    friend = draw.choice([other for other in (*GIRLS, *BOYS) if other != name])
    return draw.choice(TEMPLATES).format(
        name=name,
        friend=friend,
        child="girl" if is_girl else "boy",
        he="she" if is_girl else "he",
        He="She" if is_girl else "He",
        his="her" if is_girl else "his",
        animal=draw.choice(ANIMALS),
        thing=draw.choice(THINGS),
        look=draw.choice(LOOKS),
        place=draw.choice(PLACES),
        wish=draw.choice(WISHES),
    )


def cut_story(text: str, draw: random.Random) -> str | None:
    """The first few whole sentences of a continuation; None where it has none."""
    ends = [match.end() for match in re.finditer(r"[.!?]\"?(?=\s)", text)]
    return text[: draw.choice(ends[1:] or ends)] if ends else None


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(model: str) -> None:
    draw = random.Random(SEED)
    openings: dict[str, None] = {}
    while len(openings) < NUM_PROMPTS:
        openings[write_opening(draw)] = None
    write_rows(HERE / "prompts.jsonl", [{"prompt": opening} for opening in openings])

    torch.set_num_threads(1)
    encoder, policy = load_encoder(model), load_causal_lm(model)
    rows: list[dict[str, str]] = []
    prompts = load_prompts(HERE / "prompts.jsonl")
    for number in range(-(-NUM_DEMONSTRATIONS // NUM_PROMPTS) + 1):
        samples = generate(
            policy,
            encoder,
            prompts,
            temperature=0.8,
            top_p=1.0,
            max_completion_length=DEMONSTRATION_TOKENS,
            seed=SEED + number,
        )
        for prompt, sample in zip(prompts, samples, strict=True):
            if story := cut_story(sample.response, draw):
                rows.append({"prompt": prompt, "response": story})
    write_rows(HERE / "demonstrations.jsonl", rows[:NUM_DEMONSTRATIONS])


if __name__ == "__main__":
    main(*sys.argv[1:])
