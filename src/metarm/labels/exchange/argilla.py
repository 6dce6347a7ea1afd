# SPDX-License-Identifier: Apache-2.0
"""Argilla 2.x: records, settings and users as JSON files, as its datasets are kept on disk.

A choice is a response to the label question `preference`; a skip is one that was discarded. Argilla
keeps one response per user and record: mirrored repeats stay out, and so do sides and times.
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from metarm.data.fields import Row, shown
from metarm.data.rows import read_rows
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.exchange.fields import read_name, read_strength, read_vote, read_word
from metarm.labels.votes import ANNOTATOR_KINDS, AnnotatorKind, Choice, LabelPair
from metarm.schema import prompt_to_json
from metarm.storage import fingerprint

__all__ = ["RECORDS_FILE", "SETTINGS", "read_argilla", "write_argilla"]

RECORDS_FILE: Final = "records.json"
SETTINGS_FILE: Final = "settings.json"
USERS_FILE: Final = "users.json"
ANSWERS: Final = ("first", "second", "tie")
SKIP: Final[Choice] = "skip"
"""Of a discarded response, too: files that Argilla writes leave out that it was discarded."""
STATUSES: Final = ("submitted", "discarded", "draft")
NAMESPACE: Final = uuid.UUID("b3a5f4a2-5f0e-5b8e-9d55-0d2404050438")
"""Of the user ids that are made of annotators' names."""


def _field(name: str, kind: str) -> dict[str, Any]:
    settings = {"type": kind, "use_markdown": False}
    return {"name": name, "title": name, "required": False, "settings": settings}


