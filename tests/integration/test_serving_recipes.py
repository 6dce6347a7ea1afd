# SPDX-License-Identifier: Apache-2.0
"""What docs/serving.md shows of TRL, OpenRLHF and verl, done as they do it."""

import asyncio
import base64
import http.client
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import numpy as np
import pytest
from trl import RLOOConfig, RLOOTrainer

from live_server import Live, live_server
from metarm.errors import DataError, ServingError
from metarm.models.ensemble import load_reward
from metarm.served_score import ServedScore
from metarm.serving.recipes import trl_reward, verl_reward
from patience import PATIENCE_SECONDS
from tiny_models import save_causal_lm, save_reward_model

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def live(model: Path) -> Iterator[Live]:
    with live_server(model, token=TOKEN) as running:
        yield running


def test_trl_trains_on_served_scores(live: Live, model: Path, tmp_path: Path) -> None:
    local, seen = load_reward(model), []
    served = trl_reward(ServedScore(live.url, token=TOKEN))

    def recorded(**columns: Any) -> list[float]:
        seen.append((columns["prompts"], columns["completions"], served(**columns)))
        return seen[-1][2]

    recorded.__name__ = served.__name__
    trainer = RLOOTrainer(
        model=str(save_causal_lm(tmp_path / "policy")),
        reward_funcs=recorded,
        args=RLOOConfig(
            str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a", "b c", "d", "e f"] * 4}),
    )
    trainer.train()
    assert trainer.state.global_step == 2
    logged = [row for row in trainer.state.log_history if "rewards/metarm/mean" in row]
    assert len(logged) == 2
    assert len(seen) == 2
    for row, (prompts, completions, rewards) in zip(logged, seen, strict=True):
        assert rewards == [local([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
        assert row["rewards/metarm/mean"] == pytest.approx(np.mean(rewards), rel=1e-4, abs=1e-5)


def test_trl_hands_over_messages(live: Live) -> None:
    prompts = [[{"role": "user", "content": "a"}]]
    seen = []

    def score(prompts, responses):
        seen.append((prompts, responses))
        return [0.0]

    reward = trl_reward(score, name="mine")
    assert reward.__name__ == "mine"
    completions = [[{"role": "assistant", "content": "b"}]]
    assert reward(prompts=prompts, completions=completions, completion_ids=[[1]]) == [0.0]
    assert seen == [([(("user", "a"),)], ["b"])]
    with pytest.raises(DataError, match="one message"):
        reward(prompts=prompts, completions=[[*completions[0], *completions[0]]])


def openrlhf_post(url: str, payload: dict[str, Any]) -> Any:
    """As OpenRLHF 0.9 does it (`_fetch_rewards_via_http`): aiohttp takes the password of a URL."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "Accept": "*/*"}
    if parts.password:
        shown = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        headers["Authorization"] = f"Basic {shown}"
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_SECONDS)
    connection.request("POST", parts.path, json.dumps(payload), headers)
    response = connection.getresponse()
    assert response.status == 200
    return json.loads(response.read())


def test_openrlhf_gets_its_rewards(live: Live, model: Path) -> None:
    local = load_reward(model)
    url = f"http://:{TOKEN}@127.0.0.1:{live.port}/get_reward"
    prompt, response = "<s>a b", " c d</s>"
    payload = {"query": [prompt + response], "prompts": [prompt], "labels": ["gold"]}
    found = openrlhf_post(url, payload)
    expected = local(["a b"], [" c d"])
    assert found["rewards"] == found["scores"] == expected
    assert found["extra_logs"] == {}
    assert all(isinstance(value, float) for value in found["rewards"])
    none = openrlhf_post(url, {"query": [], "prompts": [], "labels": []})
    assert none["rewards"] == []


def _load_as_verl(path: Path, name: str) -> Any:
    """As verl's `load_extern_object`: a file by its path, a function of it by its name."""
    spec = importlib.util.spec_from_file_location("custom_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_verl_gets_its_rewards(
    live: Live, model: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METARM_URL", live.url)
    monkeypatch.setenv("METARM_TOKEN", TOKEN)
    compute_score = _load_as_verl(repository / "examples" / "verl" / "reward.py", "compute_score")
    local = load_reward(model)

    async def run_single(prompt: Any, response: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        extra = {"prompt": prompt, "num_turns": None, "rollout_reward_scores": {}}
        result = await loop.run_in_executor(
            None,
            lambda: compute_score(
                data_source="d", solution_str=response, ground_truth="", extra_info=extra
            ),
        )
        score = result["score"] if isinstance(result, dict) else result
        return {"reward_score": score, "reward_extra_info": dict(result)}

    async def run_all() -> list[dict[str, Any]]:
        return await asyncio.gather(*(run_single("a", f" {word}") for word in "bcdef"))

    found = asyncio.run(run_all())
    assert [row["reward_score"] for row in found] == [local(["a"], [f" {w}"])[0] for w in "bcdef"]
    assert all(math.isfinite(row["reward_extra_info"]["score"]) for row in found)


def test_verl_without_a_prompt_gets_an_error() -> None:
    compute_score = verl_reward(lambda prompts, responses: [0.0])
    with pytest.raises(DataError, match="extra_info"):
        compute_score("d", "text", "", {"index": 3})
    messages = np.array([{"role": "user", "content": "a"}], dtype=object)
    assert compute_score("d", "text", "", {"prompt": messages}) == {"score": 0.0}


def test_a_recipe_passes_errors_on() -> None:
    reward = trl_reward(ServedScore("http://127.0.0.1:1", patience_seconds=0.1))
    with pytest.raises(ServingError):
        reward(prompts=["a"], completions=["b"])
