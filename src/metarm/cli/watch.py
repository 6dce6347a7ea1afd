# SPDX-License-Identifier: Apache-2.0
"""The verb `watch`: whether the reward model still tells apart what its policy writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    Seed,
    SettingWords,
    answer,
    note,
    print_json,
    print_table,
    read_section,
)
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from metarm.config import RewardSettings
    from metarm.watching.folder import OpenWatch
    from metarm.watching.probes import FreshResponses
    from metarm.watching.watch import Look, WatchRules

__all__ = ["watch"]


def watch(
    words: SettingWords = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN_DIR", help="Look at every round of a finished run."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder of the watch.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="M", help="Begin a watch: the SFT policy."),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", metavar="M", help="Begin a watch: the reward model in use."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="F", help="Begin a watch: probe prompts, one a row."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="M", help="Take a look at this policy: folder or hub id."),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", min=0, help="Where the policy stands. Default: 1, 2."),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option("--alpha", metavar="X", help="Chance of a false alarm in the whole run."),
    ] = 0.05,
    planned_looks: Annotated[
        int,
        typer.Option("--looks", metavar="N", min=1, help="Looks that are planned to share it."),
    ] = 50,
    kl_budget: Annotated[
        float | None,
        typer.Option("--kl-budget", metavar="X", help="KL to the reference that says stop, nats."),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", metavar="N", min=1, help="Probe prompts.")
    ] = 128,
    num_reference: Annotated[
        int, typer.Option("--num-reference", metavar="N", min=2, help="Reference responses each.")
    ] = 16,
    num_fresh: Annotated[
        int, typer.Option("--num-fresh", metavar="N", min=2, help="Fresh responses each, a look.")
    ] = 8,
    max_completion_length: Annotated[
        int,
        typer.Option("--max-completion-length", metavar="N", min=1, help="Longest, in tokens."),
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="Of the sampling.")
    ] = 1.0,
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt",
            help="Where the look says adapt: train a reward model with the meta step on responses "
            "of the policy, and go on with it if it holds.",
        ),
    ] = False,
    preferences: Annotated[
        str | None,
        typer.Option("--preferences", metavar="F", help="--adapt: original pairs to train on."),
    ] = None,
    preferences_test: Annotated[
        str | None,
        typer.Option(
            "--preferences-test",
            metavar="F",
            help="--adapt: held-out pairs, which the reward model in use was not trained on.",
        ),
    ] = None,
    config: ConfigFile = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Look whether the reward model still tells apart what its policy writes.

    Says fine, look, adapt or stop, with the reasons: docs/watching.md. Begin a watch with
    --reference, --reward-model and --prompts; take a look with --policy, as often as you like; or
    look at all rounds of a run with --run. Settings are those of the reward model that --adapt
    trains.
    """
    from metarm.config import RewardSettings
    from metarm.errors import ConfigError

    settings = read_section(config, words, RewardSettings)
    if adapt and (preferences is None or preferences_test is None):
        raise ConfigError(
            "--adapt trains on original pairs and is judged by others: give --preferences FILE and "
            "--preferences-test FILE"
        )
    if run_dir is None and output is None:
        raise ConfigError("give --output DIR, the folder of a watch, or --run RUN_DIR")

    from metarm.watching.thresholds import AlarmBudget
    from metarm.watching.watch import WatchRules

    rules = WatchRules(budget=AlarmBudget(alpha, planned_looks), kl_budget=kl_budget, seed=seed)
    if run_dir is not None:
        _watch_run(run_dir, output or run_dir, rules, as_json=as_json)
        return
    assert output is not None
    begins = {"--reference": reference, "--reward-model": reward_model, "--prompts": prompts}
    missing = [name for name, value in begins.items() if value is None]
    if 0 < len(missing) < len(begins):
        raise ConfigError(f"beginning a watch needs {', '.join(missing)} too")
    if missing and policy is None:
        raise ConfigError("give --policy, to take a look, or all of what begins a watch")

    from metarm.run_folder import hold_folder
    from metarm.storage import check_writable

    check_writable(output)
    with hold_folder(output):
        if reference is not None and reward_model is not None and prompts is not None:
            from metarm.data.meta_sets import load_prompts
            from metarm.watching.folder import start_watch
            from metarm.watching.probes import ProbePlan

            plan = ProbePlan(
                num_prompts, num_reference, num_fresh, temperature, max_completion_length, seed
            )
            opened = start_watch(
                output,
                reference_policy=reference,
                reward_model=reward_model,
                prompts=load_prompts(prompts),
                plan=plan,
                rules=rules,
                progress=choose_progress(),
            )
        else:
            from metarm.watching.folder import open_watch

            opened = open_watch(output)
        adapted: dict[str, Any] | None = None
        if policy is not None:
            at = len(opened.watch.looks) + 1 if step is None else step
            look, fresh = opened.look_at(policy, step=at, progress=choose_progress())
            if adapt and look.state == "adapt" and preferences and preferences_test:
                files = preferences, preferences_test
                adapted = _adapt(opened, look, fresh, files, settings, seed)
        _print_watch(opened, adapted, as_json=as_json)


