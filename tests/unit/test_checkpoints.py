# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole at every system call, every damage found, every state back bit for bit."""

import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from crashes import cut, die_at_call, flip_bit
from metarm.checkpoints import (
    CheckpointPlace,
    Pace,
    StateKeeper,
    newest_checkpoint,
    pack_state,
    save_checkpoint,
    unpack_state,
)
from metarm.errors import CheckpointError
from metarm.interrupts import Stopped
from metarm.manifest import MANIFEST_FILE, check_folder, seal_folder


def state_of(step: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    return {
        "weights": torch.randn(70, 30, generator=draw),
        "numbers": torch.arange(50) + step,
        "step": step,
    }


def is_same(first: Any, second: Any) -> bool:
    """Also in types, and bit for bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        # Bits: nan is not equal to itself.
        return first.dtype == second.dtype and first.numpy(force=True).tobytes() == (
            second.numpy(force=True).tobytes()
        )
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    return repr(first) == repr(second)


@pytest.mark.slow
def test_the_newest_is_whole_wherever_the_writer_dies(tmp_path: Path) -> None:
    """Four saves of which two are kept; death at each call, half-way through a write."""

    def work(folder: Path) -> None:
        for step in range(1, 5):
            save_checkpoint(folder, step, state_of(step))

    points, newest = 0, []
    while True:
        folder = tmp_path / str(points)
        died = die_at_call(points + 1, lambda f=folder: work(f))
        found = newest_checkpoint(folder)
        newest.append(found.step if found else 0)
        if found is not None:
            assert is_same(found.state, state_of(found.step))
        # And the next life goes on as if nothing had been.
        save_checkpoint(folder, 9, state_of(9))
        assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []
        assert newest_checkpoint(folder).step == 9
        shutil.rmtree(folder)
        if not died:
            break
        points += 1
    assert points >= 60
    assert newest == sorted(newest), "what was newest once is never lost"
    assert set(newest) == {0, 1, 2, 3, 4}


def damaged_copy(whole: Path, place: Path, damage: Any, draw: random.Random) -> None:
    shutil.copytree(whole, place)
    damage(draw.choice(sorted(place.iterdir())), draw)


@pytest.mark.parametrize(("damage", "times"), [(flip_bit, 300), (cut, 200)])
def test_every_damage_is_found(tmp_path: Path, damage: Any, times: int) -> None:
    whole = save_checkpoint(tmp_path / "whole", 1, state_of(1))
    assert len(list(whole.iterdir())) == 3
    draw = random.Random(0)
    for number in range(times):
        place = tmp_path / str(number) / whole.name
        damaged_copy(whole, place, damage, draw)
        with pytest.raises(CheckpointError, match=str(place)):
            check_folder(place)
        shutil.rmtree(place.parent)


def test_the_last_whole_one_is_used_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state_of(step), keep=3)
    flip_bit(tmp_path / "step_00000003" / "state.safetensors", random.Random(0))
    (tmp_path / "step_00000002" / MANIFEST_FILE).unlink()
    found = newest_checkpoint(tmp_path)
    assert found.step == 1
    assert "step_00000003/state.safetensors: expected the bytes that were written" in caplog.text
    assert "step_00000002: expected MANIFEST.json, got none" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        save_checkpoint(tmp_path, 3, state_of(3), keep=3)
    assert newest_checkpoint(tmp_path).step == 3, "a damaged one is replaced"


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, state_of(step))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_00000010", "step_00000015"]


def test_what_belongs_to_other_settings_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, fingerprint="a")
    with pytest.raises(CheckpointError, match=r"other settings or inputs \(fingerprint a, now b\)"):
        newest_checkpoint(tmp_path, fingerprint="b")


def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_text("x")
    seal_folder(tmp_path / "in", {})
    text = (tmp_path / "in" / MANIFEST_FILE).read_text()
    body = json.loads(text)
    del body["digest"]
    from metarm import manifest

    body["files"] = {"../out": {"size": 1, "sha256": manifest.file_digest(tmp_path / "out")}}
    (tmp_path / "in" / MANIFEST_FILE).write_text(manifest._format(body))
    with pytest.raises(CheckpointError, match="outside of it"):
        check_folder(tmp_path / "in")


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 1e-3}, {"params": p[1:]}]),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True, foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    def make() -> tuple[torch.nn.Module, Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def step(model: Any, optimizer: Any, scheduler: Any, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        inputs = torch.randn(8, 4, generator=draw)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()

    whole = make()
    for number in range(6):
        step(*whole, number)
        if number == 2:
            state = [part.state_dict() for part in whole]
            save_checkpoint(tmp_path, 3, state)
    again = make()
    for part, kept in zip(again, newest_checkpoint(tmp_path).state, strict=True):
        part.load_state_dict(kept)
    for number in range(3, 6):
        step(*again, number)
    assert is_same([p.state_dict() for p in again], [p.state_dict() for p in whole])


DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64]


def test_tensors_of_any_kind_come_back_as_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(7).to(dtype) for dtype in DTYPES}
    tensors |= {
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(1.5),
        "turned": torch.arange(12.0).reshape(3, 4).t(),
        "bits": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "half": torch.randn(5).to(torch.bfloat16),
    }
    place = save_checkpoint(tmp_path, 1, tensors)
    read = load_file(place / "state.safetensors")
    kept = newest_checkpoint(tmp_path).state
    for name, tensor in tensors.items():
        ours, theirs = kept[name], read[f"/{name}"]
        assert ours.shape == tensor.shape == theirs.shape
        for found in (ours, theirs):
            assert torch.equal(
                found.contiguous().reshape(-1).view(torch.uint8),
                tensor.contiguous().reshape(-1).view(torch.uint8),
            )


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("ab$", max_size=2), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(states)
def test_values_come_back_as_they_were(state: Any) -> None:
    values, tensors = pack_state(state)
    text = json.dumps(values, allow_nan=False)
    assert is_same(unpack_state(json.loads(text), tensors), state)


def test_random_states_come_back() -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state()}
    values, tensors = pack_state(state)
    again = unpack_state(json.loads(json.dumps(values)), tensors)
    random.setstate(again["python"])
    np.random.set_state(again["numpy"])
    assert is_same(again, state)


@pytest.mark.parametrize("bad", [len, {1.5: 2}, {"a": {2, 3}}, torch.zeros(2).to_sparse()])
def test_what_cannot_be_kept_is_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(CheckpointError, match="a checkpoint"):
        save_checkpoint(tmp_path, 1, {"x": bad})


def test_a_folder_without_room_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, state_of(1))
    real = os.write
    written = []

    def write(descriptor: int, data: Any) -> int:
        written.append(len(data))
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path, 2, state_of(2))
    assert newest_checkpoint(tmp_path).step == 1


def test_a_pace_by_time_spends_a_fiftieth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("metarm.checkpoints.time.monotonic", lambda: now[0])
    pace = Pace()
    pace.begin()
    spent = made = 0
    while now[0] < 20_000:
        now[0] += 1.0
        if pace.is_due(3):
            now[0] += 4.0
            pace.saved(4.0)
            spent, made = spent + 4, made + 1
    assert made > 50
    assert 0.01 < spent / now[0] <= 0.02
    assert not Pace(every=5).is_due(7)
    assert Pace(every=5).is_due(10)


def test_a_keeper_goes_on_and_stops_where_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = CheckpointPlace(tmp_path / "kept", every=100)

    def work(asked_at: int | None) -> list[float]:
        keeper = StateKeeper(place)
        done, state = keeper.newest() or (0, {"numbers": []})
        numbers = list(state["numbers"])
        for step in range(done, 6):
            numbers.append(step / 3)
            if step + 1 == asked_at:
                monkeypatch.setattr("metarm.interrupts._request.number", 15)
            keeper.at_boundary(step + 1, lambda: {"numbers": numbers})
        return numbers

    with pytest.raises(Stopped) as stopped:
        work(asked_at=4)
    assert stopped.value.exit_code == 143
    assert newest_checkpoint(place.folder).step == 4
    assert work(asked_at=None) == [step / 3 for step in range(6)]
    assert StateKeeper(None).newest() is None
