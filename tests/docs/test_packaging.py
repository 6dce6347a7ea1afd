# SPDX-License-Identifier: Apache-2.0
"""Version, dependencies and lock say the same in every file that speaks of them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import metarm


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def direct(project: dict) -> dict[str, Requirement]:
    """Every package the project names, by its canonical name."""
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    groups += project["project"]["optional-dependencies"].values()
    requirements = [Requirement(text) for group in groups for text in group]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.fixture(scope="module")
def locked(repository: Path) -> dict[str, str]:
    lines = (repository / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)]
    assert not wrong, f"expected lines like name==1.2.3: {wrong}"
    return dict(pin.split("==") for pin in pins)


def test_newest_change_is_this_version(repository: Path) -> None:
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changes, re.MULTILINE)
    assert versions[0] == metarm.__version__


def test_citation_names_this_version(repository: Path) -> None:
    citation = (repository / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: [\"']?([^\"'\n]+)", citation, re.MULTILINE) == [
        metarm.__version__
    ]


def test_dependencies_page_names_each_direct_dependency(
    repository: Path, direct: dict[str, Requirement]
) -> None:
    page = (repository / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \|", page, re.MULTILINE)
    assert sorted(canonicalize_name(name) for name, _ in rows) == sorted({*direct, "editables"})
    assert all(len(reason.split()) >= 4 for _, reason in rows)


def test_lock_pins_what_the_project_asks_for(
    direct: dict[str, Requirement], locked: dict[str, str]
) -> None:
    missing = set(direct) - set(locked)
    assert not missing
    refused = [
        f"{name}=={locked[name]} is not {requirement.specifier}"
        for name, requirement in direct.items()
        if not requirement.specifier.contains(locked[name])
    ]
    assert not refused


def test_lock_puts_torch_first(locked: dict[str, str]) -> None:
    assert next(iter(locked)) == "torch"
