# SPDX-License-Identifier: Apache-2.0
"""The two stages of a round with labels: `asked`, and `labels` with every answer.

Between the two an arm may wait for people. What is trained on is a round's `labels.jsonl`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metarm.choosing.pairs import list_candidates, name_chosen, pool_of_model
from metarm.choosing.strategies import choose, read_strategy
from metarm.config import ArmSettings, RunSettings
from metarm.config_labels import GOLD, PEOPLE
from metarm.data.meta_sets import load_groups
from metarm.data.preferences import load_preferences, pair_key, save_preferences
from metarm.gold_labels import draw_pairs, gold_gaps, told_apart
from metarm.labels.votes import LabelPair, Vote
from metarm.models.ensemble import EnsembleScore, load_reward
from metarm.models.head_states import head_states
from metarm.protocols import ProgressReporter, ScoreFunction
from metarm.round_labels.agreeing import agreement_with_votes
from metarm.round_labels.answering import (
    Answers,
    answer_by_gold,
    answer_by_judge,
    check_arm_judge,
    judge_record,
    load_arm_judge,
)
from metarm.round_labels.soft import soft_labels
from metarm.round_labels.waiting import (
    ASKED,
    LABELS,
    PAIRS_FILE,
    STORE_FILE,
    KnownAnswers,
    Waiting,
    read_known_answers,
    read_store_votes,
)
from metarm.schema import RANDOM, PreferencePair
from metarm.sources import Sources
from metarm.storage import (
    Stage,
    build_stage,
    checkpoints_of,
    file_digest,
    fingerprint,
    read_json_lines,
    verify_stage,
    write_json_lines,
)

__all__ = ["ANSWERS_FILE", "LabelWork", "buy_labels", "check_label_arms", "load_labels"]

ANSWERS_FILE = "answers.jsonl"
LABELS_FILE = "labels.jsonl"


@dataclass(frozen=True, slots=True)
class LabelWork:
    """One round of one arm that buys labels."""

    settings: RunSettings
    arm: str
    seed: int
    round: int
    place: Path
    """The round's folder."""
    sources: Sources
    progress: ProgressReporter
    draw: int
    """Seed of what is drawn: that of the round's samples."""

    @property
    def own(self) -> ArmSettings:
        """The arm's settings."""
        return self.settings.arm(self.arm)

    @property
    def gold(self) -> ScoreFunction:
        """The true reward, where the arm's labels are of gold."""
        assert self.sources.gold is not None  # RunSettings has checked it
        return self.sources.gold


def check_label_arms(settings: RunSettings) -> None:
    """Refuse, before a run begins, arms whose rounds would be refused hours later.

    Raises:
        ConfigError: When there is no such strategy, judge or template.
    """
    for arm in map(settings.arm, settings.arms):
        if arm.labels_per_round:
            read_strategy(arm.labels_choice)
            check_arm_judge(settings, arm)


def buy_labels(
    work: LabelWork, samples: Stage, reward: Stage, earlier: Sequence[Stage]
) -> Stage | Waiting:
    """The labels of a round, or what it waits for.

    Args:
        work: Which round of which arm.
        samples: Its responses.
        reward: The reward model that the round begins with: it says which pairs are worth a label.
        earlier: The stages whose labels the arm has bought before.

    Raises:
        ConfigError: When there is no such strategy or judge.
        RunError: When a judge leaves pairs unjudged.

    Writes:
        `asked/` and, when every answer is there, `labels/`, in the round's folder.
    """
    asked = _ask(work, samples, reward, earlier)
    pairs = [LabelPair.from_json(row) for row in read_json_lines(asked.folder / PAIRS_FILE)]
    if work.own.labels_from == PEOPLE and not (work.place / LABELS).exists():
        ids = {pair.id for pair in pairs}
        path = work.settings.output_dir / STORE_FILE
        found = read_store_votes(path, ids, _votes_per_pair(asked))
        if found.answered < ids:
            return Waiting(work.arm, work.seed, work.round, len(ids), len(found.answered))
    return _answer(work, asked, pairs, reward, earlier)


def _votes_per_pair(asked: Stage) -> int:
    """Votes that each pair of a round waits for: what held when they were asked."""
    return int(asked.metrics["votes_per_pair"])


