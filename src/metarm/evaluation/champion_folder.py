# SPDX-License-Identifier: Apache-2.0
"""Who is champion, on disk: one small file that is swapped whole, and every decision ever made.

    champion.json           {"model": path, "digest": hash, "decision": number}
    decisions/000001.json   a decision with all its figures, never written again

A server follows `champion.json`; `model` is relative to its folder, so that the folder can be
moved. A decision is written before the file is swapped: where a process died in between, the next
one to look finishes the swap.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metarm.errors import FormatError, RunError
from metarm.evaluation.champion import Decision, PromotionRules, compare_champion
from metarm.models.ensemble import load_reward
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import check_writable, content_digest, read_json, write_json

__all__ = [
    "CHAMPION_FILE",
    "Champion",
    "crown",
    "keep_better",
    "read_champion",
    "read_decisions",
]

CHAMPION_FILE: Final = "champion.json"
DECISIONS: Final = "decisions"


@dataclass(frozen=True, slots=True)
class Champion:
    """The reward model in use."""

    model: Path
    digest: str
    """Hash of its files."""
    decision: int
    """The decision that made it champion: 1, 2, ..."""


def read_champion(folder: Path) -> Champion | None:
    """The champion of a folder; None where there has been none.

    Raises:
        FormatError: When a file is not what it should be.
    """
    decisions = read_decisions(folder)
    crowned = [row for row in decisions if row["replaces"]]
    path = folder / CHAMPION_FILE
    found = _pointer(folder, read_json(path), path) if path.exists() else None
    if crowned and (found is None or found.decision < crowned[-1]["number"]):
        # The process that decided died before it could swap the file.
        found = _swap(folder, crowned[-1])
    return found


def crown(
    folder: Path, challenger: Path, decision: Decision | None, facts: Mapping[str, Any]
) -> Champion | None:
    """Keep a decision, and make the challenger champion where it says so.

    The caller holds the folder (`run_folder.hold_folder`): two at once would number alike.

    Args:
        folder: Of the champion.
        challenger: A reward model's folder.
        decision: None: the first champion, which has nobody to be compared with.
        facts: What else belongs to it, as JSON values: files, versions, time.

    Returns:
        The champion after it.

    Raises:
        RunError: When nothing can be written.

    Writes:
        `decisions/NNNNNN.json`; then, where it replaces, `champion.json`.
    """
    check_writable(folder)
    earlier = read_decisions(folder)
    number = earlier[-1]["number"] + 1 if earlier else 1
    row = {
        "number": number,
        "replaces": decision is None or decision.replaces,
        "model": os.path.relpath(challenger.resolve(), folder.resolve()),
        "digest": content_digest(challenger),
        "decision": {"reason": "the first champion"} if decision is None else decision.to_json(),
        **facts,
    }
    path = folder / DECISIONS / f"{number:06d}.json"
    if path.exists():
        raise RunError(f"{path} is there already: another process decides in {folder}; wait for it")
    write_json(path, row)
    return _swap(folder, row) if row["replaces"] else read_champion(folder)


def keep_better(
    folder: Path,
    place: Path,
    challenger: Path,
    champion: Path,
    pairs: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup],
    rules: PromotionRules,
) -> dict[str, Any]:
    """One decision of a run's round: what `crown` keeps, for one time, in a stage of its own.

    Args:
        folder: Where to write.
        place: Where the folder will stand when it is whole.
        challenger: The round's reward model or ensemble.
        champion: The one before it.
        pairs: Held-out original pairs.
        groups: Responses of the policy that began the round.
        rules: What the challenger must show.

    Returns:
        `replaces` and `reason`.

    Writes:
        `decision.json` and `champion.json`.
    """
    ours, theirs = load_reward(challenger), load_reward(champion)
    fitting = theirs.fitting_pairs(ours.fitting_pairs(pairs))
    decision = compare_champion(ours, theirs, fitting, groups, rules)
    kept = challenger if decision.replaces else champion
    pointer = {
        "model": os.path.relpath(kept, place),
        "digest": content_digest(kept),
        "decision": 1,
    }
    write_json(folder / "decision.json", decision.to_json())
    write_json(folder / CHAMPION_FILE, pointer)
    return {"replaces": decision.replaces, "reason": decision.reason}


def read_decisions(folder: Path) -> list[dict[str, Any]]:
    """Every decision, the oldest first.

    Raises:
        FormatError: When a file is not a decision.
    """
    found = []
    for path in sorted((folder / DECISIONS).glob("[0-9]*.json")):
        row = read_json(path)
        needed = {"number": int, "replaces": bool, "model": str, "digest": str}
        if not isinstance(row, dict) or any(
            not isinstance(row.get(name), kind) for name, kind in needed.items()
        ):
            raise FormatError(f"{path}: expected a decision of `metarm promote`, got {row!r}")
        found.append(row)
    return found


def _swap(folder: Path, row: Mapping[str, Any]) -> Champion:
    pointer = {"model": row["model"], "digest": row["digest"], "decision": row["number"]}
    write_json(folder / CHAMPION_FILE, pointer)
    return _pointer(folder, pointer, folder / CHAMPION_FILE)


def _pointer(folder: Path, document: Any, path: Path) -> Champion:
    try:
        return Champion(
            Path(os.path.normpath(folder / document["model"])),
            str(document["digest"]),
            int(document["decision"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: expected model, digest and decision, got {document!r}. `metarm promote` "
            "writes it; mend it or remove it."
        ) from error
