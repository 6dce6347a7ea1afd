# SPDX-License-Identifier: Apache-2.0
"""The verbs that make a model: `sft`, `reward`, `optimize`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from metarm.cli.options import (
    AsJson,
    CheckpointSteps,
    ConfigFile,
    DataFormat,
    NewFolder,
    Seed,
    SettingWords,
    build_output,
    estimate_text,
    note,
    print_json,
    print_table,
    read_section,
)
from metarm.cli.progress import choose_progress
from metarm.cli.task_files import load_tasks, task_facts
from metarm.launched import num_processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metarm.config import RewardSettings
    from metarm.schema import PreferencePair
    from metarm.storage import Stage
    from metarm.training import GuardReport
    from metarm.watching.callbacks import PolicyWatcher

__all__ = ["optimize", "reward", "sft"]

_FOR_PROGRAMS: Final = frozenset(
    {"load", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    | {"total_flos", "epoch", "num_tokens", "grad_norm", "learning_rate"}
    | {"min_reward", "mean_reward", "max_reward"}
)
"""What `--json` holds and the table leaves out: said before, or of the trainer's own accounts."""


def sft(
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Causal language model: folder or hub id.")
    ],
    demonstrations: Annotated[
        str,
        typer.Option(
            "--demonstrations", metavar="F", help="Rows of `prompt` and `response`, or `messages`."
        ),
    ],
    output: NewFolder,
    words: SettingWords = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    checkpoint_steps: CheckpointSteps = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a language model on demonstrations.

    The result is the SFT policy that a run begins from.
    """
    from metarm.config import SftSettings

    settings = read_section(config, words, SftSettings)

    def build(folder: Path) -> dict[str, Any]:
        from metarm.checkpoints import CheckpointPlace
        from metarm.data.meta_sets import load_demonstrations
        from metarm.policy.sft import train_sft
        from metarm.storage import checkpoints_of

        metrics = train_sft(
            model=model,
            demonstrations=load_demonstrations(demonstrations),
            settings=settings,
            output_dir=folder,
            seed=seed,
            progress=choose_progress(),
            checkpoints=CheckpointPlace(checkpoints_of(folder), checkpoint_steps),
        )
        return {"metrics": dict(metrics)}

    inputs = {"model": model, "demonstrations": demonstrations}
    stage = build_output("sft", output, settings, inputs, {"seed": seed}, build, goes_on=True)
    _print_result(output, stage, as_json=as_json)


def reward(
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Backbone or reward model: folder or id.")
    ],
    preferences: Annotated[
        str,
        typer.Option("--preferences", metavar="F", help="Preferences: file or hub id[:split]."),
    ],
    output: NewFolder,
    preferences_test: Annotated[
        str | None, typer.Option("--preferences-test", metavar="F", help="Held-out preferences.")
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option(
            "--test-fraction", metavar="X", help="Prompts held out where there is no test file."
        ),
    ] = 0.1,
    data_format: DataFormat = None,
    meta_set: Annotated[
        str | None,
        typer.Option(
            "--meta-set",
            metavar="F",
            help="Groups of the policy's responses (see `metarm sample`); without it there is no "
            "meta step.",
        ),
    ] = None,
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe",
            metavar="F",
            help="A few labelled pairs of the policy's responses: they choose how far to go from "
            "the plain model, down to not at all.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME=FILE",
            help="Preferences of another task, which gets its own last layer. Repeatable.",
        ),
    ] = None,
    task_repeat: Annotated[
        int,
        typer.Option(
            "--task-repeat", metavar="N", min=1, help="How often each pair of --task is trained on."
        ),
    ] = 1,
    words: SettingWords = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    checkpoint_steps: CheckpointSteps = None,
    as_json: AsJson = False,
) -> None:
    """Train a reward model, with the MetaRM step.

    The step needs a meta set: groups of responses of the policy that the model will judge, as
    `metarm sample` writes them. Without one this is plain training. On several GPUs start it with
    `torchrun` or `accelerate launch` (docs/scale.md). The reward models of other tasks stand in
    DIR/tasks/NAME (docs/stretching.md).
    """
    from metarm.config import RewardSettings
    from metarm.data.tasks import read_task_files
    from metarm.errors import ConfigError

    task_files = read_task_files(task or [])
    if task_repeat > 1 and not task_files:
        raise ConfigError("--task-repeat is about the pairs of --task, and there is none")
    settings = _with_meta_set(read_section(config, words, RewardSettings), meta_set)

    def build(folder: Path) -> dict[str, Any]:
        from metarm.checkpoints import CheckpointPlace
        from metarm.data.derived import split_labelled, without_kin_of
        from metarm.data.meta_sets import load_groups
        from metarm.data.preferences import load_preferences, without_prompts_of
        from metarm.data.tasks import hold_out_together
        from metarm.storage import checkpoints_of
        from metarm.training import train_reward_model

        loaded = load_preferences(preferences, data_format)
        note(f"{preferences}: {loaded.report.summary()}")
        num_shared = num_held_out = 0
        if preferences_test is None:
            pairs, test_pairs = split_labelled(loaded.pairs, test_fraction, seed)
        else:
            held_out = load_preferences(preferences_test, data_format)
            note(f"{preferences_test}: {held_out.report.summary()}")
            test_pairs = list(held_out.pairs)
            pairs = without_kin_of(without_prompts_of(loaded.pairs, test_pairs), test_pairs)
            num_shared = len(loaded.pairs) - len(pairs)
            if num_shared:
                note(
                    f"{num_shared} training pairs left out: the test file has their prompts, or "
                    "what they were made from"
                )
        tasks = load_tasks(task_files, data_format, task_repeat, test_fraction, seed)
        if tasks:
            num_before = len(pairs) + sum(len(each.pairs) for each in tasks)
            pairs, tasks = hold_out_together(pairs, test_pairs, tasks)
            num_held_out = num_before - len(pairs) - sum(len(each.pairs) for each in tasks)
        if num_held_out:
            note(f"{num_held_out} training pairs left out: another task holds out their prompts")
        groups = [] if meta_set is None else load_groups(meta_set)
        # Several processes would not decide by time together.
        can_keep = checkpoint_steps is not None or num_processes() == 1
        place = CheckpointPlace(checkpoints_of(folder), checkpoint_steps) if can_keep else None
        result = train_reward_model(
            model=model,
            pairs=pairs,
            test_pairs=test_pairs,
            groups=groups,
            settings=settings,
            output_dir=folder,
            seed=seed,
            progress=choose_progress(),
            probe=load_preferences(probe, data_format).pairs if probe else (),
            checkpoints=place,
            tasks=tasks,
        )
        return {
            "load": loaded.report.summary(),
            "encoding": result.encoding.summary(),
            **({"meta_encoding": meta.summary()} if (meta := result.meta_encoding) else {}),
            **_guard_facts(result.guard),
            "meta_mode": settings.meta_mode,
            "num_pairs": len(pairs),
            **({"num_derived": derived} if (derived := _num_derived(pairs)) else {}),
            "num_sharing_test_prompt": num_shared,
            **({"num_held_out_by_tasks": num_held_out} if tasks else {}),
            "num_test_pairs": len(test_pairs),
            "num_test_too_long": result.num_test_too_long,
            "num_groups": len(groups),
            "metrics": dict(result.metrics),
            "accuracy": asdict(result.accuracy),
            **({"tasks": task_facts(tasks, result.tasks)} if tasks else {}),
        }

    inputs = {
        "model": model,
        "preferences": preferences,
        "preferences_test": preferences_test,
        "meta_set": meta_set,
        **({"probe": probe} if probe else {}),
        **{f"task {name}": file for name, file in task_files.items()},
    }
    facts = {
        **{"seed": seed, "test_fraction": test_fraction, "data_format": data_format},
        **({"task_repeat": task_repeat} if task_files else {}),
    }
    stage = build_output("reward", output, settings, inputs, facts, build, goes_on=True)
    _print_result(output, stage, as_json=as_json)


def _num_derived(pairs: "Sequence[PreferencePair]") -> int:
    """Pseudo-labels and augmented rows."""
    return sum(bool(pair.parent_id) for pair in pairs)


def _guard_facts(guard: "GuardReport | None") -> dict[str, Any]:
    if guard is None:
        return {}
    return {"meta_guard": guard.summary(), "meta_guard_figures": asdict(guard)}


def _with_meta_set(settings: "RewardSettings", meta_set: str | None) -> "RewardSettings":
    """Settings that fit the data: no meta step without a meta set.

    Raises:
        ConfigError: When a meta mode was asked for by name and there is no meta set.
    """
    from metarm.errors import ConfigError

    if meta_set is not None:
        if settings.meta_mode == "off":
            note("meta_mode is off: the meta set is not used")
        return settings
    if settings.meta_mode != "off" and "meta_mode" in settings.model_fields_set:
        raise ConfigError(
            f"meta_mode={settings.meta_mode} needs groups of the policy's responses, got no "
            "--meta-set. Make one with `metarm sample`, or leave meta_mode out."
        )
    note("no --meta-set: plain training, meta_mode=off")
    return settings.model_copy(update={"meta_mode": "off"})


def optimize(
    policy: Annotated[
        str, typer.Option("--policy", metavar="M", help="Policy to begin from: folder or hub id.")
    ],
    reward_model: Annotated[
        str, typer.Option("--reward-model", metavar="M", help="Reward model: folder or hub id.")
    ],
    prompts: Annotated[str, typer.Option("--prompts", metavar="F", help="Prompts, one a row.")],
    output: NewFolder,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="M", help="KL is to this model. Default: --policy."),
    ] = None,
    gold: Annotated[
        str | None,
        typer.Option(
            "--gold", metavar="MODULE:FUNCTION", help="True reward: watched, never optimised."
        ),
    ] = None,
    preferences: Annotated[
        str | None,
        typer.Option(
            "--preferences", metavar="F", help="Labelled pairs, for algo=dpo: file or hub id."
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            "--watch", metavar="DIR", help="Look on the way, and stop where it says stop (`watch`)."
        ),
    ] = None,
    watch_every: Annotated[
        int,
        typer.Option("--watch-every", metavar="N", min=1, help="Iterations between two looks."),
    ] = 10,
    words: SettingWords = None,
    config: ConfigFile = None,
    checkpoint_steps: CheckpointSteps = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Move a policy towards higher scores.

    By PPO, RLOO, GRPO, best-of-n (which trains nothing) or DPO (which needs no reward model, and is
    measured by it): see `algo` below.
    """
    from metarm.config_optimize import OptimizeSettings
    from metarm.resolve import load_gold

    settings = read_section(config, words, OptimizeSettings)
    monitor = load_gold(gold, what="--gold") if gold else None

    def build(folder: Path) -> dict[str, Any]:
        from metarm.checkpoints import CheckpointPlace
        from metarm.data.meta_sets import load_prompts
        from metarm.data.preferences import load_preferences
        from metarm.models.ensemble import load_reward
        from metarm.policy.optimizers import build_optimizer
        from metarm.storage import checkpoints_of

        place = CheckpointPlace(checkpoints_of(folder), checkpoint_steps)
        pairs = load_preferences(preferences).pairs if preferences else ()
        with ExitStack() as stack:
            observer = None
            if watch is not None:
                observer = stack.enter_context(
                    _watching(watch, reward_model, watch_every, place.folder)
                )
            optimizer = build_optimizer(settings, pairs=pairs, observer=observer, checkpoints=place)
            metrics = optimizer(
                policy_dir=_model_path(policy),
                reference_dir=_model_path(reference or policy),
                reward_model_dir=_model_path(reward_model),
                score=load_reward(reward_model),
                prompts=load_prompts(prompts),
                output_dir=folder,
                seed=seed,
                monitor=monitor,
                progress=choose_progress(),
            )
        return {"metrics": dict(metrics)}

    inputs = {
        "policy": policy,
        "reference": reference,
        "reward_model": reward_model,
        "prompts": prompts,
        **({"preferences": preferences} if preferences else {}),
        **({"ptx_texts": settings.ptx_texts} if settings.ptx_texts else {}),
    }
    # A look changes nothing, but where it says stop the policy is another one.
    facts = {"seed": seed, "gold": gold, **({"watch_every": watch_every} if watch else {})}
    stage = build_output("optimize", output, settings, inputs, facts, build, goes_on=True)
    _print_result(output, stage, as_json=as_json)


