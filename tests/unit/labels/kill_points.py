# SPDX-License-Identifier: Apache-2.0
"""Kill a process that votes, at every sync and at random; prints what was lost, as JSON.

At every sync: run with LD_PRELOAD=kill_points.so, `python kill_points.py syncs FOLDER LIBRARY`.
At random: `python kill_points.py random FOLDER COUNT`.
"""

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from metarm.labels.events import VoteEvent
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.verifying import verify_store
from metarm.labels.votes import LabelPair

PAIRS = [LabelPair(f"q{number}", "a", "b") for number in range(4000)]


def in_child(work: Callable[[], None]) -> int:
    """The process that does some work."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def vote(folder: Path, num_votes: int) -> None:
    """Serve and record votes, and note each key in a ledger once it is acknowledged."""
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with LabelStore(folder / "labels.db", LabelSettings(gold_fraction=0)) as store:
        store.add_pairs(PAIRS[:num_votes])
        store.add_annotator("ann")
        for number in range(num_votes):
            item = store.next_item("ann")
            if item is None:
                return
            key = f"{os.getpid()} {number}"
            store.record(VoteEvent(key, "ann", "first", item=item.id))
            os.write(ledger, f"{key}\n".encode())


def check(folder: Path) -> dict[str, int]:
    """What a store has against what was acknowledged, after it was opened once more."""
    ledger = folder / "ledger"
    told = ledger.read_text().splitlines() if ledger.exists() else []
    with LabelStore(folder / "labels.db") as store:
        keys = [event.key for event in store.events()]
        shown = [(event.pair, event.showing) for event in store.events()]
    return {
        "acknowledged": len(told),
        "stored": len(keys),
        "lost": len(set(told) - set(keys)),
        "doubled": len(shown) - len(set(shown)),
        "broken": int(not verify_store(folder / "labels.db").is_whole),
    }


def kill_at_every_sync(folder: Path, library: str) -> dict[str, int]:
    """A fresh store for each point, until the work needs no further one."""
    arm = ctypes.CDLL(library).arm
    sums = {"points": 0, "acknowledged": 0, "stored": 0, "lost": 0, "doubled": 0, "broken": 0}
    for point in count(1):
        own = folder / str(point)
        own.mkdir()

        def work(point: int = point, own: Path = own) -> None:
            arm(point)
            vote(own, 2)

        _, status = os.waitpid(in_child(work), 0)
        if os.waitstatus_to_exitcode(status) == 0:
            return sums
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        sums["points"] += 1
        for name, number in check(own).items():
            sums[name] += number
    raise AssertionError


def kill_at_random(folder: Path, num_kills: int) -> dict[str, int]:
    """One store that is killed again and again."""
    draw = random.Random(0)
    ledger = folder / "ledger"
    for _ in range(num_kills):
        size = ledger.stat().st_size if ledger.exists() else 0
        child = in_child(lambda: vote(folder, len(PAIRS)))
        while not ledger.exists() or ledger.stat().st_size == size:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before a vote"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"kills": num_kills, **check(folder)}


if __name__ == "__main__":
    mode, where, what = sys.argv[1:]
    found = (
        kill_at_every_sync(Path(where), what)
        if mode == "syncs"
        else kill_at_random(Path(where), int(what))
    )
    sys.stdout.write(json.dumps(found))
