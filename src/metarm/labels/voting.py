# SPDX-License-Identifier: Apache-2.0
"""Votes as events: what a vote takes the place of, what undo does, and leases on what is shown."""

import sqlite3
from collections.abc import Collection
from typing import Any, NamedTuple

from metarm.errors import ConfigError, DataError, FormatError
from metarm.labels import queue
from metarm.labels.batches import is_closed, is_final
from metarm.labels.changes import Change
from metarm.labels.events import Recorded, VoteEvent

__all__ = ["check_annotator", "is_taken_back", "serve_item", "take_back", "take_vote"]


class _Shown(NamedTuple):
    """What a vote is on."""

    pair: str
    annotator: str
    showing: int


def check_annotator(change: Change, name: str) -> None:
    """Refuse whoever is no annotator of the store.

    Raises:
        ConfigError: When there is none of the name.
    """
    if not change.has("annotator", "name", name):
        raise ConfigError(f"expected an annotator of the store, got {name!r}: add them first")


def _keep_item(change: Change, pair: str, annotator: str, showing: int) -> str:
    """The id of a showing, whose sides are drawn and stored with the first serving."""
    item = queue.item_id(change.seed, pair, annotator, showing)
    is_turned = queue.is_side_turned(change.seed, pair, annotator, showing)
    change.connection.execute(
        "INSERT OR IGNORE INTO item (id, pair, annotator, showing, is_turned) "
        "VALUES (?, ?, ?, ?, ?)",
        (item, pair, annotator, showing, is_turned),
    )
    return item


def _lease_item(change: Change, item: str) -> None:
    """Take a lease, or renew it."""
    change.connection.execute(
        "INSERT INTO lease (item, expires_at) VALUES (?, ?) "
        "ON CONFLICT (item) DO UPDATE SET expires_at = excluded.expires_at",
        (item, change.now + change.settings.lease_minutes * 60),
    )


def serve_item(change: Change, annotator: str, besides: Collection[str]) -> str | None:
    """The item to show next, leased to the annotator; as `LabelStore.next_item`."""
    check_annotator(change, annotator)
    change.connection.execute("DELETE FROM lease WHERE expires_at <= ?", (change.now,))
    opened = change.connection.execute(
        "SELECT i.id FROM lease AS l JOIN item AS i ON i.id = l.item WHERE i.annotator = ? "
        "ORDER BY l.number DESC",
        (annotator,),
    ).fetchall()
    found = next((row["id"] for row in opened if row["id"] not in besides), None)
    if found is None:
        showing = queue.choose_showing(
            change.connection, change.settings, change.seed, annotator, change.now, besides
        )
        if showing is None:
            return None
        found = _keep_item(change, showing.pair, annotator, showing.number)
    _lease_item(change, found)
    return str(found)


def take_vote(change: Change, vote: VoteEvent) -> Recorded:
    """Add a vote, or find that it is there; as `LabelStore.record`.

    The event in force of the same showing is superseded, whoever of two tabs sent it; but a vote
    whose correction came first is outdated as it arrives, and so is one on an item of a closed
    batch, or from elsewhere on a pair whose known answer the annotator may have been told.
    """
    check_annotator(change, vote.annotator)
    before = change.find("SELECT annotator, revision FROM event WHERE key = ?", vote.key)
    if before is not None:
        if before["annotator"] != vote.annotator:
            raise FormatError(f"the key {vote.key!r} belongs to a vote of somebody else")
        return Recorded(is_new=False, revision=before["revision"])
    shown, is_turned = _find_shown(change, vote)
    head = _head(change, shown)
    is_outdated = head is not None and (
        _is_corrected(change, vote.key, shown) or is_final(change, head, is_served=bool(vote.item))
    )
    revision = _add_event(
        change,
        shown,
        at=change.now if vote.at is None else round(vote.at, 6),
        key=vote.key,
        choice=vote.choice,
        strength=vote.strength,
        is_turned=is_turned,
        lead_ms=None if vote.seconds is None else round(vote.seconds * 1000),
        supersedes=None if is_outdated or head is None else head["key"],
        corrects=vote.supersedes,
        is_outdated=is_outdated,
        note=_storable(vote.note),
        flag=vote.flag,
    )
    change.connection.execute(
        "DELETE FROM lease WHERE item IN "
        "(SELECT id FROM item WHERE pair = ? AND annotator = ? AND showing = ?)",
        shown,
    )
    return Recorded(is_new=True, revision=revision)


