# SPDX-License-Identifier: Apache-2.0
"""Judge against people: agreement and kappa by hand, where they differ, and each kind's trust."""

import numpy as np
import pytest

from metarm.annotators.agreement import cohens_kappa
from metarm.annotators.fitting import fit_annotators
from metarm.annotators.kinds import compare_kinds, reliability_of_kinds
from metarm.annotators.label_data import LabelData
from metarm.annotators.report import build_report
from metarm.errors import EmptySetError
from metarm.labels.votes import LabelPair, Vote
from metarm.metrics import mean_estimate
from unit.annotators.crowds import draw_crowd

PAIRS = [
    LabelPair(f"prompt {place}", "long " * (1 + place % 3), "short " * 2, f"round {place % 2}")
    for place in range(12)
]
BY_ID = {pair.id: pair for pair in PAIRS}
KINDS = {"judge": "model"}


def votes_of(name, choices):
    return [Vote(pair.id, name, choice) for pair, choice in zip(PAIRS, choices, strict=False)]


def test_one_vote_of_each_kind_is_cohens():
    first = ["first", "second", "tie"] * 4
    second = ["first", "second", "second", "first", "first", "tie"] * 2
    found = compare_kinds([*votes_of("judge", first), *votes_of("ann", second)], KINDS, BY_ID)
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert found.agreement.value == pytest.approx(same)
    assert found.kappa.value == pytest.approx(cohens_kappa(first, second), abs=1e-12)
    assert found.kappa.low <= found.kappa.value <= found.kappa.high
    assert found.agreement.count == len(PAIRS)
    opposite = [
        pair.id
        for pair, a, b in zip(PAIRS, first, second, strict=True)
        if {a, b} == {"first", "second"}
    ]
    assert set(found.disputed) == set(opposite)


def test_a_pair_counts_once_however_many_votes_it_has():
    people = [vote for name in "abc" for vote in votes_of(name, ["first"] * 6 + ["second"] * 6)]
    people += [Vote(PAIRS[0].id, f"more {n}", "second") for n in range(3)]
    judge = votes_of("judge", ["first"] * 12)
    found = compare_kinds([*people, *judge], KINDS, BY_ID)
    assert found.agreement.value == pytest.approx((0.5 + 5) / 12)
    # By chance, one half: which response stands first is chance.
    assert found.kappa.value == pytest.approx((5.5 / 12 - 0.5) / 0.5)


