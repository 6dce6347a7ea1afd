# SPDX-License-Identifier: Apache-2.0
"""Metrics against closed forms, and their intervals against simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metarm import metrics
from metarm.errors import DataError, EmptySetError, ShapeError

# Count of simulated sets; coverage must be within 4 binomial standard errors of 95 %.
TRIALS = 1500
ERROR = 4 * math.sqrt(0.95 * 0.05 / TRIALS)


def covered(estimates, truth):
    return np.mean([one.low <= truth <= one.high for one in estimates])


def test_mean_interval_is_students():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    ours = metrics.mean_estimate(values)
    low, high = stats.t.interval(0.95, df=3, loc=values.mean(), scale=stats.sem(values))
    assert (ours.value, ours.count) == (4.0, 4)
    assert ours.low == pytest.approx(low, abs=1e-12)
    assert ours.high == pytest.approx(high, abs=1e-12)


def test_mean_interval_counts_clusters_by_hand():
    # Residual sums by cluster: a (1-3)+(2-3) = -3, b 0, c 3. variance = 3/2 * 18 / 25.
    ours = metrics.mean_estimate([1.0, 2.0, 3.0, 4.0, 5.0], ["a", "a", "b", "c", "c"])
    half = stats.t.ppf(0.975, df=2) * math.sqrt(1.5 * 18 / 25)
    assert (ours.value, ours.count) == (3.0, 3)
    assert ours.high - 3.0 == pytest.approx(half, abs=1e-12)
    assert 3.0 - ours.low == pytest.approx(half, abs=1e-12)


def test_repeating_every_value_adds_no_knowledge():
    values = np.array([0.1, 0.9, 0.4, 0.7])
    once = metrics.mean_estimate(values)
    thrice = metrics.mean_estimate(np.repeat(values, 3), np.repeat(np.arange(4), 3))
    assert (thrice.low, thrice.high, thrice.count) == pytest.approx((once.low, once.high, 4))


def test_one_cluster_has_no_interval():
    ours = metrics.mean_estimate([1.0, 3.0], ["a", "a"])
    assert (ours.low, ours.value, ours.high, ours.count) == (2.0, 2.0, 2.0, 1)
    accuracy = metrics.accuracy_estimate([1, 0], ["a", "a"])
    assert (accuracy.low, accuracy.high) == (0.0, 1.0)


def test_mean_interval_covers_the_truth_under_clusters():
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 4)
    drawn = [
        np.repeat(generator.normal(0, 1, 12), 4) + generator.normal(0, 0.5, 48)
        for _ in range(TRIALS)
    ]
    robust = covered([metrics.mean_estimate(values, clusters) for values in drawn], 0.0)
    naive = covered([metrics.mean_estimate(values) for values in drawn], 0.0)
    assert abs(robust - 0.95) < ERROR
    assert naive < 0.75


def test_wilson_interval_in_closed_form():
    n, p, z = 20, 0.85, stats.norm.ppf(0.975)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ours = metrics.accuracy_estimate([1] * 17 + [0] * 3)
    assert (ours.value, ours.count) == (0.85, 20)
    assert (ours.low, ours.high) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_a_cluster_each_is_the_same_as_no_clusters():
    correct = [1, 1, 0, 1, 0, 1]
    assert metrics.accuracy_estimate(correct, list("abcdef")) == metrics.accuracy_estimate(correct)


@pytest.mark.parametrize("value", [0, 1])
def test_unanimous_answers_claim_no_certainty(value):
    ours = metrics.accuracy_estimate([value] * 30, np.repeat(np.arange(10), 3))
    as_ten = metrics.accuracy_estimate([value] * 10)
    assert (ours.low, ours.high, ours.count) == (as_ten.low, as_ten.high, 10)
    assert ours.high - ours.low > 0.2


def test_accuracy_with_ties_uses_the_t_interval_clipped():
    values = [1, 1, 1, 1, 1, 1, 0.5]
    mean, ours = metrics.mean_estimate(values), metrics.accuracy_estimate(values)
    assert mean.high > 1.0
    assert (ours.low, ours.high) == (mean.low, 1.0)


@pytest.mark.parametrize("truth", [0.6, 0.9])
def test_accuracy_interval_covers_the_truth(truth):
    generator = np.random.default_rng(1)
    # Wilson's coverage waves around 95 % with n and p: these lie in the exact band for n = 150.
    estimates = [metrics.accuracy_estimate(generator.random(150) < truth) for _ in range(TRIALS)]
    counts = np.arange(151)
    exact = sum(
        stats.binom.pmf(count, 150, truth)
        for count in counts
        if (e := metrics.accuracy_estimate(np.arange(150) < count)).low <= truth <= e.high
    )
    assert abs(exact - 0.95) < 0.015
    assert abs(covered(estimates, truth) - exact) < ERROR


def test_accuracy_interval_covers_the_truth_under_clusters():
    generator = np.random.default_rng(2)
    clusters = np.repeat(np.arange(25), 6)
    robust, naive = [], []
    for _ in range(TRIALS):
        chance = np.repeat(generator.beta(2.1, 0.9, 25), 6)
        correct = generator.random(150) < chance
        robust.append(metrics.accuracy_estimate(correct, clusters))
        naive.append(metrics.accuracy_estimate(correct))
    assert abs(covered(robust, 0.7) - 0.95) < 0.02
    assert covered(naive, 0.7) < 0.9


def test_pair_accuracy_by_hand():
    values = metrics.pair_accuracy([2.0, -2.0, 0.0, 1.0, -1.0], [1.0, 1.0, -3.0, 0.0, -2.0])
    assert values.tolist() == [1.0, 0.0, 0.5, 1.0]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
def test_turning_the_score_turns_the_accuracy(pairs):
    gaps, gold = np.array(pairs, dtype=float).T
    values = metrics.pair_accuracy(gaps, gold)
    assert np.array_equal(metrics.pair_accuracy(-gaps, gold), 1 - values)
    assert np.array_equal(metrics.pair_accuracy(-gaps, -gold), values)
    assert len(values) == np.count_nonzero(gold)


def test_length_balance_exposes_a_score_that_counts_tokens():
    chosen, rejected = np.array([9, 8, 7, 6, 2, 4]), np.array([3, 3, 3, 3, 5, 4])
    by_length = np.where(chosen == rejected, 0.5, chosen > rejected)
    assert by_length.mean() > 0.7
    assert metrics.length_balanced_accuracy(by_length, chosen, rejected) == 0.5
    assert metrics.length_balanced_accuracy([1, 1, 0, 0, 1, 0], chosen, rejected) == 0.75


def test_length_balance_needs_both_sides():
    assert metrics.length_balanced_accuracy([1, 1], [5, 5], [2, 5]) is None


def test_within_group_gaps_are_all_pairs():
    scores = np.random.default_rng(3).normal(size=(4, 5))
    expected = [[row[i] - row[j] for i, j in itertools.combinations(range(5), 2)] for row in scores]
    assert np.array_equal(metrics.within_group_gaps(scores), expected)
    assert metrics.within_group_gaps([[1.0], [2.0]]).shape == (2, 0)


def test_group_spearman_is_scipys_row_by_row():
    generator = np.random.default_rng(4)
    first = generator.integers(0, 4, size=(30, 5)).astype(float)
    second = first + generator.integers(-2, 3, size=(30, 5))
    rows = [
        stats.spearmanr(one, other).statistic
        for one, other in zip(first, second, strict=True)
        if np.ptp(one) > 0 and np.ptp(other) > 0
    ]
    assert metrics.mean_group_spearman(first, second) == pytest.approx(np.mean(rows), abs=1e-12)


def test_group_spearman_anchors():
    scores = np.random.default_rng(5).normal(size=(6, 4))
    assert metrics.mean_group_spearman(scores, np.exp(3 * scores)) == 1.0
    assert metrics.mean_group_spearman(scores, -scores) == -1.0
    # A level that differs between prompts is not order within a prompt.
    shift = np.arange(6)[:, None] * 100.0
    assert metrics.mean_group_spearman(scores + shift, -scores + shift) == -1.0
    assert metrics.mean_group_spearman(np.ones((3, 4)), scores[:3]) is None


def test_histogram_by_hand():
    histogram = metrics.gap_histogram([[-100.0, -7.9], [0.0, 2.1], [8.0, 50.0]], unit=2.0)
    assert len(histogram.edges) == 42
    assert (histogram.edges[0], histogram.edges[-1]) == (-4.0, 4.0)
    # The two left of -3.8 units, the two right of 3.8, one at 0, one at 1.05.
    assert (histogram.counts[0], histogram.counts[-1], histogram.counts[20]) == (2, 2, 1)
    assert histogram.counts[int((1.05 + 4.0) / 8.0 * 41)] == 1
    assert sum(histogram.counts) == 6


def test_histogram_is_free_of_scale():
    gaps = np.random.default_rng(6).normal(size=500)
    assert metrics.gap_histogram(gaps, 1.0) == metrics.gap_histogram(gaps * 8.0, 8.0)


def test_win_tie_lose_by_hand():
    shares = metrics.win_tie_lose([1.0, 2.0, 3.0, 0.0], [0.0, 1.9, 3.0, 5.0], tie_margin=0.2)
    assert [share.value for share in shares] == [0.25, 0.5, 0.25]
    assert shares.win == metrics.accuracy_estimate([1, 0, 0, 0])
    turned = metrics.win_tie_lose([0.0, 1.9, 3.0, 5.0], [1.0, 2.0, 3.0, 0.0], tie_margin=0.2)
    assert (turned.win, turned.tie, turned.lose) == (shares.lose, shares.tie, shares.win)


def test_kl_estimate_of_two_gaussians():
    generator = np.random.default_rng(7)
    samples = generator.normal(0.5, 1.0, 20_000)
    log_ratios = stats.norm.logpdf(samples, 0.5) - stats.norm.logpdf(samples, 0.0)
    ours = metrics.kl_estimate(log_ratios)
    assert ours.low <= 0.125 <= ours.high
    assert ours.value == pytest.approx(0.125, abs=0.015)


@pytest.mark.parametrize("n", range(1, 6))
def test_best_of_n_is_the_mean_over_all_subsets(n):
    draw = np.random.default_rng(n)
    scores, gold = draw.normal(size=(2, 3, 5))
    subsets = [list(subset) for subset in itertools.combinations(range(5), n)]
    best = [
        row_gold[subset][np.argmax(row[subset])]
        for row, row_gold in zip(scores, gold, strict=True)
        for subset in subsets
    ]
    assert metrics.best_of_n_mean(scores, gold, n) == pytest.approx(np.mean(best))
    with pytest.raises(DataError, match="from 1 to the pool's size of 5, got 6"):
        metrics.best_of_n_mean(scores, gold, 6)


def test_paired_difference_is_the_paired_t_test():
    generator = np.random.default_rng(8)
    seeds = generator.normal(0, 10, 6)
    first = seeds + 1 + generator.normal(0, 0.1, 6)
    second = seeds + generator.normal(0, 0.1, 6)
    ours = metrics.paired_difference(first, second)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (ours.low, ours.high, ours.count) == pytest.approx((low, high, 6))
    assert ours.low > 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: metrics.mean_estimate([]), EmptySetError),
        (lambda: metrics.mean_estimate([[1.0, 2.0]]), ShapeError),
        (lambda: metrics.mean_estimate([1.0, math.nan]), DataError),
        (lambda: metrics.mean_estimate([1.0, 2.0], ["a"]), ShapeError),
        (lambda: metrics.accuracy_estimate([2, 0]), DataError),
        (lambda: metrics.accuracy_estimate([-1, 1]), DataError),
        (lambda: metrics.pair_accuracy([1.0], [1.0, 2.0]), ShapeError),
        (lambda: metrics.within_group_gaps([1.0, 2.0]), ShapeError),
        (lambda: metrics.mean_group_spearman([[1.0, 2.0]], [[1.0, 2.0, 3.0]]), ShapeError),
        (lambda: metrics.gap_histogram([1.0], unit=0.0), DataError),
        (lambda: metrics.gap_histogram([1.0], unit=math.nan), DataError),
        (lambda: metrics.gap_histogram([math.inf], unit=1.0), DataError),
        (lambda: metrics.paired_difference([1.0], [1.0, 2.0]), ShapeError),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error):
    with pytest.raises(error):
        call()
