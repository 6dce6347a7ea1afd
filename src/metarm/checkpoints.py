# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: any state of tensors and plain values, whole or not at all, verified when read.

A checkpoint is a folder of one safetensors file, one JSON file and a manifest. It is written under
another name, synced, and renamed; the newest one whose bytes are those of its manifest counts.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from metarm.errors import CheckpointError
from metarm.interrupts import stop_if_asked, stop_is_asked
from metarm.manifest import newest_whole, seal_folder
from metarm.storage import remove_folder, sync, write_bytes

__all__ = [
    "KEPT_CHECKPOINTS",
    "Checkpoint",
    "CheckpointPlace",
    "Pace",
    "StateKeeper",
    "newest_checkpoint",
    "pack_state",
    "read_state",
    "save_checkpoint",
    "unpack_state",
    "write_state",
]

KEPT_CHECKPOINTS: Final = 2
"""The newest, and one more in case that one is damaged."""

_DTYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_KIND: Final = "$"
"""The key of what JSON has no value for: tensors, tuples, arrays, numbers that are not finite."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where a piece of work keeps its checkpoints, and how often it makes one."""

    folder: Path
    every: int | None = None
    """Steps between two; None: as often as costs little (`Pace`)."""


@dataclass(slots=True)
class Pace:
    """When a checkpoint is due: every so many steps, or as often as costs little."""

    every: int | None = None
    """Steps between two; None: by time, so that processes that must agree need a number."""
    share: float = 0.02
    """Of the work's time that may be spent on checkpoints, at most; .02 is one fiftieth."""
    least_seconds: float = 30.0
    """Between two by time: work that takes less than this has none."""
    _cost: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """The work begins, or goes on, now."""
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after `step` steps, or because a stop is asked for."""
        if stop_is_asked():
            return True
        if self.every is not None:
            return step % self.every == 0
        since = time.monotonic() - self._last
        return since >= max(self.least_seconds, self._cost / self.share)

    def saved(self, seconds: float) -> None:
        """One has been made, which took so long."""
        self._cost = seconds
        self._last = time.monotonic()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    step: int
    folder: Path
    state: Any
    """What `save_checkpoint` was given."""


def save_checkpoint(
    folder: Path,
    step: int,
    state: Any,
    *,
    fingerprint: str = "",
    keep: int = KEPT_CHECKPOINTS,
) -> Path:
    """Keep a state: afterwards it is on disk, or the one before it still is.

    Args:
        folder: Of all checkpoints of this piece of work; it is made.
        step: How much is done; a state of the same step that is whole is left as it is.
        state: Dicts, lists, tuples, numbers, texts and tensors in any nesting: what
            `state_dict()` of a model, an optimiser or a scheduler gives.
        fingerprint: Of the settings and inputs that the state belongs to.
        keep: So many of the newest stay; at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: When the state holds something else, such as a function.
        OSError: When it cannot be written; the checkpoints before it are untouched.

    Writes:
        `step_00000120/` with `state.safetensors`, `state.json` and `MANIFEST.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    place = folder / f"step_{step:08d}"
    facts = {"step": step, "fingerprint": fingerprint}
    if place.exists():
        if newest_whole([place]) is not None:
            return place
        _remove(place)
    partial = folder / f".{place.name}.partial"
    partial.mkdir()
    seal_folder(partial, facts, write_state(partial / "state", state))
    os.rename(partial, place)
    sync(folder)
    for old in _steps(folder)[keep:]:
        _remove(old)
    return place


def newest_checkpoint(folder: Path, *, fingerprint: str = "") -> Checkpoint | None:
    """The newest whole checkpoint; None where there is none. Those passed over are logged.

    Raises:
        CheckpointError: When it is of other settings or inputs.
    """
    found = newest_whole(_steps(folder))
    if found is None:
        return None
    place, facts = found
    if facts["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{place} belongs to other settings or inputs (fingerprint {facts['fingerprint']}, "
            f"now {fingerprint}): remove {folder} to begin anew, or put the old settings back"
        )
    return Checkpoint(facts["step"], place, read_state(place / "state"))


def _steps(folder: Path) -> list[Path]:
    """Its checkpoints by name, newest first."""
    return sorted(folder.glob("step_*"), reverse=True)


def _remove(place: Path) -> None:
    """Under another name first: half a checkpoint must not look like one."""
    removed = place.with_name(f".{place.name}.removed")
    remove_folder(removed)
    os.rename(place, removed)
    remove_folder(removed)


def _remove_leftovers(folder: Path) -> None:
    for kind in ("partial", "removed"):
        for place in folder.glob(f".step_*.{kind}"):
            remove_folder(place)


class StateKeeper:
    """The checkpoints of a piece of work that goes step by step.

    Example: the whole of what an optimiser has to do.

        keeper = StateKeeper(place)
        done, state = keeper.newest() or (0, None)
        if state is not None:
            model.load_state_dict(state["model"])
        with at_boundaries():
            for step in range(done, num_steps):
                ...
                keeper.at_boundary(step + 1, lambda: {"model": model.state_dict()})

    Args:
        place: Where checkpoints are, and how often one is made; None: nothing is kept.
        fingerprint: Of what they belong to; empty where the place says it, as a stage's does.
    """

    def __init__(self, place: CheckpointPlace | None, *, fingerprint: str = "") -> None:
        self._place = place
        self._fingerprint = fingerprint
        self._pace = Pace(place.every if place else None)

    @property
    def folder(self) -> Path | None:
        """Where checkpoints are; None: nothing is kept."""
        return None if self._place is None else self._place.folder

    def newest(self) -> tuple[int, Any] | None:
        """Steps done and the state after them; None where the work begins."""
        self._pace.begin()
        if self._place is None:
            return None
        found = newest_checkpoint(self._place.folder, fingerprint=self._fingerprint)
        return None if found is None else (found.step, found.state)

    def at_boundary(self, step: int, state: Callable[[], Any]) -> None:
        """After `step` steps: keep the state where it is due, and stop where that is asked for.

        Raises:
            Stopped: After it was kept.
        """
        if self._place is not None and self._pace.is_due(step):
            started = time.monotonic()
            save_checkpoint(self._place.folder, step, state(), fingerprint=self._fingerprint)
            self._pace.saved(time.monotonic() - started)
        stop_if_asked()


def write_state(stem: Path, state: Any) -> dict[str, str]:
    """Write a state as STEM.safetensors and STEM.json, synced.

    Returns:
        The SHA-256 of each file by its name.

    Raises:
        CheckpointError: When the state holds something that neither can.
    """
    values, tensors = pack_state(state)
    text = json.dumps(values, ensure_ascii=True, allow_nan=False)
    weights, plain = stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
    return {
        weights.name: write_bytes(weights, _safetensors(tensors)),
        plain.name: write_bytes(plain, [text.encode()]),
    }


def read_state(stem: Path) -> Any:
    """The reverse; tensors are on the CPU.

    Raises:
        CheckpointError: When the files are not what `write_state` writes.
    """
    weights, plain = stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
    try:
        return unpack_state(json.loads(plain.read_text(encoding="utf-8")), load_file(weights))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError) as error:
        raise CheckpointError(
            f"{plain.parent}: expected the state of a checkpoint, got something else: {error}. "
            "Remove the folder."
        ) from error


def pack_state(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A state as JSON values and tensors by name: `state/0/exp_avg` for an AdamW's moment.

    Tensors that share memory, such as tied weights, are each kept whole.

    Raises:
        CheckpointError: When it holds something else; names the place.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(state, "", tensors), tensors


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON keeps every bit of a finite number, and has no others.
        return value if math.isfinite(value) else {_KIND: "float", "value": repr(value)}
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise CheckpointError(f"{place}: a checkpoint cannot keep a tensor of {value.dtype}")
        tensors[place] = value.detach()
        return {_KIND: "tensor", "name": place}
    if isinstance(value, np.ndarray):
        return {_KIND: "array", "dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {_KIND: "tuple", "items": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key != _KIND for key in value):
            return {key: _pack(item, f"{place}/{key}", tensors) for key, item in value.items()}
        if all(isinstance(key, str | int) for key in value):
            pairs = [[key, _pack(item, f"{place}/{key}", tensors)] for key, item in value.items()]
            return {_KIND: "dict", "items": pairs}
    raise CheckpointError(
        f"{place or 'the state'}: a checkpoint keeps tensors, numbers, texts, lists, tuples and "
        f"dicts, got a {type(value).__name__}"
    )


def unpack_state(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `pack_state`."""
    if isinstance(values, list):
        return [unpack_state(item, tensors) for item in values]
    if not isinstance(values, dict):
        return values
    if _KIND not in values:
        return {key: unpack_state(item, tensors) for key, item in values.items()}
    return _UNPACK[values[_KIND]](values, tensors)


_UNPACK: Final[Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]]] = {
    "array": lambda told, _: np.array(told["values"], dtype=told["dtype"]),
    "dict": lambda told, tensors: {k: unpack_state(v, tensors) for k, v in told["items"]},
    "float": lambda told, _: float(told["value"]),
    "tensor": lambda told, tensors: tensors[told["name"]],
    "tuple": lambda told, tensors: tuple(unpack_state(v, tensors) for v in told["items"]),
}


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, one tensor in memory at a time.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    header: dict[str, Any] = {}
    # Wide types first: each tensor then begins where its type may.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data
