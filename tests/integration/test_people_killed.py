# SPDX-License-Identifier: Apache-2.0
"""Kill -9 in a round that people label: asking, handing out, importing votes, and taking them in.

Nothing is asked twice, nothing that was told is lost, and the end is that of a run never stopped.
"""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.commands import Command, inodes
from integration.rounds_of_labels import arm, made_of_labels
from metarm.labels.events import VoteEvent
from metarm.labels.reading import LabelReader
from metarm.labels.store import LabelStore
from metarm.labels.verifying import verify_store
from metarm.labels.votes import LabelPair
from metarm.storage import read_json_lines
from patience import wait_until

pytestmark = pytest.mark.slow

NUM_PAIRS = 6
PLACE = "seed_0/arms/people/round_01"


@pytest.fixture
def command(smoke: list[str]) -> Callable[[Path], list[str]]:
    """The words of a run in whose only round two people label what is asked, each pair."""
    return lambda run: [
        *smoke,
        str(run),
        "rounds=1",
        "arms=[people]",
        "labels.votes_per_pair=2",
        *arm("people", labels_per_round=NUM_PAIRS, labels_from="people"),
    ]


def answer(store: Path) -> None:
    """Two people who do not always agree answer everything there is; one of them skips one."""
    with LabelStore(store) as opened:
        for name in ("ann", "bob"):
            opened.add_annotator(name)
            for number, pair in enumerate(opened.pairs()):
                choice = "first" if len(pair.first) > len(pair.second) else "second"
                if name == "bob":
                    choice = ("skip", "tie", "first")[min(number, 2)]
                opened.record(
                    VoteEvent(f"{name} {number}", name, choice, pair=pair.id, seconds=2.0, at=1e9)
                )


def killed_when(
    launch: Callable[..., Command], words: list[str], is_time: Callable[[], bool], delay: float
) -> bool:
    """Start a command and kill it, `delay` seconds after something is so; False: it had ended."""
    started = launch(*words)
    wait_until(lambda: is_time() or not started.process.is_alive(), pause=0.001)
    time.sleep(delay)
    was_alive = started.process.is_alive()
    started.kill()
    return was_alive


def test_killed_at_every_step_of_a_round_with_people(
    finished_run: Path, launch: Callable[..., Command], metarm, command, tmp_path: Path
) -> None:
    whole, run = (Path(shutil.copytree(finished_run, tmp_path / name)) for name in "ab")
    # Never stopped.
    assert metarm(*command(whole)).code == 75
    answer(whole / "labels.sqlite")
    votes = tmp_path / "votes.jsonl"
    done = metarm("label", "export", str(whole / "labels.sqlite"), "--format", "votes-jsonl",
                  "--output", str(votes))  # fmt: skip
    assert done.code == 0, done.err
    done = metarm(*command(whole))
    assert done.code == 0, done.err

    # Asking, and handing out.
    draw = random.Random(0)
    store, place = run / "labels.sqlite", run / PLACE
    asked = place / "asked/pairs.jsonl"
    kills = sum(
        killed_when(launch, command(run), path.exists, delay)
        for path, delay in (
            (place / ".asked.partial", 0.0),
            (asked, 0.0),
            (store, 0.0),
            (store.with_name("labels.sqlite.journal.jsonl"), draw.uniform(0, 0.05)),
        )
    )
    assert kills >= 2
    before = inodes(run)
    assert metarm(*command(run)).code == 75
    assert inodes(run).items() >= before.items()
    assert asked.read_bytes() == (whole / PLACE / "asked/pairs.jsonl").read_bytes()
    pairs = [LabelPair.from_json(row) for row in read_json_lines(asked)]
    with LabelReader(store) as reader:
        assert reader.pairs() == pairs
        assert reader.wanted() == {pair.id: 2 for pair in pairs}
    assert verify_store(store).is_whole

    # Importing: all of a file or nothing, and the same file again adds nothing.
    words = ["label", "import", str(store), str(votes), "--format", "votes-jsonl"]
    log = store.with_name(".labels.sqlite.lock")
    old = log.stat().st_mtime_ns
    for _ in range(4):
        was_alive = killed_when(
            launch, words, lambda then=old: log.stat().st_mtime_ns > then, draw.uniform(0, 0.08)
        )
        old = log.stat().st_mtime_ns
        with LabelStore(store) as opened:
            assert len(opened.votes()) in ((0, 2 * NUM_PAIRS) if was_alive else (2 * NUM_PAIRS,))
    assert metarm(*words).code == 0
    with LabelReader(store) as reader:
        assert len(reader.events()) == len(reader.votes()) == 2 * NUM_PAIRS
    assert verify_store(store).is_whole

    # Taking them in, and everything after.
    for delay in (0.0, 0.02, 0.1):
        killed_when(launch, command(run), (place / ".labels.partial").exists, delay)
    before = inodes(run)
    done = metarm(*command(run))
    assert done.code == 0, done.err
    assert inodes(run).items() >= before.items()
    assert made_of_labels(run, "people") == made_of_labels(whole, "people")
    with LabelReader(store) as reader:
        assert len(reader.pairs()) == NUM_PAIRS, "nothing is asked again"
