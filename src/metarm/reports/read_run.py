# SPDX-License-Identifier: Apache-2.0
"""A run folder as frozen dataclasses: scorecards, samples, curves, and what is not there yet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from metarm.config import ARM_PRESETS, RunSettings
from metarm.errors import DataError, EmptySetError, FormatError
from metarm.round_labels.waiting import Waiting, read_waiting, waiting_text
from metarm.schema import Scorecard, prompt_from_json, prompt_text
from metarm.storage import read_json, read_json_lines

__all__ = ["Cell", "CurvePoint", "Run", "Sample", "read_run"]

NEW_TASK = "evaluation_new_task"
OPTIONAL_FIELDS = frozenset(field.name for field in fields(Scorecard) if "None" in str(field.type))


class Cell(NamedTuple):
    """One place of the grid of a run."""

    arm: str
    seed: int
    round: int


class CurvePoint(NamedTuple):
    """One iteration of the policy's optimisation."""

    kl_nats: float
    gold: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of a policy beside SFT's response to the same prompt; text is untrusted."""

    prompt: str
    response: str
    sft_response: str
    gold: float | None
    sft_gold: float | None
    score: float | None
    sft_score: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report shows of a run; `cards` has at least one entry."""

    folder: Path
    arms: tuple[str, ...]
    """Arms with at least one scorecard, in the order of the settings."""
    cards: Mapping[Cell, Scorecard]
    samples: Mapping[Cell, tuple[Sample, ...]]
    curves: Mapping[Cell, tuple[CurvePoint, ...]]
    settings: RunSettings | None
    settings_text: str
    facts: Mapping[str, Any]
    """The content of `run.json`; empty where there is none."""
    missing: tuple[str, ...]
    """Sentences: what the settings announce and the folder does not hold, what is unreadable."""
    new_task: "Run | None" = None
    """The same arms on the prompts of a new task, where the run has one."""
    waiting: tuple[Waiting, ...] = ()
    """Rounds that go on when people have answered."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with at least one scorecard."""
        return tuple(sorted({cell.seed for cell in self.cards}))

    @property
    def start_arm(self) -> str | None:
        """The arm that is the starting point of all others: it has round 0."""
        starts = [arm for arm in self.arms if self.cards_of(arm, 0)]
        return "sft" if "sft" in starts else next(iter(starts), None)

    @property
    def trained_arms(self) -> tuple[str, ...]:
        """Arms with at least one finished round of optimisation."""
        trained = {cell.arm for cell in self.cards if cell.round > 0}
        return tuple(arm for arm in self.arms if arm in trained)

    @property
    def baseline(self) -> str | None:
        """The arm the others are compared with: `plain`, or the first trained one."""
        return "plain" if "plain" in self.trained_arms else next(iter(self.trained_arms), None)

    @property
    def baselines(self) -> tuple[str, ...]:
        """The arms that others are compared with: the baseline, then the frozen reward model."""
        names = (self.baseline, "frozen")
        return tuple(dict.fromkeys(name for name in names if name in self.trained_arms))

    @property
    def final_round(self) -> int:
        """The last round that two trained arms have reached (or one, where no two have one)."""
        reached = [{c.arm for c in self.cards if c.round == r} for r in range(self.last_round + 1)]
        for enough in (2, 1):
            shared = [r for r in range(1, len(reached)) if len(reached[r]) >= enough]
            if shared:
                return shared[-1]
        return 0

    @property
    def last_round(self) -> int:
        """The largest round of any scorecard."""
        return max(cell.round for cell in self.cards)

    @property
    def has_gold(self) -> bool:
        """Whether any scorecard was measured against a gold function."""
        return any(card.gold_score is not None for card in self.cards.values())

    def cards_of(self, arm: str, round_number: int) -> dict[int, Scorecard]:
        """The scorecards of one arm after one round, by seed."""
        return {
            cell.seed: card
            for cell, card in sorted(self.cards.items())
            if cell.arm == arm and cell.round == round_number
        }

    def cards_at(self, arm: str, round_number: int) -> dict[int, Scorecard]:
        """As `cards_of`, but round 0 of every arm is the starting point they share."""
        shared_start = round_number == 0 and self.start_arm is not None
        return self.cards_of(str(self.start_arm) if shared_start else arm, round_number)


def read_run(folder: Path) -> Run:
    """Read what a run folder holds; an unfinished run is read as far as it goes.

    Raises:
        EmptySetError: When no round has a scorecard yet.
        FormatError: When a scorecard is broken; names file and field.
    """
    cards = {cell: _read_card(path) for cell, path in _cells(folder, "evaluation/scorecard.json")}
    if not cards:
        raise EmptySetError(
            f"{folder}: expected at least one seed_*/arms/*/round_*/evaluation/scorecard.json, "
            "found none. Let the run finish one round (the same command goes on from where it "
            "stopped), or name another run folder."
        )
    problems: list[str] = []
    settings_text, settings = _read_settings(folder / "config.yaml", problems)
    facts = _read_facts(folder / "run.json", problems)
    samples = {
        cell: tuple(_sample(row) for row in _readable_rows(path, problems, "prompt", "response"))
        for cell, path in _cells(folder, "evaluation/samples.jsonl")
    }
    curves = {
        cell: _curve(_readable_rows(path, problems, "objective/kl"))
        for cell, path in _cells(folder, "policy/metrics.jsonl")
    }
    waiting = tuple(read_waiting(folder))
    asked = [f"It is {waiting_text(folder, waiting)}."] if waiting else []
    return Run(
        folder=folder,
        arms=_ordered_arms({cell.arm for cell in cards}, settings),
        cards=cards,
        samples=samples,
        curves=curves,
        settings=settings,
        settings_text=settings_text,
        facts=facts,
        missing=(*_missing_rounds(cards, settings), *asked, *problems),
        new_task=_read_new_task(folder, settings),
        waiting=waiting,
    )


