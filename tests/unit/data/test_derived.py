# SPDX-License-Identifier: Apache-2.0
"""Rows made from others are trained on, and neither they nor their parents are evaluated on."""

from dataclasses import replace

import pytest

from metarm.data.derived import (
    check_apart,
    check_evaluation,
    group_id,
    pair_id,
    split_labelled,
    without_kin_of,
)
from metarm.data.preferences import load_preferences, save_preferences
from metarm.errors import DataError
from metarm.labels.votes import LabelPair
from metarm.schema import PreferencePair, ResponseGroup

PAIRS = [PreferencePair(f"prompt {n}", f" good {n}", f" bad {n}") for n in range(20)]
TURNED = PreferencePair(PAIRS[0].prompt, PAIRS[0].rejected, PAIRS[0].chosen)


def child(parent: PreferencePair, **changes) -> PreferencePair:
    """A neutral row of another prompt."""
    row = PreferencePair("other", " a", " b", p=0.5, source="neutral", parent_id=pair_id(parent))
    return replace(row, **changes)


def test_a_pair_has_the_id_that_the_label_store_gives_it() -> None:
    pair = PAIRS[3]
    assert pair_id(pair) == LabelPair(pair.prompt, pair.chosen, pair.rejected).id
    assert pair_id(TURNED) != pair_id(PAIRS[0])
    groups = [ResponseGroup("x", (" a", " b")), ResponseGroup("x", (" b", " a"))]
    assert len({*map(group_id, groups), pair_id(PreferencePair("x", " a", " b"))}) == 3


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (child(PAIRS[0]), "a parent"),
        (child(TURNED), "a parent"),
        (child(PAIRS[5], parent_id=f"{pair_id(PAIRS[5])}+{pair_id(PAIRS[0])}"), "a parent"),
        (child(PAIRS[5], prompt="PROMPT  0"), "the prompt"),
        (replace(TURNED, p=0.9, source="pseudo-label", parent_id="g"), "the pair itself"),
    ],
    ids=["parent", "turned parent", "second parent", "prompt", "itself"],
)
def test_kin_of_what_is_held_out_is_refused_and_left_out(row: PreferencePair, what: str) -> None:
    with pytest.raises(DataError, match=f"held-out: .* got {what} of the row"):
        check_apart([*PAIRS[1:], row], PAIRS[:1], "held-out")
    assert without_kin_of([*PAIRS[1:], row], PAIRS[:1]) == PAIRS[1:]
    check_apart([*PAIRS[1:], row], PAIRS[10:11], "held-out")
    assert without_kin_of([row], PAIRS[10:11]) == [row]


def test_a_derived_row_is_evaluated_on_nowhere() -> None:
    with pytest.raises(DataError, match=r"in place 3 .source 'neutral'"):
        check_evaluation([*PAIRS[:2], child(PAIRS[0])], "file")
    with pytest.raises(DataError, match="nobody has judged it"):
        check_apart(PAIRS[:2], [child(PAIRS[9])], "file")
    check_evaluation(PAIRS, "file")


def test_labelled_pairs_alone_are_held_out_and_take_their_kin_out_of_training() -> None:
    rows = [child(pair, prompt=f"made {n}") for n, pair in enumerate(PAIRS)]
    train, test = split_labelled([*rows, *PAIRS], 0.3, 0)
    assert len(test) == 6
    assert not any(pair.parent_id for pair in test)
    parents = {row.parent_id for row in train if row.parent_id}
    assert parents == {pair_id(pair) for pair in train if not pair.parent_id}
    assert len(train) == 28
    check_apart(train, test, "test")


def test_descent_survives_a_file_and_a_source_alone_is_no_descent(tmp_path) -> None:
    rows = [child(PAIRS[0]), replace(PAIRS[1], source="evol_instruct")]
    save_preferences(tmp_path / "rows.jsonl", rows)
    loaded = load_preferences(tmp_path / "rows.jsonl").pairs
    assert loaded == (rows[0], PAIRS[1])
    (tmp_path / "theirs.jsonl").write_text(
        '{"prompt": "x", "chosen": "a", "rejected": "b", "source": "evol_instruct"}\n'
    )
    assert load_preferences(tmp_path / "theirs.jsonl").pairs == (PreferencePair("x", "a", "b"),)
