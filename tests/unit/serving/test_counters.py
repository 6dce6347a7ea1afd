# SPDX-License-Identifier: Apache-2.0
"""The text that Prometheus reads: names, kinds, labels, cumulative buckets."""

import re

from metarm.serving.counters import LATENCY_BOUNDS, SERVER_METRICS, Counters, resident_bytes

SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="(\\.|[^"\\])*"(,[a-z_]+="(\\.|[^"\\])*")*\})? \S+')


def test_every_line_is_a_sample_or_a_note() -> None:
    counters = Counters()
    counters.add("metarm_requests_total", route="/v1/score", code="200")
    counters.add("metarm_requests_total", route="/v1/score", code="200")
    counters.observe("metarm_request_seconds", 0.02, route="/v1/score")
    counters.observe("metarm_request_seconds", 1e6, route="/v1/score")
    counters.read_with("metarm_model_info", lambda: {(("name", 'a "b"\\\n'),): 1.0})
    lines = counters.text().splitlines()
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)
    assert 'metarm_requests_total{code="200",route="/v1/score"} 2' in lines
    assert 'metarm_model_info{name="a \\"b\\"\\\\\\n"} 1' in lines
    assert [line.split()[2:4] for line in lines if line.startswith("# TYPE")] == [
        [name, kind] for name, (kind, _) in SERVER_METRICS.items()
    ]


def test_buckets_count_all_below_their_bound() -> None:
    counters = Counters()
    for seconds in (0.005, 0.02, 0.3, 100.0):
        counters.observe("metarm_request_seconds", seconds)
    found = re.findall(r'_bucket\{le="([^"]+)"\} (\d+)', counters.text())
    assert [bound for bound, _ in found] == [*map(str, LATENCY_BOUNDS), "+Inf"]
    counts = {bound: int(count) for bound, count in found}
    assert (counts["0.005"], counts["0.01"], counts["0.025"], counts["60.0"]) == (1, 1, 2, 3)
    assert counts["+Inf"] == 4


def test_this_process_holds_memory() -> None:
    assert resident_bytes() > 1 << 20
