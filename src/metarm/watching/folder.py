# SPDX-License-Identifier: Apache-2.0
"""A watch on disk: its probes, its reward model, its looks; and a run's rounds looked at in turn.

watch.json            reward model, rules, what looks are compared with
probes/               prompts and reference responses
measured_HASH/        rewards and states of what looks are compared with
looks.jsonl           one look a line
fresh_NNNN.jsonl      the responses of look N
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from metarm.data.meta_sets import load_groups, save_groups
from metarm.errors import ConfigError, DataError, EmptySetError, FormatError
from metarm.models.ensemble import EnsembleScore, load_reward
from metarm.models.reward_model import RewardModelScore
from metarm.protocols import ProgressReporter
from metarm.schema import Prompt, ResponseGroup
from metarm.storage import content_digest, fingerprint, read_json, write_json
from metarm.watching.measuring import measure, measure_once
from metarm.watching.probes import (
    FreshResponses,
    ProbePlan,
    Probes,
    build_probes,
    draw_fresh,
    load_probes,
    load_reference_model,
)
from metarm.watching.thresholds import AlarmBudget
from metarm.watching.watch import Look, Watch, WatchRules

__all__ = ["OpenWatch", "WatchRecord", "open_watch", "start_watch", "watch_rounds"]

WATCH_FILE: Final = "watch.json"
SFT_GROUPS: Final = "arms/sft/round_00/evaluation/groups.jsonl"


@dataclass(frozen=True, slots=True)
class WatchRecord:
    """What a watch's folder says of it."""

    reward_model: str
    """Folder or hub id."""
    rules: WatchRules
    compared_with: str
    """File of groups, relative to the folder: the probes' own, or those of an adaptation."""

    def to_json(self) -> dict[str, Any]:
        """The content of `watch.json`."""
        return asdict(self)


@dataclass(slots=True)
class OpenWatch:
    """A watch that can take looks."""

    folder: Path
    record: WatchRecord
    probes: Probes
    score: RewardModelScore | EnsembleScore
    watch: Watch

    def look_at(
        self,
        policy: "str | Path",
        *,
        step: int,
        progress: ProgressReporter,
    ) -> tuple[Look, FreshResponses]:
        """Draw fresh responses of a policy, keep them, and take a look.

        Raises:
            ModelError: When there is no language model, or it cannot be sampled.
        """
        number = len(self.watch.looks) + 1
        reference = load_reference_model(self.probes)
        total = len(self.probes.groups) * self.probes.plan.num_fresh
        with progress.stage("sample the probes", total) as bar:
            fresh = draw_fresh(self.probes, policy, look=number, reference=reference, bar=bar)
        save_groups(self.folder / _fresh_file(number), fresh.groups)
        seen = measure(self.score, fresh.groups)
        return self.watch.look(seen, step=step, kl=fresh.kl_nats), fresh

    def adopt(self, reward_model: Path, look: Look) -> None:
        """Go on with a new reward model, and compare with the responses it was trained for.

        Writes:
            `watch.json`, once the new figures are there.
        """
        record = replace(
            self.record, reward_model=_full(reward_model), compared_with=_fresh_file(look.number)
        )
        score = load_reward(reward_model)
        self.watch.compare_with(_figures(self.folder, record, score))
        self.record, self.score = record, score
        write_json(self.folder / WATCH_FILE, record.to_json())


def _fresh_file(number: int) -> str:
    """Where the responses of a look are kept."""
    return f"fresh_{number:04d}.jsonl"


def start_watch(
    folder: Path,
    *,
    reference_policy: str,
    reward_model: str,
    prompts: Sequence[Prompt],
    plan: ProbePlan,
    rules: WatchRules,
    progress: ProgressReporter,
) -> OpenWatch:
    """Begin a watch, or open the one that was begun so.

    Raises:
        ConfigError: When the folder has a watch of another reward model or other rules.
        EmptySetError: When there are too few prompts.
        ModelError: When a model is missing or of another kind.

    Writes:
        The folder, up to the first look.
    """
    record = WatchRecord(_full(reward_model), rules, "probes/reference.jsonl")
    path = folder / WATCH_FILE
    if path.exists():
        found = _read_record(folder)
        if found.rules != rules:
            raise ConfigError(
                f"{path} has other rules than are asked for: a budget of false alarms is one "
                "run's. Leave the options out, or begin a new watch in another --output"
            )
    # What is wrong with the reward model is told before minutes of sampling.
    score = load_reward(reward_model)
    build_probes(folder / "probes", reference_policy, prompts, plan, progress=progress)
    if not path.exists():
        _figures(folder, record, score)
        write_json(path, record.to_json())
    return open_watch(folder)


