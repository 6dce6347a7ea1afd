# SPDX-License-Identifier: Apache-2.0
"""Malformed inputs by the thousand: each is read as it stands, or ends in one clear error.

    python benchmarks/malformed_inputs.py --cases 5000 --output results.json

Valid files are changed in one or a few places: settings, preference files, checkpoints, and the
weights of model folders. What is accepted is held against an independent reader (ruamel.yaml's own
loader, the json module, the bytes that were written); what is refused has to say so in one error of
metarm that names the file. Anything else is counted as a failure, and shown.
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from ruamel.yaml import YAML

from metarm.bench.settings import CompareSettings
from metarm.checkpoints import newest_checkpoint, save_checkpoint
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.preferences import load_preferences
from metarm.errors import MetarmError
from metarm.manifest import check_folder
from metarm.models.safe_files import refuse_pickles
from metarm.schema import PreferencePair
from metarm.storage import write_json
from metarm.yaml_document import parse_yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS: Final = {
    "configs/smoke.yaml": RunSettings,
    "configs/demo.yaml": RunSettings,
    "benchmarks/compare.yaml": CompareSettings,
}
SHARES: Final = {"settings": 0.4, "preferences": 0.4, "checkpoints": 0.15, "weights": 0.05}
PATIENCE_SECONDS = 20


class HangError(Exception):
    """A case that does not come to an end."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A block that may take so long."""

    def give_up(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- one change of a text ---------------------------------------------------------------------

HAZARDS: Final = (
    ".nan",
    "-.inf",
    "1e999",
    "no",
    "yes",
    "on",
    "0777",
    "1_000",
    "12:30:45",
    "2026-01-01",
    "!!python/object/apply:os.system [ls]",
    "!foo 1",
    "&a [*a]",
    "*a",
    "null",
    "",
    "'1e-4'",
    "[]",
    "{}",
    "1" * 5000,
    "[" * 3000,
    '"\\x"',
    "\x07",
    "\u202e",
    "true",
    "-1",
    "1.5",
)


def edit_lines(text: str, draw: random.Random) -> str:
    """One line doubled, removed, moved, indented otherwise, or with another value."""
    lines = text.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    line = lines[place]
    kind = draw.randrange(8)
    if kind == 0:
        lines.insert(place, line)
    elif kind == 1:
        del lines[place]
    elif kind == 2:
        other = draw.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == 3:
        lines[place] = draw.choice([" ", "  ", "\t"]) + line
    elif kind == 4:
        lines[place] = line.lstrip()
    elif kind == 5:
        lines.insert(place, draw.choice(["---\n", "%YAML 1.1\n", "<<: *a\n", "1: a\n", "# c\n"]))
    else:
        key, colon, _ = line.partition(":")
        lines[place] = f"{key}{colon} {draw.choice(HAZARDS)}\n"
    return "".join(lines)


def edit_characters(text: str, draw: random.Random) -> str:
    """One character dropped, doubled, replaced or put in."""
    place = draw.randrange(len(text))
    new = draw.choice(":#-[]{}'\"&*!|>%@`,? \t\n\\0129.eE\u00e9\u2028\x00\ud800z_")
    kind = draw.randrange(4)
    left, right = text[:place], text[place + 1 :]
    return (
        left + right,
        left + text[place] * 2 + right,
        left + new + right,
        left + new + text[place:],
    )[kind]


def edit_bytes(data: bytes, draw: random.Random) -> bytes:
    """One bit turned, a piece cut out or off, doubled, or other bytes put in."""
    place = draw.randrange(len(data))
    end = min(len(data), place + draw.randrange(1, 40))
    kind = draw.randrange(5)
    if kind == 0:
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    return (
        data[:place],
        data[:place] + data[end:],
        data[:end] + data[place:],
        data[:place] + draw.randbytes(draw.randrange(1, 9)) + data[place:],
    )[kind - 1]


def edit(data: bytes, draw: random.Random) -> bytes:
    """One edit of any kind, now and then two."""
    for _ in range(draw.choice((1, 1, 1, 2))):
        kind = draw.randrange(3)
        if kind == 2:
            data = edit_bytes(data, draw) if data else data
            continue
        text = data.decode("utf-8", "surrogateescape")
        if text:
            text = (edit_lines, edit_characters)[kind](text, draw)
        data = text.encode("utf-8", "surrogatepass")
    return data


# --- what is read ------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """What ruamel.yaml read, with dates as text: they are text here."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def check_settings(folder: Path, draw: random.Random) -> str:
    """A settings file: refused, or read as ruamel.yaml reads it."""
    name = draw.choice(list(CONFIGS))
    path = folder / "settings.yaml"
    path.write_bytes(edit((REPOSITORY / name).read_bytes(), draw))
    overrides = [] if CONFIGS[name] is RunSettings else ["output_dir=x"]
    read_settings(path, overrides, CONFIGS[name])
    data = path.read_bytes()
    ours = parse_yaml(data, str(path)).value
    theirs = plain(YAML(typ="safe", pure=True).load(data.decode("utf-8-sig")))
    return "read as it stands" if ours == theirs else "WRONG VALUE"


def preference_files() -> list[Path]:
    """One valid file of each format."""
    return sorted((REPOSITORY / "tests" / "data").glob("*.jsonl"))


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def says(row: Any, pair: PreferencePair) -> bool:
    """Whether a row, as the json module reads it, says what a pair does: sides, prompt, margin."""
    if not isinstance(row, dict) or pair.chosen == pair.rejected:
        return False
    if "summaries" in row:
        texts = [summary["text"] for summary in row["summaries"]]
        post = row["info"].get("post") or row["info"].get("article")
        sides = [texts[row["choice"]], texts[1 - row["choice"]]]
        return sides == [pair.chosen, pair.rejected] and post in str(pair.prompt)
    is_text = isinstance(pair.prompt, str)
    prompts = [pair.prompt] if is_text else [turn.content for turn in pair.prompt]
    everything = "\n".join(texts_of(row))
    told = (row.get("chosen", row), row.get("rejected", row))
    sides = zip((pair.chosen, pair.rejected), told, strict=True)
    return (
        all(text.strip() in everything for text in prompts)
        and all(ours.strip() in "\n".join(texts_of(theirs)) for ours, theirs in sides)
        and pair.margin == row.get("margin")
    )


def check_preferences(folder: Path, draw: random.Random) -> str:
    """A preference file: refused, or each pair is made of texts of one row, margins of numbers."""
    source = draw.choice(preference_files())
    path = folder / "preferences.jsonl"
    path.write_bytes(edit(source.read_bytes(), draw))
    loaded = load_preferences(path)
    rows = []
    for line in path.read_bytes().decode("utf-8-sig").split("\n"):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    if path.read_bytes().lstrip()[:1] == b"[":
        rows = json.loads(path.read_bytes())
    is_said = all(any(says(row, pair) for row in rows) for pair in loaded.pairs)
    return "read as it stands" if is_said else "WRONG VALUE"


def state_of_checkpoint() -> dict[str, Any]:
    """Tensors and values of several kinds."""
    draw = torch.Generator().manual_seed(0)
    return {
        "weights": torch.randn(40, 10, generator=draw),
        "numbers": torch.arange(100),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "groups": [{"betas": (0.9, 0.99)}],
        },
        "step": 3,
    }


