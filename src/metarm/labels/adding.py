# SPDX-License-Identifier: Apache-2.0
"""What a label store holds before anybody votes: pairs, known answers, people, invitations."""

import secrets
import sqlite3
from collections.abc import Iterable, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from metarm.data.fields import Row
from metarm.errors import ConfigError, DataError, FormatError
from metarm.labels import queue, reading
from metarm.labels.changes import Change
from metarm.labels.events import LabelContent, Recorded
from metarm.labels.settings import LabelSettings
from metarm.labels.votes import ANNOTATOR_KINDS, Choice, LabelPair
from metarm.labels.voting import check_annotator, take_vote
from metarm.schema import prompt_to_json

__all__ = [
    "add_annotator",
    "add_content",
    "add_invitation",
    "add_pairs",
    "add_settings",
    "ask_next",
    "check_name",
    "find_invited",
    "is_known",
    "revoke_invitations",
]

DAY_SECONDS: Final = 86_400
LONGEST_NAME: Final = 100
TOKEN_BYTES: Final = 24


def add_pairs(
    change: Change,
    pairs: Iterable[LabelPair],
    gold: Mapping[str, Choice],
    wanted: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Add pairs, known answers and wanted votes; as `LabelStore.add_pairs`."""
    new: dict[str, LabelPair] = {}
    for pair in pairs:
        _check_pair(pair)
        if not change.has("pair", "id", pair.id):
            new.setdefault(pair.id, pair)
    chosen = [(pair_id, pair.chosen_by) for pair_id, pair in new.items()]
    places = queue.places_of(change.seed, chosen)
    for (pair_id, pair), place in zip(new.items(), places, strict=True):
        change.add_numbered(
            "pair",
            id=pair_id,
            prompt=prompt_to_json(pair.prompt),
            first=pair.first,
            second=pair.second,
            source=pair.source,
            chosen_by=pair.chosen_by,
            place=place,
        )
    known = reading.read_gold(change.connection)
    for pair_id, choice in gold.items():
        if known.get(pair_id) != choice:
            _check_gold(change, pair_id, choice, known)
            change.add("gold", pair=pair_id, choice=choice, at=change.now)
    for pair_id, votes in wanted.items():
        _add_want(change, pair_id, votes)
    return len(new)


def _add_want(change: Change, pair: str, votes: int) -> None:
    """Keep how many votes a pair wants, where that is news; the most of all numbers is in force."""
    _check_wanted(pair, votes)
    if not change.has("pair", "id", pair):
        raise DataError(f"expected votes wanted for a pair that is there, got {pair!r}")
    if change.find("SELECT 1 FROM want WHERE pair = ? AND votes >= ?", pair, votes) is None:
        change.add("want", pair=pair, votes=votes, at=change.now)


def _check_wanted(pair: str, votes: int) -> int:
    if votes < 1:
        raise ConfigError(f"expected 1 or more votes for pair {pair}, got {votes}")
    return votes


def ask_next(change: Change, wanted: Mapping[str, int]) -> int:
    """Have pairs asked next; as `LabelStore.ask_next`."""
    before = len(change.entries)
    for pair, votes in wanted.items():
        least = 1 if change.has("want", "pair", pair) else change.settings.votes_per_pair
        _add_want(change, pair, max(_check_wanted(pair, votes), least))
    return len(change.entries) - before


def add_content(change: Change, content: LabelContent) -> list[Recorded]:
    """Add all of it; as `LabelStore.add_content`."""
    add_pairs(change, content.pairs, content.gold)
    for name, kind in content.annotators.items():
        add_annotator(change, name, kind)
    return [take_vote(change, vote) for vote in content.votes]


def _check_pair(pair: LabelPair) -> None:
    """Refuse what no tokenizer and no file can take: NULs and halves of surrogate pairs."""
    row = Row("pair", pair.to_json())
    for name in ("first", "second", "source", "chosen_by"):
        if name in row.values:
            row.text(name)
    row.prompt("prompt")


def _check_gold(change: Change, pair: str, choice: Choice, known: Mapping[str, Choice]) -> None:
    if choice not in ("first", "second", "tie"):
        raise FormatError(f"expected a known answer of first, second or tie, got {choice!r}")
    if not change.has("pair", "id", pair):
        raise DataError(f"expected a known answer for a pair that is there, got {pair!r}")
    if pair in known:
        raise DataError(f"pair {pair}: the known answer is {known[pair]}, not {choice}")


def check_name(name: str) -> str:
    """The name, where it can be an annotator's.

    Raises:
        ConfigError: When it cannot.
    """
    if not (name.strip() and name.isprintable() and len(name) <= LONGEST_NAME):
        raise ConfigError(
            f"expected a name of 1 to {LONGEST_NAME} visible characters, got {name[:200]!r}"
        )
    return name


def add_annotator(change: Change, name: str, kind: str) -> None:
    """Add somebody who votes; as `LabelStore.add_annotator`."""
    if not is_known(change, name, kind):
        change.add_numbered("annotator", name=name, kind=kind)


def is_known(change: Change, name: str, kind: str) -> bool:
    """Whether somebody is an annotator already; nobody is added.

    Raises:
        ConfigError: When the name cannot be one, or belongs to an annotator of another kind.
    """
    if kind not in ANNOTATOR_KINDS:
        raise ConfigError(f"expected a kind of {', '.join(ANNOTATOR_KINDS)}, got {kind!r}")
    check_name(name)
    before = change.find("SELECT kind FROM annotator WHERE name = ?", name)
    if before is not None and before["kind"] != kind:
        raise ConfigError(
            f"{name} is an annotator of the kind {before['kind']}, not {kind}: give another name"
        )
    return before is not None


def add_settings(change: Change, settings: LabelSettings) -> None:
    """Put settings in force; the same once more add nothing."""
    if settings != change.settings:
        last = change.find("SELECT store FROM setting ORDER BY number DESC LIMIT 1")
        assert last is not None, "opening a store adds its first settings"
        change.add_numbered("setting", store=last["store"], value=settings.model_dump())


def add_invitation(change: Change, name: str, days: float) -> str:
    """Add an invitation and return its token; as `LabelStore.invite`."""
    if not 0 < days < 36_500:
        raise ConfigError(f"expected days above 0 and below 36500, got {days}")
    add_annotator(change, name, "person")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    change.add_numbered(
        "invitation",
        token=_hashed(token),
        annotator=name,
        expires_at=change.now + days * DAY_SECONDS,
    )
    return token


def find_invited(connection: sqlite3.Connection, token: str, now: float) -> str | None:
    """Whom a token invites; as `LabelStore.annotator_of`."""
    row = connection.execute(
        f"SELECT annotator FROM invitation AS i WHERE token = ? AND {reading.HOLDS}",
        (_hashed(token), now),
    ).fetchone()
    return None if row is None else str(row["annotator"])


def revoke_invitations(change: Change, name: str) -> None:
    """End all invitations that an annotator has; as `LabelStore.revoke`."""
    check_annotator(change, name)
    last = change.find("SELECT ifnull(max(number), 0) FROM invitation")
    change.add_numbered("revocation", annotator=name, last_invitation=last[0] if last else 0)


def _hashed(token: str) -> str:
    return sha256(token.encode(errors="replace")).hexdigest()
