# SPDX-License-Identifier: Apache-2.0
"""The settings in help are the settings of the classes, word for word."""

import inspect
from importlib import import_module

import pytest
from pydantic import BaseModel

from metarm.cli.settings_help import SOURCES, settings_of
from metarm.yaml_document import parse_yaml

MODULES = [import_module(f"metarm.{place[:-3].replace('/', '.')}") for place in SOURCES]
CLASSES = [
    (name, cls)
    for module in MODULES
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, BaseModel) and cls.__module__ == module.__name__ and name[0] != "_"
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