def _adapt(
    opened: "OpenWatch",
    look: "Look",
    fresh: "FreshResponses",
    files: tuple[str, str],
    settings: "RewardSettings",
    seed: int,
) -> dict[str, Any]:
    """Train a challenger on the fresh responses, and go on with it if it holds."""
    from metarm.data.derived import without_kin_of
    from metarm.data.preferences import load_preferences, without_prompts_of
    from metarm.evaluation.champion import compare_champion
    from metarm.models.ensemble import load_reward
    from metarm.storage import build_stage, content_digest, write_json
    from metarm.training import train_reward_model

    note(f"adapting: {'; '.join(look.reasons)}")
    loaded, held_out = (load_preferences(file) for file in files)
    for file, found in zip(files, (loaded, held_out), strict=True):
        note(f"{file}: {found.report.summary()}")
    pairs = without_kin_of(without_prompts_of(loaded.pairs, held_out.pairs), held_out.pairs)
    backbone = opened.probes.reference_policy

    def build(place: Path) -> dict[str, Any]:
        result = train_reward_model(
            model=backbone,
            pairs=pairs,
            test_pairs=held_out.pairs,
            groups=fresh.groups,
            settings=settings,
            output_dir=place,
            seed=seed,
            progress=choose_progress(),
        )
        return {"metrics": dict(result.metrics)}

    record = {
        "settings": settings.model_dump(mode="json"),
        "preferences": [content_digest(file) for file in files],
        "backbone": content_digest(backbone),
        "look": look.number,
        "seed": seed,
    }
    stage = build_stage(opened.folder / f"reward_{look.number:04d}", record, [], build)
    challenger = load_reward(stage.folder)
    test_pairs = challenger.fitting_pairs(held_out.pairs)
    decision = compare_champion(challenger, opened.score, test_pairs, fresh.groups)
    write_json(opened.folder / f"decision_{look.number:04d}.json", decision.to_json())
    if decision.replaces:
        opened.adopt(stage.folder, look)
    return {
        "reward_model": str(stage.folder),
        "replaces": decision.replaces,
        "reason": decision.reason,
    }


def _print_watch(opened: "OpenWatch", adapted: dict[str, Any] | None, *, as_json: bool) -> None:
    from metarm.reports.watch_page import write_watch_page

    looks = [look.to_json() for look in opened.watch.looks]
    facts = {
        "reward model": opened.record.reward_model,
        "reference policy": opened.probes.reference_policy,
        "probe prompts": len(opened.probes.groups),
        "compared with": opened.record.compared_with,
        **_facts(opened.record.rules),
    }
    page = write_watch_page({"watch": looks}, opened.folder / "watch.html", facts)
    newest = looks[-1] if looks else None
    if as_json:
        print_json(
            {
                "state": opened.watch.state,
                "look": newest,
                "adapted": adapted,
                "reward_model": opened.record.reward_model,
                "page": str(page),
            }
        )
        return
    answer(opened.watch.state)
    for reason in newest["reasons"] if newest else ():
        answer(f"  {reason}")
    if adapted is not None:
        verdict = "in use from here" if adapted["replaces"] else "not used"
        answer(f"  adapted: {adapted['reward_model']} is {verdict}: {adapted['reason']}")
    answer("")
    print_table({"looks": len(looks), "page": page})


def _watch_run(run_dir: Path, output: Path, rules: "WatchRules", *, as_json: bool) -> None:
    from metarm.reports.watch_page import write_watch_page
    from metarm.storage import check_writable, write_json
    from metarm.watching.folder import watch_rounds

    check_writable(output)
    found = {}
    for name, looks in watch_rounds(run_dir, rules):
        note(f"{name}: {', '.join(look.state for look in looks)}")
        found[name] = [look.to_json() for look in looks]
    facts = {"run": run_dir, **_facts(rules), "looks": "one a round; each arm has its own budget"}
    page = write_watch_page(found, output / "watch.html", facts)
    write_json(output / "watch.json", found)
    if as_json:
        print_json({"runs": found, "page": str(page)})
        return
    print_table({name: " ".join(look["state"] for look in looks) for name, looks in found.items()})
    answer("")
    print_table({"page": page})


def _facts(rules: "WatchRules") -> dict[str, Any]:
    return {
        "chance of a false alarm": rules.budget.alpha,
        "planned looks": rules.budget.planned_looks,
        "adapt below": f"{rules.adapt_below:g} of the reference's spread",
        "stop below": f"{rules.stop_below:g} of it",
        "KL budget (nats)": "none" if rules.kl_budget is None else rules.kl_budget,
    }