@contextmanager
def _watching(folder: Path, reward_model: str, every: int, kept: Path) -> Iterator["PolicyWatcher"]:
    """The watch in a folder as one that looks on; it is held meanwhile.

    Raises:
        ConfigError: When it watches another reward model.
        DataError: When there is none.
        RunError: When another process has it.

    Writes:
        `watch.json` in `kept`, which a try that goes on finds: looks before the first try.
    """
    from metarm.errors import ConfigError
    from metarm.run_folder import hold_folder
    from metarm.storage import content_digest, read_json, write_json
    from metarm.watching.callbacks import PolicyWatcher
    from metarm.watching.folder import open_watch
    from metarm.watching.probes import load_reference_model

    # Where there is no folder there is nothing to hold, and opening it says so.
    with hold_folder(folder) if folder.is_dir() else nullcontext():
        opened = open_watch(folder)
        if content_digest(opened.record.reward_model) != content_digest(reward_model):
            raise ConfigError(
                f"the watch in {folder} is of {opened.record.reward_model}, and the policy is to "
                f"be optimised against {reward_model}: give one of them, or begin another watch"
            )
        begun = kept / "watch.json"
        if not begun.exists():
            write_json(begun, {"looks": len(opened.watch.looks)})
        yield PolicyWatcher(
            opened.probes,
            opened.watch,
            opened.score,
            reference=load_reference_model(opened.probes),
            every=every,
            since=int(read_json(begun)["looks"]),
        )


