# SPDX-License-Identifier: Apache-2.0
"""A reward server at ten times its capacity: every score checked, every request accounted for.

    OMP_NUM_THREADS=1 python benchmarks/serve_overload.py MODEL PAIRS.jsonl.gz \
        --output benchmarks/results/serve_overload.json

MODEL is a language model, which gets a score head; PAIRS holds `prompt` and `chosen`. For each size
of the queue a server is started as a process (`metarm serve`), warmed up, measured one request at a
time (unloaded), by 16 clients that wait for each other's answers (capacity), and then for a minute
by clients that send ten times the capacity whether or not they are answered (overload). Each score
is compared bit for bit with that of a local call, made before. Server and clients share a machine.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import load_score_function
from metarm.storage import read_json_lines, write_json

MOST_TOKENS = 320
NUM_PAIRS = 400
NUM_REQUESTS = 200
WARM_SECONDS = 5.0
CAPACITY_SECONDS = 10.0
NUM_UNLOADED = 300
NUM_CONNECTIONS = 192


@dataclass
class Tally:
    """What came of the requests of one phase."""

    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    refusal_latencies: list[float] = field(default_factory=list)
    num_sent: int = 0
    num_wrong: int = 0
    num_lost: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "sent": self.num_sent,
            "by_code": dict(sorted(self.codes.items())),
            "by_reason": dict(sorted(self.reasons.items())),
            "wrong_scores": self.num_wrong,
            "lost": self.num_lost,
            "accepted_ms": quantiles(self.latencies),
            "refused_ms": quantiles(self.refusal_latencies),
        }


def quantiles(seconds: list[float]) -> dict[str, float] | None:
    """Median, 99th percentile and maximum in milliseconds."""
    if not seconds:
        return None
    p50, p99 = np.percentile(seconds, [50, 99])
    return {
        "p50": round(1e3 * float(p50), 2),
        "p99": round(1e3 * float(p99), 2),
        "max": round(1e3 * max(seconds), 2),
    }


@dataclass(frozen=True)
class Call:
    """A request as bytes, and the scores that it must get."""

    data: bytes
    scores: list[float]


class Line:
    """One connection of a client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, call: Call, tally: Tally) -> None:
        """Send one request and account for what comes of it."""
        tally.num_sent += 1
        started = time.perf_counter()
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self.reader is not None
            self.writer.write(call.data)
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
            assert length, head
            body = await self.reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            tally.num_lost += 1
            self.close()
            return
        seconds = time.perf_counter() - started
        code = head[9:12].decode()
        tally.codes[code] += 1
        if code == "200":
            tally.latencies.append(seconds)
            tally.num_wrong += json.loads(body)["scores"] != call.scores
        else:
            tally.refusal_latencies.append(seconds)
            tally.reasons[json.loads(body)["error"]["reason"]] += 1
        if b"connection: close" in head.lower():
            self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


async def one_by_one(port: int, calls: list[Call], count: int) -> Tally:
    tally, line = Tally(), Line(port)
    for number in range(count):
        await line.ask(calls[number % len(calls)], tally)
    line.close()
    return tally


async def closed_loop(port: int, calls: list[Call], num_clients: int, seconds: float) -> Tally:
    """Clients that each wait for their answer before they ask again."""
    tally, end = Tally(), time.perf_counter() + seconds

    async def client(seed: int) -> None:
        line, draw = Line(port), random.Random(seed)
        while time.perf_counter() < end:
            await line.ask(draw.choice(calls), tally)
        line.close()

    await asyncio.gather(*(client(seed) for seed in range(num_clients)))
    return tally


