# SPDX-License-Identifier: Apache-2.0
"""What a few labels of another distribution buy: `metarm adapt` on weak and strong models' answers.

    python benchmarks/adapting.py measure alpaca_eval_policy_shift.jsonl.gz MODEL runs/adapting
    python benchmarks/adapting.py keep runs/adapting
    python benchmarks/adapting.py write

`measure` trains, for each split of the prompts, a reward model on the weak models' pairs (a linear
score fitted on the encoder's states, then all weights), adapts it to labelled pairs of the strong
models' answers, and measures every way on test pairs that nothing was trained on or chosen by. Each
finished part is kept in the folder; the same command goes on. `keep` takes what is finished into
benchmarks/results/adapting.json: what `adapt` takes is worked out anew from the gaps that are kept,
and what other rules take of the same trainings. `write` puts its tables into docs/stretching.md.

So that one slow core can do it, texts are cut to 72 tokens, steps are few, and numbers are bfloat16
where autocast makes them so: the constants below, which are no tuning of `adapt`.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from adapting_rules import BEFORE, RULES, TAKEN, WAYS, chosen
from numpy.typing import NDArray
from page_tables import points, with_tables
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from metarm.bench.settings import SourceSettings
from metarm.bench.shifts import read_alpaca
from metarm.config import RewardSettings
from metarm.data.encoding import Encoder
from metarm.data.preferences import prompt_key
from metarm.explaining.linear_head import learn_head
from metarm.metrics import accuracy_estimate, mean_estimate, pair_accuracy
from metarm.models.head_states import head_states
from metarm.models.loading import load_encoder
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.models.saving import save_reward_model
from metarm.progress import SilentProgress
from metarm.schema import Estimate, PreferencePair, Prompt
from metarm.storage import build_stage, fingerprint, read_json, remove_folder, write_json
from metarm.stretching.adapting import ADAPTATIONS, GAPS_FILE, adapt_reward_model
from metarm.stretching.pseudo_labels import gaps_of
from metarm.stretching.settings import AdaptSettings, FewLabelSettings
from metarm.stretching.ways import Evidence, judge_ways
from metarm.training import train_reward_model

REPOSITORY: Final = Path(__file__).resolve().parents[1]
PAGE: Final = REPOSITORY / "docs" / "stretching.md"
RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "adapting.json"

SEEDS: Final = (3, 4, 5, 6, 7, 8, 9, 10)
"""Not looked at when the rule was made that chooses, as 0 to 2 were: it is not judged by those."""
NUM_LABELS: Final = (30, 100, 300)
MAX_TOKENS: Final = 72
MAX_PROMPT_TOKENS: Final = 36
MEAN_WEIGHT: Final = 30.0
POOLER_SCALE: Final = 0.5
NUM_FITTED: Final = 1500
"""Weak pairs that the score is fitted on."""
NUM_TRAINED: Final = 480
"""Of them those that all weights are trained on, once."""
NUM_ORIGINAL: Final = 160
"""Pairs that say whether a way passes."""
NUM_TEST_ORIGINAL: Final = 160
NUM_TEST_SHIFTED: Final = 240
SIDES: Final = ("original", "shifted")
AGAINST: Final = "taken minus before"
START: Final = RewardSettings(meta_mode="off", max_length=MAX_TOKENS, bf16=True)
ADAPT: Final = AdaptSettings(
    folds=2,
    reward=FewLabelSettings(max_length=MAX_TOKENS, num_train_epochs=2.0, bf16=True),
)


NAMES: Final = MappingProxyType(
    {
        **{way: f"`{way}`" for way in WAYS},
        **{key: rule.name for key, rule in RULES.items()},
        AGAINST: "what it takes, minus as before",
    }
)
"""Way in the results -> in the table."""


def with_mean_pooling(backbone: str, encoder: Encoder, seed: int) -> PreTrainedModel:
    """The sentence encoder as a classifier of the mean of its states, what it was made for.

    One more layer of its own kind does that: attention without queries looks at all tokens alike,
    values pass through, MEAN_WEIGHT times as large as the state that they are added to.
    """
    config = AutoConfig.from_pretrained(backbone, num_labels=1)
    config.num_hidden_layers += 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(backbone, config=config)
    layer, pooler = model.bert.encoder.layer[-1], model.bert.pooler.dense
    same = torch.eye(config.hidden_size)
    linear = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for module in (*linear, pooler):
            module.bias.zero_()
        layer.attention.self.query.weight.zero_()
        layer.attention.self.value.weight.copy_(same)
        layer.attention.output.dense.weight.copy_(MEAN_WEIGHT * same)
        layer.output.dense.weight.zero_()
        # Where tanh is nearly a line.
        pooler.weight.copy_(POOLER_SCALE * same)
    model.config.pad_token_id = encoder.pad_token_id
    return model.eval()


def cut_pairs(encoder: Encoder, pairs: Iterable[PreferencePair], most: int) -> list[PreferencePair]:
    """The first so many, cut so that they fit; none of a long prompt, none cut to two alike."""
    found: list[PreferencePair] = []
    for pair in pairs:
        if len(found) == most:
            break
        if len(encoder.encode(pair.prompt, "")) > MAX_PROMPT_TOKENS:
            continue
        chosen, rejected = (
            cut_response(encoder, pair.prompt, side) for side in (pair.chosen, pair.rejected)
        )
        if chosen != rejected:
            found.append(replace(pair, chosen=chosen, rejected=rejected))
    return found


def cut_response(encoder: Encoder, prompt: Prompt, response: str) -> str:
    """The response's beginning that fits in with its prompt, cut at a token's end."""
    spare = len(encoder.encode(prompt, response)) - MAX_TOKENS
    while spare > 0:
        told = encoder.tokenizer(
            text=response, add_special_tokens=False, return_offsets_mapping=True
        )
        ends = [end for _, end in told["offset_mapping"]]
        response = response[: ends[-spare - 1]] if spare < len(ends) else ""
        spare = len(encoder.encode(prompt, response)) - MAX_TOKENS
    return response


def one_a_prompt(pairs: Sequence[PreferencePair], draw: random.Random) -> list[PreferencePair]:
    """A pair of each prompt, then another of each, in an order that is drawn."""
    of: dict[Hashable, list[PreferencePair]] = {}
    for pair in pairs:
        of.setdefault(prompt_key(pair.prompt), []).append(pair)
    keys = draw.sample(sorted(of, key=repr), len(of))
    columns = {key: draw.sample(of[key], len(of[key])) for key in keys}
    most = max(map(len, columns.values()))
    return [columns[key][row] for row in range(most) for key in keys if row < len(columns[key])]


def make_split(source: Path, encoder: Encoder, seed: int) -> dict[str, list[PreferencePair]]:
    """Weak and strong pairs of some prompts, original pairs of others, tests of yet others."""
    shift = read_alpaca(SourceSettings(data=str(source)), seed)
    draw = random.Random(f"adapting|{seed}")
    held_out = sorted({prompt_key(p.prompt) for p in (*shift.test_original, *shift.test_shifted)})
    chooses = set(draw.sample(held_out, len(held_out) // 3))

    def part(pairs: Sequence[PreferencePair], most: int) -> list[PreferencePair]:
        return cut_pairs(encoder, one_a_prompt(pairs, draw), most)

    tested = {
        name: [p for p in pairs if prompt_key(p.prompt) not in chooses]
        for name, pairs in (("original", shift.test_original), ("shifted", shift.test_shifted))
    }
    chosen_by = [p for p in shift.test_original if prompt_key(p.prompt) in chooses]
    return {
        "weak": part(shift.pairs, NUM_FITTED),
        "few": part(shift.shifted_labels, max(NUM_LABELS)),
        "chooses": part(chosen_by, NUM_ORIGINAL),
        "original": part(tested["original"], NUM_TEST_ORIGINAL),
        "shifted": part(tested["shifted"], NUM_TEST_SHIFTED),
    }


def train_start(
    split: Mapping[str, list[PreferencePair]],
    backbone: str,
    encoder: Encoder,
    folder: Path,
    seed: int,
) -> None:
    """A reward model of the weak pairs: a score fitted on the encoder's states, then all of it."""

    def fit_score(made: Path) -> None:
        model = with_mean_pooling(backbone, encoder, seed)
        sides = [side for pair in split["weak"] for side in (pair.chosen, pair.rejected)]
        prompts = [pair.prompt for pair in split["weak"] for _ in range(2)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = head_states(RewardModelScore(model, encoder), prompts, sides).states
        head = learn_head(found[0::2] - found[1::2])
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(head.weights / head.scale)[None])
            model.classifier.bias.zero_()
        save_reward_model(model, encoder, START, made)

    def train(made: Path) -> None:
        train_reward_model(
            model=str(folder / "fitted"),
            pairs=split["weak"][:NUM_TRAINED],
            test_pairs=split["chooses"][:1],
            groups=(),
            settings=START,
            output_dir=made,
            seed=seed,
            progress=SilentProgress(),
        )

    fitted = build_stage(folder / "fitted", {"seed": seed}, [], fit_score)
    build_stage(folder / "start", START.model_dump(), [fitted], train)


