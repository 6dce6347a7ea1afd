# SPDX-License-Identifier: Apache-2.0
"""Groups from a policy behind a URL: every response once, in its place, whatever happens."""

import logging
from pathlib import Path

import pytest

from fault_server import Call, FaultServer, Reply, say, serve
from metarm.config import SamplingSettings
from metarm.config_judge import EndpointSettings
from metarm.endpoint.client import Endpoint
from metarm.endpoint.sampling import sample_groups_from
from metarm.errors import EndpointError
from metarm.progress import SilentProgress
from metarm.schema import Message, Prompt, ResponseGroup

PROMPTS: list[Prompt] = ["once", (Message("user", "hello"),)]
SETTINGS = SamplingSettings(num_generations=3, max_completion_length=7, temperature=0.7, top_p=0.9)


def sample(server: FaultServer, folder: Path, seed: int = 0) -> list[ResponseGroup]:
    settings = EndpointSettings(max_wait_seconds=0.01, max_retries=1, num_in_flight=4)
    return sample_groups_from(
        Endpoint(server.url, "policy", settings),
        PROMPTS,
        SETTINGS,
        folder / "answers.jsonl",
        seed=seed,
        progress=SilentProgress(),
    )


def by_seed(call: Call) -> Reply:
    finish = "length" if call.body["seed"] % 2 else "stop"
    return say(f" {call.body['seed']}", finish=finish, wait_seconds=0.01 * (call.number % 3))


def test_each_response_has_a_seed_and_a_place_of_its_own(tmp_path: Path) -> None:
    with serve(by_seed) as server:
        groups = sample(server, tmp_path)
        assert [group.prompt for group in groups] == PROMPTS
        responses = [response for group in groups for response in group.responses]
        assert len(set(responses)) == 6
        flags = [flag for group in groups for flag in group.finished]
        assert flags == [int(response) % 2 == 0 for response in responses]
        assert sample(server, tmp_path) == groups
        assert len(server.calls) == 6, "the second time costs nothing"
        assert sample(server, tmp_path, seed=1) != groups
    bodies = {call.path: call.body for call in server.calls}
    text, chat = bodies["/v1/completions"], bodies["/v1/chat/completions"]
    assert (text["prompt"], text["max_tokens"]) == ("once", 7)
    assert chat["messages"] == [{"role": "user", "content": "hello"}]
    assert chat["max_completion_tokens"] == 7
    assert {(body["temperature"], body["top_p"]) for body in (text, chat)} == {(0.7, 0.9)}


def test_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    with serve(lambda call: Reply(400, b"{}") if call.number == 3 else by_seed(call)) as server:
        with pytest.raises(EndpointError, match=r"expected 6 responses, got 5.*kept"):
            sample(server, tmp_path)
        server.plan = by_seed
        broken = sample(server, tmp_path)
        assert len(server.calls) == 7
        assert broken == sample(server, tmp_path / "fresh")


def test_a_server_that_does_not_sample_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(lambda call: say("the same")) as server, caplog.at_level(logging.WARNING):
        sample(server, tmp_path)
    assert "do_sample" in caplog.text