async def open_loop(
    port: int, calls: list[Call], rate: float, seconds: float, pid: int
) -> tuple[Tally, list[int], float]:
    """Requests at a fixed rate, answered or not; also memory by the second, and the real rate."""
    tally, draw = Tally(), random.Random(0)
    due: asyncio.Queue[Call | None] = asyncio.Queue()
    memory: list[int] = []
    started = time.perf_counter()

    async def pace() -> None:
        sent = 0
        while (passed := time.perf_counter() - started) < seconds:
            # No more is due than lines can take: the rest would wait in this process.
            while sent < rate * passed:
                sent += 1
                if due.qsize() < NUM_CONNECTIONS:
                    due.put_nowait(draw.choice(calls))
            await asyncio.sleep(0.002)
        for _ in range(NUM_CONNECTIONS):
            due.put_nowait(None)

    async def watch() -> None:
        while time.perf_counter() - started < seconds:
            memory.append(resident(pid))
            await asyncio.sleep(1.0)

    async def client() -> None:
        line = Line(port)
        while (call := await due.get()) is not None:
            await line.ask(call, tally)
        line.close()

    await asyncio.gather(pace(), watch(), *(client() for _ in range(NUM_CONNECTIONS)))
    return tally, memory, tally.num_sent / seconds


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_calls(folder: Path, pairs: Path, items_per_request: int) -> list[Call]:
    """Requests of real prompts and responses, and their scores by local calls, one pair a call."""
    score = load_score_function(folder)
    sides: list[tuple[str, str]] = []
    for row in read_json_lines(pairs):
        if len(score.encoder.encode(row["prompt"], row["chosen"])) <= MOST_TOKENS:
            sides.append((row["prompt"], row["chosen"]))
        if len(sides) == NUM_PAIRS:
            break
    scores = {side: score([side[0]], [side[1]])[0] for side in sides}
    draw, calls = random.Random(0), []
    for _ in range(NUM_REQUESTS):
        own = draw.sample(sides, items_per_request)
        body = json.dumps({"items": [{"prompt": p, "response": r} for p, r in own]}).encode()
        head = (
            "POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        calls.append(Call(head.encode() + body, [scores[side] for side in own]))
    return calls


@contextlib.contextmanager
def running(folder: Path, *settings: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server as a process: its port, and itself; it has ended when the block has."""
    words = [sys.executable, "-m", "metarm", "serve", str(folder), "--port", "0", "--json"]
    with subprocess.Popen([*words, *settings], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        text = ""
        while not text.endswith("}\n}\n"):
            line = server.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start: {text}")
            text += line
        try:
            yield int(json.loads(text)["url"].rpartition(":")[2]), server
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)


def items_per_second(folder: Path, calls: list[Call], arguments: Any) -> float:
    """Capacity where texts are scored side by side, whose last bits are not compared."""
    with running(folder, "exact=false", f"max_items={arguments.items}") as (port, _):
        asyncio.run(closed_loop(port, calls, 16, WARM_SECONDS))
        found = asyncio.run(closed_loop(port, calls, 16, CAPACITY_SECONDS))
    return round(found.codes["200"] * arguments.items / CAPACITY_SECONDS, 1)


def measure(folder: Path, calls: list[Call], waiting: int, arguments: Any) -> dict[str, Any]:
    """One server from start to end."""
    settings = [f"max_waiting_items={waiting}", f"max_items={arguments.items}"]
    with running(folder, *settings) as (port, server):
        asyncio.run(closed_loop(port, calls, 16, WARM_SECONDS))
        before = resident(server.pid)
        unloaded = asyncio.run(one_by_one(port, calls, NUM_UNLOADED))
        capacity = asyncio.run(closed_loop(port, calls, 16, CAPACITY_SECONDS))
        per_second = capacity.codes["200"] / CAPACITY_SECONDS
        rate = arguments.factor * per_second
        overload, memory, real_rate = asyncio.run(
            open_loop(port, calls, rate, arguments.seconds, server.pid)
        )
        after = resident(server.pid)
    mib = [round(number / 2**20, 1) for number in memory]
    return {
        "max_waiting_items": waiting,
        "unloaded": unloaded.to_json(),
        "capacity_requests_per_second": round(per_second, 1),
        "capacity_items_per_second": round(per_second * arguments.items, 1),
        "overload": {
            **overload.to_json(),
            "seconds": arguments.seconds,
            "offered_requests_per_second": round(rate, 1),
            "sent_requests_per_second": round(real_rate, 1),
            "accepted_requests_per_second": round(overload.codes["200"] / arguments.seconds, 1),
        },
        "resident_mib": {
            "before": round(before / 2**20, 1),
            "first_10_seconds_max": max(mib[:10]),
            "last_10_seconds_max": max(mib[-10:]),
            "after": round(after / 2**20, 1),
        },
        "exit_code": server.returncode,
    }


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """The table of docs/serving.md, whose test holds it against the file."""
    over = [run["overload"] for run in runs]
    rows = {
        "items that may wait": [run["max_waiting_items"] for run in runs],
        "capacity, requests a second": [run["capacity_requests_per_second"] for run in runs],
        "sent a second": [found["sent_requests_per_second"] for found in over],
        "accepted in all": [found["by_code"]["200"] for found in over],
        "refused in all (429)": [found["by_code"]["429"] for found in over],
        "wrong or misordered scores": [found["wrong_scores"] for found in over],
        "lost": [found["lost"] for found in over],
        "unloaded, p50 in ms": [run["unloaded"]["accepted_ms"]["p50"] for run in runs],
        "unloaded, p99 in ms": [run["unloaded"]["accepted_ms"]["p99"] for run in runs],
        "accepted, p50 in ms": [found["accepted_ms"]["p50"] for found in over],
        "accepted, p99 in ms": [found["accepted_ms"]["p99"] for found in over],
        "memory after 10 s, MiB": [run["resident_mib"]["first_10_seconds_max"] for run in runs],
        "memory at the end, MiB": [run["resident_mib"]["last_10_seconds_max"] for run in runs],
    }
    for name, numbers in rows.items():
        yield f"| {name} | " + " | ".join(map(str, numbers)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--waiting", type=int, nargs="+", default=[512, 16])
    arguments = parser.parse_args()
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "reward"
        encoder = load_encoder(arguments.model)
        load_reward_model(arguments.model, encoder, seed=0).save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        calls = make_calls(folder, arguments.pairs, arguments.items)
        runs = [measure(folder, calls, waiting, arguments) for waiting in arguments.waiting]
        side_by_side = items_per_second(folder, calls, arguments)
    document = {
        "made": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "model": Path(arguments.model).name,
        "items_per_request": arguments.items,
        "most_tokens": MOST_TOKENS,
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "load_per_core_before": round(load, 2),
        "threads": torch.get_num_threads(),
        "side_by_side_items_per_second": side_by_side,
        "runs": runs,
    }
    write_json(arguments.output, document)
    print("\n".join(table(runs)))
    for run in runs:
        found = run["overload"]
        if found["wrong_scores"] or found["lost"]:
            raise SystemExit("a wrong or lost answer")


if __name__ == "__main__":
    main()
