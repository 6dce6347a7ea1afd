# SPDX-License-Identifier: Apache-2.0
"""Never a worse reward model: size and power by simulation, guards, decisions kept, the swap."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metarm.errors import ConfigError, DataError, FormatError, ModelError
from metarm.evaluation.champion import (
    PromotionRules,
    compare_champion,
    fewest_prompts,
    mean_length_correlation,
    non_inferiority,
)
from metarm.evaluation.champion_folder import crown, read_champion, read_decisions
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import read_json, write_json

MARGIN, ALPHA = 0.03, 0.05


def simulated(runs: int, *, prompts: int, each: int, loss: float, discordant: float, seed=0):
    """Shares of runs that hold; errors of one prompt's pairs go together."""
    draw = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(prompts), each)
    held = 0
    for _ in range(runs):
        kind = draw.random(prompts)
        worse, better = (discordant + loss) / 2, (discordant - loss) / 2
        gap = np.where(kind < worse, -1.0, np.where(kind < worse + better, 1.0, 0.0))[clusters]
        right = draw.random(clusters.size) < 0.7
        one = np.where(gap == 0, right, gap > 0).astype(float)
        other = np.where(gap == 0, right, gap < 0).astype(float)
        found = non_inferiority(one, other, list(clusters), margin=MARGIN, alpha=ALPHA)
        held += found.holds
    return held


@pytest.mark.parametrize(
    ("prompts", "each", "discordant"),
    [(100, 1, 0.03), (150, 1, 0.05), (400, 1, 0.2), (120, 4, 0.1), (300, 2, 0.3)],
)
def test_one_that_is_worse_by_the_margin_passes_at_most_as_often(prompts, each, discordant) -> None:
    runs = 600
    held = simulated(runs, prompts=prompts, each=each, loss=MARGIN, discordant=discordant)
    assert stats.binomtest(held, runs, ALPHA, "greater").pvalue > 1e-4, held / runs


def test_one_that_is_as_good_passes_nine_times_of_ten_with_the_prompts_that_are_needed() -> None:
    draw = np.random.default_rng(1)
    one, other = (draw.random(4000) < 0.7 for _ in range(2))
    first = non_inferiority(one, other, range(4000), margin=MARGIN, alpha=ALPHA)
    share = first.discordant_share
    assert first.prompts_needed == pytest.approx(
        (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) ** 2 * share / MARGIN**2, rel=0.05
    )
    held = simulated(400, prompts=first.prompts_needed, each=1, loss=0.0, discordant=share, seed=2)
    assert held / 400 == pytest.approx(0.9, abs=0.05)


def test_the_error_is_the_paired_t_tests_where_many_differ() -> None:
    draw = np.random.default_rng(3)
    one, other = ((draw.random(500) < 0.6).astype(float) for _ in range(2))
    found = non_inferiority(one, other, range(500), margin=MARGIN, alpha=ALPHA)
    paired = stats.ttest_1samp(one - other, 0.001 - MARGIN, alternative="greater")
    assert found.p_value == pytest.approx(paired.pvalue, rel=0.02)
    assert found.difference == pytest.approx((one - other).mean())


def test_with_fewer_prompts_not_even_one_that_differs_nowhere_holds() -> None:
    count = fewest_prompts(MARGIN, ALPHA)
    # Fewer than these, and of the errors that a loss of the margin means none may have shown.
    assert (1 - MARGIN) ** count <= ALPHA
    ones = np.ones(count)
    assert non_inferiority(ones, ones, range(count), margin=MARGIN, alpha=ALPHA).holds
    few = non_inferiority(ones[1:], ones[1:], range(count - 1), margin=MARGIN, alpha=ALPHA)
    assert not few.holds
    assert few.p_value > ALPHA
    # Many pairs of few prompts are few prompts.
    many = np.ones(count * 10)
    clusters = np.arange(count * 10) % 20
    assert not non_inferiority(many, many, list(clusters), margin=MARGIN, alpha=ALPHA).holds


