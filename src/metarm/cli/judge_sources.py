# SPDX-License-Identifier: Apache-2.0
"""The flags that name who judges: gold, a reward model, a model behind a URL, or a function."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from metarm.cli.options import note
from metarm.cli.progress import choose_progress
from metarm.errors import ConfigError

if TYPE_CHECKING:
    from metarm.config_judge import JudgeSettings
    from metarm.protocols import Judge

__all__ = [
    "FLAGS",
    "EndpointModel",
    "EndpointUrl",
    "GoldFunction",
    "JudgeSource",
    "OwnFunction",
    "RewardModel",
    "build_judge",
    "file_name",
    "read_judge_source",
    "say_what_is_missing",
]

FLAGS: Final = ("--gold", "--reward-model", "--endpoint", "--judge")
WORLD: Final = "world"

GoldFunction = Annotated[
    str | None,
    typer.Option("--gold", metavar="M:F", help="Ask a score function; `world`: that of --run."),
]
RewardModel = Annotated[
    str | None, typer.Option("--reward-model", metavar="M", help="Ask a reward model.")
]
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Ask a model at a server of OpenAI's protocol, http://127.0.0.1:8000/v1 say.",
    ),
]
EndpointModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Its name at the server.")
]
OwnFunction = Annotated[
    str | None, typer.Option("--judge", metavar="M:F", help="Ask a function of yours.")
]


class JudgeSource(NamedTuple):
    """Who judges: the flag that it was named by, what stood behind that, and a server's model."""

    flag: str
    source: str
    model: str | None

    @property
    def name(self) -> str:
        """What it is called where nobody says otherwise."""
        is_world = self.flag == "--gold" and self.source == WORLD
        return self.model or ("gold" if is_world else self.source)


def read_judge_source(
    gold: str | None,
    reward_model: str | None,
    endpoint: str | None,
    model: str | None,
    own: str | None,
) -> JudgeSource | None:
    """The one that is named, or None.

    Raises:
        ConfigError: When several are, or a server without a model.
    """
    given = [
        JudgeSource(flag, source, model)
        for flag, source in zip(FLAGS, (gold, reward_model, endpoint, own), strict=True)
        if source
    ]
    if len(given) > 1:
        named = " and ".join(one.flag for one in given)
        raise ConfigError(f"expected one judge, got {named}: start once for each")
    if bool(endpoint) != bool(model):
        raise ConfigError("--endpoint and --model belong together: the server, and the model there")
    return given[0] if given else None


def file_name(source: str) -> str:
    """A name that is a file's: the last part of a path, model or function."""
    last = re.split(r"[/:]", source.rstrip("/"))[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip(".-") or "judge"


def build_judge(
    judge_source: JudgeSource,
    settings: "JudgeSettings",
    output: Path,
    name: str,
    run_dir: Path | None,
) -> "Judge":
    """The judge that a flag names; of a model behind a URL the answers are kept in `output`."""
    flag, source, model = judge_source
    if flag == "--judge":
        from metarm.judging.judge_all import load_judge

        return load_judge(source)
    if flag == "--endpoint":
        from metarm.endpoint.client import Endpoint
        from metarm.judging.endpoint_judge import EndpointJudge

        there = Endpoint(source, str(model), settings.endpoint)
        return EndpointJudge(
            there, output / "answers" / f"{name}.jsonl", settings, choose_progress()
        )

    from metarm.judging.score_judge import ScoreJudge

    if flag == "--reward-model":
        from metarm.models.ensemble import load_reward

        return ScoreJudge(load_reward(source), settings.tie_margin)
    from metarm.resolve import load_gold

    score = _world_gold(run_dir) if source == WORLD else load_gold(source, what="--gold")
    return ScoreJudge(score, settings.tie_margin)


def _world_gold(run_dir: Path | None) -> Any:
    """The true reward of the world that a run was made in."""
    from metarm.config import RunSettings
    from metarm.config_file import read_settings
    from metarm.world.language import GoldReward, build_language

    if run_dir is None:
        raise ConfigError("--gold world: give the run with --run, too")
    world = read_settings(run_dir / "config.yaml", [], RunSettings).world
    if world is None:
        raise ConfigError(
            f"--gold world: {run_dir} is no run of a world: give --gold module:function"
        )
    return GoldReward(build_language(world))


def say_what_is_missing(facts: Mapping[str, Any]) -> None:
    """A note on what was not asked or not answered."""
    if stopped := facts.get("stopped"):
        note(
            f"stopped: {stopped}. Answers so far are kept: raise it and run the same command again"
        )
    for reason, count in (facts.get("failures") or {}).items():
        note(f"{count} questions got no answer: {reason}. The same command asks them again")
