# SPDX-License-Identifier: Apache-2.0
"""What sections of settings are made of: how they are read, and the numbers that they hold."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, Field

__all__ = ["STRICT", "Count", "Fraction", "NonNegative", "PathText", "Positive", "Seed"]

PathText = Annotated[
    Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
STRICT: Final = ConfigDict(
    extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
)
"""How every section is read: no unknown key, no guessed type, no change afterwards."""
