# SPDX-License-Identifier: Apache-2.0
"""The result of a run in sentences, worked out from its numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from metarm.config import ARM_PRESETS, ArmSettings, RewardSettings
from metarm.config_labels import GOLD
from metarm.reports.comparisons import Summary, change_since_start, compare, summary_of
from metarm.reports.measures import MEASURES
from metarm.reports.read_run import Run
from metarm.reports.restored import LABEL, restored, restored_difference

__all__ = ["Headline", "arm_description", "basis", "headline"]

SUBJECTS = {
    "accuracy_shifted": ("the reward model's accuracy on the policy's own pairs", "accuracy"),
    "gold_score": ("the gold score", "gold"),
    "gap_spread_ratio": ("the spread of reward gaps relative to SFT's responses", "gap spread"),
    "accuracy_original": ("accuracy on original pairs", "accuracy on original pairs"),
}
"""Each measure a headline tells: in full, and short."""
NO_GOLD = (
    "This run has no gold function: whether the policy got better, and whether the reward model "
    "is still right about its responses, cannot be read from these figures."
)


STEPS: Mapping[str, Callable[[RewardSettings], str]] = {
    "ascent": lambda _: "MetaRM, Algorithm 1 as printed",
    "descent": lambda _: "MetaRM, its sign turned",
    "joint": lambda reward: (
        "MetaRM, joint loss L - "
        + ("weight * J" if reward.meta_weight is None else f"{reward.meta_weight:g} J")
    ),
}
"""Each mode of the meta step in words."""


@dataclass(frozen=True, slots=True)
class Headline:
    """What happened, and how each other arm differs."""

    lead: str
    points: tuple[str, ...]


def headline(run: Run) -> Headline:
    """What optimisation did to accuracy and gold, then one sentence for each other arm.

    Where there is a new task, which policies were optimised on, the same of it stands beside.
    """
    if run.new_task is not None and run.new_task.trained_arms:
        original, new = headline(replace(run, new_task=None)), headline(run.new_task)
        told_of_new = [text for text in (_lower(new.lead), *new.points) if text != NO_GOLD]
        return Headline(
            f"Original task: {_lower(original.lead)}",
            (*original.points, *(f"New task: {text}" for text in told_of_new)),
        )
    if not run.trained_arms:
        lead = "No arm has finished a round of optimisation yet; only the start is shown."
        return Headline(lead, ())
    wanted = ("frozen", str(run.baseline), *run.trained_arms)
    told = next(arm for arm in wanted if arm in run.trained_arms and _has_reached(run, arm))
    names = [name for name in ("accuracy_shifted", "gold_score") if _is_told(run, name, told)]
    if not names:
        names = [n for n in ("gap_spread_ratio", "accuracy_original") if _is_told(run, n, told)]
    changes = [_change(run, name, told) for name in names]
    changes += _restored_words(run, told)
    lead = f"After {_rounds(run)} of {_name(run, told)}, {'; '.join(changes)}."
    points = [_point(run, names, arm) for arm in run.trained_arms if arm != told]
    if not run.has_gold:
        points.append(NO_GOLD)
    return Headline(lead, tuple(point for point in points if point))


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _rounds(run: Run) -> str:
    """`3 rounds`, or `2 of 3 planned rounds` where there is more to come."""
    planned = run.settings.rounds if run.settings else run.final_round
    if planned > run.final_round:
        return f"{run.final_round} of {planned} planned rounds"
    return f"{run.final_round} {'round' if run.final_round == 1 else 'rounds'}"


def _has_reached(run: Run, arm: str) -> bool:
    return bool(run.cards_of(arm, run.final_round))


def _is_told(run: Run, name: str, arm: str) -> bool:
    return summary_of(run, name, arm, run.final_round) is not None


def _change(run: Run, name: str, arm: str) -> str:
    """How a measure moved between the start and the compared round of one arm."""
    decimals = MEASURES[name].decimals
    subject = SUBJECTS[name][0]
    end = summary_of(run, name, arm, run.final_round)
    change = change_since_start(run, name, arm, run.final_round)
    assert end is not None
    if change is None:
        return f"{subject} is {end.text(decimals)}"
    moved = change.difference
    verb = "went"
    if moved.low is None or moved.excludes_zero:
        verb = "fell" if moved.value < 0 else "rose"
    note = "" if moved.excludes_zero else f": {moved.verdict()}"
    return (
        f"{subject} {verb} from {change.start:.{decimals}f} to {change.end:.{decimals}f}, "
        f"change {moved.text(decimals, sign=True)}{note}"
    )


def _point(run: Run, names: list[str], arm: str) -> str:
    """One arm's values, each with its difference to the baseline; empty where it has none.

    The baseline's own are to the frozen reward model: what retraining alone does.
    """
    other = next((base for base in run.baselines if base != arm), None)
    parts = _restored_words(run, arm)
    for name in names:
        end = summary_of(run, name, arm, run.final_round)
        if end is None:
            continue
        part = f"{SUBJECTS[name][1]} {end.value:.{MEASURES[name].decimals}f}"
        gap = compare(run, name, arm, other, run.final_round) if other else None
        if other and gap is not None:
            part += f", {_difference_words(gap, name, other)}"
        parts.append(part)
    return f"{_name(run, arm)}: {'; '.join(parts)}." if parts else ""


def _restored_words(run: Run, arm: str) -> list[str]:
    """What retraining gave back in an arm that retrains; empty where it is not measured."""
    own = restored(run, arm)
    if own is None:
        return []
    words = f"{LABEL[0].lower()}{LABEL[1:]} {own.text(sign=True)}"
    gap = None if arm == run.baseline else restored_difference(run, arm, str(run.baseline))
    if gap is not None:
        words += f", {_difference_words(gap, 'accuracy_shifted', str(run.baseline))}"
    return [words]


def _difference_words(gap: Summary, name: str, baseline: str) -> str:
    shown = gap.text(MEASURES[name].decimals, sign=True)
    direction = ("higher" if gap.value > 0 else "lower") + ", " if gap.excludes_zero else ""
    return f"difference to {baseline} {shown}: {direction}{gap.verdict()}"


def basis(run: Run) -> str:
    """How many seeds and prompts are behind the numbers, and what their intervals leave out."""
    prompts = sorted({card.kl_nats.count for card in run.cards.values()})
    each = " to ".join(str(count) for count in dict.fromkeys((prompts[0], prompts[-1])))
    seeds = run.seeds
    if len(seeds) == 1:
        return (
            f"Behind these numbers: one seed ({seeds[0]}), {each} prompts per evaluation. "
            "The 95 % intervals are over prompts and pairs. They leave out the randomness of "
            "training: another seed can fall outside them."
        )
    few = {2: " Two seeds hardly ever tell a difference."}.get(len(seeds), "")
    lone = ", ".join(_arms_with_one_seed(run))
    if lone:
        few += (
            f" Only one seed has got this far in {lone}: intervals there are over prompts and "
            "leave out the randomness of training."
        )
    return (
        f"Behind these numbers: {len(seeds)} seeds ({', '.join(map(str, seeds))}), {each} prompts "
        "per evaluation. The 95 % intervals are Student t-intervals over seeds; differences are "
        f"paired by seed.{few}{_worlds(run)}"
    )


def _worlds(run: Run) -> str:
    """What the seeds have in common in the embedded world."""
    if run.settings is None or run.settings.world is None:
        return ""
    return (
        f" All seeds share one drawn true reward (world.seed={run.settings.world.seed}): the "
        "intervals cover data and training, not other worlds."
    )


def _arms_with_one_seed(run: Run) -> list[str]:
    return [arm for arm in run.trained_arms if len(run.cards_of(arm, run.final_round)) == 1]


def _settings_of(run: Run, arm: str) -> ArmSettings | None:
    """An arm's settings; None where this version does not know them."""
    if run.settings is None or arm not in {**ARM_PRESETS, **run.settings.custom_arms}:
        return None
    return run.settings.arm(arm)