def test_intervals_take_the_pairs_of_a_prompt_together():
    """Ten pairs a prompt, all alike, are as one pair of each."""
    pairs = [LabelPair(f"q{n // 10}", f"a{n}", f"b{n}") for n in range(80)]
    votes = [Vote(pair.id, "ann", "first") for pair in pairs]
    votes += [
        Vote(pair.id, "judge", "first" if n // 10 < 5 else "second") for n, pair in enumerate(pairs)
    ]
    found = compare_kinds(votes, KINDS, {pair.id: pair for pair in pairs})
    alone = mean_estimate([1.0] * 5 + [0.0] * 3)
    assert (found.agreement.low, found.agreement.high) == pytest.approx(
        (max(0.0, alone.low), min(1.0, alone.high))
    )
    assert found.kappa.high - found.kappa.low > 0.8


def test_known_answers_and_picked_pairs_tell_nothing_of_kinds():
    """Of 40 random pairs they agree on half; on known and on picked ones always, or never."""
    pairs = [
        LabelPair(f"q{n}", f"{'a' * (n % 3)}a", "aa", chosen_by="random" if n < 60 else "near-tie")
        for n in range(100)
    ]
    by_id = {pair.id: pair for pair in pairs}
    said = ["first" if n < 20 or 40 <= n < 60 else "second" for n in range(100)]
    votes = [Vote(pair.id, "ann", "first") for pair in pairs]
    votes += [Vote(pair.id, "judge", say) for pair, say in zip(pairs, said, strict=True)]
    gold = {pair.id: "first" for pair in pairs[40:60]}
    found = compare_kinds(votes, KINDS, by_id, gold=gold)
    drawn = {pair.id for pair in pairs[:40]}
    alone = compare_kinds([vote for vote in votes if vote.pair in drawn], KINDS, by_id)
    assert found == alone
    assert (found.agreement.value, found.agreement.count) == (0.5, 40)
    assert found.disputed
    with pytest.raises(EmptySetError, match="no strategy picked"):
        compare_kinds([vote for vote in votes if vote.pair not in drawn], KINDS, by_id, gold=gold)


def test_where_they_differ_is_told_by_slices():
    judge = ["first" if len(p.first) > len(p.second) else "second" for p in PAIRS]
    judge[0] = "second" if judge[0] == "first" else "first"
    people = ["first"] * 12
    labels = {pair.id: 0.95 if place < 4 else 0.6 for place, pair in enumerate(PAIRS)}
    found = compare_kinds(
        [*votes_of("judge", judge), *votes_of("ann", people)],
        KINDS,
        BY_ID,
        labels=labels,
        slices={"place": lambda pair: "early" if pair.prompt[-1] in "0123" else "late"},
    )
    by = {}
    for one in found.slices:
        by.setdefault(one.by, {})[one.value] = one
    assert set(by) == {"length", "certainty", "source", "place"}
    assert {value: len(one.pairs) for value, one in by["certainty"].items()} == {
        "certain": 4,
        "uncertain": 8,
    }
    for parts in by.values():
        assert sorted(p for one in parts.values() for p in one.pairs) == sorted(BY_ID)
        mean = sum(one.agreement.value * len(one.pairs) for one in parts.values()) / 12
        assert mean == pytest.approx(found.agreement.value)
    longer, people_longer = found.longer_fractions
    assert longer.value == pytest.approx(11 / 12)
    lengths = [len(p.first) - len(p.second) for p in PAIRS]
    told = [gap > 0 for gap in lengths if gap]
    assert people_longer.value == pytest.approx(np.mean(told))


def test_kinds_without_a_common_pair_are_refused():
    votes = [Vote(PAIRS[0].id, "judge", "first"), Vote(PAIRS[1].id, "ann", "first")]
    with pytest.raises(EmptySetError, match="both vote"):
        compare_kinds(votes, KINDS, BY_ID)


def test_each_kind_is_as_reliable_as_its_annotators():
    crowd = draw_crowd((0.9, 0.9, "random"), num_pairs=200, votes_per_pair=2)
    belief = fit_annotators(crowd.votes, crowd.features)
    kinds = {"w2": "model"}
    people, model = reliability_of_kinds(belief, kinds)
    if people.kind == "model":
        people, model = model, people
    own = [one for one in belief.annotators if one.name != "w2"]
    counts = [one.num_votes for one in own]
    mean = np.average([one.reliability.value for one in own], weights=counts)
    assert people.reliability.value == pytest.approx(mean)
    assert people.reliability.low < mean < people.reliability.high
    alone = belief.annotator("w2")
    assert model.reliability == pytest.approx(alone.reliability, abs=1e-9)
    assert (set(people.names), model.names, people.num_votes) == (
        {"w0", "w1"},
        ("w2",),
        sum(counts),
    )


def test_a_kind_of_whom_nothing_tells_has_no_reliability():
    crowd = draw_crowd(("good",) * 3, num_pairs=60, votes_per_pair=3)
    judge = [Vote(f"own {n}", "judge", "first") for n in range(40)]
    alone = [Vote(f"own, too, {n}", "cid", "first") for n in range(40)]
    belief = fit_annotators([*crowd.votes, *judge, *alone], model="dawid-skene")
    people, model = reliability_of_kinds(belief, {"judge": "model"})
    assert (people.kind, model.kind, model.num_votes) == ("person", "model", 40)
    assert str(model.reliability) == "cannot be told"
    told = [one for one in belief.annotators if one.name in ("w0", "w1", "w2")]
    mean = np.average([one.reliability.value for one in told])
    assert people.reliability.value == pytest.approx(mean)
    assert people.num_votes == 3 * 60 + 40


def test_kinds_that_share_nothing_but_picked_pairs_are_not_compared():
    pairs = [LabelPair(f"q{n}", "a", "b", chosen_by="near-tie") for n in range(3)]
    votes = [Vote(pair.id, name, "first") for pair in pairs for name in ("ann", "judge")]
    data = LabelData(tuple(votes), {pair.id: pair for pair in pairs}, {}, KINDS)
    report = build_report(data)
    assert report.comparisons == ()
    assert report.num_picked == 3
