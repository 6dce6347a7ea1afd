# SPDX-License-Identifier: Apache-2.0
"""A finished run as a shift of `metarm compare`: what it was taught on, and what it became."""

from pathlib import Path

import pytest

from metarm.bench.settings import SourceSettings
from metarm.bench.shifts import SHIFTS
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups
from metarm.data.preferences import load_preferences
from metarm.errors import EmptySetError
from metarm.storage import read_json
from metarm.world.language import GoldReward, build_language

pytestmark = pytest.mark.slow


def test_both_sides_of_a_run(finished_run: Path) -> None:
    seed = finished_run / "seed_0"
    source = SourceSettings(data=str(finished_run), arm="plain")
    shift = SHIFTS["world"](source, 0)
    judged = load_groups(seed / "arms/plain/round_02/evaluation/groups.jsonl")
    responses = {(g.prompt, response) for g in judged for response in g.responses}
    train = {g.prompt for g in shift.groups} | {p.prompt for p in shift.pairs}
    train |= {p.prompt for p in shift.shifted_labels}
    test = {p.prompt for p in (*shift.test_original, *shift.test_shifted)}
    assert not train & test
    pairs = load_preferences(seed / "world/preferences.jsonl").pairs
    assert set(shift.pairs) <= set(pairs)
    assert len(shift.pairs) > 0.9 * len(pairs)
    gold = GoldReward(
        build_language(read_settings(finished_run / "config.yaml", [], RunSettings).world)
    )
    for part in (shift.test_shifted, shift.shifted_labels):
        assert part
        for pair in part:
            assert {(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)} <= responses
            assert gold.score(pair.prompt, pair.chosen) > gold.score(pair.prompt, pair.rejected)
    for group in shift.groups:
        assert {(group.prompt, response) for response in group.responses} <= responses
    # 16 prompts were judged, of which 30 % are tested on.
    assert len({p.prompt for p in shift.test_shifted}) <= 5
    assert SHIFTS["world"](source, 0) == shift
    first = SHIFTS["world"](source.model_copy(update={"round": 1}), 0)
    assert first.digest() != shift.digest()
    assert SHIFTS["world"](SourceSettings(data=str(finished_run)), 0).digest() != shift.digest()


@pytest.mark.parametrize(
    ("source", "seed", "words"),
    [({}, 3, "which has seed_0"), ({"arm": "mata"}, 0, "the arms frozen, "), ({"round": 9}, 0, "")],
)
def test_what_a_run_has_not_is_said(
    finished_run: Path, source: dict[str, object], seed: int, words: str
) -> None:
    with pytest.raises(EmptySetError, match=f"expected a finished evaluation.*{words}"):
        SHIFTS["world"](SourceSettings(data=str(finished_run), **source), seed)


def test_methods_are_compared_on_it(finished_run: Path, metarm, tmp_path: Path) -> None:
    done = metarm(
        *("compare", "--output", "out", "shifts=[world]", f"sources.world.data={finished_run}"),
        *("seeds=[0]", "methods=[oracle]", f"backbone={finished_run / 'seed_0/sft'}"),
        *("max_length=48", "head.num_steps=4", "head.measure_every=2", "head.hidden=[4]"),
    )
    assert done.code == 0, done.err
    cells = {p.parent.name for p in (tmp_path / "out/world/seed_0").glob("*/cell.json")}
    assert cells == {"plain", "oracle"}
    record = read_json(tmp_path / "out/world/seed_0/oracle/stage.json")["settings"]
    shift = SHIFTS["world"](SourceSettings(data=str(finished_run)), 0)
    assert record["split"] == shift.digest()
