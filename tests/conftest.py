# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test may use: shared data where it lies, tiny models made in process."""

import os
import random
import secrets
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is. Which ones are drawn follows from the
# test alone; --hypothesis-profile=explore draws others each time.
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("metarm", **PATIENT, derandomize=True)
settings.register_profile("explore", **PATIENT, derandomize=False)
settings.load_profile("metarm")

SEED = 1
"""Of the order of the tests and of what they draw; --randomly-seed=2 is another."""

# A shell's background job ignores Ctrl-C, and so would every command that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["COLUMNS"] = "80"  # as where there is no terminal

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The same order and draws in every run, unless others are asked for."""
    if config.getoption("randomly_seed", None) == "default":
        config.option.randomly_seed = SEED


def _seed(config: pytest.Config, name: str) -> None:
    """Seed what is global by a name: draws do not follow from what ran before."""
    seed = zlib.crc32(f"{config.getoption('randomly_seed', SEED)} {name}".encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> None:
    """A fixture draws the same whichever test is the first to ask for it."""
    _seed(request.config, fixturedef.argname)


def pytest_runtest_call(item: pytest.Item) -> None:
    """A test draws the same whatever ran before it."""
    _seed(item.config, item.nodeid)


@pytest.fixture(autouse=True)
def _secrets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of this process, such as a label store's seed, follow from the test too."""
    draw = random.Random(f"{request.config.getoption('randomly_seed', SEED)} {request.node.nodeid}")
    monkeypatch.setattr(secrets, "token_bytes", lambda size=None: draw.randbytes(size or 32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, else one worker would be left alone with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("METARM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data folder ({folder}); set METARM_SHARED to its place")
    return folder