def _ask(work: LabelWork, samples: Stage, reward: Stage, earlier: Sequence[Stage]) -> Stage:
    """The pairs that the round asks about, in the order they were chosen."""
    own = work.own
    is_random = own.labels_choice == RANDOM
    record = {
        "labels_per_round": own.labels_per_round,
        "labels_choice": own.labels_choice,
        "labels_on": own.labels_on,
        # Pairs that gold cannot tell apart are passed over.
        "gold": [work.settings.evaluation.gold] if own.labels_from == GOLD else None,
        "seed": work.draw,
    }

    def build(folder: Path) -> dict[str, Any]:
        if is_random:
            pairs = _drawn(work, samples, earlier)
        else:
            pairs = _chosen(work, samples, reward, earlier)
        source = f"{work.arm}, round {work.round}, seed {work.seed}"
        write_json_lines(
            folder / PAIRS_FILE, (replace(pair, source=source).to_json() for pair in pairs)
        )
        return {
            "num_asked": len(pairs),
            "num_random": sum(pair.chosen_by == RANDOM for pair in pairs),
            "labels_from": own.labels_from,
            "votes_per_pair": work.settings.labels.votes_per_pair,
        }

    inputs = [work.sources.data, samples, *([] if is_random else [reward]), *earlier]
    return build_stage(work.place / ASKED, record, inputs, build)


def _drawn(work: LabelWork, samples: Stage, earlier: Sequence[Stage]) -> list[LabelPair]:
    """Pairs at random that are not labelled yet, spread over the prompts."""
    labelled = [*work.sources.pairs, *load_labels(earlier)]
    known = {pair_key(pair.prompt, pair.chosen, pair.rejected) for pair in labelled}
    drawn = draw_pairs(load_groups(samples.folder / "groups.jsonl"), seed=work.draw)
    drawn = [p for p in drawn if pair_key(p.prompt, p.first, p.second) not in known]
    count = work.own.labels_per_round
    if work.own.labels_from == GOLD:
        drawn = [told.pair for told in told_apart(drawn, work.gold, count)]
    return [replace(pair, chosen_by=RANDOM) for pair in drawn[:count]]


def _chosen(
    work: LabelWork, samples: Stage, reward: Stage, earlier: Sequence[Stage]
) -> list[LabelPair]:
    """Pairs by a strategy, which knows the reward model and what it was trained on."""
    labelled = [*work.sources.pairs, *load_labels(earlier)]
    groups = load_groups(samples.folder / "groups.jsonl")
    pairs = list_candidates(groups, labelled=labelled, seed=work.draw).pairs
    if work.own.labels_from == GOLD:
        pairs = tuple(told.pair for told in gold_gaps(pairs, work.gold) if told.gap)
    pool = pool_of_model(load_reward(reward.folder), pairs, labelled, seed=work.draw)
    count = min(work.own.labels_per_round, len(pairs))
    taken = name_chosen(pairs, choose(pool, work.own.labels_choice, count, seed=work.draw))
    # One order of sides for each pair, so that two arms which ask the same pair ask it once.
    return [
        replace(pair, first=min(pair.first, pair.second), second=max(pair.first, pair.second))
        for pair in taken
    ]


def _answer(
    work: LabelWork,
    asked: Stage,
    pairs: Sequence[LabelPair],
    reward: Stage,
    earlier: Sequence[Stage],
) -> Stage:
    """Every answer, what is trained on, and what the labels came to.

    The fingerprint is also of the labels: people and models may say otherwise another time.
    """
    own = work.own

    def build(folder: Path) -> dict[str, Any]:
        answers = _answers(work, asked, pairs, folder)
        past = _read_past(work, earlier)
        believed = soft_labels(
            pairs,
            answers.votes,
            lambda: _features([*pairs, *past.pairs], reward),
            history=past.votes,
            gold=past.answers,
        )
        labels = [
            _label(pair, believed[pair.id]) for pair in pairs if believed[pair.id] is not None
        ]
        save_preferences(folder / LABELS_FILE, labels)
        write_json_lines(folder / ANSWERS_FILE, _rows(pairs, answers, believed))
        given = [vote for vote in answers.votes if vote.choice != "skip"]
        agreed = agreement_with_votes(
            pairs, answers.votes, lambda *texts: load_reward(reward.folder)(*texts)
        )
        return {
            "num_asked": len(pairs),
            "num_labels": len(labels),
            "num_votes": len(given),
            "num_skips": len(answers.votes) - len(given),
            "num_votes_beside": sum(vote.choice != "skip" for vote in past.votes),
            "num_random": sum(pair.chosen_by == RANDOM for pair in pairs),
            "votes_by": dict(Counter(vote.annotator for vote in given)),
            "kinds": dict(answers.kinds),
            "annotator_seconds": sum(vote.seconds or 0.0 for vote in answers.votes),
            **answers.facts,
            **({"agreement_with_votes": asdict(agreed)} if agreed else {}),
        }

    record: dict[str, Any] = {"labels_from": own.labels_from}
    if own.labels_from == GOLD:
        record |= {"label_noise": own.label_noise, "gold": work.settings.evaluation.gold}
        record |= {"seed": work.draw} if own.label_noise else {}
    elif own.labels_from == PEOPLE:
        record |= {"votes_per_pair": _votes_per_pair(asked)}
    else:
        record |= judge_record(work.settings, own)
    stage = build_stage(work.place / LABELS, record, [asked, reward], build, goes_on=True)
    verify_stage(stage)
    digest = file_digest(stage.folder / LABELS_FILE)
    return replace(stage, fingerprint=fingerprint(stage.fingerprint, digest))


