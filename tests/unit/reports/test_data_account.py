# SPDX-License-Identifier: Apache-2.0
"""What was read and left out is on the page, each finding once."""

from metarm.reports.data_account import account_of_data
from metarm.reports.page import write_report
from metarm.storage import write_json


def test_findings_are_shared_and_partial_stages_passed_over(make_run, tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0, 1))
    for seed in (0, 1):
        metrics = {"summary": f"{seed} duplicates", "num_sharing_test_prompt": 0}
        write_json(folder / f"seed_{seed}/data/stage.json", {"metrics": metrics})
        metrics = {"encoding": "9 of 9 encoded", "num_test_too_long": 2 * seed}
        write_json(folder / f"seed_{seed}/reward/stage.json", {"metrics": metrics})
    write_json(folder / "seed_0/.x.partial/stage.json", {"metrics": {"encoding": "unfinished"}})
    found = {(row.what, row.found): row.stages for row in account_of_data(folder)}
    assert found == {
        ("preference file", "0 duplicates"): "seed_0/data",
        ("preference file", "1 duplicates"): "seed_1/data",
        ("training pairs", "9 of 9 encoded"): "seed_0/reward and 1 more",
        ("held-out pairs", "2 left out: longer than the model's context"): "seed_1/reward",
    }
    text = write_report(folder).read_text("utf-8")
    assert "Data read and left out" in text
    assert "1 duplicates" in text
