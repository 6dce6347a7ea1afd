# SPDX-License-Identifier: Apache-2.0
"""`metarm compare` on files of one's own: splits are paired, cells are kept, the page says it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from integration.made_up_shift import TINY_TRAINING, save_shift
from metarm.bench.trajectory import Trajectory
from metarm.run_folder import hold_folder
from metarm.storage import read_json

OWN = '''
def last(problem, seed):
    """Scores by one feature."""
    return problem.features[:, 0]

def short(problem, seed):
    return [0.0]
'''


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    save_shift(tmp_path)
    (tmp_path / "own_method.py").write_text(OWN, "utf-8")
    settings = TINY_TRAINING | {
        "shifts": ["files"],
        "sources": {"files": {"preferences": "pairs.jsonl", "groups": "groups.jsonl"}},
        "seeds": [0, 1],
    }
    (tmp_path / "compare.yaml").write_text(json.dumps(settings), "utf-8")
    return ["compare", "--config", "compare.yaml", "--output", "out"]


def test_cells_are_made_once_and_methods_are_added(words, metarm, tmp_path: Path) -> None:
    words.append("sources.files.preferences_shifted=shifted.jsonl")
    done = metarm(*words, "methods=[descent]")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "files, 2 splits"
    assert [line.split()[0] for line in lines[2:4]] == ["plain", "descent"]
    stages = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("stage.json")}
    assert len(stages) == 4
    again = metarm(*words, "methods=[descent, oracle, own_method:last]", "--json")
    assert again.code == 0, again.err
    assert all(path.stat().st_mtime_ns == before for path, before in stages.items())
    document = json.loads(again.out)
    assert document["num_comparisons"] == 6
    by_method = {row["method"]: row for row in document["summaries"]}
    assert list(by_method) == ["plain", "descent", "oracle", "own_method:last"]
    assert by_method["plain"]["shifted_change"]["value"] == 0
    shifted = {name: row["shifted"]["value"] for name, row in by_method.items()}
    if by_method["descent"]["gap_recovered"] is not None:
        share = shifted["descent"] - shifted["plain"]
        share /= shifted["oracle"] - shifted["plain"]
        assert by_method["descent"]["gap_recovered"] == pytest.approx(share)
    splits = [
        read_json(tmp_path / f"out/files/seed_0/{method}/cell.json")["shifted"]["prompts"]
        for method in ("plain", "descent", "oracle")
    ]
    assert splits[0] == splits[1] == splits[2]
    page = (tmp_path / "out/compare.html").read_text("utf-8")
    assert "own_method:last" in page
    assert page.count("data:image/svg+xml") == 2
    assert "http://" not in page
    assert "<script" not in page


def test_plain_is_trained_once_and_kept(words, metarm, tmp_path: Path) -> None:
    """What a method is compared with is read where its own cell is there already."""
    assert metarm(*words, "methods=[joint]").code == 0
    place = tmp_path / "out/files/seed_0"
    kept = Trajectory.read(place / "plain/trajectory.safetensors")
    found = []
    for scores in (kept.scores, -kept.scores):
        replace(kept, scores=scores).save(place / "plain/trajectory.safetensors")
        found.append(read_json(place / "joint/cell.json"))
        shutil.rmtree(place / "joint")
        assert metarm(*words, "methods=[joint]").code == 0
    found.append(read_json(place / "joint/cell.json"))
    correlations = [cell["rank_correlation"] for cell in found]
    assert correlations[0] == correlations[1] == pytest.approx(-correlations[2])


def test_two_in_one_folder_are_refused(words, metarm, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with hold_folder(tmp_path / "out"):
        assert "is in use by another process" in metarm(*words, "methods=[joint]").error
    assert metarm(*words, "methods=[joint]").code == 0


def test_without_shifted_labels_only_label_free_figures_are_shown(
    words, metarm, tmp_path: Path
) -> None:
    done = metarm(*words, "methods=[joint]")
    assert done.code == 0, done.err
    page = (tmp_path / "out/compare.html").read_text("utf-8")
    assert "Nobody has labelled shifted pairs here" in page
    error = metarm(*words, "methods=[oracle]").error
    assert "oracle uses 1 labelled shifted pairs" in error
    assert "{'files': 0}" in error
    done = metarm(*words)
    assert done.code == 0, done.err
    assert "oracle" not in done.out
    assert "domain-invariant" in done.out


def test_another_method_of_the_same_name_is_not_taken_for_it(words, metarm, tmp_path: Path) -> None:
    assert metarm(*words, "methods=[own_method:last]").code == 0
    (tmp_path / "own_method.py").write_text(OWN.replace("[:, 0]", "[:, 1]"), "utf-8")
    assert "was finished with other settings" in metarm(*words, "methods=[own_method:last]").error


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["top", "lora", "all"])
def test_a_pretrained_model_can_be_trained_itself(words, metarm, tmp_path: Path, trained) -> None:
    words.append("sources.files.preferences_shifted=shifted.jsonl")
    settings = [f"trained={trained}", "top_layers=1", "lora_r=2", "max_pairs=20", "seeds=[0]"]
    done = metarm(*words, *settings, "methods=[joint-auto]", "allow_unequal_budgets=true")
    assert done.code == 0, done.err
    cell = read_json(tmp_path / "out/files/seed_0/joint-auto/cell.json")
    plain = read_json(tmp_path / "out/files/seed_0/plain/cell.json")
    assert cell["forward"] > 2 * plain["forward"]
    assert cell["curve"] != plain["curve"] or cell["difference"] != plain["difference"]
    assert not (tmp_path / "out/features").exists(), "nothing reads frozen features"


@pytest.mark.slow
def test_training_can_start_from_a_score_fitted_on_frozen_states(
    words, metarm, tmp_path: Path
) -> None:
    words.append("sources.files.preferences_shifted=shifted.jsonl")
    settings = ["trained=all", "seeds=[0]", "methods=[plain]", "head.num_steps=2"]
    curves = []
    for first in ("true", "false"):
        out = tmp_path / first
        words[words.index("--output") + 1] = str(out)
        done = metarm(*words, *settings, f"head.fit_score_first={first}")
        assert done.code == 0, done.err
        curves.append(read_json(out / "files/seed_0/plain/cell.json")["curve"])
    assert curves[0] != curves[1]
    assert (tmp_path / "true/features").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods=[descnt]", "unknown method 'descnt': did you mean 'descent'"),
        ("methods=[ensemble-mean]", "their budgets differ. Set allow_unequal_budgets=true"),
        ("methods=[west-of-n]", "their budgets differ"),
        ("seeds=[0, 0]", "named once only"),
        ("shifts=[alpacca]", "did you mean 'alpaca'"),
        ("shifts=[alpaca]", "sources.alpaca.data=PATH"),
        ("sources.files.groupes=x", "unknown key `sources.files.groupes`: did you mean 'groups'"),
        ("backbone=absent", "there is no such folder"),
        ("methods=[own_method:short]", "one for each row of problem.features, got (1, 1)"),
        ("methods=[own_method:absent]", "has no function 'absent'"),
        ("head.num_steps=0", "head.num_steps"),
    ],
)
def test_nonsense_is_one_line(words, metarm, word: str, message: str) -> None:
    assert message in metarm(*words, "methods=[plain]", word).error


def test_exact_is_refused_where_attention_has_no_second_derivative(words, metarm) -> None:
    done = metarm(*words, "methods=[descent+exact]", "trained=lora")
    assert "use finite-difference in place of exact" in done.error


def test_other_settings_are_refused_in_a_finished_folder(words, metarm) -> None:
    assert metarm(*words, "methods=[plain]").code == 0
    error = metarm(*words, "methods=[plain]", "head.num_steps=6").error
    assert "was finished with other settings" in error
