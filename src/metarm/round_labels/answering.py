# SPDX-License-Identifier: Apache-2.0
"""Who answers: gold, a judge of any kind, or people; all leave votes of the same kind."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metarm.config import ArmSettings, RunSettings
from metarm.config_labels import GOLD, MODEL, PEOPLE
from metarm.endpoint.call_ledger import CallLedger
from metarm.endpoint.caps import Caps
from metarm.endpoint.client import Endpoint
from metarm.errors import RunError
from metarm.gold_labels import gold_gaps
from metarm.judging.comparisons import Comparison
from metarm.judging.endpoint_judge import EndpointJudge
from metarm.judging.judge_all import judge_all, load_judge
from metarm.judging.score_judge import ScoreJudge
from metarm.judging.templates import load_template
from metarm.labels.votes import Choice, LabelPair, Vote
from metarm.progress import SilentProgress
from metarm.protocols import Judge, ProgressReporter, ScoreFunction
from metarm.resolve import load_gold, resolve_name
from metarm.schema import Verdict
from metarm.served_score import is_served_url
from metarm.streams import draw_seed

__all__ = [
    "Answers",
    "answer_by_gold",
    "answer_by_judge",
    "check_arm_judge",
    "judge_record",
    "load_arm_judge",
]

_CHOICES: Final[Mapping[Verdict, Choice]] = {
    "first": "first",
    "second": "second",
    "tie": "tie",
    "malformed": "skip",
}
CALLS_FILE: Final = "label_calls.jsonl"
"""In the run's folder: what every call to a model for labels took."""
_TOLD: Final = ("cost", "spent", "served_models")
"""Facts of a judge that are kept with the labels."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Votes on the pairs that a round asked about, and what they took."""

    votes: tuple[Vote, ...]
    kinds: Mapping[str, str]
    """Annotator -> kind."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a judge has to say of itself: `cost`, `spent`, where it has."""


def answer_by_gold(
    pairs: Sequence[LabelPair], gold: ScoreFunction, *, label_noise: float, seed: int
) -> Answers:
    """Votes of the true reward, or of an annotator who errs more where it differs less.

    Args:
        pairs: In any number.
        gold: The true reward.
        label_noise: P(first) = sigmoid(gold difference / label_noise); 0: the sign decides.
        seed: Draws the errors, each by its own pair: asked again, the answer is the same.
    """
    votes = []
    for pair, gap in gold_gaps(pairs, gold):
        choice: Choice = "tie" if gap == 0 else "first" if gap > 0 else "second"
        if label_noise:
            drawn = draw_seed(seed, f"label noise {pair.id}") / 2**63
            # tanh, as a sigmoid that cannot overflow.
            chance = 0.5 + 0.5 * math.tanh(0.5 * gap / label_noise)
            choice = "first" if drawn < chance else "second"
        votes.append(Vote(pair.id, GOLD, choice))
    return Answers(tuple(votes), {GOLD: "gold"})


def answer_by_judge(
    pairs: Sequence[LabelPair], judge: Judge, name: str, *, both_orders: bool
) -> Answers:
    """Votes of a judge; an answer without a verdict is a skip: it was paid for, and is no label.

    Raises:
        RunError: When the judge left pairs unjudged.
    """
    comparisons = [Comparison(p.prompt, "first", "second", p.first, p.second) for p in pairs]
    judged = judge_all(comparisons, judge, both_orders=both_orders)
    facts = judge.facts if isinstance(judge, EndpointJudge) else {}
    missing = sum(one.verdict == "unjudged" for one in judged)
    if missing:
        why = facts.get("stopped") or ", ".join(facts.get("failures", {})) or "no reason told"
        raise RunError(
            f"{name} left {missing} of {len(pairs)} pairs unjudged ({why}). Its answers are kept: "
            "raise the cap (labels.max_* holds for the whole run, labels.judge.endpoint.max_* for "
            "the labels of one round) or mend the server, and run the same command again."
        )
    votes = [
        Vote(pair.id, name, _CHOICES[one.verdict]) for pair, one in zip(pairs, judged, strict=True)
    ]
    told: dict[str, Any] = {key: facts[key] for key in _TOLD if key in facts}
    return Answers(tuple(votes), {name: "model"}, told)


def judge_record(settings: RunSettings, arm: ArmSettings) -> dict[str, Any]:
    """What makes a judge the same judge: where a model is served is no part of it."""
    judge = settings.labels.judge
    record: dict[str, Any] = {"both_orders": judge.both_orders}
    if arm.labels_from != MODEL:
        return {**record, "tie_margin": judge.tie_margin}
    return {
        **record,
        "model": settings.labels.model,
        "template": load_template(judge.template).text,
        "temperature": judge.temperature,
        "max_answer_tokens": judge.max_answer_tokens,
    }


def check_arm_judge(settings: RunSettings, arm: ArmSettings) -> None:
    """Refuse an arm whose judge cannot be had; nobody is asked anything.

    Raises:
        ConfigError: When there is no such function or template, or the address is none.
    """
    if arm.labels_from in (GOLD, PEOPLE) or is_served_url(arm.labels_from):
        return
    load_arm_judge(settings, arm, Path(), SilentProgress())


def load_arm_judge(
    settings: RunSettings, arm: ArmSettings, answers: Path, progress: ProgressReporter
) -> tuple[Judge, str]:
    """The judge that an arm's labels come from, and its name.

    A function of the user's is a judge of two responses (`prompts, first, second`) or a score of
    one (`prompts, responses`), told apart by how many arguments it takes.

    Args:
        settings: The run's.
        arm: Its `labels_from` is no gold and no people.
        answers: File that keeps a model's answers until the stage is whole.
        progress: Gets a bar.

    Raises:
        ConfigError: When there is no such function or template.
    """
    judging, name = settings.labels.judge, arm.labels_from
    if name == MODEL:
        where, model = settings.labels.url, settings.labels.model
        assert where is not None  # RunSettings has checked both
        assert model is not None
        there = Endpoint(where, model, judging.endpoint, _ledger_of(settings))
        return EndpointJudge(there, answers, judging, progress), model
    if is_served_url(name) or _takes_two(name):
        return ScoreJudge(load_gold(name, what="labels_from"), judging.tie_margin), name
    return load_judge(name, what="labels_from"), name


def _ledger_of(settings: RunSettings) -> CallLedger:
    """The calls of all rounds, arms and seeds of a run, and its caps."""
    labels = settings.labels
    own = (labels.max_calls, labels.max_total_tokens, labels.max_cost)
    caps = Caps("labels", labels.judge.endpoint, *own)
    return CallLedger(settings.output_dir / CALLS_FILE, caps)


def _takes_two(name: str) -> bool:
    """Whether a function of the user's scores single responses."""
    function = resolve_name(name, {}, what="labels_from")
    return len(inspect.signature(function).parameters) == 2
