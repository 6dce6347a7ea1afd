# SPDX-License-Identifier: Apache-2.0
"""Splits of shifts: no prompt on both sides, labels hidden, the same for the same seed."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarm.bench.problem import build_problem
from metarm.bench.settings import SourceSettings
from metarm.bench.shifts import SHIFTS, Shift, digest_source, join_shifts
from metarm.data.meta_sets import save_groups
from metarm.data.preferences import save_preferences
from metarm.errors import ConfigError, DataError, EmptySetError, FormatError
from metarm.schema import PreferencePair, ResponseGroup


def write_alpaca(path: Path, prompts: int = 20) -> Path:
    rows = [
        {
            "prompt": f"p{p}",
            "tier": tier,
            "response": f"{tier} {p} {r}",
            "gold": (r * 7 + p) % 5 / 5,
        }
        for p in range(prompts)
        for tier in ("weak", "strong")
        for r in range(6)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def prompts_of(shift: Shift) -> tuple[set[object], set[object]]:
    train = {p.prompt for p in (*shift.pairs, *shift.shifted_labels)}
    train |= {group.prompt for group in shift.groups}
    return train, {p.prompt for p in (*shift.test_original, *shift.test_shifted)}


def test_alpaca_sides_labels_and_groups(tmp_path: Path) -> None:
    source = SourceSettings(data=str(write_alpaca(tmp_path / "a.jsonl.gz")))
    shift = SHIFTS["alpaca"](source, 0)
    train, test = prompts_of(shift)
    assert not train & test
    assert (len(train), len(test)) == (14, 6)
    for pair in (*shift.pairs, *shift.test_original):
        assert pair.chosen.startswith("weak")
        assert gold_of(pair.chosen) > gold_of(pair.rejected)
    assert all(pair.chosen.startswith("strong") for pair in shift.test_shifted)
    assert all(len(g.responses) == 5 and g.responses[0].startswith("strong") for g in shift.groups)
    assert SHIFTS["alpaca"](source, 0) == shift
    assert SHIFTS["alpaca"](source, 1) != shift
    texts = shift.texts
    assert len(set(texts)) == len(texts)
    # The order of the texts tells nothing of the labels.
    first = [
        texts.index((p.prompt, p.chosen)) < texts.index((p.prompt, p.rejected)) for p in shift.pairs
    ]
    assert 0.35 < sum(first) / len(first) < 0.65


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tier": "Strong"},
            r"a\.jsonl.*expected rows whose 'tier' is 'strong', found 'weak', 'Strong'",
        ),
        ({"gold": "good"}, r"a\.jsonl:\d+.*gold.*finite number"),
        ({"gold": None}, r"a\.jsonl:\d+.*gold"),
        ({"gold": 0.5}, r"no two responses of 'strong' to one prompt differ in 'gold'"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, change: dict, message: str) -> None:
    with gzip.open(write_alpaca(tmp_path / "all.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row | change if row["tier"] == "strong" else row for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    with pytest.raises((DataError, FormatError), match=message):
        SHIFTS["alpaca"](SourceSettings(data=str(tmp_path / "a.jsonl")), 0)


def test_gsm8k_after_so_many_steps(tmp_path: Path) -> None:
    rows = [
        {"policy": policy, "question": f"q{q}", "completion": f"{policy} {q} {r}", "pred_ok": r > 2}
        for q in range(20)
        for policy in ("base", "step-200", "step-500")
        for r in range(6)
    ]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    source = SourceSettings(data=str(tmp_path / "g.jsonl"))
    for name, step in (("gsm8k", "step-500"), ("gsm8k-200", "step-200")):
        shift = SHIFTS[name](source, 0)
        assert shift.name == name
        assert all(pair.chosen.startswith("base") for pair in shift.pairs)
        assert all(pair.chosen.startswith(step) for pair in shift.test_shifted)
        assert {response.split()[0] for g in shift.groups for response in g.responses} == {step}


def test_only_files_of_a_source_are_hashed(tmp_path: Path) -> None:
    file = write_alpaca(tmp_path / "a.jsonl.gz")
    found = digest_source(SourceSettings(data=str(file), arm="plain", round=2))
    assert (found["arm"], found["round"], found["groups"]) == ("plain", 2, None)
    assert found["data"] not in (None, str(file))


def gold_of(response: str) -> int:
    _, prompt, number = response.split()
    return (int(number) * 7 + int(prompt)) % 5


def test_own_files_without_labels_of_the_shifted_side(tmp_path: Path) -> None:
    pairs = [PreferencePair(f"p{n}", " good", f" bad {n}") for n in range(20)]
    save_preferences(tmp_path / "pairs.jsonl", pairs)
    groups = [ResponseGroup(f"p{n}", (" x", " y")) for n in range(30)]
    save_groups(tmp_path / "groups.jsonl", groups)
    source = SourceSettings(
        preferences=str(tmp_path / "pairs.jsonl"), groups=str(tmp_path / "groups.jsonl")
    )
    shift = SHIFTS["files"](source, 0)
    train, test = prompts_of(shift)
    assert not train & test
    assert shift.test_shifted == shift.shifted_labels == ()
    assert len(shift.groups) == 30 - len(test)
    with pytest.raises(ConfigError, match="needs `preferences`"):
        SHIFTS["files"](SourceSettings(), 0)
    with pytest.raises(ConfigError, match=r"sources\.alpaca\.data=PATH"):
        SHIFTS["alpaca"](SourceSettings(), 0)


def test_one_labelled_prompt_cannot_be_split(tmp_path: Path) -> None:
    pairs = [PreferencePair(f"p{n}", "a", "b") for n in range(4)]
    save_preferences(tmp_path / "pairs.jsonl", pairs)
    save_preferences(tmp_path / "shifted.jsonl", pairs[:1])
    save_groups(tmp_path / "groups.jsonl", [ResponseGroup("p9", ("a", "b"))])
    source = SourceSettings(
        preferences=str(tmp_path / "pairs.jsonl"),
        groups=str(tmp_path / "groups.jsonl"),
        preferences_shifted=str(tmp_path / "shifted.jsonl"),
    )
    with pytest.raises(EmptySetError, match="labelled shifted pairs are all of one prompt"):
        SHIFTS["files"](source, 0)


def test_joined_shifts_name_the_source_of_each_group(tmp_path: Path) -> None:
    first = SHIFTS["alpaca"](
        SourceSettings(data=str(write_alpaca(tmp_path / "alpaca.jsonl.gz"))), 0
    )
    second = replace(first, name="other", pairs=first.pairs[:3], groups=first.groups[:2])
    joined = join_shifts([first, second])
    assert joined.name == "alpaca+other"
    assert joined.pairs == (*first.pairs, *second.pairs)
    assert [g.source for g in joined.groups] == ["alpaca"] * len(first.groups) + ["other"] * 2
    assert [replace(g, source="") for g in joined.groups] == [*first.groups, *second.groups]
    assert joined.test_shifted == (*first.test_shifted, *second.test_shifted)
    features = torch.zeros(len(joined.texts), 2)
    problem = build_problem(joined, features, 0)
    # The sources follow their groups through the shuffle: its own groups have the name.
    place = {text: row for row, text in enumerate(joined.texts)}
    named = {(place[g.prompt, g.responses[0]], g.source) for g in joined.groups}
    for row, source in zip(problem.groups.tolist(), problem.sources, strict=True):
        assert (row[0], source) in named


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("alpaca", "alpaca_eval_policy_shift.jsonl.gz"),
        ("gsm8k", "gsm8k_policy_shift.jsonl.gz"),
        ("hh", "."),
    ],
)
def test_real_shifts(shared: Path, name: str, data: str) -> None:
    shift = SHIFTS[name](SourceSettings(data=str(shared / "data" / data)), 0)
    train, test = prompts_of(shift)
    assert not train & test
    for part in (shift.pairs, shift.groups, shift.test_original, shift.test_shifted):
        assert len(part) >= 30
