# SPDX-License-Identifier: Apache-2.0
"""Who judges: one source, and what it is called."""

import pytest

from metarm.cli.judge_sources import JudgeSource, file_name, read_judge_source
from metarm.errors import ConfigError


def test_one_source_at_the_most_and_a_server_with_its_model() -> None:
    assert read_judge_source(None, None, None, None, None) is None
    found = read_judge_source(None, None, "http://h/v1", "m", None)
    assert found == JudgeSource("--endpoint", "http://h/v1", "m")
    with pytest.raises(ConfigError, match=r"got --gold and --judge: start once for each"):
        read_judge_source("world", None, None, None, "mine:judge")
    for url, model in (("http://h/v1", None), (None, "m")):
        with pytest.raises(ConfigError, match="--endpoint and --model belong together"):
            read_judge_source(None, None, url, model, None)


def test_gold_of_a_world_is_gold_and_nothing_else_is() -> None:
    assert JudgeSource("--gold", "world", None).name == "gold"
    assert JudgeSource("--reward-model", "world", None).name == "world"
    assert JudgeSource("--judge", "world", None).name == "world"
    assert JudgeSource("--endpoint", "http://h/v1", "m").name == "m"
    assert file_name("runs/a b/") == "a-b"
    assert file_name("mine:judge") == "judge"
