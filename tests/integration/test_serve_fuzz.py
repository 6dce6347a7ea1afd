# SPDX-License-Identifier: Apache-2.0
"""Requests made from the server's own description: each ends in one clear answer.

METARM_SERVE_CASES=2600 makes that many of them.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode

from live_server import live_server
from metarm.serving.refusals import STATUSES
from patience import PATIENCE_SECONDS
from tiny_models import save_reward_model

ALLOWED = {200, *STATUSES.values()} - {500, 503, 504}


def check(status: int, body: bytes, operation: str) -> None:
    """Scores that are all there and finite, or a refusal that holds no number."""
    if operation.endswith("/metrics") and status == 200:
        return
    document = json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} in an answer"))
    assert status in ALLOWED, (status, body)
    if status != 200:
        assert set(document) == {"error"}
        assert document["error"]["reason"] in STATUSES
        return
    scores = document.get("scores", [])
    assert all(isinstance(score, float) and math.isfinite(score) for score in scores)


def run_cases(folder: Path, num_cases: int, seed: int) -> dict[int, int]:
    """Count of answers by status."""
    counts: dict[int, int] = {}
    with live_server(folder, max_items=16, max_body_bytes=65536) as live:
        schema = schemathesis.openapi.from_dict(live.server.app.openapi())
        schema.config.generation.update(modes=list(GenerationMode))
        session = requests.Session()
        operations = [result.ok() for result in schema.get_all_operations()]
        assert {operation.path for operation in operations} == {
            *("/v1/score", "/get_reward", "/health", "/metrics")
        }
        for operation in operations:
            takes_body = operation.method == "post"
            share = num_cases * 9 // 20 if takes_body else num_cases // 20
            # What takes nothing can be given nothing wrong.
            for mode in GenerationMode if takes_body else [GenerationMode.POSITIVE]:

                @hypothesis.seed(seed)
                @hypothesis.settings(
                    max_examples=max(1, share // 2),
                    deadline=None,
                    database=None,
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def one(case: Any) -> None:
                    reply = case.call(base_url=live.url, session=session, timeout=PATIENCE_SECONDS)
                    check(reply.status_code, reply.content, case.operation.path)
                    counts[reply.status_code] = counts.get(reply.status_code, 0) + 1

                one()
        assert live.score(("a", " b")).status == 200, "it serves on"
    return counts


def test_a_few_generated_requests(tmp_path: Path) -> None:
    counts = run_cases(save_reward_model(tmp_path / "model"), 100, seed=0)
    assert counts[200]
    assert counts[422]


@pytest.mark.slow
def test_more_generated_requests(tmp_path: Path) -> None:
    num_cases = int(os.environ.get("METARM_SERVE_CASES", "650"))
    counts = run_cases(save_reward_model(tmp_path / "model"), num_cases, seed=1)
    assert sum(counts.values()) >= num_cases * 0.77, counts
    assert counts[200] > num_cases / 26, counts
    assert counts[422] > num_cases / 26, counts
