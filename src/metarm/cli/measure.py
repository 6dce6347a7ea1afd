# SPDX-License-Identifier: Apache-2.0
"""The verbs that measure with a model: `sample`, `evaluate`, `score`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    DataFormat,
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
    from metarm.config import SamplingSettings
    from metarm.data.fields import Row
    from metarm.schema import Prompt, ResponseGroup

__all__ = ["evaluate", "sample", "score"]

RewardModel = Annotated[
    str, typer.Option("--reward-model", metavar="M", help="Reward model: folder or hub id.")
]


def sample(
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="M", help="Policy: folder or hub id; its name at --endpoint."
        ),
    ],
    prompts: Annotated[str, typer.Option("--prompts", metavar="F", help="Prompts, one a row.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="F.jsonl", help="File of groups to write.")
    ],
    words: SettingWords = None,
    config: ConfigFile = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Sample at a server of OpenAI's protocol, `batch_size` requests in flight.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Draw groups of responses from a policy.

    They are the meta set of the next reward model: nobody has to label them.
    With --endpoint every response is kept as it comes, in OUTPUT.answers.jsonl: the same command
    goes on where it was stopped.
    """
    from metarm.config import SamplingSettings
    from metarm.run_folder import hold_output

    settings = read_section(config, words, SamplingSettings)
    with hold_output(output):
        _refuse_existing(output)

        from metarm.data.meta_sets import load_prompts, save_groups

        texts = load_prompts(prompts)
        if endpoint is not None:
            groups = _sample_at(endpoint, policy, texts, settings, output, seed)
        else:
            from metarm.policy.sampling import sample_groups

            groups = sample_groups(policy, texts, settings, seed=seed, progress=choose_progress())
        save_groups(output, groups)
    finished = [flag for group in groups for flag in group.finished]
    document = {
        "output": str(output),
        "num_groups": len(groups),
        "num_responses": sum(len(group.responses) for group in groups),
        "finished_fraction": sum(finished) / len(finished) if finished else None,
    }
    (print_json if as_json else print_table)(document)


def _sample_at(
    endpoint: str,
    policy: str,
    prompts: "list[Prompt]",
    settings: "SamplingSettings",
    output: Path,
    seed: int,
) -> "list[ResponseGroup]":
    """Groups of a policy behind a URL."""
    from metarm.config_judge import EndpointSettings
    from metarm.endpoint.client import Endpoint
    from metarm.endpoint.sampling import sample_groups_from

    there = Endpoint(endpoint, policy, EndpointSettings(num_in_flight=settings.batch_size))
    answers = output.with_name(f"{output.name}.answers.jsonl")
    return sample_groups_from(
        there, prompts, settings, answers, seed=seed, progress=choose_progress()
    )


def evaluate(
    reward_model: RewardModel,
    preferences: Annotated[
        str,
        typer.Option("--preferences", metavar="F", help="Preferences: file or hub id[:split]."),
    ],
    data_format: DataFormat = None,
    as_json: AsJson = False,
) -> None:
    """Measure how a reward model orders labelled pairs.

    Of pairs whose `chosen_by` names a strategy only those of `random` count: the others, picked
    for being hard say, tell nothing of pairs in general.
    """
    from metarm.data.derived import check_evaluation
    from metarm.data.preferences import load_preferences, without_picked

    loaded = load_preferences(preferences, data_format)
    note(f"{preferences}: {loaded.report.summary()}")
    check_evaluation(loaded.pairs, preferences)
    unpicked = without_picked(loaded.pairs, preferences)
    if num_picked := len(loaded.pairs) - len(unpicked):
        note(
            f"{num_picked} pairs left out: a strategy picked them, and they tell nothing of others"
        )

    from metarm.models.ensemble import load_reward
    from metarm.models.pair_evaluation import evaluate_preferences

    score_function = load_reward(reward_model)
    pairs = score_function.fitting_pairs(unpicked)
    if num_too_long := len(unpicked) - len(pairs):
        note(f"{num_too_long} pairs left out: longer than the reward model's context")
    with choose_progress().stage("score both sides of the pairs", 2 * len(pairs)) as bar:
        found = evaluate_preferences(score_function.reporting_to(bar), pairs)
    if as_json:
        print_json(
            {
                "reward_model": reward_model,
                "preferences": preferences,
                "load": loaded.report.summary(),
                "num_picked": num_picked,
                "num_too_long": num_too_long,
                "accuracy": asdict(found.accuracy),
                "accuracy_attainable": found.accuracy_attainable,
                "accuracy_length_balanced": found.accuracy_length_balanced,
                "gap_mean": found.gap_mean,
                "gap_spread": found.gap_spread,
                "num_pairs": found.num_pairs,
            }
        )
        return
    balanced = found.accuracy_length_balanced
    print_table(
        {
            "accuracy": f"{found.accuracy} (95 % interval, {found.accuracy.count} prompts)",
            **(
                {"accuracy, attainable": f"{found.accuracy_attainable:.4g} (labels are soft)"}
                if found.accuracy_attainable is not None
                else {}
            ),
            "accuracy, length-balanced": "not defined here" if balanced is None else balanced,
            "gap, mean (logits)": found.gap_mean,
            "gap, spread (logits)": found.gap_spread,
            "pairs": found.num_pairs,
        }
    )


def score(
    reward_model: RewardModel,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="F",
            help="Rows of `prompt` with `response` or `responses`, in JSON lines or as `reward` "
            "reads them.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="F.jsonl", help="File to write. Default: stdout."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score responses with a reward model.

    Each row comes back as it was, with its `score` (or `scores`) in logits.
    """
    from metarm.data.rows import read_rows
    from metarm.storage import check_writable, write_json_lines

    if output is not None:
        _refuse_existing(output)
        check_writable(output.parent)
    rows = list(read_rows(source))
    items = [_responses(row) for row in rows]

    from metarm.models.ensemble import load_reward

    prompts = [prompt for prompt, responses, _ in items for _ in responses]
    flat = [response for _, responses, _ in items for response in responses]
    score_function = load_reward(reward_model)
    with choose_progress().stage("score responses", len(flat)) as bar:
        scores = iter(score_function.reporting_to(bar)(prompts, flat))
    scored: list[dict[str, Any]] = []
    for row, (_, responses, is_group) in zip(rows, items, strict=True):
        own = [next(scores) for _ in responses]
        scored.append({**row.values, **({"scores": own} if is_group else {"score": own[0]})})
    if output is not None:
        write_json_lines(output, scored)
        document = {"output": str(output), "num_rows": len(rows), "num_scores": len(flat)}
        (print_json if as_json else print_table)(document)
    elif as_json:
        print_json(scored)
    else:
        for line in scored:
            answer(json.dumps(line, ensure_ascii=False, allow_nan=False))


def _refuse_existing(output: Path) -> None:
    """Hours of samples or scores are not written over.

    Raises:
        ConfigError: When there is such a file.
    """
    from metarm.errors import ConfigError

    if output.exists():
        raise ConfigError(f"{output} exists: name another file, or remove it first")


def _responses(row: "Row") -> "tuple[Prompt, list[str], bool]":
    """A row's prompt, its responses, and whether it is a group."""
    prompt = row.prompt("prompt")
    if row.has("responses"):
        count = row.length("responses")
        return prompt, [row.response("responses", index) for index in range(count)], True
    return prompt, [row.response("response")], False