def _model_path(model: str) -> Path:
    """A folder by its full path, since what is written may name it; a hub id as it is."""
    path = Path(model)
    return path.resolve() if path.exists() else path


def _print_result(output: Path, stage: "Stage | None", *, as_json: bool) -> None:
    """What a training verb has to say: its facts, its metrics, the held-out accuracy."""
    if stage is None:
        return
    document = dict(stage.metrics)
    if as_json:
        print_json({"output": str(output), **document})
        return
    shown = {name: value for name, value in document.items() if name not in _FOR_PROGRAMS}
    table = {name: value for name, value in shown.items() if not isinstance(value, dict)}
    metrics = document["metrics"].items()
    table.update({f"training: {name}": x for name, x in metrics if name not in _FOR_PROGRAMS})
    accuracy = document.get("accuracy")
    if accuracy:
        table["held-out accuracy"] = _estimate_text(accuracy)
    for name, facts in document.get("tasks", {}).items():
        table[f"held-out accuracy, {name}"] = _estimate_text(facts["accuracy"])
        table[f"the same by the main layer, {name}"] = _estimate_text(facts["accuracy_of_main"])
    table["output"] = output
    print_table(table)
    if accuracy and accuracy["low"] <= 0.5 <= accuracy["high"]:
        note(
            "The interval holds 0.5, a coin's accuracy: these pairs do not show that anything was "
            "learned. More pairs, num_train_epochs=2 or 3, or another learning_rate may help."
        )


def _estimate_text(estimate: dict[str, Any]) -> str:
    return f"{estimate_text(estimate)} (95 % interval, {estimate['count']} prompts)"
