# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with what a run is given: one line that says so, and nothing done is lost."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.commands import Finished
from tiny_models import save_causal_lm

PAIRS = [
    {"prompt": f"a {one} {two}", "chosen": " b c", "rejected": " d"}
    for one in "abcdef"
    for two in "abcdef"
]
SMALL = """
rounds: 1
arms: [sft, meta]
threads: 1
model_name_or_path: model
sampling: {num_generations: 2, max_completion_length: 4, num_prompts: 4}
reward: {meta_group_size: 2, max_length: 24, max_steps: 1, learning_rate: 0.001}
optimize: {num_iterations: 1, value_warmup_iterations: 0, batch_size: 4, max_completion_length: 4}
evaluation: {num_prompts: 2, num_generations: 2}
"""
GOLD = """
import torch

def raises(prompts, responses):
    raise KeyError("no such key")

def stops(prompts, responses):
    raise StopIteration

def too_few(prompts, responses):
    return [0.0] * (len(responses) - 1)

def not_finite(prompts, responses):
    return [float("nan")] * len(responses)

def words(prompts, responses):
    return ["good"] * len(responses)

def nothing(prompts, responses):
    return None

def constant(prompts, responses):
    return [1] * len(responses)

def tensor(prompts, responses):
    return torch.tensor([float(len(response)) for response in responses])

value = 3
"""


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal_lm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Path:
    """A folder where a run would succeed."""
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "small.yaml").write_text(SMALL, "utf-8")
    (tmp_path / "pairs.jsonl").write_text(lines(*PAIRS), "utf-8")
    (tmp_path / "own_gold.py").write_text(GOLD, "utf-8")
    (tmp_path / "prompts.txt").write_text("".join(f"{pair['prompt']}\n" for pair in PAIRS), "utf-8")
    return tmp_path


RUN = ("run", "--config", "small.yaml", "--output", "run")
WITH_PAIRS = (*RUN, "data.preferences=pairs.jsonl")
REWARD = ("reward", "--model", "model", "--output", "out", "max_length=24", "--preferences")
LABELLED = (*RUN, "data.prompts=prompts.txt", "data.num_gold_pairs=8", "arms=[sft]")


