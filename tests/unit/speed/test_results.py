# SPDX-License-Identifier: Apache-2.0
"""What is kept on disk comes back as it was, and what is said of it follows from it."""

import json

import pytest

from metarm.errors import ConfigError
from metarm.speed.cases import plan_cases
from metarm.speed.results import PARTS, Block, Case, Measurement, Spread
from metarm.speed.settings import BenchSettings
from metarm.speed.summary import stacked_parts, summarise_case
from metarm.speed.workload import Workload

CASE = Case("lengths", "tiny", Workload(16, 8, 5, 2, 2), ("trl", "plain", "sam"), 2, 1, False, 0)
RATES = {"flops_per_second": 1e9, "bytes_per_second": 1e9}


def measured(*seconds: float, tokens: float = 96.0, peak: int = 10**6) -> Measurement:
    """A block for each number; the parts are a tenth, four, three and two."""
    shares = dict(zip(PARTS, (0.1, 0.4, 0.3, 0.2), strict=True))
    blocks = [Block((x,), {part: (x * share,) for part, share in shares.items()}) for x in seconds]
    return Measurement(tuple(blocks), tokens, peak)


def document(**methods: Measurement) -> dict:
    names = {name.replace("_", "-"): row.to_json() for name, row in methods.items()}
    case = CASE.to_json() | {"methods": list(names)}
    return json.loads(json.dumps({"case": case, "methods": names, "rates": RATES}))


def test_cases_and_measurements_come_back() -> None:
    assert Case.from_json(json.loads(json.dumps(CASE.to_json()))) == CASE
    row = measured(1.0, 2.0)
    assert Measurement.from_json(json.loads(json.dumps(row.to_json()))) == row
    failed = Measurement(failure="fails: because")
    assert Measurement.from_json(failed.to_json()) == failed


def test_a_spread_is_a_median_and_quartiles_within_the_values() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]).value == 3.0


def test_ratios_are_taken_repeat_by_repeat() -> None:
    """A machine that is ten times slower for a while is so for all methods."""
    found = document(trl=measured(1.0, 10.0), plain=measured(0.5, 6.0))
    row = summarise_case(found).row("plain")
    assert row is not None
    assert (row.to_trl.value, row.to_trl.low, row.to_trl.high) == pytest.approx((0.55, 0.5, 0.6))
    assert row.to_default is None
    assert row.predicted < 0.7


def test_memory_and_floor() -> None:
    found = document(
        trl=measured(1.0), plain=measured(0.5, peak=10**6), meta=measured(2.0, peak=2 * 10**6)
    )
    summary = summarise_case(found)
    row = summary.row("meta")
    assert row.copies_above_plain == pytest.approx(10**6 / (4 * 24768))
    assert row.floors == pytest.approx(2.0 / row.floor_seconds)
    assert row.floor_seconds > summary.row("plain").floor_seconds


def test_a_method_that_fails_has_its_reason_and_no_figures() -> None:
    found = document(trl=measured(1.0), torchopt=Measurement(failure="fails: TypeError: no"))
    row = summarise_case(found).row("torchopt")
    assert row.failure == "fails: TypeError: no"
    assert (row.seconds, row.to_trl, row.floors, row.predicted) == (None, None, None, None)


def test_bars_are_stacked_of_the_parts_of_three_methods() -> None:
    found = document(meta_naive=measured(4.0), meta=measured(2.0), meta_every_4=measured(1.0))
    found["move"] = {"seconds": 0.1}
    bars = stacked_parts(found)
    assert list(bars) == ["not shared", "+ shared groups", "+ shared pairs", "+ meta_every=4"]
    assert [sum(bar.values()) for bar in bars.values()] == pytest.approx([4.0, 3.2, 2.0, 1.0])
    assert bars["+ shared groups"]["groups"] == bars["+ shared pairs"]["groups"] == 0.8
    assert bars["+ meta_every=4"]["move"] == pytest.approx(0.025)
    del found["methods"]["meta"]
    assert stacked_parts(found) == {}


def test_every_case_that_is_asked_for(tmp_path) -> None:
    settings = BenchSettings(output_dir=tmp_path, sizes=["tiny", "4m"], lengths=["16/8/3", "8/8/2"])
    cases = plan_cases(settings)
    assert [(case.size, case.workload.name) for case in cases] == [
        (size, lengths) for size in ("tiny", "4m") for lengths in ("16/8/3", "8/8/2")
    ]
    swept = plan_cases(settings.model_copy(update={"sweeps": ["k", "ratio", "spread", "size"]}))
    own = {kind: [case for case in swept if case.kind == kind] for kind in ("k", "ratio", "size")}
    assert [case.workload.group_size for case in own["k"]] == [2, 4, 5, 8, 16]
    shares = [c.workload.prompt_tokens / c.workload.response_tokens for c in own["ratio"]]
    assert (min(shares), max(shares)) == (0.25, 8)
    assert len({case.size for case in own["size"]}) == len(own["size"]) == 3
    for changed in ({"sizes": ["30 m"]}, {"sweep_size": "4"}, {"lengths": ["5"]}):
        with pytest.raises(ConfigError):
            plan_cases(settings.model_copy(update=changed))
