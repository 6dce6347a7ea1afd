# SPDX-License-Identifier: Apache-2.0
"""What progress looks like: plain lines without a terminal, bars with one."""

import io

import pytest

from metarm.cli.progress import PlainProgress, RichProgress, choose_progress
from metarm.protocols import ProgressReporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_stream_decides() -> None:
    assert isinstance(choose_progress(io.StringIO()), PlainProgress)
    assert isinstance(choose_progress(Terminal()), RichProgress)


def test_plain_lines_are_few_nested_and_timed() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = PlainProgress(stream, interval_seconds=10, clock=lambda: now[0])
    with progress.stage("round 1", 1), progress.stage("sampling", 8) as bar:
        for _ in range(8):
            now[0] += 4
            bar.advance(note="3 tok/s")
    assert stream.getvalue().splitlines() == [
        "round 1: 1 step",
        "  sampling: 8 steps",
        "  sampling: 3 of 8, 0:00:12 gone, 0:00:20 left, 3 tok/s",
        "  sampling: 6 of 8, 0:00:24 gone, 0:00:08 left, 3 tok/s",
        "  sampling: done in 0:00:32",
        "round 1: done in 0:00:32",
    ]


@pytest.mark.parametrize("kind", [PlainProgress, RichProgress])
def test_a_failed_stage_says_so_and_the_next_one_works(
    kind: type[PlainProgress] | type[RichProgress],
) -> None:
    stream = Terminal()
    progress: ProgressReporter = kind(stream)
    with pytest.raises(ZeroDivisionError), progress.stage("bad", 3):
        raise ZeroDivisionError
    with progress.stage("good", 3) as bar:
        bar.advance(3)
    assert "bad: stopped after 0:00:0" in stream.getvalue()
    assert "good: done in 0:00:0" in stream.getvalue()


def test_bars_nest_show_counts_and_take_any_text() -> None:
    stream = Terminal()
    with RichProgress(stream).stage("outer [red]", 2) as outer:
        outer.advance(1, "note [/bold]")
    reporter = RichProgress(stream)
    with reporter.stage("first", 4) as first, reporter.stage("second", 5) as second:
        first.advance(3)
        second.advance(2)
        reporter._progress.refresh()
        tasks = {task.description: task.completed for task in reporter._progress.tasks}
    assert tasks == {"first": 3, "  second": 2}
    assert reporter._progress.tasks == []
    assert "outer [red]: done in" in stream.getvalue()
    assert "3/4" in stream.getvalue()
