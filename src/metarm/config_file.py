# SPDX-License-Identifier: Apache-2.0
"""Settings from a YAML file and `key=value` overrides, and back; precedence: defaults, file, flags.

Every error names the place, the key, what was expected, what came, and what to do.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from metarm.errors import ConfigError, nearest_names
from metarm.storage import write_text
from metarm.yaml_document import KeyPath, Place, YamlDocument, format_yaml, parse_yaml

__all__ = ["read_settings", "write_settings"]

Settings = TypeVar("Settings", bound=BaseModel)

_COMMAND_LINE: Final = "command line"


def read_settings(
    path: Path | str | None, overrides: Sequence[str], cls: type[Settings]
) -> Settings:
    """The settings that a file and the overrides after it give; the last override of a key wins.

    Args:
        path: YAML file; None for the defaults alone. Relative paths inside it are left as they
            are, so they are relative to the current folder.
        overrides: `reward.learning_rate=1e-4`: a dotted key and a YAML value.
        cls: The settings to build.

    Raises:
        ConfigError: On a file that cannot be read, bad YAML, an unknown key or a wrong value.
    """
    document = YamlDocument(value={}) if path is None else _read(Path(path))
    for override in overrides:
        _apply(document, override)
    source = Place(_COMMAND_LINE if path is None else str(path))
    try:
        return cls.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(_describe(error, document, source, cls)) from error


def write_settings(path: Path | str, settings: BaseModel) -> None:
    """Write every setting, defaults too, as YAML that `read_settings` takes back unchanged."""
    write_text(Path(path), format_yaml(settings.model_dump(mode="json")))


def _read(path: Path) -> YamlDocument:
    """The document in a file; its top must be a mapping."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a YAML file, got: {error.strerror}. Check the path."
        ) from error
    document = parse_yaml(data, str(path))
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{path}: expected `key: value` lines at the top, got {_show(document.value)}"
        )
    return document


def _apply(document: YamlDocument, override: str) -> None:
    """Set one dotted key, making the sections on its way."""
    place = Place(_COMMAND_LINE)
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names) or not text.strip():
        raise ConfigError(f"{place}: expected key=value, got {override!r}")
    value = parse_yaml(text.encode("utf-8", "surrogateescape"), f"{place}: {key}").value
    if isinstance(value, dict) and value:
        raise ConfigError(
            f"{place}: {key}: expected a value, got a whole section. "
            f"Give each key by itself: {key}.{next(iter(value))}=..."
        )
    section: Any = document.value
    for depth, name in enumerate(names[:-1], start=1):
        if section.get(name) is None:
            section[name] = {}
            document.places[tuple(names[:depth])] = place
        section = section[name]
        if not isinstance(section, dict):
            raise ConfigError(
                f"{place}: {key}: expected `{'.'.join(names[:depth])}` to be a section, got "
                f"{_show(section)}. Lists are given whole: name=[a, b]"
            )
    section[names[-1]] = value
    path = tuple(names)
    document.places = {k: v for k, v in document.places.items() if k[: len(path)] != path}
    document.places[path] = place


def _describe(
    error: ValidationError, document: YamlDocument, source: Place, cls: type[BaseModel]
) -> str:
    """The first error by place in full, and the keys of the others."""
    found = []
    for detail in error.errors(include_url=False):
        path = tuple(part for part in detail["loc"] if part != "[key]")
        place = document.place(path, source)
        found.append(
            (place.line or 0, place.column or 0, f"{place}: {_sentence(detail, path, cls)}")
        )
    found.sort()
    first, others = found[0][2], len(found) - 1
    more = {0: "", 1: " (1 more error after this one)"}
    return first + more.get(others, f" ({others} more errors after this one)")


def _sentence(detail: Mapping[str, Any], path: KeyPath, cls: type[BaseModel]) -> str:
    """One error: key, expected, found, fix."""
    name = _dotted(path)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key `{name}`: {_nearest_key(path, cls, value)}"
    if kind == "missing":
        return f"{name}: expected a value, got none. Add `{name}` to the file or give {name}=..."
    if kind == "value_error":
        prefix = f"{name}: " if name else ""
        return f"{prefix}{context['error']}"
    known = _EXPECTED.get(kind)
    expected = known(context) if known else str(detail["msg"])
    return f"{name or 'the file'}: expected {expected}, got {_show(value)}{_fix(kind, value)}"


_EXPECTED: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "bool_type": lambda _: "true or false",
    "dict_type": lambda _: "a section of `name: value` lines",
    "float_type": lambda _: "a number",
    "greater_than": lambda context: f"a number greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"a number of at least {context['ge']:g}",
    "int_type": lambda _: "a whole number",
    "is_instance_of": lambda _: "text",
    "less_than": lambda context: f"a number less than {context['lt']:g}",
    "less_than_equal": lambda context: f"a number of at most {context['le']:g}",
    "list_type": lambda _: "a list",
    "literal_error": lambda context: str(context["expected"]),
    "model_type": lambda _: "a section of `key: value` lines",
    "string_type": lambda _: "text",
    "too_short": lambda context: f"a list of at least {context['min_length']}",
}


def _fix(kind: str, value: Any) -> str:
    """What to do, where the mistake is a usual one."""
    if kind == "bool_type" and isinstance(value, str):
        return ". Write true or false, without quotes"
    if kind in ("string_type", "is_instance_of") and isinstance(value, int | float):
        return f". Put quotes around it: '{value}'"
    if kind == "list_type":
        return ". Put brackets around it: [...]"
    if value is None:
        return ". Leave the key out for its default"
    return ""


def _show(value: Any) -> str:
    """A found value in the words of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = str(value)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {shown!r}" if isinstance(value, str) else shown


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _nearest_key(path: KeyPath, cls: type[BaseModel], value: Any) -> str:
    """What an unknown key may have meant: a place elsewhere with that name, or a near name."""
    annotation: Any = cls
    for part in path[:-1]:
        annotation = _inside(annotation, part)
    known = [name for model in _models(annotation) for name in model.model_fields]
    wanted = str(path[-1])
    # As in a run's `reward.max_steps` for the `max_steps` of a verb that has no sections.
    inner = str(next(iter(value))) if isinstance(value, dict) and value else None
    if inner in known:
        return f"did you mean {inner!r}?"
    elsewhere = [name for name in _all_keys(cls) if name.rpartition(".")[2] == wanted]
    if elsewhere and wanted not in known:
        return f"did you mean {' or '.join(f'{name!r}' for name in elsewhere)}?"
    return nearest_names(wanted, known)


def _branches(annotation: Any) -> Iterator[Any]:
    """The plain types that a union or an annotated type is made of."""
    if get_origin(annotation) in (Union, types.UnionType):
        for branch in get_args(annotation):
            yield from _branches(branch)
    elif get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    else:
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes among a type's branches."""
    return [
        branch
        for branch in _branches(annotation)
        if isinstance(branch, type) and issubclass(branch, BaseModel)
    ]


def _inside(annotation: Any, part: str | int) -> Any:
    """The type one key further down."""
    for model in _models(annotation):
        if part in model.model_fields:
            return model.model_fields[str(part)].annotation
    for branch in _branches(annotation):
        if get_args(branch):
            return get_args(branch)[-1]
    return None


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key below a settings class."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for model in _models(field.annotation):
            yield from _all_keys(model, f"{prefix}{name}.")