def take_back(change: Change, annotator: str, key: str) -> str:
    """Take a vote back and open its item again; as `LabelStore.undo`.

    Returns:
        The item's id.
    """
    vote = change.find("SELECT * FROM event WHERE key = ? AND choice <> 'undo'", key)
    if vote is None or vote["annotator"] != annotator:
        raise DataError(f"expected the key of a vote of {annotator}, got {key!r}")
    shown = _Shown(vote["pair"], annotator, vote["showing"])
    item = _keep_item(change, *shown)
    head = _head(change, shown)
    if head is not None and head["key"] == key and not is_closed(change.connection, annotator, key):
        _add_event(
            change,
            shown,
            at=change.now,
            key=f"undo {key}",
            choice="undo",
            strength=1,
            is_turned=None,
            lead_ms=None,
            supersedes=key,
            corrects=None,
            is_outdated=False,
            note="",
            flag=False,
        )
        # A new lease, not one that is renewed: the item is to be the next one served.
        change.connection.execute("DELETE FROM lease WHERE item = ?", (item,))
        _lease_item(change, item)
    return item


def is_taken_back(connection: sqlite3.Connection, annotator: str, key: str) -> bool:
    """Whether there is an undo of a vote; as `LabelStore.is_taken_back`."""
    query = "SELECT 1 FROM event WHERE supersedes = ? AND annotator = ? AND choice = 'undo'"
    return connection.execute(query, (key, annotator)).fetchone() is not None


def _find_shown(change: Change, vote: VoteEvent) -> tuple[_Shown, bool | None]:
    """What a vote is on, and how its sides were."""
    if not vote.item:
        if not change.has("pair", "id", vote.pair):
            raise DataError(f"expected a vote on a pair of the store, got {vote.pair!r}")
        return _Shown(vote.pair, vote.annotator, int(vote.is_repeat)), vote.is_turned
    row = change.find(
        "SELECT pair, showing, is_turned FROM item WHERE id = ? AND annotator = ?",
        vote.item,
        vote.annotator,
    )
    if row is None:
        raise DataError(f"expected an item served to {vote.annotator}, got {vote.item!r}")
    is_turned = bool(row["is_turned"])
    if vote.is_turned is not None and vote.is_turned != is_turned:
        raise FormatError(f"item {vote.item}: expected the sides that were shown, got others")
    return _Shown(row["pair"], vote.annotator, row["showing"]), is_turned


def _head(change: Change, shown: _Shown) -> sqlite3.Row | None:
    """The event in force of a showing: a vote, or one that took a vote back."""
    return change.find(
        "SELECT * FROM event AS e WHERE pair = ? AND annotator = ? AND showing = ? "
        "AND is_outdated = 0 AND NOT EXISTS "
        "(SELECT 1 FROM event AS f WHERE f.supersedes = e.key)",
        *shown,
    )


def _is_corrected(change: Change, key: str, shown: _Shown) -> bool:
    """Whether the correction of a vote was here before the vote itself."""
    query = "SELECT 1 FROM event WHERE corrects = ? AND pair = ? AND annotator = ? AND showing = ?"
    return change.find(query, key, *shown) is not None


def _add_event(change: Change, shown: _Shown, *, at: float, **row: Any) -> int:
    """Add an event; its revision."""
    found = change.find(
        "SELECT ifnull(max(revision), 0) + 1 FROM event WHERE pair = ? AND annotator = ?",
        *shown[:2],
    )
    revision = int(found[0]) if found else 1
    change.add_numbered("event", **shown._asdict(), **row, at=at, revision=revision)
    return revision


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs and NULs, which no file could keep."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")
