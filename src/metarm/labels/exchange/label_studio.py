# SPDX-License-Identifier: Apache-2.0
"""Label Studio: tasks with pairwise results as JSON, and the labelling configuration for them.

The first response is on the left of every task. A skip is a cancelled annotation, a known answer
one that is ground truth; ties, strength, flag and note are results of tags of their own.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from metarm.data.fields import Row, shown
from metarm.data.rows import read_rows
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.exchange.fields import (
    read_flag,
    read_name,
    read_number,
    read_strength,
    read_time,
    read_vote,
    tell_time,
)
from metarm.labels.votes import Choice, LabelPair
from metarm.schema import prompt_text, prompt_to_json
from metarm.storage import fingerprint

__all__ = ["CONFIGURATION", "TASKS_FILE", "read_label_studio", "write_label_studio"]

TASKS_FILE: Final = "tasks.json"
CONFIGURATION_FILE: Final = "config.xml"

CONFIGURATION: Final = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="first,second"/>
  <View style="display: flex">
    <Text name="first" value="$first"/>
    <Text name="second" value="$second"/>
  </View>
  <Choices name="tie" toName="prompt"><Choice value="tie"/></Choices>
  <Rating name="strength" toName="prompt" maxRating="2"/>
  <Choices name="flag" toName="prompt"><Choice value="flag"/></Choices>
  <TextArea name="note" toName="prompt"/>
</View>
"""
_SIDES: Final[Mapping[Choice, str]] = {"first": "left", "second": "right"}
_CHOICES: Final[Mapping[str, Choice]] = {"left": "first", "right": "second"}


