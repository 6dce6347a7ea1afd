# SPDX-License-Identifier: Apache-2.0
"""One seed of a run: the stages of each arm's rounds, each built once from those before it."""

import gc
import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metarm.checkpoints import CheckpointPlace
from metarm.chunk_log import ChunkLog
from metarm.config import ArmSettings, RewardSettings, RunSettings
from metarm.config_optimize import OptimizeSettings
from metarm.data.meta_sets import load_demonstrations, load_groups, save_groups
from metarm.data.preferences import save_preferences
from metarm.data.reservoir import keep_reservoir
from metarm.evaluation.champion import PromotionRules
from metarm.evaluation.champion_folder import keep_better
from metarm.gold_labels import label_groups, relabel_pairs
from metarm.models.ensemble import load_reward, save_ensemble
from metarm.policy.optimizers import build_optimizer
from metarm.policy.sampling import sample_groups
from metarm.protocols import ProgressReporter
from metarm.round_evaluation import EvaluationWork, evaluate
from metarm.round_labels.stages import LabelWork, buy_labels, load_labels
from metarm.round_labels.waiting import Waiting
from metarm.schema import PreferencePair, Prompt, ResponseGroup
from metarm.sources import Sources
from metarm.storage import (
    Stage,
    build_stage,
    checkpoints_of,
    content_digest,
    fingerprint,
)
from metarm.training import train_reward_model

__all__ = ["Position", "SeedRun"]


@dataclass(frozen=True, slots=True)
class Position:
    """Where an arm stands between two rounds."""

    policy: Stage
    reward: Stage
    """One reward model, or the ensemble of `members`."""
    members: tuple[Stage, ...]
    evaluation: Stage
    labels: tuple[Stage, ...] = ()
    """The stages whose labels this arm has bought so far."""
    past: tuple[Stage, ...] = ()
    """The sample stages of the rounds that are over, where a reservoir keeps some of them."""
    new_task: Stage | None = None
    """The evaluation on the new task, where the run has one."""