def _step(run: Run, arm: str) -> str:
    """A known arm's meta step in words; empty where it takes none."""
    assert run.settings is not None
    reward = run.settings.for_arm(arm).reward
    words = STEPS.get(reward.meta_mode)
    if not words:
        return ""
    num_kept = run.settings.arm(arm).meta_reservoir
    return words(reward) + (f", {num_kept} groups of earlier rounds kept" if num_kept else "")


def _algo(run: Run, arm: str) -> str:
    """The optimiser of a known arm."""
    assert run.settings is not None
    return run.settings.for_arm(arm).optimize.algo


def _name(run: Run, arm: str) -> str:
    """An arm's name and, where the settings are known, its main trait."""
    settings = _settings_of(run, arm)
    if settings is None:
        return arm
    if _algo(run, arm) == "dpo":
        return f"{arm} (DPO on the original pairs)"
    if settings.reward == "frozen":
        return f"{arm} (reward model not retrained)"
    trait = _step(run, arm) or "retrained on original pairs"
    if settings.relabel_original:
        trait += " relabelled by gold"
    if count := settings.num_gold_labels or settings.labels_per_round:
        trait += f" and {count} labels per round"
    if settings.members > 1:
        trait += f", {settings.members} reward models"
    return f"{arm} ({trait})"


def _label_words(settings: ArmSettings) -> str:
    """Which pairs an arm has labelled, by whom, and how they are trained on."""
    whose = "SFT's" if settings.labels_on == "original" else "the policy's own"
    by = settings.labels_from
    if by == GOLD:
        by += (
            f" with errors ({settings.label_noise:g})" if settings.label_noise else " without noise"
        )
    chosen = "" if settings.labels_choice == "random" else f"chosen by {settings.labels_choice}, "
    return (
        f"{settings.num_gold_labels or settings.labels_per_round} more pairs of {whose} each "
        f"round, {chosen}labelled by {by}, each in the training set {settings.label_repeat} times "
        "(so with more optimiser steps)"
    )


def arm_description(run: Run, arm: str) -> str:
    """What the settings say about an arm; empty where they are not known."""
    settings = _settings_of(run, arm)
    if settings is None:
        return ""
    if not settings.optimize:
        return "the SFT policy, evaluated only"
    if _algo(run, arm) == "dpo":
        return (
            "policy trained on the original pairs by DPO, from SFT in every round; the first "
            "reward model only measures it"
        )
    if settings.reward == "frozen":
        return "policy optimised against the first reward model, which stays as it is"
    text = "reward model retrained each round on the original pairs"
    if settings.relabel_original:
        text += ", which gold labels again,"
    if settings.num_gold_labels or settings.labels_per_round:
        text += f" and on {_label_words(settings)}"
    if step := _step(run, arm):
        text += f"; {step}, on the policy's unlabelled groups"
    if settings.members > 1:
        text += f"; {settings.members} reward models of different seeds, whose mean score is used"
        if settings.pessimism:
            text += f" minus {settings.pessimism:g} times their spread"
    if settings.settings:
        text += f"; otherwise than the run: {settings.settings}"
    return text
