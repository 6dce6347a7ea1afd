# SPDX-License-Identifier: Apache-2.0
"""What a run starts from: policy, pairs, prompts and gold, of files, a gold function or a world."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarm.checkpoints import CheckpointPlace
from metarm.chunk_log import ChunkLog
from metarm.config import RunSettings, SamplingSettings, SftSettings, WorldSettings
from metarm.data.derived import split_labelled, without_kin_of
from metarm.data.meta_sets import load_demonstrations, load_prompts
from metarm.data.preferences import (
    load_preferences,
    save_preferences,
    unseen_prompts,
    without_prompts_of,
)
from metarm.errors import ConfigError, EmptySetError, ModelError
from metarm.gold_labels import label_groups
from metarm.models.loading import load_encoder, read_context_length
from metarm.policy.sampling import sample_groups
from metarm.policy.sft import train_sft
from metarm.protocols import ProgressReporter, ScoreFunction
from metarm.resolve import load_gold
from metarm.schema import PreferencePair, Prompt, prompt_to_json
from metarm.storage import (
    Stage,
    build_stage,
    checkpoints_of,
    content_digest,
    write_json_lines,
)
from metarm.world.build import build_world
from metarm.world.language import GoldReward, build_language

__all__ = ["Sources", "prepare_sources"]


@dataclass(frozen=True, slots=True)
class Sources:
    """What every arm of a seed shares before its first round."""

    data: Stage
    """Holds the pair and prompt files."""
    policy: Stage
    """The SFT policy: every arm's start and every KL's reference."""
    reward_backbone: Stage
    """Where reward models start."""
    pairs: tuple[PreferencePair, ...]
    test_pairs: tuple[PreferencePair, ...]
    prompts: tuple[Prompt, ...]
    test_prompts: tuple[Prompt, ...]
    gold: ScoreFunction | None
    demonstrations: Path | None = None
    """The file that the SFT policy was trained on; None where it came trained."""
    new_task_prompts: tuple[Prompt, ...] = ()
    """Of another task than the pairs'; empty where there is none."""
    new_task_test_prompts: tuple[Prompt, ...] = ()

    @property
    def policy_prompts(self) -> tuple[Prompt, ...]:
        """What the policy is for: the new task's prompts, where there is one."""
        return self.new_task_prompts or self.prompts


def prepare_sources(
    settings: RunSettings, folder: Path, *, seed: int, progress: ProgressReporter
) -> Sources:
    """Build or find everything a seed starts from.

    Raises:
        ConfigError: When the settings name no data, or a gold function that cannot be imported.
        DataError: When a file is wrong.
    """
    if settings.world is not None:
        world = settings.world
        data = build_stage(
            folder / "world",
            {"world": _world_record(world), "seed": seed},
            [],
            lambda place: build_world(world, seed, place),
        )
        gold: ScoreFunction | None = GoldReward(build_language(world))
        texts = data.folder / "demonstrations.jsonl"
        demonstrations: Path | None = texts
        policy = _sft_stage(
            settings, str(data.folder / "model"), texts, [data], folder, seed, progress
        )
    else:
        name = settings.evaluation.gold
        gold = load_gold(name, what="evaluation.gold") if name else None
        policy = _external_policy(settings, folder, seed, progress)
        demonstrations = Path(settings.data.sft_texts) if settings.data.sft_texts else None
        data = _data_stage(settings, policy, gold, folder, seed, progress)
    backbone = policy
    if settings.reward_model_name_or_path:
        backbone = _external(settings.reward_model_name_or_path)
        _check_vocabulary(settings, policy, backbone)
    return Sources(
        data=data,
        policy=policy,
        reward_backbone=backbone,
        pairs=_saved_pairs(data.folder / "preferences.jsonl"),
        test_pairs=_saved_pairs(data.folder / "preferences_test.jsonl"),
        prompts=tuple(load_prompts(data.folder / "prompts.jsonl")),
        test_prompts=tuple(load_prompts(data.folder / "prompts_test.jsonl")),
        gold=gold,
        new_task_prompts=_saved_prompts(data.folder / "prompts_new_task.jsonl"),
        new_task_test_prompts=_saved_prompts(data.folder / "prompts_new_task_test.jsonl"),
        demonstrations=demonstrations,
    )


def _world_record(world: WorldSettings) -> dict[str, Any]:
    """What decides a world; without a new task, as before there could be one."""
    return world.model_dump(exclude=None if world.num_new_topics else {"num_new_topics"})


def _saved_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts of a task that a run need not have."""
    return tuple(load_prompts(path)) if path.exists() else ()


def _saved_pairs(path: Path) -> tuple[PreferencePair, ...]:
    return load_preferences(path, "trl-explicit", keep_blank=True).pairs


def _external(model: str) -> Stage:
    """A model that no stage of this run made; its files' bytes stand for it, or its hub id."""
    return Stage(Path(model), content_digest(model), 0.0, {})


