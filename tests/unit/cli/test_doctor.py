# SPDX-License-Identifier: Apache-2.0
"""The doctor: supported ranges are those of pyproject.toml, and every state is reached."""

import re
import tomllib
from pathlib import Path

import pytest

from metarm.cli.doctor import PACKAGES, check_package, examine


def test_ranges_are_those_of_the_project(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["peft"], *extras["tune"], *extras["serve"]]
    ranges = dict(re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in wanted)  # type: ignore[union-attr]
    assert {name: str(supported) for name, supported in PACKAGES.items()} == {
        name: ranges[name] for name in PACKAGES
    }
    optional = {name for name, supported in PACKAGES.items() if supported.needed_for}
    assert optional == {"peft", "optuna", "fastapi", "uvicorn"}


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("torch", "2.13.0+cpu", "ok"),
        ("torch", "2.7", "ok"),
        ("torch", "2.7.0rc1", "ok"),
        ("torch", "2.5.1", "fail"),
        ("torch", None, "fail"),
        ("trl", "1.16.0", "ok"),
        ("trl", "1.99", "ok"),
        ("trl", "2.0", "fail"),
        ("transformers", "5.23.0", "ok"),
        ("transformers", "5.7.9", "fail"),
        ("transformers", "6.0.0.dev0", "fail"),
        ("peft", None, "ok"),
        ("peft", "0.17", "fail"),
        ("optuna", None, "ok"),
        ("optuna", "4.9", "fail"),
    ],
)
def test_versions_in_and_out_of_range(name: str, version: str | None, state: str) -> None:
    finding = check_package(name, PACKAGES[name], version)
    assert finding.state == state
    assert bool(finding.advice) == (state == "fail" or version is None)


def test_every_subject_is_looked_at() -> None:
    findings = {finding.name: finding for finding in examine()}
    of_machine = {"python", "cores", "memory", "disk", "threads", "bf16", "accelerator"}
    assert of_machine | {"torch", "peft"} <= set(findings)
    assert "timed" in findings["bf16"].found
    assert all(finding.found for finding in findings.values())
    assert all(f.advice for f in findings.values() if f.state != "ok")
