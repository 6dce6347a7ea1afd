# SPDX-License-Identifier: Apache-2.0
"""Random pairs of a round: none that is labelled already, whichever side was named first."""

from pathlib import Path
from types import SimpleNamespace

from metarm.data.meta_sets import save_groups
from metarm.data.preferences import pair_key, save_preferences
from metarm.round_labels.stages import _drawn
from metarm.schema import RANDOM, PreferencePair, ResponseGroup


def keys(pairs) -> set:
    """What the pairs are, whichever side is named first."""
    return {
        pair_key(pair.prompt, pair.chosen, pair.rejected)
        if isinstance(pair, PreferencePair)
        else pair_key(pair.prompt, pair.first, pair.second)
        for pair in pairs
    }


def test_a_labelled_pair_is_not_drawn_again(tmp_path: Path) -> None:
    groups = [ResponseGroup(f"p{n}", (" a", " b", " c")) for n in range(4)]
    save_groups(tmp_path / "groups.jsonl", groups)
    original = [PreferencePair("p0", " b", " a"), PreferencePair("P0 ", " a", " c")]
    bought = [PreferencePair("p1", " c", " b"), PreferencePair("p2", " a", " b")]
    save_preferences(tmp_path / "labels.jsonl", bought)
    own = SimpleNamespace(labels_per_round=99, labels_from="people")
    work = SimpleNamespace(sources=SimpleNamespace(pairs=original), draw=0, own=own)
    samples = SimpleNamespace(folder=tmp_path)
    earlier = [SimpleNamespace(folder=tmp_path, metrics={"num_labels": 2})]
    first = _drawn(work, samples, [])
    assert keys(first).isdisjoint(keys(original))
    assert len(first) == 12 - 2
    then = _drawn(work, samples, earlier)
    assert keys(then).isdisjoint(keys([*original, *bought]))
    assert len(then) == 12 - 4
    assert {pair.chosen_by for pair in then} == {RANDOM}
