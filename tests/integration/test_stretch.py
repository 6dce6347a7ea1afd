# SPDX-License-Identifier: Apache-2.0
"""The verbs that stretch labels, from the command line on tiny models."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fault_server import Call, Reply, say, serve
from integration.commands import Finished
from metarm.chunk_log import ChunkLog
from metarm.data.derived import check_apart, pair_id
from metarm.data.meta_sets import save_groups
from metarm.data.preferences import load_preferences, save_preferences
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.stretching import adapting
from metarm.stretching.adapting import adapt_reward_model
from metarm.stretching.pseudo_labels import draw_candidates
from metarm.stretching.rounds import train_on_pseudo_labels
from metarm.stretching.settings import AdaptSettings, PseudoLabelSettings, RoundRewardSettings
from metarm.stretching.ways import Evidence, judge_ways
from tiny_models import WORDS, save_reward_model


def text(draw: random.Random) -> str:
    return "".join(f" {word}" for word in draw.choices(WORDS, k=draw.randint(3, 6)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`pairs.jsonl`, `groups.jsonl`, `few.jsonl`, and two reward models `one` and `two`."""
    draw = random.Random(0)
    prompts = list(dict.fromkeys(text(draw).strip() for _ in range(40)))

    def pair(prompt: str) -> PreferencePair:
        sides = sorted({text(draw) + " a", text(draw) + " b b"}, key=lambda t: -t.count("a"))
        return PreferencePair(prompt, *sides)

    save_preferences(tmp_path / "pairs.jsonl", [pair(prompt) for prompt in prompts])
    save_preferences(tmp_path / "few.jsonl", [pair(f"f {prompt}") for prompt in prompts[:6]])
    groups = [ResponseGroup(p, tuple(text(draw) for _ in range(3))) for p in prompts]
    save_groups(tmp_path / "groups.jsonl", groups)
    for seed, name in enumerate(("one", "two")):
        save_reward_model(tmp_path / name, seed=seed)
    return tmp_path