@pytest.mark.parametrize("count", [60, 130, 250])
@pytest.mark.parametrize("discordant", [0.0301, 0.05, 0.12, 0.3])
def test_the_size_is_within_alpha_for_every_table_of_pairs(count: int, discordant: float) -> None:
    """All outcomes of one pair a prompt, each with its chance: no simulation."""
    worse, better = (discordant + MARGIN) / 2, (discordant - MARGIN) / 2
    wins, losses = (axis.ravel() for axis in np.indices((count + 1, count + 1)))
    rest = count - wins - losses
    outcomes = np.stack([wins, losses, rest], axis=1)[rest >= 0]
    chances = stats.multinomial.pmf(outcomes, count, [better, worse, 1 - discordant])
    likely = chances > 1e-6
    size = 0.0
    for (won, lost, _), chance in zip(outcomes[likely].tolist(), chances[likely], strict=True):
        gaps = np.repeat([1.0, -1.0, 0.0], [won, lost, count - won - lost])
        one, other = (gaps > 0).astype(float), (gaps < 0).astype(float)
        found = non_inferiority(one, other, range(count), margin=MARGIN, alpha=ALPHA)
        size += float(chance) * found.holds
    assert size <= ALPHA


class Table:
    """A score function that is a table of known numbers."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores

    def __call__(self, prompts, responses) -> list[float]:
        return [self.scores[response] for response in responses]


PAIRS = [PreferencePair(f"p{n}", f"good{n}", f"bad{n}") for n in range(400)]
GROUPS = [ResponseGroup(f"q{n}", tuple(f"{n} " + "x" * k for k in (1, 2, 3, 4))) for n in range(50)]


def scores(*, wrong: int = 0, groups=lambda row, k: float(k), scale: float = 1.0) -> Table:
    known = {}
    for n, pair in enumerate(PAIRS):
        sign = -1.0 if n < wrong else 1.0
        known |= {pair.chosen: sign * scale, pair.rejected: 0.0}
    for row, group in enumerate(GROUPS):
        own = np.random.default_rng(row).permutation(4)
        known |= {
            text: scale * groups(row, int(place))
            for text, place in zip(group.responses, own, strict=True)
        }
    return Table(known)


def test_a_challenger_that_holds_and_is_sane_replaces() -> None:
    decision = compare_champion(scores(wrong=40, scale=7.0), scores(wrong=40), PAIRS, GROUPS)
    assert decision.replaces
    assert [guard.passes for guard in decision.guards] == [True] * 3
    assert decision.accuracy_challenger == decision.accuracy_champion == 0.9
    assert json.loads(json.dumps(decision.to_json(), allow_nan=False))["replaces"] is True


@pytest.mark.parametrize(
    ("challenger", "failed"),
    [
        (scores(groups=lambda row, k: -float(k)), "rank_correlation"),
        (scores(groups=lambda row, k: 0.1 * k), "spread_ratio"),
        (scores(groups=lambda row, k: 0.0), "rank_correlation, spread_ratio"),
    ],
)
def test_guards_keep_the_champion(challenger: Table, failed: str) -> None:
    decision = compare_champion(challenger, scores(), PAIRS, GROUPS)
    assert not decision.replaces
    assert f"holds, but not {failed} on the watched groups" in decision.reason


def test_a_reward_that_has_become_length_keeps_the_champion() -> None:
    challenger = scores()
    for group in GROUPS:
        for k, text in enumerate(group.responses):
            challenger.scores[text] = 0.8 * challenger.scores[text] + 0.8 * k
    decision = compare_champion(challenger, scores(), PAIRS, GROUPS)
    by_name = {guard.name: guard for guard in decision.guards}
    assert not decision.replaces
    assert by_name["length_rise"].value > 0.1
    assert not by_name["length_rise"].passes


def test_a_worse_one_keeps_the_champion_and_ties_do_not_help() -> None:
    worse = compare_champion(scores(wrong=30), scores(), PAIRS)
    assert not worse.replaces
    assert "not shown to hold" in worse.reason
    tied = compare_champion(Table(dict.fromkeys(scores().scores, 0.0)), scores(), PAIRS)
    assert not tied.replaces
    assert tied.accuracy_challenger == 0.5


def test_too_few_pairs_say_what_is_needed() -> None:
    decision = compare_champion(scores(), scores(), PAIRS[:50])
    assert not decision.replaces
    assert "too few pairs: of 50 prompts, where 120 are the fewest" in decision.reason
    with pytest.raises(DataError, match="got none"):
        compare_champion(scores(), scores(), [])


def test_scores_that_are_not_finite_keep_the_champion() -> None:
    broken = scores()
    broken.scores["good7"] = float("nan")
    decision = compare_champion(broken, scores(), PAIRS)
    assert not decision.replaces
    assert "not finite" in decision.reason

    def refuses(prompts, responses):
        raise ModelError("the reward model gave a score that is not finite")

    assert "not finite" in compare_champion(refuses, scores(), PAIRS).reason

    def other(prompts, responses):
        raise ModelError("another thing")

    with pytest.raises(ModelError, match="another thing"):
        compare_champion(other, scores(), PAIRS)


def test_length_correlation_in_closed_form() -> None:
    assert mean_length_correlation([[1, 2], [5, 4]], [[3, 9], [1, 2]]) == 0.0
    assert mean_length_correlation([[1, 1]], [[1, 2]]) is None


@pytest.mark.parametrize("changes", [{"margin": 0.0}, {"margin": 0.5}, {"alpha": 1.0}])
def test_rules_out_of_range(changes) -> None:
    with pytest.raises(ConfigError, match="above 0 and below"):
        PromotionRules(**changes)


def model_folder(place: Path, name: str) -> Path:
    (place / name).mkdir()
    (place / name / "config.json").write_text(name, "utf-8")
    return place / name


def test_decisions_are_kept_and_the_pointer_is_the_last_that_replaced(tmp_path: Path) -> None:
    throne = tmp_path / "throne"
    throne.mkdir()
    first, second = (model_folder(tmp_path, name) for name in ("first", "second"))
    assert read_champion(throne) is None
    assert crown(throne, first, None, {}).model.resolve() == first.resolve()
    no = compare_champion(scores(wrong=40), scores(), PAIRS)
    kept = crown(throne, second, no, {"pairs": "abc"})
    assert kept.model.resolve() == first.resolve()
    assert kept.decision == 1
    yes = compare_champion(scores(), scores(), PAIRS)
    now = crown(throne, second, yes, {})
    assert (now.model.resolve(), now.decision) == (second.resolve(), 3)
    rows = read_decisions(throne)
    assert [row["replaces"] for row in rows] == [True, False, True]
    assert rows[1]["pairs"] == "abc"
    assert rows[1]["decision"]["test"]["num_pairs"] == 400
    assert read_json(throne / "champion.json") == {
        "model": "../second",
        "digest": now.digest,
        "decision": 3,
    }


def test_a_death_between_decision_and_swap_is_finished_by_the_next(tmp_path: Path) -> None:
    throne = tmp_path / "throne"
    throne.mkdir()
    first, second = (model_folder(tmp_path, name) for name in ("first", "second"))
    crown(throne, first, None, {})
    pointer = (throne / "champion.json").read_text("utf-8")
    crown(throne, second, compare_champion(scores(), scores(), PAIRS), {})
    (throne / "champion.json").write_text(pointer, "utf-8")
    assert read_champion(throne).model.resolve() == second.resolve()
    assert read_json(throne / "champion.json")["decision"] == 2
    os.remove(throne / "champion.json")
    assert read_champion(throne).decision == 2


@pytest.mark.parametrize("document", [[], {"model": 1}, {"number": 1}, "text"])
def test_broken_files_are_one_error(tmp_path: Path, document) -> None:
    write_json(tmp_path / "champion.json", document)
    with pytest.raises(FormatError, match="champion"):
        read_champion(tmp_path)
    os.remove(tmp_path / "champion.json")
    write_json(tmp_path / "decisions" / "000001.json", document)
    with pytest.raises(FormatError, match="000001"):
        read_champion(tmp_path)
