# SPDX-License-Identifier: Apache-2.0
"""What is judged: responses of two arms to one prompt; and what judges said of each."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metarm.data.meta_sets import load_groups
from metarm.data.rows import read_rows
from metarm.errors import ConfigError, DataError, EmptySetError, FingerprintError, FormatError
from metarm.schema import VERDICTS, Prompt, Verdict, prompt_from_json, prompt_to_json
from metarm.storage import read_json, read_json_lines, write_json, write_json_lines

__all__ = [
    "COMPARISONS_FILE",
    "DECIDED",
    "Arm",
    "Comparison",
    "Judgement",
    "JudgementSet",
    "compare_arms",
    "keep_comparisons",
    "load_arm",
    "load_comparisons",
    "load_judgements",
    "load_run_arms",
    "save_judgements",
]

COMPARISONS_FILE: Final = "comparisons.jsonl"
VERDICTS_FOLDER: Final = "verdicts"
DECIDED: Final[tuple[Verdict, ...]] = ("first", "second", "tie")
"""Verdicts that count; the others are counted apart."""
_MIRROR: Final[Mapping[Verdict, Verdict]] = {"first": "second", "second": "first"}

Arm = Mapping[tuple[str, Prompt], Sequence[str]]
"""An arm's responses by source (a seed's name, or nothing) and prompt."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Responses of two arms to one prompt."""

    prompt: Prompt
    first_arm: str
    second_arm: str
    first: str
    second: str
    source: str = ""
    """Which of several repeats both come from: `seed_0`, say."""
    number: int = 0
    """Which of the arms' responses to the prompt."""

    @property
    def is_same(self) -> bool:
        """Whether both wrote the same: a tie that nobody needs to judge."""
        return self.first == self.second

    def to_json(self) -> dict[str, Any]:
        """A row of `comparisons.jsonl`."""
        return {
            "prompt": prompt_to_json(self.prompt),
            "first_arm": self.first_arm,
            "second_arm": self.second_arm,
            "first": self.first,
            "second": self.second,
            "source": self.source,
            "number": self.number,
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said of one comparison, in each order that it was asked in.

    Both verdicts are told of the arms, not of the places: `first` is the comparison's first arm.
    """

    forward: Verdict | None
    """With the first arm's response shown first; None: not asked so."""
    backward: Verdict | None
    """With the second arm's response shown first."""

    @classmethod
    def of_orders(cls, forward: Verdict | None, shown_backward: Verdict | None) -> "Judgement":
        """From the verdicts as given, each about the response shown first and second.

        Example:
            >>> Judgement.of_orders("first", "second").verdict
            'first'
        """
        told = None if shown_backward is None else _MIRROR.get(shown_backward, shown_backward)
        return cls(forward, told)

    @property
    def verdict(self) -> Verdict:
        """Both orders as one: what they agree on, else a tie; unusable where either is.

        Example:
            >>> Judgement("first", "second").verdict, Judgement("first", "malformed").verdict
            ('tie', 'malformed')
        """
        told: list[Verdict] = [v for v in (self.forward, self.backward) if v is not None]
        for unusable in ("unjudged", "malformed"):
            if unusable in told:
                return unusable
        if not told:
            return "unjudged"
        return told[0] if len(set(told)) == 1 else "tie"


@dataclass(frozen=True, slots=True)
class JudgementSet:
    """One judge's judgements of all comparisons of a folder, in their order."""

    name: str
    facts: Mapping[str, Any]
    """What decides its verdicts: kind, model, template, and what it took."""
    judgements: tuple[Judgement, ...]


def load_arm(source: str | Path) -> Arm:
    """An arm's responses in a file: rows of `prompt` with `response` or `responses`.

    Rows of one prompt are taken together, in order.

    Raises:
        FormatError: At the first row that has no prompt or no response.
        EmptySetError: When there is no row.
        DataError: When there is no such file or data set.
    """
    found: dict[tuple[str, Prompt], list[str]] = {}
    for row in read_rows(source):
        names = ("responses", "completions", "response", "completion")
        name = next((name for name in names if row.has(name)), "response")
        own = found.setdefault(("", row.prompt("prompt")), [])
        if name in names[:2]:
            own += [row.response(name, at) for at in range(row.length(name))]
        else:
            own.append(row.response(name))
    return found


def load_run_arms(
    run_dir: Path, round_number: int | None, *, is_new_task: bool = False
) -> dict[str, Arm]:
    """The evaluated responses of every arm of a run, over its seeds.

    Args:
        run_dir: Folder of a run.
        round_number: After which round; None: the last that every trained arm has reached in
            every seed. An arm that only starts is taken as it is.
        is_new_task: Responses to the prompts of the run's new task.

    Raises:
        EmptySetError: When no arm has responses after that round.
    """
    places: dict[tuple[str, str], dict[int, Path]] = {}
    stage = "evaluation_new_task" if is_new_task else "evaluation"
    for path in sorted(run_dir.glob(f"seed_*/arms/*/round_*/{stage}/groups.jsonl")):
        seed, _, arm, name, *_ = path.relative_to(run_dir).parts
        places.setdefault((arm, seed), {})[int(name.removeprefix("round_"))] = path
    reached = [max(rounds) for rounds in places.values() if max(rounds) > 0]
    wanted = round_number if round_number is not None else min(reached, default=0)
    arms: dict[str, dict[tuple[str, Prompt], list[str]]] = {}
    for (arm, seed), rounds in places.items():
        is_start = max(rounds) == 0
        place = rounds.get(0 if is_start else wanted)
        if place is not None:
            for group in load_groups(place):
                arms.setdefault(arm, {})[seed, group.prompt] = list(group.responses)
    if not arms:
        raise EmptySetError(
            f"{run_dir}: expected evaluated responses after round {wanted}, found none. Give the "
            "folder of a run, and a round that it has reached (--round)."
        )
    return dict(arms)


def compare_arms(
    arms: Mapping[str, Arm],
    *,
    against: str | None,
    num_prompts: int | None,
    num_responses: int,
) -> list[Comparison]:
    """The comparisons of some arms: every two of them, or each with one.

    Arms are compared on the prompts that all of them have, so that every comparison of arms is
    about the same prompts.

    Raises:
        ConfigError: When there are fewer than two arms, or none is called `against`.
        EmptySetError: When the arms share no prompt.
    """
    if len(arms) < 2:
        raise ConfigError(f"expected two or more arms to compare, got {sorted(arms) or 'none'}")
    if against is not None and against not in arms:
        raise ConfigError(f"against={against}: no such arm, there is {', '.join(arms)}")
    first, *others = arms.values()
    shared = [place for place in first if all(place in other for other in others)]
    if not shared:
        raise EmptySetError(
            f"the arms {', '.join(arms)} share no prompt: give responses to the same prompts, "
            "written the same way"
        )
    names = [name for name in arms if name != against]
    pairs = (
        list(itertools.combinations(names, 2))
        if against is None
        else [(name, against) for name in names]
    )
    return [
        Comparison(prompt, one, other, mine, theirs, source, number)
        for source, prompt in shared[:num_prompts]
        for one, other in pairs
        for number, (mine, theirs) in enumerate(
            zip(
                arms[one][source, prompt][:num_responses],
                arms[other][source, prompt][:num_responses],
                strict=False,
            )
        )
    ]


def keep_comparisons(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Write what is judged in `folder`, or check that it is what is there.

    Raises:
        FingerprintError: When other comparisons are there: verdicts belong to theirs.

    Writes:
        `comparisons.jsonl`.
    """
    path = folder / COMPARISONS_FILE
    if not path.exists():
        write_json_lines(path, (comparison.to_json() for comparison in comparisons))
    elif load_comparisons(folder) != list(comparisons):
        raise FingerprintError(
            f"{path} holds other comparisons than these: give the responses and settings it was "
            "made with, or another output folder"
        )


def load_comparisons(folder: Path) -> list[Comparison]:
    """The comparisons of a folder, in order.

    Raises:
        DataError: When there are none.
        FormatError: When a row is not a comparison.
    """
    path = folder / COMPARISONS_FILE
    found = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            found.append(Comparison(**{**row, "prompt": prompt_from_json(row["prompt"])}))
        except (KeyError, TypeError) as error:
            raise FormatError(
                f"{path}:{number}: expected a comparison, got {str(row)[:60]!r} ({error}). "
                "Use another output folder, or restore the file."
            ) from error
    return found


def save_judgements(folder: Path, judged: JudgementSet) -> Path:
    """Write one judge's judgements and return the file.

    Writes:
        `verdicts/NAME.json` in `folder`.
    """
    path = folder / VERDICTS_FOLDER / f"{judged.name}.json"
    rows = [[judgement.forward, judgement.backward] for judgement in judged.judgements]
    write_json(path, {"facts": dict(judged.facts), "verdicts": rows})
    return path


def load_judgements(folder: Path, num_comparisons: int) -> list[JudgementSet]:
    """What every judge said of a folder's comparisons, by name.

    Raises:
        FormatError: When a file is not as it was written.
    """
    found = []
    for path in sorted((folder / VERDICTS_FOLDER).glob("*.json")):
        document = read_json(path)
        try:
            judgements = tuple(Judgement(*_checked(row)) for row in document["verdicts"])
            found.append(JudgementSet(path.stem, dict(document["facts"]), judgements))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path}: expected the verdicts of a judge, got something else ({error}). "
                "Remove the file and have its judge judge again."
            ) from error
        if len(judgements) != num_comparisons:
            raise DataError(
                f"{path}: expected {num_comparisons} verdicts, one for each comparison, got "
                f"{len(judgements)}. Remove the file and have its judge judge again."
            )
    return found


def _checked(row: Iterable[Any]) -> tuple[Verdict | None, Verdict | None]:
    """The two verdicts of a row."""
    forward, backward = row
    for verdict in (forward, backward):
        if verdict is not None and verdict not in VERDICTS:
            raise ValueError(f"{verdict!r} is no verdict")
    return forward, backward
