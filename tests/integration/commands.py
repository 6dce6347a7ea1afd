# SPDX-License-Identifier: Apache-2.0
"""The command in processes of its own that have its imports behind them: a start takes no time."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

from patience import PATIENCE_SECONDS

__all__ = ["Command", "Finished", "has_kept", "inodes", "ready", "scorecards", "start"]

HEAVY = (
    "metarm.cli.app",
    "metarm.reports.page",
    "metarm.rlhf_loop",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
)


@dataclass(frozen=True)
class Finished:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error, which stands at the end."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, self.out, len(lines)) == (2, "", 1), self
        assert "Traceback" not in self.err
        assert self.err.endswith(f"{lines[0]}\n")
        return lines[0]


@dataclass(frozen=True)
class Command:
    """A command that has been started."""

    process: multiprocessing.Process
    folder: Path

    def kill(self) -> None:
        """End it as a loss of power would."""
        self.process.kill()
        self.process.join(PATIENCE_SECONDS)

    def finish(self) -> Finished:
        """Wait for its end."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, "it hangs"
        out, err = (
            (self.folder / f"{self.process.name}.{kind}").read_text("utf-8")
            for kind in ("out", "err")
        )
        return Finished(self.process.exitcode, out, err)


def ready() -> None:
    """Start what commands are forked from: its environment and folder are those of this moment."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    forkserver.set_forkserver_preload(list(HEAVY))
    forkserver.ensure_running()


def start(
    words: Sequence[str], cwd: Path, logs: Path, environment: Mapping[str, str] | None = None
) -> Command:
    """Start `metarm` with these words in the folder `cwd`; its output goes into `logs`."""
    ready()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_run, args=(list(map(str, words)), str(cwd), str(logs), dict(environment or {}))
    )
    process.start()
    return Command(process, logs)


def _run(words: list[str], cwd: str, logs: str, environment: dict[str, str]) -> None:
    from metarm.cli.app import run_command

    name = multiprocessing.current_process().name
    for descriptor, kind in ((1, "out"), (2, "err")):
        stream = os.open(Path(logs, f"{name}.{kind}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, descriptor)
    os.environ.update(environment)
    os.chdir(cwd)
    os.setsid()  # a process group of its own, as a shell would give it
    sys.argv = ["metarm", *words]
    # As the interpreter ends: an error that nobody caught goes to the hook.
    code = 1
    try:
        code = run_command(words)
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        sys.__stdout__.flush()
        sys.stderr.flush()
        os._exit(code)


def has_kept(place: Path, count: int) -> bool:
    """Whether that many checkpoints of a training are there, at a moment when they may all go."""
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(place)
    return sum(name.startswith("checkpoint-") for name in names) >= count


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """What each finished stage's record is on disk: another inode: it was made again."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("stage.json")
        if not path.parent.name.endswith(".partial")
    }


def scorecards(folder: Path, keep: Callable[[str], bool] = lambda place: True) -> dict[str, str]:
    """Each scorecard's text by its place, without the seconds it took: equal means bit for bit."""
    return {
        place: "".join(
            line
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if '"seconds"' not in line
        )
        for path in sorted(folder.glob("seed_*/arms/*/round_*/evaluation/scorecard.json"))
        if keep(place := path.relative_to(folder).as_posix())
    }
