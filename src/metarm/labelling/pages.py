# SPDX-License-Identifier: Apache-2.0
"""The page's own files: templates that escape all they print, style, scripts, and the icon."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from metarm.labelling.texts import parts_of, visible

__all__ = ["STATIC_FILES", "StaticFile", "read_static", "render"]

STATIC_FILES: Final[Mapping[str, str]] = {
    "batch.js": "text/javascript; charset=utf-8",
    "diff.js": "text/javascript; charset=utf-8",
    "enter.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "keeping.js": "text/javascript; charset=utf-8",
    "label.css": "text/css; charset=utf-8",
    "label.js": "text/javascript; charset=utf-8",
    "outbox.js": "text/javascript; charset=utf-8",
    "owner.js": "text/javascript; charset=utf-8",
    "pauses.js": "text/javascript; charset=utf-8",
    "screen.js": "text/javascript; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    "sight.js": "text/javascript; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "together.js": "text/javascript; charset=utf-8",
}
"""Name -> content type; nothing else is served as a file."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file and what it is."""

    content: bytes
    content_type: str


def read_static() -> dict[str, StaticFile]:
    """Every static file by its name."""
    folder = files("metarm.labelling") / "static"
    return {
        name: StaticFile((folder / name).read_bytes(), kind) for name, kind in STATIC_FILES.items()
    }


def _environment() -> Environment:
    """All is escaped, and what cannot be seen spelled out; `text` of the macros makes chips."""
    folder = files("metarm.labelling") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.globals["parts_of"] = parts_of
    return environment


_ENVIRONMENT: Final = _environment()


def render(template: str, **values: Any) -> str:
    """A page of the package from its template."""
    return _ENVIRONMENT.get_template(template).render(**values)
