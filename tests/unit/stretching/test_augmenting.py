# SPDX-License-Identifier: Apache-2.0
"""Made rows: parents are kept, draws repeat, no row is a pair that is there."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.data.derived import group_id, pair_id
from metarm.errors import ConfigError, EmptySetError
from metarm.schema import Message, PreferencePair, ResponseGroup
from metarm.stretching.augmenting import KINDS, Material, augment, check_side_swap

WORDS = ("Yes", "no.", "Well,", "it is", "a **bold** one!", "- first", "and then", "the end.")
RESPONSES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@st.composite
def materials(draw) -> Material:
    prompts = draw(
        st.lists(
            st.text("abcd ", min_size=1).filter(str.strip), min_size=2, max_size=6, unique=True
        )
    )
    pairs, groups = [], []
    for number, prompt in enumerate(prompts):
        text = (Message("user", prompt),) if number % 2 else prompt
        for _ in range(draw(st.integers(1, 3))):
            chosen, rejected = draw(RESPONSES), draw(RESPONSES)
            if chosen != rejected:
                pairs.append(PreferencePair(text, chosen, rejected))
        groups.append(ResponseGroup(text, (draw(RESPONSES), draw(RESPONSES) + "x", "z")))
    return Material(tuple(pairs), tuple(groups), tuple(groups), tuple(reversed(groups)),
                    seed=draw(st.integers(0, 3)))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(materials(), st.integers(1, 4))
def test_every_kind_keeps_its_promises(material: Material, most: int) -> None:
    parents = {pair_id(pair) for pair in material.pairs}
    parents |= {group_id(group) for group in (*material.groups, *material.weaker)}
    there = {(p.prompt, *sorted((p.chosen, p.rejected))) for p in material.pairs}
    for name in KINDS:
        try:
            made = augment(material, [name], per_prompt=most)
        except (ConfigError, EmptySetError):
            continue
        assert made == augment(material, [name], per_prompt=most)
        assert made.counts == {name: len(made.rows)}
        keys = [(r.prompt, *sorted((r.chosen, r.rejected))) for r in made.rows]
        assert len(set(keys)) == len(keys)
        assert there.isdisjoint(keys)
        for row in made.rows:
            assert row.source == name
            assert set(row.parent_id.split("+")) <= parents
            assert row.chosen != row.rejected
            assert row.prompt in {pair.prompt for pair in material.pairs} | {
                group.prompt for group in material.groups
            }
        prompts = [row.prompt for row in made.rows]
        assert max(map(prompts.count, prompts)) <= most


PAIRS = tuple(
    PreferencePair(f"Tell me about {n}.", f"It is {n}. Truly it is so. I have seen it, word by "
                   f"word, number {n}.", f"No idea {n}.")
    for n in range(12)
)  # fmt: skip


def test_off_topic_responses_are_of_other_prompts_and_named_as_parents() -> None:
    of = {side: pair for pair in PAIRS for side in (pair.chosen, pair.rejected)}
    for row in augment(Material(PAIRS), ["cross-prompt"], per_prompt=3).rows:
        own, other = of[row.chosen], of[row.rejected]
        assert row.prompt == own.prompt != other.prompt
        assert row.chosen == own.chosen
        assert row.p is None
        assert row.parent_id == f"{pair_id(own)}+{pair_id(other)}"
    for row in augment(Material(PAIRS), ["neutral"]).rows:
        assert row.p == 0.5
        assert row.prompt not in {of[row.chosen].prompt, of[row.rejected].prompt}


def test_a_pair_less_leaves_most_rows_as_they_are() -> None:
    """Draws are by hash, not by place: neighbouring training sets share their rows."""
    whole = augment(Material(PAIRS), ["cross-prompt"]).rows
    fewer = augment(Material(PAIRS[:-1]), ["cross-prompt"]).rows
    gone = PAIRS[-1].prompt, PAIRS[-1].chosen, PAIRS[-1].rejected
    expected = [row for row in whole if not {row.prompt, row.chosen, row.rejected} & {*gone}]
    assert len(expected) > len(whole) / 2
    assert len({*expected} & {*fewer}) >= 0.75 * len(expected)
    assert set(augment(Material(PAIRS, seed=1), ["cross-prompt"]).rows) != set(whole)


def test_edits_change_the_layout_and_cuts_keep_the_beginning() -> None:
    for row in augment(Material(PAIRS), ["format-only"]).rows:
        marks = str.maketrans("", "", "-*#\n ")
        plain = row.rejected.removeprefix("## Answer").translate(marks)
        assert plain == row.chosen.translate(marks)
        assert row.p == 0.5
    for row in augment(Material(PAIRS), ["truncated"]).rows:
        assert row.chosen.startswith(row.rejected)
        assert 0.3 < len(row.rejected) / len(row.chosen) < 0.7
        assert row.p == 0.75


def test_the_stronger_policy_is_above_the_weaker() -> None:
    strong = tuple(ResponseGroup(p.prompt, (p.chosen, "b")) for p in PAIRS)
    weak = tuple(ResponseGroup(p.prompt.upper(), ("c", "d", "e")) for p in PAIRS[:3])
    rows = augment(Material(stronger=strong, weaker=weak), ["stronger-weaker"]).rows
    assert [(r.chosen, r.rejected) for r in rows[:2]] == [(PAIRS[0].chosen, "c"), ("b", "d")]
    assert {row.p for row in rows} == {0.8}
    assert len(rows) == 6


def test_a_prompt_that_stands_in_several_groups_is_one_prompt() -> None:
    """`per_prompt` holds for it, and no group of it is left out."""
    parts = [ResponseGroup("p", (f"{n} good", f"{n} bad")) for n in range(3)]
    others = [ResponseGroup(f"other {n}", (f"text {n}",)) for n in range(9)]
    found = augment(Material(groups=(*parts, *others)), ["cross-prompt-policy"], per_prompt=2).rows
    assert len([row for row in found if row.prompt == "p"]) == 2
    strong = tuple(ResponseGroup("p", (f"strong {n}",)) for n in range(3))
    weak = tuple(ResponseGroup(name, (f"weak {n}",)) for n, name in enumerate(("p", "P ", "p")))
    rows = augment(Material(stronger=strong, weaker=weak), ["stronger-weaker"], per_prompt=9).rows
    # Groups of the same words in other cases stand behind those of the prompt as it is written.
    assert [(row.chosen, row.rejected) for row in rows] == [
        ("strong 0", "weak 0"), ("strong 1", "weak 2"), ("strong 2", "weak 1"),
    ]  # fmt: skip
    assert rows[1].parent_id == f"{group_id(strong[1])}+{group_id(weak[2])}"
    few = augment(Material(stronger=strong, weaker=weak), ["stronger-weaker"], per_prompt=2).rows
    assert few == rows[:2]


def test_derived_rows_are_no_parents() -> None:
    made = replace(PAIRS[0], prompt="made", source="neutral", parent_id="x")
    rows = augment(Material((*PAIRS, made)), ["cross-prompt", "truncated"]).rows
    assert all(row.prompt != "made" for row in rows)


def test_what_cannot_be_made_is_refused() -> None:
    for kinds, words in (
        (["neutrl"], "did you mean 'neutral'"),
        (["side-swap"], "it is a check"),
        (["cross-prompt-policy"], "made from groups: give --groups"),
        (["stronger-weaker"], "stronger and weaker"),
        (["parafrase"], "did you mean 'paraphrase'"),
    ):
        with pytest.raises(ConfigError, match=words):
            augment(Material(PAIRS), kinds)
    with pytest.raises(EmptySetError, match="gave no row: there are too few prompts"):
        augment(Material(PAIRS[:1]), ["cross-prompt"])
    strong, weak = (ResponseGroup(prompt, (" a",)) for prompt in ("p", "q"))
    for other in (weak, strong):
        with pytest.raises(EmptySetError, match="no prompt has responses of both policies"):
            augment(Material(stronger=(strong,), weaker=(other,)), ["stronger-weaker"])


def test_side_swap_is_a_check_that_a_score_of_company_fails() -> None:
    def alone(prompts, responses):
        return [float(len(text)) for text in responses]

    def beside(prompts, responses):
        return [float(len(text)) + 0.1 * place for place, text in enumerate(responses)]

    assert check_side_swap(alone, PAIRS) == 0.0
    assert check_side_swap(beside, PAIRS) > 0.05
    with pytest.raises(EmptySetError):
        check_side_swap(alone, [])