def open_watch(folder: Path) -> OpenWatch:
    """The watch in a folder.

    Raises:
        DataError: When there is none.
        ModelError: When its reward model is not where it was.
    """
    record = _read_record(folder)
    score = load_reward(record.reward_model)
    watch = Watch(_figures(folder, record, score), record.rules, folder)
    return OpenWatch(folder, record, load_probes(folder / "probes"), score, watch)


def watch_rounds(run: Path, rules: WatchRules) -> Iterator[tuple[str, list[Look]]]:
    """A run's arms looked at round by round: each round's responses by its own reward model.

    The evaluation's prompts are the probes, SFT's responses to them the reference. SFT and the
    policies were sampled with the same random numbers, so that a policy that has not moved gives
    the very same responses: fewer false alarms than the budget allows, never more.

    Args:
        run: The folder of `metarm run`.
        rules: A budget for each arm and seed; its looks are the run's rounds.

    Yields:
        `seed N, ARM`, and its looks.

    Raises:
        EmptySetError: When no round has been evaluated.
    """
    found = False
    for seed in sorted(run.glob("seed_*"), key=lambda path: path.name):
        for arm in sorted(seed.glob("arms/*")):
            rounds = sorted(arm.glob("round_*/evaluation/groups.jsonl"))
            rounds = [path for path in rounds if path.parts[-3] != "round_00"]
            if arm.name.startswith(".") or not rounds:
                continue
            found = True
            name = f"seed {seed.name.removeprefix('seed_')}, {arm.name}"
            yield name, _watch_arm(seed, rounds, rules)
    if not found:
        raise EmptySetError(
            f"{run}: expected seed_*/arms/*/round_*/evaluation/groups.jsonl of round 1 or later, "
            "found none: let the run finish a round, or name another folder"
        )


def _watch_arm(seed: Path, rounds: Sequence[Path], rules: WatchRules) -> list[Look]:
    budget = AlarmBudget(rules.budget.alpha, len(rounds))
    reference = load_groups(seed / SFT_GROUPS)
    watch: Watch | None = None
    for path in rounds:
        place = path.parents[1]
        score = load_reward(_reward_of(place, seed))
        before = measure(score, reference)
        if watch is None:
            watch = Watch(before, replace(rules, budget=budget))
        watch.compare_with(before)
        watch.look(measure(score, _in_order(load_groups(path), reference)), step=_number(place))
    assert watch is not None
    return watch.looks


def _reward_of(place: Path, seed: Path) -> Path:
    """The reward model that a round's policy was optimised against."""
    kept = place / "champion" / "champion.json"
    if kept.exists():
        return place / "champion" / str(read_json(kept)["model"])
    own = place / "reward"
    return own if own.exists() else seed / "reward"


def _number(place: Path) -> int:
    return int(place.name.removeprefix("round_"))


def _in_order(
    groups: Sequence[ResponseGroup], reference: Sequence[ResponseGroup]
) -> list[ResponseGroup]:
    """The groups in the reference's order of prompts."""
    own = {group.prompt: group for group in groups}
    missing = [group.prompt for group in reference if group.prompt not in own]
    if missing:
        raise DataError(
            f"expected responses to the same {len(reference)} prompts as SFT's, got none to "
            f"{len(missing)} of them, the first {str(missing[0])[:60]!r}"
        )
    return [own[group.prompt] for group in reference]


def _figures(folder: Path, record: WatchRecord, score: RewardModelScore | EnsembleScore) -> Any:
    path = folder / record.compared_with
    name = fingerprint(content_digest(record.reward_model), content_digest(path))
    return measure_once(load_groups(path), folder, score, name)


def _read_record(folder: Path) -> WatchRecord:
    path = folder / WATCH_FILE
    if not path.exists():
        raise DataError(
            f"no watch in {folder}: begin one with `metarm watch --output {folder} --reference "
            "SFT --reward-model MODEL --prompts FILE`"
        )
    document = read_json(path)
    try:
        rules = dict(document["rules"])
        budget = AlarmBudget(**rules.pop("budget"))
        return WatchRecord(
            str(document["reward_model"]),
            WatchRules(budget=budget, **rules),
            str(document["compared_with"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: expected the record of a watch, got {error!r}. Begin it again in another "
            "folder"
        ) from error


def _full(model: str | Path) -> str:
    """A folder by its full path, since the watch may be opened from elsewhere; a hub id as is."""
    path = Path(model)
    return str(path.resolve() if path.exists() else path)