def check_checkpoint(folder: Path, draw: random.Random) -> str:
    """A checkpoint's folder with a damaged, missing, swapped or added file: refused, or exact."""
    place = save_checkpoint(folder / "kept", 1, state_of_checkpoint())
    files = sorted(place.iterdir())
    chosen = draw.choice(files)
    kind = draw.randrange(6)
    if kind == 0:
        chosen.unlink()
    elif kind == 1:
        other = draw.choice([path for path in files if path != chosen])
        data = chosen.read_bytes()
        chosen.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == 2:
        (place / draw.choice(("pytorch_model.bin", "a.json", ".x"))).write_bytes(draw.randbytes(9))
    elif kind == 3:
        chosen.unlink()
        chosen.mkdir()
    else:
        chosen.write_bytes(edit_bytes(chosen.read_bytes(), draw))
    check_folder(place)
    found = newest_checkpoint(folder / "kept")
    if found is None:
        return "WRONG VALUE"
    state, whole = found.state, state_of_checkpoint()
    same = torch.equal(state["weights"], whole["weights"]) and state["step"] == whole["step"]
    return "read as it stands" if same else "WRONG VALUE"


PICKLES: Final = (
    b"\x80\x02}q\x00.",
    b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl",
    b"cos\nsystem\n(S'ls'\ntR.",
    b"(lp0\nI1\na.",
    b"\x80\x05K\x01.",
)


WEIGHT_FILES: Final = (
    "pytorch_model.bin",
    "model.safetensors",
    "model.pt",
    "weights.pth",
    "m.ckpt",
    "adapter_model.bin",
)


def check_weights(folder: Path, draw: random.Random) -> str:
    """A model folder whose weights are a pickle under any name: always refused."""
    name = draw.choice(
        (
            "pytorch_model.bin",
            "model.safetensors",
            "model.pt",
            "w.pth",
            "m.ckpt",
            "adapter_model.bin",
        )
    )
    (folder / name).write_bytes(draw.choice(PICKLES))
    (folder / "config.json").write_text("{}", "utf-8")
    refuse_pickles(folder)
    return "WRONG VALUE"


CHECKS: Final[dict[str, Callable[[Path, random.Random], str]]] = {
    "settings": check_settings,
    "preferences": check_preferences,
    "checkpoints": check_checkpoint,
    "weights": check_weights,
}


def outcome_of(kind: str, seed: int, folder: Path) -> tuple[str, str]:
    """What came of a case, and the words that were said."""
    try:
        with patience():
            return CHECKS[kind](folder, random.Random(f"{kind} {seed}")), ""
    except MetarmError as error:
        said = str(error)
        names_file = str(folder) in said
        is_clear = names_file and len(said) > 20 and len(said) < 2000
        if not is_clear:
            return "UNCLEAR ERROR", said
        has_line = re.search(r"\.(yaml|jsonl):\d+", said) is not None
        return "refused, with file and line" if has_line else "refused, with the file", said
    except HangError:
        return "HANG", ""
    except Exception as error:  # noqa: BLE001 - this is what is counted
        return "TRACEBACK", f"{type(error).__name__}: {error}"


def main() -> None:
    """Make, read and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    failures = []
    for kind, share in SHARES.items():
        counts[kind] = Counter()
        for seed in range(round(share * arguments.cases)):
            folder = Path(tempfile.mkdtemp())
            outcome, said = outcome_of(kind, seed, folder)
            shutil.rmtree(folder)
            counts[kind][outcome] += 1
            if outcome.isupper():
                failures.append(f"{kind} {seed}: {outcome}: {said[:300]}")
    result = {
        "cases": sum(sum(found.values()) for found in counts.values()),
        "failures": len(failures),
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
    }
    write_json(arguments.output, result)
    print(json.dumps(result, indent=2))
    for failure in failures[:20]:
        print(failure.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