def measure_both(
    model: str | Path, split: Mapping[str, list[PreferencePair]]
) -> dict[str, dict[str, list[Any]]]:
    """Of both sides' test pairs: the prompt, and 1 right, 0 wrong, 0.5 a tie."""
    score = load_score_function(model)
    found = {}
    for side in SIDES:
        # Around scoring alone: around training it would keep casts of weights that have moved.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gaps = gaps_of(score, split[side])
        found[side] = {
            "prompts": [fingerprint(prompt_key(pair.prompt)) for pair in split[side]],
            "right": pair_accuracy(gaps, np.ones_like(gaps)).tolist(),
        }
    return found


def measure(
    source: Path, backbone: str, folder: Path, seeds: Sequence[int], numbers: Sequence[int]
) -> None:
    """All splits, each number of labels of each a file."""
    encoder = load_encoder(backbone)
    for seed in seeds:
        split = make_split(source, encoder, seed)
        place = folder / f"seed_{seed}"
        train_start(split, backbone, encoder, place, seed)
        before = kept(place / "none.json", partial(measure_both, place / "start", split))
        for number in numbers:
            make = partial(adapt, place, split, number, seed, before)
            kept(place / f"labels_{number}.json", make)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds; made first where it is not there."""
    if not path.exists():
        write_json(path, make())
        print(path, time.strftime("%H:%M:%S"), flush=True)
    found: dict[str, Any] = read_json(path)
    return found


def adapt(
    place: Path,
    split: Mapping[str, list[PreferencePair]],
    number: int,
    seed: int,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Every way with so many labels, and which was taken."""
    working, output = place / f"adapting_{number}", place / f"adapted_{number}"
    remove_folder(output)
    output.mkdir(parents=True)
    started = time.monotonic()
    report = adapt_reward_model(
        model=str(place / "start"),
        few=split["few"][:number],
        original=split["chooses"],
        settings=ADAPT,
        output_dir=output,
        place=working,
        seed=seed,
        progress=SilentProgress(),
    )
    seconds = time.monotonic() - started
    ways = {"none": before}
    for way in ADAPTATIONS:
        stage = read_json(working / way / "stage.json")
        ways[way] = {**measure_both(working / way, split), "seconds": stage["seconds"]}
    gaps = read_json(output / GAPS_FILE)
    shutil.rmtree(working)
    remove_folder(output)
    return {"seconds": seconds, "ways": ways, "report": report.to_json(), "gaps": gaps}


