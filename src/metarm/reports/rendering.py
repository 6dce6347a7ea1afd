# SPDX-License-Identifier: Apache-2.0
"""What all pages share: templates that escape, pictures that stand inside, settings as rows."""

import base64
import io
import json
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any, Final

import matplotlib
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from metarm.reports.drawing import STYLE

__all__ = ["data_uri", "fact_rows", "page_environment", "picture", "visible_text"]

HIDDEN_MARKS: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
"""Marks that turn the direction of text without being seen."""


def visible_text(value: str) -> str:
    """The text with control characters, direction marks and lone surrogates spelled out."""
    return "".join(
        f"<U+{ord(character):04X}>"
        if character in HIDDEN_MARKS
        or (unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t")
        else character
        for character in value
    )


def page_environment() -> Environment:
    """Templates from inside the package; everything they print is escaped."""
    folder = files("metarm.reports") / "templates"
    return Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            visible_text(value)
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        ),
    )


def data_uri(svg: bytes) -> str:
    """A picture that stands inside the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def picture(figure: Figure | None) -> str | None:
    """A figure as SVG inside the page, of the same figure the same bytes; None where none is."""
    if figure is None:
        return None
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return data_uri(stream.getvalue())


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as rows of a name and a text; those of a section are named after it."""
    rows = []
    for key, value in facts.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, leaf in inner:
            is_text = isinstance(leaf, str | PurePath)
            text = str(leaf) if is_text else json.dumps(leaf, ensure_ascii=False, default=str)
            rows.append((f"{key}: {name}" if name else str(key), text))
    return rows