def _sft_stage(
    settings: RunSettings,
    model: str,
    demonstrations: Path,
    inputs: Sequence[Stage],
    folder: Path,
    seed: int,
    progress: ProgressReporter,
) -> Stage:
    sft = settings.sft or SftSettings()
    return build_stage(
        folder / "sft",
        {"sft": sft.model_dump(), "seed": seed},
        inputs,
        lambda place: train_sft(
            model=model,
            demonstrations=load_demonstrations(demonstrations),
            settings=sft,
            output_dir=place,
            seed=seed,
            progress=progress,
            checkpoints=CheckpointPlace(checkpoints_of(place), settings.checkpoint_steps),
        ),
        goes_on=True,
    )


def _external_policy(
    settings: RunSettings, folder: Path, seed: int, progress: ProgressReporter
) -> Stage:
    model = settings.model_name_or_path
    assert model is not None  # RunSettings has checked it
    external = _external(model)
    if settings.sft is None:
        return external
    if settings.data.sft_texts is None:
        raise ConfigError(
            "the `sft` section asks for supervised fine-tuning, but `data.sft_texts` names no "
            "demonstrations: give a file, or remove the section if the model is the SFT policy"
        )
    texts = Path(settings.data.sft_texts)
    inputs = [external, Stage(texts, content_digest(texts), 0.0, {})]
    return _sft_stage(settings, model, texts, inputs, folder, seed, progress)


def _data_stage(
    settings: RunSettings,
    policy: Stage,
    gold: ScoreFunction | None,
    folder: Path,
    seed: int,
    progress: ProgressReporter,
) -> Stage:
    data = settings.data
    files = {
        "preferences": data.preferences,
        "preferences_test": data.preferences_test,
        "prompts": data.prompts,
    }
    if data.new_task_prompts is not None:
        files["new_task_prompts"] = data.new_task_prompts
    # Bytes, not paths: a file may move.
    record: dict[str, Any] = {
        "files": {name: file and content_digest(file) for name, file in files.items()},
        "data_format": data.data_format,
        "test_fraction": data.test_fraction,
        "room": _room(settings),
        "seed": seed,
    }
    if data.preferences is None:
        record["num_gold_pairs"] = data.num_gold_pairs
        record["gold"] = settings.evaluation.gold
        record["sampling"] = settings.sampling.model_dump()

    def build(place: Path) -> dict[str, Any]:
        if data.preferences is not None:
            loaded = load_preferences(data.preferences, data.data_format)
            pairs, summary = list(loaded.pairs), loaded.report.summary()
        else:
            assert gold is not None  # RunSettings has checked it
            log = ChunkLog(checkpoints_of(place) / "parts.jsonl")
            pairs = _gold_pairs(settings, policy, gold, seed, progress, log)
            summary = (
                f"{len(pairs)} pairs of the SFT policy's responses labelled by gold, "
                f"{data.num_gold_pairs} asked for"
            )
        if data.preferences_test is not None:
            loaded_test = load_preferences(data.preferences_test, data.data_format)
            test, test_summary = list(loaded_test.pairs), loaded_test.report.summary()
            train = without_kin_of(without_prompts_of(pairs, test), test)
        else:
            train, test = split_labelled(pairs, data.test_fraction, seed)
            test_summary = ""
        prompts = _split_prompts(settings, train, test, seed)
        train_prompts, test_prompts = (_fitting(settings, policy, part) for part in prompts)
        num_too_long = sum(map(len, prompts)) - len(train_prompts) - len(test_prompts)
        save_preferences(place / "preferences.jsonl", train)
        save_preferences(place / "preferences_test.jsonl", test)
        written = {"prompts": train_prompts, "prompts_test": test_prompts}
        if data.new_task_prompts is not None:
            new_task = _split_new_task(settings, train, test, seed)
            names = ("prompts_new_task", "prompts_new_task_test")
            for name, part in zip(names, new_task, strict=True):
                written[name] = _fitting(settings, policy, part)
        for name, kept in written.items():
            rows = ({"prompt": prompt_to_json(prompt)} for prompt in kept)
            write_json_lines(place / f"{name}.jsonl", rows)
        return {
            "summary": summary,
            **({"test_summary": test_summary} if test_summary else {}),
            "num_train_pairs": len(train),
            "num_test_pairs": len(test),
            "num_prompts_too_long": num_too_long,
            "num_sharing_test_prompt": len(pairs) - len(train) if data.preferences_test else 0,
        }

    return build_stage(folder / "data", record, [policy], build, goes_on=True)


def _room(settings: RunSettings) -> int:
    """Tokens that every prompt must leave for a response."""
    return max(settings.sampling.max_completion_length, settings.optimize.max_completion_length)


