# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML and overrides: strict types, near names, places, and a way back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarm.config import RewardSettings, RunSettings
from metarm.config_file import read_settings, write_settings
from metarm.errors import ConfigError

BASE = "output_dir: out\nworld: {}\n"
EXAMPLE = """\
# A run with most kinds of values.
output_dir: runs/one
rounds: 2
seeds: [0, 1]
arms: [plain, meta, mine]
custom_arms:
  mine:
    meta_mode: descent
    label_repeat: 3
world:
  num_topics: 4
  label_noise: 0.5
sft:
  learning_rate: 1e-3
reward:
  learning_rate: 2.5e-05
  bf16: false
  meta_step_length: null
  meta_mode: "joint"
optimize: {algo: ppo, num_iterations: 3}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def error_of(path: Path, text: str, *overrides: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_settings(path, overrides, RunSettings)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "run.yaml")


def test_precedence_is_defaults_then_file_then_overrides(path: Path) -> None:
    path.write_text(BASE + "rounds: 7\nreward: {lora_r: 4, meta_every: 2}\n", encoding="utf-8")
    found = read_settings(
        path,
        ["reward.lora_r=9", "sft.max_length=10", "rounds=1", "rounds=5", "world.num_topics=3"],
        RunSettings,
    )
    assert (found.rounds, found.reward.lora_r, found.reward.meta_every) == (5, 9, 2)
    assert found.reward.meta_batch_size == RewardSettings().meta_batch_size
    assert found.sft is not None
    assert found.sft.max_length == 10
    assert found.world is not None
    assert found.world.num_topics == 3


def test_no_file_means_defaults_and_overrides() -> None:
    assert read_settings(None, [], RewardSettings) == RewardSettings()
    found = read_settings(None, ["learning_rate=1e-4", "meta_mode=off"], RewardSettings)
    assert (found.learning_rate, found.meta_mode) == (1e-4, "off")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rounds: '3'", "run.yaml:3:1: rounds: expected a whole number, got the text '3'"),
        ("rounds: 2.0", "run.yaml:3:1: rounds: expected a whole number, got 2.0"),
        ("rounds: true", "run.yaml:3:1: rounds: expected a whole number, got true"),
        ("rounds: 0", "run.yaml:3:1: rounds: expected a number of at least 1, got 0"),
        ("seeds: 3", "run.yaml:3:1: seeds: expected a list, got 3. Put brackets"),
        ("seeds: []", "run.yaml:3:1: seeds: expected a list of at least 1, got a list of 0"),
        ("seeds: [a]", "run.yaml:3:9: seeds.0: expected a whole number, got the text 'a'"),
        ("policy_start: x", "policy_start: expected 'sft' or 'previous', got the text 'x'"),
        ("reward: {bf16: no}", "run.yaml:3:10: reward.bf16: expected true or false, got the text"),
        ("reward:\n  learning_rate: 1e-4x", "run.yaml:4:3: reward.learning_rate: expected a num"),
        ("reward: {learning_rate: 1_0}", "expected a number, got the text '1_0'"),
        ("reward: {learning_rate: true}", "expected a number, got true"),
        ("reward: {learning_rate: .nan}", "run.yaml:3:25: expected a finite number"),
        ("reward: null", "run.yaml:3:1: reward: expected a section of `key: value` lines, got n"),
        ("reward:", "run.yaml:3:1: reward: expected a value, got nothing"),
        ("custom_arms: [1]", "custom_arms: expected a section of `name: value` lines"),
        ("data: {test_fraction: 1}", "expected a number less than 1, got 1"),
        ("reward: {learning_rate: 0}", "expected a number greater than 0, got 0"),
        ("optimize: {gamma: 2}", "expected a number of at most 1, got 2"),
        ("model_name_or_path: 123", "expected text, got 123. Put quotes around it: '123'"),
        ("model_name_or_path: 2026-01-01\nrounds: 0", "run.yaml:4:1"),
        ("output_dir: other", "run.yaml:3:1: expected each key once"),
        ("optimize: {num_iterations: 2}", "optimize.num_iterations (2) must be above"),
        ("custom_arms: {a: {meta_mode: off, meta_reservoir: 3}}", "custom_arms.a: a reservoir ch"),
        ("custom_arms: {a: {reward: frozen, meta_reservoir: 3}}", "custom_arms.a: a reservoir ch"),
        ("reward: {meta_source_floor: 2}", "expected a number of at most 1, got 2"),
        ("arms: [pla]", "run.yaml: unknown arm 'pla': did you mean 'plain'?"),
        ("custom_arms: {a: {reward: frozen, members: 2}}", "a: members change nothing where the"),
        ("custom_arms: {a: {pessimism: 1.0}}", "custom_arms.a.pessimism: one reward model has no"),
        (
            "custom_arms: {a: {labels_choice: mix}}",
            "a: labels_choice changes nothing without labels",
        ),
        (
            "custom_arms: {a: {num_gold_labels: 5, labels_per_round: 5}}",
            "custom_arms.a: num_gold_labels is short for labels_per_round with labels_from: gold",
        ),
        (
            "custom_arms: {a: {labels_per_round: 5, labels_from: people, label_noise: 0.5}}",
            "custom_arms.a: label_noise is of gold labels, got labels_from: people: leave it out",
        ),
        (
            "custom_arms: {a: {labels_per_round: 5, labels_from: crowd}}",
            "a: labels_from: expected gold, people, model, module:function or the address of a",
        ),
        (
            "custom_arms: {a: {labels_per_round: 5, labels_from: model}}\nlabels: {model: m}",
            "a: labels_from: model needs labels.url and labels.model: where it is, and its name",
        ),
        (
            "custom_arms: {a: {labels_per_round: 5, reward: frozen}}",
            "custom_arms.a: labels change nothing where the reward model is frozen",
        ),
        ("custom_arms: {a: {settings: {world: {}}}}", "a.settings: 'world' is the same in every"),
        ("custom_arms: {a: {settings: {policy_start: {x: 1}}}}", "a.settings.policy_start: Input"),
        (
            "custom_arms: {a: {settings: {reward: {meta_weight: -1}}}}",
            "custom_arms.a.settings.reward.meta_weight: Input should be greater than or equal to 0",
        ),
        ("rounds: 0\nworkers: 0\nthreads: 0", "got 0 (2 more errors after this one)"),
    ],
)
def test_wrong_values_are_named_with_place_and_key(path: Path, line: str, message: str) -> None:
    assert message in error_of(path, BASE + line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reward:\n  lerning_rate: 1", "4:3: unknown key `reward.lerning_rate`: did you mean 'lea"),
        ("rewrd: {}", "unknown key `rewrd`: did you mean 'reward'?"),
        ("custom_arms: {a: {optimise: true}}", "unknown key `custom_arms.a.optimise`: did you"),
        ("sft: {max_lenght: 3}", "unknown key `sft.max_lenght`: did you mean 'max_length'?"),
        ("lora_r: 3", "`lora_r`: did you mean 'reward.lora_r' or 'optimize.lora_r'?"),
        ("reward: {seeds: [1]}", "unknown key `reward.seeds`: did you mean 'seeds'?"),
        ("zzz: 1", "unknown key `zzz`: known: arms, checkpoint_steps, custom_arms, data"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(path: Path, line: str, message: str) -> None:
    assert message in error_of(path, BASE + line)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.lerning_rate=1", "command line: unknown key `reward.lerning_rate`: did you mean"),
        ("rewrd.lora_r=1", "command line: unknown key `rewrd`: did you mean 'reward'?"),
        ("training.rounds=1", "command line: unknown key `training`: did you mean 'rounds'?"),
        ("rounds=x", "command line: rounds: expected a whole number, got the text 'x'"),
        ("rounds", "command line: expected key=value, got 'rounds'"),
        ("rounds=", "command line: expected key=value, got 'rounds='"),
        ("=1", "command line: expected key=value"),
        ("a..b=1", "command line: expected key=value"),
        ("rounds=[1", "command line: rounds:1:3: expected YAML"),
        ("rounds=*a", "alias"),
        ("rounds=!!int 3", "tag"),
        ("reward={lora_r: 3}", "Give each key by itself: reward.lora_r="),
        ("rounds.x=1", "expected `rounds` to be a section, got 2"),
        ("seeds.0=1", "Lists are given whole"),
        ("rounds=\udcff", "expected UTF-8"),
    ],
)
def test_overrides_are_as_strict_as_the_file(path: Path, override: str, message: str) -> None:
    assert message in error_of(path, BASE + "rounds: 2\nseeds: [1]\n", override)


def test_an_override_takes_over_the_place_of_what_it_replaces(path: Path) -> None:
    message = error_of(path, BASE + "seeds: [1, 2]\n", "seeds=[a]")
    assert message.startswith("command line: seeds.0: ")


def test_missing_and_unreadable_files(path: Path, tmp_path: Path) -> None:
    assert "output_dir: expected a value, got none. Add" in error_of(path, "world: {}\n")
    assert "run.yaml: expected settings, got an empty file" in error_of(path, "")
    assert "expected `key: value` lines at the top, got a list of 1" in error_of(path, "[1]")
    for wrong in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match="expected a YAML file, got"):
            read_settings(wrong, [], RunSettings)


def test_a_file_is_read_as_utf_8_in_any_locale(path: Path) -> None:
    path.write_text(BASE + "reward_model_name_or_path: caf\u00e9\n", encoding="utf-8")
    code = (
        "import sys; from metarm.config import RunSettings;"
        "from metarm.config_file import read_settings;"
        "print(ascii(read_settings(sys.argv[1], [], RunSettings).reward_model_name_or_path))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, str(path)],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == r"'caf\xe9'"


def test_written_settings_read_back_the_same(path: Path) -> None:
    path.write_text(EXAMPLE, encoding="utf-8")
    first = read_settings(path, ["reward_model_name_or_path='1e-4'"], RunSettings)
    write_settings(path, first)
    assert read_settings(path, [], RunSettings) == first


number = st.floats(min_value=1e-300, max_value=1e300)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    learning_rate=number,
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    arm=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, unique=True),
)
def test_any_settings_survive_the_file(
    path: Path, learning_rate: float, name: str, arm: str, seeds: list[int]
) -> None:
    first = RunSettings.model_validate(
        {
            "output_dir": name,
            "world": {},
            "seeds": seeds,
            "reward_model_name_or_path": name,
            "custom_arms": {f"_{arm}": {}},
            "reward": {"learning_rate": learning_rate},
        }
    )
    write_settings(path, first)
    assert read_settings(path, [], RunSettings) == first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=1000)
@given(
    at=st.integers(0, len(EXAMPLE) - 1),
    edit=st.sampled_from(["delete", "insert", "replace", "repeat line", "drop line"]),
    text=st.sampled_from(list("\t\n :#-[]{}'\"&*!%|>?,.e_01azA~<\\\x00\u00e9\u2028"))
    | st.sampled_from(["---\n", "...", "<<: ", "&a ", "*a", "!!str ", "null", ".nan", "\\x"]),
)
def test_one_edit_gives_settings_or_a_config_error(
    path: Path, at: int, edit: str, text: str
) -> None:
    lines = EXAMPLE.splitlines(keepends=True)
    row = EXAMPLE[:at].count("\n")
    mutated = {
        "delete": lambda: EXAMPLE[:at] + EXAMPLE[at + 1 :],
        "insert": lambda: EXAMPLE[:at] + text + EXAMPLE[at:],
        "replace": lambda: EXAMPLE[:at] + text + EXAMPLE[at + 1 :],
        "repeat line": lambda: "".join([*lines[: row + 1], *lines[row:]]),
        "drop line": lambda: "".join([*lines[:row], *lines[row + 1 :]]),
    }[edit]()
    path.write_text(mutated, encoding="utf-8")
    try:
        found = read_settings(path, [], RunSettings)
    except ConfigError as error:
        if not str(error).startswith(str(path)) or "\n" in str(error):
            raise
    else:
        write_settings(path, found)
        assert read_settings(path, [], RunSettings) == found


@pytest.mark.parametrize("comment", ["# note", "   # note"])
def test_comments_and_blank_lines_change_nothing(path: Path, comment: str) -> None:
    path.write_text(EXAMPLE, encoding="utf-8")
    plain = read_settings(path, [], RunSettings)
    path.write_text(EXAMPLE.replace("\n", f" {comment}\n\n"), encoding="utf-8")
    assert read_settings(path, [], RunSettings) == plain


def test_gold_labels_need_gold_and_labels_of_people_do_not(path: Path) -> None:
    base = "output_dir: out\nmodel_name_or_path: m\ndata: {preferences: p.jsonl}\narms: [a]\n"
    arm = "custom_arms: {a: {labels_per_round: 5, labels_from: WHO}}"
    assert "arms ['a'] need gold labels" in error_of(path, base + arm.replace("WHO", "gold"))
    for who in ("people", "my_package:judge", "http://127.0.0.1:8000"):
        path.write_text(base + arm.replace("WHO", f"'{who}'"), encoding="utf-8")
        assert read_settings(path, [], RunSettings).arm("a").labels_from == who
