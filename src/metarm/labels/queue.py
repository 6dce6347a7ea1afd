# SPDX-License-Identifier: Apache-2.0
"""Which pair an annotator is shown next: gold items and repeats by draw, else where votes lack.

Pairs that more votes were asked for come first, then those with the fewest votes.

Every draw is a function of what the store draws by (its seed where one was given, else its secret
id), the annotator and how many items they answered.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from metarm.labels.settings import LabelSettings
from metarm.schema import is_picked
from metarm.storage import fingerprint
from metarm.streams import draw_seed

__all__ = [
    "WANTED",
    "Showing",
    "choose_showing",
    "count_left",
    "is_gold_turn",
    "is_side_turned",
    "item_id",
    "places_of",
]

FIRST_ITEMS: Final = 10
"""Among an annotator's first so many items, two have a known answer."""
BETWEEN: Final = 5
"""Other items at least between a pair and its mirrored repeat."""

WANTED: Final = "ifnull((SELECT max(w.votes) FROM want AS w WHERE w.pair = p.id), :usual)"
"""Votes of people that the pair `p` wants; `:usual` is the settings' number."""

_VOTED: Final = "SELECT pair FROM vote WHERE annotator = :annotator AND showing = 0"
_BESIDES: Final = (
    "SELECT pair FROM item WHERE annotator = :annotator "
    "AND id IN (SELECT value FROM json_each (:besides))"
)
_LEASED: Final = """leased AS (
    SELECT i.pair AS pair, count(*) AS number FROM lease AS l CROSS JOIN item AS i ON i.id = l.item
    WHERE l.expires_at > :now AND i.showing = 0 AND i.annotator <> :annotator GROUP BY i.pair
)"""
"""Pairs that others have before them, and how many others."""
_WANTS: Final = "ifnull(s.wanted, :usual)"
_IS_THEIRS: Final = f"""NOT EXISTS (
    SELECT 1 FROM vote AS v WHERE v.annotator = :annotator AND v.showing = 0 AND v.pair = s.pair
) AND s.pair NOT IN ({_BESIDES})"""
"""Whether the annotator has not answered the pair, and does not at the moment."""
_NEXT: Final = f"""
WITH {_LEASED} SELECT pair, is_asked, votes AS taken, place, number FROM (
    SELECT s.pair, s.is_asked, s.votes, s.place, s.number FROM standing AS s
    WHERE s.votes < {_WANTS} AND s.pair NOT IN (SELECT pair FROM leased) AND {_IS_THEIRS}
    ORDER BY s.is_asked DESC, s.votes, s.place, s.number LIMIT 1
) UNION ALL
SELECT s.pair, s.is_asked, s.votes + leased.number, s.place, s.number
FROM leased CROSS JOIN standing AS s ON s.pair = leased.pair
WHERE s.votes + leased.number < {_WANTS} AND {_IS_THEIRS}
ORDER BY is_asked DESC, taken, place, number LIMIT 1
"""
"""Those before others are few: of the rest the first that fits, in the order of the index."""
_LEFT: Final = f"""
WITH {_LEASED} SELECT (SELECT count(*) FROM standing AS s WHERE s.votes < {_WANTS})
- (SELECT count(*) FROM ({_VOTED}) AS own CROSS JOIN standing AS s ON s.pair = own.pair
   WHERE s.votes < {_WANTS})
- (SELECT count(*) FROM leased CROSS JOIN standing AS s ON s.pair = leased.pair
   WHERE s.votes < {_WANTS} AND s.votes + leased.number >= {_WANTS} AND {_IS_THEIRS})
"""
"""All that want a vote, without those that the annotator answered and those that others will."""
_GOLD: Final = f"""
SELECT p.id FROM gold AS g JOIN pair AS p ON p.id = g.pair
WHERE p.id NOT IN ({_VOTED}) AND p.id NOT IN ({_BESIDES}) ORDER BY p.place, p.number
"""
_REPEATABLE: Final = f"""
SELECT v.pair FROM vote AS v
WHERE v.annotator = :annotator AND v.showing = 0 AND v.choice <> 'skip'
AND v.pair NOT IN (SELECT pair FROM gold) AND v.pair NOT IN ({_BESIDES})
AND v.pair NOT IN (SELECT pair FROM event WHERE annotator = :annotator AND showing = 1)
AND (SELECT count(DISTINCT e.pair) FROM event AS e
     WHERE e.annotator = :annotator AND e.number > v.number) >= {BETWEEN}
ORDER BY v.number
"""


class Showing(NamedTuple):
    """A pair that an annotator is shown, for the first time (0) or again (1)."""

    pair: str
    number: int