@pytest.mark.slow
def test_the_small_run_is_fine(place: Path, metarm: Callable[..., Finished]) -> None:
    """Else the mistakes below would prove nothing."""
    done = metarm(*WITH_PAIRS)
    assert done.code == 0, done.err
    done = metarm(
        *LABELLED[:3], "--output", "run2", *LABELLED[5:], "evaluation.gold=own_gold:tensor"
    )
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("meta_mode=decsent", ["meta_mode", "'descent'", "decsent"]),
        ("learning_rate=-1", ["learning_rate: expected a number greater than 0, got -1"]),
        ("--test-fraction 1.5", ["test_fraction between 0 and 1, got 1.5"]),
        ("--model absent", ["'absent'", "there is no such folder"]),
        ("--meta-set absent.jsonl", ["absent.jsonl"]),
    ],
)
def test_reward_is_given_nonsense(place: Path, metarm, words: str, messages: list[str]) -> None:
    before = set(os.listdir(place))
    error = metarm(*REWARD, "pairs.jsonl", *words.split()).error
    for message in messages:
        assert message in error
    assert set(os.listdir(place)) == before, "nothing is left, visible or not"


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (b"", ["bad.jsonl", "empty"]),
        (b"\n\n", ["bad.jsonl"]),
        (lines({"prompt": "a", "chosen": " b"}).encode(), ["bad.jsonl", "rejected"]),
        (lines(*({**p, "rejected": p["chosen"]} for p in PAIRS)).encode(), ["bad.jsonl", "usable"]),
        (lines(PAIRS[0]).encode() + b'{"prompt": "\xff"}\n', ["bad.jsonl:2", "UTF-8"]),
        (lines({**PAIRS[0], "margin": float("nan")}).encode(), ["bad.jsonl:1", "margin"]),
        (lines(PAIRS[0])[:-9].encode(), ["bad.jsonl:1"]),
        (lines(PAIRS[0], PAIRS[0]).encode(), ["2 prompts", "got 1"]),
        (lines(*({**p, "prompt": p["prompt"] + " a" * 40} for p in PAIRS)).encode(), ["24"]),
    ],
)
def test_preferences_are_not_what_they_should_be(
    place: Path, metarm, content: bytes, messages: list[str]
) -> None:
    (place / "bad.jsonl").write_bytes(content)
    for words in ((*REWARD, "bad.jsonl"), (*RUN, "data.preferences=bad.jsonl")):
        error = metarm(*words).error
        for message in messages:
            assert message in error
    assert not list(place.rglob(".*.partial")) + list(place.rglob(".*.checkpoints"))


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        ([{"prompt": "a", "responses": [" b"]}], ["meta.jsonl:1", "2 responses", "k = 1"]),
        ([{"prompt": "a", "responses": " b"}], ["meta.jsonl:1", "responses"]),
        ([{"prompt": "a", "responses": [" b", 3]}], ["meta.jsonl:1", "responses"]),
        ([], ["meta.jsonl"]),
        ([{"prompt": "a " * 40, "responses": [" b", " c"]}], ["24"]),
    ],
)
def test_a_meta_set_is_not_what_it_should_be(
    place: Path, metarm, rows: list[object], messages: list[str]
) -> None:
    (place / "meta.jsonl").write_text(lines(*rows), "utf-8")
    before = set(os.listdir(place))
    error = metarm(*REWARD, "pairs.jsonl", "--meta-set", "meta.jsonl", "meta_group_size=2").error
    for message in messages:
        assert message in error
    assert set(os.listdir(place)) == before, "nothing is left, visible or not"


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("model_name_or_path=absent", ["absent", "there is no such folder"]),
        ("reward_model_name_or_path=absent", ["absent", "there is no such folder"]),
        ("data.prompts=absent.txt", ["absent.txt"]),
        ("data.prompts=one.txt", ["0 prompts to optimise on and 1 to evaluate on"]),
        ("data.prompts=long.txt", ["prompts leaves 5 tokens for a response", "context of 24"]),
        ("data.data_format=trl-explcit", ["trl-explicit"]),
        ("seeds=[0, 0]", ["named once"]),
        ("seeds=[-1]", ["seeds", "at least 0", "-1"]),
        ("seeds=[]", ["seeds", "at least 1"]),
        ("arms=[meta, meta]", ["named once"]),
        ("arms=[]", ["arms"]),
        ("optimize.algo=pop", ["optimize.algo", "'pop'", "did you mean 'ppo'?"]),
        ("optimize.algo=absent:function", ["absent", "cannot import"]),
        ("custom_arms.../x.reward=frozen", ["command line"]),
        ("custom_arms.x/y.reward=frozen", ["'x/y' cannot name a folder"]),
        ("sampling.num_generations=1", ["at least 2"]),
        ("reward.meta_group_size=3", ["meta_group_size (3)", "num_generations (2)"]),
        ("arms=[labels]", ["need gold labels"]),
        ("sft.max_length=4", ["data.sft_texts"]),
        ("world.num_topics=3", ["a `world` brings its own", "model_name_or_path", "data"]),
    ],
)
def test_a_run_is_given_nonsense(place: Path, metarm, words: str, messages: list[str]) -> None:
    (place / "one.txt").write_text("a b\n", "utf-8")
    (place / "long.txt").write_text("".join(f"{n} {'a ' * 40}\n" for n in range(4)), "utf-8")
    error = metarm(*WITH_PAIRS, words).error
    for message in messages:
        assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("world.num_topics=9", "world.num_topics is 9, but the language has 8: lower it"),
        ("world.num_prompts=0", "num_prompts: expected a number of at least 1, got 0"),
        ("reward.max_length=3", "max_length"),
        ("sft.max_length=3", "max_length=3"),
    ],
)
def test_a_world_is_given_nonsense(
    metarm, tmp_path: Path, smoke: list[str], words: str, message: str
) -> None:
    assert message in metarm(*smoke, "run", "world.num_sft_texts=40", words).error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_gold:raises", "got KeyError: 'no such key' (--debug shows where)"),
        ("own_gold:stops", "got StopIteration"),
        ("own_gold:too_few", "numbers. Mend the function"),
        ("own_gold:not_finite", "got nan for the response"),
        ("own_gold:words", "got ValueError: could not convert string to float: 'good'"),
        ("own_gold:nothing", "got TypeError"),
        ("own_gold:constant", "gives every pair of responses the same score"),
        ("own_gold:value", "has no function 'value'"),
        ("own_gold:shrot", "has no function 'shrot'"),
        ("own_gold", "give your own as module:function"),
        ("absent:gold", "cannot import module 'absent'"),
    ],
)
def test_a_gold_function_that_is_none(place: Path, metarm, name: str, message: str) -> None:
    error = metarm(*LABELLED, f"evaluation.gold={name}").error
    assert message in error
    assert name in error or name.split(":")[0] in error


