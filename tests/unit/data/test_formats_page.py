# SPDX-License-Identifier: Apache-2.0
"""docs/data-formats.md says what the tables say, and its examples load."""

import re

import pytest

from metarm.data.formats import FORMATS
from metarm.data.meta_sets import load_demonstrations, load_groups, load_prompts
from metarm.data.preferences import load_preferences
from metarm.schema import Message


@pytest.fixture
def page(repository):
    return (repository / "docs" / "data-formats.md").read_text(encoding="utf-8")


@pytest.fixture
def example(page, tmp_path):
    """The example below a heading, as a file."""

    def write(heading):
        section = re.split(rf"^#+ {heading}$", page, flags=re.MULTILINE)[1]
        path = tmp_path / "example.jsonl"
        path.write_text(section.split("```json\n")[1].split("```")[0], encoding="utf-8")
        return path

    return write


def test_the_table_is_that_of_the_code(page):
    table = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert table == [(name, pair_format.columns) for name, pair_format in FORMATS.items()]
    assert re.findall(r"^### (.+)$", page, flags=re.MULTILINE) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_is_a_row_of_the_sample(example, repository, name):
    path = example(name)
    sample = (repository / "tests" / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8") in sample
    assert load_preferences(path).report.data_format == name


def test_the_other_examples_load(example):
    assert load_groups(example("Meta sets"))[0].finished == (True, False, True)
    assert load_prompts(example("Prompts")) == [(Message("user", "Name a fruit."),)]
    assert load_demonstrations(example("Demonstrations")) == [("Name a fruit.", " An apple.")]
