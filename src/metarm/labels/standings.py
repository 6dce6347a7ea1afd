# SPDX-License-Identifier: Apache-2.0
"""How each pair stands in the queue, counted once: beside the writer's database, moved by triggers.

Votes are only ever added, so that what a pair has is counted anew where one is: for that pair
alone. It is the writer's own, in memory, made when a store is opened; no file has it.
"""

import sqlite3
from typing import Final

__all__ = ["make_standings", "read_strategies"]

_COUNTED: Final = """
SELECT count(*) FROM vote AS v JOIN annotator AS a ON a.name = v.annotator
WHERE v.pair = {pair} AND a.kind = 'person' AND v.showing = 0 AND v.choice <> 'skip'
"""
"""Votes of people on a pair that count; those on its mirrored repeat do not."""

_STATEMENTS: Final = (
    """CREATE TEMP TABLE standing (
        pair TEXT PRIMARY KEY, number INTEGER NOT NULL, place INTEGER NOT NULL,
        chosen_by TEXT NOT NULL, votes INTEGER NOT NULL, wanted INTEGER, is_late INTEGER NOT NULL,
        is_asked INTEGER AS (is_late AND votes < wanted) STORED
    ) WITHOUT ROWID""",
    f"""INSERT INTO standing (pair, number, place, chosen_by, votes, wanted, is_late)
        SELECT p.id, p.number, p.place, p.chosen_by, ({_COUNTED.format(pair="p.id")}),
        (SELECT max(w.votes) FROM want AS w WHERE w.pair = p.id),
        EXISTS (SELECT 1 FROM want AS w WHERE w.pair = p.id AND w.at <> p.at)
        FROM pair AS p WHERE p.id NOT IN (SELECT pair FROM gold)""",
    "CREATE INDEX temp.standing_in_order ON standing (is_asked DESC, votes, place, number, wanted)",
    "CREATE INDEX temp.standing_by_strategy ON standing (chosen_by)",
    """CREATE TEMP TRIGGER pair_stands AFTER INSERT ON main.pair BEGIN
        INSERT INTO standing (pair, number, place, chosen_by, votes, wanted, is_late)
        VALUES (NEW.id, NEW.number, NEW.place, NEW.chosen_by, 0, NULL, 0); END""",
    """CREATE TEMP TRIGGER gold_stands_apart AFTER INSERT ON main.gold BEGIN
        DELETE FROM standing WHERE pair = NEW.pair; END""",
    """CREATE TEMP TRIGGER want_counts AFTER INSERT ON main.want BEGIN
        UPDATE standing SET wanted = max(ifnull(wanted, 0), NEW.votes), is_late = is_late OR
        NEW.at <> (SELECT p.at FROM pair AS p WHERE p.id = NEW.pair)
        WHERE pair = NEW.pair; END""",
    f"""CREATE TEMP TRIGGER event_counts AFTER INSERT ON main.event BEGIN
        UPDATE standing SET votes = ({_COUNTED.format(pair="NEW.pair")})
        WHERE pair = NEW.pair; END""",
)
"""Table `standing`: every pair without a known answer; `wanted` is null where the settings say.

A pair `is_asked` while it lacks votes that were asked for after it was added (`is_late`)."""


def make_standings(connection: sqlite3.Connection) -> None:
    """Count how every pair stands, and see to it that it is counted from now on."""
    connection.execute("PRAGMA temp_store = MEMORY")
    for statement in _STATEMENTS:
        connection.execute(statement)


def read_strategies(connection: sqlite3.Connection) -> list[str]:
    """Strategies that chose a pair without a known answer, sorted; one step in the index each."""
    rows = connection.execute(
        """WITH RECURSIVE found (name) AS (
            SELECT min(chosen_by) FROM standing UNION ALL
            SELECT (SELECT min(s.chosen_by) FROM standing AS s WHERE s.chosen_by > found.name)
            FROM found WHERE found.name IS NOT NULL
        ) SELECT name FROM found WHERE name IS NOT NULL"""
    )
    return [str(name) for (name,) in rows]