def _fitting(settings: RunSettings, policy: Stage, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that leave room for a response in the policy's context.

    Raises:
        EmptySetError: When none does.
    """
    encoder, context = load_encoder(policy.folder), read_context_length(policy.folder)
    room = _room(settings) + 1  # and EOS, which a response that fills the room is scored with
    fits = [p for p in prompts if len(encoder.encode_prompt(p)) + room <= context]
    if not fits:
        raise EmptySetError(
            f"none of the {len(prompts)} prompts leaves {room} tokens for a response in the "
            f"policy's context of {context}: lower max_completion_length or shorten the prompts"
        )
    return fits


def _check_vocabulary(settings: RunSettings, policy: Stage, backbone: Stage) -> None:
    """PPO's value model starts from the reward model: say so now, not after hours.

    Raises:
        ModelError: When the reward model's backbone has another vocabulary than the policy.
    """
    if settings.optimize.algo != "ppo" or backbone == policy:
        return
    ours, theirs = (load_encoder(m.folder).tokenizer.get_vocab() for m in (policy, backbone))
    if ours != theirs:
        raise ModelError(
            f"reward_model_name_or_path={backbone.folder} has another tokenizer than the policy: "
            "PPO's value model starts from the reward model and reads the policy's tokens. Give a "
            "backbone of the policy's family, or set optimize.algo to rloo or best_of_n"
        )


def _gold_pairs(
    settings: RunSettings,
    policy: Stage,
    gold: ScoreFunction,
    seed: int,
    progress: ProgressReporter,
    log: ChunkLog,
) -> list[PreferencePair]:
    """Pairs of the SFT policy's own responses, labelled by the gold function."""
    assert settings.data.prompts is not None  # RunSettings has checked it
    prompts = load_prompts(settings.data.prompts)
    wanted = settings.data.num_gold_pairs
    rounds = -(-wanted // len(prompts))
    pairs: list[PreferencePair] = []
    sampling = SamplingSettings(
        **{**settings.sampling.model_dump(), "num_generations": 2, "num_prompts": None}
    )
    # Twice as many as wanted: some pairs tie in gold.
    for number in range(2 * rounds):
        groups = sample_groups(
            policy.folder, prompts, sampling, seed=seed * 1009 + number, progress=progress, log=log
        )
        labelled = label_groups(groups, gold, wanted - len(pairs), seed=seed + number)
        pairs = list(dict.fromkeys([*pairs, *labelled]))
        if len(pairs) == wanted:
            return pairs
    if not pairs:
        raise EmptySetError(
            f"the gold function {settings.evaluation.gold} gives every pair of responses the same "
            "score: there is nothing to learn from; check the function on a few responses"
        )
    return pairs


def _split_new_task(
    settings: RunSettings,
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    seed: int,
) -> tuple[list[Prompt], list[Prompt]]:
    """The new task's prompts to optimise on and to evaluate on, none of them in a pair."""
    assert settings.data.new_task_prompts is not None
    pairs = [pair.prompt for pair in (*train, *test)]
    prompts = unseen_prompts(load_prompts(settings.data.new_task_prompts), pairs)
    count = max(1, round(settings.data.test_fraction * len(prompts)))
    drawn = random.Random(f"new task|{seed}").sample(prompts, min(count, len(prompts)))
    rest = unseen_prompts(prompts, drawn)
    if not rest:
        raise EmptySetError(
            f"data.new_task_prompts: {len(prompts)} prompts that no pair has, of which "
            f"{len(drawn)} are held out: give more, or another data.test_fraction"
        )
    return rest, drawn


def _split_prompts(
    settings: RunSettings,
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    seed: int,
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to optimise on and prompts to evaluate on.

    None is in both, and none of the second is in a training pair.
    """
    labelled, held_out = [pair.prompt for pair in train], [pair.prompt for pair in test]
    test_prompts = unseen_prompts(held_out, labelled)
    if settings.data.prompts is None:
        train_prompts = unseen_prompts(labelled, held_out)
    else:
        prompts = load_prompts(settings.data.prompts)
        if settings.data.preferences is not None:
            # Pairs may be of another domain: both sides are of the prompts the user optimises on.
            free = unseen_prompts(prompts, labelled)
            cut = max(1, round(settings.data.test_fraction * len(prompts)))
            test_prompts = random.Random(f"prompts|{seed}").sample(free, min(cut, len(free)))
        train_prompts = unseen_prompts(prompts, [*test_prompts, *held_out])
    if not train_prompts or not test_prompts:
        raise EmptySetError(
            f"{len(train_prompts)} prompts to optimise on and {len(test_prompts)} to evaluate on, "
            "which no training pair has: both need at least one; give more prompts or another "
            "data.test_fraction"
        )
    return train_prompts, test_prompts
