# SPDX-License-Identifier: Apache-2.0
"""The settings in help are the settings of `metarm.config`, word for word."""

import inspect

import pytest
from pydantic import BaseModel

from metarm import config, judge_config
from metarm.cli.settings_help import settings_of
from metarm.labels import settings as label_settings
from metarm.yaml_document import parse_yaml

CLASSES = [
    (name, cls)
    for module in (config, judge_config, label_settings)
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, BaseModel) and name.endswith("Settings") and not name.startswith("_")
]


@pytest.mark.parametrize(("name", "cls"), CLASSES)
def test_help_and_fields_agree(name: str, cls: type[BaseModel]) -> None:
    shown = settings_of(name)
    assert [setting.name for setting in shown] == list(cls.model_fields)
    for setting in shown:
        field = cls.model_fields[setting.name]
        if field.description:
            assert setting.text == " ".join(field.description.split())
        if setting.section:
            assert setting.section in str(field.annotation)
            assert setting.text
        elif field.is_required():
            assert setting.default == ""
        else:
            text = f"x: {setting.default}"
            assert parse_yaml(text.encode(), "help").value["x"] == field.default


def test_every_class_is_covered() -> None:
    assert {name for name, _ in CLASSES} >= {"RunSettings", "RewardSettings", "WorldSettings"}
