# SPDX-License-Identifier: Apache-2.0
"""A command to run, one small finished run to look at, and a browser to look with."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.commands import Command, Finished, ready, start

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session", autouse=True)
def _ready() -> None:
    """Before any test changes the environment, which all later commands would inherit."""
    ready()


@pytest.fixture
def launch(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Command]:
    """Start a command in the test's folder and go on."""
    logs = tmp_path_factory.mktemp("logs")
    return lambda *words: start(words, tmp_path, logs)


@pytest.fixture
def metarm(launch: Callable[..., Command]) -> Callable[..., Finished]:
    """Run a command in the test's folder to its end."""
    return lambda *words: launch(*words).finish()


@pytest.fixture(scope="session")
def smoke(repository: Path) -> list[str]:
    """The words of a run that takes seconds; where it goes is to be added."""
    return ["run", "--config", str(repository / "configs" / "smoke.yaml"), "--output"]


@pytest.fixture(scope="session")
def finished_run(smoke: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, never stopped: five arms, two rounds, one seed. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    done = start([*smoke, str(folder / "run")], folder, folder).finish()
    assert done.code == 0, done.err
    return folder / "run"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium. Of one module: while it runs, no event loop can be begun beside it."""
    chromium = shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(chromium).exists():
        pytest.skip("needs Chromium: install the package chromium")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched
        launched.close()
