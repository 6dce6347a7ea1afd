# SPDX-License-Identifier: Apache-2.0
"""Parts of a piece of work: kept one by one, and a torn or damaged end is made again."""

import random
from pathlib import Path

import pytest

from crashes import cut, flip_bit
from metarm.chunk_log import ChunkLog

PARTS = {f"part {number}": [["text \u2028\n\r", [number, 2], True], 0.1] for number in range(8)}


def filled(path: Path) -> ChunkLog:
    log = ChunkLog(path)
    for key, value in PARTS.items():
        log.put(key, value)
    return log


def test_parts_come_back(tmp_path: Path) -> None:
    filled(tmp_path / "deep" / "log")
    again = ChunkLog(tmp_path / "deep" / "log")
    assert {key: again.get(key) for key in PARTS} == PARTS
    assert again.get("part 9") is None
    assert ChunkLog(tmp_path / "absent").get("part 0") is None


@pytest.mark.parametrize("damage", [flip_bit, cut])
def test_a_damaged_end_is_made_again(tmp_path: Path, damage) -> None:
    draw = random.Random(0)
    for number in range(100):
        path = tmp_path / str(number)
        filled(path)
        damage(path, draw)
        log = ChunkLog(path)
        found = [key for key in PARTS if log.get(key) is not None]
        assert found == list(PARTS)[: len(found)]
        assert all(log.get(key) == PARTS[key] for key in found)
        assert len(found) < len(PARTS)
        for key in list(PARTS)[len(found) :]:
            log.put(key, PARTS[key])
        again = ChunkLog(path)
        assert {key: again.get(key) for key in PARTS} == PARTS