def rounded(estimate: Estimate) -> dict[str, float]:
    """For a file that people read too."""
    return {key: round(value, 5) for key, value in asdict(estimate).items()}


def way_of(row: Mapping[str, Any], way: str) -> str:
    """Which of its ways a split took."""
    rule = RULES.get(way)
    return chosen(rule, Evidence.from_json(row["gaps"])) if rule else way


def right_of(row: Mapping[str, Any], way: str, side: str) -> NDArray[np.float64]:
    """Of one split's test pairs."""
    return np.array(row["ways"][way][side]["right"])


def summarise(rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """Accuracies and changes of a way over splits, clustered by prompt; each split's change too."""
    found: dict[str, Any] = {}
    own = [way_of(row, TAKEN if way == AGAINST else way) for row in rows]
    against = [way_of(row, BEFORE if way == AGAINST else "none") for row in rows]
    for side in SIDES:
        prompts = [prompt for row in rows for prompt in row["ways"]["none"][side]["prompts"]]
        right = [right_of(row, name, side) for row, name in zip(rows, own, strict=True)]
        changes = [
            now - right_of(row, name, side)
            for now, row, name in zip(right, rows, against, strict=True)
        ]
        by_split = [float(change.mean()) for change in changes]
        found[side] = rounded(accuracy_estimate(np.concatenate(right), prompts))
        found[f"{side}_change"] = rounded(mean_estimate(np.concatenate(changes), prompts))
        found[f"{side}_splits"] = rounded(mean_estimate(by_split))
        found[f"{side}_by_split"] = [round(value, 4) for value in by_split]
    if way in RULES:
        found["taken"] = own
    if way == TAKEN:
        found["reasons"] = [judge_ways(Evidence.from_json(row["gaps"]), ADAPT)[1] for row in rows]
        found["seconds"] = round(float(np.mean([row["seconds"] for row in rows])), 1)
    elif way in ADAPTATIONS:
        judged = [
            next(one for one in judge_ways(evidence, ADAPT)[2] if one.name == way)
            for evidence in (Evidence.from_json(row["gaps"]) for row in rows)
        ]
        found["passes"] = [one.original.holds for one in judged]
        found["cross_validated"] = {
            "log_loss": [round(one.log_loss_change.change.value, 4) for one in judged],
            "accuracy": [round(one.gain.change.value, 4) for one in judged],
        }
        seconds = [row["ways"][way]["seconds"] for row in rows]
        found["seconds"] = round(float(np.mean(seconds)), 1)
    return found


def keep(folder: Path) -> None:
    """Figures of the splits that are finished for a number of labels."""
    document: dict[str, Any] = {
        "max_tokens": MAX_TOKENS,
        "pairs": {
            "fitted": NUM_FITTED,
            "trained": NUM_TRAINED,
            "original": NUM_ORIGINAL,
            "test_original": NUM_TEST_ORIGINAL,
            "test_shifted": NUM_TEST_SHIFTED,
        },
        "start": START.model_dump(),
        "adapt": ADAPT.model_dump(),
        "rows": [],
    }
    for number in NUM_LABELS:
        paths = {seed: folder / f"seed_{seed}" / f"labels_{number}.json" for seed in SEEDS}
        rows = {seed: read_json(path) for seed, path in paths.items() if path.exists()}
        for way in NAMES if rows else ():
            told = {"labels": number, "way": way, "seeds": list(rows)}
            document["rows"].append({**told, **summarise(list(rows.values()), way)})
    RESULTS.write_text(f"{json.dumps(document, indent=1)}\n", encoding="utf-8")


def table(document: Mapping[str, Any]) -> str:
    """A row a way and number of labels."""
    lines = [
        "| labels | way | splits | shifted | over splits | original | worst split, shifted "
        "| passes | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        way, count = row["way"], len(row["seeds"])
        is_none = way == "none"
        passes = f"{sum(row['passes'])} of {count}" if "passes" in row else ""
        if "taken" in row:
            passes = ", ".join(
                f"{row['taken'].count(name)} `{name}`" for name in WAYS if name in row["taken"]
            )
        cells = (
            str(row["labels"]),
            NAMES[way],
            str(count),
            f"{row['shifted']['value']:.3f}" if is_none else points(row["shifted_change"]),
            "" if is_none or count < 2 else points(row["shifted_splits"]),
            f"{row['original']['value']:.3f}" if is_none else points(row["original_change"]),
            "" if is_none else f"{100 * min(row['shifted_by_split']):+.1f}",
            passes,
            f"{row['seconds']:.0f}" if "seconds" in row else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(page: str, document: Mapping[str, Any]) -> str:
    """The page with its tables made anew."""
    return with_tables(page, {"adapting: table": table(document)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("source", type=Path)
    measuring.add_argument("backbone")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    measuring.add_argument("--labels", type=int, nargs="+", default=NUM_LABELS)
    verbs.add_parser("keep").add_argument("folder", type=Path)
    verbs.add_parser("write")
    arguments = parser.parse_args()
    if arguments.verb == "measure":
        measure(
            arguments.source,
            arguments.backbone,
            arguments.folder,
            arguments.seeds,
            arguments.labels,
        )
    elif arguments.verb == "keep":
        keep(arguments.folder)
    else:
        made = render(PAGE.read_text(encoding="utf-8"), read_json(RESULTS))
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
