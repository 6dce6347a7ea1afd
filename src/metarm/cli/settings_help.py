# SPDX-License-Identifier: Apache-2.0
"""The KEY=VALUE part of a verb's help, read from the source of the settings.

Reading, not importing: help must not wait for the models to be built. A test holds this and them
together.
"""

import ast
import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

__all__ = ["SettingHelp", "setting_lines", "settings_of"]

SOURCES: Final = (
    "config.py",
    "config_labels.py",
    "config_optimize.py",
    "config_judge.py",
    "bench/settings.py",
    "choosing/settings.py",
    "labels/settings.py",
    "serving/settings.py",
    "speed/settings.py",
    "stretching/settings.py",
)
"""Files with classes of settings, below the package."""


@dataclass(frozen=True, slots=True)
class SettingHelp:
    """One setting as help shows it."""

    name: str
    default: str
    """As one would write it in YAML; empty where the setting is required or is a section."""
    text: str
    section: str | None = None
    """The class of its settings, where it is a section."""
    is_by_name: bool = False
    """Whether it holds any number of such sections, each under a name of the user's."""


@functools.cache
def _classes() -> dict[str, ast.ClassDef]:
    sources = [files("metarm").joinpath(place).read_text(encoding="utf-8") for place in SOURCES]
    nodes = [node for source in sources for node in ast.parse(source).body]
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def settings_of(class_name: str) -> list[SettingHelp]:
    """Every setting of a class of settings, in its order, inherited ones first."""
    own = _classes()[class_name]
    bases = [base.id for base in own.bases if isinstance(base, ast.Name)]
    inherited = [s for base in bases if base in _classes() for s in settings_of(base)]
    found = {setting.name: setting for setting in inherited}
    for node, following in zip(own.body, [*own.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        section = _section(node.annotation)
        text = _constant_text(following) or (_first_line(section) if section else "")
        default = "" if section else _default(node.value)
        is_by_name = ast.unparse(node.annotation).startswith("dict[")
        name = node.target.id
        found[name] = SettingHelp(name, default, text, section, is_by_name)
    return list(found.values())


def _constant_text(node: ast.stmt | None) -> str:
    """The docstring below a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""


def _first_line(class_name: str) -> str:
    """The first sentence of a class's docstring."""
    return (ast.get_docstring(_classes()[class_name]) or "").partition("\n")[0]


def _section(annotation: ast.expr) -> str | None:
    """The settings class that an annotation mentions."""
    names = (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))
    return next((name for name in names if name in _classes()), None)


def _default(value: ast.expr | None) -> str:
    """The default as one would write it in YAML."""
    if isinstance(value, ast.Call):
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    if value is None:
        return ""
    plain = ast.literal_eval(value)
    words = {None: "null", True: "true", False: "false"}
    if plain is None or isinstance(plain, bool):
        return words[plain]
    return str(plain).replace("'", "")


def setting_lines(class_name: str) -> list[tuple[str, str]]:
    """What to write and what it means, for a list of two columns."""
    lines = []
    for setting in settings_of(class_name):
        if setting.is_by_name:
            lines.append((f"{setting.name}.NAME.KEY=VALUE", setting.text))
        elif setting.section:
            lines.append((f"{setting.name}.KEY=VALUE", setting.text))
        else:
            lines.append((f"{setting.name}={setting.default}", setting.text))
    return lines