@dataclass(frozen=True)
class SeedRun:
    """One seed's settings, folder and sources: what every stage of it needs."""

    settings: RunSettings
    seed: int
    folder: Path
    sources: Sources
    progress: ProgressReporter

    def train_first_reward_model(self) -> Stage:
        """The plain reward model on original pairs that every arm's round 1 has behind it."""
        settings = self.settings.reward.model_copy(update={"meta_mode": "off"})
        sources = self.sources
        return self._reward_stage(
            self.folder / "reward", settings, sources.reward_backbone, sources.pairs, [], 0
        )

    def evaluate_sft(self, arm: str, first_reward: Stage) -> Position:
        """Round 0: the SFT policy, scored by the first reward model."""
        place = self.folder / "arms" / arm / "round_00"
        policy = self.sources.policy
        evaluation, new_task = evaluate(
            self._evaluation(place, arm, 0, first_reward), policy, first_reward, (None, None), 0.0
        )
        return Position(policy, first_reward, (first_reward,), evaluation, new_task=new_task)

    def run_round(
        self, arm: str, round_number: int, start: Position, first_reward: Stage
    ) -> Position | Waiting:
        """One round of one arm: sample, label, train the reward model, optimise, evaluate.

        A round that asks people stops until they have answered.
        """
        place = self.folder / "arms" / arm / f"round_{round_number:02d}"
        samples: list[Stage] = []
        trained: list[Stage] = []
        members: tuple[Stage, ...] = (first_reward,)
        labels, past = start.labels, start.past
        if self.settings.arm(arm).reward == "retrain":
            if self._needs_samples(arm):
                samples.append(
                    self._sample_stage(place / "samples", arm, start.policy, round_number)
                )
            if self.settings.arm(arm).num_gold_labels:
                labels = (*labels, *samples)
            if self.settings.arm(arm).labels_per_round:
                bought = self._buy_labels(place, arm, start, samples, round_number)
                if isinstance(bought, Waiting):
                    return bought
                labels = (*labels, bought)
                trained.append(bought)
            members = self._retrain(place, arm, start, samples, labels, round_number)
            trained += members
            if self.settings.arm(arm).meta_reservoir:
                past = (*past, *samples)
        reward = members[0]
        if len(members) > 1:
            reward = self._ensemble_stage(place / "reward", arm, members)
            trained.append(reward)
        if self.settings.arm(arm).keep_champion:
            decided = self._champion_stage(place / "champion", start.reward, reward, samples)
            trained.append(decided)
            if not decided.metrics["replaces"]:
                reward, members = start.reward, start.members
        policy = self._policy_stage(place / "policy", arm, start, reward, round_number)
        seconds = sum(stage.seconds for stage in [*samples, *trained, policy])
        evaluation, new_task = evaluate(
            self._evaluation(place, arm, round_number, first_reward),
            policy,
            reward,
            (start.evaluation, start.new_task),
            seconds,
        )
        return Position(policy, reward, members, evaluation, labels, past, new_task)

    def _evaluation(
        self, place: Path, arm: str, round_number: int, first_reward: Stage
    ) -> EvaluationWork:
        return EvaluationWork(
            self.settings, arm, self.seed, round_number, place, self.folder, self.sources,
            first_reward, self.progress,
        )  # fmt: skip

    def _checkpoints(self, folder: Path) -> CheckpointPlace:
        """Where a stage that is built in `folder` keeps what it goes on from."""
        return CheckpointPlace(checkpoints_of(folder), self.settings.checkpoint_steps)

    def _needs_samples(self, arm: str) -> bool:
        meta_mode = self.settings.for_arm(arm).reward.meta_mode
        own = self.settings.arm(arm)
        buys = own.num_gold_labels or (own.labels_per_round and own.labels_on == "policy")
        return meta_mode != "off" or bool(buys) or own.keep_champion

    def _draw_seed(self, what: str, round_number: int) -> int:
        """The same in every arm, so that arms are compared on the same draws.

        32 bits, which numpy takes; streams of their own, so that nothing is drawn twice.
        """
        return int(fingerprint(what, self.seed, round_number), 16) % 2**32

    def _buy_labels(
        self,
        place: Path,
        arm: str,
        start: Position,
        samples: Sequence[Stage],
        round_number: int,
    ) -> Stage | Waiting:
        """The labels that an arm buys in a round, on its policy's responses or on SFT's."""
        if self.settings.arm(arm).labels_on == "original":
            sft = self.sources.policy
            samples = [self._sample_stage(place / "samples_original", arm, sft, round_number)]
        work = LabelWork(
            self.settings, arm, self.seed, round_number, place, self.sources, self.progress,
            draw=self._draw_seed("samples", round_number),
        )  # fmt: skip
        return buy_labels(work, samples[0], start.reward, start.labels)

    def _sample_stage(self, place: Path, arm_name: str, policy: Stage, round_number: int) -> Stage:
        arm = self.settings.arm(arm_name)
        sampling = self.settings.for_arm(arm_name).sampling
        seed = self._draw_seed("samples", round_number)
        record = {
            "sampling": sampling.model_dump(),
            "num_gold_labels": arm.num_gold_labels,
            "gold": self.settings.evaluation.gold if arm.num_gold_labels else None,
            "seed": seed,
        }

        def build(folder: Path) -> dict[str, Any]:
            groups = sample_groups(
                policy.folder,
                self.sources.policy_prompts,
                sampling,
                seed=seed,
                progress=self.progress,
                log=_log(folder),
            )
            save_groups(folder / "groups.jsonl", groups)
            labels: list[PreferencePair] = []
            if arm.num_gold_labels:
                assert self.sources.gold is not None  # RunSettings has checked it
                labels = label_groups(groups, self.sources.gold, arm.num_gold_labels, seed=seed)
                save_preferences(folder / "labels.jsonl", labels)
            return {"num_groups": len(groups), "num_labels": len(labels)}

        return build_stage(place, record, [policy, self.sources.data], build, goes_on=True)

    def _retrain(
        self,
        place: Path,
        arm_name: str,
        start: Position,
        samples: Sequence[Stage],
        labels: Sequence[Stage],
        round_number: int,
    ) -> tuple[Stage, ...]:
        """The round's reward models: original pairs, every label bought so far, and groups."""
        arm, own = self.settings.arm(arm_name), self.settings.for_arm(arm_name)
        pairs = self.sources.pairs
        if arm.relabel_original:
            assert self.sources.gold is not None  # RunSettings has checked it
            pairs = relabel_pairs(pairs, self.sources.gold)
        bought = load_labels(labels)
        groups: list[ResponseGroup] = []
        if own.reward.meta_mode != "off":
            groups = self._meta_set(arm, samples, start.past, round_number)
        places = [place / "reward"]
        if arm.members > 1:
            places = [place / f"member_{number}" for number in range(arm.members)]
        backbones = [self.sources.reward_backbone] * arm.members
        if own.reward_start == "previous":
            # Round 1 has one model behind it, which all members then begin from.
            backbones = list(start.members) * (arm.members // len(start.members))
        return tuple(
            self._reward_stage(
                member_place,
                own.reward,
                backbone,
                [*pairs, *bought * arm.label_repeat],
                groups,
                round_number,
                [*samples, *labels, *start.past],
                relabelled=arm.relabel_original,
                num_kept=arm.meta_reservoir if start.past else 0,
                member=number,
            )
            for number, (member_place, backbone) in enumerate(zip(places, backbones, strict=True))
        )

    def _meta_set(
        self, arm: ArmSettings, samples: Sequence[Stage], past: Sequence[Stage], round_number: int
    ) -> list[ResponseGroup]:
        """The round's own groups, and a sample of those of the rounds before, by round."""
        own = [group for stage in samples for group in load_groups(stage.folder / "groups.jsonl")]
        if not past:
            return own
        earlier = [
            replace(group, source=f"round_{number}")
            for number, stage in enumerate(past, start=1)
            for group in load_groups(stage.folder / "groups.jsonl")
        ]
        # One seed for all rounds: what a round has let go does not come back.
        seed = self._draw_seed("reservoir", 0)
        kept = keep_reservoir(earlier, arm.meta_reservoir, seed=seed)
        return [*(replace(group, source=f"round_{round_number}") for group in own), *kept]

    def _champion_stage(
        self, place: Path, champion: Stage, challenger: Stage, samples: Sequence[Stage]
    ) -> Stage:
        """Whether the round's reward model takes the place of the one before, and why."""
        rules = PromotionRules()
        groups = [g for stage in samples for g in load_groups(stage.folder / "groups.jsonl")]
        inputs = [self.sources.data, champion, challenger, *samples]

        def build(folder: Path) -> dict[str, Any]:
            pairs = self.sources.test_pairs
            both = challenger.folder, champion.folder
            return keep_better(folder, place, *both, pairs, groups, rules)

        return build_stage(place, {"rules": asdict(rules)}, inputs, build)

    def _ensemble_stage(self, place: Path, arm: str, members: Sequence[Stage]) -> Stage:
        pessimism = self.settings.arm(arm).pessimism

        def build(folder: Path) -> None:
            places = [member.folder for member in members]
            save_ensemble(folder, places, self.sources.test_pairs, pessimism=pessimism)

        record = {"pessimism": pessimism}
        return build_stage(place, record, [self.sources.data, *members], build)

    def _reward_stage(
        self,
        place: Path,
        settings: RewardSettings,
        backbone: Stage,
        pairs: Sequence[PreferencePair],
        groups: Sequence[ResponseGroup],
        round_number: int,
        inputs: Sequence[Stage] = (),
        *,
        relabelled: bool = False,
        member: int = 0,
        num_kept: int = 0,
    ) -> Stage:
        # The first member is the reward model of an arm that trains one.
        seed = self._draw_seed(f"reward {member}" if member else "reward", round_number)

        def build(folder: Path) -> dict[str, Any]:
            result = train_reward_model(
                model=str(backbone.folder),
                pairs=pairs,
                test_pairs=self.sources.test_pairs,
                groups=groups,
                settings=settings,
                output_dir=folder,
                seed=seed,
                progress=self.progress,
                checkpoints=self._checkpoints(folder),
            )
            # The trainer and its callbacks point at each other: with them goes the model's memory.
            gc.collect()
            return {
                **result.metrics,
                "accuracy": asdict(result.accuracy),
                "encoding": result.encoding.summary(),
                **({"meta_encoding": meta.summary()} if (meta := result.meta_encoding) else {}),
                **({"meta_guard": guard.summary()} if (guard := result.guard) else {}),
                "num_test_too_long": result.num_test_too_long,
            }

        record = {
            "reward": _effective(settings, num_kept),
            "num_extra": len(pairs) - len(self.sources.pairs),
            "seed": seed,
            **({"relabelled": True, "gold": self.settings.evaluation.gold} if relabelled else {}),
            **({"meta_reservoir": num_kept} if num_kept else {}),
        }
        made_from = [self.sources.data, backbone, *inputs]
        return build_stage(place, record, made_from, build, goes_on=True)

    def _policy_stage(
        self, place: Path, arm: str, start: Position, reward: Stage, round_number: int
    ) -> Stage:
        own = self.settings.for_arm(arm)
        policy = start.policy if own.policy_start == "previous" else self.sources.policy
        seed = self._draw_seed("policy", round_number)
        # Now: a wrong name is an error before hours of work.
        named = build_optimizer(own.optimize)
        keeps = "checkpoints" in inspect.signature(named).parameters

        def build(folder: Path) -> dict[str, Any]:
            optimize = build_optimizer(
                own.optimize,
                pairs=self.sources.pairs,
                demonstrations=self._demonstrations(own.optimize),
                checkpoints=self._checkpoints(folder),
            )
            return dict(
                optimize(
                    policy_dir=policy.folder,
                    reference_dir=self.sources.policy.folder,
                    reward_model_dir=reward.folder,
                    score=load_reward(reward.folder),
                    prompts=self.sources.policy_prompts,
                    output_dir=folder,
                    seed=seed,
                    monitor=self.sources.gold,
                    progress=self.progress,
                )
            )

        texts = own.optimize.ptx_texts
        record = {
            "optimize": own.optimize.model_dump(),
            "seed": seed,
            **({"ptx_texts": content_digest(texts)} if texts else {}),
        }
        inputs = [self.sources.data, policy, self.sources.policy, reward]
        return build_stage(place, record, inputs, build, goes_on=keeps)

    def _demonstrations(self, optimize: OptimizeSettings) -> list[tuple[Prompt, str]]:
        """What SFT was trained on, where its loss is mixed in."""
        path = self.sources.demonstrations
        if not optimize.ptx_coef or optimize.ptx_texts or path is None:
            return []
        return load_demonstrations(path)


def _log(folder: Path) -> ChunkLog:
    """The parts that a stage which is built in `folder` has done."""
    return ChunkLog(checkpoints_of(folder) / "parts.jsonl")


def _effective(settings: RewardSettings, num_kept: int) -> dict[str, Any]:
    """The settings that decide the result: those of the meta step only where there is one."""
    values = settings.model_dump()
    if not num_kept:
        del values["meta_source_floor"]
    if settings.meta_mode == "off":
        values = {key: value for key, value in values.items() if not key.startswith("meta_")}
    return values