def _read_new_task(folder: Path, settings: RunSettings | None) -> Run | None:
    """What was measured on the prompts of a new task; None where the run has none."""
    cards = {cell: _read_card(path) for cell, path in _cells(folder, f"{NEW_TASK}/scorecard.json")}
    arms = _ordered_arms({cell.arm for cell in cards}, settings)
    return Run(folder, arms, cards, {}, {}, settings, "", {}, ()) if cards else None


def _cells(folder: Path, name: str) -> Iterator[tuple[Cell, Path]]:
    """The cells of the grid that hold a file called `name`; unfinished stages are passed over."""
    for path in sorted(folder.glob(f"seed_*/arms/*/round_*/{name}")):
        seed, _, arm, round_name = path.relative_to(folder).parts[:4]
        seed_digits, round_digits = seed.removeprefix("seed_"), round_name.removeprefix("round_")
        if seed_digits.isdecimal() and round_digits.isdecimal() and not arm.startswith("."):
            yield Cell(arm, int(seed_digits), int(round_digits)), path


def _read_card(path: Path) -> Scorecard:
    try:
        card = Scorecard.from_json(read_json(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path}: expected a scorecard, got {error!r}. Evaluate again."
        ) from error
    for field in fields(Scorecard):
        if getattr(card, field.name) is None and field.name not in OPTIONAL_FIELDS:
            raise FormatError(
                f"{path}: expected a value in {field.name!r}, got none. "
                "Remove this round's evaluation folder and run the same command again."
            )
    return card


def _read_settings(path: Path, problems: list[str]) -> tuple[str, RunSettings | None]:
    """The settings as text and, where this version understands them, as an object."""
    if not path.is_file():
        problems.append("config.yaml is missing: which rounds were planned is not known.")
        return "", None
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return text, RunSettings.model_validate(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, ValidationError):
        problems.append("config.yaml is not understood by this version; it is shown as it is.")
        return text, None


def _read_facts(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        problems.append("run.json is missing: versions and machine are not known.")
        return {}
    try:
        facts = read_json(path)
    except DataError as error:
        problems.append(str(error))
        return {}
    return facts if isinstance(facts, dict) else {}


def _readable_rows(path: Path, problems: list[str], *needed: str) -> list[Mapping[str, Any]]:
    """The rows up to the first broken one: a torn log must not cost the whole report."""
    rows: list[Mapping[str, Any]] = []
    try:
        for row in read_json_lines(path):
            if not isinstance(row, dict) or any(key not in row for key in needed):
                raise FormatError(f"{path}:{len(rows) + 1}: expected the keys {', '.join(needed)}")
            rows.append(row)
    except (DataError, UnicodeDecodeError) as error:
        problems.append(f"{error}; the {len(rows)} rows before it are shown.")
    return rows


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        prompt=prompt_text(prompt_from_json(row["prompt"])),
        response=str(row["response"]),
        sft_response=str(row.get("sft_response", "")),
        gold=row.get("gold"),
        sft_gold=row.get("sft_gold"),
        score=row.get("score"),
        sft_score=row.get("sft_score"),
    )


def _curve(rows: Sequence[Mapping[str, Any]]) -> tuple[CurvePoint, ...]:
    points = (CurvePoint(row["objective/kl"], row.get("objective/gold")) for row in rows)
    return tuple(
        CurvePoint(kl, gold if gold is not None and math.isfinite(gold) else None)
        for kl, gold in points
        if kl is not None and math.isfinite(kl)
    )


def _ordered_arms(found: set[str], settings: RunSettings | None) -> tuple[str, ...]:
    """As in the settings; then as in the presets; then by name."""
    known = [*(settings.arms if settings else []), *ARM_PRESETS]
    return tuple(dict.fromkeys([*(arm for arm in known if arm in found), *sorted(found)]))


def _missing_rounds(cards: Mapping[Cell, Scorecard], settings: RunSettings | None) -> list[str]:
    """One sentence for each seed whose planned rounds are not all there."""
    if settings is None:
        return []
    sentences = []
    for seed in settings.seeds:
        absent = []
        for arm in settings.arms:
            planned = range(1, settings.rounds + 1) if settings.arm(arm).optimize else range(1)
            rounds = [r for r in planned if Cell(arm, seed, r) not in cards]
            if rounds:
                numbers = ", ".join(str(r) for r in rounds)
                absent.append(f"{arm} {'round' if len(rounds) == 1 else 'rounds'} {numbers}")
        if absent:
            sentences.append(f"Seed {seed} has not finished: {'; '.join(absent)}.")
    return sentences
