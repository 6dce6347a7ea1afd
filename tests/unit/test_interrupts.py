# SPDX-License-Identifier: Apache-2.0
"""Stops: at once where nothing is in hand, at the next boundary where something is."""

import os
import signal
import threading
import time

import pytest

from metarm import interrupts
from metarm.interrupts import (
    Stopped,
    at_boundaries,
    stop_if_asked,
    stop_is_asked,
    stop_on_signals,
)

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    # The handler runs between two instructions.
    time.sleep(0)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_boundaries_it_is_at_once(number: int) -> None:
    def work() -> None:
        with stop_on_signals():
            send(number)
            pytest.fail("it went on")

    with pytest.raises(Stopped) as stopped:
        work()
    assert stopped.value.exit_code == 128 + number
    assert isinstance(stopped.value, KeyboardInterrupt)


@pytest.mark.parametrize("number", SIGNALS)
def test_work_is_told_and_ends_at_its_boundary(number: int) -> None:
    done = []

    def work() -> None:
        with stop_on_signals(), at_boundaries():
            for step in range(5):
                if step == 2:
                    send(number)
                    assert stop_is_asked()
                done.append(step)
                stop_if_asked()

    with pytest.raises(Stopped):
        work()
    assert done == [0, 1, 2]
    assert not stop_is_asked()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_request_that_came_after_the_last_boundary_ends_the_block() -> None:
    def work() -> None:
        with stop_on_signals(), at_boundaries():
            with at_boundaries():
                send(signal.SIGTERM)
            assert stop_is_asked(), "the inner block is not the work's end"

    with pytest.raises(Stopped):
        work()


def test_the_second_one_is_at_once() -> None:
    def work() -> None:
        with stop_on_signals(), at_boundaries():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            pytest.fail("it went on")

    with pytest.raises(Stopped):
        work()


def test_a_step_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 0.05)

    def work() -> None:
        with stop_on_signals(), at_boundaries():
            send(signal.SIGTERM)
            threading.Event().wait(60)

    with pytest.raises(Stopped):
        work()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)]
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
