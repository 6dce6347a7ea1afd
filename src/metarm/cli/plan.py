# SPDX-License-Identifier: Apache-2.0
"""The verb `plan`: memory and hours of a run on GPUs that are not here."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from metarm.cli.options import AsJson, answer, print_json

if TYPE_CHECKING:
    from metarm.speed.plan import StagePlan

__all__ = ["plan"]

_HEAD = ("stage", "way", "GB a GPU", "fits", "least GPUs", "PFLOP", "hours")


def plan(
    parameters: Annotated[
        str, typer.Option("--parameters", metavar="SIZE", help="7b, 8b, 70b or a size of bench.")
    ],
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="NAME", help="a100-40, a100-80, h100, h200 or b200.")
    ] = "h100",
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="Of all nodes.")] = 8,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", metavar="N", min=1, help="That share fast links.")
    ] = 8,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Of a mean prompt.")
    ] = 256,
    response_tokens: Annotated[
        int, typer.Option("--response-tokens", metavar="N", min=1, help="Of a mean response.")
    ] = 256,
    pairs: Annotated[
        int, typer.Option("--pairs", metavar="N", min=1, help="Passed over in reward training.")
    ] = 100_000,
    demonstrations: Annotated[
        int, typer.Option("--demonstrations", metavar="N", min=1, help="Passed over in SFT.")
    ] = 100_000,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Pairs a step, over all GPUs.")
    ] = 64,
    meta_batch: Annotated[
        int, typer.Option("--meta-batch", metavar="N", min=1, help="Groups a step, over all GPUs.")
    ] = 16,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="K", min=2, help="Responses of a group.")
    ] = 5,
    meta_prompts: Annotated[
        int, typer.Option("--meta-prompts", metavar="N", min=1, help="Answered K times each.")
    ] = 10_000,
    ppo_responses: Annotated[
        int, typer.Option("--ppo-responses", metavar="N", min=1, help="Drawn and learned from.")
    ] = 100_000,
    mfu: Annotated[
        float,
        typer.Option("--mfu", metavar="X", help="Share of the GPU's rate that training reaches."),
    ] = 0.35,
    as_json: AsJson = False,
) -> None:
    """Tell memory and hours of each stage of a run, from the cost laws.

    Nothing is run and no GPU is needed. What the figures rest on is printed with them.
    """
    from metarm.speed.plan import ASSUMPTIONS, PlannedRun, plan_run

    run = PlannedRun(
        parameters=parameters,
        gpu=gpu,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        num_pairs=pairs,
        num_demonstrations=demonstrations,
        batch_size=batch,
        meta_batch_size=meta_batch,
        group_size=group_size,
        num_meta_prompts=meta_prompts,
        ppo_responses=ppo_responses,
        mfu=mfu,
    )
    stages = plan_run(run)
    if as_json:
        rows = [asdict(stage) for stage in stages]
        print_json({"run": asdict(run), "stages": rows, "assumptions": list(ASSUMPTIONS)})
        return
    table = [_HEAD, *map(_row, stages)]
    widths = [max(len(row[place]) for row in table) for place in range(len(_HEAD))]
    for row in table:
        first, *rest = row
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        answer("  ".join([f"{first:<{widths[0]}}", *cells]))
    answer("\nThis rests on:")
    for assumption in ASSUMPTIONS:
        answer(f"- {assumption}")


def _row(stage: "StagePlan") -> tuple[str, ...]:
    return (
        stage.name,
        stage.way,
        f"{stage.bytes / 1e9:.1f}",
        "yes" if stage.fits else "NO",
        "-" if stage.least_gpus is None else str(stage.least_gpus),
        f"{stage.flops / 1e15:,.0f}",
        f"{stage.hours:.1f}",
    )