@pytest.mark.slow
def test_a_gold_function_that_fails_in_a_worker_is_one_line_too(place: Path, metarm) -> None:
    words = (*LABELLED, "evaluation.gold=own_gold:raises", "seeds=[0, 1]", "workers=2")
    error = metarm(*words).error
    assert "own_gold:raises: expected" in error
    debug = metarm("--debug", *words)
    assert debug.code == 2
    assert 'raise KeyError("no such key")' in debug.err


@pytest.mark.parametrize("missing", ["tokenizer", "weights"])
def test_half_a_model(place: Path, metarm, missing: str) -> None:
    for path in (place / "model").glob(
        f"{missing}*" if missing == "tokenizer" else "*.safetensors"
    ):
        path.unlink()
    error = metarm(*WITH_PAIRS).error
    assert "'model' (the folder exists)" in error
    assert "config.json, model.safetensors and tokenizer files" in error


@pytest.mark.slow
def test_a_mistake_late_in_a_run_loses_nothing(place: Path, metarm) -> None:
    words = (*WITH_PAIRS, "arms=[sft]", "evaluation.gold=own_gold:tensor")
    assert metarm(*words).code == 0
    stages = sorted((place / "run").rglob("stage.json"))
    gold = place / "own_gold.py"
    gold.write_text(GOLD.replace("torch.tensor([", "([float('inf')] + ["), "utf-8")
    error = metarm(*words, "arms=[sft, frozen]").error
    assert "own_gold:tensor: expected" in error
    gold.write_text(GOLD, "utf-8")
    assert set(stages) <= set((place / "run").rglob("stage.json"))
    done = metarm(*words, "arms=[sft, frozen]")
    assert done.code == 0, done.err


def test_a_place_that_cannot_be_written(place: Path, metarm) -> None:
    (place / "file").write_text("", "utf-8")
    words = [
        word if word != "run" or number == 0 else "file/run"
        for number, word in enumerate(WITH_PAIRS)
    ]
    assert "cannot write" in metarm(*words).error


@pytest.fixture
def mounted(place: Path) -> Iterator[Callable[[str], Path]]:
    """A small file system of its own, where this process may mount one."""
    target = place / "mounted"
    target.mkdir()
    mounts = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        mounts.append(target)
        return target

    yield mount
    for path in mounts:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kibibytes", [4, 40, 100, 160])
def test_a_full_disk_is_one_line_and_space_mends_it(
    place: Path, metarm, mounted, kibibytes: int
) -> None:
    target = mounted(f"size={kibibytes}k")
    words = (*WITH_PAIRS[:4], "mounted/run", *WITH_PAIRS[5:])
    error = metarm(*words).error
    assert "The disk is full: free space and run the same command again" in error
    stages = list(target.rglob("stage.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(target)], check=True)
    done = metarm(*words)
    assert done.code == 0, done.err
    assert all(stage.exists() for stage in stages if not stage.parent.name.startswith("."))


def test_a_place_that_is_read_only(place: Path, metarm, mounted) -> None:
    mounted("ro")
    error = metarm(*WITH_PAIRS[:4], "mounted/run", *WITH_PAIRS[5:]).error
    assert "The place is read-only: choose another output folder." in error


def test_nothing_is_left_in_the_current_folder(place: Path, metarm) -> None:
    before = set(os.listdir(place))
    assert metarm(*WITH_PAIRS, "arms=[sft]").code == 0
    assert set(os.listdir(place)) - {"__pycache__"} == before | {"run"}