def _question(name: str, title: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    required = name == "preference"
    return {"name": name, "title": title, "required": required, "settings": dict(settings)}


def _labels(texts: Mapping[str, str]) -> dict[str, Any]:
    options = [{"value": value, "text": text} for value, text in texts.items()]
    return {"type": "label_selection", "options": options}


SETTINGS: Final[Mapping[str, Any]] = {
    "guidelines": "Which response to the prompt is better?",
    "fields": [
        _field("prompt", "text"),
        _field("conversation", "chat"),
        _field("first", "text"),
        _field("second", "text"),
    ],
    "questions": [
        _question(
            "preference",
            "Which one is better?",
            _labels(
                {
                    "first": "The first",
                    "second": "The second",
                    "tie": "Neither",
                    SKIP: "I cannot say",
                }
            ),
        ),
        _question(
            "strength", "By how much?", {"type": "rating", "options": [{"value": 1}, {"value": 2}]}
        ),
        _question("flag", "Should somebody look at it?", _labels({"yes": "Yes", "no": "No"})),
        _question("note", "Anything to say?", {"type": "text", "use_markdown": False}),
    ],
    "vectors": [],
    "metadata": [],
    "allow_extra_metadata": True,
}
"""Of the data set: fields and questions as Argilla reads them."""


def write_argilla(content: LabelContent) -> dict[str, bytes]:
    """Records, settings and users."""
    votes: dict[str, list[VoteEvent]] = {}
    for vote in content.votes:
        if not vote.is_repeat:
            votes.setdefault(vote.pair, []).append(vote)
    told = [_record(pair, content, votes[pair.id]) for pair in content.pairs if pair.id in votes]
    voters = {vote.annotator for own in votes.values() for vote in own}
    users = [
        {"id": _user_id(name), "username": name, "kind": content.annotators[name]}
        for name in sorted(voters)
    ]
    return {
        RECORDS_FILE: _document(told),
        SETTINGS_FILE: _document(SETTINGS),
        USERS_FILE: _document(users),
    }


def _document(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _user_id(name: str) -> str:
    return str(uuid.uuid5(NAMESPACE, name))


def _record(pair: LabelPair, content: LabelContent, votes: Sequence[VoteEvent]) -> dict[str, Any]:
    is_text = isinstance(pair.prompt, str)
    facts = {
        "source": pair.source,
        "chosen_by": pair.chosen_by,
        "known_answer": content.gold.get(pair.id),
    }
    responses: dict[str, list[dict[str, Any]]] = {}
    for vote in votes:
        for question, value in _answers(vote):
            status = "discarded" if vote.choice == "skip" else "submitted"
            answer = {"value": value, "user_id": _user_id(vote.annotator), "status": status}
            responses.setdefault(question, []).append(answer)
    return {
        "id": pair.id,
        "fields": {
            "prompt" if is_text else "conversation": prompt_to_json(pair.prompt),
            "first": pair.first,
            "second": pair.second,
        },
        "metadata": {name: value for name, value in facts.items() if value},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "_server_id": None,
    }


def _answers(vote: VoteEvent) -> Iterator[tuple[str, str | int]]:
    """Question and value of each answer; Argilla wants a value even where it was discarded."""
    yield "preference", vote.choice
    if vote.strength == 2:
        yield "strength", 2
    if vote.flag:
        yield "flag", "yes"
    if vote.note:
        yield "note", vote.note


def read_argilla(path: Path) -> LabelContent:
    """The content of Argilla's records: the folder, or the file of records alone.

    Without `users.json` users go by their ids.

    Raises:
        FormatError: At the first record that is not as it should be.
        EmptySetError: When there is none.
        DataError: When there is no such file.
    """
    records = path / RECORDS_FILE if path.is_dir() else path
    users = _read_users(records.with_name(USERS_FILE))
    pairs: dict[str, LabelPair] = {}
    gold: dict[str, Choice] = {}
    kinds: dict[str, AnnotatorKind] = {}
    votes: list[VoteEvent] = []
    for row in read_rows(records):
        pair = _read_pair(row)
        pairs.setdefault(pair.id, pair)
        if "known_answer" in _metadata(row):
            gold[pair.id] = read_word(row, ANSWERS, "metadata", "known_answer")
        own = _read_votes(row, pair, users)
        kinds |= {vote.annotator: kind for vote, kind in own}
        votes += [vote for vote, _ in own]
    return LabelContent(tuple(pairs.values()), gold, kinds, tuple(votes))


def _read_users(path: Path) -> dict[str, tuple[str, AnnotatorKind]]:
    """User id -> name and kind."""
    if not path.exists():
        return {}
    users = {}
    for row in read_rows(path):
        kind: AnnotatorKind = "person"
        if row.has("kind"):
            kind = read_word(row, ANNOTATOR_KINDS, "kind")
        users[row.text("id")] = (read_name(row, "username"), kind)
    return users


def _metadata(row: Row) -> Mapping[str, Any]:
    value = row.values.get("metadata") or {}
    if not isinstance(value, Mapping):
        row.fail(("metadata",), "an object", shown(value), "Mend the record.")
    return value


def _read_pair(row: Row) -> LabelPair:
    fields = row.value("fields")
    is_text = isinstance(fields, Mapping) and fields.get("prompt") is not None
    prompt = row.text("fields", "prompt") if is_text else row.messages("fields", "conversation")
    facts = _metadata(row)
    return LabelPair(
        prompt,
        row.text("fields", "first"),
        row.text("fields", "second"),
        row.text("metadata", "source") if "source" in facts else "",
        row.text("metadata", "chosen_by") if "chosen_by" in facts else "",
    )


def _read_votes(
    row: Row, pair: LabelPair, users: Mapping[str, tuple[str, AnnotatorKind]]
) -> list[tuple[VoteEvent, AnnotatorKind]]:
    """What everybody answered, and of what kind they are."""
    responses = row.value("responses")
    if not isinstance(responses, Mapping):
        row.fail(("responses",), "an object", shown(responses), "Mend the record.")
    answers: dict[str, dict[str, int]] = {}
    for question in SETTINGS["questions"]:
        name = question["name"]
        for at in range(row.length("responses", name) if name in responses else 0):
            user = read_name(row, "responses", name, at, "user_id")
            if name in answers.setdefault(user, {}):
                row.fail(("responses", name, at), "one answer of a user", "two", "Leave one.")
            answers[user][name] = at
    found = []
    for user, places in answers.items():
        name, kind = users.get(user, (user, "person"))
        vote = _read_vote(row, pair, user, name, places) if "preference" in places else None
        if vote is not None:
            found.append((vote, kind))
    return found


def _read_vote(
    row: Row, pair: LabelPair, user: str, name: str, places: Mapping[str, int]
) -> VoteEvent | None:
    """What one user answered; None for a draft."""
    path = ("responses", "preference", places["preference"])
    given = row.value(*path)
    status = "submitted"
    if isinstance(given, Mapping) and given.get("status") is not None:
        status = read_word(row, STATUSES, *path, "status")
    if status == "draft":
        return None
    answer: Choice = read_word(row, (*ANSWERS, SKIP), *path, "value")
    choice: Choice = SKIP if status == "discarded" else answer

    def where(question: str) -> tuple[str | int, ...]:
        return ("responses", question, places[question], "value")

    return read_vote(
        row,
        f"import {fingerprint('argilla', pair.id, user, choice)}",
        name,
        choice,
        pair,
        strength=read_strength(row, *where("strength")) if "strength" in places else 1,
        flag="flag" in places and read_word(row, ("yes", "no"), *where("flag")) == "yes",
        note=row.text(*where("note")) if "note" in places else "",
    )
