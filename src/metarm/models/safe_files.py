# SPDX-License-Identifier: Apache-2.0
"""Model folders whose weights could run code when they are read, known by their first bytes."""

import re
from pathlib import Path
from typing import Any, Final

from metarm.errors import ModelError

__all__ = ["SAFE_OPTIONS", "refuse_pickles"]

SAFE_OPTIONS: Final[dict[str, Any]] = {"trust_remote_code": False}
"""For each `from_pretrained`: left out, transformers would ask whoever sits at the terminal."""

_PICKLE: Final = re.compile(
    rb"\x80[\x02-\x05]"  # protocols 2 to 5
    rb"|PK\x03\x04"  # torch.save: a ZIP archive around one
    rb"|[(}\])cNIKJ].{0,400}?[.]\Z",  # protocols 0 and 1, short enough to be whole
    re.DOTALL,
)
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_HEAD_BYTES: Final = 512


def refuse_pickles(model: str | Path) -> None:
    """Refuse a folder whose weights are a pickle, whatever it is called; other places pass.

    A folder with safetensors may hold a copy of them as a pickle too, which nobody reads.

    Raises:
        ModelError: Names the file, and how to convert it.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    files = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    pickles = [path for path in files if path.is_file() and _is_pickle(path)]
    is_safe = any(path.suffix == ".safetensors" and path not in pickles for path in files)
    read = [path for path in pickles if path.suffix == ".safetensors" or not is_safe]
    if read:
        raise ModelError(
            f"{read[0]}: expected safetensors, got a Python pickle, which can run code when it is "
            "read and is not opened. Convert the model where you trust it: load it with "
            "transformers there and save it with save_pretrained."
        )


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    # A header of 640 bytes begins as a pickle does, but what follows its length is an object.
    return head[8:9] != b"{" and _PICKLE.match(head) is not None
