# SPDX-License-Identifier: Apache-2.0
"""What a server counts, as Prometheus reads it: text format 0.0.4, written by hand."""

import os
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

__all__ = ["LATENCY_BOUNDS", "SERVER_METRICS", "Counters", "resident_bytes"]

SERVER_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "metarm_requests_total": ("counter", "Requests answered, by route and HTTP status."),
    "metarm_refusals_total": ("counter", "Answers without scores, by reason."),
    "metarm_request_seconds": ("histogram", "Time to an answer with scores, by route."),
    "metarm_items_total": ("counter", "Items scored."),
    "metarm_batches_total": ("counter", "Batches scored, each of one request or several."),
    "metarm_waiting_items": ("gauge", "Items that wait for the model."),
    "metarm_rows_total": ("counter", "Token rows scored, side by side (together) or alone."),
    "metarm_body_bytes": ("gauge", "Bytes of requests that are being read or scored."),
    "metarm_swaps_total": ("counter", "Models that took the place of another, or failed to."),
    "metarm_model_info": ("gauge", "1, with name, version and sha256 of the served model."),
    "process_resident_memory_bytes": ("gauge", "Memory of the process."),
}
"""Kind and meaning by name; `docs/serving.md` lists them, and a test holds the two together."""

LATENCY_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets, in seconds."""

_Labels = tuple[tuple[str, str], ...]


class Counters:
    """Numbers by name and labels; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets: dict[_Labels, list[int]] = defaultdict(lambda: [0] * len(LATENCY_BOUNDS))
        self._readings: dict[str, Callable[[], Mapping[_Labels, float]]] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count `amount` more."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Count one more duration of a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[f"{name}_count"][key] += 1
            self._values[f"{name}_sum"][key] += seconds
            place = bisect_left(LATENCY_BOUNDS, seconds)
            if place < len(LATENCY_BOUNDS):
                self._buckets[key][place] += 1

    def read_with(self, name: str, reading: Callable[[], Mapping[_Labels, float]]) -> None:
        """Ask `reading` for the values of `name`, by labels, whenever they are wanted."""
        self._readings[name] = reading

    def value(self, name: str, **labels: str) -> float:
        """What has been counted; 0 where nothing was."""
        with self._lock:
            return self._values[name][tuple(sorted(labels.items()))]

    def text(self) -> str:
        """All metrics, in the order of `SERVER_METRICS`."""
        lines = []
        for name, (kind, meaning) in SERVER_METRICS.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            if reading := self._readings.get(name):
                lines += [_line(name, key, value) for key, value in reading().items()]
                continue
            with self._lock:
                if kind == "histogram":
                    lines += self._histogram(name)
                else:
                    lines += [_line(name, *row) for row in sorted(self._values[name].items())]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        lines = []
        for key, count in sorted(self._values[f"{name}_count"].items()):
            below = 0
            for bound, own in zip(LATENCY_BOUNDS, self._buckets[key], strict=True):
                below += own
                lines.append(_line(f"{name}_bucket", (*key, ("le", str(bound))), below))
            lines.append(_line(f"{name}_bucket", (*key, ("le", "+Inf")), count))
            lines.append(_line(f"{name}_sum", key, self._values[f"{name}_sum"][key]))
            lines.append(_line(f"{name}_count", key, count))
        return lines


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say (no /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _line(name: str, labels: _Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
