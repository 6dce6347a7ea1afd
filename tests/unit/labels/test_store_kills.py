# SPDX-License-Identifier: Apache-2.0
"""A process that votes is killed: what was acknowledged is stored, and nothing is there twice."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place whose syncs cost nothing: the death of a process needs no disk."""
    place = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    yield place
    shutil.rmtree(place)


def _found(*words: str, **environment: str) -> dict[str, int]:
    command = [sys.executable, str(HERE / "kill_points.py"), *words]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_killed_at_every_sync(folder: Path) -> None:
    """Before each fsync, fdatasync and unlink of SQLite's and of the journal's."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    library = str(folder / "kill_points.so")
    source = str(HERE / "kill_points.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    found = _found("syncs", str(folder), library, LD_PRELOAD=library)
    assert found["points"] > 30
    assert 0 < found["acknowledged"] <= found["stored"]
    assert (found["lost"], found["doubled"], found["broken"]) == (0, 0, 0)


def test_killed_at_random(folder: Path) -> None:
    found = _found("random", str(folder), "12")
    assert 0 < found["acknowledged"] <= found["stored"]
    assert (found["lost"], found["doubled"], found["broken"]) == (0, 0, 0)
