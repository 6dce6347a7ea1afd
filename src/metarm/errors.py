# SPDX-License-Identifier: Apache-2.0
"""Every error metarm raises, as one tree.

    MetarmError
    +-- ConfigError (ValueError)        a setting, flag or name is wrong
    +-- DataError (ValueError)          a data file or data set is wrong
    |   +-- FormatError                 one place of one file: file, line, field
    |   +-- EmptySetError               nothing is left to work on
    +-- ShapeError (ValueError)         tensors of the wrong shape reached the mathematics
    +-- ModelError (ValueError)         a model or tokenizer cannot do what is asked of it
    |   +-- CacheError                  rows of its cache cannot be copied and removed
    +-- PrecisionError (ModelError)     trainable parameters that would swallow the meta step
    +-- ServingError (RuntimeError)     a served reward model gave no scores
    +-- RunError (RuntimeError)         a run folder cannot be used as it is
        +-- EndpointError               a model behind a URL cannot be asked, or not any more
        +-- FingerprintError            a finished stage was made with other settings
        +-- CheckpointError             a checkpoint is damaged, or cannot be made

A message says what was expected, what came, and what to do.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EmptySetError",
    "EndpointError",
    "FingerprintError",
    "FormatError",
    "MetarmError",
    "ModelError",
    "PrecisionError",
    "RunError",
    "ServingError",
    "ShapeError",
    "nearest_names",
]


class MetarmError(Exception):
    """The root: catch it to catch every error that metarm raises on purpose."""


class ConfigError(MetarmError, ValueError):
    """A setting, flag or name is wrong."""


class DataError(MetarmError, ValueError):
    """A data file or data set is wrong."""


class FormatError(DataError):
    """One place of one file is wrong; the message names file, line and field."""


class EmptySetError(DataError):
    """Nothing is left to work on."""


class ShapeError(MetarmError, ValueError):
    """Tensors of the wrong shape reached the mathematics."""


class ModelError(MetarmError, ValueError):
    """A model or tokenizer cannot do what is asked of it."""


class CacheError(ModelError):
    """Rows of a language model's cache cannot be copied and removed."""


class PrecisionError(ModelError):
    """Trainable parameters are stored in a type that would swallow the meta step."""


class ServingError(MetarmError, RuntimeError):
    """A served reward model gave no scores; there is never a number in their place."""


class RunError(MetarmError, RuntimeError):
    """A run folder cannot be used as it is."""


class EndpointError(RunError):
    """A model behind a URL cannot be asked, or not any more; answers that came are kept."""


class FingerprintError(RunError):
    """A finished stage was made with other settings."""


class CheckpointError(RunError):
    """A checkpoint is damaged, or a state cannot be kept in one."""


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known names closest to `name`, or lists them all.

    Example:
        >>> nearest_names("decsent", ["off", "ascent", "descent"])
        "did you mean 'descent'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
