# SPDX-License-Identifier: Apache-2.0
"""Against a real server: `transformers serve` with a model of a few hundred weights."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from integration.commands import Finished
from metarm.storage import read_json_lines
from patience import PATIENCE_SECONDS, held_port, wait_until
from tiny_models import SPECIAL, save_fixed_policy, save_tokenizer

pytestmark = pytest.mark.slow

WORDS = ("A", "B", "tie")
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with held_port() as port:
        yield port


@pytest.fixture(scope="module")
def served(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a server, and the name there of a model that mostly says A."""
    folder = tmp_path_factory.mktemp("served")
    logits = torch.full((len(SPECIAL) + len(WORDS),), -30.0)
    logits[len(SPECIAL) :] = torch.tensor([1.0, 0.0, 0.0])
    save_fixed_policy(folder / "model", logits, WORDS, do_sample=True)
    save_tokenizer(folder / "model", WORDS, chat_template=TEMPLATE)
    model = str(folder / "model")
    program = str(Path(sys.executable).with_name("transformers"))
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [program, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(f"{url}/health", server, folder / "log")
        yield f"{url}/v1", model
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)
        log.close()


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    def is_healthy() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    wait_until(is_healthy, pause=0.2)


def test_a_served_model_judges(
    served: tuple[str, str], tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    """It always says A: whoever is shown first, which is a tie and is told."""
    url, model = served
    for arm in ("one", "two"):
        rows = [{"prompt": f"p {n}", "response": f"{arm} {n}"} for n in range(5)]
        (tmp_path / f"{arm}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = [
        *[
            "judge",
            "--output",
            "out",
            "--responses",
            "one=one.jsonl",
            "--responses",
            "two=two.jsonl",
        ],
        *["--endpoint", url, "--model", model, "--name", "tiny"],
        *["max_answer_tokens=1", "num_resamples=10", "endpoint.max_total_tokens=100000"],
    ]
    done = metarm(*words, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    (rate,) = document["win_rates"]
    assert (rate["num_judged"], rate["num_malformed"], rate["num_unjudged"]) == (5, 0, 0)
    assert rate["shown_first_fraction"]["value"] == 1.0
    assert rate["tie_fraction"]["value"] == 1.0
    spent = document["judges"]["tiny"]["spent"]
    assert (spent["calls"], spent["answer_tokens"]) == (10, 10)
    assert spent["prompt_tokens"] > 100
    again = json.loads(metarm(*words, "--json").out)
    assert again["judges"]["tiny"]["spent"] == spent


def test_a_longer_answer_of_it_is_malformed_and_counted(
    served: tuple[str, str], tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    url, model = served
    for arm in ("one", "two"):
        row = {"prompt": "p", "response": arm}
        (tmp_path / f"{arm}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    done = metarm(
        *[
            "judge",
            "--output",
            "out",
            "--responses",
            "one=one.jsonl",
            "--responses",
            "two=two.jsonl",
        ],
        *["--endpoint", url, "--model", model, "max_answer_tokens=4", "--json"],
    )
    (rate,) = json.loads(done.out)["win_rates"]
    assert (rate["num_judged"], rate["num_malformed"], rate["win_rate"]) == (0, 1, None)


def test_a_served_policy_is_sampled(
    served: tuple[str, str], tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    url, model = served
    rows = [{"prompt": "A B"}, {"prompt": [{"role": "user", "content": "tie"}]}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["sample", "--policy", model, "--prompts", "prompts.jsonl", "--endpoint", url]
    # It has one seed for all: the same draws only where one call comes after the other.
    settings = ["num_generations=20", "max_completion_length=6", "batch_size=1"]
    for name in ("first", "second"):
        done = metarm(*words, "--output", f"{name}.jsonl", *settings)
        assert done.code == 0, done.err
    groups = list(read_json_lines(tmp_path / "first.jsonl"))
    assert groups == list(read_json_lines(tmp_path / "second.jsonl"))
    assert [group["prompt"] for group in groups] == [row["prompt"] for row in rows]
    for group in groups:
        assert len(set(group["responses"])) > 10
        assert not any(group["finished"]), "this model never ends by itself"
        drawn = [word for response in group["responses"] for word in response.split()]
        assert len(drawn) == 120
        # e : 1 : 1, 120 draws: about 69 of A, with a standard deviation of 5.4.
        assert 42 < drawn.count("A") < 96