def write_label_studio(content: LabelContent) -> dict[str, bytes]:
    """Tasks and the configuration of their project."""
    names = sorted({vote.annotator for vote in content.votes})
    users = {name: number for number, name in enumerate(names, start=1)}
    votes: dict[str, list[VoteEvent]] = {}
    for vote in content.votes:
        votes.setdefault(vote.pair, []).append(vote)
    tasks: list[dict[str, Any]] = []
    number = 0
    for pair in content.pairs:
        if pair.id not in votes:
            continue
        annotations = [_annotation(vote, users[vote.annotator]) for vote in votes[pair.id]]
        if pair.id in content.gold:
            annotations.insert(0, _known(content.gold[pair.id]))
        for annotation in annotations:
            number += 1
            annotation["id"] = number
        tasks.append(_task(len(tasks) + 1, pair, annotations))
    text = json.dumps(tasks, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {TASKS_FILE: text.encode(), CONFIGURATION_FILE: CONFIGURATION.encode()}


def _task(number: int, pair: LabelPair, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {"prompt": prompt_text(pair.prompt)}
    if not isinstance(pair.prompt, str):
        data["messages"] = prompt_to_json(pair.prompt)
    data |= {"first": pair.first, "second": pair.second}
    meta = {"pair": pair.id, "source": pair.source, "chosen_by": pair.chosen_by}
    return {
        "id": number,
        "data": data,
        "meta": {name: value for name, value in meta.items() if value},
        "annotations": annotations,
    }


def _annotation(vote: VoteEvent, user: int) -> dict[str, Any]:
    return {
        "id": 0,
        "unique_id": vote.key,
        "completed_by": {"id": user, "email": vote.annotator},
        "result": list(_results(vote)),
        "was_cancelled": vote.choice == "skip",
        "ground_truth": False,
        "lead_time": vote.seconds,
        "created_at": tell_time(vote.at),
        "is_turned": vote.is_turned,
        "is_repeat": vote.is_repeat,
    }


def _known(answer: Choice) -> dict[str, Any]:
    # By nobody: Label Studio takes whoever imports it, and refuses a name that it does not know.
    return {
        "id": 0,
        "result": list(_choice_results(answer)),
        "was_cancelled": False,
        "ground_truth": True,
    }


def _results(vote: VoteEvent) -> Iterator[dict[str, Any]]:
    yield from _choice_results(vote.choice)
    if vote.strength == 2:
        yield _result("strength", "rating", {"rating": 2})
    if vote.flag:
        yield _result("flag", "choices", {"choices": ["flag"]})
    if vote.note:
        yield _result("note", "textarea", {"text": [vote.note]})


def _choice_results(choice: Choice) -> Iterator[dict[str, Any]]:
    if choice in _SIDES:
        # Label Studio's own results of this tag are to the tag itself.
        yield _result("preference", "pairwise", {"selected": _SIDES[choice]}, "preference")
    elif choice == "tie":
        yield _result("tie", "choices", {"choices": ["tie"]})


def _result(
    name: str, kind: str, value: Mapping[str, Any], to_name: str = "prompt"
) -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": to_name, "type": kind, "value": dict(value)}


def read_label_studio(path: Path) -> LabelContent:
    """The content of Label Studio's tasks: the folder, or the file of tasks alone.

    A file exported by Label Studio itself is read too, where its texts are called `prompt`, `first`
    and `second`; users that are numbers become `user 1`, `user 2`, ...

    Raises:
        FormatError: At the first task that is not as it should be.
        EmptySetError: When there is none.
        DataError: When there is no such file.
    """
    pairs: dict[str, LabelPair] = {}
    gold: dict[str, Choice] = {}
    votes: list[VoteEvent] = []
    for row in read_rows(path / TASKS_FILE if path.is_dir() else path):
        pair = _read_pair(row)
        pairs.setdefault(pair.id, pair)
        for at in range(row.length("annotations")):
            told = row.value("annotations", at)
            if not isinstance(told, Mapping):
                row.fail(("annotations", at), "an object", shown(told), "Mend the task.")
            annotation = Row(f"{row.place}: annotation {at + 1}", told)
            if read_flag(annotation, "ground_truth"):
                choice = _read_choice(annotation)
                if choice in ("first", "second", "tie"):
                    gold[pair.id] = choice
            else:
                votes.append(_read_annotation(annotation, pair))
    return LabelContent(
        tuple(pairs.values()), gold, {vote.annotator: "person" for vote in votes}, tuple(votes)
    )


def _read_pair(row: Row) -> LabelPair:
    data = row.value("data")
    has_messages = isinstance(data, Mapping) and "messages" in data
    prompt = row.messages("data", "messages") if has_messages else row.text("data", "prompt")
    meta = row.values.get("meta") or {}
    if not isinstance(meta, Mapping):
        row.fail(("meta",), "an object", shown(meta), "Mend the task.")
    return LabelPair(
        prompt,
        row.text("data", "first"),
        row.text("data", "second"),
        row.text("meta", "source") if "source" in meta else "",
        row.text("meta", "chosen_by") if "chosen_by" in meta else "",
    )


def _read_annotation(row: Row, pair: LabelPair) -> VoteEvent:
    name, choice = _read_user(row), _read_choice(row)
    is_repeat = bool(read_flag(row, "is_repeat"))
    results = _result_places(row)
    facts = ("label studio", pair.id, name, is_repeat, choice)
    rated = ("result", results.get("strength", 0), "value", "rating")
    noted = ("result", results.get("note", 0), "value", "text")
    return read_vote(
        row,
        row.text("unique_id") if row.has("unique_id") else f"import {fingerprint(*facts)}",
        name,
        choice,
        pair,
        strength=read_strength(row, *rated) if "strength" in results else 1,
        is_turned=read_flag(row, "is_turned"),
        seconds=read_number(row, "lead_time"),
        note=_read_note(row, noted) if "note" in results else "",
        flag="flag" in results,
        is_repeat=is_repeat,
        at=read_time(row, "created_at") if row.has("created_at") else None,
    )


def _read_note(row: Row, path: tuple[str | int, ...]) -> str:
    """The texts of a text area, one a line."""
    return "\n".join(row.text(*path, at) for at in range(row.length(*path)))


def _read_user(row: Row) -> str:
    by = row.value("completed_by")
    if isinstance(by, int) and not isinstance(by, bool):
        return read_name(Row(row.place, {"completed_by": f"user {by}"}), "completed_by")
    return read_name(row, "completed_by", "email")


def _result_places(row: Row) -> dict[str, int]:
    """Name of the tag -> where its result stands."""
    places = {}
    for at in range(row.length("result")):
        kind = row.text("result", at, "type")
        places["preference" if kind == "pairwise" else row.text("result", at, "from_name")] = at
    return places


def _read_choice(row: Row) -> Choice:
    if read_flag(row, "was_cancelled"):
        return "skip"
    places = _result_places(row)
    if "preference" not in places:
        # Nothing selected is how Label Studio itself says that neither is better.
        return "tie"
    path = ("result", places["preference"], "value", "selected")
    side = row.text(*path)
    if side not in _CHOICES:
        row.fail(path, "left or right", shown(side), "Mend the annotation.")
    return _CHOICES[side]