def document(done: Finished) -> dict:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_augment_writes_rows_that_training_keeps_apart(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    found = document(metarm(
        "augment", "pairs.jsonl", "--output", "more.jsonl", "--kinds",
        "cross-prompt,neutral,cross-prompt-policy", "--groups", "groups.jsonl",
        "--check-swap", "one", "--json", "per_prompt=2",
    ))  # fmt: skip
    assert found["side_swap"] < 1e-3
    assert set(found["counts"]) == {"cross-prompt", "neutral", "cross-prompt-policy"}
    rows = load_preferences(data / "more.jsonl").pairs
    made = [row for row in rows if row.parent_id]
    assert len(made) == found["num_made"] == sum(found["counts"].values())
    assert {row.source for row in made} == set(found["counts"])
    again = metarm("augment", "pairs.jsonl", "--output", "more.jsonl", "--json")
    assert "more.jsonl exists" in again.error
    trained = document(metarm(
        "reward", "--model", "one", "--preferences", "more.jsonl", "--output", "rm", "--json",
        "max_steps=2", "batch_sum_coefficient=0.01", "score_dropout=0.1", "max_length=24",
    ))  # fmt: skip
    assert 0 < trained["num_derived"] < len(made), "kin of held-out pairs is left out"
    assert trained["num_test_pairs"] == 4
    refused = metarm("evaluate", "--reward-model", "one", "--preferences", "more.jsonl")
    assert "got a derived one in place" in refused.error


def test_evaluation_leaves_out_what_a_strategy_picked(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    pairs = load_preferences(data / "pairs.jsonl").pairs
    hard, rest = pairs[:3], pairs[3:]
    drawn = [replace(pair, chosen_by="random") for pair in rest]
    save_preferences(data / "random.jsonl", drawn)
    save_preferences(
        data / "mixed.jsonl", [*(replace(p, chosen_by="near-tie") for p in hard), *drawn]
    )
    words = ("evaluate", "--reward-model", "one", "--preferences")
    alone, mixed = (metarm(*words, f"{name}.jsonl", "--json") for name in ("random", "mixed"))
    assert "3 pairs left out: a strategy picked them" in mixed.err
    expected, found = document(alone), document(mixed)
    assert (expected.pop("num_picked"), found.pop("num_picked")) == (0, 3)
    for name in ("accuracy", "gap_mean", "gap_spread", "num_pairs"):
        assert found[name] == expected[name]
    save_preferences(data / "hard.jsonl", [replace(pair, chosen_by="near-tie") for pair in hard])
    refused = metarm(*words, "hard.jsonl")
    assert "expected pairs that were drawn at random, got 3" in refused.error


def test_average_says_what_lies_between(data: Path, metarm: Callable[..., Finished]) -> None:
    found = document(
        metarm("average", "one", "two", "--output", "mean", "--preferences", "pairs.jsonl",
               "--json")
    )  # fmt: skip
    (barrier,) = found["barriers"]
    assert len(barrier["losses"]) == 5
    assert set(found["accuracy"]) == {"one", "two", "average"}
    scored = metarm("evaluate", "--reward-model", "mean", "--preferences", "pairs.jsonl", "--json")
    assert document(scored)["accuracy"] == found["accuracy"]["average"]
    assert document(scored)["num_picked"] == 0
    for words in (("one",), ("one", "./one")):
        refused = metarm("average", *words, "--output", "other")
        assert "expected two reward models or more, each once" in refused.error
    missing = metarm("average", "one", "three", "--output", "other")
    assert "three" in missing.error
    assert not (data / "other").exists()


def test_rounds_keep_held_out_prompts_out_and_go_on_after_a_kill(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    words = ("pseudo-label", "--model", "one", "--preferences", "pairs.jsonl", "--unlabelled",
             "groups.jsonl", "--output", "ps", "--json", "num_rounds=1", "confidence=0.5",
             "alpha=0.01", "reward.learning_rate=0.01", "reward.num_train_epochs=4.0",
             "reward.max_length=24", "test_fraction=0.3")  # fmt: skip
    found = document(metarm(*words))
    assert found["rounds"][0]["number"] == found["rounds"][0]["num_pseudo"] == 0
    kept = load_preferences(data / "pairs.jsonl").pairs
    assert found["num_labelled"] + found["num_calibration"] + found["num_stop"] == len(kept)
    assert found["num_left_out_groups"] == found["num_calibration"] + found["num_stop"]
    num_pseudo = found["rounds"][found["kept"]]["num_pseudo"]
    pseudo = (data / "ps" / "pseudo_labels.jsonl").read_text().splitlines()
    assert len(pseudo) == num_pseudo
    assert all(json.loads(row)["source"] == "pseudo-label" for row in pseudo)
    # The same command says the same, and makes nothing again.
    assert document(metarm(*words)) == found
    if num_pseudo:
        rows = load_preferences(data / "ps" / "pseudo_labels.jsonl").pairs
        assert all(0.5 <= row.p <= 1.0 for row in rows)
        used = {row.prompt for row in rows}
        assert len(used) <= found["num_labelled"]
    check_apart([], kept, "pairs")


def test_sides_are_balanced_where_some_pairs_are_known(data: Path) -> None:
    pairs = load_preferences(data / "pairs.jsonl").pairs
    groups = [ResponseGroup(p.prompt, (p.chosen, p.rejected, " c d")) for p in pairs]
    save_groups(data / "known.jsonl", groups)
    reward = RoundRewardSettings(learning_rate=0.01, num_train_epochs=4.0, max_length=24)
    (data / "ps").mkdir()
    found = train_on_pseudo_labels(
        model=str(data / "one"),
        pairs=pairs,
        groups=groups,
        settings=PseudoLabelSettings(
            num_rounds=1, confidence=0.5, most_share=0.7, test_fraction=0.3, reward=reward
        ),
        output_dir=data / "ps",
        place=data / "place",
        seed=0,
        progress=SilentProgress(),
    )
    # Of the round itself: which of the two is kept, its accuracy decides.
    rows = load_preferences(data / "place" / "round_1" / "pseudo_labels.jsonl").pairs
    assert len(rows) == found.rounds[1].num_pseudo > 4
    known = {(p.prompt, frozenset((p.chosen, p.rejected))) for p in pairs}
    assert not known & {(r.prompt, frozenset((r.chosen, r.rejected))) for r in rows}
    first = {(c.prompt, c.first, c.second) for c in draw_candidates(groups, 3, seed=0)}
    firsts = sum((row.prompt, row.chosen, row.rejected) in first for row in rows)
    assert 2 * firsts == len(rows)


def test_adapt_leaves_original_pairs_of_few_labels_prompts_out(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    few = load_preferences(data / "few.jsonl").pairs
    pairs = load_preferences(data / "pairs.jsonl").pairs
    turned = [PreferencePair(f"{p.prompt} ".upper(), p.rejected, p.chosen) for p in few[:2]]
    save_preferences(data / "both.jsonl", [*pairs, *few[2:4], *turned])
    words = ("adapt", "--model", "one", "--preferences", "few.jsonl", "candidates=[head]",
             "folds=2", "reward.max_length=24")  # fmt: skip
    done = metarm(*words, "--original", "both.jsonl", "--output", "ad")
    assert done.code == 0, done.err
    assert "4 original pairs left out: they are of few labels' prompts" in done.out
    assert re.search(r"\nhead  few labels: log loss [+-].* \((passes|refused)\)\n", done.out)
    told = json.loads((data / "ad" / "adapt.json").read_text())
    assert (told["num_original"], told["num_original_left_out"]) == (len(pairs), 4)
    # The very pairs, and none else: there is nothing to tell by.
    refused = metarm(*words, "--original", "few.jsonl", "--output", "other")
    assert "expected original pairs of prompts that no few label is of" in refused.error
    assert not (data / "other").exists()


def test_adapt_holds_out_labels_alone_where_made_rows_are_of_other_prompts(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    few = load_preferences(data / "few.jsonl").pairs[:4]
    made = [
        PreferencePair(f"m {n}", f" a {n}", " b", p=0.8, source="stronger-weaker", parent_id="g+h")
        for n in range(24)
    ]
    save_preferences(data / "mixed.jsonl", [*made, *few])
    found = document(metarm(
        "adapt", "--model", "one", "--preferences", "mixed.jsonl", "--original", "pairs.jsonl",
        "--output", "ad", "--json", "candidates=[head]", "reward.max_length=24",
        "reward.num_train_epochs=1.0",
    ))  # fmt: skip
    assert (found["num_few"], found["folds"]) == (4, 4)
    assert [c["accuracy"]["count"] for c in found["candidates"]] == [4, 4]


def test_adapt_tests_no_label_by_a_model_that_learnt_from_a_row_made_of_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, original = (load_preferences(data / f"{name}.jsonl").pairs for name in ("few", "pairs"))
    made = [
        PreferencePair(f"m {n}", " a", " b", source="cross-prompt", parent_id=pair_id(pair))
        for n, pair in enumerate(few)
    ]
    given, train = [], adapting.train_reward_model

    def train_and_tell(**words: Any) -> Any:
        given.append(list(words["pairs"]))
        return train(**words)

    monkeypatch.setattr(adapting, "train_reward_model", train_and_tell)
    (data / "out").mkdir()
    adapt_reward_model(
        model=str(data / "one"), few=[*few, *made], original=original,
        settings=AdaptSettings.model_validate(
            {"candidates": ["head"], "folds": 2,
             "reward": {"num_train_epochs": 1.0, "max_length": 24}}
        ),
        output_dir=data / "out", place=data / "place", seed=0, progress=SilentProgress(),
    )  # fmt: skip
    *folds, whole = given
    assert len(folds) == 2
    assert whole == [*few, *made]
    for pairs in folds:
        taught = {pair_id(pair) for pair in pairs if not pair.parent_id}
        parents = {pair.parent_id for pair in pairs if pair.parent_id}
        assert 0 < len(taught) < len(few)
        assert parents == taught, "a row goes where its parent goes"


def test_adapt_reports_every_way_and_loads(data: Path, metarm: Callable[..., Finished]) -> None:
    found = document(metarm(
        "adapt", "--model", "one", "--preferences", "few.jsonl", "--original", "pairs.jsonl",
        "--output", "ad", "--json", "candidates=[head,full]", "folds=2", "margin=0.4",
        "reward.num_train_epochs=1.0", "reward.max_length=24",
    ))  # fmt: skip
    assert [c["name"] for c in found["candidates"]] == ["none", "head", "full"]
    none = found["candidates"][0]
    assert none["gain"]["change"]["value"] == none["original"]["difference"] == 0.0
    # With so wide a margin all pass: the least loss is taken, by the gaps that lie beside it.
    assert [c["original"]["holds"] for c in found["candidates"]] == [True] * 3
    least = min(found["candidates"], key=lambda c: c["log_loss"]["value"])["name"]
    assert found["taken"] == least
    assert json.loads((data / "ad" / "adapt.json").read_text())["taken"] == least
    told = Evidence.from_json(json.loads((data / "ad" / "gaps.json").read_text()))
    again = judge_ways(told, AdaptSettings(margin=0.4))
    assert (again[0], again[1]) == (least, found["reason"])
    scored = metarm("evaluate", "--reward-model", "ad", "--preferences", "few.jsonl", "--json")
    document(scored)
    wrong = metarm("adapt", "--model", "one", "--preferences", "few.jsonl", "--original",
                   "pairs.jsonl", "--output", "other", "candidates=[heads]")  # fmt: skip
    assert "did you mean 'head'" in wrong.error


def test_adapt_goes_on_where_it_was_stopped_and_ends_as_if_never(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, pairs = (load_preferences(data / f"{name}.jsonl").pairs for name in ("few", "pairs"))
    settings = AdaptSettings.model_validate(
        {"candidates": ["head", "full"], "folds": 2, "margin": 0.4,
         "reward": {"num_train_epochs": 1.0, "max_length": 24}}
    )  # fmt: skip
    trained, train = [], adapting.train_reward_model

    def train_once(**words: Any) -> Any:
        found = train(**words)
        trained.append(words["output_dir"])
        return found

    def stop_at_the_whole(**words: Any) -> Any:
        train_once(**words)
        if "partial" in words["output_dir"].name:
            raise KeyboardInterrupt

    def adapt(place: str) -> dict[str, Any]:
        output = data / f"{place}-out"
        output.mkdir(exist_ok=True)
        return adapt_reward_model(
            model=str(data / "one"), few=few, original=pairs, settings=settings,
            output_dir=output, place=data / place, seed=0, progress=SilentProgress(),
        ).to_json()  # fmt: skip

    monkeypatch.setattr(adapting, "train_reward_model", train_once)
    whole = adapt("whole")
    assert len(trained) == 6, "two ways, each of two folds and one on all"
    monkeypatch.setattr(adapting, "train_reward_model", stop_at_the_whole)
    # What an earlier version kept of folds, outcomes for gaps, is not read.
    ChunkLog(data / "stopped" / "folds.log").put("head 0", [1.0, 0.0, 1.0])
    with pytest.raises(KeyboardInterrupt):
        adapt("stopped")
    monkeypatch.setattr(adapting, "train_reward_model", train_once)
    trained.clear()
    assert adapt("stopped") == whole
    assert len(trained) == 4, "the first way's folds are not trained again"
    told = [(data / f"{name}-out" / "gaps.json").read_bytes() for name in ("whole", "stopped")]
    assert told[0] == told[1]


def test_paraphrases_are_asked_once_and_go_on_where_they_were_stopped(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    def reword(call: Call) -> Reply:
        inside = call.text.split("<text>\n")[1].split("\n</text>")[0]
        return say(f"In other words: {inside.strip()}")

    with serve(reword) as server:
        words = ("augment", "few.jsonl", "--output", "para.jsonl", "--kinds", "paraphrase",
                 "--endpoint", server.url, "--model", "served", "--json", "--only-new")  # fmt: skip
        first = document(metarm(*words, "endpoint.max_calls=5", "endpoint.num_in_flight=1"))
        assert len(server.calls) == 5
        assert "max_calls=5" in first["stopped"]
        assert first["counts"]["paraphrase"] + first["left_out"]["not answered"] == 6
        (data / "para.jsonl").unlink()
        whole = document(metarm(*words))
        assert whole["counts"] == {"paraphrase": 6}
        assert len(server.calls) == 12, "answers that are there are not asked for again"
    rows = load_preferences(data / "para.jsonl").pairs
    few = load_preferences(data / "few.jsonl").pairs
    assert [row.chosen for row in rows] == [f"In other words: {p.chosen.strip()}" for p in few]
    assert all(row.source == "paraphrase" and row.parent_id for row in rows)
    check_apart(rows, load_preferences(data / "pairs.jsonl").pairs, "pairs")
    alone = metarm("augment", "few.jsonl", "--output", "x.jsonl", "--kinds", "paraphrase")
    assert "belong together" in alone.error


def test_what_is_wrong_is_told_before_anything_is_paid_or_trained(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    with serve(lambda call: say("other words")) as server:
        wrong = metarm(
            "augment", "pairs.jsonl", "--output", "more.jsonl", "--kinds", "paraphrase",
            "--endpoint", server.url, "--model", "m", "--check-swap", "nowhere",
        )  # fmt: skip
        assert "nowhere" in wrong.error
        assert server.calls == []
    alone = [ResponseGroup(f"x {number}", (" a b", " a b")) for number in range(3)]
    save_groups(data / "alone.jsonl", alone)
    none = metarm(
        "pseudo-label", "--model", "one", "--preferences", "pairs.jsonl", "--output", "rm",
        "--unlabelled", "alone.jsonl", "reward.max_steps=2",
    )  # fmt: skip
    assert "expected groups with two different responses" in none.error
    assert "round" not in none.err.partition("error:")[0]
