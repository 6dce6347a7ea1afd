# SPDX-License-Identifier: Apache-2.0
"""Calls of several processes in one file: no cap is broken, whoever dies whenever."""

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import Spent, TokenBound
from metarm.endpoint.call_ledger import CallLedger
from metarm.endpoint.caps import Caps

BOUND = TokenBound(100, 50)
PRICES = EndpointSettings(price_prompt=2.0, price_answer=4.0)


def ledger(path: Path, **caps: float) -> CallLedger:
    return CallLedger(path, Caps("labels", PRICES, **caps))


def test_what_others_took_counts_and_the_cap_is_named(tmp_path: Path) -> None:
    one, other = (ledger(tmp_path / "calls.jsonl", max_total_tokens=420) for _ in range(2))
    first = one.begin(BOUND)
    second = other.begin(BOUND)
    assert (first.reached, second.reached) == (None, None)
    # 300 at most are under way: another call could come to 450.
    told = "labels.max_total_tokens=420 leaves no room for another call"
    assert one.begin(BOUND) == ("", told)
    other.end(second.name, TokenBound(60, 40))
    third = one.begin(BOUND)
    assert third.reached is None
    assert other.begin(BOUND).reached == told
    # A process that dies leaves its call at its most.
    anew = ledger(tmp_path / "calls.jsonl", max_total_tokens=420)
    assert anew.begin(BOUND).reached == told
    assert anew.spent == Spent(3, 260, 140)
    assert ledger(tmp_path / "calls.jsonl", max_calls=4).begin(BOUND).reached is None
    assert ledger(tmp_path / "calls.jsonl", max_calls=4).begin(BOUND).reached is not None


@pytest.mark.parametrize("caps", [{"max_calls": 1}, {"max_total_tokens": 299}, {"max_cost": 7e-4}])
def test_any_of_the_caps_ends_it(tmp_path: Path, caps: dict[str, float]) -> None:
    one = ledger(tmp_path / "calls.jsonl", **caps)
    assert one.begin(BOUND).reached is None
    reached = one.begin(BOUND).reached
    assert reached is not None
    assert reached.startswith(f"labels.{next(iter(caps))}=")


@given(cut=st.integers(0, 400))
def test_a_file_that_was_cut_is_read_and_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "calls.jsonl"
    one = ledger(path)
    for _ in range(3):
        one.end(one.begin(BOUND).name, TokenBound(10, 5))
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    # A last line may lack its end alone.
    begun = (data + b"\n").count(b'"bound": [100, 50]}\n')
    anew = ledger(path)
    anew.end(anew.begin(BOUND).name, TokenBound(1, 1))
    last = ledger(path)
    last.begin(BOUND)
    ended = (data + b"\n").count(b'"took": [10, 5]}\n')
    assert last.spent.calls == begun + 2
    assert last.spent.prompt_tokens == 10 * ended + 100 * (begun - ended) + 1 + 100


def _spend(path: Path, found: "multiprocessing.Queue[int]") -> None:
    own, number = ledger(path, max_calls=50), 0
    while (entered := own.begin(BOUND)).reached is None:
        number += 1
        own.end(entered.name, TokenBound(1, 1))
    found.put(number)


def test_several_processes_at_once_keep_the_cap(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[int] = context.Queue()
    processes = [
        context.Process(target=_spend, args=(tmp_path / "calls.jsonl", found)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    numbers = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(numbers) == 50