def places_of(seed: int, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Where pairs that are added together stand in the queue among those with as many votes.

    Each draws a place, so that what is answered at any moment is a sample of all, and a place tells
    nothing of the strategy. The pairs of one strategy then take theirs in the order they were
    chosen: where the budget ends early, it went into the first of them.

    Args:
        seed: What the store draws by.
        pairs: Ids and what chose each, in the order they were chosen.

    Returns:
        Of each pair; smaller ones come first.
    """
    places = [draw_seed(seed, f"queue {pair}") for pair, _ in pairs]
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, (_, strategy) in enumerate(pairs):
        # The order of others says nothing: it is drawn anew.
        if is_picked(strategy):
            rows_of[strategy].append(row)
    for rows in rows_of.values():
        for row, place in zip(rows, sorted(places[row] for row in rows), strict=True):
            places[row] = place
    return places


def item_id(seed: int, pair: str, annotator: str, showing: int) -> str:
    """A name for what is shown that tells nothing of it."""
    return fingerprint("item", seed, pair, annotator, showing)


def is_side_turned(seed: int, pair: str, annotator: str, showing: int) -> bool:
    """Whether `second` stands on the left: a fair draw, and the opposite when shown again."""
    return (draw_seed(seed, f"side {pair} {annotator}") & 1) != showing


def is_gold_turn(seed: int, annotator: str, number: int, *, fraction: float) -> bool:
    """Whether an annotator's item `number` (from 0) is to have a known answer.

    Returns:
        True twice among the first ten, then at `fraction`; never where that is 0.
    """
    if not fraction:
        return False
    if number >= FIRST_ITEMS:
        return _share(seed, f"gold {annotator}", number) < fraction
    first = draw_seed(seed, f"first gold {annotator}") % FIRST_ITEMS
    second = draw_seed(seed, f"second gold {annotator}") % (FIRST_ITEMS - 1)
    return number in (first, second + (second >= first))


def _turn(
    settings: LabelSettings, seed: int, annotator: str, number: int
) -> tuple[str | None, int]:
    """The query of what an item is to be chosen from, None: the queue; and which showing it is."""
    if is_gold_turn(seed, annotator, number, fraction=settings.gold_fraction):
        return _GOLD, 0
    drawn = _share(seed, f"repeat {annotator}", number)
    return (_REPEATABLE, 1) if drawn < settings.repeat_fraction else (None, 0)


def _share(seed: int, stream: str, number: int) -> float:
    """A draw in [0, 1)."""
    return draw_seed(seed, stream, number) / 2**63


def choose_showing(
    connection: sqlite3.Connection,
    settings: LabelSettings,
    seed: int,
    annotator: str,
    now: float,
    besides: Collection[str] = (),
) -> Showing | None:
    """What an annotator is to be shown next; None: the queue is closed, or has nothing for them.

    Args:
        connection: Of the writer: it has the table of `standings`.
        settings: Of the store.
        seed: What the store draws by.
        annotator: Who asks.
        now: Leases up to this time are over.
        besides: Items of theirs whose answers are on the way.
    """
    if not settings.is_open:
        return None
    values = _values(settings, annotator, now, besides)
    wanted = connection.execute(_NEXT, values).fetchone()
    if wanted is None:
        return None
    number = _num_taken(connection, annotator, besides)
    kind, showing = _turn(settings, seed, annotator, number)
    if kind is not None:
        fitting = [pair for (pair,) in connection.execute(kind, values)]
        if fitting:
            drawn = draw_seed(seed, f"which {annotator}", number)
            return Showing(fitting[drawn % len(fitting)], showing)
    return Showing(wanted[0], 0)


def count_left(
    connection: sqlite3.Connection, settings: LabelSettings, annotator: str, now: float
) -> int:
    """Pairs that still want a vote, and could get it from this annotator; 0: it is closed."""
    if not settings.is_open:
        return 0
    values = _values(settings, annotator, now, ())
    (number,) = connection.execute(_LEFT, values).fetchone()
    return int(number)


def _values(
    settings: LabelSettings, annotator: str, now: float, besides: Collection[str]
) -> dict[str, object]:
    return {
        "annotator": annotator,
        "now": now,
        "usual": settings.votes_per_pair,
        "besides": json.dumps(list(besides)),
    }


def _num_taken(connection: sqlite3.Connection, annotator: str, besides: Collection[str]) -> int:
    """Items that the annotator ever answered, and of `besides` those of theirs, each once.

    Undo takes none away. What else a page says it holds moves no draw.
    """
    (number,) = connection.execute(
        "SELECT count(*) FROM ("
        "SELECT pair, showing FROM event WHERE annotator = :annotator UNION "
        "SELECT pair, showing FROM item WHERE annotator = :annotator "
        "AND id IN (SELECT value FROM json_each (:besides)))",
        {"annotator": annotator, "besides": json.dumps(list(besides))},
    ).fetchone()
    return int(number)