def _answers(work: LabelWork, asked: Stage, pairs: Sequence[LabelPair], folder: Path) -> Answers:
    own, answers = work.own, work.settings.labels
    if own.labels_from == GOLD:
        return answer_by_gold(pairs, work.gold, label_noise=own.label_noise, seed=work.draw)
    if own.labels_from == PEOPLE:
        ids = {pair.id for pair in pairs}
        path = work.settings.output_dir / STORE_FILE
        found = read_store_votes(path, ids, _votes_per_pair(asked))
        return Answers(found.votes, found.kinds)
    kept = checkpoints_of(folder) / ANSWERS_FILE
    judge, name = load_arm_judge(work.settings, own, kept, work.progress)
    return answer_by_judge(pairs, judge, name, both_orders=answers.judge.both_orders)


def _read_past(work: LabelWork, earlier: Sequence[Stage]) -> KnownAnswers:
    """What tells of a round's annotators beside it: the arm's earlier votes, and known answers.

    Not what other arms have asked: they would share what each has paid for.
    """
    rows = [row for stage in earlier for row in read_json_lines(stage.folder / ANSWERS_FILE)]
    pairs = tuple(LabelPair.from_json(row) for row in rows)
    votes = tuple(Vote(row["id"], **vote) for row in rows for vote in row["votes"])
    if work.own.labels_from != PEOPLE:
        return KnownAnswers(pairs, votes, {})
    known = read_known_answers(work.settings.output_dir / STORE_FILE)
    return KnownAnswers((*pairs, *known.pairs), (*votes, *known.votes), known.answers)


def _features(pairs: Sequence[LabelPair], reward: Stage) -> dict[str, Any]:
    """What the score head sees of each pair: states of the first response less the second's."""
    score = load_reward(reward.folder)
    model = score.members[0] if isinstance(score, EnsembleScore) else score
    prompts = [pair.prompt for pair in pairs]
    first, second = (
        head_states(model, prompts, [getattr(pair, side) for pair in pairs]).states
        for side in ("first", "second")
    )
    return {pair.id: gap for pair, gap in zip(pairs, first - second, strict=True)}


def _label(pair: LabelPair, p: float | None) -> PreferencePair:
    """The pair as training takes it: the likelier side is the chosen one."""
    assert p is not None  # whoever calls has left these out
    sides = (pair.first, pair.second) if p >= 0.5 else (pair.second, pair.first)
    likely = max(p, 1 - p)
    return PreferencePair(pair.prompt, *sides, p=None if likely == 1 else likely)


def _rows(
    pairs: Sequence[LabelPair], answers: Answers, believed: dict[str, float | None]
) -> list[dict[str, Any]]:
    """One row a pair: what was asked, who said what, and what is believed."""
    votes: dict[str, list[Vote]] = {pair.id: [] for pair in pairs}
    for vote in answers.votes:
        votes[vote.pair].append(vote)
    return [
        {
            **pair.to_json(),
            "id": pair.id,
            "p": believed[pair.id],
            "votes": [
                {key: value for key, value in asdict(vote).items() if key != "pair"}
                for vote in votes[pair.id]
            ],
        }
        for pair in pairs
    ]


def load_labels(stages: Sequence[Stage]) -> list[PreferencePair]:
    """The labels that some stages hold, in their order."""
    return [
        pair
        for stage in stages
        if stage.metrics["num_labels"]
        for pair in load_preferences(
            stage.folder / LABELS_FILE, "trl-explicit", keep_blank=True
        ).pairs
    ]
