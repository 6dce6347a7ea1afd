# SPDX-License-Identifier: Apache-2.0
"""Requests made from the page's own description: none ends in an error of the server.

METARM_LABEL_CASES=5000 makes that many of them.
"""

import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode

from live_labels import OWNER, live_labels, make_store, plain_pairs
from metarm.labelling.refusals import PAGE_STATUSES
from patience import PATIENCE_SECONDS

ALLOWED = {200, 303, *PAGE_STATUSES.values()} - {500, 503}
LEAVING = {"/api/leave", "/api/owner/leave"}


def check(status: int, body: bytes, kind: str) -> None:
    """An answer of the page, or a refusal that says why."""
    assert status in ALLOWED, (status, body)
    if kind == "application/json" and status != 200:
        told = json.loads(body)
        assert set(told) == {"error"}
        assert PAGE_STATUSES[told["error"]["reason"]] == status


def run_cases(folder: Path, num_cases: int, seed: int) -> dict[int, int]:
    """Count of answers by status."""
    path = folder / "labels.db"
    [token] = make_store(path, plain_pairs(200), "Ada", votes_per_pair=3)
    counts: dict[int, int] = {}
    with live_labels(path) as live:
        cookies = "; ".join((live.sign_in(token), live.sign_in(OWNER)))
        schema = schemathesis.openapi.from_dict(live.page.app.openapi())
        schema.config.generation.update(modes=list(GenerationMode))
        session = requests.Session()
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 18
        calls = [one for one in operations if one.path.startswith("/api")]
        share = num_cases // (2 * len(calls) + len(operations) - len(calls))
        for operation in operations:
            # What takes nothing can be given nothing wrong.
            takes = operation in calls and operation.path not in LEAVING
            for mode in GenerationMode if takes else [GenerationMode.POSITIVE]:

                @hypothesis.seed(seed)
                @hypothesis.settings(
                    max_examples=max(2, share),
                    deadline=None,
                    database=None,
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def one(case: Any) -> None:
                    # Most names are nobody's: half of them become that of an annotator.
                    body = case.body if isinstance(case.body, dict) else {}
                    name = body.get("annotator")
                    if isinstance(name, str) and len(name) % 2:
                        body["annotator"] = "Ada"
                    reply = case.call(
                        base_url=live.url,
                        session=session,
                        timeout=PATIENCE_SECONDS,
                        allow_redirects=False,
                        headers={"Cookie": cookies},
                    )
                    kind = reply.headers.get("content-type", [""])[0].partition(";")[0]
                    check(reply.status_code, reply.content, kind)
                    counts[reply.status_code] = counts.get(reply.status_code, 0) + 1

                one()
        told = live.request(
            "POST", "/api/next", {"annotator": "Ada", "besides": []}, Cookie=cookies
        )
        assert told.status == 200, "it serves on"
        assert told.json["items"]
    return counts


def test_generated_requests(tmp_path: Path) -> None:
    num_cases = int(os.environ.get("METARM_LABEL_CASES", "150"))
    counts = run_cases(tmp_path, num_cases, seed=0)
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    assert counts[200]
    assert counts[422]
    assert sum(counts.values()) >= num_cases * 0.6


@pytest.mark.slow
def test_half_a_thousand_generated_requests(tmp_path: Path) -> None:
    counts = run_cases(tmp_path, 900, seed=1)
    assert sum(counts.values()) >= 500, counts
